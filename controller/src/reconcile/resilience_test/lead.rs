//! One run, from a plan to a report; what becomes of it meanwhile stands in its test's status.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{Resource, ResourceExt};
use steadfast_api::{
    mark::{Mark, Outage},
    report::Report,
    resource::{LiveProgress, ResilienceTestStatus},
    sidecar::{GoldenReplay, What},
};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};

use super::{
    Tests,
    report::report_name,
    status::{in_words, summary},
};
use crate::{
    experiment::{
        Plan, Progress,
        conclude::{About, conclude},
        hypothesis::millis,
        run::{Course, Window, run},
    },
    observe::History,
    platform::kubernetes::{KubernetesOptions, KubernetesPlatform},
    reconcile::resource::ResilienceTest,
};

/// Evidence that waits for its reader.
const SEEN_MAX: usize = 65_536;
/// Where a load does not say how many requests may be under way at once.
const IN_FLIGHT: u32 = 1_000;
/// Windows that wait for their reports.
const WINDOWS_MAX: usize = 2;
/// Of a run that people look at, and of one that few do.
const DRAW_EVERY: Duration = Duration::from_secs(1);
const WATCH_EVERY: Duration = Duration::from_secs(5);
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
        let in_flight = plan.test.spec.load.iter().map(|load| load.max_in_flight).fold(0, u32::saturating_add);
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
            in_flight_max: if in_flight == 0 { IN_FLIGHT } else { in_flight.min(100_000) },
            leave: self.schedules.leave_for(test),
            users_pods: self.users_pods.clone(),
            actions: plan.test.spec.steps.iter().map(|step| step.action.clone()).collect(),
        })
        .await
        .map_err(|error| error.to_string())?;
        let platform = Arc::new(platform);
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
        let about = || About { run_id: if watches { format!("{uid}-{}", window()) } else { uid.clone() }, rerun: rerun.clone() };
        let (mut course, history) = {
            let work = run(plan, Arc::clone(&platform), seen, interrupted, &told, watches.then_some(send));
            let reports = async {
                while let Some((mut course, history)) = windows.recv().await {
                    course.notes.extend(platform.notes());
                    let report = self.conclude(plan, course, history, about()).await?;
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
        let report = self.conclude(plan, course, history, about()).await?;
        if watches {
            self.window(test, &report, so_far).await;
        } else {
            let address = self.keep(test, &report_name(&test.name_any()), &report).await;
            so_far.update(|status| summary(&report, address, status));
        }
        Ok(report)
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
        loop {
            sleep(every).await;
            if self.shall_end(test, watches) {
                interrupt.send_replace(true);
                continue;
            }
            let (said, live) = {
                let now = hear.borrow();
                (in_words(&now), LiveProgress::from(&*now))
            };
            so_far.update(|status| ResilienceTestStatus { progress: Some(said), live: Some(live), ..status });
            self.write(test, so_far.now()).await;
        }
    }
}

/// Whether it has begun or ended in its window.
const fn is_news(outage: &Outage) -> bool {
    !outage.continues || !outage.censored
}

/// One sentence.
fn outage_in_words(outage: &Outage) -> String {
    let since = |mark: Mark| Some(millis(outage.marks.get(mark)? - outage.marks.get(Mark::Fault)?));
    let detected = since(Mark::Detected).map(|ms| format!("; detected after {ms}")).unwrap_or_default();
    let users = outage.routing_outage_ms.map_or("; no user saw it".to_owned(), |ms| format!("; users saw failures for {}", millis(ms)));
    let right = match (since(Mark::FirstCorrectPrediction), since(Mark::Sustained)) {
        (Some(ms), _) => format!("; first right prediction after {ms}"),
        (None, Some(ms)) => format!("; in service again after {ms}"),
        (None, None) => format!("; not recovered after {}", millis(outage.capacity_outage_ms)),
    };
    format!("{} on {}: {}{detected}{users}{right}", outage.pod, outage.node, outage.cause)
}
