//! OpenAI's own client, and llama.cpp with a tiny random model.

use super::{
    grpc::rows,
    leaving::within_50_ms,
    peers::{Pod, script},
    table::Table,
};

#[test]
fn a_language_model_says_the_same_and_stops_when_its_client_leaves() {
    let Some(mut server) = script("llama_server.py", "llama.cpp and the client openai") else { return };
    let pod = Pod::of(&mut server);
    let mut table = Table::of("openai, and llama.cpp");
    let leaves = rows(&mut table, &pod, "openai_client.py", true);
    within_50_ms(&mut table, &leaves);
    pod.engines_were_used();
    table.must_be_on_the_page();
}
