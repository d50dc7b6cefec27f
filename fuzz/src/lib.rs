//! What holds of everything that reads bytes which others made. Each property takes any bytes at all; the fuzz targets and a test run the same ones.

use std::cell::RefCell;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use steadfast_api::{
    fault::{EventChange, TensorChange},
    policy::NamedPolicy,
    read,
    sidecar::{SidecarReport, read_snapshot},
};
use steadfast_golden_sets::{oip, onnx, set::archive};
use steadfast_proxy::fuzzing::{self, Framing, Hpack, Protocol, Read, Splitter};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Takes any bytes, and panics where it does not hold.
pub type Property = fn(&[u8]);

/// Every property with its name, which is also that of its target and of its folder of seeds.
pub const PROPERTIES: [(&str, Property); 13] = [
    ("sniff", sniff),
    ("http1", http1),
    ("http1_as_hyper", http1_as_hyper),
    ("http1_response", http1_response),
    ("http2_frames", http2_frames),
    ("hpack", hpack),
    ("fault_header", fault_header),
    ("policy", policy),
    ("corrupt", corrupt),
    ("events", events),
    ("golden_set", golden_set),
    ("oip_messages", oip_messages),
    ("control", control),
];

/// The first byte chooses, the rest is what is read.
fn chosen(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// A protocol that is known stays what it is, whatever follows.
pub fn sniff(data: &[u8]) {
    let mut known = None;
    for end in 0..=data.len().min(64) {
        let now = fuzzing::sniff(&data[..end]);
        assert!(known.is_none() || known == now, "{known:?} became {now:?} at {end}");
        known = now;
    }
    if known == Some(Protocol::Http2) {
        assert!(data.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    }
}

/// The messages at the start of `bytes`: heads, and where bodies begin and end. Whether the rest is only not whole.
fn messages(bytes: &[u8], mut head: impl FnMut(&[u8]) -> Read<fuzzing::Message>) -> Vec<(fuzzing::Message, std::ops::Range<usize>)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Read::Whole(message) = head(&bytes[at..]) {
        let from = at + message.head;
        let mut framing = message.framing;
        let Ok(size) = framing.take(&bytes[from..]) else { break };
        // In pieces it ends at the same byte.
        let (mut pieces, mut taken) = (message.framing, 0);
        for piece in bytes[from..].chunks(7) {
            if pieces.is_done() {
                break;
            }
            taken += pieces.take(piece).expect("a body that is well-formed whole is so in pieces");
        }
        assert!(size == taken && framing == pieces, "{framing:?} is {pieces:?} in pieces");
        if !framing.is_done() {
            break;
        }
        at = from + size;
        found.push((message, from..at));
        if !message.persistent || !message.plain {
            break;
        }
    }
    found
}

/// A request's head never reaches beyond what is there, and is the same when it comes byte by byte.
pub fn http1(data: &[u8]) {
    messages(data, fuzzing::request);
    let whole = fuzzing::request(data);
    if let Read::Whole(message) = whole {
        assert!(message.head <= data.len());
        let head = &data[..message.head];
        assert!(head.ends_with(b"\r\n\r\n") && !head.contains(&0));
        for end in [1, message.head / 2, message.head - 1] {
            assert_eq!(fuzzing::request(&data[..end]), Read::Partial, "{end} of {}", message.head);
        }
        assert_eq!(fuzzing::request(head), Read::Whole(message));
    }
}

/// The same of responses.
pub fn http1_response(data: &[u8]) {
    let (first, data) = chosen(data);
    messages(data, |bytes| fuzzing::response(bytes, first & 1 == 1));
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
}

/// Whatever the relay takes for a message, hyper takes for one too, with the same body: so no request hides from the stack in what the relay has let pass.
pub fn http1_as_hyper(data: &[u8]) {
    // What hyper cannot take for a target it refuses, and the relay passes it on: that is no question of where a message ends.
    let ours = messages(data, |bytes| match fuzzing::request(bytes) {
        Read::Whole(_) if !has_plain_target(bytes) => Read::Odd,
        read => read,
    });
    let Some((_, last)) = ours.last() else { return };
    let data = &data[..last.end];
    let theirs: RefCell<Vec<Option<Bytes>>> = RefCell::default();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(data.len() + (1 << 16));
            let service = service_fn(async |request: Request<Incoming>| {
                let body = request.into_body().collect().await.ok().map(http_body_util::Collected::to_bytes);
                theirs.borrow_mut().push(body);
                Ok::<_, std::convert::Infallible>(Response::new(String::new()))
            });
            let mut builder = http1::Builder::new();
            builder.half_close(true).max_buf_size(64 << 10).max_headers(128).auto_date_header(false);
            let serving = builder.serve_connection(TokioIo::new(server), service);
            let asking = async {
                client.write_all(data).await.expect("there is room for all of it");
                client.shutdown().await.expect("it shuts down");
                let mut answers = Vec::new();
                let _ = client.read_to_end(&mut answers).await;
            };
            let _ = tokio::join!(serving, asking);
        });
    });
    let theirs = theirs.into_inner();
    assert_eq!(theirs.len(), ours.len(), "messages: {}", data.escape_ascii());
    for ((message, body), theirs) in ours.iter().zip(theirs) {
        let body = &data[body.clone()];
        let plain = if matches!(message.framing, Framing::Chunked(_)) { unchunked(body) } else { body.to_vec() };
        assert_eq!(theirs.as_deref(), Some(&plain[..]), "{}", data.escape_ascii());
    }
}

