use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use steadfast_api::policy::Origin;
use steadfast_golden_sets::{
    Sample, Tensor, Values,
    oip::{self, ResponseHead},
    set::sha256,
};
use tokio::{net::TcpListener, runtime::Handle};

use super::*;

/// One length-delimited field of a protocol buffer (all lengths here are below 128).
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, content.len() as u8], content].concat()
}

/// `y = x + x`, as ONNX.
fn model() -> Bytes {
    let port = |name: &[u8]| [field(1, name), field(2, &field(1, &[&[0x08, 1][..], &field(2, &field(1, &[0x08, 1]))].concat()))].concat();
    let node = [field(1, b"x"), field(1, b"x"), field(2, b"y"), field(4, b"Add")].concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &port(b"x")), field(12, &port(b"y"))].concat();
    [&[0x08, 8][..], &field(7, &graph), &field(8, &[0x10, 13])].concat().into()
}

/// A set whose right answer is the input, doubled.
fn set() -> Arc<GoldenSet> {
    let model = model();
    let manifest = serde_json::json!({
        "model": "double", "onnx": { "file": "model.onnx", "digest": sha256(&model) },
        "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1] }],
        "outputs": [{ "name": "y", "datatype": "FP32", "shape": [1], "compare": { "regression": { "absolute": "0.001", "relative": "0" } } }],
        "samples": (0..4).map(|n| serde_json::json!({ "name": n.to_string(), "directory": n.to_string() })).collect::<Vec<_>>(),
    });
    let one = |name: &str, value: f32| vec![Tensor::new(name, [1], Values::F32(vec![value])).unwrap()];
    let samples = (0..4_u8).map(|n| Sample { name: n.to_string(), tags: vec![], inputs: one("x", n.into()), outputs: one("y", f32::from(n) * 2.0) });
    Arc::new(GoldenSet::new(serde_json::from_value(manifest).unwrap(), model, samples.collect()).unwrap())
}

fn load(rate: &str, timeout: &str, max_in_flight: u32) -> Load {
    let load = serde_json::json!({ "name": "users", "rate": rate, "inputs": { "goldenSet": "double" }, "timeout": timeout, "maxInFlight": max_in_flight });
    serde_json::from_value(load).unwrap()
}

/// Answers after `delay` with the input times `factor`, under `status` and `origin`.
async fn server(delay: Duration, factor: f32, status: u16, origin: Option<&'static str>) -> (SocketAddr, OwnThread) {
    let thread = OwnThread::start("test-server").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let address = listener.local_addr().unwrap();
    thread.handle().spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = stream.set_nodelay(true);
            let answer = service_fn(move |request: Request<Incoming>| async move {
                let request = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                tokio::time::sleep(delay).await;
                let request = oip::decode_request(None, &request).unwrap();
                let x = request.inputs[0].values.number(0).unwrap() as f32;
                let y = [Tensor::new("y", [1], Values::F32(vec![x * factor])).unwrap()];
                let body = oip::encode_response(ResponseHead::default(), &y, |_| false).unwrap().body;
                let mut response = Response::builder().status(status).header("steadfast-pod", "pod-1");
                if let Some(origin) = origin {
                    response = response.header("steadfast-origin", origin);
                }
                Ok::<_, Infallible>(response.body(Full::new(body)).unwrap())
            });
            Handle::current().spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    (address, thread)
}

async fn run(target: SocketAddr, load: &Load, time: Duration) -> (Sent, Vec<Record>) {
    let (sink, mut records) = mpsc::channel(100_000);
    let generator = Generator::start(target, true, load, &set(), 7, sink).unwrap();
    tokio::time::sleep(time).await;
    let sent = generator.stop().await;
    let mut all = Vec::new();
    while let Ok(record) = records.try_recv() {
        all.push(record);
    }
    (sent, all)
}

