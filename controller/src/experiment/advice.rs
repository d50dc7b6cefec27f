//! What to change: rules that look at where the time and the failures went, each with its evidence and what it would bring.

use steadfast_api::{
    golden::Verdict,
    mark::{Mark, Outage},
    report::{Advice, FaultWindow, Phase, PhaseKind, PlatformTimers, PodReport, Service},
    test::{Action, ResilienceTest},
};

use super::{
    hypothesis::{millis, share, thousands},
    losses::{Losses, OfOutage},
};

/// What the rules look at.
pub struct Seen<'a> {
    pub test: &'a ResilienceTest,
    pub phases: &'a [Phase],
    pub faults: &'a [FaultWindow],
    pub outages: &'a [Outage],
    pub losses: &'a Losses,
    /// Users kept their connections from one request to the next.
    pub keep_alive: bool,
    pub total: &'a Service,
    pub baseline: &'a Service,
    pub pods: &'a [PodReport],
    pub timers: Option<&'a PlatformTimers>,
}

/// Less than this is not worth a change, in milliseconds.
const WORTH_MS: f64 = 200.0;

/// Every rule that found something: wrong answers first, then what prolongs outages, then what slows requests down.
pub fn advice(seen: &Seen<'_>) -> Vec<Advice> {
    let rules = [
        wrong_answers,
        served_on_wrongly,
        ready_but_wrong,
        node_detection,
        node_eviction,
        model_load,
        probe_period,
        stale_routes,
        retries,
        slow_node,
        busy_node,
    ];
    rules.iter().filter_map(|rule| rule(seen)).collect()
}

fn advise(title: &str, evidence: String, gain: String) -> Advice {
    Advice { title: title.to_owned(), evidence, gain }
}

/// Lower median.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

impl Seen<'_> {
    /// Of pods that were lost with their node, planned or not.
    fn of_lost_nodes(&self) -> impl Iterator<Item = &Outage> {
        let planned = |fault: u32| self.faults.get(fault as usize).is_some_and(|fault| fault.action == "nodeFailure");
        self.outages.iter().filter(move |outage| outage.node_lost || outage.fault.is_some_and(planned))
    }

    /// Each outage with what requests say of it.
    fn with_losses(&self) -> impl Iterator<Item = (&Outage, &OfOutage)> {
        self.outages.iter().zip(&self.losses.outages)
    }

    /// Median of a stretch between two marks, and of the whole capacity outage, over the outages that have both.
    fn stretch<'a>(outages: impl Iterator<Item = &'a Outage>, from: Mark, to: Mark) -> Option<(f64, f64, usize)> {
        let (parts, wholes): (Vec<f64>, Vec<f64>) = outages.filter_map(|outage| Some((outage.marks.between(from, to)?, outage.capacity_outage_ms))).unzip();
        let count = parts.len();
        Some((median(parts)?, median(wholes)?, count))
    }

    /// The fault phases of steps with this action, each with what it had been asked to do.
    fn phases_of<'a>(&'a self, action: &'a str) -> impl Iterator<Item = (&'a Phase, &'a Action)> {
        self.phases.iter().filter(|phase| phase.kind == PhaseKind::Fault).filter_map(move |phase| {
            let step = self.test.spec.steps.get(phase.step? as usize)?;
            (step.action.name() == action).then_some((phase, &step.action))
        })
    }
}

fn wrong_answers(seen: &Seen<'_>) -> Option<Advice> {
    let asked = seen.phases_of("corrupt").map(|(phase, _)| wrong_of(&phase.service)).sum::<u64>();
    // Corruption is taken back before the analysis begins, but answers under way may still carry it.
    let after: u64 = seen.phases.iter().filter(|phase| phase.kind == PhaseKind::Recovery && !seen.corrupted(phase)).map(|phase| wrong_of(&phase.service)).sum();
    let elsewhere: u64 = seen.phases.iter().filter(|phase| phase.kind != PhaseKind::Recovery).map(|phase| wrong_of(&phase.service)).sum::<u64>() - asked;
    let wrong = elsewhere + after;
    if wrong == 0 {
        return None;
    }
    Some(advise(
        "Find out why the model answers wrongly",
        format!("{} answers differed from the golden ones with no fault that was asked to change them.", thousands(wrong)),
        format!("Consistency of {} instead of {}.", share(1.0), seen.total.consistency.ratio.map_or_else(String::new, share)),
    ))
}

