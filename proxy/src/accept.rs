//! Client connections: bounded in number, given a time to say something, and led from engine to engine: the relay where nothing can happen to them, the stack where
//! something can.
//!
//! Invariants: at most `max_connections` ÷ threads connections are open on a thread, the rest wait in the kernel's queue; a connection that says nothing for
//! `header_timeout` is closed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::{
    config::UNSPECIFIED,
    descriptors,
    drain::{Phase, reached},
    fault::connection,
    hold::held_down,
    relay::{self, Client, Exit, Protocol, bell::Bell},
    served,
    worker::{Entered, Worker},
};

/// Connections that the kernel keeps for us.
const BACKLOG: u32 = 1024;
/// Who finds no descriptor left does not look again for so long; meanwhile clients wait in the kernel's queue.
const SHORT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

/// One bound socket for each of `threads`, all on one port; port 0 becomes whichever is free. `[::]` takes both families, or IPv4 where there is no other.
pub fn bind(address: SocketAddr, threads: usize) -> io::Result<(SocketAddr, Vec<TcpSocket>)> {
    match bind_one(address, threads) {
        Err(error) if address.ip() == UNSPECIFIED && matches!(error.raw_os_error(), Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)) => {
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), threads)
        }
        bound => bound,
    }
}

/// Listens again on a port of [`bind`] that this thread has closed.
pub fn reopen(address: SocketAddr, threads: usize) -> io::Result<TcpListener> {
    socket(address, threads).and_then(listen)
}

fn socket(address: SocketAddr, threads: usize) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if threads > 1 {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    Ok(socket)
}

fn bind_one(address: SocketAddr, threads: usize) -> io::Result<(SocketAddr, Vec<TcpSocket>)> {
    // A port that is given must be ours alone: threads share it by a flag by which another sidecar's threads could share it too, unnoticed.
    if threads > 1 && address.port() != 0 {
        let alone = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        alone.set_reuseaddr(true)?;
        alone.bind(address)?;
    }
    let first = socket(address, threads)?;
    let address = first.local_addr()?;
    let sockets = std::iter::once(Ok(first)).chain((1..threads).map(|_| socket(address, threads))).collect::<io::Result<_>>()?;
    Ok((address, sockets))
}

/// Listens on a socket of [`bind`].
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)
}

/// Serves `listener`, which is that of `route`, until the sidecar has drained.
pub async fn accept(worker: Rc<Worker>, mut listener: TcpListener, route: usize) {
    let config = &worker.shared.config;
    let most = (config.max_connections / config.threads).max(1);
    let (mut leaving, mut gone) = (worker.drain.subscribe(), worker.drain.subscribe());
    let mut refused = worker.shared.store.refuse.subscribe();
    let last = loop {
        let next = async {
            if worker.connections.get() >= most {
                worker.meter.exceeded("connections");
            }
            worker.connections.below(most).await;
            listener.accept().await
        };
        tokio::select! {
            biased;
            () = reached(&mut gone, Phase::Gone) => return,
            () = held_down(&mut refused) => tokio::select! {
                // Nobody waits at a port that is closed.
                () = reached(&mut leaving, Phase::Leaving) => break None,
                reopened = connection::closed(listener, &worker.shared.store.refuse, config.threads) => match reopened {
                    Ok(reopened) => listener = reopened,
                    Err(error) => {
                        // A socket always knows its address.
                        tracing::error!(%error, "a port is lost");
                        break None;
                    }
                },
            },
            accepted = next => match accepted {
                Ok((stream, _)) if worker.held.is_held() => refuse(&stream),
                Ok((stream, peer)) => {
                    if let Some(stream) = connection::meet(&worker, stream, peer) {
                        serve(&worker, stream, peer, route);
                    }
                }
                // Out of descriptors or the client gave up; neither is a reason to stop, and the first needs a moment.
                Err(error) if descriptors::are_exhausted(&error) => {
                    worker.meter.exceeded("descriptors");
                    worker.spare();
                    tokio::time::sleep(SHORT_OF_DESCRIPTORS).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            },
            () = reached(&mut leaving, Phase::Leaving) => break Some(listener),
        }
    };
    // Who connected before the end is served: the kernel's queue is emptied, then the port is closed, and whoever comes now is refused and told so.
    let emptied = last.map_or(Ok(()), |listener| {
        let listener = listener.into_std()?;
        while let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(true)?;
            serve(&worker, TcpStream::from_std(stream)?, peer, route);
        }
        Ok::<_, io::Error>(())
    });
    if let Err(error) = emptied {
        tracing::warn!(%error, "connections that waited could not be served");
    }
    tokio::select! {
        () = reached(&mut gone, Phase::Gone) => {}
        () = worker.connections.below(1) => {}
    }
}

/// Held down: the client is told at once, by a reset.
fn refuse(stream: &TcpStream) {
    // A socket that refuses this is closed all the same.
    let _ = stream.set_zero_linger();
}

fn serve(worker: &Rc<Worker>, stream: TcpStream, peer: SocketAddr, route: usize) {
    // Small answers must not wait for the acknowledgement of the last one. A socket that refuses this still works.
    let _ = stream.set_nodelay(true);
    let (worker, open) = (Rc::clone(worker), worker.connections.enter());
    worker.meter.metrics.connections.inc();
    let client = Client { stream, ahead: Vec::new(), peer: peer.ip().to_canonical(), route };
    let bell = worker.bells.hang();
    tokio::task::spawn_local(carry(worker, client, bell, open));
}

/// From engine to engine, until the connection ends.
#[expect(clippy::manual_async_fn, reason = "the future of an async fn would have room for the client twice")]
fn carry(worker: Rc<Worker>, mut client: Client, bell: Bell, open: Entered) -> impl Future<Output = ()> {
    async move {
        match relay::sniff(&worker, &mut client, &bell).await {
            None => {}
            Some(Protocol::Http2) => {
                if let Exit::Stack(left) = Box::pin(relay::http2::relay(&worker, client, &bell)).await {
                    Box::pin(served::http2(&worker, left, relay::is_armed(&worker))).await;
                }
            }
            Some(Protocol::Opaque) if relay::is_tls(&client.ahead) || !relay::must_stack(&worker) => drop(relay::http1::opaque(&worker, client, &bell).await),
            // What is no TLS and no HTTP either gets the stack's answer to a bad request while something is armed.
            Some(Protocol::Http1 | Protocol::Opaque) => {
                while let Exit::Stack(left) = relay::http1::relay(&worker, client, &bell).await {
                    worker.meter.metrics.moved.with_label_values(&["stack"]).inc();
                    let Some(back) = Box::pin(served::http1(&worker, left)).await else { break };
                    client = back;
                }
            }
        }
        worker.meter.metrics.connections.dec();
        drop(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_threads_share_one_port_even_when_any_will_do() {
        let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert!(address.port() > 0);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
        let listeners: Vec<_> = sockets.into_iter().map(|socket| listen(socket).unwrap()).collect();
        assert_eq!(listeners.len(), 3);
    }

    #[tokio::test]
    async fn a_second_sidecar_cannot_take_the_port_unnoticed() {
        for threads in [1, 2] {
            let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), threads).unwrap();
            let _first: Vec<_> = sockets.into_iter().map(|socket| listen(socket).unwrap()).collect();
            let second = bind(address, threads).and_then(|(_, mut sockets)| listen(sockets.remove(0)));
            assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse, "{threads} threads");
        }
    }
}
