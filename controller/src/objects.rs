//! Object stores: where golden sets may lie and reports may be kept. Credentials and endpoints come from the variables that the stores' own tools read
//! (`AWS_…`, `GOOGLE_…`, `AZURE_…`), so a Secret with those keys is all that a pod needs.
//!
//! The requests go through hyper and rustls, as everything else here; a store with certificates of its own is believed by `STEADFAST_OBJECT_STORE_CA` (PEM).

use std::{env, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector as Tcp},
    rt::TokioExecutor,
};
use object_store::{
    ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService},
    gcp::GoogleCloudStorageBuilder,
    path::Path,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;

/// Authorities that are believed beside the machine's.
pub const CA_VARIABLE: &str = "STEADFAST_OBJECT_STORE_CA";
/// One request, to the head of its answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// One call with all that is tried again.
const DONE_WITHIN: Duration = Duration::from_secs(60);
const RETRIES: usize = 3;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {why}")]
pub struct ObjectsError {
    pub url: String,
    pub why: String,
}

/// One file or folder of a store.
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: String,
}

impl Objects {
    /// `s3://BUCKET/PATH`, `gs://BUCKET/PATH` or `az://CONTAINER/PATH`. Nothing is asked yet.
    ///
    /// # Errors
    /// When it is another address, or the variables contradict it.
    pub fn open(url: &str) -> Result<Self, ObjectsError> {
        let wrong = |why: String| ObjectsError { url: url.to_owned(), why };
        let form = || wrong("is no object store: write s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH".to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(form)?;
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains('@') {
            return Err(form());
        }
        let root = Path::parse(path.trim_matches('/')).map_err(|error| wrong(error.to_string()))?;
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: DONE_WITHIN, ..RetryConfig::default() };
        let built = match scheme {
            "s3" => {
                let built = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector).build();
                built.map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            }
            "gs" => {
                let built = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry).with_http_connector(Connector).build();
                built.map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            }
            "az" => {
                let built = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry).with_http_connector(Connector).build();
                built.map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            }
            _ => return Err(form()),
        };
        let store = built.map_err(|error| wrong(error.to_string()))?;
        Ok(Self { store, root, url: url.trim_end_matches('/').to_owned() })
    }

    fn fail(&self, why: impl fmt::Display) -> ObjectsError {
        ObjectsError { url: self.url.clone(), why: why.to_string() }
    }

    async fn within<T>(&self, work: impl Future<Output = object_store::Result<T>>) -> Result<T, ObjectsError> {
        match timeout(DONE_WITHIN, work).await {
            Ok(done) => done.map_err(|error| self.fail(error)),
            Err(_) => Err(self.fail(format!("not done within {DONE_WITHIN:?}"))),
        }
    }

    fn place(&self, file: &str) -> Result<Path, ObjectsError> {
        let joined = if self.root.as_ref().is_empty() { file.to_owned() } else { format!("{}/{file}", self.root) };
        Path::parse(joined.trim_end_matches('/')).map_err(|error| self.fail(error))
    }

    /// Paths of the files below it, at most `max` of them.
    pub async fn files(&self, max: usize) -> Result<Vec<String>, ObjectsError> {
        let listed = async {
            let mut files = Vec::new();
            let mut all = self.store.list(Some(&self.root));
            while let Some(found) = all.next().await {
                let found = found?;
                let below = found.location.prefix_match(&self.root).map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
                files.extend(below.filter(|below| !below.is_empty()));
                if files.len() > max {
                    break;
                }
            }
            Ok(files)
        };
        let files = self.within(listed).await?;
        if files.len() > max { Err(self.fail(format!("holds more than {max} files, which is no golden set"))) } else { Ok(files) }
    }

    /// The bytes of a file below it, or of itself where `file` is empty; at most `max`.
    pub async fn get(&self, file: &str, max: usize) -> Result<Bytes, ObjectsError> {
        let place = self.place(file)?;
        let got = async {
            let mut got = BytesMut::new();
            let mut stream = self.store.get(&place).await?.into_stream();
            while let Some(part) = stream.next().await {
                got.extend_from_slice(&part?);
                if got.len() > max {
                    break;
                }
            }
            Ok(got)
        };
        let got = self.within(got).await?;
        if got.len() > max { Err(self.fail(format!("{place} has more than the {max} bytes that may be read"))) } else { Ok(got.freeze()) }
    }

    /// Writes a file below it; returns its address.
    pub async fn put(&self, file: &str, bytes: Bytes) -> Result<String, ObjectsError> {
        let place = self.place(file)?;
        self.within(self.store.put(&place, PutPayload::from(bytes))).await?;
        Ok(format!("{}/{file}", self.url))
    }
}

