//! Pods come up, are deleted and replaced, and come back by themselves after a crash.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use steadfast_api::{Span, sidecar};
use steadfast_controller::platform::{Order, Platform, What};

use crate::stage::{SERVE, Stage, of, processes_with, words};

const BIRTH: [&str; 6] = ["created", "scheduled", "initialized", "started", "ready", "in"];

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_up_in_order_spread_over_nodes_and_answer_rightly() {
    let mut stage = Stage::serving(3, 3).await;
    let pods = stage.serving_now();
    let mut nodes: Vec<_> = pods.iter().map(|pod| pod.node.as_str()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-1", "node-2", "node-3"]);
    for pod in &pods {
        let changes = of(&stage.told, &pod.uid);
        assert_eq!(words(&changes), BIRTH);
        assert!(changes.is_sorted_by_key(|change| change.at), "{changes:?}");
    }
    let answers = stage.ask_all().await;
    let mut names: Vec<_> = pods.iter().map(|pod| pod.name.clone()).collect();
    names.sort();
    assert_eq!(answers.into_iter().map(|answer| answer.pod).collect::<Vec<_>>(), names, "each pod in its turn");
    // Evidence lies between the start of a server and the probe that saw it ready.
    let mut loaded = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    while loaded < 3 && Instant::now() < deadline {
        let Ok(Some(seen)) = tokio::time::timeout(Duration::from_secs(5), stage.seen.recv()).await else { break };
        if seen.what == (sidecar::What::Upstream { ready: true }) {
            let at = |wanted: fn(&What) -> bool| of(&stage.told, &seen.pod.uid).into_iter().find(|change| wanted(&change.what)).unwrap().at;
            let started = at(|what| matches!(what, What::ContainerStarted { .. }));
            let ready = at(|what| matches!(what, What::Ready { .. }));
            assert!(started <= seen.at && seen.at <= ready + Duration::from_millis(25), "{:?} {:?}", seen.at - started, ready - started);
            loaded += 1;
        }
    }
    assert_eq!(loaded, 3);
    let memory = stage.platform.sidecar_rss();
    assert!(memory.len() == 3 && memory.values().all(|bytes| (1 << 20..1 << 30).contains(bytes)), "{memory:?}");
    println!("largest resident memory of sidecars: {memory:?}");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_leaves_the_service_at_once_and_another_takes_its_place() {
    let mut stage = Stage::serving(3, 3).await;
    let victim = stage.serving_now().remove(0);
    let began = Instant::now();
    let order = stage.platform.apply(Order::Kill { pods: vec![victim.name.clone()], grace: Span::ZERO }, Span::from_secs(60)).await.unwrap();
    assert!(order.since >= began && order.since <= Instant::now());
    assert!(stage.serving_now().iter().all(|pod| pod.uid != victim.uid), "out of the Service before anybody can ask");
    let created = stage.next(|what| matches!(what, What::Created { .. })).await;
    let What::Created { pod: new, replaces } = created.what else { unreachable!() };
    assert_eq!((created.at, replaces.as_deref()), (order.since, Some(victim.uid.as_str())), "in the moment of deletion");
    assert!(new.name != victim.name && new.uid != victim.uid);
    stage.until_serving(3).await;
    stage.catch_up().await;
    assert_eq!(words(&of(&stage.told, &victim.uid))[6..], ["detected", "terminating", "out", "gone"]);
    assert_eq!(words(&of(&stage.told, &new.uid)), BIRTH);
    assert!(processes_with(&format!("POD_NAME={}", victim.name), "serve").is_empty());
    let undone = stage.platform.undo(order).await;
    assert_eq!((undone.evidence, undone.left_behind), (vec![format!("{} deleted (SIGKILL)", victim.name)], vec![]));
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_with_grace_ends_by_itself() {
    let mut stage = Stage::serving(1, 2).await;
    let victim = stage.serving_now().remove(0);
    let order = Order::Kill { pods: vec![victim.name.clone()], grace: Span::from_secs(5) };
    let deleted = Instant::now();
    stage.platform.apply(order, Span::from_secs(60)).await.unwrap();
    let gone = stage.next(|what| matches!(what, What::Gone { uid, .. } if *uid == victim.uid)).await;
    // Server and sidecar drain; neither waits for its grace to run out.
    assert!(gone.at - deleted < Duration::from_secs(4), "{:?}", gone.at - deleted);
    let (_, answer) = stage.ask(Duration::from_secs(5)).await;
    assert_eq!(answer.unwrap().status(), 200);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_from_outside_is_started_again_in_its_pod_with_a_growing_wait() {
    let mut stage = Stage::serving(1, 1).await;
    let pod = stage.serving_now().remove(0);
    for (time, wait) in [(1, Span::ZERO), (2, Span::from_millis(300)), (3, Span::from_millis(600))] {
        let server = processes_with(&format!("POD_NAME={}", pod.name), "serve");
        assert_eq!(server.len(), 1, "{server:?}");
        let from = stage.told.len();
        let killed = Instant::now();
        kill(Pid::from_raw(server[0]), Signal::SIGKILL).unwrap();
        let back_off = stage.next(|what| matches!(what, What::BackOff { .. })).await;
        let What::BackOff { reason, wait: waits, .. } = back_off.what else { unreachable!() };
        assert!(reason.starts_with("killed by SIGKILL"), "{reason}");
        assert_eq!(waits, wait);
        assert!(back_off.at - killed < Duration::from_millis(500), "noticed after {:?}", back_off.at - killed);
        let started = stage.next(|what| matches!(what, What::ContainerStarted { .. })).await;
        assert_eq!(started.what, What::ContainerStarted { uid: pod.uid.clone(), restarts: time });
        assert!(started.at - back_off.at >= wait.get());
        stage.until_serving(1).await;
        assert_eq!(words(&of(&stage.told[from..], &pod.uid)), ["detected", "not ready", "out", "back-off", "started", "ready", "in"]);
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_from_outside_is_started_again_and_the_pod_serves_as_before() {
    let mut stage = Stage::serving(1, 1).await;
    let pod = stage.serving_now().remove(0);
    let sidecar = processes_with(&format!("STEADFAST_RUN={}", stage.run), "proxy");
    assert_eq!(sidecar.len(), 1, "{sidecar:?}");
    kill(Pid::from_raw(sidecar[0]), Signal::SIGKILL).unwrap();
    let detected = stage.next(|what| matches!(what, What::Detected { .. })).await;
    assert!(matches!(&detected.what, What::Detected { reason, .. } if reason.starts_with("the sidecar killed by SIGKILL")), "{detected:?}");
    stage.next(|what| matches!(what, What::Endpoint { present: true, .. })).await;
    assert_eq!(words(&of(&stage.told, &pod.uid))[6..], ["detected", "not ready", "out", "initialized", "ready", "in"]);
    assert_eq!(stage.ask_all().await.len(), 1);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_start_says_why_in_its_own_words() {
    let mut stage = Stage::set(1, 1, "sh, -c, 'echo model.onnx: no such file >&2; exit 3'").await;
    let back_off = stage.next(|what| matches!(what, What::BackOff { .. })).await;
    let What::BackOff { reason, .. } = back_off.what else { unreachable!() };
    assert_eq!(reason, "exited with status 3; its last words: model.onnx: no such file");
    stage.close().await;
    let mut stage = Stage::set(1, 1, "no-such-program-here").await;
    let back_off = stage.next(|what| matches!(what, What::BackOff { .. })).await;
    assert!(matches!(&back_off.what, What::BackOff { reason, .. } if reason.starts_with("cannot start no-such-program-here: ")), "{back_off:?}");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_ready_when_its_model_is_loaded_and_not_before() {
    let mut stage = Stage::set(1, 1, &format!("{SERVE}, --load-seconds, '1'")).await;
    let started = stage.next(|what| matches!(what, What::ContainerStarted { .. })).await.at;
    let ready = stage.next(|what| matches!(what, What::Ready { ready: true, .. })).await.at;
    // The probe asks every 100 ms.
    assert!((Duration::from_secs(1)..Duration::from_secs(2)).contains(&(ready - started)), "{:?}", ready - started);
    stage.close().await;
}
