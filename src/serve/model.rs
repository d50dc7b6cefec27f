//! What a folder holds to be served.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use steadfast_api::{golden::SetManifest, read::from_yaml};
use steadfast_golden_sets::set::{
    MANIFEST_BYTES_MAX, MODEL_BYTES_MAX, SetError,
    files::{beside, read_bounded, read_text},
    sha256,
};

/// A model that is there, not yet read.
pub(super) struct Found {
    pub(super) name: String,
    /// `1` where nothing says otherwise.
    pub(super) version: String,
    file: PathBuf,
    digest: Option<steadfast_api::golden::Digest>,
}

impl Found {
    /// By `golden.yaml` where there is one, else `model.onnx` under the folder's name.
    pub(super) fn in_directory(directory: &Path) -> Result<Self, SetError> {
        let refuse = |file: &Path, why: String| SetError::Broken { file: file.to_owned(), why };
        let manifest = directory.join("golden.yaml");
        if manifest.exists() {
            let text = read_text(&manifest, MANIFEST_BYTES_MAX)?;
            let set: SetManifest = from_yaml(&manifest.display().to_string(), &text)?;
            let file = beside(directory, &set.onnx.file).map_err(|why| refuse(&manifest, format!("onnx.file: {why}")))?;
            let version = if set.version.is_empty() { "1".to_owned() } else { set.version };
            return Self { name: set.model, version, file, digest: Some(set.onnx.digest) }.if_there();
        }
        let resolved = directory.canonicalize().map_err(|source| SetError::Io { file: directory.to_owned(), source })?;
        let name = resolved.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        Self { name, version: "1".to_owned(), file: directory.join("model.onnx"), digest: None }.if_there()
    }

    fn if_there(self) -> Result<Self, SetError> {
        if self.file.is_file() {
            Ok(self)
        } else {
            Err(SetError::Broken { file: self.file, why: "is not there; name a golden set or a folder with a model.onnx".into() })
        }
    }

    /// The ONNX file, checked against its digest.
    pub(super) fn read(&self) -> Result<Bytes, SetError> {
        let bytes = read_bounded(&self.file, MODEL_BYTES_MAX)?;
        if let Some(digest) = self.digest {
            let found = sha256(&bytes);
            if found != digest {
                return Err(SetError::Broken { file: self.file.clone(), why: format!("is {found}, but golden.yaml says {digest}; restore the file") });
            }
        }
        Ok(bytes.into())
    }
}
