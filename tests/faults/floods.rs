//! HTTP/2 clients that attack: what each attack costs the sidecar, how it ends, and what others on the same thread notice of it. `docs/limits.md` has the table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::RwLockWriteGuard,
};

use crate::{
    harness::{PATIENCE, QUIET, Sidecar, ask, client, get},
    seam::WAITING,
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Nobody is attacked for longer, or with more.
const ATTACK_FOR: Duration = Duration::from_secs(5);
const ATTACK_BYTES: usize = 64 << 20;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags][..], &stream.to_be_bytes(), payload].concat()
}

/// A request for `/wait`, which is never answered. `flags`: 1 it ends here, 4 its header block does.
fn asks(flags: u8, stream: u32) -> Vec<u8> {
    frame(1, flags, stream, b"\x82\x86\x04\x05/wait\x01\x01a")
}

/// The `number`-th piece of an attack.
type Piece = fn(number: u32) -> Vec<u8>;

struct Attack {
    what: &'static str,
    first: Piece,
    then: Piece,
    /// How it ends on the relay and in the stack.
    ends: [&'static str; 2],
}

const CALM: &str = "GOAWAY (ENHANCE_YOUR_CALM)";
const WRONG: &str = "GOAWAY (PROTOCOL_ERROR)";
const STAYS: &str = "stays open, and costs no more";

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

const ATTACKS: [Attack; 12] = [
    Attack {
        what: "rapid reset: streams begun and given up (CVE-2023-44487)",
        first: nothing,
        then: |number| [asks(5, number * 2 + 1), frame(3, 0, number * 2 + 1, &8_u32.to_be_bytes())].concat(),
        ends: [CALM, CALM],
    },
    Attack {
        what: "MadeYouReset: streams that the server must give up (CVE-2025-8671)",
        first: nothing,
        then: |number| [asks(5, number * 2 + 1), frame(8, 0, number * 2 + 1, &[0; 4])].concat(),
        ends: [CALM, WRONG],
    },
    Attack { what: "CONTINUATION without end", first: |_| asks(0, 1), then: |_| frame(9, 0, 1, b"\0\x01x\x01y"), ends: [CALM, CALM] },
    Attack { what: "empty CONTINUATION without end", first: |_| asks(0, 1), then: |_| frame(9, 0, 1, b""), ends: [CALM, CALM] },
    Attack { what: "SETTINGS", first: nothing, then: |_| frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]), ends: [CALM, WRONG] },
    Attack { what: "PING", first: nothing, then: |_| frame(6, 0, 0, b"12345678"), ends: [CALM, WRONG] },
    Attack { what: "empty DATA", first: |_| asks(4, 1), then: |_| frame(0, 0, 1, b""), ends: [CALM, CALM] },
    Attack { what: "WINDOW_UPDATE by one byte", first: nothing, then: |_| frame(8, 0, 0, &[0, 0, 0, 1]), ends: [CALM, WRONG] },
    Attack { what: "PRIORITY", first: nothing, then: |number| frame(2, 0, number * 2 + 1, &[0, 0, 0, 0, 16]), ends: [CALM, WRONG] },
    Attack {
        what: "HPACK bomb: 4 kB in the table, named 15,000 times by each request",
        first: |_| frame(1, 5, 1, &[&b"\x82\x86\x04\x05/wait\x01\x01a\x40\x01x\x7f\xa1\x1e"[..], &[b'y'; 4000]].concat()),
        then: |number| frame(1, 5, number * 2 + 3, &[&b"\x82\x86\x04\x05/wait\x01\x01a"[..], &[0xbe; 15_000]].concat()),
        ends: [CALM, CALM],
    },
    Attack { what: "streams without end", first: nothing, then: |number| asks(4, number * 2 + 1), ends: [CALM, CALM] },
    Attack {
        what: "answers asked for and no window opened",
        first: |_| frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]),
        then: |number| if number < 200 { frame(1, 5, number * 2 + 1, b"\x82\x86\x04\x04/big\x01\x01a") } else { Vec::new() },
        ends: [STAYS, STAYS],
    },
];

/// A server that lets everything be done to it: in HTTP/2 it gives up streams that it must and answers nothing; in HTTP/1 `/wait` waits, `/big` is big.
async fn patient(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut bytes = Vec::new();
            while bytes.len() < PREFACE.len() && !bytes.ends_with(b"\r\n\r\n") {
                if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    return;
                }
            }
            if !bytes.starts_with(PREFACE) {
                return http1(stream, bytes).await;
            }
            bytes.drain(..PREFACE.len());
            stream.write_all(&frame(4, 0, 0, &[])).await.unwrap_or_default();
            loop {
                let mut at = 0;
                while let Some(head) = bytes.get(at..at + 9) {
                    let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    let Some(payload) = bytes.get(at + 9..at + 9 + size) else { break };
                    if head[3] == 8 && payload == [0; 4] {
                        let stream_id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                        stream.write_all(&frame(3, 0, stream_id, &1_u32.to_be_bytes())).await.unwrap_or_default();
                    }
                    at += 9 + size;
                }
                bytes.drain(..at);
                if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
                    return;
                }
            }
        });
    }
}

async fn http1(mut stream: TcpStream, mut bytes: Vec<u8>) {
    loop {
        while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = bytes.drain(..end + 4).collect();
            let answer = match &head[..] {
                head if head.starts_with(b"GET /wait") => continue,
                head if head.starts_with(b"GET /big") => [&b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"[..], &vec![0; 1_000_000]].concat(),
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
            };
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return;
        }
    }
}

