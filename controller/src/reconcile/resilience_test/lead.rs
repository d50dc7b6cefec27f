//! One run, from a plan to a report; what becomes of it meanwhile stands in its test's status.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use kube::{Api, Resource, ResourceExt, api::ListParams};
use steadfast_api::{
    mark::{Mark, Outage},
    policy::LabelSelector,
    report::{GoldenSetReport, Report},
    resource::{LiveProgress, ResilienceTestStatus},
    sidecar::{GoldenReplay, What},
};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    ASK_WITHIN, Tests,
    report::report_name,
    status::{UNDOING, in_words, summary},
};
use crate::{
    experiment::{
        Plan, Progress,
        conclude::{About, conclude},
        hypothesis::millis,
        progress::{OutageNow, PhaseNow},
        run::{Course, Ending, Window, run},
    },
    observe::History,
    platform::kubernetes::{Bell, KubernetesOptions, KubernetesPlatform},
    reconcile::{
        fault_policy::{in_force, silence, silent},
        pods::PodFacts,
        resource::{FaultPolicy, GoldenSet, ResilienceTest},
    },
    words::some,
};

/// Evidence that waits for its reader.
const SEEN_MAX: usize = 65_536;
/// Windows that wait for their reports.
const WINDOWS_MAX: usize = 2;
/// Of a run that people look at, and of one that few do.
const DRAW_EVERY: Duration = Duration::from_secs(1);
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// FaultPolicies in a sentence.
const POLICIES_NAMED: usize = 5;
/// GoldenSets of a namespace that are looked at for a report.
const GOLDEN_SETS_MAX: u32 = 100;
/// Outages of one window that have Events of their own.
const OUTAGES_TOLD: usize = 10;

/// Name of the ConfigMap that holds the report of a watch's last window with an outage.
pub fn outage_report_name(test: &str) -> String {
    // Not with a word behind the test's name: that could be the name of another test.
    format!("steadfast-outage-{test}")
}

/// A run's status as it is so far.
pub(super) struct SoFar(Mutex<ResilienceTestStatus>);

impl SoFar {
    pub(super) fn new(status: ResilienceTestStatus) -> Self {
        Self(Mutex::new(status))
    }

    pub(super) fn now(&self) -> ResilienceTestStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(ResilienceTestStatus) -> ResilienceTestStatus) {
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *status = change(std::mem::take(&mut status));
    }
}

