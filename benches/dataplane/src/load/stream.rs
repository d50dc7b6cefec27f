//! Clients that listen: to server-sent events, and to many answers on one HTTP/2 connection.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Done, client::wrong};
use crate::{
    h2::{End, Event},
    upstream::{MARK, request},
};

const READ: usize = 64 << 10;

pub(super) async fn events(target: SocketAddr, done: &Done) -> io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&request("GET", "/events", 0)).await?;
    let (mut buffer, mut first) = (vec![0; READ], true);
    loop {
        let size = stream.read(&mut buffer).await?;
        if size == 0 {
            return Err(wrong("a stream of events ended"));
        }
        if std::mem::take(&mut first) && !buffer.starts_with(b"HTTP/1.1 200") {
            return Err(wrong("no stream of events"));
        }
        #[expect(clippy::naive_bytecount, reason = "a hundred bytes")]
        let events = buffer[..size].iter().filter(|byte| **byte == MARK).count();
        done.count.set(done.count.get() + events as u64);
    }
}

pub(super) async fn grpc(target: SocketAddr, streams: usize, done: &Done) -> io::Result<()> {
    let mut socket = TcpStream::connect(target).await?;
    socket.set_nodelay(true)?;
    let (mut end, mut buffer, mut next, mut waiting) = (End::new(false), vec![0; READ], 1_u32, streams);
    loop {
        if !end.out.is_empty() {
            socket.write_all(&end.out).await?;
            end.out.clear();
        }
        let size = socket.read(&mut buffer).await?;
        if size == 0 {
            return Err(wrong("an HTTP/2 connection ended"));
        }
        let mut bad = None;
        end.heard(&buffer[..size], |event| match event {
            Event::Ended(_) => {
                done.one_more();
                waiting += 1;
            }
            Event::Reset(stream) => bad = Some(format!("stream {stream} was reset")),
            Event::Goes => bad = Some("the proxy said GOAWAY".to_owned()),
        });
        if let Some(why) = bad {
            return Err(wrong(&why));
        }
        while waiting > 0 && end.may_send() {
            end.send(next);
            next += 2;
            waiting -= 1;
        }
    }
}
