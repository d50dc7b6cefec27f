//! Whether the model server is ready, by its own path: looked at every 20 ms while it is not, every second while it is, and at once when a request
//! could not be forwarded.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use steadfast_api::sidecar::What;

use tokio::net::TcpStream;

use crate::{client::Client, config::Readiness, worker::Shared};

const WHILE_NOT_READY: Duration = Duration::from_millis(20);
const WHILE_READY: Duration = Duration::from_secs(1);
/// A look that takes longer says "not ready".
const LOOK_MAX: Duration = Duration::from_secs(1);
/// What a readiness answer may have to say.
const BODY_MAX: usize = 64 << 10;

/// Looks for as long as it is polled, and tells every change.
pub async fn watch(shared: Arc<Shared>) {
    let mut client = match &shared.config.readiness {
        Readiness::Http { address, .. } | Readiness::Tcp { address } => Client::new(address.to_string(), None),
    };
    let mut known = None;
    loop {
        let begun = Instant::now();
        let ready = look(&shared, &mut client).await;
        if known != Some(ready) {
            known = Some(ready);
            tracing::info!(ready, "model server");
            shared.upstream_ready.store(ready, Ordering::Release);
            shared.readiness.send_replace(ready);
            shared.evidence.urgent(What::Upstream { ready });
        }
        let pause = if ready { WHILE_READY } else { WHILE_NOT_READY };
        tokio::select! {
            () = tokio::time::sleep(pause.saturating_sub(begun.elapsed())) => {}
            // At most every 20 ms, however many requests fail.
            () = async { shared.suspect.notified().await; tokio::time::sleep(WHILE_NOT_READY.saturating_sub(begun.elapsed())).await } => {}
        }
    }
}

async fn look(shared: &Shared, client: &mut Client) -> bool {
    let (address, path) = match &shared.config.readiness {
        Readiness::Tcp { address } => return matches!(tokio::time::timeout(LOOK_MAX, TcpStream::connect(address)).await, Ok(Ok(_))),
        Readiness::Http { address, path } => (address, path),
    };
    let request = Request::get(path.as_str()).header(header::HOST, address.to_string()).body(Full::new(Bytes::new()));
    // Path and address were checked when the flags were.
    let Ok(request) = request else { return false };
    match client.send(request, LOOK_MAX).await {
        Ok(response) => {
            let ready = response.status().is_success();
            // The connection can be used again only when the body is out of the way.
            let read = tokio::time::timeout(LOOK_MAX, Limited::new(response.into_body(), BODY_MAX).collect()).await;
            ready && matches!(read, Ok(Ok(_)))
        }
        Err(error) => {
            tracing::trace!(%error, "model server not ready");
            false
        }
    }
}
