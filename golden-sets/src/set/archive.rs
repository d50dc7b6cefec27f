//! A set as one tar: how a controller hands it to sidecars, which have no disk to unpack it on.
//!
//! The tar holds the files of the set's folder and nothing else: `golden.yaml` first, the model, the samples. It is read in memory; an entry that is no plain file
//! below the folder, stands twice, or has no place in the manifest is refused, so nothing can come with a set that its digest does not cover.

use std::{
    collections::BTreeMap,
    io::Cursor,
    path::{Component, Path},
};

use bytes::Bytes;
use steadfast_api::{golden::SetManifest, read};

use super::{GoldenSet, MANIFEST_BYTES_MAX, PORTS_MAX, SAMPLES_MAX, Sample, SetError};
use crate::{onnx, tensor::Tensor};

const MANIFEST: &str = "golden.yaml";
/// Files of one set: manifest, model, and every input and output.
const FILES_MAX: usize = 2 + SAMPLES_MAX * 16;

/// The set as a tar, the same bytes for the same set.
///
/// # Errors
/// When its manifest cannot be written as YAML.
pub fn pack(set: &GoldenSet) -> Result<Bytes, SetError> {
    let manifest = set.manifest();
    let refuse = |why: String| SetError::broken(MANIFEST, why);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o444);
        tar.append_data(&mut header, path, bytes).map_err(|error| refuse(format!("{path:?} cannot be a file of a tar: {error}")))
    };
    add(MANIFEST, read::to_yaml(manifest).map_err(refuse)?.as_bytes())?;
    add(&manifest.onnx.file, set.model())?;
    for (spec, sample) in manifest.samples.iter().zip(set.samples()) {
        for (prefix, tensors) in [("input", &sample.inputs), ("output", &sample.outputs)] {
            for (index, tensor) in tensors.iter().enumerate() {
                add(&format!("{}/{prefix}_{index}.pb", spec.directory), &onnx::tensor::encode(tensor))?;
            }
        }
    }
    tar.into_inner().map(Bytes::from).map_err(|error| refuse(error.to_string()))
}

/// The set that a tar holds. Tensors and model share the tar's memory.
///
/// # Errors
/// What is wrong with it, and in which file.
pub fn unpack(tar: &Bytes) -> Result<GoldenSet, SetError> {
    let mut files = entries(tar)?;
    let missing = |file: &str| SetError::broken(file, "is not in the tar");
    let text = files.remove(MANIFEST).ok_or_else(|| missing(MANIFEST))?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(SetError::broken(MANIFEST, format!("is larger than {MANIFEST_BYTES_MAX} bytes, the most that is read of such a file")));
    }
    let text = std::str::from_utf8(&text).map_err(|_| SetError::broken(MANIFEST, "is not UTF-8 text"))?;
    let manifest: SetManifest = read::from_yaml(MANIFEST, text)?;
    let model = files.remove(&manifest.onnx.file).ok_or_else(|| missing(&manifest.onnx.file))?;
    let mut samples = Vec::new();
    for spec in &manifest.samples {
        let inputs = tensors(&mut files, &spec.directory, "input")?;
        let outputs = tensors(&mut files, &spec.directory, "output")?;
        samples.push(Sample { name: spec.name.clone(), tags: spec.tags.clone(), inputs, outputs });
    }
    if let Some(file) = files.keys().next() {
        return Err(SetError::broken(file, "is in the tar, and golden.yaml does not name it: leave it out"));
    }
    GoldenSet::new(manifest, model, samples)
}

