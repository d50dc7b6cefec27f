//! ResilienceSchedules: copies of a test, made at random moments and run by the leader as if somebody had written them; leashed until somebody says otherwise.
//!
//! The next moment follows from the schedule's seed, its UID and the moment before, which its status keeps; so a new leader draws the same one. A moment that nobody
//! saw within `startWithin` is let pass, and the next is drawn from now on. The test that a moment makes is named after it, so it is made once.

mod eligible;
mod leave;
mod moment;
mod window;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;
use steadfast_api::resource::{Condition, ResilienceScheduleSpec, ResilienceScheduleStatus, Skipped};
use tokio::time::{sleep, timeout};

use self::{
    eligible::{Due, Skip, has_ended, not_allowed},
    moment::Draw,
    window::Calendar,
};
use super::{
    pods::Pods,
    resource::{API_VERSION, MANAGER, ResilienceSchedule, ResilienceTest},
    status::fit,
};
use crate::{events::Events, metrics::Metrics};

pub use leave::{Leave, MayBreak, Moment};

/// On tests: the schedule that made them.
pub const SCHEDULE_LABEL: &str = "steadfast.dev/schedule";
/// Characters of a schedule's name: with a moment behind it, it names a test.
pub const NAME_MAX: usize = 63 - "-20261123t185210z".len();
/// Schedules are looked at so often, whatever happens: namespaces may have changed.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// While the API server is away, it is asked again so often.
const RETRY: Duration = Duration::from_secs(2);
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// Steps that an Event names.
const STEPS_MAX: usize = 8;

/// See the module. Wants `list` and `watch` on resilienceschedules and `patch` on their status, `list`, `create` and `delete` on resiliencetests, `list` on pods.
pub struct Schedules {
    client: Client,
    leave: Arc<Leave>,
    pods: Arc<Pods>,
    metrics: Metrics,
    events: Events,
    /// By UID.
    known: HashMap<String, Known>,
}

/// What this leader has written of a schedule, and its next moment.
struct Known {
    status: ResilienceScheduleStatus,
    written: bool,
    next: Option<Timestamp>,
}

/// How a moment ended.
enum Outcome {
    /// `deleted`: older runs.
    Ran {
        name: String,
        deleted: u64,
    },
    Skipped(Skip),
}

impl Schedules {
    pub fn new(client: Client, leave: Arc<Leave>, pods: Arc<Pods>, metrics: Metrics, events: Events) -> Self {
        Self { client, leave, pods, metrics, events, known: HashMap::new() }
    }

