//! The power hook: an HTTP address that switches nodes off and on, for a cloud, a BMC or a test cluster. Steadfast itself knows no cloud.
//!
//! `POST URL {"node": "n3", "action": "off"}` with `Authorization: Bearer …`; any 2xx means that it was done, and both actions may be asked twice.

use std::{path::PathBuf, time::Duration};

use http::{Method, Request};
use kube::{Client, Config};
use serde_json::json;
use tokio::time::timeout;

use super::FailureError;

/// Clouds are slow.
const ANSWERS_WITHIN: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Clone, Debug)]
pub struct PowerHook {
    pub url: http::Uri,
    /// Read anew for every request, so that it can be rotated.
    pub token_file: Option<PathBuf>,
    /// PEM file with the authorities that the hook's certificate may come from; without it those of this machine.
    pub ca_file: Option<PathBuf>,
}

impl PowerHook {
    /// # Errors
    /// When the hook cannot be reached or refuses, with its words.
    pub async fn switch(&self, node: &str, on: bool) -> Result<(), FailureError> {
        let action = if on { "on" } else { "off" };
        let what = format!("the power hook {} ({action} {node})", self.url);
        let refuse = |why: &dyn std::fmt::Display| FailureError::new(what.clone(), why);
        let mut request = Request::builder().method(Method::POST).uri(self.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str));
        request = request.header("content-type", "application/json");
        if let Some(file) = &self.token_file {
            let token = tokio::fs::read_to_string(file).await.map_err(|error| refuse(&format!("{}: {error}", file.display())))?;
            request = request.header("authorization", format!("Bearer {}", token.trim()));
        }
        let request = request.body(json!({ "node": node, "action": action }).to_string().into_bytes()).map_err(|error| refuse(&error))?;
        let client = self.client().await.map_err(|error| refuse(&error))?;
        match timeout(ANSWERS_WITHIN, client.request_text(request)).await {
            Err(_) => Err(refuse(&format!("did not answer within {ANSWERS_WITHIN:?}"))),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) => Err(refuse(&format!("answered {}: {}", status.code, status.message))),
            Ok(Err(error)) => Err(refuse(&error)),
        }
    }

    /// The same HTTP and TLS as for the API server, without its identity.
    async fn client(&self) -> Result<Client, String> {
        let mut origin = self.url.clone().into_parts();
        origin.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        let mut config = Config::new(http::Uri::from_parts(origin).map_err(|error| error.to_string())?);
        if self.url.scheme() == Some(&http::uri::Scheme::HTTP) {
            // No authority is asked, so none need be on this machine.
            config.root_cert = Some(Vec::new());
        } else if let Some(file) = &self.ca_file {
            let pem = tokio::fs::read_to_string(file).await.map_err(|error| format!("{}: {error}", file.display()))?;
            let certificates = rustls::pki_types::pem::PemObject::pem_slice_iter(pem.as_bytes());
            let certificates: Result<Vec<rustls::pki_types::CertificateDer<'_>>, _> = certificates.collect();
            config.root_cert = Some(certificates.map_err(|error| format!("{}: {error}", file.display()))?.iter().map(|one| one.to_vec()).collect());
        }
        // A hook that refuses is heard at once, and not asked fifteen times behind our back.
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(10));
        config.read_timeout = Some(ANSWERS_WITHIN);
        Client::try_from(config).map_err(|error| error.to_string())
    }
}
