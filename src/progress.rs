//! Live progress: a few lines that redraw themselves on a terminal, one line for each phase and every ten seconds elsewhere.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use console::Style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use steadfast_api::{golden::Verdict, report::PodState};
use steadfast_controller::experiment::{
    Progress,
    hypothesis::{millis, share},
    progress::{PhaseNow, PodNow},
};
use tokio::sync::watch;

/// Between two plain lines of one phase.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// More pods than fit on a screen are counted in one line.
const PODS_SHOWN: usize = 12;

/// Shows progress until its sender goes away. On standard error where that is a terminal; else plain lines, on standard error if standard output is taken.
pub(crate) async fn show(mut hear: watch::Receiver<Progress>, stdout_is_taken: bool) {
    if std::io::stderr().is_terminal() {
        let mut screen = Screen::new();
        while hear.changed().await.is_ok() {
            screen.draw(&hear.borrow_and_update());
        }
        let _ = screen.all.clear();
        return;
    }
    let (mut phase, mut said) = (None, Instant::now());
    while hear.changed().await.is_ok() {
        let now = hear.borrow_and_update().clone();
        let new = phase.as_ref() != Some(&(now.number, now.phase.clone()));
        if !new && said.elapsed() < LINE_EVERY {
            continue;
        }
        let line = if new { format!("{}{}", title(&now), left(&now)) } else { format!("  {}", figures(&now)) };
        (phase, said) = (Some((now.number, now.phase)), Instant::now());
        // Nobody may be reading any more: no reason to stop.
        let _ = if stdout_is_taken { writeln!(std::io::stderr(), "{line}") } else { writeln!(std::io::stdout(), "{line}") };
    }
}

fn title(now: &Progress) -> String {
    let place = if now.number > 0 && now.of > 0 && now.phase != PhaseNow::CleanUp { format!("{} of {}: ", now.number, now.of) } else { String::new() };
    let what = match &now.phase {
        PhaseNow::WarmUp => "warm-up: pods come up and answer".to_owned(),
        PhaseNow::Baseline => "baseline".to_owned(),
        PhaseNow::Watch => "watching; Ctrl-C ends it and writes the report".to_owned(),
        PhaseNow::Fault { name, on } => format!("{name} on {on}"),
        PhaseNow::Recovery { name } => format!("analysing until stable after {name}"),
        PhaseNow::CleanUp => "undoing everything".to_owned(),
    };
    format!("{place}{what}")
}

fn left(now: &Progress) -> String {
    let seconds = |duration: Duration| duration.as_secs_f64().ceil();
    match now.phase {
        PhaseNow::WarmUp | PhaseNow::CleanUp | PhaseNow::Watch => String::new(),
        PhaseNow::Recovery { .. } => format!(", at most {:.0} s", seconds(now.phase_left)),
        PhaseNow::Baseline | PhaseNow::Fault { .. } => format!(", {:.0} s", seconds(now.phase_left)),
    }
}

fn figures(now: &Progress) -> String {
    let available = now.availability.map_or_else(|| "–".to_owned(), share);
    let p99 = now.p99_ms.map_or_else(|| "–".to_owned(), millis);
    let serving = now.pods.iter().filter(|pod| pod.state == PodState::Serving).count();
    let wrong = now.pods.iter().filter(|pod| pod.golden == Some(Verdict::Fail)).count();
    let wrong = if wrong > 0 { format!(", {wrong} answering wrongly") } else { String::new() };
    format!("available {available}, p99 {p99}, {serving} of {} pods serving{wrong}", now.pods.len())
}

struct Screen {
    all: MultiProgress,
    head: ProgressBar,
    bar: ProgressBar,
    figures: ProgressBar,
    pods: Vec<ProgressBar>,
}

impl Screen {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8));
        let head = line(&all);
        let bar = ProgressStyle::with_template("{wide_bar:.cyan/dim} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = all.add(ProgressBar::new(1000).with_style(bar));
        let figures = line(&all);
        Self { all, head, bar, figures, pods: Vec::new() }
    }

    fn draw(&mut self, now: &Progress) {
        let needed = now.pods.len().min(PODS_SHOWN + 1);
        while self.pods.len() < needed {
            self.pods.push(line(&self.all));
        }
        for spare in self.pods.drain(needed..) {
            self.all.remove(&spare);
        }
        let bold = Style::new().for_stderr().bold();
        self.head.set_message(format!("{}{}", bold.apply_to(title(now)), left(now)));
        self.bar.set_position((now.done * 1000.0) as u64);
        self.bar.set_message(if now.phase == PhaseNow::Watch { String::new() } else { format!("about {} left", humane(now.left)) });
        self.figures.set_message(figures(now));
        for (index, bar) in self.pods.iter().enumerate() {
            bar.set_message(match now.pods.get(index) {
                Some(_) if index == PODS_SHOWN => format!("  and {} more", now.pods.len() - PODS_SHOWN),
                Some(one) => pod(one),
                None => String::new(),
            });
        }
    }
}

/// A line of text below the others.
fn line(all: &MultiProgress) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    all.add(ProgressBar::no_length().with_style(style))
}

fn humane(left: Duration) -> String {
    let seconds = left.as_secs_f64().ceil() as u64;
    if seconds >= 60 { format!("{} min {:02} s", seconds / 60, seconds % 60) } else { format!("{seconds} s") }
}

fn pod(pod: &PodNow) -> String {
    let style = Style::new().for_stderr();
    let (word, style) = match pod.state {
        PodState::Serving => ("serving", style.green()),
        PodState::Pending => ("pending", style.yellow()),
        PodState::Loading => ("loading", style.yellow()),
        PodState::NotReady => ("not ready", style.yellow()),
        PodState::BackOff => ("back-off", style.red()),
        PodState::Silent => ("silent", style.red()),
        PodState::Terminating => ("terminating", style.dim()),
        PodState::Gone => ("gone", style.dim()),
    };
    let golden = match pod.golden {
        Some(Verdict::Pass) => "golden pass",
        Some(Verdict::Fail) => "golden FAIL",
        Some(Verdict::ReferenceBroken) => "golden reference broken",
        Some(Verdict::Inconclusive) => "golden …",
        None => "",
    };
    let p99 = pod.p99_ms.map_or_else(String::new, |p99| format!("p99 {}", millis(p99)));
    format!("  {:<24} {:<10} {} {golden:<12} {p99}", pod.name, pod.node, style.apply_to(format!("{word:<12}")))
}
