//! Connections: HTTP/1.1 and HTTP/2 with prior knowledge on one port, as many as are allowed, drained at the end.

use std::{pin::pin, process::ExitCode, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{Semaphore, oneshot, watch},
};

use super::handle::Server;
use crate::exit;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// How long requests that are inside may take once the server is told to end.
const DRAIN: Duration = Duration::from_secs(30);

/// SIGTERM and SIGINT. Taken over before anybody can know that the server listens: before that, they end it at once.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn handle() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// Serves until SIGTERM or SIGINT, or until loading failed.
pub(super) async fn run(listener: TcpListener, signals: Signals, server: Arc<Server>, mut failed: oneshot::Receiver<String>) -> ExitCode {
    let Signals { mut terminate, mut interrupt } = signals;
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (drain, drained) = watch::channel(false);
    let mut loading = true;
    loop {
        let accept = async {
            let permit = room.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            (permit, accepted) = accept => match (permit, accepted) {
                (Ok(permit), Ok((stream, _))) => {
                    let (server, drained) = (server.clone(), drained.clone());
                    tokio::spawn(async move {
                        connection(stream, server, drained).await;
                        drop(permit);
                    });
                }
                // Out of file descriptors, or a connection that was reset before it was taken: the next may be fine.
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            outcome = &mut failed, if loading => match outcome {
                Ok(why) => return exit::failed(why),
                Err(_) => loading = false,
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    server.drain();
    drop(listener);
    // Receivers are held by connections alone from here on.
    drop(drained);
    let _ = drain.send(true);
    tokio::select! {
        () = drain.closed() => ExitCode::SUCCESS,
        () = tokio::time::sleep(DRAIN) => exit::failed(format!("requests were still inside {} s after the signal to end", DRAIN.as_secs())),
        _ = terminate.recv() => exit::failed("ended by a second signal with requests inside"),
        _ = interrupt.recv() => exit::failed("ended by a second signal with requests inside"),
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>, mut drained: watch::Receiver<bool>) {
    // Answers are written whole; waiting for more to send would only add latency.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(STREAMS_MAX);
    let service = hyper::service::service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let drain = async {
        // An error means that the sender is gone, which ends the process as well.
        let _ = drained.wait_for(|drain| *drain).await;
    };
    let mut drain = pin!(drain);
    tokio::select! {
        // How a client ends its connection is its own business.
        _ = connection.as_mut() => {}
        () = drain.as_mut() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    // `drained` lives until here: its drop tells that this connection is done.
}
