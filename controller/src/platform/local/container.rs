//! A container: a process that is started again whenever it ends.

use std::{io, process::ExitStatus, time::Duration};

use nix::sys::signal::Signal;

use super::{
    back_off::BackOff,
    inner::Inner,
    log::Log,
    process::{Launch, Process, in_words},
};
use crate::platform::Pod;

/// How long the last words of a process that ended are waited for. They are in its pipe already.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(50);
/// Lines of a log in a message.
const QUOTED: usize = 3;

/// A process that is started again whenever it ends.
pub(super) struct Container {
    log: Log,
    pub process: Option<Process>,
    pub back_off: BackOff,
    /// When to start it; none while it runs.
    pub due: Option<tokio::time::Instant>,
    pub starts: u32,
}

impl Container {
    pub(super) fn new(inner: &Inner, pod: &Pod, name: &str) -> Self {
        Self {
            log: Log::new(&inner.logs, inner.settings.run_dir.join(format!("{}.{name}.log", pod.name))),
            process: None,
            back_off: BackOff::new(&inner.settings.local.timers),
            due: Some(tokio::time::Instant::now()),
            starts: 0,
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= tokio::time::Instant::now())
    }

    pub(super) fn start(&mut self, launch: &Launch) -> io::Result<&mut Process> {
        let process = launch.start(&self.log)?;
        self.due = None;
        self.starts += 1;
        Ok(self.process.insert(process))
    }

    /// Returns when the process has ended: how long it ran, and how it ended. Never while none runs.
    pub(super) async fn ended(&mut self) -> (Duration, io::Result<ExitStatus>) {
        let Some(process) = &mut self.process else { return std::future::pending().await };
        let status = process.ended().await;
        let ran = process.started.elapsed();
        self.process = None;
        (ran, status)
    }

    /// When it is started again. Returns the wait.
    pub(super) fn again(&mut self, ran: Duration) -> Duration {
        let wait = self.back_off.after(ran);
        self.due = Some(tokio::time::Instant::now() + wait);
        wait
    }

    pub(super) fn signal(&self, signal: Signal) -> usize {
        self.process.iter().map(|process| process.signal(signal)).count()
    }

    pub(super) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().await;
        }
    }

    /// How it ended, with its last words.
    pub(super) async fn obituary(&self, status: &io::Result<ExitStatus>) -> String {
        self.log.read_to_the_end(LAST_WORDS_WITHIN).await;
        let (how, words) = (in_words(status), self.log.last_lines(QUOTED));
        if words.is_empty() { how } else { format!("{how}; its last words: {words}") }
    }
}
