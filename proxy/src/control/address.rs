//! Where the controller is, and how the two prove themselves to each other: it by its certificate, the sidecar by a bearer token.

use std::{fmt, path::PathBuf, sync::Arc};

use http::{HeaderValue, header};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use steadfast_api::sidecar::{PROTOCOL_HEADER, PROTOCOL_MAJOR};
use tokio_rustls::TlsConnector;

use crate::{
    client::Client,
    config::{BadFlag, CA_VARIABLE, TOKEN_VARIABLE},
};

/// Longer files hold no token.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// TLS to one name.
#[derive(Clone)]
pub struct Tls {
    pub connector: TlsConnector,
    pub name: ServerName<'static>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.name).finish()
    }
}

#[derive(Clone, Debug)]
enum Token {
    Given(HeaderValue),
    /// Kubelet writes it anew before it expires.
    File(PathBuf),
}

/// The controller's address, taken apart.
#[derive(Clone, Debug)]
pub struct Controller {
    /// `host:port`.
    pub authority: String,
    tls: Option<Tls>,
    token: Token,
}

impl Controller {
    /// # Errors
    /// When the address, the token or the certificates cannot be used.
    pub fn new(url: &str, token_file: Option<PathBuf>, token: Option<String>, ca: Option<String>) -> Result<Self, BadFlag> {
        let bad = |why: String| BadFlag { flag: "controller", value: url.to_owned(), why };
        let uri: Option<http::Uri> = url.parse().ok();
        let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/" && uri.query().is_none());
        let authority = uri.as_ref().and_then(http::Uri::authority).filter(|authority| authority.port().is_some());
        let (Some(uri), Some(authority)) = (&uri, authority) else {
            return Err(bad("give http://HOST:PORT or https://HOST:PORT".to_owned()));
        };
        let tls = match (uri.scheme_str(), ca) {
            (Some("https"), Some(ca)) => Some(tls(authority.host(), &ca).map_err(bad)?),
            (Some("https"), None) => {
                return Err(bad(format!("over https it proves itself by the certificates in {CA_VARIABLE}, which is not set: give them, PEM")));
            }
            _ => None,
        };
        let token = if let Some(file) = token_file {
            Token::File(file)
        } else {
            let token = bearer(&token.unwrap_or_default());
            Token::Given(token.ok_or_else(|| bad(format!("the token in {TOKEN_VARIABLE} has characters that no header can carry")))?)
        };
        Ok(Self { authority: authority.to_string(), tls, token })
    }

    /// A connection to it, opened when it is needed.
    pub fn client(&self) -> Client {
        Client::new(&self.authority, self.tls.clone())
    }

    /// The value of `Authorization`.
    ///
    /// # Errors
    /// When the token's file cannot be read now.
    pub fn authorization(&self) -> Result<HeaderValue, String> {
        match &self.token {
            Token::Given(token) => Ok(token.clone()),
            Token::File(file) => {
                let fail = |why: &dyn fmt::Display| format!("--token-file {}: {why}", file.display());
                let size = std::fs::metadata(file).map_err(|error| fail(&error))?.len();
                if size > TOKEN_BYTES_MAX {
                    return Err(fail(&format!("has {size} bytes, which is no token")));
                }
                let text = std::fs::read_to_string(file).map_err(|error| fail(&error))?;
                bearer(text.trim()).ok_or_else(|| fail(&"has characters that no header can carry"))
            }
        }
    }

    /// A request to it, with everything but method, path and body.
    ///
    /// # Errors
    /// As [`authorization`](Self::authorization).
    pub fn request(&self) -> Result<http::request::Builder, String> {
        Ok(http::Request::builder()
            .header(header::HOST, &self.authority)
            .header(header::AUTHORIZATION, self.authorization()?)
            .header(PROTOCOL_HEADER, PROTOCOL_MAJOR))
    }
}

fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn tls(host: &str, ca: &str) -> Result<Tls, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("{CA_VARIABLE} is not PEM: {error:?}"))?;
        roots.add(certificate).map_err(|error| format!("{CA_VARIABLE} has a certificate that cannot be trusted: {error}"))?;
    }
    if roots.is_empty() {
        return Err(format!("{CA_VARIABLE} holds no certificate: give them, PEM"));
    }
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(name.to_owned()).map_err(|_| format!("{host} is no name that a certificate can carry"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Tls { connector: TlsConnector::from(Arc::new(config)), name })
}
