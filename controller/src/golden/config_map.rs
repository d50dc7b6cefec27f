//! A golden set as a ConfigMap: one key a file, `/` in its path written as `__`; or the single key `set.tar`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use k8s_openapi::{ByteString, api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use steadfast_golden_sets::{
    SetError,
    set::{self, archive},
};

/// Bytes of a ConfigMap, as the API server counts them; base64 makes them a third more on the way.
pub const BYTES_MAX: usize = 1 << 20;
const SLASH: &str = "__";
const TAR: &str = "set.tar";

/// Writes the files into `folder`, which is made anew.
pub fn unpack(map: &ConfigMap, folder: &Path) -> Result<PathBuf, String> {
    let texts = map.data.iter().flatten().map(|(key, text)| (key, text.as_bytes()));
    let files: Vec<(&String, &[u8])> = texts.chain(map.binary_data.iter().flatten().map(|(key, bytes)| (key, bytes.0.as_slice()))).collect();
    if files.is_empty() {
        return Err("holds no file".to_owned());
    }
    let fail = |error: io::Error| format!("{}: {error}", folder.display());
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    if let [(key, bytes)] = files.as_slice()
        && *key == TAR
    {
        let wrong = |error: SetError| format!("key {TAR}: {error}");
        let set = archive::unpack(&Bytes::copy_from_slice(bytes)).map_err(wrong)?;
        set::write(&set, folder).map_err(wrong)?;
        return Ok(folder.to_owned());
    }
    for (key, bytes) in files {
        let parts: Vec<&str> = key.split(SLASH).collect();
        if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
            return Err(format!("key {key:?} is no path of a file: write its folders apart by {SLASH}, such as test_data_set_0{SLASH}input_0.pb"));
        }
        let file = folder.join(parts.join("/"));
        let parent = file.parent().unwrap_or(folder);
        fs::create_dir_all(parent).and_then(|()| fs::write(&file, bytes)).map_err(fail)?;
    }
    Ok(folder.to_owned())
}

/// The files of `folder` as a ConfigMap of this name.
///
/// # Errors
/// When they cannot be read, or are too many bytes for one.
pub fn pack(name: &str, folder: &Path) -> Result<ConfigMap, String> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files).map_err(|error| format!("{}: {error}", folder.display()))?;
    let bytes: usize = files.iter().map(|(key, bytes)| key.len() + bytes.0.len()).sum();
    if bytes > BYTES_MAX {
        return Err(format!("{bytes} bytes are too many for a ConfigMap: at most {BYTES_MAX}; take fewer samples"));
    }
    Ok(ConfigMap { metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }, binary_data: Some(files), ..ConfigMap::default() })
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, ByteString>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}{SLASH}"), files)?;
        } else if name == "golden.yaml" || Path::new(&name).extension().is_some_and(|kind| kind == "onnx" || kind == "pb") {
            // What trained it is nobody's business there.
            files.insert(path, ByteString(fs::read(entry.path())?));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_goes_into_a_config_map_and_out_again() {
        let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets/digits");
        let map = pack("digits", &set).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let out = unpack(&map, &folder.path().join("digits")).unwrap();
        let digest = |folder: &Path| steadfast_golden_sets::set::read(folder).unwrap().digest().to_string();
        assert_eq!(digest(&out), digest(&set));
        let tar = archive::pack(&set::read(&set).unwrap()).unwrap();
        let tarred = ConfigMap { binary_data: Some([(TAR.to_owned(), ByteString(tar.to_vec()))].into()), ..ConfigMap::default() };
        assert_eq!(digest(&unpack(&tarred, &folder.path().join("tarred")).unwrap()), digest(&set));
        assert!(map.binary_data.unwrap().keys().all(|key| !key.contains('/') && !key.contains("train")));
    }

    #[test]
    fn what_does_not_fit_or_leads_elsewhere_is_refused() {
        let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets/recommender");
        assert!(pack("recommender", &set).unwrap_err().contains("too many for a ConfigMap"));
        let folder = tempfile::tempdir().unwrap();
        let map = |key: &str| ConfigMap { data: Some([(key.to_owned(), String::new())].into()), ..ConfigMap::default() };
        for key in ["..__x", "a____b", "__a"] {
            assert!(unpack(&map(key), &folder.path().join("x")).unwrap_err().contains("no path"), "{key}");
        }
        assert!(unpack(&ConfigMap::default(), folder.path()).unwrap_err().contains("no file"));
    }
}
