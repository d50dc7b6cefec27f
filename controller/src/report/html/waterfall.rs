//! Where did the time go? Every outage by the phases between its marks, with the platform's own timers beside it as the floor.

use std::fmt::Write;

use steadfast_api::{
    mark::{Mark, Outage},
    report::Report,
};

use super::{
    floor,
    markup::{counted, esc, span, table},
    view::View,
};

/// Every mark: its number, its short name, what it says.
pub(super) const MARKS: [(Mark, &str, &str, &str); 14] = [
    (Mark::Fault, "t0", "fault", "the fault began"),
    (Mark::FirstFailure, "t1", "first failure", "the first request that failed was sent"),
    (Mark::Detected, "t2", "detected", "the platform noticed"),
    (Mark::EndpointRemoved, "t3", "withdrawn", "the endpoint was withdrawn: no new request goes there"),
    (Mark::ReplacementCreated, "t4", "created", "the replacement was created"),
    (Mark::Scheduled, "t5", "scheduled", "the replacement was given a node"),
    (Mark::Initialized, "t6", "sidecar up", "its sidecar listens"),
    (Mark::ContainerStarted, "t7", "process started", "the model server’s process runs"),
    (Mark::ModelLoaded, "t8", "model loaded", "the model server says that its model is loaded"),
    (Mark::Ready, "t9", "ready", "the platform calls the pod ready"),
    (Mark::EndpointAdded, "t10", "endpoint", "the endpoint was added: requests may go there"),
    (Mark::FirstGoodResponse, "t11", "first good", "a client got the first good response from it"),
    (Mark::FirstCorrectPrediction, "t11c", "first correct", "the first golden input was answered within tolerance"),
    (Mark::Sustained, "t12", "sustained", "the good service that then lasted began"),
];

