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
            kube::Error::Api(status) if status.code == 403 => {
                Self { what: what.into(), why: format!("{}; {}", status.message, granted_by(&status.message)), gone: false }
            }
            kube::Error::Api(status) => Self { what: what.into(), why: status.message.clone(), gone: status.code == 404 },
            other => Self { what: what.into(), why: format!("the API server did not answer: {other}"), gone: false },
        }
    }
}

/// What would allow what the API server refused, by its words: `cannot VERB resource "RESOURCE" in API group …`.
fn granted_by(refusal: &str) -> &'static str {
    let about = |resource: &str| refusal.contains(&format!("resource \"{resource}"));
    if about("nodefaults") {
        "these rights are the chart's own: is it of another version than the controller?"
    } else if about("nodes") {
        "failures.nodes=true in the chart's values grants it"
    } else if ["deployments", "statefulsets", "daemonsets", "replicasets"].into_iter().any(about) {
        "failures.workloads=true in the chart's values grants it"
    } else if about("pods") && refusal.contains("cannot create") {
        "failures.cpuPressureOnNodes=true in the chart's values grants it"
    } else if about("pods") && refusal.contains("at the cluster scope") {
        "this controller looks at named namespaces alone (watchNamespaces in the chart's values), and what hits a node hits pods of every namespace"
    } else {
        "see `failures` in the chart's values"
    }
}

impl From<FailureError> for PlatformError {
    fn from(error: FailureError) -> Self {
        Self { what: error.what, why: error.why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_server_refuses_is_told_with_the_value_that_grants_it() {
        let user = "system:serviceaccount:steadfast-system:steadfast-controller";
        let refused = |what: &str, of: &str, words: &str| format!("{what} \"x\" is forbidden: User \"{user}\" cannot {of} in API group {words}");
        for (message, says) in [
            (refused("deployments.apps", "patch resource \"deployments/scale\"", "\"apps\" in the namespace \"models\""), "failures.workloads=true"),
            (refused("daemonsets.apps", "get resource \"daemonsets\"", "\"apps\" in the namespace \"models\""), "failures.workloads=true"),
            (refused("nodes", "patch resource \"nodes\"", "\"\" at the cluster scope"), "failures.nodes=true"),
            (refused("pods", "create resource \"pods\"", "\"\" in the namespace \"steadfast-system\""), "failures.cpuPressureOnNodes=true"),
            (refused("pods", "list resource \"pods\"", "\"\" at the cluster scope"), "watchNamespaces"),
            ("pods \"x\" is forbidden: ValidatingAdmissionPolicy".to_owned(), "`failures`"),
        ] {
            let status = kube::core::Status { code: 403, message: message.clone(), ..kube::core::Status::default() };
            let told = FailureError::api("it", &kube::Error::Api(Box::new(status)));
            assert!(told.why.starts_with(&message) && told.why.contains(says), "{told}");
        }
    }
}
