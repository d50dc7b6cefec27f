//! What should I change? The phases in figures. How do I run it again, on what this ran, and what the words mean.

use std::fmt::Write;

use steadfast_api::report::{FaultWindow, PhaseKind, Report};

use super::{
    markup::{clock, count, counted, esc, percent_or, span, span_or_dash, table},
    verdict::causes,
    waterfall::MARKS,
};

pub(super) fn advice(report: &Report) -> String {
    let mut html = r#"<section id="advice" class="card" aria-labelledby="advice-title"><h2 id="advice-title">What should I change?</h2>"#.to_owned();
    if report.advice.is_empty() {
        html.push_str(r#"<p class="empty">Nothing that this run saw calls for a change.</p>"#);
    } else {
        html.push_str(r#"<ol class="advice">"#);
        for advice in &report.advice {
            let _ = write!(
                html,
                "<li><h3>{}</h3><dl><dt>Evidence</dt><dd>{}</dd><dt>Expected gain</dt><dd>{}</dd></dl></li>",
                esc(&advice.title),
                esc(&advice.evidence),
                esc(&advice.gain)
            );
        }
        html.push_str("</ol>");
    }
    html.push_str("</section>");
    html
}

pub(super) fn phases(report: &Report) -> String {
    let mut html = r#"<section id="phases" class="card" aria-labelledby="phases-title"><h2 id="phases-title">Phase by phase</h2>"#.to_owned();
    if report.phases.is_empty() {
        html.push_str(r#"<p class="empty">The run ended before its first phase.</p>"#);
    } else {
        let rows = report.phases.iter().map(|phase| {
            let (availability, latency) = (&phase.service.availability, &phase.service.latency);
            let measured = |ms: f64| if latency.count == 0 { "–".to_owned() } else { span(ms) };
            let kind = match phase.kind {
                PhaseKind::Baseline => "baseline".to_owned(),
                PhaseKind::Fault => format!("fault, round {}", phase.round),
                PhaseKind::Recovery => {
                    let stable =
                        phase.stable_ms.map_or_else(|| "not stable before the deadline".to_owned(), |at| format!("stable after {}", span(at - phase.start_ms)));
                    format!("recovery, {stable}")
                }
            };
            vec![
                format!(r#"{}<span class="under">{kind}</span>"#, esc(&phase.name)),
                clock(phase.start_ms),
                span(phase.end_ms - phase.start_ms),
                count(availability.attempted),
                percent_or(availability.ratio, "–"),
                if availability.attempted == 0 { "–".to_owned() } else { causes(availability).trim_start_matches("failed: ").to_owned() },
                measured(latency.p50_ms),
                measured(latency.p99_ms),
                measured(latency.max_ms),
                percent_or(phase.service.consistency.ratio, "–"),
            ]
        });
        let columns = ["Phase", "Begins", "Lasts", "Requests", "Available", "Failed", "p50", "p99", "Longest", "Right"];
        html.push_str(&table("Phases with their figures", "figures", &columns, rows));
    }
    if !report.faults.is_empty() {
        html.push_str("<h3>Faults, and the proof that they happened</h3>");
        html.push_str(&table(
            "Faults with their evidence",
            "",
            &["Fault", "What", "Where", "Begins", "Lasts", "Proof", "Undone"],
            report.faults.iter().map(fault),
        ));
    }
    html.push_str("</section>");
    html
}

fn fault(fault: &FaultWindow) -> Vec<String> {
    let none = fault.evidence.is_empty().then(|| "<strong>none: it may not have happened</strong>".to_owned());
    let said = fault.evidence.iter().chain(&fault.doubts).map(|words| esc(words).into_owned());
    let proof = none.into_iter().chain(said).collect::<Vec<_>>().join("<br>");
    vec![
        format!(r#"{}<span class="under"><code>{}</code></span>"#, esc(&fault.name), esc(&fault.action)),
        esc(&fault.description).into_owned(),
        format!("{}{}", list(&fault.nodes), if fault.pods.is_empty() { String::new() } else { format!(r#"<span class="under">{}</span>"#, list(&fault.pods)) }),
        clock(fault.start_ms),
        span_or_dash((fault.end_ms > fault.start_ms).then_some(fault.end_ms - fault.start_ms)),
        proof,
        fault.undone_ms.map_or_else(|| "<strong>not undone</strong>".to_owned(), |at| format!("at\u{a0}{}", clock(at))),
    ]
}

/// Names, the first few of them.
fn list(names: &[String]) -> String {
    const MAX: usize = 6;
    let shown: Vec<_> = names.iter().take(MAX).map(|name| esc(name)).collect();
    let more = if names.len() > MAX { format!(" and {} more", names.len() - MAX) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

pub(super) fn again(report: &Report) -> String {
    let run = &report.run;
    // The type cannot hold what YAML cannot write; were it otherwise, the page would still say where the input is.
    let input = steadfast_api::read::to_yaml(&report.test).unwrap_or_else(|reason| format!("# see `test` in report.json ({reason})"));
    let mut html = r#"<section id="again" class="card" aria-labelledby="again-title"><h2 id="again-title">How do I run it again?</h2>"#.to_owned();
    let _ = write!(
        html,
        r#"<div class="code"><pre id="rerun" tabindex="0"><code>{}</code></pre><button type="button" class="copy scripted" data-copy="rerun" hidden>Copy</button></div>"#,
        esc(&report.rerun)
    );
    let _ = write!(
        html,
        r#"<p class="note">Seed {}: the same pods and nodes are chosen, and the same samples drawn in the same order.</p><details><summary>The experiment, with every default written out</summary><div class="code"><pre id="input" tabindex="0"><code>{}</code></pre><button type="button" class="copy scripted" data-copy="input" hidden>Copy</button></div></details>"#,
        report.test.spec.seed,
        esc(&input)
    );
    html.push_str(r#"<div class="pair"><div><h3>This run</h3><dl class="facts">"#);
    let load: Vec<_> = report.test.spec.load.iter().map(|load| format!("{} at {}", esc(&load.name), load.rate)).collect();
    let rss = report.pods.iter().filter_map(|pod| pod.sidecar_rss_bytes).max();
    for (term, fact) in [
        ("Run", esc(&run.id).into_owned()),
        ("Began", esc(&run.started).into_owned()),
        ("Lasted", span(run.duration_ms)),
        ("Platform", format!("{}, {}", esc(&run.platform), counted(report.nodes.len() as u64, "node"))),
        ("Machine", format!("{}, {}, {}", esc(&run.machine.os), esc(&run.machine.architecture), counted(run.machine.cores.into(), "core"))),
        ("Steadfast", esc(&run.version).into_owned()),
        ("Load", if load.is_empty() { "none".to_owned() } else { load.join(", ") }),
        ("Sidecar’s memory", rss.map_or_else(|| "not measured".to_owned(), |bytes| format!("at most {:.1} MiB", bytes as f64 / 1_048_576.0))),
    ] {
        let _ = write!(html, "<div><dt>{term}</dt><dd>{fact}</dd></div>");
    }
    html.push_str("</dl></div><div><h3>Left behind</h3>");
    if run.left_behind.is_empty() {
        html.push_str(r#"<p class="note">Nothing: everything that the run changed is back as it was.</p>"#);
    } else {
        bullets(&mut html, "left", &run.left_behind);
    }
    html.push_str("<h3>How far the figures carry</h3>");
    if run.notes.is_empty() {
        html.push_str(r#"<p class="note">Nothing was out of the ordinary.</p>"#);
    } else {
        bullets(&mut html, "notes", &run.notes);
    }
    html.push_str("</div></div>");
    html.push_str(&words());
    html.push_str("</section>");
    html
}

fn bullets(html: &mut String, class: &str, items: &[String]) {
    let _ = write!(html, r#"<ul class="{class}">"#);
    for item in items {
        let _ = write!(html, "<li>{}</li>", esc(item));
    }
    html.push_str("</ul>");
}

fn words() -> String {
    let mut html = r#"<details><summary>What the words mean</summary><dl class="words">"#.to_owned();
    for (word, meaning) in [
        ("Availability", "good responses ÷ requests attempted. No answer in time is silence, and counts as unavailable."),
        ("Latency", "from the moment a request was due to its last byte: a late send counts, and so does the wait of a user who gave up."),
        ("Origin", "who made an answer: the model server (upstream), a fault (injected), or sidecar and gateway (proxy)."),
        ("Consistency", "right answers ÷ answers compared, over users’ answers and golden replays. A wrong answer is available, and inconsistent."),
        ("Golden set", "inputs with known right answers. Every sidecar replays them and compares within the set’s tolerances."),
        (
            "Golden verdict",
            "Pass: enough replays to exclude drift. Fail: more wrong answers than chance allows. Inconclusive: too few replays yet. ReferenceBroken: the reference does not reproduce its own answers.",
        ),
        ("Outage", "one pod taken away, from the fault (t0) until good service that lasted (t12)."),
        ("Routing outage", "first to last failure that users saw: how long traffic still went to the wrong place."),
        ("Capacity outage", "t0 to t12: how long the pod’s share of the work was missing."),
        ("Censored", "not recovered when the run ended: its length is a lower bound, and it stays in every statistic as that."),
    ] {
        let _ = write!(html, "<div><dt>{word}</dt><dd>{meaning}</dd></div>");
    }
    for (_, number, name, says) in MARKS {
        let _ = write!(html, "<div><dt>{number} {name}</dt><dd>{says}.</dd></div>");
    }
    html.push_str("</dl></details>");
    html
}
