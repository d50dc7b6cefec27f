//! Reports that stretch the page: nothing at all, too much of everything, names that try to become markup.

use steadfast_api::{
    mark::{Mark, Outage},
    report::{Bucket, PodReport, RecoverySummary, Report, RunOutcome, RunVerdict, Series, Service},
};

use crate::sample::{LENGTH, SECOND, case_study};

/// The run ended before anything was sent, seen or concluded.
pub(crate) fn nothing() -> Report {
    let mut report = case_study();
    report.run.duration_ms = 0.0;
    report.run.notes.clear();
    report.verdict =
        RunVerdict { outcome: RunOutcome::Inconclusive, reason: "No pod became ready before the deadline.".into(), score: None, score_parts: Vec::new() };
    report.hypothesis.clear();
    report.phases.clear();
    report.faults.clear();
    report.nodes.clear();
    report.pods.clear();
    report.outages.clear();
    report.recovery = RecoverySummary::default();
    report.total = Service::default();
    report.series = Series::default();
    report.advice.clear();
    report
}

/// Pods were there, but no user was: lanes without availability.
pub(crate) fn no_requests() -> Report {
    let mut report = case_study();
    for bucket in &mut report.series.all {
        *bucket = Bucket::default();
    }
    report.total = Service::default();
    for phase in &mut report.phases {
        phase.service = Service::default();
    }
    report.test.spec.load.clear();
    report
}

/// Everything held.
pub(crate) fn zero_outages() -> Report {
    let mut report = case_study();
    report.verdict.outcome = RunOutcome::Pass;
    report.verdict.reason = "All 4 hypotheses held.".into();
    report.verdict.score = Some(100);
    for result in &mut report.hypothesis {
        result.outcome = RunOutcome::Pass;
    }
    report.pods.truncate(1);
    report.outages.clear();
    report.recovery = RecoverySummary::default();
    report.advice.clear();
    report
}

/// As many pods as the local platform takes, half of them lost and replaced.
pub(crate) fn many_pods() -> Report {
    let mut report = case_study();
    let (lost, replacement) = (report.pods[1].clone(), report.pods[2].clone());
    let template = report.outages[0].clone();
    report.pods.clear();
    report.outages.clear();
    for lane in 0..256_u32 {
        let named = |pod: &PodReport, suffix: &str| PodReport {
            name: format!("recommender-{lane:03}-{suffix}"),
            uid: format!("{lane}-{suffix}"),
            lane,
            node: format!("node-{}", lane % 64),
            ..pod.clone()
        };
        report.pods.push(named(&lost, "a"));
        report.pods.push(named(&replacement, "b"));
        if lane % 2 == 0 {
            let id = lane / 2 + 1;
            report.outages.push(Outage {
                id,
                pod: format!("recommender-{lane:03}-a"),
                uid: format!("{lane}-a"),
                node: format!("node-{}", lane % 64),
                replacement: Some(format!("recommender-{lane:03}-b")),
                ..template.clone()
            });
        }
    }
    report.recovery.outages = report.outages.len() as u32;
    report.recovery.censored = 0;
    report.recovery.first_correct_max_ms = report.recovery.first_correct_p50_ms;
    report.recovery.sustained_max_ms = report.recovery.sustained_p50_ms;
    report
}

/// What [`hostile_names`] puts into every text that comes from outside. Were it to run, the page's title would change and a request would go out.
pub(crate) const HOSTILE: &str =
    "</script><img src=\"http://127.0.0.1:9/x\" onerror=\"document.title='broken'\"><script>document.title='broken'</script>{a|b}\u{2028}<!--'\"&";

/// Names and texts that try to become markup.
pub(crate) fn hostile_names() -> Report {
    let mut report = case_study();
    let evil = || HOSTILE.to_owned();
    report.test.metadata.name = evil();
    report.test.spec.steps[0].name = evil();
    report.run.id = evil();
    report.run.started = evil();
    report.run.platform = evil();
    report.run.version = evil();
    report.run.machine.os = evil();
    report.run.notes = vec![evil()];
    report.run.left_behind = vec![evil()];
    report.verdict.reason = evil();
    report.verdict.score_parts[0].name = evil();
    report.hypothesis[0].statement = evil();
    report.hypothesis[0].observed = evil();
    report.rerun = evil();
    report.nodes = vec![evil()];
    for phase in &mut report.phases {
        phase.name = evil();
    }
    for fault in &mut report.faults {
        (fault.name, fault.description, fault.action) = (evil(), evil(), evil());
        (fault.nodes, fault.pods, fault.evidence, fault.doubts) = (vec![evil()], vec![evil()], vec![evil()], vec![evil()]);
    }
    for pod in &mut report.pods {
        (pod.name, pod.node) = (evil(), evil());
        for point in &mut pod.golden {
            point.set = evil();
            point.detail = point.detail.as_ref().map(|_| evil());
        }
        for point in &mut pod.verdicts {
            point.set = evil();
        }
    }
    for outage in &mut report.outages {
        (outage.pod, outage.node, outage.cause) = (evil(), evil(), evil());
        (outage.replacement, outage.replacement_node) = (Some(evil()), Some(evil()));
    }
    for advice in &mut report.advice {
        (advice.title, advice.evidence, advice.gain) = (evil(), evil(), evil());
    }
    report
}

/// An hour in buckets of a second, with stretches in which nothing was sent.
pub(crate) fn an_hour() -> Report {
    let mut report = case_study();
    let buckets = report.series.all.clone();
    report.series.all = (0..3600).map(|i| if i % 700 < 650 { buckets[i % LENGTH].clone() } else { Bucket::default() }).collect();
    report.run.duration_ms = 3600.0 * SECOND;
    report
}

/// A window of a watch, with an outage that began so long before it, in seconds: its pod has come back since.
pub(crate) fn continues(since: f64) -> Report {
    let mut report = case_study();
    let outage = &mut report.outages[0];
    outage.continues = true;
    outage.cause = "node node-2 was lost: nobody heard from it (since before this window)".into();
    let moved = outage.marks.get(Mark::Fault).unwrap_or_default() + since * SECOND;
    for (mark, at) in &mut outage.marks.0 {
        // What brought it back took place in this window.
        if *mark <= Mark::ReplacementCreated {
            *at -= moved;
        }
    }
    outage.capacity_outage_ms = outage.marks.between(Mark::Fault, Mark::Sustained).unwrap_or_default();
    report
}
