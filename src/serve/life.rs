//! Loading, ready, draining: the state that every answer depends on, and the record of when it changed.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

use super::worker::Loaded;

/// One server's life. It only moves forward.
pub(super) struct Life {
    pub(super) began: Instant,
    truth: Truth,
    ready: OnceLock<Ready>,
    draining: AtomicBool,
    asked: AtomicBool,
    answered: AtomicBool,
    answered_right: AtomicBool,
}

struct Ready {
    loaded: Loaded,
    correct_from: Instant,
}

/// What the server does with requests now.
pub(super) enum Phase<'a> {
    Loading,
    Ready(&'a Loaded),
    /// Not ready for new traffic; what still comes in is answered.
    Draining(&'a Loaded),
}

impl Life {
    pub(super) fn new(truth: Truth, began: Instant) -> Self {
        truth.tell("started", began);
        let [draining, asked, answered, answered_right] = [(); 4].map(|()| AtomicBool::new(false));
        Self { began, truth, ready: OnceLock::new(), draining, asked, answered, answered_right }
    }

    pub(super) fn phase(&self) -> Phase<'_> {
        match self.ready.get() {
            None => Phase::Loading,
            Some(ready) if self.draining.load(Ordering::Relaxed) => Phase::Draining(&ready.loaded),
            Some(ready) => Phase::Ready(&ready.loaded),
        }
    }

    pub(super) fn loaded(&self) {
        self.truth.tell("loaded", Instant::now());
    }

    /// From now on requests are answered, and answered right once `wrong` has passed; tells when that will be.
    pub(super) fn become_ready(&self, loaded: Loaded, wrong: Duration) -> Instant {
        let now = Instant::now();
        let correct_from = now + wrong;
        if self.ready.set(Ready { loaded, correct_from }).is_ok() {
            self.truth.tell("ready", now);
        }
        correct_from
    }

    pub(super) fn became_correct(&self, at: Instant) {
        self.truth.tell("correctFrom", at);
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether an answer given now is to be wrong.
    pub(super) fn answers_wrong(&self) -> bool {
        self.ready.get().is_some_and(|ready| Instant::now() < ready.correct_from)
    }

    pub(super) fn request(&self) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.truth.tell("firstRequest", Instant::now());
        }
    }

    pub(super) fn answer(&self, right: bool) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            self.truth.tell("firstAnswer", Instant::now());
        }
        if right && !self.answered_right.swap(true, Ordering::Relaxed) {
            self.truth.tell("firstRightAnswer", Instant::now());
        }
    }
}

/// A file that tests compare their measurements with: one JSON line an event, in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
pub(super) struct Truth {
    file: Option<File>,
}

impl Truth {
    pub(super) fn open(file: Option<&Path>) -> Result<Self, String> {
        let open = |path: &Path| OpenOptions::new().append(true).create(true).open(path).map_err(|error| format!("{}: {error}", path.display()));
        Ok(Self { file: file.map(open).transpose()? })
    }

    fn tell(&self, event: &str, at: Instant) {
        let Some(mut file) = self.file.as_ref() else { return };
        let Ok(clock) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return };
        // `Instant` does not show its nanoseconds; its distance from now does.
        let ns = Duration::from(clock).saturating_sub(at.elapsed()).as_nanos();
        let line = format!("{{\"pid\":{},\"event\":\"{event}\",\"monotonic_ns\":{ns}}}\n", std::process::id());
        // One write an event: lines of several servers in one file stay whole.
        if let Err(error) = file.write_all(line.as_bytes()) {
            eprintln!("steadfast serve: the truth file could not be written: {error}");
        }
    }
}
