//! Did it hold? Each hypothesis against what was seen; and the verdict on the run.
//!
//! No data never passes: a hypothesis about something that did not occur is inconclusive, and so is a run with a fault of which nothing proves that it
//! happened.

use steadfast_api::{
    Span,
    mark::Outage,
    report::{FaultWindow, HypothesisResult, Phase, PhaseKind, RunOutcome},
    test::{AtLeast, During, Hypothesis, LatencyAtMost, RecoveredAt, RecoveryAtMost},
};

use super::{run::Ending, score::mark_of};
use crate::{
    observe::{availability::Measured, recovery::until},
    words::some,
};

/// Faults, and doubts about one of them, in the sentence of a verdict.
const DOUBTS_SAID: usize = 3;

/// What a hypothesis is held against.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Facts<'a> {
    /// Of a part of the run.
    pub measured: &'a dyn Fn(During) -> Measured,
    pub outages: &'a [Outage],
    /// A fault that takes pods away was carried out.
    pub pods_were_taken: bool,
    /// One that left no pod wanted was.
    pub scaled_to_nothing: bool,
    /// Any fault was.
    pub faults: usize,
    /// Nothing was to be broken: what happened was watched.
    pub watches: bool,
    /// The run reached its end: what was seen until an early one proves no absence.
    pub complete: bool,
}

/// The hypothesis in words, and whether it held.
pub fn evaluate(hypothesis: &Hypothesis, facts: &Facts<'_>) -> HypothesisResult {
    let (statement, (outcome, mut observed)) = match hypothesis {
        Hypothesis::Availability(goal) => (at_least("availability", goal), availability(goal, facts)),
        Hypothesis::Consistency(goal) => (at_least("consistency", goal), consistency(goal, facts)),
        Hypothesis::Latency(goal) => (format!("p{} latency ≤ {} {}", quantile(goal), goal.at_most, during(goal.during)), latency(goal, facts)),
        Hypothesis::Recovery(goal) => (format!("recovery ≤ {} until {}", goal.at_most, recovered(goal.until)), recovery(goal, facts)),
    };
    // Seen over part of the run only: a failure stays one, a success may not have lasted.
    let mut outcome = if outcome == RunOutcome::Pass && !facts.complete { RunOutcome::Inconclusive } else { outcome };
    // So is an outage whose begin nobody saw: what users met until then is in no figure.
    let unseen = facts.outages.iter().find(|outage| outage.began_before && !outage.continues);
    if let Some(outage) = unseen.filter(|_| outcome == RunOutcome::Pass) {
        outcome = RunOutcome::Inconclusive;
        observed = format!("{observed} since somebody watched, and {} was lost before that", outage.pod);
    }
    HypothesisResult { statement, outcome, observed }
}

fn at_least(what: &str, goal: &AtLeast) -> String {
    format!("{what} ≥ {} {}", goal.at_least, during(goal.during))
}

const fn during(during: During) -> &'static str {
    match during {
        During::Run => "during the run",
        During::Baseline => "during the baseline",
        During::Faults => "during the faults",
        During::Recovery => "during recovery",
    }
}

const fn recovered(until: RecoveredAt) -> &'static str {
    match until {
        RecoveredAt::Ready => "ready",
        RecoveredAt::FirstGoodResponse => "the first good response",
        RecoveredAt::FirstCorrectPrediction => "the first correct prediction",
        RecoveredAt::Sustained => "sustained good service",
    }
}

fn quantile(goal: &LatencyAtMost) -> String {
    goal.quantile.to_string().trim_end_matches('%').to_owned()
}

const fn pass_if(held: bool) -> RunOutcome {
    if held { RunOutcome::Pass } else { RunOutcome::Fail }
}

fn availability(goal: &AtLeast, facts: &Facts<'_>) -> (RunOutcome, String) {
    let seen = (facts.measured)(goal.during).service().availability;
    // In integers: 99.9 % of 1,000 is 999, not 998.999….
    let held = u128::from(seen.good) * 1_000_000 >= u128::from(seen.attempted) * u128::from(goal.at_least.ppm());
    match seen.ratio {
        Some(ratio) => (pass_if(held), format!("{} of {} requests", share(ratio), thousands(seen.attempted))),
        None => (RunOutcome::Inconclusive, "no request was due then".to_owned()),
    }
}

