//! HTTP/2 on the relay: frames are read along, header blocks only for what the relay measures by.
//!
//! **Moving away.** What the client and the model server have agreed on (header tables, windows, stream numbers) cannot be handed to another engine, so a connection is
//! left by its client instead, as RFC 9113 §6.8 has it: between two frames of the model server's the relay says GOAWAY with the last stream there can be, and PING. It
//! goes on relaying every stream that comes: those the client began without knowing, and, behind the PING's answer, those that stood in its queue by then (libraries
//! answer a PING before they send what waits). When the answer has come, and no stream has been open or begun for a moment, a second GOAWAY
//! names the last stream, and the connection is closed. A stream that comes even then is refused unseen by the model server (REFUSED_STREAM), which allows the client
//! to ask again; so no request is lost and none reaches the model server twice. A stream that crosses the arming on its way counts as one that came before it.
//!
//! **Servers without HTTP/2.** The stack speaks HTTP/1.1 to a model server that speaks no HTTP/2, and so serves HTTP/2 clients of a server that has none. Until the
//! server has begun with SETTINGS, as §3.4 has it, all that the client has said is kept; a server that begins otherwise has begun no request, and the connection goes
//! to the stack with all that was kept. Such a server is not tried again for a minute.
//!
//! **Answers of our own.** A block whose fields are never indexed changes no table, so a stream that its server has not answered within `--upstream-timeout` gets one, without
//! a body, since that would have to be paid for from windows that others keep; the server is told that the stream is given up. What it still says on it passes.
//!
//! **Floods.** A client that only resets, pings, sets, or sends what asks for nothing ([`patience`]), has more streams open than are followed, or a header list that is
//! longer than any head may be, is ended by GOAWAY (ENHANCE_YOUR_CALM). So is one that goes on asking long after it was told to go.

mod connection;
mod frame;
mod guarded;
mod hpack;
mod huffman;
mod patience;
mod probe;

pub use connection::{NO_HTTP2_NS, relay};
pub use guarded::{Guarded, Standing};
pub use probe::speaks_http2;

/// For `fuzzing`.
pub(crate) use hpack::Decoder;

/// For `fuzzing`: every frame of one direction (kind, stream, bytes of its header block if that is whole), and whether all of it was understood.
pub(crate) fn read_along<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<(u8, u32, usize)>, bool) {
    let (mut reader, mut decoder, mut found) = (frame::Reader::default(), Decoder::default(), Vec::new());
    for mut piece in pieces {
        loop {
            let Ok((size, event)) = reader.next(piece) else { return (found, false) };
            piece = &piece[size..];
            match event {
                frame::Event::Ends => {
                    let whole = reader.in_block.is_none();
                    if let Some(frame) = reader.frame {
                        let block = if frame.has_block() && whole { reader.block.len() } else { 0 };
                        if frame.has_block() && whole && decoder.read(&reader.block).is_err() {
                            return (found, false);
                        }
                        found.push((frame.kind, frame.stream, block));
                    }
                    reader.done();
                }
                frame::Event::Dry { .. } => break,
                frame::Event::Begins | frame::Event::Payload(_) => {}
            }
        }
    }
    (found, true)
}

/// For `fuzzing`.
pub(crate) fn huffman(coded: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    huffman::decode(coded, &mut plain).ok().map(|()| plain)
}
