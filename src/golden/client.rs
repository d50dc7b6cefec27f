//! One server that speaks the Open Inference Protocol v2, asked over plain HTTP.
//!
//! Trusts nothing that is optional in the protocol: metadata may be missing or hold no shapes, versions may be unknown, binary tensors are sent only where
//! the server says that it takes them.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use steadfast_golden_sets::{
    DataType, GoldenSet, Tensor,
    oip::{self, EncodedMessage, ErrorBody, ModelMetadata, OipError, RequestOptions, ServerMetadata, route},
};

/// How to reach a server.
#[derive(Clone)]
pub(super) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    base: String,
    timeout: Duration,
}

/// A server that was found ready to answer a set.
#[derive(Clone)]
pub(super) struct Peer {
    client: Client,
    pub(super) server: ServerMetadata,
    /// Whether requests and answers carry binary tensors.
    pub(super) binary: bool,
    infer: String,
    /// The set's outputs with their types.
    declared: Vec<(String, DataType)>,
    /// Their names on the server, where those were given.
    ask_for: Vec<String>,
}

/// Why a server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("--server {url:?}: {why}")]
    Url { url: String, why: String },
    #[error("{base} gives no answer: {why}; is the server running?")]
    Unreachable { base: String, why: String },
    #[error("{base} is not ready: {READY} answers {status}{}", said(.error))]
    NotReady { base: String, status: StatusCode, error: String },
    #[error("{base} does not seem to speak the Open Inference Protocol v2: {READY} answers {status}")]
    OtherProtocol { base: String, status: StatusCode },
    #[error("{base} has no model {model:?}{}; the set names it in golden.yaml (model:)", said(.error))]
    NoModel { base: String, model: String, error: String },
    #[error("{base} has no version {version:?} of model {model:?}; it has {found:?}")]
    NoVersion { base: String, model: String, version: String, found: Vec<String> },
    #[error("model {model:?} at {base} is another one: {why}")]
    OtherModel { base: String, model: String, why: String },
}

const READY: &str = route::READY;

fn said(error: &str) -> String {
    if error.is_empty() { String::new() } else { format!(" ({error})") }
}

impl ConnectError {
    /// Whether the address or the set is at fault, and not the server's state.
    pub(super) const fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Unreachable { .. } | Self::NotReady { .. })
    }
}

/// Why a request brought no answer that could be compared.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Busy, down or slow: says nothing of its answers.
    #[error("no answer: {0}")]
    NoAnswer(String),
    #[error("refused with {status}{}", said(.why))]
    Refused { status: StatusCode, why: String },
    /// It did answer, with something that is none.
    #[error("the answer cannot be read: {0}")]
    Unreadable(OipError),
    /// The request itself could not be written.
    #[error("{0}")]
    Unwritable(OipError),
}

impl Client {
    pub(super) fn new(url: &str, timeout: Duration) -> Result<Self, ConnectError> {
        let refuse = |why: &str| ConnectError::Url { url: url.to_owned(), why: why.to_owned() };
        let uri: Uri = url.parse().map_err(|_| refuse("is no address; write one such as http://127.0.0.1:8080"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("https is not supported; use http, through a port-forward or a local proxy that adds TLS")),
            _ => return Err(refuse("write it with its scheme, such as http://127.0.0.1:8080")),
        }
        if uri.query().is_some() {
            return Err(refuse("must not have a query"));
        }
        let base = url.trim_end_matches('/').to_owned();
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        Ok(Self { http: HyperClient::builder(TokioExecutor::new()).build(connector), base, timeout })
    }

    /// Whether the server is on this machine.
    pub(super) fn is_local(&self) -> bool {
        let host = self.base.parse::<Uri>().ok().and_then(|uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned())).unwrap_or_default();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Finds out what the server is and how to ask it for the model of `set`.
    /// `ask_for`: its names of the set's outputs, in their order; empty: the set's own.
    pub(super) async fn connect(self, set: &GoldenSet, ask_for: &[String]) -> Result<Peer, ConnectError> {
        let (model, version) = (&set.manifest().model, &set.manifest().version);
        let base = || self.base.clone();
        let (status, body) = self.get(READY).await?;
        if status == StatusCode::NOT_FOUND {
            return Err(ConnectError::OtherProtocol { base: base(), status });
        }
        if !status.is_success() {
            return Err(ConnectError::NotReady { base: base(), status, error: error_text(&body) });
        }
        let (status, body) = self.get(route::SERVER).await?;
        let server: ServerMetadata = if status.is_success() { serde_json::from_slice(&body).unwrap_or_default() } else { ServerMetadata::default() };
        let address = route::model(model, "");
        let (status, body) = self.get(&address).await?;
        let metadata: ModelMetadata = match status {
            StatusCode::NOT_FOUND => {
                // Metadata is optional; a model that is ready is there all the same.
                let (ready, _) = self.get(&format!("{address}/ready")).await?;
                if !ready.is_success() {
                    return Err(ConnectError::NoModel { base: base(), model: model.clone(), error: error_text(&body) });
                }
                ModelMetadata::default()
            }
            status if status.is_success() => serde_json::from_slice(&body).unwrap_or_default(),
            _ => ModelMetadata::default(),
        };
        // A server that lists no versions has none to name.
        let version = if metadata.versions.is_empty() { "" } else { version };
        if !version.is_empty() && !metadata.versions.iter().any(|found| found == version) {
            return Err(ConnectError::NoVersion { base: base(), model: model.clone(), version: version.to_owned(), found: metadata.versions });
        }
        let found: Vec<&str> = metadata.inputs.iter().map(|input| input.name.as_str()).collect();
        if let Some(missing) = set.manifest().inputs.iter().find(|input| !found.is_empty() && !found.contains(&input.name.as_str())) {
            let why = format!("it has no input {:?}, which the set sends; its inputs are {found:?}", missing.name);
            return Err(ConnectError::OtherModel { base: base(), model: model.clone(), why });
        }
        let declared = set.manifest().outputs.iter().map(|output| (output.name.clone(), output.datatype)).collect();
        Ok(Peer { binary: server.takes_binary(), infer: route::infer(model, version), declared, ask_for: ask_for.to_vec(), server, client: self })
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), ConnectError> {
        let request = Request::builder().method(Method::GET).uri(format!("{}{path}", self.base)).body(Full::default());
        let request = request.map_err(|error| ConnectError::Url { url: self.base.clone(), why: error.to_string() })?;
        let response = self.send(request).await.map_err(|why| ConnectError::Unreachable { base: self.base.clone(), why })?;
        Ok((response.status(), response.into_body()))
    }

