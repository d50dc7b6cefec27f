//! Events: what a person who asks `kubectl describe` should read. Telling one never makes anybody wait; what finds no room is counted.
//!
//! What is said in the same words again is one Event that is counted up; what is said in other words is another one, up to [`OWN_MAX`] within [`OWN_WITHIN`] for
//! each object and reason. More than that are told together, as client-go does it.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

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
/// Events of their own that one object has for one reason within so long; an outage each, as a rule.
const OWN_MAX: usize = 20;
const OWN_WITHIN: Duration = Duration::from_mins(10);
/// Objects and reasons of which that is remembered; what comes beyond is told together.
const KINDS_MAX: usize = 256;
/// Before words that stand for others too.
const TOGETHER: &str = "(one of several alike) ";

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
    related: Option<ObjectReference>,
}

impl Events {
    /// Writes Events for as long as a clone of it lives. Wants `create` and `patch` on `events.events.k8s.io`.
    pub fn start(client: Client, dropped: IntCounter) -> Self {
        let (queue, mut told) = mpsc::channel::<Told>(WAITING_MAX);
        let counted = dropped.clone();
        tokio::spawn(async move {
            let mut recorders = Recorders::new(client);
            while let Some(told) = told.recv().await {
                let (event, about, recorder) = recorders.of(told);
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

    /// Of `about`, and related to another object.
    pub fn related(&self, about: ObjectReference, related: ObjectReference, warning: bool, reason: &str, action: &str, note: &str) {
        self.tell(about, warning, reason, action, note, Some(related));
    }

    fn tell(&self, about: ObjectReference, warning: bool, reason: &str, action: &str, note: &str, related: Option<ObjectReference>) {
        let mut end = note.len().min(NOTE_MAX);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        let told = Told { about, warning, reason: reason.to_owned(), action: action.to_owned(), note: note[..end].to_owned(), related };
        if self.queue.try_send(told).is_err() {
            self.dropped.inc();
        }
    }
}

/// Object by its UID, or by its name where it has none yet; reason; whether it warns.
type Kind = (String, String, bool);

/// A [`Recorder`] counts up what has the same object and reason, and keeps the first words: so each of several words has one of its own.
struct Recorders {
    client: Client,
    reporter: Reporter,
    own: HashMap<Kind, Own>,
    /// Of everything that there is no room for.
    together: Recorder,
}

/// What one object was told for one reason.
struct Own {
    since: Instant,
    by_note: BTreeMap<String, Recorder>,
}

impl Recorders {
    fn new(client: Client) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: std::env::var("POD_NAME").ok() };
        Self { together: Recorder::new(client.clone(), reporter.clone()), client, reporter, own: HashMap::new() }
    }

    fn of(&mut self, told: Told) -> (Event, ObjectReference, Recorder) {
        let Told { about, warning, reason, action, note, related } = told;
        let type_ = if warning { EventType::Warning } else { EventType::Normal };
        let event = |note: String| Event { type_, reason: reason.clone(), note: Some(note), action: action.clone(), secondary: related.clone() };
        let named = || {
            format!(
                "{}/{}/{}",
                about.kind.as_deref().unwrap_or_default(),
                about.namespace.as_deref().unwrap_or_default(),
                about.name.as_deref().unwrap_or_default()
            )
        };
        let kind = (about.uid.clone().unwrap_or_else(named), reason.clone(), warning);
        self.own.retain(|_, own| own.since.elapsed() < OWN_WITHIN);
        let has_room = self.own.len() < KINDS_MAX || self.own.contains_key(&kind);
        if has_room {
            let own = self.own.entry(kind).or_insert_with(|| Own { since: Instant::now(), by_note: BTreeMap::new() });
            if let Some(known) = own.by_note.get(&note) {
                return (event(note), about, known.clone());
            }
            if own.by_note.len() < OWN_MAX {
                let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
                own.by_note.insert(note.clone(), recorder.clone());
                return (event(note), about, recorder);
            }
        }
        (event(format!("{TOGETHER}{note}")), about, self.together.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    /// What an API server was asked to write: whether it was a new Event, and its note and count.
    type Written = Arc<Mutex<Vec<(bool, String, i64)>>>;

    fn server() -> (Client, Written) {
        let written = Written::default();
        let shared = Arc::clone(&written);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let written = Arc::clone(&shared);
            async move {
                let is_new = request.method() == http::Method::POST;
                let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let event: Value = serde_json::from_slice(&body).unwrap();
                written.lock().unwrap().push((is_new, event["note"].as_str().unwrap().to_owned(), event["series"]["count"].as_i64().unwrap_or(1)));
                Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(body.to_vec())))
            }
        });
        (Client::new(service, "n"), written)
    }

    async fn told(notes: &[&str]) -> Vec<(bool, String, i64)> {
        let (client, written) = server();
        let events = Events::start(client, IntCounter::new("dropped", "dropped").unwrap());
        let about =
            ObjectReference { uid: Some("u".to_owned()), name: Some("watch".to_owned()), namespace: Some("n".to_owned()), ..ObjectReference::default() };
        for note in notes {
            events.warn(about.clone(), "Outage", "Watch", note);
        }
        while written.lock().unwrap().len() < notes.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let written = written.lock().unwrap();
        written.clone()
    }

    #[tokio::test]
    async fn two_outages_within_a_minute_are_two_events_and_the_same_words_again_are_counted() {
        let written = told(&["a on n1: deleted", "b on n2: node n2 was lost", "a on n1: deleted"]).await;
        let expected = [(true, "a on n1: deleted", 1), (true, "b on n2: node n2 was lost", 1), (false, "a on n1: deleted", 2)];
        assert_eq!(written, expected.map(|(new, note, count)| (new, note.to_owned(), count)));
    }

    #[tokio::test]
    async fn events_of_one_reason_are_bounded_and_the_rest_is_told_together() {
        let notes: Vec<String> = (0..OWN_MAX + 5).map(|number| format!("outage {number}")).collect();
        let written = told(&notes.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!(written.iter().filter(|(new, ..)| *new).count(), OWN_MAX + 1, "{written:?}");
        assert_eq!(written.last(), Some(&(false, format!("{TOGETHER}outage {OWN_MAX}"), 5)));
    }
}
