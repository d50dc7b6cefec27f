//! What kubelet runs in the sidecar's container beside the sidecar, as its hook: `leave` when the pod ends. The image has no other program that could ask anything.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use tokio::task::LocalSet;

use crate::client::{Client, ClientError};

/// For one question to a process of the same container.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

#[derive(clap::Subcommand, Clone, Debug)]
pub enum Hook {
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
            Hook::Leave { admin } => ask(*admin, "/leave").await,
        }
    })
}

async fn ask(admin: SocketAddr, path: &'static str) -> Result<(), HookError> {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.method_mut() = Method::POST;
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

    /// Something that answers `status` to whoever asks, and the head that it was sent.
    fn answers(status: &'static str) -> (SocketAddr, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 512];
            let length = stream.read(&mut head).unwrap();
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
            String::from_utf8_lossy(&head[..length]).into_owned()
        };
        (address, thread::spawn(serve))
    }

    #[test]
    fn leaving_is_asked_for_by_post_and_told_when_it_is_refused() {
        let (admin, asked) = answers("200 OK");
        run(&Hook::Leave { admin }).unwrap();
        assert!(asked.join().unwrap().starts_with("POST /leave HTTP/1.1\r\nhost: 127.0.0.1:"));
        let (admin, _) = answers("404 Not Found");
        assert!(matches!(run(&Hook::Leave { admin }), Err(HookError::Refused(StatusCode::NOT_FOUND))));
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(matches!(run(&Hook::Leave { admin: nobody }), Err(HookError::NoAnswer(_))));
    }
}
