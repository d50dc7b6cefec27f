//! What kubelet runs in the sidecar's container beside the sidecar, as its hooks: `wait` after it has started, `leave` when the pod ends. The image has no other program
//! that could ask anything.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use steadfast_api::Span;
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};

use crate::client::{Client, ClientError};

/// Between two looks; what is waited for is a process that starts.
const PAUSE: Duration = Duration::from_millis(5);
/// For one question to a process of the same container.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

#[derive(clap::Subcommand, Clone, Debug)]
pub enum Hook {
    /// Return once the sidecar of this container answers: kubelet starts the server's container only then. A hook of kubelet's for after the start.
    Wait {
        /// The sidecar's admin port.
        #[arg(long, value_name = "ADDRESS")]
        admin: SocketAddr,
        /// Longest wait; then this fails, and kubelet starts the sidecar anew.
        #[arg(long, value_name = "TIME", default_value = "30s")]
        within: Span,
    },
    /// Let the sidecar of this container ask its clients for other connections, while the server still serves: the pod ends. A hook of kubelet's for before the stop.
    Leave {
        /// The sidecar's admin port.
        #[arg(long, value_name = "ADDRESS")]
        admin: SocketAddr,
    },
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("no runtime: {0}")]
    Start(#[from] std::io::Error),
    #[error("the sidecar does not answer: {0}")]
    NoAnswer(#[from] ClientError),
    #[error("the sidecar answers {0} and not 200")]
    Refused(StatusCode),
}

/// Does what a hook has to do.
///
/// # Errors
/// When the sidecar does not answer, or refuses.
pub fn run(hook: &Hook) -> Result<(), HookError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        match hook {
            Hook::Wait { admin, within } => wait(*admin, within.get()).await,
            Hook::Leave { admin } => ask(*admin, Method::POST, "/leave").await,
        }
    })
}

async fn wait(admin: SocketAddr, within: Duration) -> Result<(), HookError> {
    let until = Instant::now() + within;
    loop {
        match ask(admin, Method::GET, "/healthz").await {
            Err(_) if Instant::now() < until => sleep(PAUSE).await,
            ended => return ended,
        }
    }
}

async fn ask(admin: SocketAddr, method: Method, path: &'static str) -> Result<(), HookError> {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.method_mut() = method;
    *request.uri_mut() = http::Uri::from_static(path);
    if let Ok(host) = admin.to_string().parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let status = Client::new(admin.to_string(), None).send(request, ANSWER_WITHIN).await?.status();
    if status == StatusCode::OK { Ok(()) } else { Err(HookError::Refused(status)) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// Something that answers `status` to whoever asks, a while after it has its port; and the head that it was sent.
    fn answers(status: &'static str, after: Duration) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let serve = move || {
            thread::sleep(after);
            let (mut stream, _) = TcpListener::bind(address).unwrap().accept().unwrap();
            let mut head = [0; 512];
            let length = stream.read(&mut head).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
            String::from_utf8_lossy(&head[..length]).into_owned()
        };
        (address, thread::spawn(serve))
    }

    #[test]
    fn waiting_ends_when_the_sidecar_answers_and_not_before() {
        let (admin, asked) = answers("200 OK", Duration::from_millis(100));
        run(&Hook::Wait { admin, within: "10s".parse().unwrap() }).unwrap();
        assert!(asked.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\nhost: 127.0.0.1:"));
    }

    #[test]
    fn waiting_has_an_end_and_leaving_asks_once() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = run(&Hook::Wait { admin: nobody, within: "50ms".parse().unwrap() }).unwrap_err();
        assert!(matches!(error, HookError::NoAnswer(_)), "{error}");
        assert!(matches!(run(&Hook::Leave { admin: nobody }), Err(HookError::NoAnswer(_))));
        let (admin, asked) = answers("404 Not Found", Duration::ZERO);
        // Until it listens.
        let refused = (0..200).map(|_| (run(&Hook::Leave { admin }), thread::sleep(PAUSE)).0).find(|ended| !matches!(ended, Err(HookError::NoAnswer(_))));
        assert!(matches!(refused, Some(Err(HookError::Refused(StatusCode::NOT_FOUND)))));
        assert!(asked.join().unwrap().starts_with("POST /leave "));
    }
}
