//! One step: whom it hits, its fault in force for its time, the fault undone, and the analysis until all is well again.

use std::time::{Duration, Instant};

use steadfast_api::{
    Percent, Span,
    fault::{Blackhole, Corrupt, Fault},
    report::PhaseKind,
    test::{Action, LatencyBy, Selection, Step},
};

use super::{Conductor, Ending, FaultSpan, lock};
use crate::{
    experiment::{progress::PhaseNow, select},
    observe::marks::Planned,
    platform::{Order, Platform, StepFault},
    words::{NAMES_MAX, some},
};

/// Beyond a step's own time, until its fault ends by itself: longer than undoing it takes.
const EXPIRY_MARGIN: Duration = Duration::from_secs(30);

impl<P: Platform> Conductor<'_, P> {
    pub(super) async fn step(&mut self, round: u32, index: u32, step: &Step) -> Result<(), Ending> {
        let platform = self.platform;
        self.alongside(platform.may_break()).await.map_err(Ending::Halted)?;
        let (nodes, pods) = self.choose(step).await?;
        let order = order(step, &nodes, &pods);
        let touched: Vec<String> = if nodes.is_empty() {
            pods.clone()
        } else {
            self.platform.pods().into_iter().filter(|pod| nodes.contains(&pod.node)).map(|pod| pod.name).collect()
        };
        if nodes.is_empty() && pods.is_empty() {
            return Err(Ending::Broken(format!("step {:?} found nothing to hit: no pod of the target is in service", step.name)));
        }
        let asked = Instant::now();
        let expires = Span::new(step.duration.get() + grace(&step.action) + EXPIRY_MARGIN);
        let platform = self.platform;
        let told = StepFault { step: &step.name, action: step.action.name(), nodes: &nodes, pods: &pods };
        platform.tell(told, true);
        let in_force = match self.brought_to_end(platform.apply(order, expires)).await {
            Ok(in_force) => in_force,
            Err(error) => {
                platform.tell(told, false);
                let broken = || Ending::Broken(format!("step {:?} could not be carried out: {error}", step.name));
                return Err(self.given_up.clone().unwrap_or_else(broken));
            }
        };
        // What takes long to be made lasts no shorter for it.
        let made = Instant::now();

        let takes = step.action.takes_pods();
        // Pods confirm a fault one after the other, and the first request is touched before the first of them has: nothing is before the moment of asking.
        let start = if takes { in_force.since.max(asked) } else { asked };
        let fault = self.course.faults.len();
        {
            let mut history = lock(self.history);
            let planned = Planned {
                index: fault as u32,
                since: history.us(start),
                until: None,
                takes,
                pods: pods.clone(),
                nodes: nodes.clone(),
                cause: format!("{} in step {:?}", step.action.name(), step.name),
            };
            let asked = history.us(asked).min(planned.since);
            history.fault(asked, planned);
        }
        let on = some(if nodes.is_empty() { &pods } else { &nodes }, NAMES_MAX);
        self.course.faults.push(FaultSpan {
            step: index,
            round,
            start,
            end: start,
            nodes,
            pods: touched,
            evidence: Vec::new(),
            doubts: Vec::new(),
            undone: None,
        });
        self.in_force.push((fault, in_force));
        if let Some(ending) = self.given_up.clone() {
            return Err(ending);
        }

        if !step.duration.is_zero() {
            let name = step.name.clone();
            self.phase(PhaseNow::Fault { name, on }, PhaseKind::Fault, &step.name, round, Some(index), start, step.duration.get());
            self.wait(made + step.duration.get(), |_, _| None::<()>).await?;
        }
        let over = if step.duration.is_zero() { start } else { Instant::now() };
        self.course.faults[fault].end = over;
        let stable = &self.plan.test.spec.stable;
        let name = step.name.clone();
        self.phase(PhaseNow::Recovery { name }, PhaseKind::Recovery, &step.name, round, Some(index), over, stable.within.get());
        self.undo().await;
        self.analyse(over, stable.within.get(), stable.hold.get()).await
    }

    /// Until all has been well for `hold`, or until the deadline.
    async fn analyse(&mut self, over: Instant, within: Duration, hold: Duration) -> Result<(), Ending> {
        let (expected, users) = (self.expected, !self.plan.test.spec.load.is_empty());
        let over_us = lock(self.history).us(over);
        let stable = self
            .wait(over + within, |history, now| {
                let since = history.well_since(expected, users)?.max(over_us);
                (now - since >= hold.as_micros() as i64).then_some(since)
            })
            .await?;
        if let Some(phase) = self.course.phases.last_mut() {
            phase.stable = stable.map(|since| over + Duration::from_micros((since - over_us).max(0) as u64));
        }
        if stable.is_none() && lock(self.history).fleet.serving().count() == 0 {
            return Err(Ending::Broken("no pod was in service any more at the deadline of the analysis, so there was nothing left to test".to_owned()));
        }
        Ok(())
    }

    /// Exact names, drawn among nodes that hold a pod in service, or among pods in service.
    async fn choose(&mut self, step: &Step) -> Result<(Vec<String>, Vec<String>), Ending> {
        let serving: Vec<_> = self.platform.pods().into_iter().filter(|pod| pod.in_service).collect();
        if let Some(selection) = step.action.nodes() {
            let platform = self.platform;
            let may = self.alongside(platform.choosable(&step.action)).await;
            let may = may.map_err(|error| Ending::Broken(format!("step {:?} may hit nothing: {error}", step.name)))?;
            let candidates: Vec<String> = may.into_iter().filter(|node| serving.iter().any(|pod| pod.node == *node)).collect();
            return Ok((select::draw(selection, &candidates, &mut self.rng), Vec::new()));
        }
        let names: Vec<String> = serving.into_iter().map(|pod| pod.name).collect();
        // What chooses neither is about the whole target.
        Ok((Vec::new(), select::draw(step.action.pods().unwrap_or(Selection::All), &names, &mut self.rng)))
    }

    pub(super) async fn undo(&mut self) {
        let platform = self.platform;
        for (fault, in_force) in std::mem::take(&mut self.in_force) {
            let undone = self.brought_to_end(platform.undo(in_force)).await;
            let at = Instant::now();
            let span = &mut self.course.faults[fault];
            span.evidence = undone.evidence;
            span.doubts = undone.doubts;
            span.undone = undone.left_behind.is_empty().then_some(at);
            let step = &self.plan.test.spec.steps[span.step as usize];
            platform.tell(StepFault { step: &step.name, action: step.action.name(), nodes: &span.nodes, pods: &span.pods }, false);
            self.course.left_behind.extend(undone.left_behind);
            let mut history = lock(self.history);
            let until = history.us(at);
            history.fault_over(fault as u32, until);
        }
    }
}

