//! Does anybody notice the sidecar? Real clients ask real servers directly, through the relay (nothing armed) and through the stack (a policy is armed that names another
//! path), and must see the same; where HTTP lets a proxy do otherwise and the stack does, the row says what.
//!
//! Each test fills one section of docs/protocols.md and compares it with the page; `STEADFAST_WRITE_DOCS=1` writes the page anew. Triton, which is
//! large, comes with `STEADFAST_CONFORMANCE=full tests/run` (`just conformance-full`).

mod curl;
mod grpc;
mod http2;
mod leaving;
mod load;
mod model_servers;
mod openai;
mod origin;
mod peers;
mod raw;
mod start;
mod table;
mod tls;
mod unix_socket;
mod websocket;
