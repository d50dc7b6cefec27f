use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use steadfast_api::policy::Origin;
use steadfast_golden_sets::set::archive;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use super::*;
use crate::load::{
    End,
    pod::{self, NotHeard},
    wire::{Ended, Row, Wanted},
};

const SOON: Duration = Duration::from_secs(10);

fn digits() -> steadfast_golden_sets::GoldenSet {
    steadfast_golden_sets::set::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden-sets/sets/digits")).unwrap()
}

/// Users who ask where nobody listens, 200 times a second.
async fn begin(digest: &str) -> Begin {
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let load = serde_json::json!({ "name": "users", "rate": "200/s", "inputs": { "goldenSet": "digits" }, "timeout": "1s" });
    let wanted = Wanted { load: serde_json::from_value(load).unwrap(), digest: digest.to_owned(), seed: 7 };
    Begin { target, keep_alive: false, loads: vec![wanted] }
}

/// A pod `u` that works beside this test, its connections, and how many of them there were.
struct Pod {
    work: JoinHandle<Result<(), String>>,
    line: Arc<Mutex<Option<JoinHandle<()>>>>,
    dialled: Arc<AtomicUsize>,
}

fn pod(awaited: &Arc<Awaited>, tar: Bytes) -> Pod {
    let (line, dialled) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
    let work = tokio::spawn({
        let (awaited, line, dialled) = (Arc::clone(awaited), Arc::clone(&line), Arc::clone(&dialled));
        let dial = move || {
            let heard = awaited.hear("u").map(|connection| {
                let (ours, theirs) = tokio::io::duplex(1 << 16);
                *lock(&line) = Some(tokio::spawn(connection.live(ours)));
                dialled.fetch_add(1, Ordering::Relaxed);
                theirs
            });
            std::future::ready(heard.ok_or_else(|| NotHeard::Unknown("nobody waits for it".to_owned())))
        };
        pod::ask(dial, move |_| std::future::ready(Ok(tar.clone())))
    });
    Pod { work, line, dialled }
}

#[tokio::test]
async fn what_users_in_a_pod_saw_is_on_record_once_and_at_its_moment_whatever_becomes_of_the_connection() {
    let (awaited, set) = (Arc::<Awaited>::default(), digits());
    let (sink, mut records) = mpsc::channel(10_000);
    let expected = awaited.expect("u", begin(&set.digest().to_string()).await, sink);
    assert!(awaited.asks("u", &set.digest().to_string()) && !awaited.asks("u", "sha256:other") && !awaited.asks("v", &set.digest().to_string()));
    let before = Instant::now();
    let pod = pod(&awaited, archive::pack(&set).unwrap());
    let mut heard = expected.heard();
    timeout(SOON, heard.wait_for(|heard| heard.last.is_some())).await.unwrap().unwrap();
    sleep(Duration::from_millis(700)).await;
    // It breaks, and users go on.
    lock(&pod.line).take().unwrap().abort();
    sleep(Duration::from_millis(700)).await;
    assert_eq!(pod.dialled.load(Ordering::Relaxed), 2);
    expected.stop();
    let last = timeout(SOON, heard.wait_for(|heard| heard.ended)).await.unwrap().unwrap().clone();
    let after = Instant::now();
    assert_eq!(timeout(SOON, pod.work).await.unwrap().unwrap(), Ok(()));
    let mut all = Vec::new();
    while let Ok(record) = records.try_recv() {
        all.push(record);
    }
    // Both clocks are one: how far each moment is from the truth is known.
    let uncertain = last.uncertain.expect("there were messages both ways");
    println!("{} records, {:?} ns from the truth, ± {uncertain:?}", all.len(), last.apart_ns);
    assert!(last.apart_ns.unwrap().unsigned_abs() <= uncertain.as_nanos() as u64 + 10_000, "{last:?}");
    assert!(uncertain < Duration::from_millis(20), "{uncertain:?}");
    assert_eq!(last.dropped, 0);
    // Each request is due 5 ms after the one before: none is missing and none is there twice.
    let mut due: Vec<_> = all.iter().map(|record| record.due).collect();
    due.sort_unstable();
    assert!(due.windows(2).all(|two| (two[1] - two[0]).abs_diff(Duration::from_millis(5)) < Duration::from_millis(4)), "{due:?}");
    assert!(due.len() >= 200 && due[0] >= before && all.iter().all(|record| record.ended <= after && record.due <= record.sent && record.end == End::Silence));
}

