//! WebSocket and its like: after the model server's 101, bytes go both ways untouched until one side closes. A tunnel counts as a connection while draining.

use std::rc::Rc;

use http::{Response, header, response::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::hop_by_hop;
use crate::{
    body::{Source, UpstreamBody},
    worker::Worker,
};

/// Gives the client the 101 and joins both connections once it has been sent.
pub fn join(worker: &Rc<Worker>, mut parts: Parts, body: UpstreamBody, on_client: OnUpgrade) -> Response<Source> {
    let on_upstream = parts.extensions.remove::<OnUpgrade>();
    parts.extensions.clear();
    let switched_to = parts.headers.remove(header::UPGRADE);
    hop_by_hop::strip(&mut parts.headers);
    if let Some(protocol) = switched_to {
        hop_by_hop::ask_upgrade(&mut parts.headers, protocol);
    }
    drop(body);
    if let Some(on_upstream) = on_upstream {
        let guard = worker.connections.enter();
        tokio::task::spawn_local(async move {
            let _guard = guard;
            let (client, upstream) = match tokio::try_join!(on_client, on_upstream) {
                Ok(joined) => joined,
                Err(error) => return tracing::debug!(%error, "upgrade did not come about"),
            };
            if let Err(error) = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(upstream)).await {
                tracing::debug!(%error, "tunnel broke off");
            }
        });
    }
    Response::from_parts(parts, Source::Own(bytes::Bytes::new()))
}
