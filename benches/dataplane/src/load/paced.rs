//! An open loop: requests are due at even moments, whatever became of those before, and their time counts from when they were due.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    rc::Rc,
    time::Duration,
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use steadfast_proxy::clock;
use tokio::{io::unix::AsyncFd, task::JoinSet};

use super::{
    Done,
    client::{Client, get},
};

/// tokio wants the raw descriptor. The runtime's own timer would be a millisecond late, and the sidecar's exact one spins on the core that the server needs.
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

/// Sends a request `every` so often by one of `connections`; when none is free, the next one that is takes it, late.
pub(super) async fn paced(target: SocketAddr, every: Duration, connections: usize, done: &Rc<Done>) -> io::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    let mut idle = VecDeque::with_capacity(connections);
    for _ in 0..connections {
        idle.push_back(Client::connect(target).await?);
    }
    timer.set(Expiration::Interval(TimeSpec::from_duration(every)), TimerSetTimeFlags::empty())?;
    // SAFETY: `Fd` owns its descriptor, answers with the same one every time, and is neither closed nor replaced before `AsyncFd` drops it.
    #[expect(unsafe_code, reason = "the safe constructor cannot know that the descriptor is owned")]
    let timer = unsafe { AsyncFd::register(Fd(timer)) }.map_err(io::Error::other)?;
    let (idle, request, mut asking) = (Rc::new(RefCell::new(idle)), Rc::<[u8]>::from(get()), JoinSet::new());
    let (every_ns, mut due_ns) = (clock::ns(every), clock::now_ns());
    loop {
        let mut ready = poll_fn(|cx| timer.poll_read_ready(cx)).await?;
        let _ = ready.get_inner().0.wait();
        ready.clear_ready();
        while asking.try_join_next().is_some() {}
        while due_ns + every_ns <= clock::now_ns()
            && let Some(mut client) = idle.borrow_mut().pop_front()
        {
            due_ns += every_ns;
            let (idle, request, done, due_ns) = (Rc::clone(&idle), Rc::clone(&request), Rc::clone(done), due_ns);
            asking.spawn_local(async move {
                match client.ask(&request).await {
                    Ok(()) => {
                        done.one_more();
                        let _ = done.took.borrow_mut().record(clock::now_ns() - due_ns);
                        idle.borrow_mut().push_back(client);
                    }
                    Err(error) => done.fail(&error),
                }
            });
        }
    }
}
