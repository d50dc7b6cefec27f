//! Reads a golden set from where it lies: a folder, a tar file, or either of them in an object store. Reader pods do, with what they have mounted.

use std::{fs, io, path::Path};

use bytes::Bytes;
use steadfast_api::policy::GOLDEN_BYTES_MAX;
use steadfast_golden_sets::{
    GoldenSet,
    set::{self, archive},
};

use crate::objects::Objects;

/// Files that a store may hold in the set's folder.
const FILES_MAX: usize = 8_192;
/// Of all files together, before they are packed.
const BYTES_MAX: usize = 2 * GOLDEN_BYTES_MAX;

/// The set as the tar that sidecars fetch.
///
/// # Errors
/// What is wrong with the source, or with the set in it.
pub async fn tar(source: &str) -> Result<Bytes, String> {
    let set = if source.contains("://") { from_store(source).await? } else { from_disk(Path::new(source))? };
    let tar = archive::pack(&set).map_err(|error| error.to_string())?;
    if tar.len() > GOLDEN_BYTES_MAX {
        return Err(format!("{source}: {} bytes are too many for a sidecar to hold: at most {GOLDEN_BYTES_MAX}; take fewer samples", tar.len()));
    }
    Ok(tar)
}

fn from_disk(path: &Path) -> Result<GoldenSet, String> {
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("{}: there is no such file or folder in the volume", path.display()),
        io::ErrorKind::PermissionDenied => format!(
            "{}: the reader's user (65532, unless the chart's runAsUser says otherwise) may not read it: make it readable for everybody",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    };
    let about = fs::metadata(path).map_err(fail)?;
    if about.is_dir() {
        fs::read_dir(path).map_err(fail)?;
        return set::read(path).map_err(|error| error.to_string());
    }
    if about.len() > BYTES_MAX as u64 {
        return Err(format!("{}: has {} bytes, and at most {BYTES_MAX} are read", path.display(), about.len()));
    }
    from_tar(path.display(), &fs::read(path).map_err(fail)?.into())
}

fn from_tar(place: impl std::fmt::Display, tar: &Bytes) -> Result<GoldenSet, String> {
    archive::unpack(tar).map_err(|error| format!("{place}: {error}"))
}

async fn from_store(url: &str) -> Result<GoldenSet, String> {
    let objects = Objects::open(url).map_err(|error| error.to_string())?;
    if Path::new(url).extension().is_some_and(|kind| kind == "tar") {
        let tar = objects.get("", BYTES_MAX).await.map_err(|error| error.to_string())?;
        return from_tar(url, &tar);
    }
    let fail = |error: io::Error| format!("the reader's own disk: {error}");
    let folder = Folder(std::env::temp_dir().join(format!("steadfast-read-{}", std::process::id())));
    // A set without golden.yaml is named after its folder.
    let root = folder.0.join(url.trim_end_matches('/').rsplit('/').next().unwrap_or("set"));
    let files = objects.files(FILES_MAX).await.map_err(|error| error.to_string())?;
    // What trained the model is nobody's business here.
    let of_set =
        |file: &&String| Path::new(file).extension().is_some_and(|kind| kind == "onnx" || kind == "pb") || *file == "golden.yaml" || *file == "data.json";
    let mut left = BYTES_MAX;
    for file in files.iter().filter(of_set) {
        let bytes = objects.get(file, left).await.map_err(|error| error.to_string())?;
        left -= bytes.len();
        // An object's path has neither `..` nor a slash at its beginning.
        let place = root.join(file);
        fs::create_dir_all(place.parent().unwrap_or(&root)).and_then(|()| fs::write(&place, bytes)).map_err(fail)?;
    }
    if left == BYTES_MAX {
        return Err(format!("{url}: holds no file of a golden set; what is a tar file ends in .tar"));
    }
    set::read(&root).map_err(|error| format!("{url}: {error}"))
}

/// Removed with all it holds.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn folders_and_tars_are_read_and_what_is_neither_is_named() {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets/digits");
        let packed = tar(&digits.display().to_string()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("digits.tar");
        fs::write(&file, &packed).unwrap();
        assert_eq!(tar(&file.display().to_string()).await.unwrap(), packed);
        let refused = |path: std::path::PathBuf| async move { tar(&path.display().to_string()).await.unwrap_err() };
        assert!(refused(folder.path().join("nothing")).await.contains("no such file or folder"));
        assert!(refused(folder.path().to_owned()).await.contains("not a golden set"));
        fs::write(folder.path().join("x.tar"), "no tar").unwrap();
        assert!(refused(folder.path().join("x.tar")).await.contains("x.tar"));
        let large = fs::File::create(folder.path().join("large.tar")).unwrap();
        large.set_len(BYTES_MAX as u64 + 1).unwrap();
        assert!(refused(folder.path().join("large.tar")).await.contains("at most"));
    }
}
