//! Which pods of a namespace are ready now, as far as a gate has to know: asked of the API server while somebody belongs out, and not oftener than every second.
//!
//! A watch on all pods' statuses would cost more than this does: gates ask for a few namespaces, for as long as a pod answers wrong there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};
use steadfast_api::policy::LabelSelector;
use tokio::time::timeout;

/// An answer is good for so long.
const GOOD_FOR: Duration = Duration::from_secs(1);
/// Pods that one answer brings.
const PAGE: u32 = 500;
/// Namespaces that are asked for at once.
const AT_ONCE: usize = 8;

struct Answer {
    at: Instant,
    /// UID and labels of each; nothing: the API server did not say.
    ready: Option<Vec<(String, BTreeMap<String, String>)>>,
}

/// See the module. Wants `list` on pods.
#[derive(Default)]
pub struct Readiness(HashMap<String, Answer>);

impl Readiness {
    /// Knows these namespaces afterwards, as far as the API server answers in time, and no others.
    pub async fn learn(&mut self, client: &Client, namespaces: &BTreeSet<String>, within: Duration) {
        self.0.retain(|namespace, answer| namespaces.contains(namespace) && answer.at.elapsed() < GOOD_FOR);
        let missing: Vec<String> = namespaces.iter().filter(|namespace| !self.0.contains_key(*namespace)).cloned().collect();
        let ask = |namespace: String| async move {
            let ready = match timeout(within, ready(client, &namespace)).await {
                Ok(Ok(ready)) => Some(ready),
                Ok(Err(error)) => {
                    tracing::warn!(namespace, %error, "who is ready is not known, so no pod leaves its Service");
                    None
                }
                Err(_) => None,
            };
            (namespace, Answer { at: Instant::now(), ready })
        };
        self.0.extend(stream::iter(missing).map(ask).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await);
    }

    /// UIDs of the pods that are ready and that `selector` matches.
    pub fn of(&self, namespace: &str, selector: &LabelSelector) -> Option<BTreeSet<String>> {
        let ready = self.0.get(namespace)?.ready.as_ref()?;
        Some(ready.iter().filter(|(_, labels)| selector.matches(labels)).map(|(uid, _)| uid.clone()).collect())
    }
}

async fn ready(client: &Client, namespace: &str) -> Result<Vec<(String, BTreeMap<String, String>)>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut page = ListParams::default().limit(PAGE);
    let mut ready = Vec::new();
    loop {
        let pods = api.list(&page).await?;
        ready.extend(pods.items.iter().filter(|pod| is_ready(pod)).filter_map(|pod| Some((pod.uid()?, pod.labels().clone()))));
        match pods.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(ready),
        }
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none() && conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
