//! An open loop: requests are due at even moments, whatever became of those before, and their time counts from when they were due.

use std::{cell::RefCell, collections::VecDeque, io, net::SocketAddr, rc::Rc, time::Duration};

use nix::sys::{
    time::TimeSpec,
    timerfd::{Expiration, TimerSetTimeFlags},
};
use steadfast_proxy::{clock, fault::timer::KernelTimer};
use tokio::task::JoinSet;

use super::{
    Done,
    client::{Client, get},
};

/// Sends a request `every` so often by one of `connections`; when none is free, the next one that is takes it, late.
pub(super) async fn paced(target: SocketAddr, every: Duration, connections: usize, done: &Rc<Done>) -> io::Result<()> {
    // The runtime's own timer would be a millisecond late, and the sidecar's exact one spins on the core that the server needs.
    let timer = KernelTimer::new()?;
    let mut idle = VecDeque::with_capacity(connections);
    for _ in 0..connections {
        idle.push_back(Client::connect(target).await?);
    }
    timer.get().set(Expiration::Interval(TimeSpec::from_duration(every)), TimerSetTimeFlags::empty())?;
    let (idle, request, mut asking) = (Rc::new(RefCell::new(idle)), Rc::<[u8]>::from(get()), JoinSet::new());
    let (every_ns, mut due_ns) = (clock::ns(every), clock::now_ns());
    loop {
        timer.goes_off().await?;
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