impl Tests {
    /// Runs `plan` to its end. Windows of a watch are told of as they end; the report is that of the whole, or of the last window.
    pub(super) async fn lead(&self, test: &ResilienceTest, plan: &Arc<Plan>, so_far: &SoFar) -> Result<Report, String> {
        let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
        let uid = test.uid().unwrap_or_default();
        let (of, golden) = (namespace.clone(), plan.test.spec.golden.clone());
        // What others have replayed in these pods is no part of the run.
        let asked = move |what: &What| match what {
            What::Golden(GoldenReplay { set, .. }) | What::GoldenVerdict { set, .. } => golden.iter().any(|golden| golden.set == *set),
            _ => true,
        };
        let seen = self.ingest.subscribe(SEEN_MAX, move |pod, what| pod.namespace == of && asked(what)).into_receiver();
        let sets = plan.test.spec.golden.iter().filter_map(|golden| Some((golden.set.as_str(), &*plan.sets.get(&golden.set)?.set, golden.every)));
        let _replays = self.golden.begin(&uid, &namespace, &plan.test.spec.target.selector, sets)?;
        let asked = plan.test.spec.load.iter().filter_map(|load| plan.sets.get(&load.inputs.golden_set)).map(|loaded| &*loaded.set);
        let _held = self.users_pods.is_some().then(|| self.golden.hold(&uid, asked));
        let platform = KubernetesPlatform::start(KubernetesOptions {
            means: Arc::clone(&self.means),
            hub: Arc::clone(&self.hub),
            ingest: Arc::clone(&self.ingest),
            run: uid.clone(),
            test: name.clone(),
            namespace: namespace.clone(),
            target: plan.test.spec.target.clone(),
            leave: self.schedules.leave_for(test),
            bell: Bell::new(self.events.clone(), test.object_ref(&())),
            users_pods: self.users_pods.clone(),
            actions: plan.test.spec.steps.iter().map(|step| step.action.clone()).collect(),
        })
        .await
        .map_err(|error| error.to_string())?;
        let platform = Arc::new(platform);
        let armed = self.armed(plan, &namespace, Instant::now()).await;
        if !armed.is_empty() {
            self.events.warn(test.object_ref(&()), "FaultsArmed", if plan.test.spec.steps.is_empty() { "Watch" } else { "Run" }, &armed_in_words(&armed));
        }
        // A watch looks for them again in each of its windows.
        let armed = if plan.test.spec.steps.is_empty() { BTreeSet::new() } else { armed };
        let (interrupt, interrupted) = watch::channel(false);
        let (told, hear) = watch::channel(Progress::default());
        let rerun = format!("kubectl -n {namespace} get resiliencetest {name} -o yaml, then apply it under another name");
        let watches = plan.test.spec.steps.is_empty();
        if watches {
            // A counter that is born with its first outage has not risen.
            self.metrics.outages.with_label_values(&[&namespace, &name]).inc_by(0);
        }
        let (send, mut windows) = mpsc::channel::<Window>(WINDOWS_MAX);
        // Windows are numbered over all leaders of a watch.
        let window = || so_far.now().windows.unwrap_or(0).saturating_add(1);
        let about = async || About {
            run_id: if watches { format!("{uid}-{}", window()) } else { uid.clone() },
            rerun: rerun.clone(),
            golden_sets: self.golden_sets(&namespace, &plan.test.spec.target.selector).await,
        };
        let (mut course, history) = {
            let work = run(plan, Arc::clone(&platform), seen, interrupted, &told, watches.then_some(send));
            let reports = async {
                while let Some((mut course, history)) = windows.recv().await {
                    course.notes.extend(platform.notes());
                    self.note(plan, &namespace, &armed, &mut course).await;
                    let report = self.conclude(plan, course, history, about().await).await?;
                    self.window(test, &report, so_far).await;
                }
                Ok::<(), String>(())
            };
            let work = std::pin::pin!(async { tokio::join!(work, reports) });
            let watching = std::pin::pin!(self.follow(test, watches, so_far, hear, &interrupt));
            match futures_util::future::select(work, watching).await {
                futures_util::future::Either::Left(((ended, reported), _)) => reported.map(|()| ended)?,
                // It only ends with the run.
                futures_util::future::Either::Right((never, _)) => match never {},
            }
        };
        course.notes.extend(platform.notes());
        self.note(plan, &namespace, &armed, &mut course).await;
        let report = self.conclude(plan, course, history, about().await).await?;
        if watches {
            self.window(test, &report, so_far).await;
        } else {
            let address = self.keep(test, &report_name(&test.name_any()), &report).await;
            so_far.update(|status| summary(&report, address, status));
        }
        Ok(report)
    }

    /// FaultPolicies that are, or since then were, in force in pods of the target. Those that were deleted meanwhile are not known any more.
    async fn armed(&self, plan: &Plan, namespace: &str, since: Instant) -> BTreeSet<String> {
        let api: Api<FaultPolicy> = Api::namespaced(self.means.client.clone(), namespace);
        let policies = match timeout(ASK_WITHIN, api.list(&ListParams::default())).await {
            Ok(Ok(policies)) => policies.items,
            Ok(Err(error)) => {
                tracing::warn!(namespace, %error, "which FaultPolicies are armed is not known");
                return BTreeSet::new();
            }
            Err(_) => return BTreeSet::new(),
        };
        let pods = self.of_target(plan, namespace);
        let labels: Vec<_> = pods.iter().map(|pod| &pod.labels).collect();
        let now = Timestamp::now();
        in_force(&policies, &labels, now.checked_sub(since.elapsed()).unwrap_or(now)).into_iter().collect()
    }

    /// Its pods that have sidecars.
    fn of_target(&self, plan: &Plan, namespace: &str) -> Vec<PodFacts> {
        let selector = &plan.test.spec.target.selector;
        self.pods.all().into_iter().filter(|pod| pod.has_sidecar && pod.namespace == namespace && selector.matches(&pod.labels)).collect()
    }

    /// What a reader must know of what others do in the target's pods: it is in the figures, and may be why the run did not come to its end.
    async fn note(&self, plan: &Plan, namespace: &str, armed: &BTreeSet<String>, course: &mut Course) {
        let armed: BTreeSet<String> = self.armed(plan, namespace, course.began).await.into_iter().chain(armed.iter().cloned()).collect();
        let mut more = String::new();
        if !armed.is_empty() {
            course.notes.push(armed_in_words(&armed));
            more = format!("; {}", armed_in_words(&armed));
        }
        let silent = silent(self.of_target(plan, namespace).iter(), &self.hub, &self.ingest, Timestamp::now());
        let is_told = !silent.is_empty() && matches!(course.ending, Ending::Broken(_) | Ending::NeverSteady(_));
        if is_told {
            more = format!("{more}; of the target's sidecars {}", silence(&silent));
        }
        if let Ending::Broken(why) | Ending::NeverSteady(why) | Ending::Halted(why) = &mut course.ending {
            why.push_str(&more);
        }
    }

