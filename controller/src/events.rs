//! Events: what a person who asks `kubectl describe` should read. Telling one never makes anybody wait; what finds no room is counted.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use prometheus::IntCounter;
use tokio::{sync::mpsc, time::timeout};

use crate::reconcile::resource::MANAGER;

/// Events that wait to be written.
const WAITING_MAX: usize = 1024;
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a note; the API takes 1024.
pub const NOTE_MAX: usize = 1000;

/// Where Events are told. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Told>,
    dropped: IntCounter,
}

#[derive(Debug)]
struct Told {
    about: ObjectReference,
    warning: bool,
    reason: String,
    action: String,
    note: String,
    /// Who else it is about, of what must not be counted together with others of its reason.
    apart: Option<ObjectReference>,
}

impl Events {
    /// Writes Events for as long as a clone of it lives. Wants `create` and `patch` on `events.events.k8s.io`.
    pub fn start(client: Client, dropped: IntCounter) -> Self {
        let (queue, mut told) = mpsc::channel::<Told>(WAITING_MAX);
        let counted = dropped.clone();
        tokio::spawn(async move {
            let reporter = Reporter { controller: MANAGER.to_owned(), instance: std::env::var("POD_NAME").ok() };
            let counts = Recorder::new(client.clone(), reporter.clone());
            while let Some(Told { about, warning, reason, action, note, apart }) = told.recv().await {
                let type_ = if warning { EventType::Warning } else { EventType::Normal };
                // One recorder counts what is alike in all but its note, and keeps the first note.
                let recorder = if apart.is_some() { Recorder::new(client.clone(), reporter.clone()) } else { counts.clone() };
                let event = Event { type_, reason, note: Some(note), action, secondary: apart };
                match timeout(WRITTEN_WITHIN, recorder.publish(&event, &about)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        counted.inc();
                        tracing::debug!(%error, reason = event.reason, "an Event could not be written");
                    }
                    Err(_) => counted.inc(),
                }
            }
        });
        Self { queue, dropped }
    }

    /// `reason` and `action` in CamelCase.
    pub fn warn(&self, about: ObjectReference, reason: &str, action: &'static str, note: &str) {
        self.tell(about, true, reason, action, note, None);
    }

    /// As [`Events::warn`], about something that is as it should be.
    pub fn say(&self, about: ObjectReference, reason: &str, action: &'static str, note: &str) {
        self.tell(about, false, reason, action, note, None);
    }

    /// An Event of its own, however many are like it: of `about`, and `related` to another.
    pub fn apart(&self, about: ObjectReference, related: ObjectReference, warning: bool, reason: &str, action: &str, note: &str) {
        self.tell(about, warning, reason, action, note, Some(related));
    }

    fn tell(&self, about: ObjectReference, warning: bool, reason: &str, action: &str, note: &str, apart: Option<ObjectReference>) {
        let mut end = note.len().min(NOTE_MAX);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        let told = Told { about, warning, reason: reason.to_owned(), action: action.to_owned(), note: note[..end].to_owned(), apart };
        if self.queue.try_send(told).is_err() {
            self.dropped.inc();
        }
    }
}