#[tokio::test]
async fn the_rate_holds_and_every_request_makes_one_record() {
    let (target, _server) = server(Duration::ZERO, 2.0, 200, None).await;
    let (sent, records) = run(target, &load("200/s", "2s", 100), Duration::from_secs(2)).await;
    assert_eq!((sent.due as usize, sent.records_dropped), (records.len(), 0));
    assert!((395..=405).contains(&records.len()), "{}", records.len());
    assert!(records.iter().all(|record| record.end == End::Answered { right: true } && record.pod.as_deref() == Some("pod-1")), "{records:?}");
    // Due moments are the schedule itself, not when somebody got around to them.
    let mut due: Vec<_> = records.iter().map(|record| record.due).collect();
    due.sort_unstable();
    let whole = due[due.len() - 1] - due[0];
    let expected = Duration::from_millis(5) * (due.len() as u32 - 1);
    assert!(whole.abs_diff(expected) < Duration::from_micros(10), "{whole:?} {expected:?}");
    let mut late: Vec<_> = records.iter().map(|record| record.sent - record.due).collect();
    late.sort_unstable();
    println!("sent {:?} late at the median, {:?} at the 99th percentile", late[late.len() / 2], late[late.len() * 99 / 100]);
    assert!(late[late.len() / 2] < Duration::from_millis(1), "sent {:?} late at the median", late[late.len() / 2]);
}

#[tokio::test]
async fn a_server_that_stalls_costs_latency_or_silence_and_never_a_request() {
    // Accepts connections (the kernel does) and never reads: as a machine that hangs does.
    let stalled = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (sent, records) = run(stalled.local_addr().unwrap(), &load("100/s", "300ms", 1000), Duration::from_secs(1)).await;
    assert_eq!(sent.due as usize, records.len());
    assert!((98..=102).contains(&records.len()), "{}", records.len());
    for record in &records {
        let waited = record.ended - record.due;
        assert!(record.end == End::Silence && record.pod.is_none(), "{record:?}");
        assert!((Duration::from_millis(300)..Duration::from_millis(800)).contains(&waited), "{waited:?}");
    }
}

#[tokio::test]
async fn what_is_beyond_max_in_flight_is_counted_as_silence() {
    let stalled = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (sent, records) = run(stalled.local_addr().unwrap(), &load("100/s", "5s", 10), Duration::from_millis(500)).await;
    assert_eq!(sent.due as usize, records.len());
    let at_once = records.iter().filter(|record| record.ended - record.due < Duration::from_millis(100)).count();
    assert_eq!(at_once, records.len() - 10, "ten were under way, the others were not sent");
}

#[tokio::test]
async fn answers_are_checked_and_errors_have_an_origin() {
    for (factor, status, origin, end) in [
        (2.1, 200, None, End::Answered { right: false }),
        (2.0, 503, None, End::Error { status: 503, origin: Origin::Upstream }),
        (2.0, 503, Some("injected"), End::Error { status: 503, origin: Origin::Injected }),
        (2.0, 502, Some("proxy"), End::Error { status: 502, origin: Origin::Proxy }),
    ] {
        let (target, _server) = server(Duration::from_millis(20), factor, status, origin).await;
        let (_, records) = run(target, &load("100/s", "2s", 100), Duration::from_millis(200)).await;
        assert!(!records.is_empty());
        for record in records {
            // The input 0 is right whatever the factor.
            assert!(record.end == end || matches!(record.end, End::Answered { right: true }) && factor > 2.0, "{record:?}");
            assert!(record.ended - record.due >= Duration::from_millis(20), "{record:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_reader_of_records_delays_nobody() {
    let (target, _server) = server(Duration::ZERO, 2.0, 200, None).await;
    let (sink, _records) = mpsc::channel(10);
    let generator = Generator::start(target, true, &load("200/s", "2s", 100), &set(), 7, sink).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = generator.stop().await;
    assert_eq!(sent.records_dropped, sent.due - 10);
}
