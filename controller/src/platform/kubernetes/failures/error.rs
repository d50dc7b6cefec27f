//! Why something could not be done to a cluster.

use crate::platform::PlatformError;

/// What could not be done, and why; the API server's own words where it refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct FailureError {
    pub what: String,
    pub why: String,
    /// What it is about does not exist (any more).
    pub gone: bool,
}

impl FailureError {
    pub fn new(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string(), gone: false }
    }

    /// An answer of the API server, or its absence.
    pub fn api(what: impl Into<String>, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self {
                what: what.into(),
                why: format!("{}; the chart grants it where a value asks for it: see `failures` in its values", status.message),
                gone: false,
            },
            kube::Error::Api(status) => Self { what: what.into(), why: status.message.clone(), gone: status.code == 404 },
            other => Self { what: what.into(), why: format!("the API server did not answer: {other}"), gone: false },
        }
    }
}

impl From<FailureError> for PlatformError {
    fn from(error: FailureError) -> Self {
        Self { what: error.what, why: error.why }
    }
}
