//! What happens to connections before there is a request: some are reset, some are taken and never heard, or the port is closed to all.
//!
//! Nothing is known of a connection but where it comes from, so probes that come by the data port are hit as well. Budgets hold but for their share, which is one of
//! requests.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use steadfast_api::policy::{ConnectionFault, ConnectionRule};
use tokio::net::{TcpListener, TcpStream};

use super::{budget::ActiveFault, draw, inject::Told, matching::within, policy::CompiledPolicy, ring::About};
use crate::{accept, clock, hold::Hold, worker::Worker};

/// While a port that was closed cannot be opened again, it is tried so often.
const REOPEN_EVERY: Duration = Duration::from_millis(10);

/// Does to `stream` what an armed policy says, if one means it; else gives it back.
pub fn meet(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) -> Option<TcpStream> {
    let armed = worker.shared.store.load();
    // Nearly always.
    if armed.policies.iter().all(|policy| policy.source.spec.connections.is_empty()) {
        return Some(stream);
    }
    let now_ns = clock::now_ns();
    let client = peer.ip().to_canonical();
    let means = |rule: &&ConnectionRule| rule.clients.is_empty() || within(&rule.clients, client);
    for policy in armed.policies.iter().filter(|policy| !policy.is_expired(now_ns)) {
        let Some(rule) = policy.source.spec.connections.iter().find(means) else { continue };
        if !draw::happens(&mut *worker.rng.borrow_mut(), rule.share) {
            continue;
        }
        let Some(active) = policy.budget.begin(now_ns) else {
            worker.meter.over_budget(&policy.name, 1);
            continue;
        };
        let told = Told::new(worker, About { client: Some(client), ..About::default() });
        told.of(&policy.name, policy, rule.fault.kind());
        match rule.fault {
            // A socket that refuses this is closed all the same.
            ConnectionFault::Reset => drop(stream.set_zero_linger()),
            ConnectionFault::Blackhole => hold(worker, stream, Arc::clone(policy), active),
        }
        return None;
    }
    Some(stream)
}

/// Keeps the connection open and says nothing until the policy is over.
fn hold(worker: &Rc<Worker>, stream: TcpStream, policy: Arc<CompiledPolicy>, active: ActiveFault) {
    let open = worker.connections.enter();
    let gone = worker.drain.subscribe();
    tokio::task::spawn_local(async move {
        let (_active, _open, mut gone) = (active, open, gone);
        tokio::select! {
            () = policy.over() => {}
            () = crate::drain::reached(&mut gone, crate::drain::Phase::Leaving) => {}
            // A client that gives up is let go of: what it sent is thrown away, its end is seen.
            () = until_closed(&stream) => {}
        }
    });
}

async fn until_closed(stream: &TcpStream) {
    let mut thrown = [0; 4096];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut thrown) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Closes the port while `refuse` is held, and opens it again. What waits in the kernel's queue is reset.
pub async fn closed(listener: TcpListener, refuse: &Hold, threads: usize) -> io::Result<TcpListener> {
    let address = listener.local_addr()?;
    drop(listener);
    tracing::info!(%address, "the port is closed by a policy");
    let mut refused = refuse.subscribe();
    if refused.wait_for(|refused| !*refused).await.is_err() {
        std::future::pending::<()>().await;
    }
    loop {
        match accept::reopen(address, threads) {
            Ok(listener) => {
                tracing::info!(%address, "the port is open again");
                return Ok(listener);
            }
            Err(error) => {
                tracing::error!(%address, %error, "the port cannot be opened again yet");
                tokio::time::sleep(REOPEN_EVERY).await;
            }
        }
    }
}
