//! Exact delays: one `timerfd` per thread under an ordered map of deadlines. tokio's own timer counts in milliseconds and wakes 1.1 ms late at the median;
//! this one is late by microseconds, and never early.
//!
//! An idle processor takes its time to wake (on virtual machines a tenth of a millisecond and more), so the kernel's timer is set earlier by the lateness that
//! was seen lately, and what is left until the deadline is spun away: at most [`LEAD_MAX_NS`] a wake-up.
//!
//! Invariants: a [`Sleep`] is not ready before its deadline; dropping it takes its entry away; there are at most [`SLEEPS_MAX`] entries.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::poll_fn,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timer::{Expiration, TimerSetTimeFlags},
    timerfd::{ClockId, TimerFd, TimerFlags},
};
use tokio::io::unix::AsyncFd;

use crate::clock;

/// Delays in progress on one thread.
pub const SLEEPS_MAX: usize = 100_000;

/// The most by which the kernel's timer is set early, and so the longest spin.
const LEAD_MAX_NS: u64 = 200_000;

/// tokio wants the raw descriptor.
struct Fd(TimerFd);

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A timer of the kernel, on the current tokio runtime.
pub struct KernelTimer(AsyncFd<Fd>);

impl KernelTimer {
    pub fn new() -> io::Result<Self> {
        let fd = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: `Fd` owns its descriptor, answers with the same one every time, and is neither closed nor replaced before `AsyncFd` drops it.
        #[expect(unsafe_code, reason = "the safe constructor cannot know that the descriptor is owned")]
        let fd = unsafe { AsyncFd::register(Fd(fd)) }?;
        Ok(Self(fd))
    }

    /// To set it.
    pub fn get(&self) -> &TimerFd {
        &self.0.get_ref().0
    }

    /// Waits until it goes off.
    pub async fn goes_off(&self) -> io::Result<()> {
        let mut ready = poll_fn(|cx| self.0.poll_read_ready(cx)).await?;
        // Reading takes the expiry away; the guard is cleared so that the next one is waited for.
        let _ = ready.get_inner().0.wait();
        ready.clear_ready();
        Ok(())
    }
}

/// A thread's timer. Clones share it.
#[derive(Clone)]
pub struct Timer(Rc<Inner>);

struct Inner {
    kernel: KernelTimer,
    /// By deadline, then by order of arrival.
    sleeps: RefCell<BTreeMap<(u64, u64), Option<Waker>>>,
    next_id: Cell<u64>,
    /// What the kernel's timer is set to; `u64::MAX` when it is off.
    set_to: Cell<u64>,
    /// When it shall go off to meet that deadline; 0 when that was over already, which teaches nothing about wake-ups.
    goes_off: Cell<u64>,
    /// How late wake-ups lately were, up to [`LEAD_MAX_NS`].
    lead: Cell<u64>,
}

impl Timer {
    /// On the current tokio runtime. [`Timer::drive`] must run beside whoever waits.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Rc::new(Inner {
            kernel: KernelTimer::new()?,
            sleeps: RefCell::default(),
            next_id: Cell::new(0),
            set_to: Cell::new(u64::MAX),
            goes_off: Cell::new(0),
            lead: Cell::new(0),
        })))
    }

    /// Wakes whoever is due, for as long as the runtime lives.
    pub async fn drive(self) {
        loop {
            if self.0.kernel.goes_off().await.is_err() {
                return;
            }
            self.0.set_to.set(u64::MAX);
            self.0.learn();
            self.0.fire();
        }
    }

    /// Waits until `deadline_ns` of [`crate::clock`]; `None` when there are too many already.
    pub fn sleep_until(&self, deadline_ns: u64) -> Option<Sleep> {
        let mut sleeps = self.0.sleeps.borrow_mut();
        if sleeps.len() >= SLEEPS_MAX {
            return None;
        }
        let id = self.0.next_id.get();
        self.0.next_id.set(id + 1);
        sleeps.insert((deadline_ns, id), None);
        drop(sleeps);
        self.0.arm();
        Some(Sleep { timer: Rc::clone(&self.0), key: (deadline_ns, id) })
    }
}

