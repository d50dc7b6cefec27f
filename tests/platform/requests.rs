//! Faults of requests: armed in the sidecars of a node at once, proven by counts, and gone at once.

use std::time::{Duration, Instant};

use steadfast_api::{
    Percent, Span,
    fault::{Corrupt, Delay, Fault},
    golden::Outcome,
    sidecar,
};
use steadfast_controller::platform::{Order, Platform, What};

use crate::stage::Stage;

const LATE: Duration = Duration::from_millis(200);

fn delay(nodes: &[&str]) -> Order {
    let fault = Fault::Delay(Delay { fixed: Span::new(LATE), jitter: Span::ZERO }.into());
    Order::Requests { pods: vec![], nodes: nodes.iter().map(ToString::to_string).collect(), fault, share: Percent::HUNDRED }
}

/// Names of the pods whose answers a fault made late.
async fn late(stage: &Stage) -> Vec<String> {
    let answers = stage.ask_all().await;
    assert!(answers.iter().all(|answer| !answer.injected || answer.took >= LATE));
    answers.into_iter().filter(|answer| answer.injected).map(|answer| answer.pod).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_reaches_the_sidecars_of_a_node_within_100_ms_and_leaves_them_as_fast() {
    let stage = Stage::serving(2, 2).await;
    let slow = stage.serving_now().into_iter().find(|pod| pod.node == "node-1").unwrap();
    let mut arming = Vec::new();
    for _ in 0..5 {
        let asked = Instant::now();
        let order = stage.platform.apply(delay(&["node-1"]), Span::from_secs(60)).await.unwrap();
        arming.push(asked.elapsed());
        assert!(order.since >= asked && order.since <= Instant::now(), "since the sidecar had it");
        assert_eq!(late(&stage).await, [slow.name.as_str()]);
        assert_eq!(late(&stage).await, [slow.name.as_str()]);
        let undone = stage.platform.undo(order).await;
        assert_eq!(undone.evidence, [format!("delay injected 2 times ({}: 2)", slow.name)]);
        assert_eq!(undone.left_behind, Vec::<String>::new());
        assert_eq!(late(&stage).await, Vec::<String>::new());
    }
    arming.sort_unstable();
    println!("arming, confirmed by the sidecar: {arming:?}");
    // At the median: what else runs on the machine may take the processor for a while.
    assert!(arming[2] < Duration::from_millis(100), "{arming:?}");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_ends_when_its_time_is_up_whatever_the_caller_does() {
    let stage = Stage::serving(1, 1).await;
    let order = stage.platform.apply(delay(&["node-1"]), Span::from_millis(800)).await.unwrap();
    assert_eq!(late(&stage).await.len(), 1);
    tokio::time::sleep_until((order.since + Duration::from_millis(900)).into()).await;
    assert_eq!(late(&stage).await.len(), 0);
    assert_eq!(stage.platform.undo(order).await.evidence.len(), 1, "the proof is kept for whoever asks");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_comes_up_on_a_slow_node_is_slow_too() {
    let mut stage = Stage::serving(1, 1).await;
    let order = stage.platform.apply(delay(&["node-1"]), Span::from_secs(60)).await.unwrap();
    let pods = vec![stage.serving_now().remove(0).name];
    stage.platform.apply(Order::Kill { pods, grace: Span::ZERO }, Span::from_secs(60)).await.unwrap();
    stage.next(|what| matches!(what, What::Endpoint { present: true, .. })).await;
    assert_eq!(late(&stage).await.len(), 1);
    let undone = stage.platform.undo(order).await;
    assert!(undone.evidence[0].starts_with("delay injected 1 time ("), "{undone:?}");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn golden_replays_see_wrong_answers_and_no_other_fault() {
    let mut stage = Stage::serving(1, 1).await;
    let pods: Vec<_> = stage.serving_now().into_iter().map(|pod| pod.name).collect();
    let fault = Fault::Corrupt(Corrupt::shift(Percent::from_ratio(0.5)));
    for (order, outcome) in [(delay(&["node-1"]), Outcome::Match), (Order::Requests { pods, nodes: vec![], fault, share: Percent::HUNDRED }, Outcome::Mismatch)]
    {
        let order = stage.platform.apply(order, Span::from_secs(60)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        stage.platform.undo(order).await;
        let mut outcomes = Vec::new();
        while let Ok(seen) = stage.seen.try_recv() {
            if let sidecar::What::Golden(replay) = seen.what {
                outcomes.push(replay.outcome);
            }
        }
        // The first and last may have been under way while the fault came or went.
        let within = &outcomes[outcomes.len() / 2 - 1..=outcomes.len() / 2];
        assert!(outcomes.len() >= 5 && within.iter().all(|seen| *seen == outcome), "{outcomes:?}");
    }
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused() {
    let stage = Stage::serving(1, 1).await;
    let refused = stage.platform.apply(delay(&["node-7"]), Span::from_secs(60)).await.unwrap_err().to_string();
    assert_eq!(refused, "the fault cannot be armed: node-7 is no node of the target: there are node-1");
    let refused = stage.platform.apply(Order::Kill { pods: vec!["x".into()], grace: Span::ZERO }, Span::from_secs(60)).await.unwrap_err().to_string();
    assert!(refused.starts_with("pods cannot be deleted: x is no pod of the target: there are digits-"), "{refused}");
    stage.close().await;
}
