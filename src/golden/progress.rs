//! Progress of work that takes longer than a person likes to wait without a word: a bar on a terminal, plain lines elsewhere, both on standard error.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Nothing is shown before this.
const QUIET: Duration = Duration::from_secs(2);
/// Between plain lines.
const LINES: Duration = Duration::from_secs(5);

pub(super) struct Progress {
    what: &'static str,
    total: u64,
    began: Instant,
    said: Instant,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: u64) -> Self {
        let now = Instant::now();
        Self { what, total, began: now, said: now, terminal: std::io::stderr().is_terminal(), bar: None }
    }

    /// `done` of the total; `note` says how it stands.
    pub(super) fn at(&mut self, done: u64, note: &str) {
        if self.began.elapsed() < QUIET {
            return;
        }
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stderr());
                let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}  {msg}");
                bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(self.what);
                bar
            });
            bar.set_position(done);
            bar.set_message(note.to_owned());
        } else if self.said.elapsed() >= LINES || self.said == self.began {
            self.said = Instant::now();
            eprintln!("{}: {done} of {} after {:.0} s; {note}", self.what, self.total, self.began.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