fn consistency(goal: &AtLeast, facts: &Facts<'_>) -> (RunOutcome, String) {
    let seen = (facts.measured)(goal.during).service().consistency;
    let checked = seen.answers_checked + seen.replays_matched + seen.replays_mismatched;
    let right = seen.answers_right + seen.replays_matched;
    let held = u128::from(right) * 1_000_000 >= u128::from(checked) * u128::from(goal.at_least.ppm());
    match seen.ratio {
        Some(ratio) => (pass_if(held), format!("{} of {} checked answers", share(ratio), thousands(checked))),
        None => (RunOutcome::Inconclusive, "no answer was checked then".to_owned()),
    }
}

fn latency(goal: &LatencyAtMost, facts: &Facts<'_>) -> (RunOutcome, String) {
    let measured = (facts.measured)(goal.during);
    match measured.latencies().quantile_ms(goal.quantile.ratio()) {
        Some(ms) => (pass_if(ms <= ms_of(goal.at_most)), format!("{} of {} requests", millis(ms), thousands(measured.service().latency.count))),
        None => (RunOutcome::Inconclusive, "no request was due then".to_owned()),
    }
}

fn recovery(goal: &RecoveryAtMost, facts: &Facts<'_>) -> (RunOutcome, String) {
    let most = ms_of(goal.at_most);
    let Some(count) = std::num::NonZeroUsize::new(facts.outages.len()) else {
        return if facts.scaled_to_nothing {
            let why = "the target was scaled to nothing: pods that nobody wants are no outage, and no recovery is measured; ask for availability during faults";
            (RunOutcome::Inconclusive, why.to_owned())
        } else if facts.pods_were_taken {
            (RunOutcome::Inconclusive, "pods were taken away, and no outage was seen".to_owned())
        } else if facts.watches {
            (RunOutcome::Pass, "no outage".to_owned())
        } else if facts.faults == 0 {
            (RunOutcome::Inconclusive, "no fault was carried out, so there was nothing to recover from".to_owned())
        } else {
            (RunOutcome::Pass, "no pod was lost".to_owned())
        };
    };
    // A moment that was not seen came no later than the good service that followed it.
    let took = |outage: &Outage| until(outage, mark_of(goal.until)).or_else(|| until(outage, steadfast_api::mark::Mark::Sustained));
    let outages = if count.get() == 1 { "1 outage".to_owned() } else { format!("{count} outages") };
    let slowest = facts.outages.iter().filter_map(took).fold(0.0, f64::max);
    let unrecovered: Vec<&Outage> = facts.outages.iter().filter(|outage| took(outage).is_none()).collect();
    let longest_open = unrecovered.iter().map(|outage| outage.capacity_outage_ms).fold(0.0, f64::max);
    if slowest > most || longest_open > most {
        let says = if longest_open > slowest { format!("not recovered after {}", millis(longest_open)) } else { format!("slowest {}", millis(slowest)) };
        return (RunOutcome::Fail, format!("{says}, of {outages}"));
    }
    if facts.outages.iter().any(|outage| outage.began_before) {
        return (RunOutcome::Inconclusive, format!("at least {} of {outages}, one of which began before anybody watched", millis(slowest.max(longest_open))));
    }
    if unrecovered.is_empty() {
        return (RunOutcome::Pass, format!("slowest {} of {outages}", millis(slowest)));
    }
    (RunOutcome::Inconclusive, format!("{} of {outages} had not recovered, and were watched for less than that", unrecovered.len()))
}

