//! Keeps [`Certificates`] in a Secret that all replicas share, and tells the API server whom to believe.
//!
//! The Secret is made by whoever installs, empty: a right to create Secrets cannot be limited to a name, and would let the controller ask for the token of any
//! ServiceAccount of its namespace. Should it be deleted or emptied, what this replica holds goes on being shown, and is written back as soon as there is a Secret
//! again; new ones would cut off every sidecar that was given the old authorities.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
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
    /// What was last read or written.
    held: Arc<Mutex<Option<Certificates>>>,
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
    #[error("Secret {0} is not there: the chart makes it, empty; so does `kubectl create secret generic {0}` in the controller's namespace")]
    NoSecret(String),
    #[error("Secret {0} is written by others all the time")]
    Contended(String),
}

impl Keeper {
    /// In `namespace`, for a server of these DNS names. Wants `get` and `update` on the Secret, `get` and `patch` on the configuration.
    pub fn new(client: Client, namespace: &str, secret: &str, configuration: &str, names: Vec<String>) -> Self {
        let (namespace, secret, configuration) = (namespace.to_owned(), secret.to_owned(), configuration.to_owned());
        Self { client, namespace, secret, configuration, names, lifetimes: Lifetimes::default(), held: Arc::default() }
    }

    /// The certificates as they are now, or as they have to be, written down.
    pub async fn look(&self) -> Result<Certificates, KeepError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let fail = |why: kube::Error| KeepError::Secret { name: self.secret.clone(), why: Box::new(why) };
        for _ in 0..TRIES {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let mut secret = secrets.get_opt(&self.secret).await.map_err(fail)?.ok_or_else(|| KeepError::NoSecret(self.secret.clone()))?;
            let written = secret.data.as_ref().and_then(|data| serde_json::from_slice::<Certificates>(&data.get(STATE)?.0).ok());
            let is_written = written.is_some();
            // What cannot be read is not ours, or of a later version gone back, or nothing.
            let known = written.or_else(|| self.held());
            let next = match known {
                Some(known) => match known.renewed(&self.names, now, &self.lifetimes)? {
                    None if is_written => return Ok(self.hold(known)),
                    None => known,
                    Some(next) => next,
                },
                None => Certificates::make(&self.names, now, &self.lifetimes)?,
            };
            secret.data = Some(data(&next));
            // Its resourceVersion is that of the reading: whoever has written since makes this fail.
            match secrets.replace(&self.secret, &PostParams::default(), &secret).await {
                Ok(_) => return Ok(self.hold(next)),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(fail(error)),
            }
        }
        Err(KeepError::Contended(self.secret.clone()))
    }

    fn held(&self) -> Option<Certificates> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, certificates: Certificates) -> Certificates {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(certificates.clone());
        certificates
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
                Err(error) => {
                    tracing::warn!(%error, "certificates could not be looked at");
                    if let Some(held) = self.held()
                        && let Err(error) = self.announce(&held.trust()).await
                    {
                        tracing::warn!(%error, "the API server could not be told whom to believe");
                    }
                }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::{BodyExt, Full};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An API server that knows one Secret.
    type Place = Arc<Mutex<Option<Value>>>;

    fn keeper(place: &Place) -> Keeper {
        let place = Arc::clone(place);
        let answer = tower::service_fn(move |request: Request<Body>| {
            let place = Arc::clone(&place);
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut place = place.lock().unwrap();
                assert_ne!(method, Method::POST, "there is no right to create one");
                let (status, answer) = match &mut *place {
                    None => (StatusCode::NOT_FOUND, json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404 })),
                    Some(secret) => {
                        if method == Method::PUT {
                            *secret = serde_json::from_slice(&body).unwrap();
                        }
                        (StatusCode::OK, secret.clone())
                    }
                };
                Ok::<_, Infallible>(Response::builder().status(status).body(Full::new(bytes::Bytes::from(answer.to_string()))).unwrap())
            }
        });
        Keeper::new(Client::new(answer, "steadfast"), "steadfast", "certificates", "steadfast", vec!["steadfast-webhook.steadfast.svc".to_owned()])
    }

    fn empty() -> Value {
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "certificates", "namespace": "steadfast", "resourceVersion": "1" } })
    }

    #[tokio::test]
    async fn a_secret_that_is_deleted_or_emptied_gets_back_what_sidecars_believe() {
        let place = Place::new(Mutex::new(Some(empty())));
        let (one, other) = (keeper(&place), keeper(&place));
        let first = one.look().await.unwrap();
        assert_eq!(other.look().await.unwrap(), first, "replicas share them");
        *place.lock().unwrap() = None;
        let error = one.look().await.unwrap_err();
        assert!(matches!(error, KeepError::NoSecret(_)) && error.to_string().contains("kubectl create secret generic certificates"), "{error}");
        *place.lock().unwrap() = Some(empty());
        assert_eq!(other.look().await.unwrap(), first, "whoever comes first writes them back");
        assert_eq!(keeper(&place).look().await.unwrap(), first, "and a new replica finds them");
    }

    #[tokio::test]
    async fn what_is_written_counts_more_than_what_is_held() {
        let (place, elsewhere) = (Place::new(Mutex::new(Some(empty()))), Place::new(Mutex::new(Some(empty()))));
        let one = keeper(&place);
        one.look().await.unwrap();
        let restored = keeper(&elsewhere).look().await.unwrap();
        (*place.lock().unwrap()).clone_from(&elsewhere.lock().unwrap());
        assert_eq!(one.look().await.unwrap(), restored);
    }
}
