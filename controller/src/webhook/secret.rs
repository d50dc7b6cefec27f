//! Keeps [`Certificates`] in a Secret that all replicas share, and tells the API server whom to believe.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::certificate::{Certificates, Lifetimes, NotMade};

/// How often they are looked at: a Secret that somebody deleted, a configuration that somebody wrote anew.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Where all of it stands in the Secret; beside it the usual three, for whoever wants to read them.
const STATE: &str = "certificates.json";
/// Replicas that write at the same moment: one of them wins each time.
const TRIES: usize = 5;

/// Where certificates are kept, and for whom.
#[derive(Clone)]
pub struct Keeper {
    client: Client,
    namespace: String,
    secret: String,
    /// The `MutatingWebhookConfiguration`.
    configuration: String,
    names: Vec<String>,
    lifetimes: Lifetimes,
}

/// Why they could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Made(#[from] NotMade),
    #[error("Secret {name}: {why}")]
    Secret { name: String, why: Box<kube::Error> },
    #[error("MutatingWebhookConfiguration {name}: {why}")]
    Configuration { name: String, why: Box<kube::Error> },
    #[error("Secret {0} is written by others all the time")]
    Contended(String),
}

impl Keeper {
    /// In `namespace`, for a server of these DNS names. Wants `get`, `create` and `update` on the Secret, `get` and `patch` on the configuration.
    pub fn new(client: Client, namespace: &str, secret: &str, configuration: &str, names: Vec<String>) -> Self {
        let (namespace, secret, configuration) = (namespace.to_owned(), secret.to_owned(), configuration.to_owned());
        Self { client, namespace, secret, configuration, names, lifetimes: Lifetimes::default() }
    }

    /// The certificates as they are now, or as they have to be, written down.
    pub async fn look(&self) -> Result<Certificates, KeepError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let fail = |why: kube::Error| KeepError::Secret { name: self.secret.clone(), why: Box::new(why) };
        for _ in 0..TRIES {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let there = secrets.get_opt(&self.secret).await.map_err(fail)?;
            // What cannot be read is not ours, or of a later version gone back: it is made anew.
            let known = there.as_ref().and_then(|secret| serde_json::from_slice::<Certificates>(&secret.data.as_ref()?.get(STATE)?.0).ok());
            let next = match &known {
                Some(known) => match known.renewed(&self.names, now, &self.lifetimes)? {
                    None => return Ok(known.clone()),
                    Some(next) => next,
                },
                None => Certificates::make(&self.names, now, &self.lifetimes)?,
            };
            let written = match there {
                None => {
                    let metadata = ObjectMeta { name: Some(self.secret.clone()), ..ObjectMeta::default() };
                    let secret = Secret { metadata, data: Some(data(&next)), type_: Some("Opaque".to_owned()), ..Secret::default() };
                    secrets.create(&PostParams::default(), &secret).await
                }
                Some(mut secret) => {
                    secret.data = Some(data(&next));
                    // Its resourceVersion is that of the reading: whoever has written since makes this fail.
                    secrets.replace(&self.secret, &PostParams::default(), &secret).await
                }
            };
            match written {
                Ok(_) => return Ok(next),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(fail(error)),
            }
        }
        Err(KeepError::Contended(self.secret.clone()))
    }

    /// Writes `trust` into the configuration's webhooks unless it is there.
    pub async fn announce(&self, trust: &str) -> Result<(), KeepError> {
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let fail = |why: kube::Error| KeepError::Configuration { name: self.configuration.clone(), why: Box::new(why) };
        let configuration = configurations.get(&self.configuration).await.map_err(fail)?;
        let bundle = ByteString(trust.as_bytes().to_vec());
        let mut operations = Vec::new();
        for (index, webhook) in configuration.webhooks.iter().flatten().enumerate() {
            if webhook.client_config.ca_bundle.as_ref() != Some(&bundle) {
                operations.push(json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook.name }));
                operations.push(json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle }));
            }
        }
        if operations.is_empty() {
            return Ok(());
        }
        let patch: json_patch::Patch = serde_json::from_value(operations.into()).map_err(|error| fail(kube::Error::SerdeError(error)))?;
        configurations.patch(&self.configuration, &PatchParams::default(), &Patch::Json::<()>(patch)).await.map_err(fail)?;
        Ok(())
    }

    /// Looks again and again, and hands over what is there each time. Never returns.
    pub async fn keep(&self, mut seen: impl FnMut(&Certificates)) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match self.look().await {
                Ok(now) => {
                    seen(&now);
                    if let Err(error) = self.announce(&now.trust()).await {
                        tracing::warn!(%error, "the API server could not be told whom to believe");
                    }
                }
                // What is held goes on being good for weeks.
                Err(error) => tracing::warn!(%error, "certificates could not be looked at"),
            }
        }
    }
}

fn data(certificates: &Certificates) -> BTreeMap<String, ByteString> {
    let server = certificates.server();
    let state = serde_json::to_vec(certificates).unwrap_or_default();
    [
        (STATE, state),
        ("tls.crt", server.certificate.clone().into_bytes()),
        ("tls.key", server.key.clone().into_bytes()),
        ("ca.crt", certificates.trust().into_bytes()),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), ByteString(bytes)))
    .collect()
}
