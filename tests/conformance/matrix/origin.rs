//! A server that does all that HTTP/1.1 allows and few servers do: each path is one oddity.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The server's address, and what it knows of clients that have left.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) address: SocketAddr,
    pub(super) left: Arc<Left>,
}

/// How often a client has left, and when the last one did.
pub(super) struct Left {
    began: Instant,
    count: AtomicU64,
    last_us: AtomicU64,
    /// Requests that wait for their client to leave.
    waiting: AtomicU64,
}

impl Left {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// When the last one left.
    pub(super) fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.last_us.load(Ordering::Acquire))
    }

    fn note(&self) {
        self.last_us.store(self.began.elapsed().as_micros() as u64, Ordering::Release);
        self.count.fetch_add(1, Ordering::AcqRel);
    }
}

impl Origin {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let left = Left { began: Instant::now(), count: 0.into(), last_us: 0.into(), waiting: 0.into() };
        let origin = Self { address, left: Arc::new(left) };
        let of_thread = origin.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let left = Arc::clone(&of_thread.left);
                std::thread::spawn(move || serve(stream, &left));
            }
        });
        origin
    }
}

struct Request {
    method: String,
    path: String,
    version: String,
    fields: Vec<(String, String)>,
}

impl Request {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// A connection, and what was read of it beyond what was asked for.
struct Connection {
    stream: TcpStream,
    ahead: Vec<u8>,
}

impl Connection {
    /// Up to and with `end`; `None`: the client has ended.
    fn until(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = self.ahead.windows(end.len()).position(|window| window == end) {
                return Some(String::from_utf8_lossy(&self.ahead.drain(..at + end.len()).collect::<Vec<_>>()).into_owned());
            }
            if self.more()? == 0 {
                return None;
            }
        }
    }

    fn more(&mut self) -> Option<usize> {
        let mut bytes = [0; 16 << 10];
        let size = self.stream.read(&mut bytes).ok()?;
        self.ahead.extend_from_slice(&bytes[..size]);
        Some(size)
    }

    fn exactly(&mut self, size: usize) -> Option<Vec<u8>> {
        while self.ahead.len() < size {
            if self.more()? == 0 {
                return None;
            }
        }
        Some(self.ahead.drain(..size).collect())
    }

    fn request(&mut self) -> Option<Request> {
        let head = self.until(b"\r\n\r\n")?;
        let mut lines = head.trim_start().lines();
        let mut first = lines.next()?.split(' ').map(str::to_owned);
        let (method, path, version) = (first.next()?, first.next()?, first.next()?);
        let fields = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
        Some(Request { method, path, version, fields })
    }

    /// The body, in which form it came, and its trailers.
    fn body(&mut self, request: &Request) -> Option<(Vec<u8>, &'static str, String)> {
        if request.field("transfer-encoding").is_some() {
            let mut body = Vec::new();
            loop {
                let line = self.until(b"\r\n")?;
                let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
                if size == 0 {
                    break;
                }
                body.extend(self.exactly(size)?);
                self.exactly(2)?;
            }
            let mut trailers = String::new();
            loop {
                let line = self.until(b"\r\n")?;
                if line == "\r\n" {
                    return Some((body, "chunked", trailers));
                }
                trailers.push_str(line.trim());
            }
        }
        let size = request.field("content-length").map_or(Some(0), |size| size.parse().ok())?;
        Some((self.exactly(size)?, "with a length", String::new()))
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(text.as_bytes())
    }

    fn answer(&mut self, body: &str) -> io::Result<()> {
        self.say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
    }

    /// Waits until the client has ended its half or broken off.
    fn until_client_ends(&mut self) {
        while self.more().is_some_and(|size| size > 0) {}
    }
}

fn serve(stream: TcpStream, left: &Left) {
    let _ = stream.set_nodelay(true);
    let mut connection = Connection { stream, ahead: Vec::new() };
    while let Some(request) = connection.request() {
        match answer(&mut connection, &request, left) {
            Ok(true) if request.version == "HTTP/1.1" && request.field("connection") != Some("close") => {}
            _ => {
                let _ = connection.stream.shutdown(Shutdown::Write);
                // A close with unread bytes would be a reset, and take the answer with it.
                let _ = connection.stream.set_read_timeout(Some(Duration::from_secs(2)));
                connection.until_client_ends();
                return;
            }
        }
    }
}

/// Whether the connection can go on.
fn answer(connection: &mut Connection, request: &Request, left: &Left) -> io::Result<bool> {
    let gone = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let head = request.method == "HEAD";
    match request.path.as_str() {
        "/hello" if head => connection.say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-end: to end\r\n\r\n")?,
        "/hello" => connection.say("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-end: to end\r\n\r\nhello")?,
        "/chunked" if head => connection.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?,
        "/chunked" => connection.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3;x=y\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n")?,
        "/trailers" => connection.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 532\r\n\r\n")?,
        "/204" => connection.say("HTTP/1.1 204 No Content\r\nx-end: to end\r\n\r\n")?,
        "/304" => connection.say("HTTP/1.1 304 Not Modified\r\netag: \"7\"\r\ncontent-length: 5\r\n\r\n")?,
        "/103" => connection.say("HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?,
        "/until-close" => {
            connection.say("HTTP/1.1 200 OK\r\n\r\nas long as it is open")?;
            return Ok(false);
        }
        "/http10" => {
            connection.say("HTTP/1.0 200 OK\r\nx-old: yes\r\n\r\nfrom an old server")?;
            return Ok(false);
        }
        "/echo" => {
            if request.field("expect").is_some() {
                connection.say("HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let (body, form, trailers) = connection.body(request).ok_or_else(gone)?;
            let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
            connection.answer(&format!("{} bytes, sum {sum}, {form} {trailers}", body.len()))?;
        }
        // Says no to what it has not read.
        "/refuse" => {
            connection.say("HTTP/1.1 413 Content Too Large\r\ncontent-length: 8\r\nconnection: close\r\n\r\ntoo much")?;
            return Ok(false);
        }
        // Says yes before it has read, and reads on.
        "/early" => {
            connection.answer("answered before it was heard")?;
            connection.body(request).ok_or_else(gone)?;
        }
        "/half" => {
            connection.until_client_ends();
            connection.answer("heard the end")?;
            return Ok(false);
        }
        // The same, behind a body.
        "/v1/completions" => {
            let (body, ..) = connection.body(request).ok_or_else(gone)?;
            connection.until_client_ends();
            connection.answer(&format!("{} bytes, and then the end", body.len()))?;
            return Ok(false);
        }
        "/slow" => {
            left.waiting.fetch_add(1, Ordering::AcqRel);
            connection.until_client_ends();
            left.note();
            return Ok(false);
        }
        // Never listens, and goes on until it cannot write any more, as servers of events do.
        "/events" => {
            left.waiting.fetch_add(1, Ordering::AcqRel);
            connection.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
            while connection.say("d\r\ndata: token\n\n\r\n").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
            left.note();
            return Ok(false);
        }
        "/upgrade" if request.field("upgrade") == Some("conformance/1") => {
            connection.say("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: conformance/1\r\n\r\n")?;
            while let Some(line) = connection.until(b"\n") {
                connection.say(&format!("you said {line}"))?;
            }
            return Ok(false);
        }
        _ => connection.say("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?,
    }
    Ok(true)
}
