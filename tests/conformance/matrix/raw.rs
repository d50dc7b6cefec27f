//! What libraries do not do: messages written by hand.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    origin::Origin,
    peers::{PATIENCE, Pod, Sidecar},
    table::Table,
};

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Says `words` and hears everything, until the other side ends.
pub(super) fn talk(address: SocketAddr, words: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(words).unwrap();
    hear(stream)
}

fn hear(mut stream: TcpStream) -> String {
    let mut heard = Vec::new();
    let end = stream.read_to_end(&mut heard);
    let text = String::from_utf8_lossy(&heard).into_owned();
    if end.is_err() { format!("{text} … {end:?}") } else { text }
}

/// Without what belongs to the hop and what a message may say in any case and order.
pub(super) fn plain(answer: &str) -> String {
    let mut plain = Vec::new();
    let mut rest = answer;
    while rest.starts_with("HTTP/") {
        let Some((head, more)) = rest.split_once("\r\n\r\n") else { break };
        let mut lines = head.lines();
        let status = lines.next().unwrap_or_default();
        let hop = ["connection:", "keep-alive:", "transfer-encoding:", "date:"];
        let mut fields: Vec<_> = lines.map(lower_name).filter(|line| !hop.iter().any(|hop| line.starts_with(hop))).collect();
        fields.sort();
        plain.push(format!("{} {}", status.split(' ').nth(1).unwrap_or_default(), fields.join(" · ")));
        rest = more;
        // Another head may follow an interim answer, an empty one, or a body that is not looked into here.
        if let Some(at) = rest.find("HTTP/1.") {
            plain.push(rest[..at].to_owned());
            rest = &rest[at..];
        }
    }
    plain.push(rest.to_owned());
    plain.join(" | ")
}

fn lower_name(line: &str) -> String {
    line.split_once(':').map_or_else(|| line.to_owned(), |(name, value)| format!("{}: {}", name.to_lowercase(), value.trim()))
}

/// A chunked body in one piece: a proxy may cut it elsewhere.
fn whole(answer: &str) -> String {
    let Some((head, mut rest)) = answer.split_once("\r\n\r\n") else { return answer.to_owned() };
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return plain(answer);
    }
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).unwrap_or(0);
        if size == 0 {
            let (answer, trailers) = (plain(&format!("{head}\r\n\r\n{body}")), more.trim().replace("\r\n", " · "));
            return if trailers.is_empty() { answer } else { format!("{answer} | trailers: {trailers}") };
        }
        body.push_str(&more[..size]);
        rest = &more[size + 2..];
    }
    format!("broken off: {answer}")
}

const LAST: &str = "host: a\r\nconnection: close\r\n\r\n";

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\n{LAST}").into_bytes()
}