fn has_plain_target(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    let target = text.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    hyper::Uri::try_from(target).is_ok()
}

/// The data of a chunked body that is known to be well-formed.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let line = body.windows(2).position(|pair| pair == b"\r\n").expect("a line");
        let digits = body[..line].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = usize::from_str_radix(std::str::from_utf8(&body[..digits]).expect("digits"), 16).expect("a size");
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&body[line + 2..line + 2 + size]);
        body = &body[line + 2 + size + 2..];
    }
}

/// Frames are the same however they are cut.
pub fn http2_frames(data: &[u8]) {
    let (first, data) = chosen(data);
    let whole = fuzzing::frames(std::iter::once(data));
    assert_eq!(fuzzing::frames(data.chunks(usize::from(first % 32) + 1)), whole);
    let bytes: usize = whole.0.iter().map(|(_, _, block)| block).sum();
    assert!(bytes <= data.len());
}

/// Blocks, each behind its length. A text in Huffman's code that reads is no longer than eight fifths of its code.
pub fn hpack(data: &[u8]) {
    let mut decoder = Hpack::default();
    for block in blocks(data) {
        let Some((_, size)) = decoder.read(block) else { break };
        // One byte may name an entry of the whole table.
        assert!(size <= block.len() * (64 << 10));
        if let Some(plain) = fuzzing::huffman(block) {
            assert!(plain.len() * 5 <= block.len() * 8);
        }
    }
}

pub fn blocks(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (size, rest) = data.split_first()?;
        let (block, rest) = rest.split_at(rest.len().min(usize::from(*size)));
        data = rest;
        Some(block)
    })
}

/// At most one fault of each kind.
pub fn fault_header(data: &[u8]) {
    let faults = fuzzing::fault_header(data).unwrap_or(0).max(fuzzing::envoy_headers(data).unwrap_or(0));
    assert!(faults <= 16);
}

/// A policy that is read and checked can be written, and reads as the same again.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(policy) = read::from_yaml::<NamedPolicy>("policy.yaml", text) {
        let json = serde_json::to_string(&policy).expect("a policy can be written");
        let again: NamedPolicy = serde_json::from_str(&json).expect("and read");
        assert!(policy == again, "{json}");
        let known = fuzzing::policy(policy);
        assert_eq!(known, fuzzing::policy(again));
    }
}