fn entries(bytes: &Bytes) -> Result<BTreeMap<String, Bytes>, SetError> {
    let broken = |error: &dyn std::fmt::Display| SetError::broken("the set", format!("is no tar that can be read: {error}"));
    let mut tar = tar::Archive::new(Cursor::new(bytes));
    let mut files = BTreeMap::new();
    for entry in tar.entries().map_err(|error| broken(&error))? {
        let entry = entry.map_err(|error| broken(&error))?;
        let path = entry.path().map_err(|error| broken(&error))?.into_owned();
        let kind = entry.header().entry_type();
        // Other programs write folders too, and `./` before every name.
        if kind.is_dir() {
            continue;
        }
        let name = plain(&path).filter(|_| kind.is_file());
        let name = name.ok_or_else(|| SetError::broken(&path, "is not a plain file below the set's folder: pack it with `tar -C FOLDER -cf set.tar .`"))?;
        // In memory already: its place in the tar.
        let (start, size) = (entry.raw_file_position() as usize, entry.size() as usize);
        let whole = start.checked_add(size).filter(|end| *end <= bytes.len());
        let Some(end) = whole else { return Err(SetError::broken(&path, "is cut off")) };
        if files.len() >= FILES_MAX {
            return Err(SetError::broken("the set", format!("has more than {FILES_MAX} files")));
        }
        if files.insert(name, bytes.slice(start..end)).is_some() {
            return Err(SetError::broken(&path, "stands twice in the tar"));
        }
    }
    Ok(files)
}

fn plain(path: &Path) -> Option<String> {
    let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
    let names: Option<Vec<&str>> = parts.map(|part| if let Component::Normal(name) = part { name.to_str() } else { None }).collect();
    names.filter(|names| !names.is_empty()).map(|names| names.join("/"))
}

fn tensors(files: &mut BTreeMap<String, Bytes>, directory: &str, prefix: &str) -> Result<Vec<Tensor>, SetError> {
    let mut tensors = Vec::new();
    for index in 0..=PORTS_MAX {
        let file = format!("{directory}/{prefix}_{index}.pb");
        let Some(bytes) = files.remove(&file) else { break };
        if index == PORTS_MAX {
            return Err(SetError::broken(file, format!("more than {PORTS_MAX} tensors")));
        }
        tensors.push(onnx::tensor::decode(bytes).map_err(|error| SetError::broken(&file, error))?);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    /// A tar with these entries.
    fn tar(entries: &[(&str, tar::EntryType, &[u8])]) -> Bytes {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, kind, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_entry_type(*kind);
            header.set_mode(0o444);
            // As it stands, also where the writer would refuse it.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.into_inner().unwrap().into()
    }

    #[test]
    fn a_set_travels_as_a_tar_and_keeps_its_digest() {
        for set in [testing::classifier_set(), testing::recommender_set()] {
            let packed = pack(&set).unwrap();
            assert_eq!(pack(&set).unwrap(), packed, "the same bytes for the same set");
            let there = unpack(&packed).unwrap();
            assert_eq!((there.digest(), there.samples(), there.model()), (set.digest(), set.samples(), set.model()));
        }
    }

    #[test]
    fn nothing_comes_with_a_set_and_nothing_leads_out_of_it() {
        let file = tar::EntryType::Regular;
        let refused = |entries: &[(&str, tar::EntryType, &[u8])]| unpack(&tar(entries)).unwrap_err().to_string();
        assert!(refused(&[]).contains("golden.yaml: is not in the tar"));
        assert!(refused(&[("../golden.yaml", file, b"")]).contains("below the set's folder"));
        assert!(refused(&[("/etc/x", file, b"")]).contains("below the set's folder"));
        assert!(refused(&[("golden.yaml", tar::EntryType::Symlink, b"")]).contains("plain file"));
        assert!(refused(&[("a", file, b"1"), ("./a", file, b"2")]).contains("twice"));
        let whole = pack(&testing::classifier_set()).unwrap();
        assert!(unpack(&whole.slice(..1500)).is_err(), "cut off");
        assert!(unpack(&Bytes::from_static(b"no tar at all")).is_err());
        let mut entries: Vec<(String, Bytes)> = entries(&whole).unwrap().into_iter().collect();
        entries.push(("hidden".to_owned(), Bytes::from_static(b"x")));
        let with: Vec<_> = entries.iter().map(|(name, bytes)| (name.as_str(), file, bytes.as_ref())).collect();
        assert!(refused(&with).contains("golden.yaml does not name it"));
    }
}