#[tokio::test]
async fn a_pod_that_nobody_waits_for_any_more_ends_and_one_that_cannot_begin_says_why() {
    let (awaited, set) = (Arc::<Awaited>::default(), digits());
    let (sink, _records) = mpsc::channel(10_000);
    let expected = awaited.expect("u", begin(&set.digest().to_string()).await, sink.clone());
    let first = pod(&awaited, archive::pack(&set).unwrap());
    let mut heard = expected.heard();
    timeout(SOON, heard.wait_for(|heard| heard.last.is_some())).await.unwrap().unwrap();
    drop(expected);
    assert_eq!(timeout(SOON, first.work).await.unwrap().unwrap(), Err("nobody waits for it".to_owned()));

    let expected = awaited.expect("u", begin("sha256:another").await, sink);
    let second = pod(&awaited, archive::pack(&set).unwrap());
    let mut heard = expected.heard();
    let why = timeout(SOON, heard.wait_for(|heard| heard.failed.is_some())).await.unwrap().unwrap().failed.clone().unwrap();
    assert!(why.contains("another came") && second.work.await.unwrap() == Err(why.clone()), "{why}");
}

#[tokio::test]
async fn a_batch_counts_once_and_nothing_is_in_the_future() {
    let awaited = Arc::<Awaited>::default();
    let (sink, mut records) = mpsc::channel(2);
    let _expected = awaited.expect("u", begin("sha256:a").await, sink);
    let place = awaited.hear("u").unwrap().place;
    let ms = |ms: u64| ms * 1_000_000;
    let batch = |sequence, rows| Batch { sequence, sent_ns: ms(1_000), rows, pods: vec!["p".to_owned()], ..Batch::default() };
    let received = Instant::now() + Duration::from_secs(2);
    let rows = vec![Row(ms(900), ms(901), ms(910), Some(0), Ended::Right), Row(ms(995), ms(995), ms(1_005), Some(7), Ended::Error(503, Origin::Proxy))];
    place.take(received, batch(1, rows.clone()));
    place.take(received, batch(1, rows.clone()));
    let seen: Vec<_> = std::iter::from_fn(|| records.try_recv().ok()).collect();
    assert_eq!(seen.len(), 2);
    assert_eq!((received - seen[0].due, received - seen[0].ended), (Duration::from_millis(100), Duration::from_millis(90)));
    assert_eq!((seen[0].pod.as_deref(), seen[1].pod.as_deref()), (Some("p"), None));
    assert_eq!((received - seen[1].due, received - seen[1].ended), (Duration::from_millis(10), Duration::ZERO), "its clock ran ahead");
    assert_eq!(seen[1].end, End::Error { status: 503, origin: Origin::Proxy });
    // What nobody takes is counted.
    place.take(received, batch(2, [rows.clone(), rows].concat()));
    assert_eq!(place.heard.borrow().dropped, 2);
}

#[test]
fn names_are_in_use_until_they_are_given_back_and_not_more_than_so_many() {
    let awaited = Arc::<Awaited>::default();
    let names: Vec<_> = (0..USERS_MAX).map(|number| awaited.name(format!("n{number}")).unwrap()).collect();
    assert!(awaited.uses("n0") && !awaited.uses("n"));
    assert!(awaited.name("one".to_owned()).is_err());
    drop(names);
    assert!(!awaited.uses("n0") && awaited.name("one".to_owned()).is_ok());
}
