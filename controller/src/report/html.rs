//! `report.html`: one file that opens offline and asks the network for nothing.
//!
//! Everything that is words and figures is written here, as HTML that needs no script; the browser adds the charts, drawn by Apache ECharts from a small extract
//! of the report. A content security policy allows these very scripts, by their hashes, and no other, and no connection to anywhere: should a name in a report
//! ever become markup, it could still do nothing.
//!
//! Order of the page: did it hold? · what did users see? · where did the time go? · were the answers right? · what should I change? · how do I run it again?

mod closing;
mod consistency;
mod floor;
mod markup;
mod timeline;
mod verdict;
mod view;
mod waterfall;

use sha2::{Digest, Sha256};
use steadfast_api::report::Report;

use markup::{esc, script_json, span};

const STYLE: &str = include_str!("assets/report.css");
const CHARTS: &str = include_str!("assets/echarts.js");
/// One script, in parts by what they draw.
const PAGE: &str = concat!(
    "\"use strict\";(() => {\n",
    include_str!("assets/js/base.js"),
    include_str!("assets/js/timeline.js"),
    include_str!("assets/js/service.js"),
    include_str!("assets/js/waterfall.js"),
    include_str!("assets/js/page.js"),
    "})();\n"
);

/// The page. `report` is its only source.
pub fn render(report: &Report) -> String {
    let view = view::View::new(report);
    let data = script_json(&view);
    let sections = [
        verdict::section(report),
        timeline::section(report, &view),
        waterfall::section(report, &view),
        consistency::section(report),
        closing::advice(report),
        closing::phases(report),
        closing::again(report),
    ]
    .concat();
    let name = esc(&report.test.metadata.name);
    format!(
        r##"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{charts_hash}' 'sha256-{page_hash}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="{summary}">
<meta name="generator" content="Steadfast {version}">
<link rel="icon" href="data:,">
<title>{outcome}: {name} – Steadfast</title>
<style>
{STYLE}</style>
</head>
<body>
<a class="skip" href="#verdict">To the verdict</a>
<header>
<div class="title"><p class="brand">Steadfast</p><h1>{name}</h1><p class="meta"><time datetime="{started}">{began}</time> · {duration} · {platform} platform · run {id}</p></div>
<button type="button" id="theme" class="quiet scripted" hidden>Dark</button>
</header>
<nav aria-label="Sections"><a href="#verdict">Verdict</a><a href="#users">What users saw</a><a href="#recovery">Recovery</a><a href="#answers">Answers</a><a href="#advice">Advice</a><a href="#phases">Phases</a><a href="#again">Run it again</a></nav>
<main>
{sections}
</main>
<footer><p>Made by Steadfast {version} from <code>report.json</code>, and from nothing else. Charts by Apache ECharts (Apache-2.0). This file asks the network for nothing.</p></footer>
<script type="application/json" id="data">{data}</script>
<script>{CHARTS}</script>
<script>{PAGE}</script>
</body>
</html>
"##,
        charts_hash = hash(CHARTS),
        page_hash = hash(PAGE),
        summary = esc(&verdict::summary(report)),
        version = esc(&report.run.version),
        outcome = markup::outcome(report.verdict.outcome).0,
        started = esc(&report.run.started),
        began = esc(&date(&report.run.started)),
        duration = span(report.run.duration_ms),
        platform = esc(&report.run.platform),
        id = esc(&report.run.id),
    )
}

/// `2026-11-23T05:11:57Z` with its letters spelt out.
fn date(rfc3339: &str) -> String {
    rfc3339
        .strip_suffix('Z')
        .and_then(|utc| utc.split_once('T'))
        .map_or_else(|| rfc3339.to_owned(), |(day, time)| format!("{day} {} UTC", time.split('.').next().unwrap_or(time)))
}

/// SHA-256 in base64, as a content security policy wants it.
fn hash(script: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digest = Sha256::digest(script.as_bytes());
    let mut text = String::with_capacity(44);
    for group in digest.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            // A short last group fills up with `=`.
            text.push(if place <= group.len() { char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_named_by_its_hash() {
        // The well-known digests of the empty text and of `abc`.
        assert_eq!(hash(""), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(hash("abc"), "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
    }

    #[test]
    fn no_script_ends_its_own_element_or_names_a_host_to_load_from() {
        for script in [CHARTS, PAGE] {
            // CR: a browser reads it as LF, and the hash would not fit.
            assert!(!script.contains("</script") && !script.contains('\r') && !script.contains("<!--") && !script.contains("import("));
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import") && !STYLE.contains("</"));
    }
}