/// The verdict on the run, and why, in one sentence.
pub fn verdict(ending: &Ending, hypothesis: &[HypothesisResult], phases: &[Phase], faults: &[FaultWindow], left_behind: &[String]) -> (RunOutcome, String) {
    match ending {
        Ending::Halted(reason) => return (RunOutcome::Halted, format!("Halted: {reason}.")),
        Ending::Interrupted => return (RunOutcome::Inconclusive, "Interrupted before the end; what was seen until then is here.".to_owned()),
        Ending::Broken(why) => return (RunOutcome::Inconclusive, format!("The run could not go on: {why}.")),
        Ending::NeverSteady(why) => return (RunOutcome::Inconclusive, format!("The target never became steady, so nothing could be tested: {why}.")),
        Ending::Complete => (),
    }
    if let Some(failed) = hypothesis.iter().find(|result| result.outcome == RunOutcome::Fail) {
        let more = match hypothesis.iter().filter(|result| result.outcome == RunOutcome::Fail).count() - 1 {
            0 => String::new(),
            more => format!(", and {more} more did not hold"),
        };
        return (RunOutcome::Fail, format!("It did not hold: {}, but it was {}{more}.", failed.statement, failed.observed));
    }
    let unstable = |phase: &&Phase| phase.kind == PhaseKind::Recovery && phase.stable_ms.is_none();
    if let Some(phase) = phases.iter().find(unstable) {
        let after = millis(phase.end_ms - phase.start_ms);
        return (RunOutcome::Fail, format!("It did not become stable again within {after} after {:?}.", phase.name));
    }
    if let Some(fault) = faults.iter().find(|fault| fault.evidence.is_empty()) {
        let why = if fault.doubts.is_empty() { String::new() } else { format!(": {}", fault.doubts.join("; ")) };
        return (RunOutcome::Inconclusive, format!("Nothing proves that {:?} ({}) took place{why}.", fault.name, fault.action));
    }
    if let Some(unknown) = hypothesis.iter().find(|result| result.outcome == RunOutcome::Inconclusive) {
        return (RunOutcome::Inconclusive, format!("It cannot be told whether {}: {}.", unknown.statement, unknown.observed));
    }
    if let Some(left) = left_behind.first() {
        return (RunOutcome::Inconclusive, format!("It held, but something could not be undone: {left}."));
    }
    if hypothesis.is_empty() && faults.is_empty() {
        return (RunOutcome::Inconclusive, "Nothing was asked: the experiment has neither a step nor a hypothesis.".to_owned());
    }
    let held = match hypothesis.len() {
        0 => "No hypothesis was given".to_owned(),
        1 => "The hypothesis held".to_owned(),
        count => format!("All {count} hypotheses held"),
    };
    let stable = match faults.len() {
        0 => String::new(),
        1 => ", and the target was stable again after the fault".to_owned(),
        count => format!(", and the target was stable again after each of {count} faults"),
    };
    (RunOutcome::Pass, format!("{held}{stable}.{}", partly(faults)))
}

/// What of the faults was not done, or not seen: who reads that a run passed must know how much it was put to. It changes no outcome, since something of each fault
/// is proved, and a step that respects budgets promises no more.
fn partly(faults: &[FaultWindow]) -> String {
    let partly: Vec<String> = faults
        .iter()
        .filter(|fault| !fault.doubts.is_empty())
        .map(|fault| format!("{:?} ({} of {} pods): {}", fault.name, fault.action, fault.pods.len(), some(&fault.doubts, DOUBTS_SAID)))
        .collect();
    if partly.is_empty() { String::new() } else { format!(" Not all of it took place, or was seen to: {}.", some(&partly, DOUBTS_SAID)) }
}

fn ms_of(span: Span) -> f64 {
    span.get().as_secs_f64() * 1000.0
}

/// `99.93%`, never rounded up to 100 %.
pub fn share(ratio: f64) -> String {
    if ratio >= 1.0 {
        return "100%".to_owned();
    }
    let floor = (ratio * 1e5).floor() / 1e3;
    format!("{floor:.3}").trim_end_matches('0').trim_end_matches('.').to_owned() + "%"
}

/// `0.42 ms`, `350 ms`, `12.3 s`.
pub fn millis(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms >= 1000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms >= 100.0 => format!("{ms:.0} ms"),
        ms if ms >= 10.0 => format!("{ms:.1} ms"),
        ms => format!("{ms:.2} ms"),
    }
}

