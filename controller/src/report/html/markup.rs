//! Text and figures as the page writes them. Whatever comes from outside passes through [`esc`] before it becomes markup.

use std::{borrow::Cow, fmt::Write};

use steadfast_api::report::RunOutcome;

/// `text` with the five characters replaced that mean something in HTML; right in element text and in quoted attributes.
pub(super) fn esc(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

/// JSON that can stand inside a `script` element: no `<`, and none of the two line ends that JavaScript once refused in strings.
pub(super) fn script_json(value: &impl serde::Serialize) -> String {
    // The page's data are plain structures of numbers and text: nothing in them can fail to be written.
    let json = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// `12345` as `12,345`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 outage`, `2 outages`.
pub(super) fn counted(value: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(value), if value == 1 { "" } else { "s" })
}

/// Milliseconds as a person reads them: `0.42 ms`, `508 ms`, `14.2 s`, `2 min 5 s`. Figure and unit stay on one line.
pub(super) fn span(ms: f64) -> String {
    let size = ms.abs();
    if !ms.is_finite() {
        "—".to_owned()
    } else if size == 0.0 {
        "0\u{a0}s".to_owned()
    } else if size < 9.995 {
        format!("{ms:.2}\u{a0}ms")
    } else if size < 999.5 {
        format!("{ms:.0}\u{a0}ms")
    } else if size < 9_995.0 {
        format!("{:.2}\u{a0}s", ms / 1e3)
    } else if size < 99_950.0 {
        format!("{:.1}\u{a0}s", ms / 1e3)
    } else {
        let seconds = (ms / 1e3).round();
        let (minutes, rest) = ((seconds / 60.0).trunc(), (seconds % 60.0).abs());
        if rest == 0.0 { format!("{minutes:.0}\u{a0}min") } else { format!("{minutes:.0}\u{a0}min\u{a0}{rest:.0}\u{a0}s") }
    }
}

/// [`span`], or a dash.
pub(super) fn span_or_dash(ms: Option<f64>) -> String {
    ms.map_or_else(|| "–".to_owned(), span)
}

/// A moment of the run, such as `1:05.2`.
pub(super) fn clock(ms: f64) -> String {
    let tenths = (ms.max(0.0) / 100.0).round() as u64;
    format!("{}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

/// A share as a percentage with two decimals, rounded down: 99.996% is not 100%.
pub(super) fn percent(ratio: f64) -> String {
    // The tiny addend keeps 0.9993 × 10,000 from becoming 9992.999….
    let hundredths = (ratio * 10_000.0 + 1e-6).floor();
    if hundredths >= 10_000.0 { "100%".to_owned() } else { format!("{:.2}%", hundredths / 100.0) }
}

/// [`percent`], or what to say instead.
pub(super) fn percent_or(ratio: Option<f64>, otherwise: &str) -> String {
    ratio.map_or_else(|| otherwise.to_owned(), percent)
}

/// An outcome's word, its class, and its sign: told apart by shape and word as well as by colour.
pub(super) const fn outcome(outcome: RunOutcome) -> (&'static str, &'static str) {
    match outcome {
        RunOutcome::Pass => ("Pass", "pass"),
        RunOutcome::Fail => ("Fail", "fail"),
        RunOutcome::Inconclusive => ("Inconclusive", "inconclusive"),
        RunOutcome::Halted => ("Halted", "halted"),
    }
}

/// The sign of an outcome as inline SVG; a word always stands beside it.
pub(super) const fn sign(outcome: RunOutcome) -> &'static str {
    match outcome {
        RunOutcome::Pass => r#"<svg class="sign" viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="9"/><path d="M5.5 10.4l3 3 6-6.6"/></svg>"#,
        RunOutcome::Fail => {
            r#"<svg class="sign" viewBox="0 0 20 20" aria-hidden="true"><path class="body" d="M6.2 1h7.6L19 6.2v7.6L13.8 19H6.2L1 13.8V6.2z"/><path d="M6.6 6.6l6.8 6.8M13.4 6.6l-6.8 6.8"/></svg>"#
        }
        RunOutcome::Inconclusive => {
            r#"<svg class="sign" viewBox="0 0 20 20" aria-hidden="true"><path class="body" d="M10 .8L19.2 10 10 19.2.8 10z"/><path d="M10 5.6v5.2M10 14.2v.1"/></svg>"#
        }
        RunOutcome::Halted => {
            r#"<svg class="sign" viewBox="0 0 20 20" aria-hidden="true"><rect class="body" x="1.5" y="1.5" width="17" height="17" rx="3"/><path d="M7.5 6v8M12.5 6v8"/></svg>"#
        }
    }
}

/// The badge of an outcome.
pub(super) fn badge(of: RunOutcome) -> String {
    let (word, class) = outcome(of);
    format!(r#"<span class="badge {class}">{}{word}</span>"#, sign(of))
}

/// A table in a frame that scrolls by itself, so that the page never does. Cells are markup; on a narrow screen every row becomes a card whose cells carry
/// their column's name.
pub(super) fn table(label: &str, class: &str, columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut html = format!(
        r#"<div class="frame {class}" role="region" aria-label="{0}" tabindex="0"><table><caption class="unseen">{0}</caption><thead><tr>"#,
        esc(label)
    );
    for column in columns {
        let _ = write!(html, r#"<th scope="col">{column}</th>"#);
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for (index, cell) in row.iter().enumerate() {
            let column = columns.get(index).copied().unwrap_or_default();
            if index == 0 {
                let _ = write!(html, r#"<th scope="row" data-column="{column}">{cell}</th>"#);
            } else {
                let _ = write!(html, r#"<td data-column="{column}"><div>{cell}</div></td>"#);
            }
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_become_markup() {
        assert_eq!(esc("a</script><img src='x' onerror=\"y\">&"), "a&lt;/script&gt;&lt;img src=&#39;x&#39; onerror=&quot;y&quot;&gt;&amp;");
        assert!(matches!(esc("plain"), Cow::Borrowed("plain")));
    }

    #[test]
    fn embedded_json_cannot_end_its_element_and_reads_back() {
        let text = "</script><!--<script>\u{2028}\u{2029}";
        let json = script_json(&text);
        assert!(!json.contains(['<', '\u{2028}', '\u{2029}']), "{json}");
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }

    #[test]
    fn a_share_is_never_rounded_up_to_whole() {
        for (ratio, text) in [(1.0, "100%"), (0.99999, "99.99%"), (0.9993, "99.93%"), (0.0, "0.00%"), (0.5, "50.00%"), (0.07, "7.00%")] {
            assert_eq!(percent(ratio), text);
        }
    }

    #[test]
    fn times_keep_three_figures_and_their_unit() {
        for (ms, text) in [
            (0.0, "0 s"),
            (0.42, "0.42 ms"),
            (9.999, "10 ms"),
            (508.2, "508 ms"),
            (999.7, "1.00 s"),
            (14_210.0, "14.2 s"),
            (99_960.0, "1 min 40 s"),
            (120_000.0, "2 min"),
            (3_725_000.0, "62 min 5 s"),
        ] {
            assert_eq!(span(ms).replace('\u{a0}', " "), text);
        }
        assert_eq!((clock(65_240.0), clock(0.0), clock(3_599_960.0)), ("1:05.2".to_owned(), "0:00.0".to_owned(), "60:00.0".to_owned()));
        assert_eq!((count(0), count(999), count(1_000), count(12_345_678)), ("0".into(), "999".into(), "1,000".into(), "12,345,678".into()));
    }
}