    /// One exchange, whole, within the timeout. The error is for people.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| causes(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, oip::BODY_MAX).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() { format!("the answer is longer than {} bytes", oip::BODY_MAX) } else { causes(error.as_ref()) }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| Err(format!("nothing within {:?}", self.timeout)))
    }
}

impl Peer {
    pub(super) fn base(&self) -> &str {
        &self.client.base
    }

    pub(super) fn is_local(&self) -> bool {
        self.client.is_local()
    }

    /// The server in a few words.
    pub(super) fn describe(&self) -> String {
        let ServerMetadata { name, version, .. } = &self.server;
        let who = match (name.is_empty(), version.is_empty()) {
            (true, _) => "a server that does not tell its name".to_owned(),
            (false, true) => name.clone(),
            (false, false) => format!("{name} {version}"),
        };
        format!("{who}, {} tensors", if self.binary { "binary" } else { "JSON" })
    }

    /// The request for these inputs, to be sent any number of times.
    pub(super) fn write(&self, inputs: &[Tensor]) -> Result<EncodedMessage, AskError> {
        // Where no names were given all outputs are asked for, unnamed: some servers name theirs differently.
        let options = RequestOptions { binary: self.binary, outputs: self.ask_for.clone(), ..RequestOptions::default() };
        oip::encode_request(inputs, &options).map_err(AskError::Unwritable)
    }

    /// Sends one request and reads its outputs.
    pub(super) async fn ask(&self, message: &EncodedMessage) -> Result<Vec<Tensor>, AskError> {
        let mut request = Request::builder().method(Method::POST).uri(format!("{}{}", self.client.base, self.infer)).header(CONTENT_TYPE, message.content_type);
        if let Some(length) = message.inference_header_length {
            request = request.header(oip::INFERENCE_HEADER_LENGTH, length);
        }
        let request = request.body(Full::new(message.body.clone())).map_err(|error| AskError::NoAnswer(error.to_string()))?;
        let response = self.client.send(request).await.map_err(AskError::NoAnswer)?;
        let (status, body) = (response.status(), response.body());
        if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            return Err(AskError::NoAnswer(format!("status {status}{}", said(&error_text(body)))));
        }
        if !status.is_success() {
            return Err(AskError::Refused { status, why: error_text(body) });
        }
        let header = response.headers().get(oip::INFERENCE_HEADER_LENGTH).and_then(|value| value.to_str().ok()).and_then(|value| value.trim().parse().ok());
        // Under the name that the server uses.
        let names = self.declared.iter().enumerate().map(|(index, (name, datatype))| (self.ask_for.get(index).unwrap_or(name).as_str(), *datatype));
        let mut outputs = oip::decode_response(header, body, &names.collect::<Vec<_>>()).map_err(AskError::Unreadable)?.outputs;
        for output in &mut outputs {
            if let Some((index, _)) = self.ask_for.iter().enumerate().find(|(_, asked)| **asked == output.name) {
                output.name.clone_from(&self.declared[index].0);
            }
        }
        Ok(outputs)
    }
}

/// What an error answer says, shortened.
fn error_text(body: &Bytes) -> String {
    let text =
        serde_json::from_slice::<ErrorBody>(body).map_or_else(|_| String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(), |body| body.error);
    text.chars().take(300).collect()
}

/// An error with what caused it.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_work_is_refused_with_the_right_one() {
        let refused = |url: &str| Client::new(url, Duration::from_secs(1)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused("https://models.example").contains("https is not supported"));
        assert!(refused("127.0.0.1:8080").contains("write it with its scheme") || refused("127.0.0.1:8080").contains("is no address"));
        assert!(refused("http://a b").contains("is no address"));
        assert!(refused("http://127.0.0.1/?a=b").contains("query"));
        assert!(Client::new("http://127.0.0.1:1/", Duration::from_secs(1)).is_ok_and(|client| client.is_local() && client.base == "http://127.0.0.1:1"));
        assert!(Client::new("http://[::1]:1", Duration::from_secs(1)).is_ok_and(|client| client.is_local()));
        assert!(Client::new("http://192.0.2.1", Duration::from_secs(1)).is_ok_and(|client| !client.is_local()));
    }
}