#[test]
fn messages_by_hand_get_the_answers_that_they_get_without_us() {
    let pod = Pod::around(Origin::start().address);
    let mut table = Table::of("Messages by hand, and a server that does all that HTTP/1.1 allows");
    table.same(&pod, "HTTP/1.0, no `Host`", |way| plain(&talk(way, b"GET /hello HTTP/1.0\r\n\r\n")));
    table.same(&pod, "HTTP/1.0, an answer that ends with the connection", |way| plain(&talk(way, b"GET /until-close HTTP/1.0\r\n\r\n")));
    table.same(&pod, "an answer of an HTTP/1.0 server", |way| whole(&talk(way, &get("/http10"))));
    table.same(&pod, "an answer that ends with the connection", |way| whole(&talk(way, &get("/until-close"))));
    table.same(&pod, "chunks, with an extension", |way| whole(&talk(way, &get("/chunked"))));
    table.same(&pod, "ten requests in a pipeline, one with a body in chunks", |way| {
        let mut requests = "GET /hello HTTP/1.1\r\nhost: a\r\n\r\nHEAD /hello HTTP/1.1\r\nhost: a\r\n\r\nGET /204 HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3);
        requests.push_str(&"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\nLAST3\r\nabc\r\n0\r\n\r\n".replace("LAST", LAST));
        plain(&talk(way, requests.as_bytes()))
    });
    table.same(&pod, "204", |way| plain(&talk(way, &get("/204"))));
    let without = "the length is left out, as RFC 9110 §15.4.5 allows";
    table.otherwise(&pod, "304 with a length", without, "304 etag: \"7\" | ", |way| plain(&talk(way, &get("/304"))));
    table.same(&pod, "HEAD, with a length", |way| plain(&talk(way, format!("HEAD /hello HTTP/1.1\r\n{LAST}").as_bytes())));
    table.same(&pod, "HEAD, of an answer in chunks", |way| plain(&talk(way, format!("HEAD /chunked HTTP/1.1\r\n{LAST}").as_bytes())));
    table.same(&pod, "trailers of an answer, for a client that wants them", |way| {
        whole(&talk(way, format!("GET /trailers HTTP/1.1\r\nte: trailers\r\n{LAST}").as_bytes()))
    });
    table.same(&pod, "trailers of a request that names them", |way| {
        let body = "3\r\nabc\r\n0\r\nx-sum: 294\r\n\r\n";
        plain(&talk(way, format!("POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n{LAST}{body}").as_bytes()))
    });
    table.same(&pod, "103 before the answer", |way| plain(&talk(way, &get("/103"))));
    table.same(&pod, "an answer before the request's body has come", |way| {
        let mut stream = connect(way);
        write!(stream, "POST /early HTTP/1.1\r\ncontent-length: 5\r\n{LAST}").unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(b"later").unwrap();
        plain(&(String::from_utf8_lossy(&first).into_owned() + &hear(stream)))
    });
    table.same(&pod, "a request is refused before its body has come", |way| {
        let mut stream = connect(way);
        write!(stream, "POST /refuse HTTP/1.1\r\ncontent-length: 500\r\n{LAST}").unwrap();
        plain(&hear(stream))
    });
    table.same(&pod, "`Expect: 100-continue`: the body is asked for by the server", |way| {
        let mut stream = connect(way);
        write!(stream, "POST /echo HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n{LAST}").unwrap();
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).unwrap();
        stream.write_all(b"hello").unwrap();
        String::from_utf8_lossy(&interim).into_owned() + &plain(&hear(stream))
    });
    table.same(&pod, "`Expect: 100-continue`: the body is refused unseen, and never asked for", |way| {
        let mut stream = connect(way);
        write!(stream, "POST /refuse HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 5\r\n{LAST}").unwrap();
        plain(&hear(stream))
    });
    table.same(&pod, "the client has ended its half, and gets its answer", |way| {
        let mut stream = connect(way);
        stream.write_all(b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        plain(&hear(stream))
    });
    table.same(&pod, "the same, by a connection to the server that has served before", |way| {
        let _ = talk(way, &get("/hello"));
        std::thread::sleep(Duration::from_millis(20));
        let mut stream = connect(way);
        stream.write_all(b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        stream.shutdown(Shutdown::Write).unwrap();
        plain(&hear(stream))
    });
    table.same(&pod, "the client ends its half later, behind a body in chunks", |way| {
        let mut stream = connect(way);
        stream.write_all(b"POST /half HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream.shutdown(Shutdown::Write).unwrap();
        plain(&hear(stream))
    });
    table.same(&pod, "another protocol by `Upgrade`", |way| {
        let mut stream = connect(way);
        stream.write_all(b"GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: conformance/1\r\n\r\nat once\n").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(b"later\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        plain(&hear(stream))
    });
    pod.engines_were_used();
    table.must_be_on_the_page();
}

/// A rule that looks into the body has it read before it goes up; the client's end must not go up before it.
#[test]
fn a_client_ends_its_half_behind_a_body_that_a_rule_has_read() {
    let origin = Origin::start();
    let policy = "name: other-model
spec:
  expiresAfter: 1h
  budget: {concurrent: 10, share: 100%}
  rules: [{match: {model: other}, faults: [{abort: {httpStatus: 503}}]}]
";
    let sidecar = Sidecar::armed_with(&origin.address.to_string(), Some(policy), &["--ready-tcp"]);
    for size in [10, 500_000] {
        let body = format!("{{\"model\":\"mine\",\"prompt\":\"{}\"}}", "x".repeat(size));
        let head = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        // Twice: the second time by a connection to the server that is open already, if there is one.
        for _ in 0..2 {
            let mut stream = connect(sidecar.data);
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let answer = hear(stream);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("{} bytes, and then the end", body.len())), "{answer}");
        }
    }
    assert_eq!(sidecar.metric("steadfast_requests_total", r#"origin="upstream""#), 4);
}
