//! Were the answers right? Before, during and after the faults; per golden set; per pod; and the first answers that were not.

use std::{collections::BTreeMap, fmt::Write};

use steadfast_api::{
    golden::Verdict,
    report::{Consistency, GoldenSetReport, PhaseKind, PodReport, Report, Service},
};

use super::markup::{clock, count, counted, esc, percent_or, table};

/// First mismatches shown; the report's JSON has all.
const MISMATCHES_MAX: usize = 12;

pub(super) fn section(report: &Report) -> String {
    let mut html = r#"<section id="answers" class="card" aria-labelledby="answers-title"><h2 id="answers-title">Were the answers right?</h2>"#.to_owned();
    let _ = write!(html, r#"<p class="summary">{}</p>"#, summary(&report.total.consistency));
    html.push_str(r#"<div class="pair"><div><h3>Before, during and after</h3>"#);
    html.push_str(&before_during_after(report));
    html.push_str("</div><div><h3>By golden set</h3>");
    html.push_str(&by_set(report));
    html.push_str(&golden_sets(&report.golden_sets));
    html.push_str("</div></div><h3>By pod</h3>");
    html.push_str(&by_pod(report));
    html.push_str("<h3>First mismatches</h3>");
    html.push_str(&mismatches(report));
    html.push_str("</section>");
    html
}

fn summary(all: &Consistency) -> String {
    if all.ratio.is_none() {
        return "No answer was compared with a reference, so nothing can be said.".to_owned();
    }
    format!(
        "{} of {} users’ answers were right, and {} of {} golden replays matched. {} had no answer: that is unavailable, never drift.",
        count(all.answers_right),
        count(all.answers_checked),
        count(all.replays_matched),
        count(all.replays_matched + all.replays_mismatched),
        counted(all.replays_unanswered, "replay")
    )
}

fn cells(first: String, of: &Consistency) -> Vec<String> {
    vec![
        first,
        percent_or(of.ratio, "not checked"),
        format!("{}\u{a0}/\u{a0}{}", count(of.answers_right), count(of.answers_checked)),
        format!("{}\u{a0}/\u{a0}{}", count(of.replays_matched), count(of.replays_matched + of.replays_mismatched)),
        count(of.replays_unanswered),
    ]
}

const COLUMNS: [&str; 5] = ["", "Right", "Users’ answers", "Golden replays", "No answer"];

fn before_during_after(report: &Report) -> String {
    let rows = [("Before", "baseline", PhaseKind::Baseline), ("During", "faults", PhaseKind::Fault), ("After", "recovery", PhaseKind::Recovery)].map(
        |(name, what, kind)| {
            let mut sum = Consistency::default();
            for phase in report.phases.iter().filter(|phase| phase.kind == kind) {
                let of = &phase.service.consistency;
                sum.answers_checked += of.answers_checked;
                sum.answers_right += of.answers_right;
                sum.replays_matched += of.replays_matched;
                sum.replays_mismatched += of.replays_mismatched;
                sum.replays_unanswered += of.replays_unanswered;
            }
            let checked = sum.answers_checked + sum.replays_matched + sum.replays_mismatched;
            sum.ratio = (checked > 0).then(|| (sum.answers_right + sum.replays_matched) as f64 / checked as f64);
            cells(format!(r#"{name}<span class="under">{what}</span>"#), &sum)
        },
    );
    let mut columns = COLUMNS;
    columns[0] = "When";
    table("Consistency before, during and after the faults", "", &columns, rows)
}

fn by_set(report: &Report) -> String {
    let mut sets = BTreeMap::<&str, [u64; 3]>::new();
    for point in report.pods.iter().flat_map(|pod| &pod.golden) {
        let sum = sets.entry(&point.set).or_default();
        sum[0] += u64::from(point.matched);
        sum[1] += u64::from(point.mismatched);
        sum[2] += u64::from(point.unanswered);
    }
    if sets.is_empty() {
        return r#"<p class="empty">No golden set of this test was replayed.</p>"#.to_owned();
    }
    let rows = sets.into_iter().map(|(set, [matched, mismatched, unanswered])| {
        let replays = matched + mismatched;
        vec![
            esc(set).into_owned(),
            percent_or((replays > 0).then(|| matched as f64 / replays as f64), "no answer"),
            format!("{}\u{a0}/\u{a0}{}", count(matched), count(replays)),
            count(mismatched),
            count(unanswered),
        ]
    });
    table("Golden replays by set", "", &["Set", "Right", "Matched", "Mismatched", "No answer"], rows)
}

/// What watches these pods all the time.
fn golden_sets(sets: &[GoldenSetReport]) -> String {
    if sets.is_empty() {
        return String::new();
    }
    let rows = sets.iter().map(|set| {
        let some = if set.failing.is_empty() { String::new() } else { format!(r#"<span class="under">{}</span>"#, esc(&set.failing.join(", "))) };
        vec![
            esc(&set.name).into_owned(),
            set.verdict.map_or_else(|| "none yet".to_owned(), |verdict| format!("<strong>{verdict}</strong>")),
            format!("{}\u{a0}/\u{a0}{}", count(set.pods_passing.into()), count(set.pods_matched.into())),
            format!("{}{some}", count(set.pods_failing.into())),
            count(set.pods_gated.into()),
        ]
    });
    let columns = ["GoldenSet", "Verdict", "Pods that pass", "Fail", "Kept out"];
    format!(
        "<h3>GoldenSets of the cluster on these pods, at the end</h3>{}",
        table("GoldenSets of the cluster that are replayed in these pods", "", &columns, rows)
    )
}

fn by_pod(report: &Report) -> String {
    if report.pods.is_empty() {
        return r#"<p class="empty">No pod was seen.</p>"#.to_owned();
    }
    // Those with something to see first.
    let mut pods: Vec<&PodReport> = report.pods.iter().collect();
    pods.sort_by_key(|pod| (std::cmp::Reverse(pod.service.consistency.replays_mismatched + wrong(&pod.service)), pod.lane));
    let rows = pods.into_iter().map(|pod| {
        let mut row = cells(format!(r#"{}<span class="under">{}</span>"#, esc(&pod.name), esc(&pod.node)), &pod.service.consistency);
        row.push(verdicts(pod));
        row
    });
    let mut columns: Vec<_> = COLUMNS.to_vec();
    columns[0] = "Pod";
    columns.push("Verdict");
    table("Consistency by pod", "tall", &columns, rows)
}

const fn wrong(service: &Service) -> u64 {
    service.consistency.answers_checked.saturating_sub(service.consistency.answers_right)
}

/// How each set's verdict changed.
fn verdicts(pod: &PodReport) -> String {
    let mut sets = BTreeMap::<&str, Vec<(f64, Verdict)>>::new();
    for point in &pod.verdicts {
        sets.entry(&point.set).or_default().push((point.at_ms, point.verdict));
    }
    if sets.is_empty() {
        return "none".to_owned();
    }
    let many = sets.len() > 1;
    let texts: Vec<_> = sets
        .into_iter()
        .map(|(set, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let skipped = points.len().saturating_sub(4);
            let changes: Vec<_> = points[skipped..]
                .iter()
                .map(|(at, verdict)| format!(r#"<span class="golden-verdict {}">{verdict}</span> {}"#, class(*verdict), clock(*at)))
                .collect();
            format!("{}{}{}", if many { format!("{}: ", esc(set)) } else { String::new() }, if skipped > 0 { "… " } else { "" }, changes.join(" → "))
        })
        .collect();
    texts.join("<br>")
}

const fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Inconclusive => "inconclusive",
        Verdict::ReferenceBroken => "halted",
    }
}

fn mismatches(report: &Report) -> String {
    let mut points: Vec<_> = report.pods.iter().flat_map(|pod| pod.golden.iter().filter(|point| point.mismatched > 0).map(move |point| (pod, point))).collect();
    if points.is_empty() {
        return r#"<p class="empty">No golden replay that was answered differed from its reference.</p>"#.to_owned();
    }
    points.sort_by(|a, b| a.1.at_ms.total_cmp(&b.1.at_ms));
    let more = points.len().saturating_sub(MISMATCHES_MAX);
    let rows = points.into_iter().take(MISMATCHES_MAX).map(|(pod, point)| {
        vec![
            clock(point.at_ms),
            esc(&pod.name).into_owned(),
            esc(&point.set).into_owned(),
            format!("{} of {}", point.mismatched, point.matched + point.mismatched),
            point.detail.as_deref().map_or_else(|| "–".to_owned(), |detail| esc(detail).into_owned()),
        ]
    });
    let mut html = table("First mismatches", "", &["At", "Pod", "Set", "Wrong", "What differed"], rows);
    if more > 0 {
        let _ = write!(
            html,
            r#"<p class="note">{} later; <code>report.json</code> has all of them.</p>"#,
            counted(more as u64, "further stretch").replace("stretchs", "stretches")
        );
    }
    html
}
