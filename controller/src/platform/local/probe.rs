//! The readiness probe, as kubelet asks it: a fresh connection each time, ready after one success, not ready after `failureThreshold` failures in a row.

use std::{
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use steadfast_api::test::Probe;
use tokio::{net::TcpStream, time::timeout};

/// As kubelet: what is longer is read no further.
const ANSWER_BYTES_MAX: usize = 10 << 10;

type Question = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// What the answers so far say. Plain data.
#[derive(Debug, Default)]
struct Judgement {
    ready: bool,
    failures: u32,
}

impl Judgement {
    /// Some when readiness changes.
    fn take(&mut self, good: bool, threshold: u32) -> Option<bool> {
        if good {
            self.failures = 0;
            return (!std::mem::replace(&mut self.ready, true)).then_some(true);
        }
        self.failures = self.failures.saturating_add(1);
        (self.failures >= threshold && std::mem::replace(&mut self.ready, false)).then_some(false)
    }
}

/// Readiness changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub at: Instant,
    pub ready: bool,
    /// Why not.
    pub reason: String,
}

/// Asks one pod, over and over.
pub(super) struct Prober {
    probe: Probe,
    target: Option<SocketAddr>,
    due: tokio::time::Instant,
    question: Option<Question>,
    judgement: Judgement,
}

impl Prober {
    pub(super) fn new(probe: Probe) -> Self {
        Self { probe, target: None, due: tokio::time::Instant::now(), question: None, judgement: Judgement::default() }
    }

    /// Begins anew at `target`, with the first question at once.
    pub(super) fn begin(&mut self, target: SocketAddr) {
        *self = Self { target: Some(target), ..Self::new(self.probe.clone()) };
    }

    pub(super) fn stop(&mut self) {
        *self = Self::new(self.probe.clone());
    }

    /// Returns when readiness changes; never while stopped. May be dropped and called again at any moment.
    pub(super) async fn changed(&mut self) -> Changed {
        let Some(target) = self.target else { return std::future::pending().await };
        loop {
            if self.question.is_none() {
                tokio::time::sleep_until(self.due).await;
                // A question that takes longer than the period does not make the next ones come in a burst.
                self.due = (self.due + self.probe.period.get()).max(tokio::time::Instant::now());
                self.question = Some(Box::pin(ask(target, self.probe.http_get.path.clone(), self.probe.timeout.get())));
            }
            let Some(question) = &mut self.question else { continue };
            let answer = question.await;
            self.question = None;
            let at = Instant::now();
            if let Some(ready) = self.judgement.take(answer.is_ok(), self.probe.failure_threshold) {
                return Changed { at, ready, reason: answer.err().unwrap_or_default() };
            }
        }
    }
}

async fn ask(target: SocketAddr, path: String, within: Duration) -> Result<(), String> {
    let question = async {
        let stream = TcpStream::connect(target).await.map_err(|error| format!("no connection: {error}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let request = Request::get(path)
            .header(header::HOST, target.to_string())
            .header(header::USER_AGENT, "steadfast-probe")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            // Only so that the server is not cut off; what it says does not matter.
            let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(format!("answered {status}")) }
        };
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // The connection may end before the answer has been taken from it.
            _ = connection => answer.await,
        }
    };
    timeout(within, question).await.unwrap_or_else(|_| Err(format!("no answer within {within:?}")))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn probe() -> Probe {
        let probe = serde_json::json!({ "period": "20ms", "timeout": "100ms", "failureThreshold": 3 });
        serde_json::from_value(probe).unwrap()
    }

    #[test]
    fn one_success_makes_ready_and_only_failures_in_a_row_unmake_it() {
        let mut judgement = Judgement::default();
        let answers = [false, false, false, true, false, false, true, false, false, false, false, true];
        let changes: Vec<_> = answers.into_iter().map(|good| judgement.take(good, 3)).collect();
        let none = None;
        assert_eq!(changes, [none, none, none, Some(true), none, none, none, none, none, Some(false), none, Some(true)]);
    }

    #[tokio::test]
    async fn readiness_follows_what_the_server_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            for status in ["503 Service Unavailable", "200 OK", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /v2/health/ready HTTP/1.1\r\n"));
                stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await.unwrap();
            }
            // From here on it accepts and says nothing.
            std::future::pending::<()>().await;
        });
        let mut prober = Prober::new(probe());
        prober.begin(target);
        let began = Instant::now();
        let ready = prober.changed().await;
        assert!(ready.ready && ready.at - began >= Duration::from_millis(19), "{ready:?}");
        let lost = prober.changed().await;
        assert!(!lost.ready && lost.reason.contains("no answer within 100ms"), "{lost:?}");
        assert!(lost.at - ready.at >= Duration::from_millis(300), "three time-outs");
    }
}
