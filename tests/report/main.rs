//! Does the report show what the run saw? Opens `report.html` in a headless Chromium: wide, narrow, dark and on paper, with reports from empty to huge.
//!
//! Without a Chromium these tests say so and pass; with `STEADFAST_REQUIRE_CHROMIUM=1` they fail instead. `CHROMIUM` names the binary, and
//! `STEADFAST_REPORT_PICTURES` a directory that receives pictures and pages to look at.

mod browser;
mod extremes;
mod sample;

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use browser::{Browser, Screen};
use serde_json::{Value, json};
use steadfast_api::report::{PodState, Report};
use steadfast_controller::report::html::render;
use tempfile::TempDir;

/// A browser, or `None` after saying that this test did not run.
fn browser(test: &str) -> Option<Browser> {
    if let Some(binary) = browser::find() {
        return Some(Browser::start(&binary));
    }
    let reason = "no chromium, chromium-browser or google-chrome is in PATH, and CHROMIUM names none";
    assert!(env::var_os("STEADFAST_REQUIRE_CHROMIUM").is_none_or(|required| required != "1"), "{test}: {reason}");
    // Past the test runner's capture: what did not run is always said.
    let _ = writeln!(std::io::stderr(), "not run: {test}, because {reason}");
    None
}

struct Page {
    _directory: TempDir,
    file: PathBuf,
}

fn page(html: &str) -> Page {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("report.html");
    fs::write(&file, html).expect("the page is written");
    Page { _directory: directory, file }
}

/// What is drawn in every chart: how many shapes that a person can see, and how many words.
const DRAWN: &str = r#"
[...document.querySelectorAll(".chart")].map((chart) => ({
  id: chart.id,
  shapes: [...chart.querySelectorAll("svg path, svg rect, svg polygon, svg polyline, svg line, svg circle")].filter((shape) => {
    const seen = (paint, opacity) => paint && paint !== "none" && paint !== "transparent" && opacity !== "0";
    const box = shape.getBBox();
    return (seen(shape.getAttribute("fill"), shape.getAttribute("fill-opacity")) || seen(shape.getAttribute("stroke"), shape.getAttribute("stroke-opacity"))) && (box.width > 0 || box.height > 0) && !shape.closest("defs");
  }).length,
  words: [...chart.querySelectorAll("svg text")].map((text) => text.textContent.trim()).filter(Boolean),
  wide: chart.querySelector("svg")?.getBoundingClientRect().width ?? 0,
  frame: chart.clientWidth,
}))"#;

/// Shapes that a report demands at least, by chart. Lanes beyond those first shown may be left out.
fn demanded(report: &Report) -> Vec<(&'static str, usize)> {
    let mut charts = Vec::new();
    let stretches = report.pods.iter().flat_map(|pod| &pod.states).filter(|stretch| stretch.state != PodState::Gone).count();
    let requests = report.series.all.iter().any(|bucket| bucket.attempted > 0);
    if !report.pods.is_empty() || report.total.availability.attempted > 0 {
        let lanes = if report.pods.iter().any(|pod| pod.lane > 15) { 12 } else { stretches };
        // Availability has a shape a stretch of equal buckets, latency two lines.
        charts.push(("timeline", report.phases.len() + lanes + if requests { 8 } else { 0 }));
    }
    if !report.outages.is_empty() {
        let marks: usize = report.outages.iter().map(|outage| outage.marks.0.len().saturating_sub(4).max(1)).sum();
        charts.push(("waterfall", marks.min(200)));
    }
    charts
}

/// Words that a chart must show: each lane's first pod, both series of figures; each outage.
fn named(report: &Report, chart: &str) -> Vec<String> {
    if chart == "waterfall" {
        return report.outages.iter().take(12).map(|outage| format!("#{} ", outage.id)).collect();
    }
    let mut lanes = std::collections::BTreeMap::new();
    for pod in &report.pods {
        lanes.entry(pod.lane).or_insert(pod.name.clone());
    }
    let mut words: Vec<_> = if lanes.len() > 16 { Vec::new() } else { lanes.into_values().collect() };
    if report.total.availability.attempted > 0 {
        words.extend(["Availability".to_owned(), "Latency".to_owned()]);
    }
    words
}

