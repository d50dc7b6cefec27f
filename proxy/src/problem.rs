//! Answers that the model server did not give, in the form that the client understands: problem+json (RFC 9457), the Open Inference Protocol's
//! `{"error": …}`, OpenAI's `{"error": {"message": …}}`, gRPC's status as JSON, or a gRPC status.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;
use steadfast_api::policy::{ORIGIN_HEADER, Origin};

/// Which form of error a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// problem+json.
    Http,
    /// The Open Inference Protocol: a JSON object whose `error` says what went wrong.
    Oip,
    /// OpenAI's interface: a JSON object whose `error` is an object.
    OpenAi,
    /// gRPC behind a gateway that speaks JSON: google.rpc.Status as JSON.
    GrpcJson,
    /// Status in trailers, and nothing else.
    Grpc,
}

/// An error to answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: StatusCode,
    /// A word for metrics and for people, such as `upstream-refused`.
    pub kind: &'static str,
    pub title: &'static str,
    pub detail: String,
    /// In gRPC, where the status does not say it.
    pub grpc_code: Option<u16>,
    /// For a refused field: its key, its value, what would be right.
    pub field: Option<Box<BadField>>,
}

/// Something that a client wrote and that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {value} cannot be: {expected}")]
pub struct BadField {
    pub key: String,
    pub value: String,
    /// What would be right.
    pub expected: String,
}

impl Problem {
    pub fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, title, detail: detail.into(), grpc_code: None, field: None }
    }

    /// As a response in `dialect`. Its status is [`Problem::status`], except in gRPC, where errors travel in a 200.
    pub fn response(&self, dialect: Dialect, origin: Origin) -> Response<Bytes> {
        let (content_type, body) = match dialect {
            Dialect::Grpc => return grpc(self.grpc_code(), &self.detail, origin),
            Dialect::GrpcJson => ("application/json", json!({ "code": self.grpc_code(), "message": self.detail, "details": [] })),
            Dialect::OpenAi => ("application/json", self.openai()),
            Dialect::Oip if self.field.is_none() => ("application/json", json!({ "error": self.detail })),
            Dialect::Http | Dialect::Oip => {
                let mut body = json!({
                    "type": format!("urn:steadfast:problem:{}", self.kind),
                    "title": self.title,
                    "status": self.status.as_u16(),
                    "detail": self.detail,
                });
                if let Some(field) = &self.field {
                    body["key"] = json!(field.key);
                    body["value"] = json!(field.value);
                    body["expected"] = json!(field.expected);
                }
                if dialect == Dialect::Oip {
                    body["error"] = json!(self.detail);
                }
                ("application/problem+json", body)
            }
        };
        let body = Bytes::from(body.to_string());
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response.headers_mut().insert(ORIGIN_HEADER, HeaderValue::from_static(origin.name()));
        response
    }
}

impl Problem {
    pub fn grpc_code(&self) -> u16 {
        self.grpc_code.unwrap_or_else(|| grpc_code(self.status))
    }

    /// As OpenAI's API reference has it ("Error codes"), and its clients read it.
    fn openai(&self) -> serde_json::Value {
        let (kind, code) = match self.status.as_u16() {
            401 => ("invalid_request_error", Some("invalid_api_key")),
            429 => ("requests", Some("rate_limit_exceeded")),
            400..500 => ("invalid_request_error", None),
            _ => ("server_error", None),
        };
        json!({ "error": { "message": self.detail, "type": kind, "param": self.field.as_ref().map(|field| &field.key), "code": code } })
    }
}

fn grpc(code: u16, detail: &str, origin: Origin) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(code));
    // `grpc-message` is percent-encoded; what we say is ASCII, and anything else becomes a question mark.
    let message: String = detail.chars().map(|c| if c.is_ascii_graphic() && c != '%' || c == ' ' { c } else { '?' }).collect();
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert("grpc-message", message);
    }
    headers.insert(ORIGIN_HEADER, HeaderValue::from_static(origin.name()));
    response
}

/// gRPC's own mapping of HTTP statuses (doc/http-grpc-status-mapping.md of the grpc repository).
fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_says_what_went_wrong_and_whose_doing_it_was() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "upstream-refused", "Model server refused", "nobody listens on 127.0.0.1:1");
        let response = problem.response(Dialect::Http, Origin::Proxy);
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (503, &HeaderValue::from_static("application/problem+json")));
        assert_eq!(response.headers()[ORIGIN_HEADER], "proxy");
        let response = problem.response(Dialect::Oip, Origin::Injected);
        assert_eq!(response.body(), r#"{"error":"nobody listens on 127.0.0.1:1"}"#);
        let response = problem.response(Dialect::Grpc, Origin::Proxy);
        assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &HeaderValue::from_static("14")));
        let coded = Problem { grpc_code: Some(8), ..problem.clone() };
        assert_eq!(coded.response(Dialect::Grpc, Origin::Injected).headers()["grpc-status"], "8");
        let json = |response: Response<Bytes>| serde_json::from_slice::<serde_json::Value>(response.body()).unwrap();
        let response = coded.response(Dialect::GrpcJson, Origin::Injected);
        assert_eq!((response.status().as_u16(), json(response)["code"].as_u64()), (503, Some(8)));
        let error = json(problem.response(Dialect::OpenAi, Origin::Injected))["error"].clone();
        assert_eq!((error["type"].as_str(), error["message"].as_str()), (Some("server_error"), Some("nobody listens on 127.0.0.1:1")));
    }
}
