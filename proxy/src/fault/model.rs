//! Models that a request names in its body: `model` of OpenAI's JSON, `model_name` and `model_version` of `inference.ModelInferRequest`.
//!
//! A body is looked at only while a rule in force asks for a model, and what was read of it goes up behind its head as it came, its error included.

use std::{borrow::Cow, collections::VecDeque, mem};

use bytes::{Bytes, BytesMut};
use http::{Method, Request};
use http_body::Frame;
use http_body_util::BodyExt;
use serde::Deserialize;

use super::corrupt::grpc::{self, MODEL_INFER};
use crate::{
    body::RequestBody,
    problem::Dialect,
    sanitize::{NamedModel, Sanitized},
    worker::Worker,
};

/// Bytes of a body that are read to find the name: OpenAI's clients write it behind the conversation.
const LOOKED_AT_MAX: usize = 1 << 20;

/// What finds the model in `request`'s body, if a rule in force asks for it and only its body can tell.
pub fn in_body(worker: &Worker, request: &Sanitized<Request<RequestBody>>) -> Option<Reader> {
    // None of these is a probe.
    let read: Reader = match request.facts.dialect {
        Dialect::OpenAi if request.method() == Method::POST => of_json,
        Dialect::Grpc if request.path() == MODEL_INFER => grpc::model,
        _ => return None,
    };
    let is_asked = || worker.shared.store.load().policies.iter().any(|policy| policy.asks_for_model());
    is_asked().then_some(read)
}

/// Finds out by `read` which model `request` means.
pub async fn name(worker: &Worker, request: &mut Sanitized<Request<RequestBody>>, read: Reader) {
    match look(request.body_mut(), read).await {
        Found::Named(model) => request.facts.named = model,
        Found::Unknown(why) => worker.meter.metrics.model_unknown.with_label_values(&[why]).inc(),
    }
}

/// Reads the first bytes of a body; it is told whether they are all.
pub type Reader = fn(&[u8], bool) -> Said;

/// What the first bytes of a body say.
pub enum Said {
    /// As much as there is to say.
    Model(NamedModel),
    /// More bytes must be seen.
    More,
    Unreadable,
}

enum Found {
    Named(NamedModel),
    /// Why it cannot be known.
    Unknown(&'static str),
}

/// Reads as much of `body` as `read` wants to see.
async fn look(body: &mut RequestBody, read: Reader) -> Found {
    let (mut frames, mut seen, mut ended): (VecDeque<_>, _, _) = (VecDeque::new(), BytesMut::new(), false);
    let found = loop {
        match read(&seen, ended) {
            Said::Model(model) => break Found::Named(model),
            Said::Unreadable => break Found::Unknown("unreadable"),
            Said::More if ended => break Found::Unknown("unreadable"),
            Said::More if seen.len() > LOOKED_AT_MAX => break Found::Unknown("too-large"),
            Said::More => {}
        }
        let frame: Option<Result<Frame<Bytes>, hyper::Error>> = body.frame().await;
        ended = frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
        let broken = matches!(frame, Some(Err(_)));
        if let Some(bytes) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            seen.extend_from_slice(bytes);
        }
        frames.extend(frame);
        if broken {
            break Found::Unknown("broken-off");
        }
    };
    let rest = mem::replace(body, RequestBody::Empty);
    *body = RequestBody::Resumed(frames, Box::new(rest));
    found
}

fn of_json(body: &[u8], ended: bool) -> Said {
    #[derive(Deserialize)]
    struct Names<'a> {
        #[serde(borrow, default)]
        model: Option<Cow<'a, str>>,
    }
    if !ended {
        return Said::More;
    }
    match serde_json::from_slice::<Names<'_>>(body) {
        Ok(names) => Said::Model(NamedModel { name: names.model.map(Cow::into_owned), version: None }),
        Err(_) => Said::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(chunks: &[&str], read: Reader) -> (Found, String) {
        let frames = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::copy_from_slice(chunk.as_bytes())))).collect();
        let mut body = RequestBody::Resumed(frames, Box::new(RequestBody::Empty));
        let found = look(&mut body, read).await;
        (found, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_model_is_found_wherever_it_stands_and_the_body_goes_on_whole() {
        let chunks = [r#"{"messages":[{"content":"the \"model\": x"}],"#, r#""model":"#, r#" "tiny"}"#];
        let (found, body) = of(&chunks, of_json).await;
        assert!(matches!(found, Found::Named(model) if model.name.as_deref() == Some("tiny")) && body == chunks.concat());
        let (found, _) = of(&[r#"{"input": "a"}"#], of_json).await;
        assert!(matches!(found, Found::Named(model) if model == NamedModel::default()), "it names none");
        for bad in ["", "[1]", r#"{"model": 1}"#, r#"{"model": "a", "model": "b"}"#] {
            let (found, body) = of(&[bad], of_json).await;
            assert!(matches!(found, Found::Unknown("unreadable")) && body == bad);
        }
        let large = "x".repeat(LOOKED_AT_MAX);
        let (found, body) = of(&[&large, "y", "z"], of_json).await;
        assert!(matches!(found, Found::Unknown("too-large")) && body.len() == large.len() + 2);
    }
}