/// Makes clients of hyper and rustls.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let fail = |why: String| object_store::Error::Generic { store: "HTTP", source: why.into() };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls().map_err(fail)?);
        // In the clear only where the variables say so.
        let in_the_clear = options.get_config_value(&ClientConfigKey::AllowHttp).as_deref() == Some("true");
        let connector = if in_the_clear { connector.https_or_http() } else { connector.https_only() };
        Ok(HttpClient::new(Http(Client::builder(TokioExecutor::new()).build(connector.enable_http1().build()))))
    }
}

fn tls() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in CertificateDer::pem_slice_iter(env::var(CA_VARIABLE).unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|error| format!("{CA_VARIABLE} is not PEM: {error:?}"))?;
        roots.add(certificate).map_err(|error| format!("{CA_VARIABLE} has a certificate that cannot be trusted: {error}"))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider())).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

#[derive(Debug)]
struct Http(Client<HttpsConnector<Tcp>, HttpRequestBody>);

#[async_trait::async_trait]
impl HttpService for Http {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        match timeout(ANSWERS_WITHIN, self.0.request(request)).await {
            Ok(Ok(answer)) => Ok(answer.map(|body| HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))))),
            Ok(Err(error)) if error.is_connect() => Err(HttpError::new(HttpErrorKind::Connect, InFull::of(&error))),
            Ok(Err(error)) => Err(HttpError::new(HttpErrorKind::Request, InFull::of(&error))),
            Err(elapsed) => Err(HttpError::new(HttpErrorKind::Timeout, elapsed)),
        }
    }
}

/// An error with what is behind it: the reason stands last in the chain, and the library that this is given to shows the first alone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InFull(String);

impl InFull {
    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut said = error.to_string();
        let mut behind = error.source();
        while let Some(error) = behind {
            said = format!("{said}: {error}");
            behind = error.source();
        }
        if said.contains("UnknownIssuer") {
            said = format!("{said}: {CA_VARIABLE} takes the authority (PEM) of a store whose certificate is from no public one");
        }
        Self(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn why_a_store_cannot_be_reached_is_told_to_the_last_reason() {
        crate::http::provide();
        // Nobody listens there any more.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = Connector.connect(&ClientOptions::new()).unwrap();
        let request = http::Request::get(format!("https://127.0.0.1:{port}/x")).body(HttpRequestBody::empty()).unwrap();
        let said = client.execute(request).await.unwrap_err().to_string();
        assert!(said.contains("refused"), "{said}");
    }

    #[test]
    fn an_address_that_is_no_store_is_refused_with_what_would_be_right() {
        for url in ["bucket/path", "s3://", "s3:///path", "http://127.0.0.1/x", "file:///etc", "s3://key:secret@bucket/x"] {
            let refused = Objects::open(url).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.contains("s3://BUCKET/PATH"), "{url}: {refused}");
        }
        assert_eq!(Objects::open("s3://models/sets/digits/").unwrap().place("golden.yaml").unwrap().as_ref(), "sets/digits/golden.yaml");
        assert_eq!(Objects::open("s3://models").unwrap().place("a.tar").unwrap().as_ref(), "a.tar");
        assert!(Objects::open("s3://models").unwrap().place("a/../b").is_err());
    }
}