/// `12,000`.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use steadfast_api::mark::{Mark, Marks};

    use super::*;
    use crate::observe::requests::{Kind, PodName, Request};

    fn measured(good: usize, failed: usize) -> Measured {
        let mut measured = Measured::default();
        for index in 0..good + failed {
            measured.request(&Request::new(0, 0, 5000, PodName::NONE, if index < good { Kind::Right } else { Kind::Silence }));
        }
        measured
    }

    fn outage(sustained: Option<f64>, length: f64) -> Outage {
        let mut marks = Marks::default();
        marks.set(Mark::Fault, 0.0);
        if let Some(at) = sustained {
            marks.set(Mark::Sustained, at);
        }
        Outage {
            id: 1,
            pod: String::new(),
            uid: String::new(),
            node: String::new(),
            replacement: None,
            replacement_node: None,
            fault: None,
            cause: String::new(),
            node_lost: false,
            continues: false,
            began_before: false,
            marks,
            routing_outage_ms: None,
            capacity_outage_ms: length,
            censored: sustained.is_none(),
        }
    }

    fn facts<'a>(measured: &'a dyn Fn(During) -> Measured, outages: &'a [Outage], taken: bool) -> Facts<'a> {
        Facts { measured, outages, pods_were_taken: taken, scaled_to_nothing: false, faults: 1, watches: false, complete: true }
    }

    fn judge(yaml: &str, good: usize, failed: usize, outages: &[Outage], taken: bool) -> (RunOutcome, String) {
        let hypothesis: Hypothesis = steadfast_api::read::from_yaml("h", yaml).unwrap();
        let result = evaluate(&hypothesis, &facts(&|_| measured(good, failed), outages, taken));
        (result.outcome, format!("{}: {}", result.statement, result.observed))
    }

    #[test]
    fn a_goal_is_met_exactly_at_its_figure() {
        let goal = "availability: {atLeast: 99.9%}";
        assert_eq!(judge(goal, 999, 1, &[], false), (RunOutcome::Pass, "availability ≥ 99.9% during the run: 99.9% of 1,000 requests".to_owned()));
        assert_eq!(judge(goal, 998, 1, &[], false).0, RunOutcome::Fail);
        assert_eq!(judge("latency: {quantile: 99%, atMost: 5ms}", 10, 0, &[], false).0, RunOutcome::Pass);
        assert_eq!(judge("latency: {quantile: 99.9%, atMost: 4ms}", 10, 0, &[], false).1, "p99.9 latency ≤ 4ms during the run: 5.00 ms of 10 requests");
    }

    #[test]
    fn no_data_never_passes() {
        for goal in ["availability: {atLeast: 0%}", "consistency: {atLeast: 0%}", "latency: {quantile: 50%, atMost: 1h}"] {
            assert_eq!(judge(goal, 0, 0, &[], false).0, RunOutcome::Inconclusive, "{goal}");
        }
        assert_eq!(judge("recovery: {atMost: 1h}", 1, 0, &[], true).0, RunOutcome::Inconclusive);
        assert_eq!(judge("recovery: {atMost: 1h}", 1, 0, &[], false).0, RunOutcome::Pass);
        let hypothesis: Hypothesis = steadfast_api::read::from_yaml("h", "recovery: {atMost: 1h}").unwrap();
        let seen = |_| measured(1, 0);
        let nothing = Facts { faults: 0, ..facts(&seen, &[], false) };
        assert_eq!(evaluate(&hypothesis, &nothing).outcome, RunOutcome::Inconclusive, "no fault, nothing to recover from");
        let away = evaluate(&hypothesis, &Facts { scaled_to_nothing: true, faults: 1, ..nothing });
        assert!(away.outcome == RunOutcome::Inconclusive && away.observed.contains("scaled to nothing"), "{away:?}");
        assert_eq!(verdict(&Ending::Complete, &[], &[], &[], &[]).0, RunOutcome::Inconclusive, "nothing was asked");
    }

    #[test]
    fn an_unrecovered_outage_fails_only_once_it_has_lasted_longer_than_allowed() {
        let goal = "recovery: {atMost: 10s}";
        for (outages, outcome) in [
            (vec![outage(Some(9_000.0), 9_000.0)], RunOutcome::Pass),
            (vec![outage(Some(9_000.0), 9_000.0), outage(None, 4_000.0)], RunOutcome::Inconclusive),
            (vec![outage(Some(9_000.0), 9_000.0), outage(None, 11_000.0)], RunOutcome::Fail),
            (vec![outage(Some(11_000.0), 11_000.0), outage(None, 4_000.0)], RunOutcome::Fail),
        ] {
            assert_eq!(judge(goal, 1, 0, &outages, true).0, outcome, "{outages:?}");
        }
    }

    #[test]
    fn a_success_that_was_not_watched_to_the_end_is_inconclusive_and_a_failure_stays_one() {
        let hypothesis: Hypothesis = steadfast_api::read::from_yaml("h", "availability: {atLeast: 50%}").unwrap();
        let early = |good, failed| evaluate(&hypothesis, &Facts { complete: false, ..facts(&|_| measured(good, failed), &[], false) }).outcome;
        assert_eq!((early(1, 0), early(1, 3)), (RunOutcome::Inconclusive, RunOutcome::Fail));
    }

    #[test]
    fn a_watch_that_saw_no_outage_had_none_to_recover_from() {
        let hypothesis: Hypothesis = steadfast_api::read::from_yaml("h", "recovery: {atMost: 60s, until: firstCorrectPrediction}").unwrap();
        let seen = |_| measured(1, 0);
        let quiet = Facts { faults: 0, watches: true, ..facts(&seen, &[], false) };
        let result = evaluate(&hypothesis, &quiet);
        assert_eq!((result.outcome, result.observed.as_str()), (RunOutcome::Pass, "no outage"));
    }

    #[test]
    fn an_outage_that_began_before_anybody_watched_passes_nothing_and_may_fail() {
        let judged = |yaml: &str, outage: &Outage| {
            let hypothesis: Hypothesis = steadfast_api::read::from_yaml("h", yaml).unwrap();
            let seen = |_| measured(99, 1);
            let outages = [outage.clone()];
            let result = evaluate(&hypothesis, &Facts { faults: 0, watches: true, ..facts(&seen, &outages, false) });
            (result.outcome, result.observed)
        };
        let began = Outage { began_before: true, pod: "a".to_owned(), ..outage(Some(9_000.0), 9_000.0) };
        let (outcome, observed) = judged("availability: {atLeast: 99%}", &began);
        assert_eq!((outcome, observed.as_str()), (RunOutcome::Inconclusive, "99% of 100 requests since somebody watched, and a was lost before that"));
        assert_eq!(judged("availability: {atLeast: 99.9%}", &began).0, RunOutcome::Fail);
        let goal = |most: &str, outage: &Outage| judged(&format!("recovery: {{atMost: {most}}}"), outage).0;
        assert_eq!((goal("10s", &began), goal("5s", &began)), (RunOutcome::Inconclusive, RunOutcome::Fail), "it took at least so long");
        // The next window saw all of its own time, and still not when the outage began.
        let goes_on = Outage { continues: true, ..began };
        assert_eq!((judged("availability: {atLeast: 99%}", &goes_on).0, goal("10s", &goes_on)), (RunOutcome::Pass, RunOutcome::Inconclusive));
    }

    #[test]
    fn shares_are_never_rounded_up() {
        assert_eq!([0.999_999_9, 1.0, 0.5, 0.999, 0.0].map(share), ["99.999%", "100%", "50%", "99.9%", "0%"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_verdict_says_what_of_a_fault_did_not_take_place() {
        let fault = FaultWindow {
            name: "all evicted".into(),
            action: "evict".into(),
            description: String::new(),
            round: 1,
            step: 0,
            start_ms: 0.0,
            end_ms: 0.0,
            nodes: Vec::new(),
            pods: vec!["a".into(), "b".into(), "c".into()],
            evidence: vec!["a was evicted".into()],
            doubts: vec!["b was not evicted: its budget needs 2".into(), "c was not evicted: its budget needs 2".into()],
            undone_ms: None,
        };
        let (outcome, reason) = verdict(&Ending::Complete, &[], &[], std::slice::from_ref(&fault), &[]);
        assert_eq!(outcome, RunOutcome::Pass, "a step that respects budgets promises no more");
        let said = "\"all evicted\" (evict of 3 pods): b was not evicted: its budget needs 2, c was not evicted: its budget needs 2.";
        assert!(reason.ends_with(said), "{reason}");
        let (_, reason) = verdict(&Ending::Complete, &[], &[], &[FaultWindow { doubts: Vec::new(), ..fault }], &[]);
        assert!(reason.ends_with("after the fault."), "{reason}");
    }
}
