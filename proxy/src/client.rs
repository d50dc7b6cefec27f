//! The sidecar's own requests: a look at the model server's readiness, a line to the controller. One connection each, opened when it is needed.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use crate::{control::address::Tls, upstream::Upstream};

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no connection to {authority}: {why}")]
    Connect { authority: String, why: io::Error },
    #[error("no answer from {authority} within {after:?}")]
    Timeout { authority: String, after: Duration },
    #[error("{authority}: {why}")]
    Http { authority: String, why: hyper::Error },
}

/// A connection to one place, kept while it works.
pub struct Client {
    authority: String,
    tls: Option<Tls>,
    /// Where that is, if its name does not say it.
    upstream: Option<Upstream>,
    connection: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Client {
    /// `authority`: `host:port`.
    pub fn new(authority: impl Into<String>, tls: Option<Tls>) -> Self {
        Self { authority: authority.into(), tls, upstream: None, connection: None }
    }

    /// To the model server.
    pub fn to_upstream(upstream: Upstream) -> Self {
        Self { authority: upstream.to_string(), tls: None, upstream: Some(upstream), connection: None }
    }

    /// Sends `request` and waits for the response's head, both within `after`. The response's body must be read before the next call, or the connection is lost.
    pub async fn send(&mut self, request: Request<Full<Bytes>>, after: Duration) -> Result<Response<Incoming>, ClientError> {
        let authority = self.authority.clone();
        if let Ok(result) = timeout(after, self.try_send(request)).await {
            return result;
        }
        self.connection = None;
        Err(ClientError::Timeout { authority, after })
    }

    async fn try_send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let mut kept = self.connection.take();
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let response = sender.send_request(request).await.map_err(|why| ClientError::Http { authority: self.authority.clone(), why })?;
        self.connection = Some(sender);
        Ok(response)
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, ClientError> {
        let authority = || self.authority.clone();
        if let Some(upstream) = &self.upstream {
            let stream = upstream.connect().await.map_err(|why| ClientError::Connect { authority: authority(), why })?;
            return self.handshake(stream).await;
        }
        let stream = TcpStream::connect(&self.authority).await.map_err(|why| ClientError::Connect { authority: authority(), why })?;
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.handshake(stream).await,
            Some(Tls { connector, name }) => {
                let stream = connector.connect(name.clone(), stream).await.map_err(|why| ClientError::Connect { authority: authority(), why })?;
                self.handshake(stream).await
            }
        }
    }

    async fn handshake(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<http1::SendRequest<Full<Bytes>>, ClientError> {
        let authority = || self.authority.clone();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|why| ClientError::Http { authority: authority(), why })?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "own connection ended");
            }
        });
        Ok(sender)
    }
}
