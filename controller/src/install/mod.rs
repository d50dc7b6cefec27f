//! Can Steadfast be installed on a cluster, and would it work there?
//!
//! Everything is asked of the API server with the caller's own rights, and nothing is changed: what would be made is tried by dry run, so the cluster's own
//! admission (rights, PodSecurity, quotas, limits, other webhooks) answers, and no list here has to keep up with it.

mod earlier;
mod namespaces;
mod objects;
pub(crate) mod version;

use kube::Client;
use serde::Serialize;

use crate::{
    access::{Access, NoCluster},
    http,
    webhook::{flags::RunAsUser, resources::Overrides},
};
pub use objects::NAMESPACE;

/// What an installation may break, and which of the chart's values let it break more.
const GRANTED: &str = "by default tests fault in sidecars, kill and evict pods; values of the chart grant more: failures.workloads (scale, rollout), failures.nodes (cordon, drain, taint), \
                       failures.cpuPressureOnNodes, nodeAgent.enabled (nodes cut or slowed, containers killed), powerHook.url (nodes switched off)";
/// Words of an API server that are shown.
const WORDS_MAX: usize = 400;

/// What is to be installed, and for whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// The controller's.
    pub namespace: String,
    /// With the privileged part.
    pub node_agent: bool,
    /// Namespaces of model servers; none: those that ask for sidecars or allow faults.
    pub targets: Vec<String>,
    /// What sidecars would have; what is not said is taken from the controller that is there, or is the default.
    pub proxy: Overrides,
    pub run_as_user: Option<RunAsUser>,
    pub access: Access,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    Ok,
    /// It can be installed; something will not work as it could, or could not be looked at.
    Warning,
    /// It cannot be installed, or would do harm.
    Blocked,
}

impl Severity {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Blocked => "blocked",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at, in a word.
    pub check: &'static str,
    pub severity: Severity,
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, severity: Severity::Ok, message: message.into(), next: None }
    }

    fn warning(check: &'static str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, severity: Severity::Warning, message: message.into(), next: Some(next.into()) }
    }

    fn blocked(check: &'static str, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self { check, severity: Severity::Blocked, message: message.into(), next: Some(next.into()) }
    }
}

/// All that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    pub server: String,
    /// The API server's.
    pub version: String,
    /// Where it would be installed.
    pub namespace: String,
    /// The worst of the findings.
    pub verdict: Severity,
    pub findings: Vec<Finding>,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    NoCluster(#[from] NoCluster),
    #[error("the API server at {server} does not answer: {why}")]
    Unavailable { server: String, why: String },
}

/// Looks at a cluster.
///
/// # Errors
/// When there is none, or it does not answer at all. What it refuses is a finding.
pub async fn check(options: &Options) -> Result<Checked, CheckError> {
    http::provide();
    let config = options.access.config().await?;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| NoCluster(error.to_string()))?;
    let info = client.apiserver_version().await.map_err(|error| CheckError::Unavailable { server: server.clone(), why: error.to_string() })?;
    let mut findings = vec![version::of_server(&info)];
    findings.extend(version::of_nodes(&client).await);
    let objects = objects::all(&options.namespace, options.node_agent);
    let known = objects::Known::ask(&client, &objects).await;
    let exists = namespaces::get(&client, &options.namespace).await;
    findings.push(Finding::ok("failures", GRANTED));
    findings.extend(objects::permissions(&client, &known, &options.namespace).await);
    findings.extend(objects::tried(&known, &options.namespace, exists.is_there()).await);
    findings.extend(earlier::installs(&client, &known, &options.namespace).await);
    findings.extend(earlier::definitions(&known, &options.namespace).await);
    findings.extend(namespaces::of_controller(&client, &exists, &objects, options).await);
    findings.extend(namespaces::of_targets(&client, options).await);
    let verdict = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    Ok(Checked { server, version: info.git_version, namespace: options.namespace.clone(), verdict, findings })
}

/// An API server's complaint, as far as people read.
fn words(error: &kube::Error) -> String {
    let text = match error {
        kube::Error::Api(answer) => answer.message.clone(),
        error => error.to_string(),
    };
    if text.chars().count() <= WORDS_MAX {
        return text;
    }
    format!("{} …", text.chars().take(WORDS_MAX).collect::<String>())
}

/// Whether the API server refuses for want of a right.
fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(answer) if answer.code == 403)
}