/// Everything that is wrong with an open page. Empty: it shows what its report demands, and nothing complained.
fn faults(browser: &mut Browser, report: &Report) -> Vec<String> {
    let mut faults = browser.complaints();
    if browser.evaluate("document.documentElement.dataset.ready") != "true" {
        faults.push("the page's script did not end".into());
    }
    let overflow = browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth").as_i64().unwrap_or(i64::MAX);
    if overflow > 0 {
        let widest = browser.evaluate(
            "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.frame, svg, nav, .chart') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).slice(0, 3).map((e) => e.outerHTML.slice(0, 120)).join(' … ')",
        );
        faults.push(format!("the page scrolls sideways by {overflow} px: {widest}"));
    }
    let drawn = browser.evaluate(DRAWN);
    let drawn = drawn.as_array().expect("a list");
    for (id, shapes) in demanded(report) {
        match drawn.iter().find(|chart| chart["id"] == id) {
            None => faults.push(format!("chart {id} is missing")),
            Some(chart) => {
                if chart["shapes"].as_u64().unwrap_or(0) < shapes as u64 {
                    faults.push(format!("chart {id} is empty: {} shapes, where the report demands {shapes}", chart["shapes"]));
                }
                let words = chart["words"].as_array().expect("a list");
                for word in named(report, id) {
                    // A long name is cut.
                    let start: String = word.trim_start().chars().take(8).collect();
                    if !words.iter().any(|drawn| drawn.as_str().is_some_and(|drawn| drawn.contains(start.trim_end()))) {
                        faults.push(format!("chart {id} is empty: it does not say {word:?}"));
                    }
                }
                if chart["wide"].as_f64().unwrap_or(0.0) > chart["frame"].as_f64().unwrap_or(0.0) + 1.0 {
                    faults.push(format!("chart {id} is wider than its frame: {chart}"));
                }
            }
        }
    }
    for chart in drawn {
        if !demanded(report).iter().any(|(id, _)| chart["id"] == *id) {
            faults.push(format!("chart {} is there though the report has nothing to draw in it", chart["id"]));
        }
    }
    faults
}

/// For people: a picture and the page, where somebody asked for them.
fn keep(browser: &mut Browser, name: &str, html: &str, screen: Screen) {
    let Some(directory) = env::var_os("STEADFAST_REPORT_PICTURES").map(PathBuf::from) else { return };
    fs::create_dir_all(&directory).expect("a directory for pictures");
    fs::write(directory.join(format!("{name}.html")), html).expect("the page is kept");
    let picture = browser.picture(screen.width);
    fs::write(directory.join(format!("{name}-{}{}.png", screen.width, if screen.dark { "-dark" } else { "" })), picture).expect("the picture is kept");
}

const SCREENS: [Screen; 3] = [Screen::DESKTOP, Screen::DARK, Screen::PHONE];

#[test]
fn every_report_opens_without_a_complaint_and_without_an_empty_chart() {
    let Some(mut browser) = browser("every_report_opens_without_a_complaint_and_without_an_empty_chart") else { return };
    for (name, report) in [
        ("case-study", sample::case_study()),
        ("nothing", extremes::nothing()),
        ("no-requests", extremes::no_requests()),
        ("zero-outages", extremes::zero_outages()),
        ("an-hour", extremes::an_hour()),
        ("many-pods", extremes::many_pods()),
        ("hostile-names", extremes::hostile_names()),
        ("continues", extremes::continues(40.0)),
        ("continues-long", extremes::continues(3_000.0)),
    ] {
        let html = render(&report);
        let page = page(&html);
        for screen in SCREENS {
            browser.open(&page.file, screen);
            let found = faults(&mut browser, &report);
            keep(&mut browser, name, &html, screen);
            assert!(found.is_empty(), "{name} at {} px: {found:#?}", screen.width);
        }
    }
}

#[test]
fn a_broken_page_is_caught() {
    let Some(mut browser) = browser("a_broken_page_is_caught") else { return };
    let report = sample::case_study();
    let html = render(&report);
    for (broken, says) in [
        // A chart whose data are gone.
        (html.replacen("\"lanes\":[{", "\"lanes\":[],\"other\":[{", 1), "chart timeline is empty: it does not say \"recommender"),
        (html.replacen("\"attempted\":[", "\"attempted\":[],\"other\":[", 1), "chart timeline is empty: it does not say \"Availability"),
        (html.replacen("\"bars\":[1,2,3]", "\"bars\":[]", 1), "chart waterfall is empty"),
        (html.replacen("id=\"waterfall\"", "id=\"waterfal\"", 1), "chart waterfall is missing"),
        // Data that the script cannot read.
        (html.replacen("\"durationMs\":", "\"durationMs\":,", 1), "exception"),
        // A script that nobody allowed; a script that was changed.
        (html.replacen("</main>", "</main><script>document.title = 'mine'</script>", 1), "Content Security Policy"),
        (html.replacen("const data = JSON", "const  data = JSON", 1), "did not end"),
        // Something from the network.
        (html.replacen("</main>", "</main><img src=\"http://127.0.0.1:9/x\" alt=\"\">", 1), "Content Security Policy"),
        // Something too wide.
        (html.replacen("</main>", "</main><div style=\"width:2000px\">wide</div>", 1), "scrolls sideways"),
    ] {
        assert_ne!(broken, html, "{says}: the page has changed its words, and this test must follow");
        browser.open(&page(&broken).file, Screen::DESKTOP);
        let found = faults(&mut browser, &report);
        assert!(found.iter().any(|fault| fault.contains(says)), "{says}: {found:#?}");
    }
}