fn grace(action: &Action) -> Duration {
    if let Action::PodKill(action) = action { action.grace_period.get() } else { Duration::ZERO }
}

fn order(step: &Step, nodes: &[String], pods: &[String]) -> Order {
    let (nodes, pods) = (nodes.to_vec(), pods.to_vec());
    // What a network loses is not answered: nobody is told, and users wait.
    let lost = || Fault::Blackhole(Blackhole { duration: None });
    match &step.action {
        Action::NetworkLatency(latency) if latency.by == LatencyBy::Agent => Order::DelayNodes { nodes, delay: latency.as_delay(), lasts: step.duration },
        Action::NetworkLatency(latency) => Order::Requests { pods, nodes, fault: Fault::Delay(latency.as_delay().into()), share: Percent::HUNDRED },
        Action::NetworkLoss(loss) => Order::Requests { pods, nodes, fault: lost(), share: loss.share },
        Action::NetworkPartition(_) => Order::Requests { pods, nodes, fault: lost(), share: Percent::HUNDRED },
        Action::PodKill(kill) => Order::Kill { pods, grace: kill.grace_period },
        Action::PodHoldDown(_) => Order::HoldDown { pods },
        Action::Evict(_) => Order::Evict { pods },
        Action::ContainerKill(kill) => Order::KillContainers { pods, container: kill.container.clone() },
        Action::Rollout(rollout) => Order::RollOut { container: rollout.container.clone(), image: rollout.image.clone() },
        Action::Scale(scale) => Order::Scale { replicas: scale.replicas },
        Action::NodeFailure(failure) => Order::LoseNodes { nodes, by: failure.by, lasts: step.duration },
        Action::Drain(drain) => Order::Drain { nodes, empties: drain.delete_empty_dir_data },
        Action::Cordon(_) => Order::Cordon { nodes },
        Action::Taint(taint) => Order::Taint { nodes, key: taint.key.clone(), value: taint.value.clone(), effect: taint.effect },
        Action::CpuPressure(pressure) if nodes.is_empty() => Order::BurnPods { pods, load: pressure.load },
        Action::CpuPressure(pressure) => Order::Burn { nodes, load: pressure.load },
        Action::Corrupt(corrupt) => Order::Requests { pods, nodes, fault: Fault::Corrupt(Corrupt::shift(corrupt.magnitude)), share: corrupt.share },
    }
}
