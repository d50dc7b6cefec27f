//! The sidecar's one connection to the controller: lines down that say what shall be armed and what was taken, reports up.
//!
//! If it is lost, traffic flows on and what is armed expires by itself; what the controller did not acknowledge is told again on the next one.

use std::{
    fmt::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use steadfast_api::sidecar::{Answer, CONNECTION_PATH, CONNECTION_UPGRADE, read_snapshot};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::{Backoff, address::Controller, report::Unsent, speaks_another_protocol};
use crate::{clock, worker::Shared};

/// One snapshot on the wire.
const LINE_MAX: usize = 1 << 20;
const OPENED_WITHIN: Duration = Duration::from_secs(5);
/// A report a second goes up: a controller that is lost is noticed by its silence.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(3);
/// Evidence that comes together travels together.
const GATHER: Duration = Duration::from_millis(1);
/// At the end there is no later: what cannot be sent by then is lost.
const FAREWELL: Duration = Duration::from_millis(500);

/// Keeps one open until `last` is told; then what is left to tell goes up.
pub async fn keep(shared: Arc<Shared>, controller: Controller, last: Arc<Notify>) {
    let leaving = watch::Sender::new(false);
    let left = async {
        last.notified().await;
        leaving.send_replace(true);
        sleep(FAREWELL).await;
    };
    tokio::select! {
        () = left => {}
        () = again_and_again(&shared, &controller, leaving.subscribe()) => {}
    }
}

/// Returns once it is leaving and everything is told.
async fn again_and_again(shared: &Shared, controller: &Controller, mut leaving: watch::Receiver<bool>) {
    let (mut unsent, mut backoff) = (Unsent::default(), Backoff::new());
    loop {
        match once(shared, controller, &mut unsent, &mut backoff, &mut leaving).await {
            Ok(()) => return,
            Err(why) => tracing::info!(why, "no connection to the controller: what is armed stays until it expires, what is to tell is told later"),
        }
        if *leaving.borrow_and_update() {
            backoff.wait().await;
        } else {
            tokio::select! {
                () = backoff.wait() => {}
                _ = leaving.changed() => {}
            }
        }
    }
}

async fn once(shared: &Shared, controller: &Controller, unsent: &mut Unsent, backoff: &mut Backoff, leaving: &mut watch::Receiver<bool>) -> Result<(), String> {
    let (hear, tell) = tokio::io::split(open(shared, controller).await?);
    let _connected = Connected::new(shared);
    let acknowledged = watch::Sender::new(0);
    tokio::select! {
        why = listen(shared, hear, &acknowledged) => Err(why),
        told = speak(shared, tell, unsent, acknowledged.subscribe(), backoff, leaving) => told,
    }
}

async fn open(shared: &Shared, controller: &Controller) -> Result<impl AsyncRead + AsyncWrite, String> {
    let mut uid = String::new();
    for byte in shared.config.pod.uid.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            uid.push(char::from(byte));
        } else {
            // A String takes everything.
            let _ = write!(uid, "%{byte:02X}");
        }
    }
    let request = controller.request()?.uri(format!("{CONNECTION_PATH}?uid={uid}"));
    let request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, CONNECTION_UPGRADE).body(Full::new(Bytes::new()));
    let request = request.map_err(|error| error.to_string())?;
    let mut client = controller.client();
    let response = client.send(request, OPENED_WITHIN).await.map_err(|error| error.to_string())?;
    if let Some(why) = speaks_another_protocol(&response) {
        return Err(why);
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the controller answered {}", response.status()));
    }
    hyper::upgrade::on(response).await.map(TokioIo::new).map_err(|error| error.to_string())
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

/// Sends what comes. Returns once it is leaving and everything is told.
async fn speak(
    shared: &Shared,
    mut to: impl AsyncWrite + Unpin,
    unsent: &mut Unsent,
    mut acknowledged: watch::Receiver<u64>,
    backoff: &mut Backoff,
    leaving: &mut watch::Receiver<bool>,
) -> Result<(), String> {
    loop {
        while let Some(report) = unsent.next(shared) {
            // Of this attempt: the controller takes from it how long the message travelled.
            report.sent_ns = clock::since_start_ns();
            let mut line = serde_json::to_vec(report).map_err(|error| error.to_string())?;
            line.push(b'\n');
            let taken = async {
                to.write_all(&line).await?;
                to.flush().await?;
                // Whoever would say it is there for as long as this is polled.
                let _ = acknowledged.wait_for(|sequence| *sequence >= report.sequence).await;
                Ok::<_, std::io::Error>(())
            };
            let taken = timeout(ACKNOWLEDGED_WITHIN, taken).await;
            taken.map_err(|_| format!("a report was not taken within {ACKNOWLEDGED_WITHIN:?}"))?.map_err(|error| error.to_string())?;
            unsent.taken();
            backoff.reset();
        }
        if *leaving.borrow_and_update() {
            return Ok(());
        }
        let more = async {
            shared.evidence.some().await;
            sleep(GATHER).await;
        };
        tokio::select! {
            () = more => {}
            _ = leaving.changed() => {}
        }
    }
}

/// Follows what the controller says; why it could not any longer.
async fn listen(shared: &Shared, mut from: impl AsyncRead + Unpin, acknowledged: &watch::Sender<u64>) -> String {
    let mut pending = BytesMut::new();
    loop {
        match from.read_buf(&mut pending).await {
            Ok(0) => return "the controller ended it".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line = pending.split_to(end + 1);
            match serde_json::from_slice(&line) {
                Ok(Answer::Acknowledged(sequence)) => drop(acknowledged.send_replace(sequence)),
                Ok(Answer::Refused(why)) => return format!("the controller refused a report: {why}"),
                Err(_) => take(shared, &line),
            }
        }
        if pending.len() > LINE_MAX {
            return format!("a line of more than {LINE_MAX} bytes");
        }
    }
}

/// Arms what a line says. A bad line changes nothing; a bad policy of a good one is left out.
fn take(shared: &Shared, line: &[u8]) {
    match read_snapshot(line) {
        Ok(read) => {
            if read.unknown > 0 {
                shared.not_understood.fetch_add(read.unknown, Ordering::Relaxed);
                tracing::warn!(parts = read.unknown, policies = ?read.refused, "the controller is newer, and says what this sidecar does not know: that is passed over");
            }
            let Some(snapshot) = read.snapshot else { return };
            shared.store.from_newer_controller(snapshot, read.refused);
        }
        Err(error) => tracing::error!(%error, "the controller's policies could not be read; what was armed stays"),
    }
}