#[test]
fn what_began_before_the_window_is_drawn_there_or_has_an_arrow() {
    let Some(mut browser) = browser("what_began_before_the_window_is_drawn_there_or_has_an_arrow") else { return };
    for (since, arrow) in [(40.0, false), (3_000.0, true)] {
        browser.open(&page(&render(&extremes::continues(since))).file, Screen::DESKTOP);
        let words = browser.evaluate("[...document.querySelectorAll('#timeline svg text')].map((text) => text.textContent)").to_string();
        assert!(words.contains("before this window") && words.contains("◀ since −50:00") == arrow, "{since}: {words}");
    }
    browser.open(&page(&render(&sample::case_study())).file, Screen::DESKTOP);
    let words = browser.evaluate("document.querySelector('#timeline').textContent").to_string();
    assert!(!words.contains("before this window") && !words.contains('−'), "{words}");
}

#[test]
fn names_with_markup_stay_text() {
    let html = render(&extremes::hostile_names());
    assert!(!html.contains("<img") && !html.contains("</script><script>document.title"), "markup from a name is in the page");
    let Some(mut browser) = browser("names_with_markup_stay_text") else { return };
    let page = page(&html);
    browser.open(&page.file, Screen::DESKTOP);
    hover_everywhere(&mut browser);
    assert_eq!(browser.evaluate("document.querySelectorAll('img, iframe, object').length + document.scripts.length"), 3);
    assert!(browser.evaluate("document.title").as_str().is_some_and(|title| title.contains("</script>")));
    assert_eq!(browser.evaluate("document.querySelector('h1').textContent"), json!(extremes::HOSTILE));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Points at everything drawn in every chart; returns what the tooltips said.
fn hover_everywhere(browser: &mut Browser) -> String {
    /// Shapes pointed at, by chart.
    const MOST: usize = 250;
    let mut said = String::new();
    for chart in ["timeline", "waterfall"] {
        browser.evaluate(&format!("scrollTo({{top: document.querySelector('#{chart}').getBoundingClientRect().top + scrollY - 60, behavior: 'instant'}})"));
        let places = browser.evaluate(&format!(
            "[...document.querySelectorAll('#{chart} svg path, #{chart} svg rect')].map((s) => s.getBoundingClientRect()).filter((b) => b.width + b.height > 1 && b.top > 0 && b.bottom < innerHeight).map((b) => [b.x + b.width / 2, b.y + b.height / 2])"
        ));
        for place in places.as_array().expect("a list").iter().take(MOST) {
            browser.call("Input.dispatchMouseEvent", &json!({"type": "mouseMoved", "x": place[0], "y": place[1]}));
            let tips = browser.evaluate("[...document.querySelectorAll('.tip')].map((tip) => tip.innerText).join(' ')");
            said.push_str(tips.as_str().unwrap_or_default());
            said.push('\n');
        }
    }
    said
}

#[test]
fn pointing_at_a_chart_tells_its_figures() {
    let Some(mut browser) = browser("pointing_at_a_chart_tells_its_figures") else { return };
    let page = page(&render(&sample::case_study()));
    browser.open(&page.file, Screen { height: 1000, ..Screen::DESKTOP });
    let said = hover_everywhere(&mut browser);
    for words in ["recommender-6f9c-x2kqp", "serving", "Golden replays", "requests", "p99", "until t8: model loaded", "fault", "Outage #", "baseline"] {
        assert!(said.contains(words), "no tooltip said {words:?}: {said}");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn theme_zoom_and_hidden_lanes_answer_to_their_buttons() {
    let Some(mut browser) = browser("theme_zoom_and_hidden_lanes_answer_to_their_buttons") else { return };
    let report = extremes::many_pods();
    let page = page(&render(&report));
    browser.open(&page.file, Screen::DESKTOP);
    let background = |browser: &mut Browser| browser.evaluate("getComputedStyle(document.body).backgroundColor");
    let light = background(&mut browser);
    browser.evaluate("document.querySelector('#theme').click()");
    assert_ne!(background(&mut browser), light);
    assert_eq!(faults(&mut browser, &report), Vec::<String>::new());

    let height = |browser: &mut Browser| browser.evaluate("document.querySelector('#timeline').clientHeight").as_u64().expect("a height");
    let before = height(&mut browser);
    browser.evaluate("document.querySelector('#all-lanes').click()");
    assert!(height(&mut browser) > 4 * before, "256 lanes take no more room than 12");
    assert_eq!(faults(&mut browser, &report), Vec::<String>::new());

    let labels = |browser: &mut Browser| {
        browser.evaluate("[...document.querySelectorAll('#timeline svg text')].map((t) => t.textContent).filter((t) => /^\\d+:\\d\\d/.test(t)).join(' ')")
    };
    let whole = labels(&mut browser);
    browser.evaluate("document.querySelectorAll('.zoom button')[2].click()");
    assert_ne!(labels(&mut browser), whole, "the axis shows the same times after zooming");
    assert_eq!(browser.evaluate("document.querySelector('.zoom [aria-pressed=true]').textContent"), json!("node lost"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn text_stands_out_from_its_ground_in_both_themes() {
    let Some(mut browser) = browser("text_stands_out_from_its_ground_in_both_themes") else { return };
    let page = page(&render(&sample::case_study()));
    for screen in [Screen::DESKTOP, Screen::DARK] {
        browser.open(&page.file, screen);
        // WCAG 2.1, 1.4.3: 4.5 to 1.
        let faint = browser.evaluate(
            r#"(() => {
              const parse = (c) => (c.match(/[\d.]+/g) ?? []).map(Number);
              const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
              const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c.slice(0, 3); } return [255, 255, 255]; };
              return [...document.querySelectorAll("body *")].filter((e) => !e.closest("svg, script, noscript") && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length).map((e) => {
                const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)];
              }).filter(([ratio]) => ratio < 4.5);
            })()"#,
        );
        assert_eq!(faint, json!([]), "dark: {}", screen.dark);
    }
}

