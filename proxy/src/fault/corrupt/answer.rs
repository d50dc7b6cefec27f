//! Changing the values of a response: gathered whole, changed, and given on with everything that its length stands in.

use std::{collections::VecDeque, pin::Pin};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use steadfast_api::{fault::Fault, policy::Origin};

use super::{Kind, grpc, values::Change};
use crate::{
    body::{Source, UpstreamBody},
    fault::{
        decide::Planned,
        inject::{Injected, Told},
    },
    forward::{Answer, ForwardError},
    problem::Dialect,
};

/// What asked for the answer.
pub struct Asked<'a> {
    pub path: &'a str,
    pub dialect: Dialect,
    pub head: bool,
}

/// Changes an answer's tensors, or says why it passes unharmed.
pub async fn corrupt_answer(told: &Told, answer: Answer, planned: Planned, asked: &Asked<'_>, injected: &mut Injected) -> Answer {
    let worker = &told.worker;
    let skipped = |reason: &str| worker.meter.metrics.corrupt_skipped.with_label_values(&[reason]).inc();
    let change = match &planned.fault {
        Fault::Corrupt(corrupt) => Change::of(corrupt),
        _ => None,
    };
    let Answer { response, origin, active } = answer;
    let (mut parts, source) = response.into_parts();
    let whole = |parts, source| Answer { response: http::Response::from_parts(parts, source), origin, active: None };
    let body = match source {
        Source::Upstream(body) if origin == Origin::Upstream && parts.status.is_success() && !asked.head => body,
        other => {
            skipped("not-an-answer");
            return Answer { active, ..whole(parts, other) };
        }
    };
    let coded = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let kind = match asked.dialect {
        _ if coded => None,
        // Streams are not gathered: their ends may wait for each other. They are changed message by message, on their way (`shape`).
        Dialect::Grpc => (asked.path == grpc::MODEL_INFER).then_some(Kind::Grpc),
        _ => super::kind(&parts.headers),
    };
    let (Some(kind), Some(change)) = (kind, change) else {
        skipped(if coded { "content-encoding" } else { "content-type" });
        return whole(parts, Source::Upstream(body));
    };
    let gathered = match gather(body, worker.shared.config.corrupt_max_bytes).await {
        Ok(gathered) => gathered,
        Err(error) => return Answer::own(&ForwardError::Broken(error).problem(), asked.dialect, asked.head, Origin::Proxy),
    };
    let (bytes, trailers) = match gathered {
        Gathered::All(bytes, trailers) => (bytes, trailers),
        Gathered::TooLarge(read, rest) => {
            skipped("too-large");
            return whole(parts, Source::Resumed(read, rest));
        }
    };
    let changed = super::corrupt(&kind, &bytes, change, &mut *worker.rng.borrow_mut());
    let Some(changed) = changed else {
        skipped("no-values");
        return whole(parts, own(bytes, trailers));
    };
    if parts.headers.contains_key(header::CONTENT_LENGTH) {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(changed.bytes.len()));
    }
    if let (Some(length), Some(header)) = (changed.json_length, parts.headers.get_mut(super::JSON_LENGTH)) {
        *header = HeaderValue::from(length);
    }
    // A digest or validator of the answer as it was would tell on us by accident and make the answer malformed.
    for name in ["content-digest", "repr-digest", "digest", "content-md5", "etag"] {
        parts.headers.remove(name);
    }
    told.injected(&planned);
    injected.note(format_args!("{}", change.note()));
    Answer { active: Some(planned.active), ..whole(parts, own(changed.bytes, trailers)) }
}

fn own(bytes: Bytes, trailers: Option<HeaderMap>) -> Source {
    if trailers.is_none() { Source::Own(bytes) } else { Source::WithTrailers(bytes, trailers) }
}

enum Gathered {
    All(Bytes, Option<HeaderMap>),
    /// What was read, and the rest.
    TooLarge(VecDeque<Frame<Bytes>>, UpstreamBody),
}

/// Reads the whole body, at most `most` bytes of it.
async fn gather(mut body: UpstreamBody, most: usize) -> Result<Gathered, hyper::Error> {
    let mut frames: VecDeque<Frame<Bytes>> = VecDeque::new();
    let mut size = 0;
    if body.size_hint().lower() > most as u64 {
        return Ok(Gathered::TooLarge(frames, body));
    }
    let mut trailers = None;
    while let Some(frame) = Pin::new(&mut body).frame().await.transpose()? {
        match frame.into_data() {
            Ok(bytes) => {
                size += bytes.len();
                frames.push_back(Frame::data(bytes));
                if size > most {
                    return Ok(Gathered::TooLarge(frames, body));
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    let mut all = BytesMut::with_capacity(size);
    for frame in &frames {
        all.extend_from_slice(frame.data_ref().map_or(&[], |bytes| &bytes[..]));
    }
    Ok(Gathered::All(all.freeze(), trailers))
}
