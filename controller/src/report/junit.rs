//! `junit.xml`: one test case for each hypothesis and one for the stability after each fault, so that CI shows a run like any other test.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use steadfast_api::report::{PhaseKind, Report, RunOutcome};

/// The report as JUnit XML.
///
/// # Errors
/// When the XML cannot be written: text that no XML may carry.
pub fn render(report: &Report) -> Result<String, String> {
    let name = &report.test.metadata.name;
    let mut out = quick_junit::Report::new(name.as_str());
    out.set_time(duration(report.run.duration_ms));

    let mut hypotheses = TestSuite::new("hypothesis");
    for result in &report.hypothesis {
        let mut case = TestCase::new(result.statement.as_str(), status(result.outcome, &result.observed));
        case.set_classname(name.as_str());
        case.set_system_out(result.observed.as_str());
        hypotheses.add_test_case(case);
    }
    out.add_test_suite(hypotheses);

    let mut steps = TestSuite::new("stable after");
    for phase in report.phases.iter().filter(|phase| phase.kind == PhaseKind::Recovery) {
        let took = format!("analysed for {:.1} s", (phase.end_ms - phase.start_ms) / 1000.0);
        let (outcome, says) = match phase.stable_ms {
            Some(at) => (RunOutcome::Pass, format!("stable from {:.1} s after the fault ended", ((at - phase.start_ms) / 1000.0).max(0.0))),
            None if report.verdict.outcome == RunOutcome::Inconclusive => (RunOutcome::Inconclusive, format!("not stable yet when the run ended; {took}")),
            None => (RunOutcome::Fail, format!("not stable; {took}")),
        };
        let mut case = TestCase::new(format!("{} (round {})", phase.name, phase.round), status(outcome, &says));
        case.set_classname(name.as_str());
        case.set_time(duration(phase.end_ms - phase.start_ms));
        let of_this = report.faults.iter().filter(|fault| fault.round == phase.round && Some(fault.step) == phase.step);
        let doubts = of_this.flat_map(|fault| &fault.doubts).map(|doubt| format!("\nnot done or not seen: {doubt}"));
        case.set_system_out(says + &doubts.collect::<String>());
        steps.add_test_case(case);
    }
    out.add_test_suite(steps);
    out.to_string().map_err(|error| error.to_string())
}

fn status(outcome: RunOutcome, says: &str) -> TestCaseStatus {
    match outcome {
        RunOutcome::Pass => TestCaseStatus::success(),
        RunOutcome::Fail | RunOutcome::Halted => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(says);
            status
        }
        RunOutcome::Inconclusive => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(format!("inconclusive: {says}"));
            status
        }
    }
}

fn duration(ms: f64) -> Duration {
    Duration::try_from_secs_f64(ms / 1000.0).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use steadfast_api::{
        read::from_yaml,
        report::{HypothesisResult, Machine, Phase, RecoverySummary, Run, RunVerdict, SCHEMA, Series, Service},
    };

    use super::*;

    pub(crate) fn small() -> Report {
        let test = "{apiVersion: steadfast.dev/v1alpha1, kind: ResilienceTest, metadata: {name: small}, spec: {target: {selector: {matchLabels: {a: b}}}}}";
        let hypothesis =
            |statement: &str, outcome| HypothesisResult { statement: statement.to_owned(), outcome, observed: "98% of <5,000> requests".to_owned() };
        let phase = |stable_ms| Phase {
            name: "node lost".to_owned(),
            kind: PhaseKind::Recovery,
            round: 1,
            step: Some(0),
            start_ms: 1000.0,
            end_ms: 5000.0,
            stable_ms,
            service: Service::default(),
        };
        Report {
            schema: SCHEMA.to_owned(),
            run: Run {
                id: "r1".to_owned(),
                started: "2026-01-01T00:00:00Z".to_owned(),
                started_monotonic_ns: None,
                duration_ms: 9000.0,
                platform: "local".to_owned(),
                timers: None,
                version: "0".to_owned(),
                machine: Machine { os: "linux".to_owned(), architecture: "x86_64".to_owned(), cores: 2 },
                left_behind: Vec::new(),
                notes: Vec::new(),
            },
            verdict: RunVerdict { outcome: RunOutcome::Fail, reason: "why".to_owned(), score: Some(1), score_parts: Vec::new() },
            hypothesis: vec![
                hypothesis("availability", RunOutcome::Pass),
                hypothesis("latency", RunOutcome::Fail),
                hypothesis("recovery", RunOutcome::Inconclusive),
            ],
            phases: vec![phase(Some(2000.0)), phase(None)],
            faults: Vec::new(),
            nodes: Vec::new(),
            pods: Vec::new(),
            outages: Vec::new(),
            recovery: RecoverySummary::default(),
            total: Service::default(),
            series: Series::default(),
            advice: Vec::new(),
            golden_sets: Vec::new(),
            test: from_yaml("small.yaml", test).unwrap(),
            rerun: "steadfast run small.yaml".to_owned(),
        }
    }

    #[test]
    fn every_hypothesis_and_every_fault_is_one_test_case() {
        let mut report = small();
        report.faults = vec![steadfast_api::report::FaultWindow {
            name: "node lost".to_owned(),
            action: "drain".to_owned(),
            description: String::new(),
            round: 1,
            step: 0,
            start_ms: 0.0,
            end_ms: 0.0,
            nodes: Vec::new(),
            pods: Vec::new(),
            evidence: Vec::new(),
            doubts: vec!["p-1 was not evicted".to_owned()],
            undone_ms: None,
        }];
        let xml = render(&report).unwrap();
        assert!(xml.contains("not done or not seen: p-1 was not evicted"), "{xml}");
        assert_eq!(xml.matches("<testcase").count(), 5, "{xml}");
        assert_eq!((xml.matches("<failure").count(), xml.matches("<skipped").count()), (2, 1), "{xml}");
        assert!(xml.contains("98% of &lt;5,000&gt; requests") && xml.contains("stable from 1.0 s"), "{xml}");
    }
}