#[test]
fn it_prints_with_light_charts_and_everything_open() {
    let Some(mut browser) = browser("it_prints_with_light_charts_and_everything_open") else { return };
    let report = sample::case_study();
    let page = page(&render(&report));
    browser.open(&page.file, Screen::DARK);
    browser.evaluate("dispatchEvent(new Event('beforeprint'))");
    assert_eq!(browser.evaluate("document.documentElement.dataset.theme"), json!("light"));
    assert_eq!(browser.evaluate("document.querySelectorAll('details:not([open])').length"), json!(0));
    assert_eq!(faults(&mut browser, &report), Vec::<String>::new());
    browser.evaluate("dispatchEvent(new Event('afterprint'))");
    assert_eq!(browser.evaluate("document.documentElement.dataset.theme ?? null"), Value::Null);
    assert_eq!(faults(&mut browser, &report), Vec::<String>::new());
}

#[test]
fn the_verdict_stands_in_the_page_without_a_script() {
    let report = sample::case_study();
    let html = render(&report);
    let words = html.split("<script").next().unwrap_or_default();
    assert!(words.contains("sha256-"), "the policy names its scripts' hashes");
    for says in [
        "Fail",
        "outage #3 of recommender-6f9c-w4lns had not ended",
        "99.45% of 60,000 requests",
        "availability ≥ 99% during the run",
        "1 not before the run ended",
        "≥ 19.0\u{a0}s",
        "seed: 7",
        "delay injected 3,981 times",
    ] {
        assert!(words.contains(says), "{says:?} is not in the page");
    }
}

#[test]
fn a_report_of_five_minutes_stays_below_900_kilobytes() {
    let size = render(&sample::case_study()).len();
    assert!(size < 900_000, "{size} bytes");
    let size = render(&extremes::many_pods()).len();
    assert!(size < 3_000_000, "256 pods: {size} bytes");
}

/// For people: `docs/report.png` is made like this from a real run's page.
#[test]
fn a_page_given_by_name_opens_without_a_complaint() {
    let Some(file) = env::var_os("STEADFAST_REPORT_PAGE").map(PathBuf::from) else { return };
    let Some(mut browser) = browser("a_page_given_by_name_opens_without_a_complaint") else { return };
    let file = fs::canonicalize(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for screen in SCREENS {
        browser.open(Path::new(&file), screen);
        let html = fs::read_to_string(&file).expect("a page");
        keep(&mut browser, "given", &html, screen);
        assert_eq!(browser.complaints(), Vec::<String>::new());
    }
}
