//! gRPC by grpcio on both sides.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    leaving::within_50_ms,
    peers::{Pod, saw, script},
    table::{Table, Way},
};

/// Asks by `client` in every way, and makes a row of each of its cells. How long a leaving took, by what and way.
pub(super) fn rows(table: &mut Table, pod: &Pod, client: &str, direct: bool) -> BTreeMap<String, Vec<(Way, f64)>> {
    let all: Vec<(Way, Value)> = pod
        .ways()
        .into_iter()
        .map(|(way, address)| {
            let mut command = script(client, "").expect("the server's python is there");
            command.arg(address.to_string());
            if direct {
                command.arg(pod.server.to_string());
            }
            (way, saw(&mut command))
        })
        .collect();
    let cells = all[0].1["cells"].as_object().unwrap();
    assert!(!cells.is_empty(), "{client} says what it saw");
    for (what, directly) in cells {
        for (way, seen) in &all[1..] {
            assert_eq!(&seen["cells"][what], directly, "{client}: {what}, {way:?}");
        }
        table.row(what, "the same", "the same");
    }
    let mut leaves = BTreeMap::<String, Vec<(Way, f64)>>::new();
    for (way, seen) in &all {
        for (what, took) in seen["leaves"].as_object().into_iter().flatten() {
            let took = took.as_f64().unwrap_or_else(|| panic!("{what}, {way:?}: the server never heard of it"));
            leaves.entry(what.clone()).or_default().push((*way, took));
        }
    }
    leaves
}

#[test]
fn grpc_calls_of_every_kind_are_the_same() {
    let Some(mut server) = script("grpc_server.py", "gRPC by grpcio") else { return };
    let pod = Pod::of(&mut server);
    let mut table = Table::of("grpcio, on both sides");
    let leaves = rows(&mut table, &pod, "grpc_client.py", false);
    within_50_ms(&mut table, &leaves);
    // Each way has its own words for the statuses that went by; those of gRPC are among them.
    for sidecar in [&pod.relay, &pod.stack] {
        assert!(sidecar.metric("steadfast_grpc_responses_total", r#"code="9""#) >= 1, "the error's own status is counted");
    }
    pod.engines_were_used();
    table.must_be_on_the_page();
}
