//! Leave for the runs that schedules make. A schedule's moment makes a test; what lies between that and the fault may be long (another run, a new leader, a
//! baseline), so leave is asked for again when the run begins and right before each of its faults: of the API server, at that moment. Who takes it back
//! meanwhile (`armed: false`) ends the run.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Client, ResourceExt, api::ListParams, runtime::watcher};
use tokio::time::{sleep, timeout};

use super::{
    eligible::{Skip, health, not_allowed},
    read,
};
use crate::reconcile::{
    pods::Pods,
    resource::{GROUP, ResilienceSchedule, ResilienceTest},
    watched::Watched,
};

const ASK_WITHIN: Duration = Duration::from_secs(10);
/// While the API server is away, it is asked again so often, so many times.
const RETRY: Duration = Duration::from_secs(2);
const TRIES: usize = 5;

/// Says whether the next fault may be made, or why not.
pub type MayBreak = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What is to be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The run.
    Start,
    /// One of its faults.
    Fault,
}

/// See the module. Wants `list` and `watch` on resilienceschedules, `list` on pods, workloads and goldensets.
pub struct Leave {
    client: Client,
    pods: Arc<Pods>,
    pub(super) objects: Watched<ResilienceSchedule>,
}

impl Leave {
    pub fn new(client: Client, pods: Arc<Pods>) -> Arc<Self> {
        let objects = Watched::within(pods.scope().apis(&client), watcher::Config::default(), |_| {});
        Arc::new(Self { client, pods, objects })
    }

    /// Returns once all schedules are known.
    pub async fn listed(&self) {
        self.objects.listed().await;
    }

    /// Somebody took back what a schedule may do; as far as is known here.
    pub fn is_leashed(&self, test: &ResilienceTest) -> bool {
        let Some(maker) = maker(test) else { return false };
        let schedule = self.objects.get(test.namespace().as_deref(), &maker.name);
        schedule.is_some_and(|schedule| schedule.uid().as_ref() == Some(&maker.uid) && schedule.spec.get().is_ok_and(|spec| !spec.armed))
    }

    /// Why this test, if a schedule made it, may not go on at this moment.
    ///
    /// # Errors
    /// While the API server does not answer.
    pub async fn ask(&self, test: &ResilienceTest, moment: Moment) -> Result<Result<(), Skip>, kube::Error> {
        let Some(maker) = maker(test) else { return Ok(Ok(())) };
        let namespace = test.namespace().unwrap_or_default();
        if !self.pods.allowed_in(&namespace) {
            return Ok(Err(not_allowed(&namespace)));
        }
        let schedules: Api<ResilienceSchedule> = Api::namespaced(self.client.clone(), &namespace);
        let found = schedules.list(&ListParams::default().fields(&format!("metadata.name={}", maker.name))).await?;
        let schedule = found.items.into_iter().find(|schedule| schedule.uid().as_ref() == Some(&maker.uid));
        let created = test.metadata.creation_timestamp.as_ref().map(|created| created.0);
        if let Err(skip) = lets(schedule.as_ref(), maker, created, moment, Timestamp::now()) {
            return Ok(Err(skip));
        }
        // A test that cannot be read is refused by whoever runs it.
        let Ok(spec) = test.spec.get() else { return Ok(Ok(())) };
        Ok(health(&self.client, &namespace, &spec.target.selector, moment == Moment::Start).await?.map_or(Ok(()), Err))
    }

    /// For the faults of one run; `None`: nobody need be asked.
    pub fn leave_for(self: &Arc<Self>, test: &ResilienceTest) -> Option<MayBreak> {
        maker(test)?;
        let (leave, test) = (Arc::clone(self), Arc::new(test.clone()));
        Some(Arc::new(move || {
            let (leave, test) = (Arc::clone(&leave), Arc::clone(&test));
            Box::pin(async move {
                for _ in 0..TRIES {
                    match timeout(ASK_WITHIN, leave.ask(&test, Moment::Fault)).await {
                        Ok(Ok(Ok(()))) => return Ok(()),
                        Ok(Ok(Err(skip))) => return Err(format!("its schedule lets no fault be made now, {}: {}", skip.reason, skip.message)),
                        Ok(Err(error)) => tracing::warn!(%test, %error, "whether its schedule lets a fault be made cannot be asked"),
                        Err(_) => tracing::warn!(%test, "whether its schedule lets a fault be made cannot be asked in time"),
                    }
                    sleep(RETRY).await;
                }
                Err("whether its schedule lets a fault be made could not be asked: the API server does not answer".to_owned())
            })
        }))
    }
}

