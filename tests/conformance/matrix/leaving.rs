//! A client that leaves must stop the model server's work within 50 ms, whatever they speak.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    origin::Origin,
    peers::{PATIENCE, Pod, Process, program},
    raw::connect,
    table::{Table, Way},
};

/// What the sidecar may add.
const ADDED_MS_MAX: f64 = 50.0;
/// Each is done so often, and the median counts: the machine has other things to do as well.
const TIMES: usize = 5;

/// A row for each kind of leaving: `leaves` has the milliseconds for each way.
pub(super) fn within_50_ms(table: &mut Table, leaves: &BTreeMap<String, Vec<(Way, f64)>>) {
    assert!(!leaves.is_empty());
    for (what, took) in leaves {
        let of = |wanted| took.iter().find(|(way, _)| *way == wanted).map_or(f64::INFINITY, |(_, ms)| *ms);
        let (directly, relay, stack) = (of(Way::Directly), of(Way::Relay), of(Way::Stack));
        println!("{what}: {directly:.1} ms directly, {relay:.1} ms through the relay, {stack:.1} ms through the stack");
        for (way, ms) in [("relay", relay), ("stack", stack)] {
            assert!(ms - directly <= ADDED_MS_MAX, "{what}: {ms:.1} ms through the {way}, {directly:.1} ms directly");
        }
        table.row(what, "heard within 50 ms", "heard within 50 ms");
    }
}

/// Until the server has heard of it, in milliseconds.
fn heard_after(origin: &Origin, leave: impl Fn() -> Instant) -> f64 {
    let mut took: Vec<f64> = (0..TIMES)
        .map(|_| {
            let before = origin.left.count();
            let left = leave();
            while origin.left.count() == before {
                assert!(left.elapsed() < PATIENCE, "the server never heard of it");
                std::thread::sleep(Duration::from_micros(200));
            }
            origin.left.last().saturating_duration_since(left).as_secs_f64() * 1000.0
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took[TIMES / 2]
}

fn until_one_waits(origin: &Origin, before: u64) {
    let begun = Instant::now();
    while origin.left.waiting() == before {
        assert!(begun.elapsed() < PATIENCE, "the request never came");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Whatever follows on the way has followed.
    std::thread::sleep(Duration::from_millis(20));
}

/// A request for what never ends, from a client that closes its connection: whether in order or by reset.
fn unary(origin: &Origin, address: SocketAddr, reset: bool) -> Instant {
    let before = origin.left.waiting();
    let mut stream = connect(address);
    stream.write_all(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").unwrap();
    until_one_waits(origin, before);
    if reset {
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }
    drop(stream);
    Instant::now()
}

fn events(origin: &Origin, address: SocketAddr) -> Instant {
    let before = origin.left.waiting();
    let mut stream = connect(address);
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut first = [0; 200];
    stream.read_exact(&mut first).unwrap();
    until_one_waits(origin, before);
    drop(stream);
    Instant::now()
}

/// curl asks in HTTP/2, and is killed.
fn http2(origin: &Origin, address: SocketAddr, path: &str) -> Instant {
    let before = origin.left.waiting();
    let client = Process::start(
        std::process::Command::new("curl").args(["--silent", "--http2-prior-knowledge", "--output", "/dev/null"]).arg(format!("http://{address}{path}")),
    );
    until_one_waits(origin, before);
    drop(client);
    Instant::now()
}

/// What is left, and how; the moment when it was.
type Leave<'a> = (&'a str, Box<dyn Fn(SocketAddr) -> Instant + 'a>);

#[test]
fn the_server_hears_within_50_ms_that_a_client_has_left() {
    let origin = Origin::start();
    let pod = Pod::around(origin.address);
    let mut table = Table::of("Clients that leave, and a server of HTTP/1.1");
    let mut leaves = BTreeMap::new();
    let kinds: [Leave<'_>; 3] = [
        ("HTTP/1.1, a request in progress: the client closes", Box::new(|way| unary(&origin, way, false))),
        ("HTTP/1.1, a request in progress: the client resets", Box::new(|way| unary(&origin, way, true))),
        ("HTTP/1.1, an event stream: the client closes", Box::new(|way| events(&origin, way))),
    ];
    for (what, leave) in &kinds {
        let took = pod.ways().map(|(way, address)| (way, heard_after(&origin, || leave(address))));
        leaves.insert((*what).to_owned(), took.to_vec());
    }
    within_50_ms(&mut table, &leaves);
    // HTTP/2 to a server of HTTP/1.1 is the stack's in any case, and there is no direct way.
    if program("curl").is_some() {
        for path in ["/slow", "/events"] {
            for (way, address) in &pod.ways()[1..] {
                let ms = heard_after(&origin, || http2(&origin, *address, path));
                println!("HTTP/2 client, {path}, {way:?}: {ms:.1} ms");
                assert!(ms <= ADDED_MS_MAX, "{path}, {way:?}: {ms:.1} ms");
            }
        }
    }
    table.row("HTTP/2, a request in progress or an event stream: the client is killed", "heard within 50 ms", "heard within 50 ms");
    for sidecar in [&pod.relay, &pod.stack] {
        sidecar.metric_reaches("steadfast_requests_cancelled_total", "", 2 * TIMES as u64);
        sidecar.metric_reaches("steadfast_responses_truncated_total", r#"by="client""#, TIMES as u64);
    }
    pod.engines_were_used();
    table.must_be_on_the_page();
}