impl Inner {
    /// A moving mean over about eight wake-ups.
    fn learn(&self) {
        let (goes_off, lead) = (self.goes_off.replace(0), self.lead.get());
        if goes_off > 0 {
            let late = clock::now_ns().saturating_sub(goes_off).min(LEAD_MAX_NS);
            self.lead.set((lead * 7 + late).div_ceil(8));
        }
    }

    fn fire(&self) {
        let first = self.sleeps.borrow().keys().next().map_or(0, |(deadline, _)| *deadline);
        let mut now = clock::now_ns();
        while now < first && first - now <= LEAD_MAX_NS {
            std::hint::spin_loop();
            now = clock::now_ns();
        }
        let mut due = Vec::new();
        for ((deadline, _), waker) in self.sleeps.borrow_mut().iter_mut() {
            if *deadline > now {
                break;
            }
            due.extend(waker.take());
        }
        self.arm();
        due.into_iter().for_each(Waker::wake);
    }

    /// Sets the kernel's timer to the first deadline that is still to come.
    fn arm(&self) {
        let now = clock::now_ns();
        let sleeps = self.sleeps.borrow();
        // Those that are past have been woken, or will look at the clock when they are first polled.
        let next = sleeps.range((now, 0)..).next().map_or(u64::MAX, |((deadline, _), _)| *deadline);
        // An earlier setting is harmless: it wakes, finds nobody due, and sets itself anew.
        if next >= self.set_to.get() {
            return;
        }
        let goes_off = next.saturating_sub(self.lead.get());
        let at = TimeSpec::from_duration(Duration::from_nanos(goes_off.max(1)));
        if let Err(error) = self.kernel.get().set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME) {
            tracing::error!(%error, "timerfd could not be set: delays will be late");
        } else {
            self.set_to.set(next);
            self.goes_off.set(if goes_off > now { goes_off } else { 0 });
        }
    }
}

/// Ready at its deadline, with the time by which it was late, in nanoseconds.
pub struct Sleep {
    timer: Rc<Inner>,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = u64;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        if let Some(late) = clock::now_ns().checked_sub(self.key.0) {
            return Poll::Ready(late);
        }
        if let Some(waker) = self.timer.sleeps.borrow_mut().get_mut(&self.key) {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
        }
        // Its deadline may have passed between being made and being polled; then no expiry is to come.
        match clock::now_ns().checked_sub(self.key.0) {
            Some(late) => Poll::Ready(late),
            None => Poll::Pending,
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.timer.sleeps.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(test: impl FnOnce(Timer) -> F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let timer = Timer::new().unwrap();
            tokio::task::spawn_local(timer.clone().drive());
            test(timer).await
        })
    }

    #[test]
    fn sleeps_end_in_order_and_never_early() {
        run(|timer| async move {
            let begun = clock::now_ns();
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [30_u64, 10, 20, 10]
                .into_iter()
                .map(|ms| {
                    let (sleep, order) = (timer.sleep_until(begun + ms * 1_000_000).unwrap(), Rc::clone(&order));
                    tokio::task::spawn_local(async move {
                        sleep.await;
                        assert!(clock::now_ns() >= begun + ms * 1_000_000);
                        order.borrow_mut().push(ms);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.borrow(), [10, 10, 20, 30]);
            assert!(timer.0.sleeps.borrow().is_empty());
        });
    }

    #[test]
    fn a_dropped_sleep_leaves_nothing_and_the_others_still_end() {
        run(|timer| async move {
            let begun = clock::now_ns();
            let dropped: Vec<_> = (1..100).map(|ms| timer.sleep_until(begun + ms * 10_000).unwrap()).collect();
            let kept = timer.sleep_until(begun + 20_000_000).unwrap();
            drop(dropped);
            assert_eq!(timer.0.sleeps.borrow().len(), 1);
            tokio::time::timeout(Duration::from_secs(5), kept).await.unwrap();
        });
    }

    #[test]
    fn a_deadline_in_the_past_is_over_at_once() {
        run(|timer| async move {
            let late = tokio::time::timeout(Duration::from_secs(5), timer.sleep_until(1).unwrap()).await.unwrap();
            assert!(late > 0);
        });
    }
}
