//! A table of requests and the answers that the protocol demands, from the server itself and through the sidecar.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use steadfast_golden_sets::{
    DataType, Tensor,
    oip::{self, RequestOptions},
    set,
};

use crate::process::{self, Server, Sidecar};

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// HTTP/1.1 and HTTP/2 with prior knowledge.
fn clients() -> [(&'static str, HttpClient); 2] {
    let builder = || Client::builder(TokioExecutor::new());
    [("HTTP/1.1", builder().build_http()), ("HTTP/2", builder().http2_only(true).build_http())]
}

/// A server, and the sidecar in front of it.
struct Pod {
    server: Server,
    sidecar: Sidecar,
}

impl Pod {
    fn ready(set: &str, more: &[&str]) -> Self {
        let server = Server::ready(&process::set(set), &[&["--engine", "rten"], more].concat());
        Self { sidecar: Sidecar::before(&server), server }
    }

    /// Every way to ask it: a name for messages, a client, the base address.
    fn ways(&self) -> Vec<(String, HttpClient, String)> {
        let addresses = [("the server", self.server.url()), ("the sidecar", self.sidecar.url())];
        addresses.into_iter().flat_map(|(who, url)| clients().map(|(version, client)| (format!("{version} to {who}"), client, url.clone()))).collect()
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn send(client: &HttpClient, method: Method, url: String, headers: &[(&str, String)], body: impl Into<Bytes>) -> Response<Bytes> {
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let response = client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

fn parsed(response: &Response<Bytes>) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    serde_json::from_slice(response.body()).unwrap_or_else(|error| panic!("{error}: {:?}", response.body()))
}

const INFER: &str = "/v2/models/digits/infer";

#[test]
fn health_and_metadata_are_what_the_protocol_says() {
    let pod = Pod::ready("digits", &[]);
    run(async {
        for (way, client, url) in pod.ways() {
            let get = |path: &'static str| send(&client, Method::GET, url.clone() + path, &[], "");
            for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/v2/models/digits/versions/1/ready"] {
                assert_eq!(get(path).await.status(), StatusCode::OK, "{way} {path}");
            }
            let about = parsed(&get("/v2").await);
            assert!(about["name"].is_string() && about["version"].is_string(), "{about}");
            assert!(about["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")), "{about}");
            for path in ["/v2/models/digits", "/v2/models/digits/versions/1"] {
                let model = parsed(&get(path).await);
                assert_eq!((&model["name"], &model["versions"]), (&json!("digits"), &json!(["1"])));
                assert_eq!(model["inputs"], json!([{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}]));
                assert_eq!(model["outputs"], json!([{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]));
            }
        }
    });
}

/// Method, path, headers, body; status and a part of the text that must come back.
type Row<'a> = (Method, &'a str, Vec<(&'a str, String)>, String, u16, &'a str);

#[test]
fn every_wrong_request_gets_its_own_status_and_a_text() {
    let pod = Pod::ready("digits", &["--max-body", "100000"]);
    let json_type = || vec![("content-type", "application/json".to_owned())];
    let pixels = |shape: &str, datatype: &str, count: usize| {
        format!(r#"{{"inputs":[{{"name":"pixels","shape":{shape},"datatype":"{datatype}","data":[{}]}}]}}"#, vec!["1"; count].join(","))
    };
    let right = pixels("[1,64]", "FP32", 64);
    let header = |value: &str| vec![("content-type", "application/octet-stream".to_owned()), (oip::INFERENCE_HEADER_LENGTH, value.to_owned())];
    let table: Vec<Row<'_>> = vec![
        (Method::GET, "/", vec![], String::new(), 404, "not part of the Open Inference Protocol"),
        (Method::GET, "/v2/models/other", vec![], String::new(), 404, r#"no model "other""#),
        (Method::POST, "/v2/models/other/infer", json_type(), right.clone(), 404, r#"the one served is "digits""#),
        (Method::POST, "/v2/models/digits/versions/9/infer", json_type(), right.clone(), 404, r#"no version "9""#),
        (Method::GET, INFER, vec![], String::new(), 405, "use POST"),
        (Method::POST, "/v2/models/digits", json_type(), String::new(), 405, "use GET"),
        (Method::DELETE, "/v2/health/ready", vec![], String::new(), 405, "use GET"),
        (Method::POST, INFER, vec![("content-type", "text/plain".into())], right.clone(), 415, "content-type"),
        (Method::POST, INFER, vec![("content-type", "application/json".into()), ("content-encoding", "gzip".into())], right.clone(), 415, "content-encoding"),
        (Method::POST, INFER, json_type(), " ".repeat(100_001), 413, "at most 100000"),
        (Method::POST, INFER, json_type(), String::new(), 400, "EOF"),
        (Method::POST, INFER, json_type(), "{".into(), 400, "JSON"),
        (Method::POST, INFER, json_type(), r#"{"inputs":[]}"#.into(), 400, r#"input "pixels": is missing"#),
        (Method::POST, INFER, json_type(), pixels("[1,64]", "FP32", 63), 400, "has 63 values, but shape [1, 64] takes 64"),
        (Method::POST, INFER, json_type(), pixels("[64]", "FP32", 64), 400, "but the model takes [-1, 64]"),
        (Method::POST, INFER, json_type(), pixels("[1,64]", "INT64", 64), 400, "is INT64, but the model takes FP32"),
        (Method::POST, INFER, json_type(), pixels("[1,64]", "FLOAT", 64), 400, "not a type of the protocol"),
        (Method::POST, INFER, json_type(), pixels("[4294967296,4294967296]", "FP32", 1), 400, "more than"),
        (Method::POST, INFER, json_type(), right.replace("pixels", "image"), 400, r#"its inputs are ["pixels"]"#),
        (Method::POST, INFER, json_type(), right.replace("}]}", r#"}],"outputs":[{"name":"label"}]}"#), 400, r#"output "label""#),
        (Method::POST, INFER, header("many"), right.clone(), 400, "no number of bytes"),
        (Method::POST, INFER, header("100000"), right.clone(), 400, "but the body has"),
        (Method::POST, INFER, header("0"), right.clone(), 400, "is 0"),
        (Method::POST, INFER, header("20"), right.clone(), 400, "JSON"),
    ];
    run(async {
        for (way, client, url) in pod.ways() {
            for (method, path, headers, body, status, says) in &table {
                let response = send(&client, method.clone(), url.clone() + path, headers, body.clone()).await;
                let error = parsed(&response)["error"].as_str().unwrap_or_default().to_owned();
                assert_eq!((response.status().as_u16(), error.contains(says)), (*status, true), "{way} {method} {path} {body:.80}: {error}");
                assert_eq!(response.status() == StatusCode::METHOD_NOT_ALLOWED, response.headers().contains_key("allow"), "{way} {method} {path}");
            }
            // After all that it still answers.
            assert_eq!(send(&client, Method::POST, url.clone() + INFER, &json_type(), right.clone()).await.status(), StatusCode::OK);
        }
    });
}

#[test]
fn an_answer_is_the_same_as_json_and_as_binary_tensors() {
    let pod = Pod::ready("recommender", &[]);
    let set = set::read(process::set("recommender")).unwrap();
    let declared: Vec<(&str, DataType)> = set.manifest().outputs.iter().map(|output| (output.name.as_str(), output.datatype)).collect();
    run(async {
        for (way, client, url) in pod.ways() {
            for sample in &set.samples()[..20] {
                let mut answers: Vec<Vec<Tensor>> = Vec::new();
                for binary in [false, true] {
                    let options = RequestOptions { id: "a-7".into(), binary, outputs: Vec::new() };
                    let message = oip::encode_request(&sample.inputs, &options).unwrap();
                    let mut headers = vec![("content-type", message.content_type.to_owned())];
                    headers.extend(message.inference_header_length.map(|length| (oip::INFERENCE_HEADER_LENGTH, length.to_string())));
                    let response = send(&client, Method::POST, url.clone() + "/v2/models/recommender/versions/1/infer", &headers, message.body).await;
                    assert_eq!(response.status(), StatusCode::OK, "{way}: {:?}", response.body());
                    let length = response.headers().get(oip::INFERENCE_HEADER_LENGTH).map(|value| value.to_str().unwrap().parse().unwrap());
                    assert_eq!((length.is_some(), response.headers()["content-type"] == oip::BINARY), (binary, binary));
                    let answer = oip::decode_response(length, response.body(), &declared).unwrap();
                    assert_eq!((answer.model.as_str(), answer.version.as_str(), answer.id.as_str()), ("recommender", "1", "a-7"));
                    answers.push(answer.outputs);
                }
                assert_eq!(answers[0], answers[1], "{way} {}", sample.name);
                assert!(set.rules().compare(&sample.outputs, &answers[0]).matches(), "{way} {}", sample.name);
            }
        }
    });
}

#[test]
fn only_the_outputs_asked_for_come_each_in_its_own_form() {
    let pod = Pod::ready("recommender", &[]);
    let inputs = json!([{"name": "user_id", "shape": [1], "datatype": "INT64", "data": [15]}, {"name": "recent_items", "shape": [1, 50], "datatype": "INT64", "data": [vec![0; 50]]}]);
    run(async {
        for (way, client, url) in pod.ways() {
            let ask = async |outputs: Value| {
                let body = json!({"inputs": inputs, "outputs": outputs}).to_string();
                let response =
                    send(&client, Method::POST, url.clone() + "/v2/models/recommender/infer", &[("content-type", "application/json".into())], body).await;
                let length = response.headers().get(oip::INFERENCE_HEADER_LENGTH).map(|value| value.to_str().unwrap().parse::<usize>().unwrap());
                (length, serde_json::from_slice::<Value>(&response.body()[..length.unwrap_or(response.body().len())]).unwrap(), response.body().len())
            };
            let (length, answer, _) = ask(json!([{"name": "scores"}])).await;
            assert_eq!((length, answer["outputs"].as_array().map(Vec::len), &answer["outputs"][0]["name"]), (None, Some(1), &json!("scores")));
            let (length, answer, total) = ask(json!([{"name": "item_ids"}, {"name": "scores", "parameters": {"binary_data": true}}])).await;
            assert!(answer["outputs"][0]["data"].is_array() && answer["outputs"][1].get("data").is_none(), "{answer}");
            assert_eq!((answer["outputs"][1]["parameters"]["binary_data_size"].as_u64(), length.map(|length| total - length)), (Some(40), Some(40)), "{way}");
        }
    });
}
