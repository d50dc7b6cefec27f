//! WebSocket by Python's `websockets` on both sides.

use super::{
    grpc::rows,
    peers::{Pod, script},
    table::Table,
};

#[test]
fn websockets_are_the_same() {
    let Some(mut server) = script("websocket_server.py", "WebSocket by websockets") else { return };
    let pod = Pod::of(&mut server);
    let mut table = Table::of("websockets, on both sides");
    rows(&mut table, &pod, "websocket_client.py", false);
    pod.engines_were_used();
    table.must_be_on_the_page();
}
