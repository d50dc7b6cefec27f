//! Whether a model server speaks HTTP/2, asked by a connection of its own.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{Frame, HEAD, flag, kind};
use crate::relay::PREFACE;

/// Says on a new connection what HTTP/2 begins with. Whether the other side does the same: its first frame must be SETTINGS (RFC 9113 §3.4).
pub async fn speaks_http2(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<bool> {
    let settings = Frame { size: 0, kind: kind::SETTINGS, flags: 0, stream: 0 };
    stream.write_all(&[&PREFACE[..], &settings.write()].concat()).await?;
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await?;
    let first = Frame::read(&head);
    Ok(first.kind == kind::SETTINGS && first.stream == 0 && !first.has(flag::ACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_settings_is_an_answer() {
        for (says, speaks) in [(&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], Some(true)), (b"HTTP/1.1 400 Bad Request\r\n\r\n", Some(false)), (b"HTTP/", None)] {
            let (mut ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(says).await.unwrap();
            theirs.shutdown().await.unwrap();
            assert_eq!(speaks_http2(&mut ours).await.ok(), speaks, "{says:?}");
        }
    }
}
