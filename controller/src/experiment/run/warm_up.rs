//! Before the baseline: everything is in service and answers. Who watches what has been there before waits for nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use steadfast_api::{Span, golden::Verdict, report::PodState};

use super::{Conductor, Ending, lock};
use crate::{
    load::Asked,
    observe::History,
    platform::{Platform, Pod},
};

/// All must have been well for this long before the baseline begins.
const WARM: Duration = Duration::from_secs(1);
/// A target that is not well by then never will be.
const WARM_UP_MAX: Duration = Duration::from_mins(5);
/// What a platform knows when it has started is heard of within this.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// A server that ended so often by itself before the run began will do so again.
const DEATHS_MAX: u32 = 3;

impl<P: Platform> Conductor<'_, P> {
    /// Until every pod is in the Service, the first replies are good and the first golden replays match.
    pub(super) async fn warm_up(&mut self) -> Result<(), Ending> {
        let spec = &self.plan.test.spec;
        self.expected = self.platform.pods().len();
        let deadline = Instant::now() + WARM_UP_MAX;
        self.phase_end = deadline;
        let expected = self.expected;
        let serving = self.wait(deadline, |history, _| hopeless(history).map(Err).or_else(|| (history.fleet.serving().count() >= expected).then_some(Ok(()))));
        serving.await?.ok_or_else(|| Ending::NeverSteady(self.why_not_well()))?.map_err(Ending::NeverSteady)?;
        self.begin_users().await?;
        let (users, golden) = (!spec.load.is_empty(), !spec.golden.is_empty());
        let warm = self.wait(deadline, |history, now| {
            if let Some(why) = hopeless(history) {
                return Some(Err(why));
            }
            let since = history.well_since(expected, users)?;
            let replayed = !golden || history.replays_matched_on_all();
            (replayed && now - since >= WARM.as_micros() as i64).then_some(Ok(()))
        });
        warm.await?.ok_or_else(|| Ending::NeverSteady(self.why_not_well()))?.map_err(Ending::NeverSteady)
    }

    /// A watch of a target that was there before: it counts from the first request, whatever state that target is in. Returns since when.
    pub(super) async fn begin_to_watch(&mut self) -> Result<Instant, Ending> {
        let platform = self.platform;
        let is_heard = |history: &History, pod: &Pod| {
            history.fleet.find(&pod.uid).is_some_and(|index| history.fleet.pods()[index].endpoint_since.is_some() == pod.in_service)
        };
        let known = self.wait(Instant::now() + HEARD_WITHIN, |history, _| platform.pods().iter().all(|pod| is_heard(history, pod)).then_some(()));
        known.await?;
        let began = Instant::now();
        {
            let mut history = lock(self.history);
            let from = history.us(began);
            history.watched_from(from, platform.wanted());
        }
        self.begin_users().await?;
        Ok(began)
    }

    async fn begin_users(&mut self) -> Result<(), Ending> {
        let (spec, Some(sink)) = (&self.plan.test.spec, self.sink.take()) else { return Ok(()) };
        let asked = spec.load.iter().enumerate().map(|(index, load)| {
            let name = &load.inputs.golden_set;
            let set = self.plan.sets.get(name).ok_or_else(|| Ending::Broken(format!("golden set {name} was not loaded")))?;
            Ok(Asked { load: load.clone(), set: Arc::clone(&set.set), seed: spec.seed.wrapping_add(index as u64 + 1) })
        });
        let asked = asked.collect::<Result<Vec<_>, Ending>>()?;
        if asked.is_empty() {
            return Ok(());
        }
        let platform = self.platform;
        match self.brought_to_end(platform.users(asked, sink)).await {
            Ok(users) => self.users = Some(users),
            Err(error) => return Err(self.given_up.clone().unwrap_or_else(|| Ending::Broken(error.to_string()))),
        }
        self.given_up.clone().map_or(Ok(()), Err)
    }

    fn why_not_well(&self) -> String {
        let history = lock(self.history);
        let pods: Vec<String> =
            history.fleet.pods().iter().filter(|pod| pod.state() != PodState::Gone).map(|pod| format!("{} {:?}", pod.name, pod.state())).collect();
        let trouble = history.live.last_trouble().map_or_else(String::new, |_| {
            let wrong = history.replays.log.iter().rev().find_map(|replay| replay.detail.as_deref());
            wrong.map_or_else(|| "; requests failed or were answered wrongly".to_owned(), |wrong| format!("; answered wrongly: {wrong}"))
        });
        format!("after {} of warm-up not everything was well: {}{trouble}", Span::new(WARM_UP_MAX), pods.join(", "))
    }
}

/// Why waiting longer will not make the target well, if it will not.
fn hopeless(history: &History) -> Option<String> {
    let broken = history.replays.verdicts.iter().find(|judged| judged.verdict == Verdict::ReferenceBroken);
    if let Some(judged) = broken {
        let set = &history.replays.sets[usize::from(judged.set)];
        return Some(format!(
            "golden set {set:?} is broken (ReferenceBroken): its model does not give the answers that are stored in it, so nobody could say what is right;              `steadfast golden show` names the sample"
        ));
    }
    let dying = history.fleet.pods().iter().find(|pod| pod.deaths >= DEATHS_MAX && !pod.is_gone())?;
    let last = dying.last_death.as_deref().unwrap_or("its process ended");
    Some(format!("the model server of {} ended {} times before it was ready: {last}", dying.name, dying.deaths))
}
