//! The server behind every proxy: one thread, HTTP/1 and HTTP/2, no more work than an answer needs.
//!
//! `GET /1k`: 1 KB. `GET /events`: server-sent events without end, one for every stream each [`STEP`], as a server with continuous batching sends tokens. `POST`: read and
//! dropped, and a short answer. HTTP/2: a message of 100 bytes with trailers to every request.

use std::{cell::RefCell, fmt::Write as _, io, rc::Rc, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::h2::{self, End, Event};

/// Between two events of a stream.
pub(crate) const STEP: Duration = Duration::from_millis(10);
/// Stands in every event once and nowhere else.
pub(crate) const MARK: u8 = b'~';
/// One event, as it stands in an answer that comes in chunks.
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"~token\"},\"finish_reason\":null}]}\n\n";
/// Bytes of one read.
const READ: usize = 256 << 10;
const HEAD_MAX: usize = 16 << 10;

/// Answers made once.
struct Answers {
    kilobyte: Vec<u8>,
    taken: Vec<u8>,
    events: Vec<u8>,
    event: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let whole = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
        Self {
            kilobyte: whole(&"k".repeat(1024)),
            taken: whole("{\"taken\":true}"),
            events: b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
            event: format!("{:x}\r\n{EVENT}\r\n", EVENT.len()).into_bytes(),
        }
    }
}

/// Serves for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener) -> io::Result<()> {
    let (answers, buffer) = (Rc::new(Answers::new()), Rc::new(RefCell::new(vec![0; READ])));
    let (step, steps) = watch::channel(());
    tokio::task::spawn_local(async move {
        let mut every = tokio::time::interval(STEP);
        loop {
            every.tick().await;
            step.send_replace(());
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let (answers, buffer, steps) = (Rc::clone(&answers), Rc::clone(&buffer), steps.clone());
        tokio::task::spawn_local(async move {
            // A client that leaves needs no answer.
            let _ = connection(stream, &answers, &buffer, steps).await;
        });
    }
}

/// Reads what has come; one buffer serves all connections, borrowed only while it is filled.
async fn read(stream: &TcpStream, buffer: &RefCell<Vec<u8>>, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        let mut buffer = buffer.borrow_mut();
        match stream.try_read(&mut buffer) {
            Ok(size) => {
                take(&buffer[..size]);
                return Ok(size);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn connection(mut stream: TcpStream, answers: &Answers, buffer: &RefCell<Vec<u8>>, steps: watch::Receiver<()>) -> io::Result<()> {
    let mut ahead = Vec::new();
    loop {
        let Some(head) = head(&ahead)? else {
            if read(&stream, buffer, |bytes| ahead.extend_from_slice(bytes)).await? == 0 {
                return Ok(());
            }
            continue;
        };
        match head {
            Head::Http2 => return http2(stream, ahead.split_off(h2::PREFACE.len()), buffer).await,
            Head::Events => {
                stream.write_all(&answers.events).await?;
                return events(stream, &answers.event, steps).await;
            }
            Head::Get { size } => {
                ahead.drain(..size);
                stream.write_all(&answers.kilobyte).await?;
            }
            Head::Post { size, body } => {
                let mut left = body.saturating_sub(ahead.len() - size);
                ahead.drain(..(size + body).min(ahead.len()));
                while left > 0 {
                    let mut beyond = Vec::new();
                    let got = read(&stream, buffer, |bytes| beyond.extend_from_slice(&bytes[left.min(bytes.len())..])).await?;
                    if got == 0 {
                        return Ok(());
                    }
                    left = left.saturating_sub(got);
                    ahead.extend(beyond);
                }
                stream.write_all(&answers.taken).await?;
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Head {
    Http2,
    Events,
    Get { size: usize },
    Post { size: usize, body: usize },
}

/// What `bytes` begin; `None`: not all of it is there.
fn head(bytes: &[u8]) -> io::Result<Option<Head>> {
    if bytes.starts_with(b"PRI ") {
        return Ok((bytes.len() >= h2::PREFACE.len()).then_some(Head::Http2));
    }
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    let Ok(parsed) = request.parse(bytes) else { return Err(bad("no request")) };
    let httparse::Status::Complete(size) = parsed else {
        return if bytes.len() > HEAD_MAX { Err(bad("a head without end")) } else { Ok(None) };
    };
    Ok(Some(match (request.method, request.path) {
        (Some("POST"), _) => {
            let length = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let body = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
            Head::Post { size, body: body.ok_or_else(|| bad("a body without length"))? }
        }
        (_, Some("/events")) => Head::Events,
        _ => Head::Get { size },
    }))
}

async fn events(mut stream: TcpStream, event: &[u8], mut steps: watch::Receiver<()>) -> io::Result<()> {
    while steps.changed().await.is_ok() {
        stream.write_all(event).await?;
    }
    Ok(())
}

async fn http2(mut stream: TcpStream, ahead: Vec<u8>, buffer: &RefCell<Vec<u8>>) -> io::Result<()> {
    let mut end = End::new(true);
    let mut waiting = std::collections::VecDeque::new();
    let mut took = |end: &mut End, bytes: &[u8]| {
        end.heard(bytes, |event| {
            if let Event::Ended(stream) = event {
                waiting.push_back(stream);
            }
        });
        while end.may_send()
            && let Some(stream) = waiting.pop_front()
        {
            end.send(stream);
        }
    };
    took(&mut end, &ahead);
    loop {
        if !end.out.is_empty() {
            stream.write_all(&end.out).await?;
            end.out.clear();
        }
        if read(&stream, buffer, |bytes| took(&mut end, bytes)).await? == 0 {
            return Ok(());
        }
    }
}

/// The request for each kind of answer, with the fields that a client's library sends.
pub(crate) fn request(method: &str, path: &str, body: usize) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: model.example\r\nuser-agent: bench\r\naccept: */*\r\n");
    if body > 0 {
        let _ = write!(text, "content-type: application/octet-stream\r\ncontent-length: {body}\r\n");
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len() + body, b't');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_once_they_are_whole() {
        let get = request("GET", "/1k", 0);
        assert_eq!(head(&get).unwrap(), Some(Head::Get { size: get.len() }));
        assert_eq!(head(&get[..get.len() - 1]).unwrap(), None);
        assert_eq!(head(&request("GET", "/events", 0)).unwrap(), Some(Head::Events));
        let post = request("POST", "/t", 600);
        assert_eq!(head(&post).unwrap(), Some(Head::Post { size: post.len() - 600, body: 600 }));
        assert_eq!(head(b"PRI * HT").unwrap(), None);
        assert_eq!(head(h2::PREFACE).unwrap(), Some(Head::Http2));
        assert!(head(b"POST / HTTP/1.1\r\n\r\n").is_err() && head(b"\0\0").is_err());
    }

    #[test]
    fn the_mark_of_an_event_stands_in_it_once() {
        let answers = Answers::new();
        assert_eq!(answers.event.iter().position(|byte| *byte == MARK), answers.event.iter().rposition(|byte| *byte == MARK));
        assert!(answers.event.contains(&MARK));
        assert!(!answers.events.contains(&MARK));
    }
}
