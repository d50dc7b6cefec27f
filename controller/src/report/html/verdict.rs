//! First on the page: did it hold? The verdict, the score and its parts, the key figures, the hypotheses.

use std::fmt::Write;

use steadfast_api::report::{Availability, Phase, PhaseKind, Report, Service};

use super::markup::{badge, count, counted, esc, outcome, percent, percent_or, sign, span, span_or_dash, table};

pub(super) fn section(report: &Report) -> String {
    let verdict = &report.verdict;
    let (word, class) = outcome(verdict.outcome);
    let mut html = format!(
        r#"<section id="verdict" class="verdict {class}" aria-labelledby="verdict-title"><div class="said"><h2 id="verdict-title" class="word">{}{word}</h2><p class="reason">{}</p></div>{}</section>"#,
        sign(verdict.outcome),
        esc(&verdict.reason),
        score(report),
    );
    html.push_str(&tiles(report));
    html.push_str(r#"<section class="card" aria-labelledby="hypotheses-title"><h2 id="hypotheses-title">What had to hold</h2>"#);
    if report.hypothesis.is_empty() {
        html.push_str(r#"<p class="empty">The experiment names no hypothesis: it measures, and there is nothing that could fail.</p>"#);
    } else {
        let rows = report
            .hypothesis
            .iter()
            .map(|result| vec![esc(&result.statement).into_owned(), format!("<strong>{}</strong>", esc(&result.observed)), badge(result.outcome)]);
        html.push_str(&table("Hypotheses with what was observed", "hypotheses", &["Hypothesis", "Observed", "Outcome"], rows));
    }
    html.push_str("</section>");
    html
}

fn score(report: &Report) -> String {
    let verdict = &report.verdict;
    let Some(score) = verdict.score else {
        return r#"<div class="score"><p class="total"><span>no score: the run did not come to its end</span></p></div>"#.to_owned();
    };
    let mut html = format!(r#"<div class="score"><p class="total"><strong>{score}</strong><span> of 100</span></p>"#);
    if !verdict.score_parts.is_empty() {
        html.push_str(r#"<ul class="parts">"#);
        for part in &verdict.score_parts {
            let share = if part.out_of > 0.0 { (part.points / part.out_of).clamp(0.0, 1.0) } else { 0.0 };
            let _ = write!(
                html,
                r#"<li><span class="name">{}</span><span class="bar" aria-hidden="true"><i style="width:{:.1}%"></i></span><span class="points">{} / {}</span></li>"#,
                esc(&part.name),
                share * 100.0,
                points(part.points),
                points(part.out_of)
            );
        }
        html.push_str("</ul>");
    }
    html.push_str("</div>");
    html
}

fn points(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// The phase of this kind in which the latency of one in a hundred was highest.
pub(super) fn worst_latency(report: &Report, kind: PhaseKind) -> Option<&Phase> {
    report
        .phases
        .iter()
        .filter(|phase| phase.kind == kind && phase.service.latency.count > 0)
        .max_by(|a, b| a.service.latency.p99_ms.total_cmp(&b.service.latency.p99_ms))
}

fn tiles(report: &Report) -> String {
    let Service { availability, consistency, .. } = &report.total;
    let mut html = r#"<section aria-label="Key figures"><dl class="tiles">"#.to_owned();
    let mut tile = |term: &str, figure: &str, below: &str| {
        let _ = write!(html, r#"<div class="tile"><dt>{term}</dt><dd class="figure">{figure}</dd><dd class="below">{below}</dd></div>"#);
    };

    tile(
        "Availability",
        &percent_or(availability.ratio, "no requests"),
        &if availability.attempted == 0 {
            "Nothing was sent.".to_owned()
        } else {
            format!("{} of {} requests answered well; {}", count(availability.good), count(availability.attempted), causes(availability))
        },
    );

    let baseline = worst_latency(report, PhaseKind::Baseline).map(|phase| phase.service.latency.p99_ms);
    match (baseline, worst_latency(report, PhaseKind::Fault)) {
        (None, None) => tile("Latency, p99", "no answers", "Nothing was measured."),
        (baseline, fault) => tile(
            "Latency, p99",
            &format!(r#"{}<span class="arrow"> → </span>{}"#, span_or_dash(baseline), span_or_dash(fault.map(|phase| phase.service.latency.p99_ms))),
            &fault.map_or_else(|| "baseline; no fault lasted".to_owned(), |phase| format!("baseline → worst fault, “{}”", esc(&phase.name))),
        ),
    }

    let recovery = &report.recovery;
    let recovered = recovery.outages.saturating_sub(recovery.censored);
    if recovery.outages == 0 {
        if report.pods.is_empty() { tile("Recovery", "not measured", "No pod was seen.") } else { tile("Recovery", "none needed", "No pod was lost.") }
    } else {
        tile(
            "Recovery to correct answers",
            &recovery.first_correct_p50_ms.map_or_else(|| "not reached".to_owned(), span),
            &match recovery.first_correct_max_ms {
                Some(max) => format!("median; longest {}", span(max)),
                None if recovery.first_correct_p50_ms.is_some() => "median; the longest had not ended with the run".to_owned(),
                None => "at least half of the outages had not ended with the run".to_owned(),
            },
        );
    }

    let replays = consistency.replays_matched + consistency.replays_mismatched;
    let wrong = consistency.answers_checked.saturating_sub(consistency.answers_right) + consistency.replays_mismatched;
    tile(
        "Consistency",
        &percent_or(consistency.ratio, "not checked"),
        &if consistency.ratio.is_none() {
            "No answer was compared.".to_owned()
        } else {
            format!("{} wrong of {} answers and {} replays", count(wrong), count(consistency.answers_checked), count(replays))
        },
    );

    tile(
        "Outages",
        &count(recovery.outages.into()),
        &match (recovery.outages, recovery.censored) {
            (0, _) => if report.pods.is_empty() { "no pod was seen" } else { "every pod stayed" }.to_owned(),
            (_, 0) => format!("all recovered; capacity back after {} (median)", span_or_dash(recovery.sustained_p50_ms)),
            (_, censored) => format!("{} recovered, {} not before the run ended", count(recovered.into()), count(censored.into())),
        },
    );
    html.push_str("</dl></section>");
    html
}

/// Failures by cause, in words.
pub(super) fn causes(availability: &Availability) -> String {
    let causes: Vec<_> = [
        (availability.failed_upstream, "model server"),
        (availability.failed_injected, "injected"),
        (availability.failed_proxy, "sidecar or gateway"),
        (availability.failed_silence, "silence"),
    ]
    .into_iter()
    .filter(|(failed, _)| *failed > 0)
    .map(|(failed, cause)| format!("{} {cause}", count(failed)))
    .collect();
    if causes.is_empty() { "none failed".to_owned() } else { format!("failed: {}", causes.join(", ")) }
}

/// What a search result or a screen reader says of the page.
pub(super) fn summary(report: &Report) -> String {
    let availability = report.total.availability.ratio.map_or_else(String::new, |ratio| format!(", availability {}", percent(ratio)));
    format!(
        "{}: {}{availability}, {}.",
        outcome(report.verdict.outcome).0,
        report.verdict.reason.trim_end_matches('.'),
        counted(report.recovery.outages.into(), "outage")
    )
}
