//! What did users see? The timeline of every pod, and availability and latency beneath on the same axis; here its words, in the browser its drawing.

use std::fmt::Write;

use steadfast_api::report::{PhaseKind, Report};

use super::{
    markup::{clock, counted, esc, percent, span},
    verdict::{causes, worst_latency},
    view::View,
};

pub(super) fn section(report: &Report, view: &View<'_>) -> String {
    let mut html = r#"<section id="users" class="card" aria-labelledby="users-title"><h2 id="users-title">What did users see?</h2>"#.to_owned();
    let _ = write!(html, r#"<p class="summary" id="timeline-summary">{}</p>"#, summary(report));
    if report.pods.is_empty() && report.total.availability.attempted == 0 {
        html.push_str(r#"<p class="empty">No pod was seen and no request was sent: there is nothing to draw.</p></section>"#);
        return html;
    }
    html.push_str(&zoom(report, view));
    if report.pods.is_empty() {
        html.push_str(r#"<p class="empty">No pod was seen: there are no lanes to draw.</p>"#);
    }
    html.push_str(POD_LEGEND);
    let _ = write!(
        html,
        r#"<div class="chart" id="timeline" role="img" aria-label="Timeline of {}, with availability and latency" aria-describedby="timeline-summary"></div>"#,
        counted(view.lanes() as u64, "pod")
    );
    html.push_str(r#"<p class="more"><button type="button" id="all-lanes" class="quiet scripted" hidden></button></p>"#);
    html.push_str(SERVICE_LEGEND);
    if report.total.availability.attempted == 0 {
        html.push_str(r#"<p class="empty">No request was sent: availability and latency are unknown.</p>"#);
    }
    html.push_str(r#"<noscript><p class="empty">The charts need JavaScript; every figure in them also stands in the tables below.</p></noscript></section>"#);
    html
}

/// Buttons that zoom to a phase, so that the keyboard reaches what the wheel does.
fn zoom(report: &Report, view: &View<'_>) -> String {
    /// More would fill the screen.
    const MAX: usize = 24;
    let mut html = r#"<div class="zoom scripted" role="group" aria-label="Zoom" hidden><button type="button" data-from="0" data-to="100" aria-pressed="true">Whole run</button>"#.to_owned();
    for fault in report.faults.iter().take(MAX) {
        // A little before, and the recovery after it.
        let after = report.phases.iter().find(|phase| {
            phase.kind == PhaseKind::Recovery && phase.start_ms >= fault.start_ms && phase.step == Some(fault.step) && phase.round == fault.round
        });
        let end = after.map_or(fault.end_ms, |phase| phase.end_ms).max(fault.end_ms);
        let margin = 0.04 * (end - fault.start_ms).max(1.0);
        let share = |ms: f64| view.share(ms) * 100.0;
        let _ = write!(
            html,
            r#"<button type="button" data-from="{:.3}" data-to="{:.3}" aria-pressed="false">{}</button>"#,
            share(fault.start_ms - margin),
            share(end + margin),
            esc(&fault.name)
        );
    }
    html.push_str("</div>");
    html
}

fn summary(report: &Report) -> String {
    let mut text = format!("{} of {} on {}", span(report.run.duration_ms), counted(view_pods(report), "pod"), counted(report.nodes.len() as u64, "node"));
    if report.faults.is_empty() {
        text.push_str("; no fault was carried out. ");
    } else {
        let faults: Vec<_> = report.faults.iter().take(6).map(|fault| format!("“{}” at {}", esc(&fault.name), clock(fault.start_ms))).collect();
        let more = if report.faults.len() > 6 { format!(" and {} more", report.faults.len() - 6) } else { String::new() };
        let _ = write!(text, "; {}: {}{more}. ", counted(report.faults.len() as u64, "fault"), faults.join(", "));
    }
    let availability = &report.total.availability;
    if let Some(ratio) = availability.ratio {
        let _ = write!(text, "Availability {} ({}). ", percent(ratio), causes(availability));
    }
    if let Some(phase) = report
        .phases
        .iter()
        .filter(|phase| phase.service.availability.ratio.is_some())
        .min_by(|a, b| a.service.availability.ratio.unwrap_or(1.0).total_cmp(&b.service.availability.ratio.unwrap_or(1.0)))
        && let Some(ratio) = phase.service.availability.ratio
        && ratio < 1.0
    {
        let _ = write!(text, "Lowest in “{}”: {}. ", esc(&phase.name), percent(ratio));
    }
    if let (Some(before), Some(fault)) = (worst_latency(report, PhaseKind::Baseline), worst_latency(report, PhaseKind::Fault)) {
        let _ = write!(text, "p99 went from {} to at most {} under fault. ", span(before.service.latency.p99_ms), span(fault.service.latency.p99_ms));
    }
    let _ = write!(text, "{}.", counted(report.outages.len() as u64, "outage"));
    text
}

/// Pods that were meant to be there: replacements share their lane.
fn view_pods(report: &Report) -> u64 {
    let mut lanes: Vec<_> = report.pods.iter().map(|pod| pod.lane).collect();
    lanes.sort_unstable();
    lanes.dedup();
    lanes.len() as u64
}

const POD_LEGEND: &str = r#"<ul class="legend" aria-label="What the lanes show">
<li><i class="state serving"></i>serving</li><li><i class="state pending"></i>pending</li><li><i class="state loading"></i>loading</li><li><i class="state notready"></i>not ready: loaded, and kept out of the Service</li>
<li><i class="state backoff"></i>back-off</li><li><i class="state silent"></i>silent</li><li><i class="state terminating"></i>terminating</li>
<li><i class="golden match"></i>golden answers match</li><li><i class="golden mismatch"></i>mismatch</li><li><i class="golden noanswer"></i>no answer</li>
<li>golden verdicts: P pass, F fail, ? inconclusive (too few samples yet), R reference broken</li>
<li><i class="brace"></i>outage with its marks</li><li><i class="window"></i>fault</li></ul>"#;

const SERVICE_LEGEND: &str = r#"<ul class="legend" aria-label="What availability and latency show">
<li><i class="cause good"></i>good</li><li><i class="cause wrong"></i>wrong answer</li><li><i class="cause upstream"></i>model server’s error</li><li><i class="cause injected"></i>injected</li>
<li><i class="cause proxy"></i>sidecar or gateway</li><li><i class="cause silence"></i>silence</li><li><i class="line p50"></i>p50</li><li><i class="line p99"></i>p99</li></ul>"#;
