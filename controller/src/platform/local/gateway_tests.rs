use std::{convert::Infallible, time::Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::runtime::Handle;

use super::*;

fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// A sidecar that answers with what it was sent.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(|request: Request<Incoming>| async move {
                let mut response = Response::new(());
                for name in ["x-mine", "x-one-hop", "te"] {
                    if let Some(value) = request.headers().get(name) {
                        response.headers_mut().insert(HeaderName::try_from(format!("seen-{name}")).unwrap(), value.clone());
                    }
                }
                response.headers_mut().insert("seen-path", HeaderValue::from_str(&request.uri().to_string()).unwrap());
                Ok::<_, Infallible>(response.map(|()| request.into_body()))
            });
            Handle::current().spawn(async move { auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await.map(drop) });
        }
    });
    address
}

async fn get(gateway: &Gateway) -> Response<Incoming> {
    let uri = format!("http://{}/v2/models/m/infer?a=b", gateway.address());
    let request = Request::post(uri).header("x-mine", "1").header("x-one-hop", "1").header("connection", "x-one-hop").body(Full::from("hello")).unwrap();
    client().request(request).await.unwrap()
}

#[tokio::test]
async fn without_a_pod_it_says_so_under_its_own_origin() {
    let gateway = Gateway::start().unwrap();
    let response = get(&gateway).await;
    assert_eq!((response.status().as_u16(), response.headers()[ORIGIN_HEADER].to_str().unwrap()), (503, "proxy"));
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(!response.headers().contains_key(POD_HEADER));
}

#[tokio::test]
async fn pods_take_turns_and_answers_name_them() {
    let gateway = Gateway::start().unwrap();
    let (a, b) = (echo().await, echo().await);
    gateway.routes().set(&[(a, "pod-a".into()), (b, "pod-b".into())]);
    let mut turns = Vec::new();
    for _ in 0..10 {
        let response = get(&gateway).await;
        assert_eq!(response.headers()["seen-path"], "/v2/models/m/infer?a=b");
        assert_eq!(response.headers()["seen-x-mine"], "1");
        assert!(!response.headers().contains_key("seen-x-one-hop"), "nominated by Connection");
        turns.push(response.headers()[POD_HEADER].to_str().unwrap().to_owned());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    assert!(turns.windows(2).all(|two| two[0] != two[1]), "{turns:?}");
    gateway.routes().set(&[(b, "pod-b".into())]);
    for _ in 0..4 {
        assert_eq!(get(&gateway).await.headers()[POD_HEADER], "pod-b", "a change counts from the next request on");
    }
}

#[tokio::test]
async fn a_pod_that_takes_no_connection_is_named() {
    let gateway = Gateway::start().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    gateway.routes().set(&[(closed, "pod-a".into())]);
    let response = get(&gateway).await;
    assert_eq!((response.status().as_u16(), response.headers()[ORIGIN_HEADER].to_str().unwrap()), (502, "proxy"));
    assert_eq!(response.headers()[POD_HEADER], "pod-a");
}

#[tokio::test]
async fn http_2_with_trailers_passes() {
    let gateway = Gateway::start().unwrap();
    gateway.routes().set(&[(echo().await, "pod-a".into())]);
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let uri = format!("http://{}/inference.GRPCInferenceService/ModelInfer", gateway.address());
    let response = client.request(Request::post(uri).header("te", "trailers").body(Full::from("hello")).unwrap()).await.unwrap();
    assert_eq!((response.version(), &response.headers()["seen-te"]), (Version::HTTP_2, &HeaderValue::from_static("trailers")));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test]
async fn a_user_who_gives_up_frees_the_pods_connection() {
    let gateway = Gateway::start().unwrap();
    let stalled = TcpListener::bind("127.0.0.1:0").await.unwrap();
    gateway.routes().set(&[(stalled.local_addr().unwrap(), "pod-a".into())]);
    assert!(tokio::time::timeout(Duration::from_millis(100), get(&gateway)).await.is_err());
    let (mut stream, _) = stalled.accept().await.unwrap();
    let began = Instant::now();
    tokio::time::timeout(Duration::from_secs(2), tokio::io::copy(&mut stream, &mut tokio::io::sink())).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
}