pub(super) fn section(report: &Report, view: &View<'_>) -> String {
    let mut html = r#"<section id="recovery" class="card" aria-labelledby="recovery-title"><h2 id="recovery-title">Where did the time go?</h2>"#.to_owned();
    if report.outages.is_empty() {
        html.push_str(r#"<p class="empty">No pod was lost in this run, so there is no recovery to take apart.</p>"#);
        html.push_str(&floor::section(report));
        html.push_str("</section>");
        return html;
    }
    let _ = write!(html, r#"<p class="summary" id="waterfall-summary">{}</p>"#, summary(report));
    html.push_str(LEGEND);
    let _ = write!(
        html,
        r#"<div class="chart" id="waterfall" role="img" aria-label="Waterfall of {}" aria-describedby="waterfall-summary"></div>"#,
        counted(view.bars() as u64, "outage")
    );
    if view.bars() < report.outages.len() {
        let _ = write!(html, r#"<p class="note">The {} longest of {} outages are drawn; the table has all of them.</p>"#, view.bars(), report.outages.len());
    }
    html.push_str(&figures(report));
    html.push_str(&floor::section(report));
    html.push_str("</section>");
    html
}

fn summary(report: &Report) -> String {
    let recovery = &report.recovery;
    let mut text = format!(
        "Capacity outage (fault to sustained good service): median {}, longest {}. Routing outage (first to last failure that users saw): median {}, longest {}.",
        known(recovery.sustained_p50_ms),
        known(recovery.sustained_max_ms),
        recovery.routing_p50_ms.map_or_else(|| "none seen".to_owned(), span),
        recovery.routing_max_ms.map_or_else(|| "none seen".to_owned(), span)
    );
    if let Some((phase, total)) = largest_phase(&report.outages) {
        let _ = write!(text, " The longest wait, all outages together, was up to “{phase}”: {}.", span(total));
    }
    if recovery.censored > 0 {
        let _ =
            write!(text, " {} had not ended when the run did: a lower bound, counted as longer than every other.", counted(recovery.censored.into(), "outage"));
    }
    text
}

/// A quantile that falls among outages that had not ended has no figure.
fn known(ms: Option<f64>) -> String {
    ms.map_or_else(|| "not known before the run ended".to_owned(), span)
}

/// The mark that was waited for longest, over all outages.
fn largest_phase(outages: &[Outage]) -> Option<(&'static str, f64)> {
    let mut totals = [0.0; MARKS.len()];
    for outage in outages {
        // When users notice is no step of recovery.
        let mut marks: Vec<_> = outage.marks.0.iter().filter(|(mark, _)| **mark != Mark::FirstFailure).map(|(mark, at)| (*mark, *at)).collect();
        marks.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        for pair in marks.windows(2) {
            if let Some(index) = MARKS.iter().position(|(mark, ..)| *mark == pair[1].0) {
                totals[index] += pair[1].1 - pair[0].1;
            }
        }
    }
    let (index, total) = totals.into_iter().enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    (total > 0.0).then_some((MARKS[index].2, total))
}

fn figures(report: &Report) -> String {
    let mut columns = vec!["Outage".to_owned(), "Pod".to_owned(), "Cause".to_owned(), "Routing outage".to_owned(), "Capacity outage".to_owned()];
    columns.extend(MARKS[1..].iter().map(|(_, number, name, says)| format!(r#"<abbr title="{says}">{number}</abbr> {name}"#)));
    // A column's name stands again at every cell on a narrow screen, where markup has no place.
    let plain: Vec<String> = columns.iter().map(|column| strip_abbr(column)).collect();
    let plain: Vec<&str> = plain.iter().map(String::as_str).collect();
    let rows = report.outages.iter().map(|outage| {
        let start = outage.marks.get(Mark::Fault).or_else(|| outage.marks.0.values().copied().min_by(f64::total_cmp)).unwrap_or_default();
        let to = match (&outage.replacement, &outage.replacement_node) {
            (Some(pod), _) if *pod == outage.pod => "the same pod, started again".to_owned(),
            (Some(pod), Some(node)) => format!("→ {} on {}", esc(pod), esc(node)),
            (Some(pod), None) => format!("→ {}", esc(pod)),
            (None, _) => "not replaced".to_owned(),
        };
        let mut row = vec![
            format!("#{}", outage.id),
            format!(r#"{} on {}<span class="under">{to}</span>"#, esc(&outage.pod), esc(&outage.node)),
            esc(&outage.cause).into_owned(),
            outage.routing_outage_ms.map_or_else(|| "none seen".to_owned(), span),
            if outage.censored {
                format!("≥ {}<span class=\"under\">not recovered</span>", span(outage.capacity_outage_ms))
            } else {
                span(outage.capacity_outage_ms)
            },
        ];
        row.extend(MARKS[1..].iter().map(|(mark, ..)| outage.marks.get(*mark).map_or_else(|| "–".to_owned(), |at| format!("+{}", span(at - start)))));
        row
    });
    format!(
        r#"<details><summary>Every outage with its marks</summary><p class="note">Times are from t0. A dash: the mark was not seen; nothing is guessed.</p>{}</details>"#,
        table("Outages with their marks", "wide keep", &plain, rows)
    )
}

fn strip_abbr(markup: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for character in markup.chars() {
        match character {
            '<' => inside = true,
            '>' => inside = false,
            _ if !inside => text.push(character),
            _ => {}
        }
    }
    text
}

const LEGEND: &str = r#"<ul class="legend" aria-label="What the bars show">
<li><i class="part noticing"></i>noticing: until detected, withdrawn</li><li><i class="part replacing"></i>replacing: until created, scheduled</li>
<li><i class="part starting"></i>starting: until sidecar, process, model</li><li><i class="part returning"></i>returning: until ready, endpoint, first good, sustained</li>
<li><i class="routing"></i>users saw failures (routing outage)</li><li><i class="golden correct"></i>first correct prediction</li></ul>"#;