/// Attacks until the connection ends or the attack is as large as it may be. How it ended, and how many pieces were sent.
async fn attack(sidecar: &Sidecar, attack: &Attack) -> (String, u32) {
    let stream = TcpStream::connect(sidecar.data).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut from, mut to) = stream.into_split();
    let over = Arc::new(AtomicBool::new(false));
    let reading = {
        let over = Arc::clone(&over);
        async move {
            let mut bytes = Vec::new();
            let mut code = None;
            loop {
                let read = from.read_buf(&mut bytes).await;
                let mut at = 0;
                while let Some(head) = bytes.get(at..at + 9) {
                    let size = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    let Some(payload) = bytes.get(at + 9..at + 9 + size) else { break };
                    if head[3] == 7 {
                        code = payload.get(4..8).map(|code| code[3]).filter(|code| *code != 0).or(code);
                    }
                    at += 9 + size;
                }
                bytes.drain(..at);
                if !matches!(read, Ok(1..)) || code.is_some() {
                    over.store(true, Ordering::Release);
                    return match code {
                        Some(11) => CALM.to_owned(),
                        Some(1) => WRONG.to_owned(),
                        Some(code) => format!("GOAWAY ({code})"),
                        None => "closed".to_owned(),
                    };
                }
            }
        }
    };
    let mut reading = tokio::spawn(reading);
    let begun = Instant::now();
    to.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &(attack.first)(0)].concat()).await.unwrap();
    // The first bytes have reached the server before the flood comes.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (mut number, mut sent) = (0, 0);
    while !over.load(Ordering::Acquire) && begun.elapsed() < ATTACK_FOR && sent < ATTACK_BYTES {
        let pieces: Vec<u8> = (0..16).flat_map(|more| (attack.then)(number + more)).collect();
        number += 16;
        if pieces.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        sent += pieces.len();
        // One that is not read any more has no effect either.
        if !matches!(tokio::time::timeout(Duration::from_secs(1), to.write_all(&pieces)).await, Ok(Ok(()))) {
            break;
        }
    }
    let ended = tokio::time::timeout(Duration::from_secs(1), &mut reading).await;
    reading.abort();
    (ended.map_or_else(|_| STAYS.to_owned(), Result::unwrap), number)
}

/// Asks all the time, by a connection of its own, and tells the longest wait.
async fn sibling(url: String, over: Arc<AtomicBool>) -> (u32, Duration) {
    let (client, mut asked, mut longest) = (client(), 0, Duration::ZERO);
    while !over.load(Ordering::Acquire) {
        let begun = Instant::now();
        assert_eq!(ask(&client, get(&url, &[])).await.status, 200);
        longest = longest.max(begun.elapsed());
        asked += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (asked, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_client_that_attacks_is_ended_and_costs_others_nothing() {
    let _quiet: RwLockWriteGuard<'_, ()> = QUIET.write().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(patient(listener));
    let mut wrong = Vec::new();
    for (engine, armed) in [("relay", false), ("stack", true)] {
        for (index, made) in ATTACKS.iter().enumerate() {
            let sidecar = Sidecar::start(address, &["--ready-tcp"]);
            if armed {
                sidecar.arm(WAITING).await;
            }
            // What the first requests cost is nobody's attack.
            for _ in 0..20 {
                assert_eq!(ask(&client(), get(&sidecar.url("/x"), &[])).await.status, 200);
            }
            let over = Arc::new(AtomicBool::new(false));
            let others = tokio::spawn(sibling(sidecar.url("/x"), Arc::clone(&over)));
            let (memory, cpu) = sidecar.usage();
            let begun = Instant::now();
            let (ended, pieces) = attack(&sidecar, made).await;
            let took = begun.elapsed();
            let (after, burnt) = sidecar.usage();
            over.store(true, Ordering::Release);
            let (asked, longest) = tokio::time::timeout(PATIENCE, others).await.expect("others are answered").unwrap();
            let (grown, burnt) = (after.saturating_sub(memory), burnt.saturating_sub(cpu));
            let line = format!(
                "{engine}: {}: {ended} after {pieces} pieces and {took:.1?}; {grown} kB, {burnt:?} of CPU; {asked} others, the slowest {longest:.1?}",
                made.what
            );
            eprintln!("{line}");
            // A client that goes on sending may be reset before it has read why.
            let expected = made.ends[usize::from(armed)];
            let as_said = ended == expected || (ended == "closed" && expected.starts_with("GOAWAY"));
            if !as_said || grown > 16 << 10 || longest > Duration::from_secs(1) || asked == 0 {
                wrong.push(line);
            }
            let counted = sidecar.metric("steadfast_limits_exceeded_total", &["http2-"]).await;
            if index < 11 && !armed && counted != 1 {
                wrong.push(format!("{engine}: {}: counted {counted} times", made.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `docs/limits.md` says of each attack what this file says.
#[test]
fn the_page_on_limits_has_every_attack() {
    let page = include_str!("../../docs/limits.md");
    let rows = ATTACKS.iter().map(|attack| format!("| {} | {} | {} |", attack.what, attack.ends[0], attack.ends[1]));
    let missing: Vec<_> = rows.filter(|row| !page.lines().any(|line| line.starts_with(row.as_str()))).collect();
    assert!(missing.is_empty(), "docs/limits.md lacks\n{}", missing.join("\n"));
}
