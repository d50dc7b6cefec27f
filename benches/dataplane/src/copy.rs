//! The floor: a plain TCP copy, as cheap as a proxy on this runtime can be that understands nothing. One thread, one buffer, a connection to the server for each client.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// Bytes of one read.
const READ: usize = 256 << 10;

/// Copies for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, upstream: SocketAddr) -> io::Result<()> {
    let buffer = Rc::new(RefCell::new(vec![0; READ]));
    loop {
        let (client, _) = listener.accept().await?;
        let buffer = Rc::clone(&buffer);
        tokio::task::spawn_local(async move {
            let Ok(server) = TcpStream::connect(upstream).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (mut up, mut down) = (Half::default(), Half::default());
            let (mut client, mut server) = (client, server);
            poll_fn(|cx| {
                let mut buffer = buffer.borrow_mut();
                let up = up.poll(cx, &mut client, &mut server, &mut buffer);
                let down = down.poll(cx, &mut server, &mut client, &mut buffer);
                match (up, down) {
                    (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) | (Poll::Ready(Err(())), _) | (_, Poll::Ready(Err(()))) => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            })
            .await;
        });
    }
}

/// One direction.
#[derive(Default)]
struct Half {
    /// What was read and not yet taken; at most one read's bytes.
    owed: Vec<u8>,
    paid: usize,
    over: bool,
}

impl Half {
    /// `Ready(Ok)`: it has ended. `Ready(Err)`: the whole connection has.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut TcpStream, to: &mut TcpStream, buffer: &mut [u8]) -> Poll<Result<(), ()>> {
        if self.over {
            return Poll::Ready(Ok(()));
        }
        loop {
            while self.paid < self.owed.len() {
                self.paid += ready!(Pin::new(&mut *to).poll_write(cx, &self.owed[self.paid..])).map_err(drop)?;
            }
            if self.paid > 0 {
                (self.owed, self.paid) = (Vec::new(), 0);
            }
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *from).poll_read(cx, &mut read)).map_err(drop)?;
            let mut bytes = read.filled();
            if bytes.is_empty() {
                self.over = true;
                let _ = Pin::new(&mut *to).poll_shutdown(cx);
                return Poll::Ready(Ok(()));
            }
            while !bytes.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, bytes) {
                    Poll::Ready(Ok(size)) => bytes = &bytes[size..],
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(())),
                    Poll::Pending => {
                        self.owed = bytes.to_vec();
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::LocalSet,
    };

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_also_when_nobody_reads_at_first() {
        LocalSet::new()
            .run_until(async {
                let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let (address, upstream) = (listener.local_addr().unwrap(), server.local_addr().unwrap());
                tokio::task::spawn_local(serve(listener, upstream));
                let sent: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
                let mut client = TcpStream::connect(address).await.unwrap();
                let (mut accepted, _) = server.accept().await.unwrap();
                let write = async {
                    client.write_all(&sent).await.unwrap();
                    client.shutdown().await.unwrap();
                };
                let read = async {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    let mut got = Vec::new();
                    accepted.read_to_end(&mut got).await.unwrap();
                    got
                };
                let ((), got) = tokio::join!(write, read);
                assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
            })
            .await;
    }
}
