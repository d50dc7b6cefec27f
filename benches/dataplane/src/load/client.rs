//! HTTP/1 clients.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::Done;
use crate::upstream::request;

/// A tensor of 150,528 floats: an image of 224 by 224.
const TENSOR: usize = 602_112;
const READ: usize = 16 << 10;

pub(super) fn get() -> Vec<u8> {
    request("GET", "/1k", 0)
}

pub(super) fn post() -> Vec<u8> {
    request("POST", "/v2/models/m/infer", TENSOR)
}

pub(super) fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// One connection.
pub(crate) struct Client {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) async fn connect(target: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; READ] })
    }

    /// Asks, and reads the answer to its end. Anything but 200 is an error.
    pub(super) async fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        let mut got = 0;
        let size = loop {
            let more = self.stream.read(&mut self.buffer[got..]).await?;
            if more == 0 {
                return Err(wrong(if got == READ { "an answer's head is too large" } else { "a connection ended before it had answered" }));
            }
            got += more;
            if let Some(size) = answer(&self.buffer[..got])? {
                break size;
            }
        };
        let mut left = size.checked_sub(got).ok_or_else(|| wrong("more came than an answer"))?;
        while left > 0 {
            let more = self.stream.read(&mut self.buffer).await?;
            left = left.checked_sub(more).filter(|_| more > 0).ok_or_else(|| wrong("an answer's length is wrong"))?;
        }
        Ok(())
    }
}

/// Bytes of the answer that `bytes` begin, head and body; `None`: its head is not whole.
fn answer(bytes: &[u8]) -> io::Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(|_| wrong("no answer of HTTP"))? else { return Ok(None) };
    if response.code != Some(200) {
        return Err(wrong(&format!("status {}", response.code.unwrap_or_default())));
    }
    let length = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let body: Option<usize> = length.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
    body.map(|body| Some(head + body)).ok_or_else(|| wrong("an answer without length"))
}

pub(super) async fn again_and_again(target: SocketAddr, request: Vec<u8>, done: &Done) -> io::Result<()> {
    let mut client = Client::connect(target).await?;
    loop {
        client.ask(&request).await?;
        done.one_more();
    }
}

pub(super) async fn anew(target: SocketAddr, done: &Done) -> io::Result<()> {
    let request = get();
    loop {
        Client::connect(target).await?.ask(&request).await?;
        done.one_more();
    }
}

/// So many connections, each of which has been used once and is kept.
pub(crate) async fn hold_open(target: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let (mut held, request) = (Vec::with_capacity(count), get());
    for _ in 0..count {
        let mut client = Client::connect(target).await?;
        client.ask(&request).await?;
        held.push(client.stream);
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe";
        assert_eq!(answer(text).unwrap(), Some(text.len() + 3));
        assert_eq!(answer(&text[..20]).unwrap(), None);
        assert!(answer(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").unwrap_err().to_string().contains("503"));
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
