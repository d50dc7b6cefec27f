//! Whether the model server is ready, by its own path: looked at every 20 ms while it is not, every second while it is, and at once when a request
//! could not be forwarded.
//!
//! What is seen is told at once, as evidence. Whether users are sent here follows the rules of the probe that the path was taken from: it has a timeout, any answer of
//! 200 to 399 is good, and a server that was ready may be gone for a while before its pod is taken out of the Service.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use steadfast_api::sidecar::What;

use tokio::time::timeout;

use crate::{client::Client, config::Readiness, worker::Shared};

const WHILE_NOT_READY: Duration = Duration::from_millis(20);
const WHILE_READY: Duration = Duration::from_secs(1);
/// What is read of a readiness answer; what it says beyond that is passed over, with its connection.
const BODY_MAX: usize = 64 << 10;

/// What one look has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Ready,
    NotReady,
    /// Nobody answered, or not in time.
    Silence,
}

/// Looks for as long as it is polled, and tells every change.
pub async fn watch(shared: Arc<Shared>) {
    let (Readiness::Http { address, .. } | Readiness::Tcp { address }) = &shared.config.readiness;
    let mut client = Client::to_upstream(address.clone());
    let routes: Vec<_> = shared.config.routes.iter().zip(&shared.reached).filter(|(route, _)| route.upstream == *address).map(|(_, reached)| reached).collect();
    let mut known = None;
    let mut open = Open { patience: shared.config.ready_patience, last: None };
    loop {
        let begun = Instant::now();
        let seen = look(&shared, &mut client).await;
        let ready = seen == Look::Ready;
        if ready || seen == Look::NotReady {
            // It has answered, so it listens.
            for reached in &routes {
                reached.set();
            }
        }
        let took = begun.elapsed();
        if known != Some(ready) {
            known = Some(ready);
            tracing::info!(ready, "model server");
            shared.readiness.send_replace(ready);
            shared.evidence.urgent(What::Upstream { ready });
        }
        shared.upstream_ready.store(open.after(ready, Instant::now()), Ordering::Release);
        let pause = pause(seen, took);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // At most every 20 ms, however many requests fail.
            () = async { shared.suspect.notified().await; tokio::time::sleep(WHILE_NOT_READY.saturating_sub(took)).await } => {}
        }
    }
}

/// Until the next look. A server that takes long to tell is not kept busy with telling.
fn pause(seen: Look, took: Duration) -> Duration {
    let every = if seen == Look::Ready { WHILE_READY } else { WHILE_NOT_READY };
    let rest = every.saturating_sub(took);
    if seen == Look::Silence { rest } else { rest.max(took) }
}

/// Whether users are sent here.
struct Open {
    patience: Duration,
    /// When the server was last ready.
    last: Option<Instant>,
}

impl Open {
    fn after(&mut self, ready: bool, now: Instant) -> bool {
        if ready {
            self.last = Some(now);
        }
        // Gone for longer, it has to be ready again first.
        self.last = self.last.filter(|last| ready || now.duration_since(*last) < self.patience);
        self.last.is_some()
    }
}

async fn look(shared: &Shared, client: &mut Client) -> Look {
    let within = shared.config.ready_timeout;
    let (address, path) = match &shared.config.readiness {
        Readiness::Tcp { address } => {
            let connected = timeout(within, address.connect()).await;
            return if matches!(connected, Ok(Ok(_))) { Look::Ready } else { Look::Silence };
        }
        Readiness::Http { address, path } => (address, path),
    };
    let request = Request::get(path.as_str()).header(header::HOST, address.authority()).body(Full::new(Bytes::new()));
    // Path and address were checked when the flags were.
    let Ok(request) = request else { return Look::Silence };
    let begun = Instant::now();
    match client.send(request, within).await {
        Ok(response) => {
            let status = response.status();
            // The connection can be used again only when the body is out of the way.
            let body = timeout(within.saturating_sub(begun.elapsed()), Limited::new(response.into_body(), BODY_MAX).collect()).await;
            let came = match body {
                Ok(Ok(_)) => true,
                Ok(Err(error)) => error.is::<LengthLimitError>(),
                Err(_) => return Look::Silence,
            };
            if came && (status.is_success() || status.is_redirection()) { Look::Ready } else { Look::NotReady }
        }
        Err(error) => {
            tracing::trace!(%error, "model server not ready");
            Look::Silence
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_ready_may_be_gone_for_a_while() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut open = Open { patience: Duration::from_secs(30), last: None };
        assert!(!open.after(false, at(0)), "before it ever was");
        assert!(open.after(true, at(1)) && open.after(false, at(30)));
        assert!(!open.after(false, at(31)) && !open.after(false, at(32)));
        assert!(open.after(true, at(33)));
        let mut strict = Open { patience: Duration::ZERO, last: None };
        assert!(strict.after(true, at(0)) && !strict.after(false, at(0)));
    }

    #[test]
    fn a_slow_answer_is_not_asked_for_without_a_pause() {
        let ms = Duration::from_millis;
        assert_eq!((pause(Look::NotReady, ms(1)), pause(Look::Ready, ms(1))), (ms(19), ms(999)));
        assert_eq!((pause(Look::NotReady, ms(1500)), pause(Look::Ready, ms(1500))), (ms(1500), ms(1500)));
        assert_eq!(pause(Look::Silence, ms(1500)), ms(0), "who comes back is seen at once");
    }
}
