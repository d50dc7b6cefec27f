//! Policies from the controller: one long response of JSON lines. Each line is all that shall be armed.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use steadfast_api::policy::PolicySnapshot;
use tokio::time::timeout;

use super::{Backoff, address::Controller};
use crate::worker::Shared;

/// One snapshot on the wire.
const LINE_MAX: usize = 1 << 20;
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A controller that is there sends an empty line every five seconds.
const SILENT_FOR: Duration = Duration::from_secs(20);

/// Follows the controller for as long as it is polled.
pub async fn follow(shared: Arc<Shared>, controller: Controller) {
    let mut backoff = Backoff::new();
    loop {
        match follow_once(&shared, &controller, &mut backoff).await {
            Ok(()) => tracing::info!("the controller ended the stream of policies"),
            Err(why) => tracing::info!(why, "no policies from the controller; what is armed stays until it expires"),
        }
        backoff.wait().await;
    }
}

async fn follow_once(shared: &Shared, controller: &Controller, backoff: &mut Backoff) -> Result<(), String> {
    let mut query = String::new();
    for byte in shared.config.pod.uid.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            query.push(char::from(byte));
        } else {
            // A String takes everything.
            let _ = write!(query, "%{byte:02X}");
        }
    }
    let request = controller.request()?.uri(format!("/v1alpha1/policies?uid={query}")).body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    let response = controller.client().send(request, HEAD_WITHIN).await.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(format!("the controller answered {}", response.status()));
    }
    backoff.reset();
    let _connected = Connected::new(shared);
    read_lines(shared, response.into_body()).await
}

/// Told by a metric for as long as it lives.
struct Connected<'a>(&'a Shared);

impl<'a> Connected<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.controller_connected.store(true, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.controller_connected.store(false, Ordering::Relaxed);
    }
}

async fn read_lines(shared: &Shared, mut body: Incoming) -> Result<(), String> {
    let mut pending = BytesMut::new();
    while let Some(frame) = timeout(SILENT_FOR, body.frame()).await.map_err(|_| format!("nothing was heard of it for {SILENT_FOR:?}"))? {
        let Ok(bytes) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            take(shared, &pending.split_to(end + 1));
        }
        if pending.len() > LINE_MAX {
            return Err(format!("a line of more than {LINE_MAX} bytes"));
        }
    }
    take(shared, &pending);
    Ok(())
}

/// Arms what a line says. A bad line changes nothing.
fn take(shared: &Shared, line: &[u8]) {
    // Empty lines keep the connection alive.
    if line.trim_ascii().is_empty() {
        return;
    }
    match serde_json::from_slice::<PolicySnapshot>(line) {
        Ok(snapshot) => {
            if let Err(error) = shared.store.from_controller(snapshot) {
                tracing::error!(%error, "the controller's policies were refused; what was armed stays");
            }
        }
        Err(error) => tracing::error!(%error, "the controller's policies could not be read; what was armed stays"),
    }
}
