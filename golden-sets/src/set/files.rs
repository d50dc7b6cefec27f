//! Reading files with a limit, and writing them so that a crash leaves either the old or the new, never a half.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Component, Path, PathBuf},
};

use super::SetError;

/// Reads a regular file of at most `max` bytes. Links are followed, as mounted ConfigMaps need.
pub fn read_bounded(file: &Path, max: u64) -> Result<Vec<u8>, SetError> {
    let handle = File::open(file).map_err(SetError::io(file))?;
    let metadata = handle.metadata().map_err(SetError::io(file))?;
    if !metadata.is_file() {
        return Err(SetError::broken(file, "is not a regular file"));
    }
    let too_large = || SetError::broken(file, format!("is larger than {max} bytes, the most that is read of such a file"));
    if metadata.len() > max {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // It may grow while it is read.
    handle.take(max + 1).read_to_end(&mut bytes).map_err(SetError::io(file))?;
    if bytes.len() as u64 > max { Err(too_large()) } else { Ok(bytes) }
}

/// Text of at most `max` bytes.
pub fn read_text(file: &Path, max: u64) -> Result<String, SetError> {
    String::from_utf8(read_bounded(file, max)?).map_err(|_| SetError::broken(file, "is not UTF-8 text"))
}

/// `name` below `directory`, refused when it would lead out of it.
pub fn beside(directory: &Path, name: &str) -> Result<PathBuf, String> {
    let path = Path::new(name);
    let plain = !name.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_)));
    if plain { Ok(directory.join(path)) } else { Err(format!("{name:?} must be a path inside the directory, without \"..\" and not absolute")) }
}

/// Whether `name` can be a directory's name everywhere: letters, digits, `-`, `_`, `.`, at most 63, not starting with a dot.
pub fn is_plain_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Writes a new file and waits until it is on the disk.
pub fn write_new(file: &Path, bytes: &[u8]) -> Result<(), SetError> {
    let write = || {
        let mut handle = File::create_new(file)?;
        handle.write_all(bytes)?;
        handle.sync_all()
    };
    write().map_err(SetError::io(file))
}

/// Puts `bytes` in the place of `file` in one step.
pub fn replace(file: &Path, bytes: &[u8]) -> Result<(), SetError> {
    let parent = file.parent().unwrap_or(Path::new("."));
    let temporary = parent.join(format!(".{}-{:016x}", file.file_name().unwrap_or_default().to_string_lossy(), rand::random::<u64>()));
    let result = write_new(&temporary, bytes).and_then(|()| fs::rename(&temporary, file).map_err(SetError::io(file))).and_then(|()| sync(parent));
    if result.is_err() {
        // Best effort: the error that matters is the first.
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// Makes a directory that is whole when it appears: `fill` writes into a hidden one beside it, which is then renamed. The target must not exist.
pub fn create_directory(target: &Path, fill: impl FnOnce(&Path) -> Result<(), SetError>) -> Result<(), SetError> {
    if target.exists() {
        return Err(SetError::broken(target, "exists already; choose another name or remove it"));
    }
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(SetError::io(parent))?;
    let temporary = parent.join(format!(".{}-{:016x}", target.file_name().unwrap_or_default().to_string_lossy(), rand::random::<u64>()));
    fs::create_dir(&temporary).map_err(SetError::io(&temporary))?;
    let result = fill(&temporary)
        .and_then(|()| sync(&temporary))
        .and_then(|()| fs::rename(&temporary, target).map_err(SetError::io(target)))
        .and_then(|()| sync(parent));
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    result
}

/// Waits until a directory's entries are on the disk.
pub fn sync(directory: &Path) -> Result<(), SetError> {
    File::open(directory).and_then(|handle| handle.sync_all()).map_err(SetError::io(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_leave_the_directory() {
        let here = Path::new("/sets/a");
        assert_eq!(beside(here, "test_data_set_0").unwrap(), here.join("test_data_set_0"));
        for bad in ["", "..", "../b", "a/../../b", "/etc/passwd", "./a/.."] {
            assert!(beside(here, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_beyond_the_limit_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        fs::write(&file, [0; 11]).unwrap();
        assert!(read_bounded(&file, 11).is_ok());
        assert!(read_bounded(&file, 10).unwrap_err().to_string().contains("larger than 10 bytes"));
        assert!(read_bounded(directory.path(), 10).unwrap_err().to_string().contains("regular file"));
        assert!(read_bounded(&directory.path().join("none"), 10).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_directory_that_could_not_be_filled_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("set");
        let failed = create_directory(&target, |directory| {
            write_new(&directory.join("a"), b"1")?;
            Err(SetError::broken("b", "no room"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        create_directory(&target, |directory| write_new(&directory.join("a"), b"1")).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
        assert!(create_directory(&target, |_| Ok(())).unwrap_err().to_string().contains("exists already"));
    }

    #[test]
    fn replacing_a_file_leaves_only_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("enrolled.yaml");
        replace(&file, b"old").unwrap();
        replace(&file, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