/// A corrupted answer has the form that it had.
pub fn corrupt(data: &[u8]) {
    let (first, data) = chosen(data);
    let (second, data) = chosen(data);
    let how = TensorChange::ALL[usize::from(first) % TensorChange::ALL.len()].0;
    let (kind, length) = (first / 8 % 3, usize::from(second) * 4);
    let changed = match kind {
        0 => fuzzing::corrupt(None, false, data, how, 1),
        1 => fuzzing::corrupt(None, true, data, how, 1),
        _ => fuzzing::corrupt(Some(length), false, data, how, 1),
    };
    let Some((changed, json)) = changed else { return };
    match (kind, json) {
        (0, _) => assert!(serde_json::from_slice::<serde_json::Value>(&changed).is_ok()),
        (1, _) => {
            let length = changed[1..5].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            assert!(changed[0] == 0 && length == changed.len() - 5);
            // Whatever else it is, it can be walked again.
            let _ = fuzzing::corrupt(None, true, &changed, how, 2);
        }
        (_, Some(json)) => {
            assert!(serde_json::from_slice::<serde_json::Value>(&changed[..json]).is_ok());
            assert_eq!(changed.len() - json, data.len() - length, "binary tensors keep their lengths");
        }
        (_, None) => panic!("a binary answer says where its JSON ends"),
    }
}

/// An event stream cut into events is the stream.
pub fn events(data: &[u8]) {
    let (first, data) = chosen(data);
    let mut splitter = Splitter::default();
    let mut events: Vec<Bytes> = data.chunks(usize::from(first % 16) + 1).flat_map(|piece| splitter.push(piece)).collect();
    events.extend(splitter.finish());
    assert_eq!(events.concat(), data);
    for event in &events {
        for change in [EventChange::Drop, EventChange::Duplicate, EventChange::Malformed, EventChange::NoEnd] {
            let changed = fuzzing::event(event, change).unwrap_or_default();
            assert!(changed.iter().map(Vec::len).sum::<usize>() <= 2 * event.len());
        }
    }
}

/// A tensor, a model or a set that is read can be written and read again.
pub fn golden_set(data: &[u8]) {
    let (first, data) = chosen(data);
    let bytes = Bytes::copy_from_slice(data);
    match first % 3 {
        0 => {
            if let Ok(tensor) = onnx::tensor::decode(bytes) {
                let again = onnx::tensor::decode(onnx::tensor::encode(&tensor).into()).expect("what was written reads");
                assert_eq!(format!("{again:?}"), format!("{tensor:?}"));
            }
        }
        1 => {
            if let Ok(model) = onnx::decode_model(bytes) {
                let _ = onnx::Signature::of(&model);
            }
        }
        _ => {
            if let Ok(set) = archive::unpack(&bytes) {
                let packed = archive::pack(&set).expect("a set that was read can be packed");
                assert_eq!(archive::unpack(&packed).expect("and unpacked").digest(), set.digest());
            }
        }
    }
}

/// Messages of the Open Inference Protocol.
pub fn oip_messages(data: &[u8]) {
    let (first, data) = chosen(data);
    let length = (first & 1 == 1).then_some(usize::from(first) * 2);
    if let Ok(request) = oip::decode_request(length, data) {
        assert!(request.inputs.len() <= oip::TENSORS_MAX);
    }
    if let Ok(response) = oip::decode_response(length, data, &[]) {
        assert!(response.outputs.len() <= oip::TENSORS_MAX);
    }
    if let Ok(path) = std::str::from_utf8(data) {
        let _ = oip::Route::parse(path);
    }
}

/// Lines between sidecar and controller.
pub fn control(data: &[u8]) {
    if let Ok(read) = read_snapshot(data)
        && let Some(snapshot) = read.snapshot
    {
        for policy in snapshot.policies {
            fuzzing::policy(policy);
        }
    }
    if let Ok((report, _)) = SidecarReport::read(data) {
        let line = serde_json::to_vec(&report).expect("a report can be written");
        assert!(SidecarReport::read(&line).is_ok());
    }
}