/// Wrong answers that were asked for: did anybody keep them from the users?
fn served_on_wrongly(seen: &Seen<'_>) -> Option<Advice> {
    let (phase, wrong) = seen.phases_of("corrupt").map(|(phase, _)| (phase, wrong_of(&phase.service))).max_by_key(|(_, wrong)| *wrong)?;
    if wrong == 0 {
        return None;
    }
    let during = |at: f64| at >= phase.start_ms && at <= phase.end_ms;
    let verdicts = seen.pods.iter().flat_map(|pod| pod.verdicts.iter().map(move |point| (pod, point)));
    let failed = verdicts.filter(|(_, point)| point.verdict == Verdict::Fail && during(point.at_ms)).min_by(|a, b| a.1.at_ms.total_cmp(&b.1.at_ms));
    let lasted = phase.end_ms - phase.start_ms;
    let told = failed.map(|(pod, point)| (pod.name.as_str(), point.at_ms - phase.start_ms));
    let (evidence, gain) = match told {
        Some((pod, after)) => (
            format!("golden replays called {pod} wrong after {}, and it went on answering users", millis(after)),
            format!("Taking a pod out of the Service at that moment would have ended the wrong answers {} sooner.", millis(lasted - after)),
        ),
        None => (
            "no golden set called a pod wrong in that time".to_owned(),
            "Golden replays, or replays more often, would notice; a pod that fails them can be taken out of the Service.".to_owned(),
        ),
    };
    Some(advise(
        "Take pods that answer wrongly out of the Service",
        format!("During {:?} {} answers were wrong for {}: {evidence}.", phase.name, thousands(wrong), millis(lasted)),
        gain,
    ))
}

impl Seen<'_> {
    fn corrupted(&self, phase: &Phase) -> bool {
        phase.step.and_then(|step| self.test.spec.steps.get(step as usize)).is_some_and(|step| step.action.name() == "corrupt")
    }
}

fn wrong_of(service: &Service) -> u64 {
    service.consistency.answers_checked - service.consistency.answers_right + service.consistency.replays_mismatched
}

fn ready_but_wrong(seen: &Seen<'_>) -> Option<Advice> {
    let early: Vec<(f64, u64)> = seen
        .with_losses()
        .filter_map(|(outage, of)| {
            let first = outage.marks.get(Mark::FirstGoodResponse).or_else(|| outage.marks.get(Mark::EndpointAdded))?;
            Some((outage.marks.get(Mark::FirstCorrectPrediction)? - first, of.wrong_at_first))
        })
        // How long nobody came by says nothing of answers.
        .filter(|(ms, wrong)| *ms > WORTH_MS && *wrong > 0)
        .collect();
    let (count, wrong) = (early.len(), early.iter().map(|(_, wrong)| wrong).sum());
    let typical = median(early.into_iter().map(|(ms, _)| ms).collect())?;
    Some(advise(
        "Let a pod serve only once it answers a golden input rightly",
        format!(
            "In {count} of {} outages the pod that came back answered wrongly at first ({} answers), for {} (median) until its first correct prediction.",
            seen.outages.len(),
            thousands(wrong),
            millis(typical)
        ),
        format!("No wrong answers for {} after each of these recoveries.", millis(typical)),
    ))
}

fn node_detection(seen: &Seen<'_>) -> Option<Advice> {
    let (part, whole, count) = Seen::stretch(seen.of_lost_nodes(), Mark::Fault, Mark::EndpointRemoved)?;
    if part < WORTH_MS {
        return None;
    }
    let floor = seen.timers.map_or_else(String::new, |timers| {
        let (least, most) = timers.node_called_lost();
        format!(
            "; the cluster's own floor is {} (nodeMonitorGracePeriod {}, {})",
            if least == most { least.to_string() } else { format!("{least} to {most}") },
            timers.node_monitor_grace_period,
            timers.known_from
        )
    });
    Some(advise(
        "Take silent pods out of the Service before the node is called lost",
        format!(
            "After a node fell silent, its pods stayed in the Service for {} of {} until sustained service (median of {count}){floor}.",
            millis(part),
            millis(whole)
        ),
        format!(
            "Outlier ejection after a few failed requests would end the routing outage within about a second, {} sooner.",
            millis((part - 1000.0).max(0.0))
        ),
    ))
}

fn node_eviction(seen: &Seen<'_>) -> Option<Advice> {
    let (part, whole, count) = Seen::stretch(seen.of_lost_nodes(), Mark::EndpointRemoved, Mark::ReplacementCreated)?;
    if part < WORTH_MS || part < whole * 0.2 {
        return None;
    }
    let toleration = seen.timers.and_then(|timers| timers.toleration_seconds);
    let floor = toleration.map_or_else(String::new, |toleration| format!(", which is {toleration} here and the floor of this wait"));
    // What lies above the floor is not the toleration's doing.
    let gain = toleration.map_or(part, |toleration| part.min(toleration.get().as_secs_f64() * 1000.0));
    Some(advise(
        "Replace the pods of a lost node sooner",
        format!(
            "From withdrawing the endpoint to creating the replacement {} passed, of {} (median of {count}): that is the pods' tolerationSeconds for node.kubernetes.io/unreachable{floor} (300 s by default on Kubernetes).",
            millis(part),
            millis(whole)
        ),
        format!("Up to {} less with reduced capacity after each node loss.", millis(gain)),
    ))
}

fn model_load(seen: &Seen<'_>) -> Option<Advice> {
    let (part, whole, count) = Seen::stretch(seen.outages.iter(), Mark::ContainerStarted, Mark::ModelLoaded)?;
    if part < WORTH_MS || part < whole * 0.25 {
        return None;
    }
    Some(advise(
        "Load the model faster",
        format!("Starting the server and loading the model took {} of {} until sustained service (median of {count}).", millis(part), millis(whole)),
        format!(
            "Every outage is shorter by what loading is shortened: up to {}. A local copy of the model, a smaller format, or a warm spare pod.",
            millis(part)
        ),
    ))
}

