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
//! Deadlines are the client's: `--upstream-timeout` is kept by the stack alone, since an answer of ours has no place in a header table that others agree on.

mod connection;
mod frame;
mod hpack;
mod huffman;
mod late_pong;
mod probe;

pub use connection::{NO_HTTP2_NS, relay};
pub use late_pong::LatePong;
pub use probe::speaks_http2;
