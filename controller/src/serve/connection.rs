//! One sidecar's own connection: its reports come in as lines, what shall be armed and what was taken goes out as lines.
//!
//! There are thousands of these, and each is silent most of the time: what one holds between two lines is all that counts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use serde::Serialize;
use steadfast_api::sidecar::{Answer, SidecarReport};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Notify,
    time::timeout,
};

use super::{
    auth::Speaker,
    ingest::{Ingest, Taken},
    policy::Subscription,
};

/// One report as a line.
const LINE_MAX: usize = 1 << 20;
/// What is held for the next report: that of a quiet second is half as long.
const BUFFER: usize = 1 << 10;
/// A sidecar reports every second.
const SILENT_FOR: Duration = Duration::from_secs(30);
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// Connections of one pod at once: a sidecar has one, and dials again before its last is known to be dead. With the newest it is heard, so the oldest goes.
const OF_ONE_POD: usize = 4;

/// Who has a connection: one pod's token takes no other pod's place.
#[derive(Debug, Default)]
pub(super) struct Connected(Mutex<HashMap<String, Vec<Arc<Notify>>>>);

/// One connection's place.
#[derive(Debug)]
pub(super) struct Stay {
    connected: Arc<Connected>,
    pub(super) uid: String,
    leave: Arc<Notify>,
}

impl Connected {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Notify>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod with this UID has one more; beyond so many its oldest is told to end.
    pub(super) fn come(self: &Arc<Self>, uid: String) -> Stay {
        let leave = Arc::new(Notify::new());
        {
            let mut all = self.all();
            let of_pod = all.entry(uid.clone()).or_insert_with(|| Vec::with_capacity(1));
            of_pod.push(Arc::clone(&leave));
            if of_pod.len() > OF_ONE_POD {
                of_pod.remove(0).notify_one();
            }
        }
        Stay { connected: Arc::clone(self), uid, leave }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut all = self.connected.all();
        if let Some(of_pod) = all.get_mut(&self.uid) {
            of_pod.retain(|leave| !Arc::ptr_eq(leave, &self.leave));
            if of_pod.is_empty() {
                all.remove(&self.uid);
            }
        }
    }
}

pub(super) struct Connection {
    pub(super) speaker: Speaker,
    pub(super) stay: Stay,
    pub(super) snapshots: Subscription,
    pub(super) ingest: Arc<Ingest>,
}

impl Connection {
    /// Until either side ends it.
    pub(super) async fn live(mut self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut buffer = BytesMut::with_capacity(BUFFER);
        loop {
            tokio::select! {
                // Who is told to end acknowledges nothing any more.
                biased;
                () = self.stay.leave.notified() => return,
                snapshot = self.snapshots.next() => {
                    let Some(snapshot) = snapshot else { return };
                    if write(&mut stream, &snapshot).await.is_none() {
                        return;
                    }
                }
                read = timeout(SILENT_FOR, stream.read_buf(&mut buffer)) => {
                    // It ended, broke, or fell silent: a sidecar that is still there comes back.
                    let Ok(Ok(1..)) = read else { return };
                    match self.take_all(Instant::now(), &mut buffer) {
                        Ok(None) => {}
                        Ok(Some(sequence)) => if write(&mut stream, &Answer::Acknowledged(sequence)).await.is_none() { return },
                        Err(why) => {
                            tracing::debug!(uid = self.stay.uid, why, "a report was refused");
                            let _ = write(&mut stream, &Answer::Refused(why)).await;
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Takes the reports that are whole; the number of the last.
    fn take_all(&self, received: Instant, buffer: &mut BytesMut) -> Result<Option<u64>, String> {
        let mut last = None;
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            if !line.trim_ascii().is_empty() {
                last = Some(self.take(received, &line)?);
            }
        }
        if buffer.len() > LINE_MAX {
            return Err(format!("a report is longer than {LINE_MAX} bytes: send less evidence at once"));
        }
        if buffer.is_empty() {
            // What a long report took is given back.
            *buffer = BytesMut::with_capacity(BUFFER);
        } else {
            buffer.reserve(BUFFER);
        }
        Ok(last)
    }

    fn take(&self, received: Instant, line: &[u8]) -> Result<u64, String> {
        let (mut report, unknown) = SidecarReport::read(line).map_err(|error| format!("a line is not a report: {error}"))?;
        if unknown > 0 {
            self.ingest.not_understood(unknown);
            tracing::debug!(uid = self.stay.uid, unknown, "evidence of a kind that this controller does not know; the sidecar is newer");
        }
        if report.pod.uid != self.stay.uid {
            return Err(format!("this connection is that of pod {}, and the report is about pod {}", self.stay.uid, report.pod.uid));
        }
        if let Speaker::Pod(owner) = &self.speaker {
            // What the API server says counts, whatever the pod calls itself.
            report.pod.name.clone_from(&owner.name);
            report.pod.namespace.clone_from(&owner.namespace);
        }
        let sequence = report.sequence;
        match self.ingest.take(received, report) {
            Taken::Now | Taken::Before => Ok(sequence),
            Taken::Refused => Err("too many pods report".to_owned()),
        }
    }
}

/// One line; `None` when it cannot be said.
async fn write(stream: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> Option<()> {
    let mut line = serde_json::to_vec(what).ok()?;
    line.push(b'\n');
    let written = async {
        stream.write_all(&line).await?;
        stream.flush().await
    };
    timeout(WRITTEN_WITHIN, written).await.ok()?.ok()
}