/// The schedule that made it.
fn maker(test: &ResilienceTest) -> Option<&OwnerReference> {
    let is_schedule = |owner: &&OwnerReference| owner.kind == ResilienceSchedule::KIND && owner.api_version.split('/').next() == Some(GROUP);
    test.owner_references().iter().find(is_schedule)
}

fn lets(schedule: Option<&ResilienceSchedule>, maker: &OwnerReference, created: Option<Timestamp>, moment: Moment, now: Timestamp) -> Result<(), Skip> {
    let Some(schedule) = schedule else { return Err(Skip::new("NoSchedule", format!("ResilienceSchedule {}, which made it, is gone", maker.name))) };
    let (spec, calendar) = read(schedule).map_err(|why| Skip::new("Invalid", format!("{schedule}: {why}")))?;
    if !spec.armed {
        return Err(Skip::new("Leashed", format!("{schedule} says armed: false now")));
    }
    if !calendar.is_open(now) {
        return Err(Skip::new("WindowClosed", format!("the window of {schedule} is closed, or it is a blackout date")));
    }
    let waited = created.map(|created| now.duration_since(created)).unwrap_or_default();
    if moment == Moment::Start && waited > SignedDuration::try_from(spec.start_within.get()).unwrap_or(SignedDuration::MAX) {
        return Err(Skip::new("Missed", format!("it waited for longer than startWithin of {schedule}, {}", spec.start_within)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(armed: bool, more: &str) -> ResilienceSchedule {
        serde_saphyr::from_str(&format!(
            "metadata: {{name: nightly, namespace: models, uid: s-1}}\nspec: {{test: {{name: t}}, meanTimeBetween: 1d, armed: {armed}, {more} \
             window: {{days: [Mon, Tue, Wed, Thu, Fri], from: '10:00', to: '16:00', timeZone: UTC}}}}"
        ))
        .unwrap()
    }

    #[test]
    fn a_run_that_has_waited_is_looked_at_again_and_so_is_each_of_its_faults() {
        let maker = OwnerReference { name: "nightly".into(), uid: "s-1".into(), ..OwnerReference::default() };
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        // A Monday.
        let open = at("2026-01-05T15:58:00Z");
        let reason = |schedule: Option<&ResilienceSchedule>, created: &str, moment, now| {
            lets(schedule, &maker, Some(at(created)), moment, now).map_or_else(|skip| skip.reason, |()| "")
        };
        let good = schedule(true, "");
        for moment in [Moment::Start, Moment::Fault] {
            assert_eq!(reason(Some(&good), "2026-01-05T15:57:00Z", moment, open), "");
            assert_eq!(reason(Some(&good), "2026-01-05T15:59:00Z", moment, at("2026-01-05T16:00:00Z")), "WindowClosed", "it closed while it waited");
            assert_eq!(reason(Some(&schedule(true, "blackoutDates: ['2026-01-05'],")), "2026-01-05T15:57:00Z", moment, open), "WindowClosed");
            assert_eq!(reason(Some(&schedule(false, "")), "2026-01-05T15:57:00Z", moment, open), "Leashed");
            assert_eq!(reason(None, "2026-01-05T15:57:00Z", moment, open), "NoSchedule");
        }
        assert_eq!(reason(Some(&good), "2026-01-05T15:50:00Z", Moment::Start, open), "Missed", "five minutes are its startWithin");
        assert_eq!(reason(Some(&good), "2026-01-05T15:50:00Z", Moment::Fault, open), "", "a run that goes on may last");
    }

    #[test]
    fn only_what_a_schedule_made_asks_for_leave() {
        let owned = |kind: &str, version: &str| -> ResilienceTest {
            serde_saphyr::from_str(&format!("metadata: {{name: t, ownerReferences: [{{apiVersion: {version}, kind: {kind}, name: n, uid: s-1}}]}}\nspec: {{}}"))
                .unwrap()
        };
        assert!(maker(&owned("ResilienceSchedule", "steadfast.dev/v1alpha1")).is_some());
        assert!(maker(&owned("ResilienceSchedule", "example.org/v1")).is_none());
        assert!(maker(&owned("Deployment", "apps/v1")).is_none());
    }
}
