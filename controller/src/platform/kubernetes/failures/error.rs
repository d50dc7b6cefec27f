//! Why something could not be done to a cluster.

use std::time::Duration;

use crate::platform::PlatformError;

/// A busy API server is asked again after these.
const AGAIN: [Duration; 4] = [Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2)];

/// The API server had no time for it now.
pub(super) const fn is_busy(code: u16) -> bool {
    matches!(code, 429 | 503 | 504)
}

/// Asks a busy API server again, for seconds and not for minutes: whoever waits here hears of no halt. For what may be asked twice.
pub(super) async fn patiently<T, F: Future<Output = Result<T, kube::Error>>>(mut ask: impl FnMut() -> F) -> Result<T, kube::Error> {
    for wait in AGAIN {
        match ask().await {
            Err(kube::Error::Api(status)) if is_busy(status.code) => tokio::time::sleep(wait).await,
            answer => return answer,
        }
    }
    ask().await
}

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
