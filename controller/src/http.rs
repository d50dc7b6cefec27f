//! Serving HTTP: HTTP/1.1 by TLS, and HTTP/2 too in the clear, so many connections and no more.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Once},
    time::Duration,
};

use ::http::{Request, Response};
use arc_swap::ArcSwap;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::serve::answer::Body;

/// A client that has not finished its TLS handshake by then is disconnected.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A client that has not sent a whole request head by then is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// Among the extensions of every request: its connection's place among so many. Who upgrades a connection holds on to it.
#[derive(Clone, Debug)]
pub struct Place(#[expect(dead_code, reason = "it is held")] Arc<OwnedSemaphorePermit>);

/// Lets `handler` answer what comes in on `listener`, on at most `connections` connections at once; more wait in the kernel's queue. Never returns.
pub async fn serve<H, F>(listener: TcpListener, tls: Option<TlsAcceptor>, connections: usize, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(connections));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: other connections must end first.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without it a lone message could wait 40 ms for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let (builder, tls, handler, place) = (builder.clone(), tls.clone(), handler.clone(), Place(Arc::new(permit)));
        let handler = move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(place.clone());
            handler(request)
        };
        // Connections are many and live long: what a handshake or an answer needs is held for as long as it lasts, and no longer.
        tokio::spawn(async move {
            match tls {
                None => Box::pin(connection(&builder, stream, handler)).await,
                Some(tls) => {
                    let accepted = Box::pin(timeout(HANDSHAKE_WITHIN, tls.accept(stream))).await;
                    match accepted {
                        Ok(Ok(stream)) => Box::pin(connection(&builder, stream, handler)).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake was not finished in time"),
                    }
                }
            }
        });
    }
}

async fn connection<H, F>(builder: &auto::Builder<TokioExecutor>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = handler(request);
        Box::pin(async move { Ok::<_, Infallible>(answer.await) })
    });
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "a connection ended");
    }
}

/// The certificate that new connections are shown; may be changed while old ones go on.
pub struct Identity(ArcSwap<CertifiedKey>);

/// Why a certificate cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be used: {0}")]
pub struct BadCertificate(String);

impl Identity {
    /// From a chain, the server's own certificate first, and its key, both PEM.
    pub fn new(chain: &str, key: &str) -> Result<Arc<Self>, BadCertificate> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(read(chain, key)?))))
    }

    /// Shows another from now on.
    pub fn replace(&self, chain: &str, key: &str) -> Result<(), BadCertificate> {
        self.0.store(Arc::new(read(chain, key)?));
        Ok(())
    }

    pub fn acceptor(self: &Arc<Self>) -> TlsAcceptor {
        provide();
        let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::<Self>::clone(self));
        // Over HTTP/2 no connection can be closed after one answer, or be taken over.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// rustls leaves the choice of cryptography to the program.
pub fn provide() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}

fn read(chain: &str, key: &str) -> Result<CertifiedKey, BadCertificate> {
    let bad = |error: &dyn fmt::Display| BadCertificate(error.to_string());
    let certificates = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
    if certificates.is_empty() {
        return Err(BadCertificate("there is none in the PEM text".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| bad(&error))?;
    let read = CertifiedKey::from_der(certificates, key, &rustls::crypto::ring::default_provider()).map_err(|error| bad(&error))?;
    read.keys_match().map_err(|error| bad(&error))?;
    Ok(read)
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
