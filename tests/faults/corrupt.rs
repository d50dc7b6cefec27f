//! Wrong answers stay well-formed.

use http::Request;
use http_body_util::Full;

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
