//! Wrong answers stay well-formed.

use http::Request;
use http_body_util::Full;
use prost::Message;

use crate::harness::{Server, Sidecar, TRUSTING, ask, client, client_h2, get};

const CORRUPT: &[(&str, &str)] = &[("steadfast-fault", "corrupt=0.1")];

#[tokio::test]
async fn json_answers_keep_their_form_and_lose_their_values() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    for client in [client(), client_h2()] {
        let right = ask(&client, get(&sidecar.url("/v2/models/m/infer"), &[])).await;
        let wrong = ask(&client, get(&sidecar.url("/v2/models/m/infer"), CORRUPT)).await;
        assert_eq!((wrong.status, wrong.header("steadfast-injected"), wrong.header("steadfast-origin")), (200, "corrupt;magnitude=0.1", ""));
        assert_eq!(wrong.header("content-length"), wrong.body.len().to_string());
        let (right, mut wrong) = (right.json(), wrong.json());
        assert_eq!(wrong["outputs"][0]["data"], serde_json::json!([22, 33, 11]));
        for (was, is) in [0.5, 0.25, 8.0].into_iter().zip(wrong["outputs"][1]["data"].as_array().unwrap()) {
            let moved = (is.as_f64().unwrap() - was).abs();
            assert!((moved - 0.1 * f64::max(was, 1.0)).abs() < 1e-6, "{was} became {is}");
        }
        for i in 0..2 {
            wrong["outputs"][i]["data"] = right["outputs"][i]["data"].clone();
        }
        assert_eq!(wrong, right);
    }
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="corrupt""#], 2).await;
}

#[tokio::test]
async fn binary_answers_keep_every_length() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    sidecar.arm(TRUSTING).await;
    let client = client();
    let right = ask(&client, get(&sidecar.url("/v2/models/m/infer"), &[("x-binary", "1")])).await;
    let wrong = ask(&client, get(&sidecar.url("/v2/models/m/infer"), &[("x-binary", "1"), CORRUPT[0]])).await;
    let length: usize = wrong.header("inference-header-content-length").parse().unwrap();
    assert_eq!((wrong.body.len(), &wrong.body[..length]), (right.body.len(), &right.body[..length]));
    let tail = &wrong.body[length..];
    let ids: Vec<i64> = tail[..24].chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(ids, [22, 33, 11]);
    for (bytes, was) in tail[24..].chunks_exact(4).zip([0.5_f32, 0.25, 8.0]) {
        let is = f32::from_le_bytes(bytes.try_into().unwrap());
        assert!(((is - was).abs() - 0.1 * was.max(1.0)).abs() < 1e-5, "{was} became {is}");
    }
}

/// `ModelStreamInferResponse` with one tensor.
#[derive(Clone, PartialEq, prost::Message)]
struct Streamed {
    #[prost(string, tag = "1")]
    error_message: String,
    #[prost(message, optional, tag = "2")]
    infer_response: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<Output>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    raw_output_contents: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Output {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
}

fn streamed(values: [i32; 2]) -> Streamed {
    let outputs = vec![Output { name: "ids".into(), datatype: "INT32".into() }];
    let raw_output_contents = vec![values.iter().flat_map(|value| value.to_le_bytes()).collect()];
    Streamed { error_message: String::new(), infer_response: Some(Answer { model_name: "m".into(), outputs, raw_output_contents }) }
}

fn framed(message: &Streamed, compressed: u8) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&[compressed][..], &(message.len() as u32).to_be_bytes(), &message].concat()
}

#[tokio::test]
async fn every_message_of_a_grpc_stream_loses_its_values() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--corrupt-max-bytes", "200"]);
    sidecar.arm(TRUSTING).await;
    let refused = Streamed { error_message: "no such model".into(), infer_response: None };
    let large = Streamed { error_message: "x".repeat(300), infer_response: None };
    let messages = |first, second| [framed(&first, 0), framed(&refused, 0), framed(&streamed([5, 6]), 1), framed(&large, 0), framed(&second, 0)].concat();
    let call = Request::post(sidecar.url("/inference.GRPCInferenceService/ModelStreamInfer"))
        .header("content-type", "application/grpc")
        .header("grpc-accept-encoding", "gzip, identity")
        .header("steadfast-fault", "corrupt=1;tensors=scale")
        .body(Full::from(messages(streamed([1, -2]), streamed([300, 4]))))
        .unwrap();
    let reply = ask(&client_h2(), call).await;
    assert_eq!((reply.status, reply.header("steadfast-injected")), (200, "corrupt;magnitude=1;tensors=scale"));
    assert_eq!(reply.body, messages(streamed([2, -4]), streamed([600, 8])));
    assert_eq!(server.seen.headers.lock().unwrap()["grpc-accept-encoding"], "identity", "what is compressed cannot be changed");
    sidecar.metric_reaches("steadfast_faults_injected_total", &[r#"kind="corrupt""#], 1).await;
    sidecar.metric_reaches("steadfast_corrupt_skipped_total", &[r#"reason="too-large""#], 1).await;
    sidecar.metric_reaches("steadfast_corrupt_skipped_total", &[r#"reason="content-encoding""#], 1).await;
}

#[tokio::test]
async fn what_is_too_large_or_not_understood_passes_unharmed_and_is_counted() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &["--corrupt-max-bytes", "1000"]);
    sidecar.arm(TRUSTING).await;
    let client = client();
    let echo = |content_type: &str, body: String| {
        Request::post(sidecar.url("/echo")).header("content-type", content_type).header("steadfast-fault", "corrupt=0.5").body(Full::from(body)).unwrap()
    };
    let large = format!("[{}1]", "1,".repeat(5000));
    let reply = ask(&client, echo("application/json", large.clone())).await;
    assert_eq!((reply.text(), reply.header("steadfast-injected")), (large, ""));
    let reply = ask(&client, echo("text/plain", "[1, 2]".into())).await;
    assert_eq!((reply.text().as_str(), reply.header("steadfast-injected")), ("[1, 2]", ""));
    let reply = ask(&client, echo("application/json", "[1,2]".into())).await;
    assert_eq!((reply.text().as_str(), reply.header("steadfast-injected")), ("[2,1]", "corrupt;magnitude=0.5"));
    sidecar.metric_reaches("steadfast_corrupt_skipped_total", &[], 2).await;
}
