//! A report as a directory: `report.html`, `report.json`, `junit.xml`. The directory appears whole or not at all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use steadfast_api::report::Report;

use super::{html, json, junit};

/// Where the parts of a report lie.
#[derive(Clone, Debug)]
pub struct Stored {
    pub html: PathBuf,
    pub json: PathBuf,
    pub junit: PathBuf,
}

/// A report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct StoreError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// In the working directory.
pub const DEFAULT_PARENT: &str = "steadfast-reports";

/// `steadfast-reports/<name>-<time>`.
pub fn default_directory(report: &Report) -> PathBuf {
    let time: String = report.run.started.chars().take(19).filter(|c| *c != ':').collect();
    Path::new(DEFAULT_PARENT).join(format!("{}-{time}", report.test.metadata.name))
}

/// Whether a report could be written to `directory`; leaves nothing there.
pub fn can_write(directory: &Path) -> Result<(), StoreError> {
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let there = parent.ancestors().find(|folder| folder.as_os_str().is_empty() || folder.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let probe = there.join(format!(".steadfast-{}.part", std::process::id()));
    let fail = |source| StoreError { path: directory.to_owned(), source };
    fs::write(&probe, "").map_err(fail)?;
    fs::remove_file(&probe).map_err(fail)
}

/// Writes all three parts to `directory`. An earlier report there is replaced; other files in it stay.
pub fn write(report: &Report, directory: &Path) -> Result<Stored, StoreError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError { path, source }
    };
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(fail(parent))?;
    let name = directory.file_name().map_or_else(|| "report".into(), |name| name.to_string_lossy().into_owned());
    let part = parent.join(format!(".{name}.{}.part", std::process::id()));
    fs::create_dir_all(&part).map_err(fail(&part))?;
    let written = fill(report, &part).and_then(|()| publish(&part, directory));
    let _ = fs::remove_dir_all(&part);
    written?;
    let stored = |name| directory.join(name);
    Ok(Stored { html: stored(HTML), json: stored(JSON), junit: stored(JUNIT) })
}

const HTML: &str = "report.html";
const JSON: &str = "report.json";
const JUNIT: &str = "junit.xml";

fn fill(report: &Report, part: &Path) -> Result<(), StoreError> {
    let write = |name: &str, text: Result<String, io::Error>| {
        let path = part.join(name);
        text.and_then(|text| fs::write(&path, text)).map_err(|source| StoreError { path, source })
    };
    write(JSON, json::render(report).map_err(io::Error::other))?;
    write(JUNIT, junit::render(report).map_err(io::Error::other))?;
    write(HTML, Ok(html::render(report)))
}

/// One rename where the directory is new; file by file where it is not.
fn publish(part: &Path, directory: &Path) -> Result<(), StoreError> {
    if !directory.exists() && fs::rename(part, directory).is_ok() {
        return Ok(());
    }
    fs::create_dir_all(directory).map_err(|source| StoreError { path: directory.to_owned(), source })?;
    for name in [JSON, JUNIT, HTML] {
        fs::rename(part.join(name), directory.join(name)).map_err(|source| StoreError { path: directory.join(name), source })?;
    }
    Ok(())
}

/// Writes one file so that a reader sees the old or the new text, never half of it.
pub fn replace(path: &Path, text: &str) -> Result<(), StoreError> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let done = fs::write(&part, text).and_then(|()| fs::rename(&part, path));
    done.map_err(|source| {
        let _ = fs::remove_file(&part);
        StoreError { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::junit::tests::small;

    #[test]
    fn a_report_is_written_whole_and_replaces_an_earlier_one() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/down");
        for duration_ms in [1.0, 2.0] {
            let mut report = small();
            report.run.duration_ms = duration_ms;
            let stored = write(&report, &directory).unwrap();
            assert_eq!(json::read(&fs::read_to_string(stored.json).unwrap()).unwrap(), report);
            assert!(fs::read_to_string(stored.html).unwrap().contains("<!doctype html>") && stored.junit.exists());
            assert_eq!(fs::read_dir(directory.parent().unwrap()).unwrap().count(), 1, "nothing half-made stays");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(write(&small(), &file.join("report")).unwrap_err().to_string().contains("file"));
    }
}