    /// GoldenSets that are replayed in pods of this target; none, where the API server does not say.
    async fn golden_sets(&self, namespace: &str, target: &LabelSelector) -> Vec<GoldenSetReport> {
        let pods: Vec<_> = self.pods.all().into_iter().filter(|pod| pod.namespace == namespace && target.matches(&pod.labels)).collect();
        let api: Api<GoldenSet> = Api::namespaced(self.means.client.clone(), namespace);
        let sets = match timeout(ASK_WITHIN, api.list(&ListParams::default().limit(GOLDEN_SETS_MAX))).await {
            Ok(Ok(sets)) => sets.items,
            Ok(Err(error)) => {
                tracing::warn!(namespace, %error, "a report says nothing of GoldenSets: they could not be listed");
                return Vec::new();
            }
            Err(_) => return Vec::new(),
        };
        let matches = |set: &GoldenSet| set.spec.get().is_ok_and(|spec| pods.iter().any(|pod| spec.selector.matches(&pod.labels)));
        sets.iter().filter(|set| matches(set)).map(golden_set).collect()
    }

    /// On a thread of its own: other runs must not wait for the figures of this one.
    async fn conclude(&self, plan: &Arc<Plan>, course: Course, history: History, about: About) -> Result<Report, String> {
        let plan = Arc::clone(plan);
        spawn_blocking(move || conclude(&plan, course, &history, about)).await.map_err(|error| format!("the report could not be made: {error}"))
    }

    /// What a window of a watch came to.
    async fn window(&self, test: &ResilienceTest, report: &Report, so_far: &SoFar) {
        let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
        let address = self.keep(test, &report_name(&name), report).await;
        let mut of_outage = None;
        if !report.outages.is_empty() {
            // The next window's report takes the place of this one.
            of_outage = self.keep(test, &outage_report_name(&name), report).await;
            for outage in report.outages.iter().filter(|outage| is_news(outage)).take(OUTAGES_TOLD) {
                self.events.warn(test.object_ref(&()), "Outage", "Watch", &outage_in_words(outage));
            }
            if let Some(more) = report.outages.iter().filter(|outage| is_news(outage)).count().checked_sub(OUTAGES_TOLD).filter(|more| *more > 0) {
                self.events.warn(test.object_ref(&()), "Outages", "Watch", &format!("and {more} more outages in the same window: see the report"));
            }
        }
        // One that began in the window before was counted there.
        let began = report.outages.iter().filter(|outage| !outage.continues).count();
        self.metrics.outages.with_label_values(&[&namespace, &name]).inc_by(began as u64);
        if let Some(ratio) = report.total.availability.ratio {
            self.metrics.availability.with_label_values(&[&namespace, &name]).set(ratio);
        }
        so_far.update(|status| {
            let before = ResilienceTestStatus {
                windows: Some(status.windows.unwrap_or(0).saturating_add(1)),
                outages: Some(status.outages.unwrap_or(0).saturating_add(began as u32)),
                last_outage: report.outages.last().map(outage_in_words).or(status.last_outage),
                outage_report: of_outage.or(status.outage_report),
                ..status
            };
            summary(report, address, before)
        });
        let status = so_far.now();
        self.write(test, status).await;
    }

    /// Writes progress while the run goes on, and interrupts it when its test is deleted or its namespace takes its leave back.
    async fn follow(
        &self,
        test: &ResilienceTest,
        watches: bool,
        so_far: &SoFar,
        hear: watch::Receiver<Progress>,
        interrupt: &watch::Sender<bool>,
    ) -> std::convert::Infallible {
        let every = if watches { WATCH_EVERY } else { DRAW_EVERY };
        let (namespace, name) = (test.namespace().unwrap_or_default(), test.name_any());
        let mut begun = Begun::default();
        loop {
            sleep(every).await;
            let ends = self.shall_end(test, watches);
            if ends {
                interrupt.send_replace(true);
            }
            let now = hear.borrow().clone();
            let (said, live) = (if ends { UNDOING.to_owned() } else { in_words(&now) }, LiveProgress::from(&now));
            if watches {
                let open = (now.phase == PhaseNow::Watch).then_some(now.outages.len());
                self.metrics.watch_now(&namespace, &name, now.availability, open);
                for words in begun.news(&now.outages) {
                    self.events.warn(test.object_ref(&()), "OutageBegan", "Watch", &words);
                }
            }
            so_far.update(|status| ResilienceTestStatus { progress: Some(said), live: Some(live), ..status });
            self.write(test, so_far.now()).await;
        }
    }
}