    /// Never returns.
    pub async fn run(mut self) {
        self.pods.listed().await;
        self.leave.listed().await;
        let mut changes = self.leave.objects.changes();
        loop {
            let schedules: Vec<_> = self.leave.objects.all().into_iter().filter(|schedule| schedule.metadata.deletion_timestamp.is_none()).collect();
            let there: HashSet<String> = schedules.iter().filter_map(|schedule| schedule.uid()).collect();
            self.known.retain(|uid, _| there.contains(uid));
            let mut wait = LOOK_EVERY;
            for schedule in schedules {
                wait = wait.min(self.look(&schedule).await);
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// How long until it wants to be looked at again.
    async fn look(&mut self, schedule: &ResilienceSchedule) -> Duration {
        let now = seconds(Timestamp::now());
        let uid = schedule.uid().unwrap_or_default();
        let before = self.known.remove(&uid).unwrap_or_else(|| Known { status: schedule.status.clone().unwrap_or_default(), written: true, next: None });
        let mut known = Known { status: before.status.clone(), ..before };
        let mut wait = LOOK_EVERY;
        let standing = match read(schedule) {
            Err(why) => Err(Skip::new("Invalid", why)),
            Ok((spec, calendar)) => {
                let draw = |from: Timestamp| Draw { seed: spec.seed, uid: &uid, from }.next(spec.mean_time_between.get(), &calendar);
                let mut from = anchor(&known.status, schedule.metadata.generation, now);
                known.next = draw(from);
                if let Some(due) = known.next.filter(|due| *due <= now) {
                    if let Some((outcome, next_from)) = self.settle(schedule, spec, &calendar, due, now).await {
                        from = next_from;
                        self.note(schedule, spec, &mut known.status, due, outcome);
                        known.next = draw(from);
                        wait = Duration::ZERO;
                    } else {
                        wait = RETRY;
                    }
                }
                known.status.drawn_from = Some(from.to_string());
                if let Some(until) = known.next.and_then(|next| Duration::try_from(next.duration_since(Timestamp::now())).ok()) {
                    wait = wait.min(until);
                }
                self.standing(schedule, spec, known.next)
            }
        };
        if matches!(&standing, Err(skip) if skip.reason == "Invalid") {
            known.next = None;
            known.status.drawn_from = None;
        }
        known.status.next_run_at = known.next.map(|next| next.to_string());
        known.status.observed_generation = schedule.metadata.generation;
        known.status.conditions = vec![condition(&before.status.conditions, &standing, schedule.metadata.generation, now)];
        if known.status != before.status || !before.written {
            let turned = before.status.conditions.first().map(|condition| condition.reason.as_str()) != Some(known.status.conditions[0].reason.as_str());
            if let (Err(skip), true) = (&standing, turned) {
                self.events.warn(schedule.object_ref(&()), skip.reason, "Schedule", &skip.message);
            }
            known.written = self.write(schedule, &known.status).await;
            if !known.written {
                wait = wait.max(RETRY);
            }
        }
        self.known.insert(uid, known);
        wait
    }

    /// What became of a moment that is due, and from where the next is drawn. `None`: the API server does not answer, and there is time.
    async fn settle(
        &self,
        schedule: &ResilienceSchedule,
        spec: &ResilienceScheduleSpec,
        calendar: &Calendar,
        due: Timestamp,
        now: Timestamp,
    ) -> Option<(Outcome, Timestamp)> {
        if let Some((skip, from)) = passed(spec, calendar, due, now) {
            return Some((Outcome::Skipped(skip), from));
        }
        match timeout(ASK_WITHIN * 2, self.begin(schedule, spec, due)).await {
            Ok(Ok(outcome)) => return Some((outcome, due)),
            Ok(Err(error)) => tracing::warn!(%schedule, %error, "a run could not begin yet"),
            Err(_) => tracing::warn!(%schedule, "a run could not begin yet: the API server does not answer"),
        }
        None
    }

    async fn begin(&self, schedule: &ResilienceSchedule, spec: &ResilienceScheduleSpec, moment: Timestamp) -> Result<Outcome, kube::Error> {
        let (namespace, uid) = (schedule.namespace().unwrap_or_default(), schedule.uid().unwrap_or_default());
        let seed = Draw { seed: spec.seed, uid: &uid, from: moment }.run_seed();
        let due = Due { schedule, spec, namespace: &namespace, name: test_name(&schedule.name_any(), moment), seed };
        let (judged, tests) = due.judge(&self.client, &self.pods).await?;
        let test = match judged {
            Ok(test) => test,
            Err(skip) => return Ok(Outcome::Skipped(skip)),
        };
        if !spec.armed {
            return Ok(Outcome::Skipped(Skip::new("Leashed", format!("would have run {}; armed: true lets it", steps(&test, &spec.test.name)))));
        }
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match Api::<ResilienceTest>::namespaced(self.client.clone(), &namespace).create(&params, &test).await {
            Ok(_) => {}
            // By a leader that could not say so any more.
            Err(kube::Error::Api(answer)) if answer.code == 409 && answer.reason == "AlreadyExists" => {}
            Err(kube::Error::Api(answer)) if [400, 403, 404, 422].contains(&answer.code) => {
                return Ok(Outcome::Skipped(Skip::new("Refused", answer.message)));
            }
            Err(error) => return Err(error),
        }
        let deleted = self.prune(&due, &tests).await;
        Ok(Outcome::Ran { name: due.name, deleted })
    }

    fn note(&self, schedule: &ResilienceSchedule, spec: &ResilienceScheduleSpec, status: &mut ResilienceScheduleStatus, at: Timestamp, outcome: Outcome) {
        let about = schedule.object_ref(&());
        match outcome {
            Outcome::Ran { name, deleted } => {
                self.metrics.scheduled.with_label_values(&["Started"]).inc();
                self.events.say(about, "Started", "Schedule", &format!("ResilienceTest {name}, copied from {}", spec.test.name));
                status.last_run_at = Some(at.to_string());
                status.last_run = Some(name);
                status.last_skipped = None;
                status.history_deleted += deleted;
            }
            Outcome::Skipped(Skip { reason, message }) => {
                self.metrics.scheduled.with_label_values(&[reason]).inc();
                match reason {
                    "NoTest" | "BadTest" | "Refused" => self.events.warn(about, reason, "Schedule", &message),
                    _ => self.events.say(about, reason, "Schedule", &message),
                }
                status.last_skipped = Some(Skipped { at: at.to_string(), reason: reason.to_owned(), message });
            }
        }
    }

    /// Why it waits for its next moment, or why there is none.
    fn standing(&self, schedule: &ResilienceSchedule, spec: &ResilienceScheduleSpec, next: Option<Timestamp>) -> Result<Skip, Skip> {
        let namespace = schedule.namespace().unwrap_or_default();
        if next.is_none() {
            return Err(Skip::new("NeverOpen", "spec.window: not open for as long as meanTimeBetween wants within ten years: look at days and blackoutDates"));
        }
        if !self.pods.allowed_in(&namespace) {
            return Err(not_allowed(&namespace));
        }
        Ok(if spec.armed {
            Skip::new("Armed", format!("runs copies of {}", spec.test.name))
        } else {
            Skip::new("Leashed", format!("tells when it would run {}; armed: true lets it", spec.test.name))
        })
    }

    /// Deletes the oldest runs beyond the limit, once they have ended; how many.
    async fn prune(&self, due: &Due<'_>, tests: &[ResilienceTest]) -> u64 {
        let mut deleted = 0;
        for test in surplus(due, tests) {
            let uid = Preconditions { uid: test.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
            match Api::<ResilienceTest>::namespaced(self.client.clone(), due.namespace).delete(&test.name_any(), &params).await {
                Ok(_) => deleted += 1,
                Err(error) => tracing::warn!(%test, %error, "an old run could not be deleted"),
            }
        }
        deleted
    }

    async fn write(&self, schedule: &ResilienceSchedule, status: &ResilienceScheduleStatus) -> bool {
        let (name, namespace) = (schedule.name_any(), schedule.namespace().unwrap_or_default());
        let patch = json!({
            "apiVersion": API_VERSION, "kind": ResilienceSchedule::KIND,
            "metadata": { "name": name, "namespace": namespace },
            "status": fit(status),
        });
        let api: Api<ResilienceSchedule> = Api::namespaced(self.client.clone(), &namespace);
        match timeout(ASK_WITHIN, api.patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))).await {
            Ok(Ok(_)) => return true,
            // Deleted meanwhile.
            Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => return true,
            Ok(Err(error)) => tracing::warn!(%schedule, %error, "its status could not be written"),
            Err(_) => tracing::warn!(%schedule, "its status could not be written in time"),
        }
        false
    }
}

/// Why a moment that is due has been missed, and from where the next is drawn.
fn passed(spec: &ResilienceScheduleSpec, calendar: &Calendar, due: Timestamp, now: Timestamp) -> Option<(Skip, Timestamp)> {
    let late = now.duration_since(due);
    if late > SignedDuration::try_from(spec.start_within.get()).unwrap_or(SignedDuration::MAX) {
        let message = format!("nobody looked within startWithin, {}: the controller was away, or could not reach the API server", spec.start_within);
        return Some((Skip::new("Missed", message), now));
    }
    if !calendar.is_open(now) {
        return Some((Skip::new("WindowClosed", "the window closed before the run could begin"), due));
    }
    None
}

/// The spec, and the window as a calendar.
fn read(schedule: &ResilienceSchedule) -> Result<(&ResilienceScheduleSpec, Calendar), String> {
    let spec = schedule.spec.get().map_err(|why| format!("spec: {why}"))?;
    if spec.mean_time_between.get() < Duration::from_secs(1) {
        return Err(format!("spec.meanTimeBetween: {} is too short: at least 1s", spec.mean_time_between));
    }
    if !(1..=100).contains(&spec.history_limit) {
        return Err(format!("spec.historyLimit: {} is not from 1 to 100", spec.history_limit));
    }
    if schedule.name_any().len() > NAME_MAX {
        return Err(format!("metadata.name: {} characters are too many, tests are named after it: give it {NAME_MAX} at most", schedule.name_any().len()));
    }
    Ok((spec, Calendar::new(spec)?))
}

/// From where the next moment is drawn: as the last leader did, unless the schedule has been changed since.
fn anchor(status: &ResilienceScheduleStatus, generation: Option<i64>, now: Timestamp) -> Timestamp {
    let written = status.drawn_from.as_deref().filter(|_| status.observed_generation == generation).and_then(|from| from.parse().ok());
    written.map_or(now, seconds)
}

fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn test_name(schedule: &str, moment: Timestamp) -> String {
    format!("{schedule}-{}", moment.strftime("%Y%m%dt%H%M%Sz"))
}

/// The oldest runs that have ended, such that with the one that begins now as many as the limit are left.
fn surplus<'a>(due: &Due<'_>, tests: &'a [ResilienceTest]) -> Vec<&'a ResilienceTest> {
    let mut others: Vec<&ResilienceTest> = tests.iter().filter(|test| due.owns(test) && test.name_any() != due.name).collect();
    others.sort_by_key(|test| test.name_any());
    let many = (others.len() + 1).saturating_sub(due.spec.history_limit as usize);
    others.into_iter().take(many).filter(|test| has_ended(test)).collect()
}

/// E.g. `case-study: slow network, node lost`.
fn steps(test: &ResilienceTest, template: &str) -> String {
    let names: Vec<&str> = test.spec.get().map(|spec| spec.steps.iter().map(|step| step.name.as_str()).collect()).unwrap_or_default();
    let more = if names.len() > STEPS_MAX { ", …" } else { "" };
    format!("{template}: {}{more}", names[..names.len().min(STEPS_MAX)].join(", "))
}

fn condition(before: &[Condition], standing: &Result<Skip, Skip>, generation: Option<i64>, now: Timestamp) -> Condition {
    let (status, Skip { reason, message }) = match standing {
        Ok(why) => ("True", why),
        Err(why) => ("False", why),
    };
    let known = before.iter().find(|condition| condition.kind == "Ready" && condition.status == status);
    Condition {
        kind: "Ready".to_owned(),
        status: status.to_owned(),
        reason: (*reason).to_owned(),
        message: message.clone(),
        last_transition_time: known.map_or_else(|| now.to_string(), |known| known.last_transition_time.clone()),
        observed_generation: generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_new_leader_draws_from_where_the_last_one_did_unless_the_schedule_changed() {
        let status =
            ResilienceScheduleStatus { observed_generation: Some(2), drawn_from: Some("2026-01-01T00:00:00Z".into()), ..ResilienceScheduleStatus::default() };
        let now = at("2026-01-05T00:00:00Z");
        assert_eq!(anchor(&status, Some(2), now), at("2026-01-01T00:00:00Z"));
        assert_eq!(anchor(&status, Some(3), now), now);
        assert_eq!(anchor(&ResilienceScheduleStatus::default(), Some(1), now), now);
    }

    #[test]
    fn a_moment_that_is_over_is_let_pass_and_one_outside_of_the_window_too() {
        let schedule: ResilienceSchedule = serde_saphyr::from_str(
            "metadata: {name: s}
spec: {test: {name: t}, meanTimeBetween: 1d, startWithin: 5m, window: {days: [Mon], from: '10:00', to: '16:00', timeZone: UTC}}",
        )
        .unwrap();
        let (spec, calendar) = read(&schedule).unwrap();
        // A Monday.
        let due = at("2026-01-05T15:58:00Z");
        let passed = |now: &str| passed(spec, &calendar, due, at(now)).map(|(skip, from)| (skip.reason, from));
        assert_eq!(passed("2026-01-05T15:59:59Z"), None);
        assert_eq!(passed("2026-01-05T16:00:00Z"), Some(("WindowClosed", due)));
        let late = "2026-01-05T16:03:01Z";
        assert_eq!(passed(late), Some(("Missed", at(late))), "and what was missed meanwhile is not made up for");
    }

    #[test]
    fn tests_are_named_after_their_moment_and_the_name_fits_a_label() {
        let name = test_name(&"s".repeat(NAME_MAX), at("2026-11-23T18:52:10Z"));
        assert!(name.ends_with("-20261123t185210z") && name.len() == 63, "{name}");
    }

    #[test]
    fn the_oldest_runs_go_and_none_that_runs() {
        let schedule: ResilienceSchedule = serde_saphyr::from_str(
            "metadata: {name: s, namespace: n, uid: u}\nspec: {test: {name: t}, meanTimeBetween: 1d, historyLimit: 3, window: {days: [Mon], from: '00:00', to: '24:00', timeZone: UTC}}",
        )
        .unwrap();
        let spec = schedule.spec.get().unwrap();
        let due = Due { schedule: &schedule, spec, namespace: "n", name: "s-9".into(), seed: 0 };
        let test = |name: &str, phase: &str, uid: &str| -> ResilienceTest {
            let yaml = format!(
                "metadata: {{name: {name}, ownerReferences: [{{apiVersion: a, kind: k, name: s, uid: {uid}}}]}}
spec: {{}}
status: {{phase: {phase}}}"
            );
            serde_saphyr::from_str(&yaml).unwrap()
        };
        let tests = [
            test("s-4", "Finished", "u"),
            test("s-1", "Running", "u"),
            test("s-2", "Finished", "u"),
            test("s-3", "Refused", "u"),
            test("s-0", "Finished", "other"),
            test("s-9", "Running", "u"),
        ];
        let names: Vec<String> = surplus(&due, &tests).iter().map(|test| test.name_any()).collect();
        assert_eq!(names, ["s-2"], "of s-1 to s-4 and s-9 three are left, and s-1 once it has ended");
        assert!(surplus(&due, &tests[3..]).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_told_with_what_would_be_right() {
        let good = "metadata: {name: s}
spec: {test: {name: t}, meanTimeBetween: 1d, historyLimit: 3, window: {days: [Mon], from: '00:00', to: '24:00', timeZone: UTC}}";
        let why = |right: &str, wrong: &str| read(&serde_saphyr::from_str(&good.replace(right, wrong)).unwrap()).map(drop).unwrap_err();
        assert!(why("1d", "10ms").contains("at least 1s"));
        assert!(why("historyLimit: 3", "historyLimit: 0").contains("from 1 to 100"));
        assert!(why("UTC", "Nowhere").contains("such as Europe/Berlin"));
        assert!(why("name: s}", &format!("name: {}}}", "s".repeat(47))).contains("46 at most"));
        assert!(read(&serde_saphyr::from_str(good).unwrap()).is_ok());
    }

    #[test]
    fn conditions_keep_their_time_and_an_event_names_the_steps() {
        let first = condition(&[], &Err(not_allowed("n")), Some(1), at("2026-01-01T00:00:00Z"));
        assert_eq!((first.status.as_str(), first.reason.as_str()), ("False", "NotAllowed"));
        let second = condition(std::slice::from_ref(&first), &Err(Skip::new("Invalid", "x")), Some(2), at("2026-01-02T00:00:00Z"));
        assert_eq!(second.last_transition_time, "2026-01-01T00:00:00Z");
        let test: ResilienceTest = serde_saphyr::from_str(
            "metadata: {name: t}
spec: {target: {selector: {matchLabels: {a: b}}}, steps: [{name: slow, networkLatency: {pods: {mode: one}, delay: 1s}, for: 2s}, {name: killed, podKill: {pods: {mode: one}}}]}",
        )
        .unwrap();
        assert_eq!(steps(&test, "case"), "case: slow, killed");
    }
}