fn probe_period(seen: &Seen<'_>) -> Option<Advice> {
    let period = seen.timers?.readiness.as_ref()?.period;
    let (part, whole, count) = Seen::stretch(seen.outages.iter(), Mark::ModelLoaded, Mark::Ready)?;
    let ms = period.get().as_secs_f64() * 1000.0;
    if part < WORTH_MS || part > 1.5 * ms {
        return None;
    }
    Some(advise(
        "Ask for readiness more often",
        format!("A loaded model waited {} to be found ready, of {} (median of {count}); the probe's period is {period}.", millis(part), millis(whole)),
        format!("With a fifth of the period, about {} less in every outage.", millis(part * 0.8)),
    ))
}

fn stale_routes(seen: &Seen<'_>) -> Option<Advice> {
    let late: Vec<f64> = seen.losses.outages.iter().filter_map(|of| of.late_ms).filter(|ms| *ms > WORTH_MS).collect();
    let count = late.len();
    let typical = median(late)?;
    let timeout = seen.test.spec.load.iter().map(|load| load.timeout).max()?;
    let evidence = format!(
        "In {count} of {} outages requests were still sent to the lost pod, and failed, until {} (median) after its endpoint had gone, while another pod was in service; their timeout is {timeout}",
        seen.outages.len(),
        millis(typical)
    );
    Some(if seen.keep_alive {
        // On a connection that was kept, or by somebody who has not heard yet.
        advise(
            "Stop sending to a pod that has left the Service",
            format!("{evidence}."),
            format!("Closing connections to removed endpoints would end these routing outages up to {} sooner.", millis(typical)),
        )
    } else {
        advise(
            "Let nodes hear sooner which endpoints are gone",
            format!("{evidence}. Each had a connection of its own: so long it took until kube-proxy on the users' node led none of them there any more."),
            format!(
                "A shorter minSyncPeriod of kube-proxy (1s by default), or a proxy that hears of endpoints directly, would end these routing outages up to {} sooner.",
                millis(typical)
            ),
        )
    })
}

fn retries(seen: &Seen<'_>) -> Option<Advice> {
    let all = &seen.total.availability;
    let retriable = seen.losses.retriable;
    if retriable == 0 || all.attempted == 0 {
        return None;
    }
    Some(advise(
        "Retry once on another pod",
        format!(
            "{} of {} requests ended without the model server's answer while another pod was in service; inference can be asked again without harm.",
            thousands(retriable),
            thousands(all.attempted)
        ),
        format!(
            "If every retry had reached a healthy pod: availability {} instead of {}.",
            share((all.good + retriable).min(all.attempted) as f64 / all.attempted as f64),
            share(all.ratio?)
        ),
    ))
}

fn slow_node(seen: &Seen<'_>) -> Option<Advice> {
    let base = seen.baseline.latency.p99_ms;
    let (phase, action) = seen.phases_of("networkLatency").max_by(|(a, _), (b, _)| a.service.latency.p99_ms.total_cmp(&b.service.latency.p99_ms))?;
    let Action::NetworkLatency(latency) = action else { return None };
    let p99 = phase.service.latency.p99_ms;
    if seen.baseline.latency.count == 0 || p99 < 3.0 * base || p99 < 0.5 * latency.delay.get().as_secs_f64() * 1000.0 {
        return None;
    }
    Some(advise(
        "Hedge slow requests",
        format!(
            "With {} on {}, p99 rose from {} to {}: users waited for the slow node although others were fast.",
            latency.delay,
            place(seen, phase),
            millis(base),
            millis(p99)
        ),
        format!("A second request to another pod once the first is slower than the usual p99 would keep p99 near {}.", millis(2.0 * base)),
    ))
}

fn place(seen: &Seen<'_>, phase: &Phase) -> String {
    let fault = seen.faults.iter().find(|fault| Some(fault.step) == phase.step && fault.round == phase.round);
    fault.map_or_else(String::new, |fault| fault.nodes.join(", "))
}

fn busy_node(seen: &Seen<'_>) -> Option<Advice> {
    let base = seen.baseline.latency.p99_ms;
    let (phase, _) = seen.phases_of("cpuPressure").max_by(|(a, _), (b, _)| a.service.latency.p99_ms.total_cmp(&b.service.latency.p99_ms))?;
    let p99 = phase.service.latency.p99_ms;
    if seen.baseline.latency.count == 0 || p99 < 2.0 * base || p99 - base < 1.0 {
        return None;
    }
    Some(advise(
        "Reserve CPU for the model server",
        format!("While a neighbour burnt CPU on {}, p99 rose from {} to {}.", place(seen, phase), millis(base), millis(p99)),
        format!("CPU requests equal to what the server uses at peak keep its share: up to {} less at p99.", millis(p99 - base)),
    ))
}

#[cfg(test)]
#[path = "advice_tests.rs"]
mod tests;
