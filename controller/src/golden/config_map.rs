//! A golden set as ConfigMaps: one key a file, `/` in its path written as `__`; or the single key `set.tar`. One ConfigMap takes a megabyte; a larger set lies in
//! several, and what has the same key in several of them is one file, cut.

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
/// ConfigMaps of one set.
pub const PARTS_MAX: u32 = 16;
const SLASH: &str = "__";
const TAR: &str = "set.tar";

/// Names of the ConfigMaps in which a set of so many parts lies, in order.
pub fn names(name: &str, parts: u32) -> Vec<String> {
    (1..=parts).map(|part| if part == 1 { name.to_owned() } else { format!("{name}-{part}") }).collect()
}

/// Writes the files into `folder`, which is made anew.
pub fn unpack(maps: &[ConfigMap], folder: &Path) -> Result<PathBuf, String> {
    let mut files: BTreeMap<&String, Vec<u8>> = BTreeMap::new();
    for map in maps {
        let texts = map.data.iter().flatten().map(|(key, text)| (key, text.as_bytes()));
        for (key, bytes) in texts.chain(map.binary_data.iter().flatten().map(|(key, bytes)| (key, bytes.0.as_slice()))) {
            files.entry(key).or_default().extend_from_slice(bytes);
        }
    }
    if files.is_empty() {
        return Err("holds no file".to_owned());
    }
    let fail = |error: io::Error| format!("{}: {error}", folder.display());
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    if files.len() == 1
        && let Some(tar) = files.remove(&TAR.to_owned())
    {
        let wrong = |error: SetError| format!("key {TAR}: {error}");
        let set = archive::unpack(&Bytes::from(tar)).map_err(wrong)?;
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

/// The files of `folder` as ConfigMaps, the first of this name and the others of [`names`].
///
/// # Errors
/// When they cannot be read, or are too many bytes.
pub fn pack(name: &str, folder: &Path) -> Result<Vec<ConfigMap>, String> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut parts: Vec<BTreeMap<String, ByteString>> = vec![BTreeMap::new()];
    let mut room = BYTES_MAX;
    for (key, bytes) in &files {
        let mut rest = bytes.as_slice();
        loop {
            if room <= key.len() {
                parts.push(BTreeMap::new());
                room = BYTES_MAX;
            }
            let (now, later) = rest.split_at(rest.len().min(room - key.len()));
            room -= key.len() + now.len();
            if let Some(part) = parts.last_mut() {
                part.insert(key.clone(), ByteString(now.to_vec()));
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }
    if parts.len() > PARTS_MAX as usize {
        let bytes: usize = files.values().map(Vec::len).sum();
        return Err(format!("{bytes} bytes are too many for {PARTS_MAX} ConfigMaps of {BYTES_MAX} each; take fewer samples"));
    }
    let names = names(name, parts.len() as u32);
    let map =
        |(name, files)| ConfigMap { metadata: ObjectMeta { name: Some(name), ..ObjectMeta::default() }, binary_data: Some(files), ..ConfigMap::default() };
    Ok(names.into_iter().zip(parts).map(map).collect())
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{path}{SLASH}"), files)?;
        } else if name == "golden.yaml" || Path::new(&name).extension().is_some_and(|kind| kind == "onnx" || kind == "pb") {
            // What trained it is nobody's business there.
            files.insert(path, fs::read(entry.path())?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets").join(name)
    }

    fn digest(folder: &Path) -> String {
        set::read(folder).unwrap().digest().to_string()
    }

    #[test]
    fn a_set_goes_into_config_maps_and_out_again() {
        let folder = tempfile::tempdir().unwrap();
        for (name, parts) in [("digits", 1), ("recommender", 2)] {
            let maps = pack(name, &set(name)).unwrap();
            assert_eq!(maps.iter().filter_map(|map| map.metadata.name.clone()).collect::<Vec<_>>(), names(name, parts));
            for map in &maps {
                let data = map.binary_data.as_ref().unwrap();
                assert!(data.iter().map(|(key, bytes)| key.len() + bytes.0.len()).sum::<usize>() <= BYTES_MAX);
                assert!(data.keys().all(|key| !key.contains('/') && !key.contains("train")));
            }
            assert_eq!(digest(&unpack(&maps, &folder.path().join(name)).unwrap()), digest(&set(name)));
        }
        let tar = archive::pack(&set::read(set("digits")).unwrap()).unwrap();
        let tarred = ConfigMap { binary_data: Some([(TAR.to_owned(), ByteString(tar.to_vec()))].into()), ..ConfigMap::default() };
        assert_eq!(digest(&unpack(&[tarred], &folder.path().join("tarred")).unwrap()), digest(&set("digits")));
    }

    #[test]
    fn what_does_not_fit_or_leads_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let large = fs::File::create(folder.path().join("model.onnx")).unwrap();
        large.set_len(u64::from(PARTS_MAX) * BYTES_MAX as u64).unwrap();
        assert!(pack("large", folder.path()).unwrap_err().contains("too many for 16 ConfigMaps"));
        let map = |key: &str| [ConfigMap { data: Some([(key.to_owned(), String::new())].into()), ..ConfigMap::default() }];
        for key in ["..__x", "a____b", "__a"] {
            assert!(unpack(&map(key), &folder.path().join("x")).unwrap_err().contains("no path"), "{key}");
        }
        assert!(unpack(&[ConfigMap::default()], folder.path()).unwrap_err().contains("no file"));
    }
}
