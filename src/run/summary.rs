//! The end of a run in a screenful: verdict, hypotheses, recovery, consistency, where the report is.

use std::fmt::Write as _;

use console::{Alignment, Style, measure_text_width, pad_str};
use steadfast_api::{
    mark::{Mark, Outage},
    report::{PhaseKind, Report, RunOutcome},
};
use steadfast_controller::{
    experiment::hypothesis::{millis, share, thousands},
    report::store::Stored,
};

/// As many outages as fit on a screen; the report has them all.
const OUTAGES_SHOWN: usize = 12;

const DOUBTS_SHOWN: usize = 12;

/// The summary, with colours where standard output is a terminal.
pub(crate) fn text(report: &Report, stored: Option<&Stored>) -> String {
    let mut text = String::new();
    let verdict = &report.verdict;
    line(&mut text, &format!("\n{}  {}", style(verdict.outcome).bold().apply_to(word(verdict.outcome).to_uppercase()), verdict.reason));
    line(&mut text, &format!("{} · {} · {} requests", score(verdict.score), millis(report.run.duration_ms), thousands(report.total.availability.attempted)));

    if !report.hypothesis.is_empty() {
        line(&mut text, "\nHypothesis");
        let rows = report
            .hypothesis
            .iter()
            .map(|result| vec![style(result.outcome).apply_to(word(result.outcome)).to_string(), result.statement.clone(), result.observed.clone()]);
        table(&mut text, rows.collect());
    }
    if !report.outages.is_empty() {
        line(&mut text, "\nRecovery, from the fault on");
        let mut rows = vec![
            ["", "ready", "first good", "first correct", "sustained", "users saw failures"].map(|head| Style::new().dim().apply_to(head).to_string()).to_vec(),
        ];
        rows.extend(report.outages.iter().take(OUTAGES_SHOWN).map(outage));
        table(&mut text, rows);
        if report.outages.len() > OUTAGES_SHOWN {
            line(&mut text, &format!("  and {} more", report.outages.len() - OUTAGES_SHOWN));
        }
        if report.recovery.censored > 0 {
            line(&mut text, &format!("  {} not recovered when the run ended", report.recovery.censored));
        }
    }
    line(&mut text, "\nSeen by users and golden replays");
    let mut rows = vec![["", "available", "p50", "p99", "right answers"].map(|head| Style::new().dim().apply_to(head).to_string()).to_vec()];
    for (name, kind) in [("baseline", PhaseKind::Baseline), ("during faults", PhaseKind::Fault), ("recovery", PhaseKind::Recovery)] {
        for phase in report.phases.iter().filter(|phase| phase.kind == kind).take(OUTAGES_SHOWN) {
            let service = &phase.service;
            let percent = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), share);
            let name = if kind == PhaseKind::Baseline { name.to_owned() } else { format!("{name}: {}", phase.name) };
            rows.push(vec![
                name,
                percent(service.availability.ratio),
                millis(service.latency.p50_ms),
                millis(service.latency.p99_ms),
                percent(service.consistency.ratio),
            ]);
        }
    }
    table(&mut text, rows);

    if report.faults.iter().any(|fault| !fault.doubts.is_empty()) {
        line(&mut text, "\nOf the faults, not done or not seen");
        let doubts = report.faults.iter().flat_map(|fault| fault.doubts.iter().map(move |doubt| (fault, doubt)));
        for (fault, doubt) in doubts.clone().take(DOUBTS_SHOWN) {
            line(&mut text, &format!("  {} ({}, {} pods): {doubt}", fault.name, fault.action, fault.pods.len()));
        }
        let more = doubts.count().saturating_sub(DOUBTS_SHOWN);
        if more > 0 {
            line(&mut text, &format!("  and {more} more"));
        }
    }
    for left in &report.run.left_behind {
        line(&mut text, &format!("\nleft behind: {left}"));
    }
    if !report.run.notes.is_empty() {
        line(&mut text, "\nNotes");
        for note in &report.run.notes {
            line(&mut text, &format!("  {note}"));
        }
    }
    if !report.advice.is_empty() {
        line(&mut text, "\nAdvice, with its evidence in the report");
        for advice in &report.advice {
            line(&mut text, &format!("  {}", advice.title));
        }
    }
    if let Some(stored) = stored {
        line(&mut text, "\nReport");
        for path in [&stored.html, &stored.json, &stored.junit] {
            line(&mut text, &format!("  {}", path.display()));
        }
    }
    text
}

fn score(score: Option<u32>) -> String {
    score.map_or_else(|| "no score: the run did not come to its end".to_owned(), |score| format!("score {score} of 100"))
}

fn outage(outage: &Outage) -> Vec<String> {
    let until = |mark| outage.marks.between(Mark::Fault, mark).map_or_else(|| "–".to_owned(), millis);
    let moved = match outage.replacement.as_deref() {
        Some(replacement) if replacement != outage.pod => format!("{} → {replacement}", outage.pod),
        _ => outage.pod.clone(),
    };
    let sustained = if outage.censored { format!("not after {}", millis(outage.capacity_outage_ms)) } else { until(Mark::Sustained) };
    let least = if outage.censored { "for at least" } else { "for" };
    let routing = outage.routing_outage_ms.map_or_else(|| "none".to_owned(), |ms| format!("{least} {}", millis(ms)));
    vec![moved, until(Mark::Ready), until(Mark::FirstGoodResponse), until(Mark::FirstCorrectPrediction), sustained, routing]
}

/// The outcome in a word.
pub(crate) const fn word(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Pass => "pass",
        RunOutcome::Fail => "fail",
        RunOutcome::Inconclusive => "inconclusive",
        RunOutcome::Halted => "halted",
    }
}

fn style(outcome: RunOutcome) -> Style {
    match outcome {
        RunOutcome::Pass => Style::new().green(),
        RunOutcome::Fail | RunOutcome::Halted => Style::new().red(),
        RunOutcome::Inconclusive => Style::new().yellow(),
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// Columns as wide as their widest cell, two spaces apart.
fn table(text: &mut String, rows: Vec<Vec<String>>) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell)).max().unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| pad_str(cell, *width, Alignment::Left, None).into_owned()).collect();
        line(text, format!("  {}", cells.join("  ")).trim_end());
    }
}