fn armed_in_words(policies: &BTreeSet<String>) -> String {
    let names: Vec<&String> = policies.iter().collect();
    format!("faults of others are armed in pods of the target, by FaultPolicy {}: they are in every figure, the baseline's too", some(&names, POLICIES_NAMED))
}

fn golden_set(set: &GoldenSet) -> GoldenSetReport {
    let status = set.status.clone().unwrap_or_default();
    GoldenSetReport {
        name: set.name_any(),
        verdict: status.verdict,
        pods_matched: status.pods_matched,
        pods_passing: status.pods_passing,
        pods_failing: status.pods_failing,
        pods_gated: status.pods_gated,
        failing: status.failing,
    }
}

/// Open outages that were told of.
#[derive(Debug, Default)]
struct Begun(BTreeSet<String>);

impl Begun {
    /// What is to be told of those that are open now: each once, and of many at once that there are more.
    fn news(&mut self, open: &[OutageNow]) -> Vec<String> {
        self.0.retain(|pod| open.iter().any(|outage| outage.pod == *pod));
        let new: Vec<&OutageNow> = open.iter().filter(|outage| self.0.insert(outage.pod.clone())).collect();
        let words = |outage: &&OutageNow| {
            format!("{} on {}: {}, since {} s; not over, the Event Outage follows", outage.pod, outage.node, outage.cause, outage.open_for.as_secs())
        };
        let more = new.len().checked_sub(OUTAGES_TOLD).filter(|more| *more > 0);
        new.iter().take(OUTAGES_TOLD).map(words).chain(more.map(|more| format!("and {more} more at the same time"))).collect()
    }
}

/// Whether it has begun or ended in its window.
const fn is_news(outage: &Outage) -> bool {
    !outage.continues || !outage.censored
}

/// One sentence.
fn outage_in_words(outage: &Outage) -> String {
    let least = if outage.began_before { "at least " } else { "" };
    let since = |mark: Mark| Some(format!("{least}{}", millis(outage.marks.get(mark)? - outage.marks.get(Mark::Fault)?)));
    let detected = since(Mark::Detected).map(|ms| format!("; detected after {ms}")).unwrap_or_default();
    let users = match outage.routing_outage_ms {
        Some(ms) => format!("; users saw failures for {least}{}", millis(ms)),
        None if outage.began_before => String::new(),
        None => "; no user saw it".to_owned(),
    };
    let right = match (since(Mark::FirstCorrectPrediction), since(Mark::Sustained)) {
        (Some(ms), _) => format!("; first right prediction after {ms}"),
        (None, Some(ms)) => format!("; in service again after {ms}"),
        (None, None) => format!("; not recovered after {least}{}", millis(outage.capacity_outage_ms)),
    };
    format!("{} on {}: {}{detected}{users}{right}", outage.pod, outage.node, outage.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_outage_is_told_of_once_and_again_when_it_opens_again() {
        let open = |pod: &str, seconds| OutageNow { pod: pod.into(), node: "n1".into(), cause: "deleted".into(), open_for: Duration::from_secs(seconds) };
        let mut begun = Begun::default();
        assert_eq!(begun.news(&[open("a", 6)]), ["a on n1: deleted, since 6 s; not over, the Event Outage follows"]);
        assert_eq!(begun.news(&[open("a", 11)]), [""; 0]);
        assert_eq!(begun.news(&[open("a", 16), open("b", 5)]).len(), 1);
        assert_eq!(begun.news(&[]), [""; 0]);
        assert_eq!(begun.news(&[open("a", 5)]).len(), 1);
        let many: Vec<OutageNow> = (0..OUTAGES_TOLD + 3).map(|number| open(&format!("p-{number}"), 5)).collect();
        let told = begun.news(&many);
        assert_eq!((told.len(), told.last().map(String::as_str)), (OUTAGES_TOLD + 1, Some("and 3 more at the same time")));
    }
}
