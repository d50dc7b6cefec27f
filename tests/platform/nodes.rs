//! A node falls silent, is noticed, is replaced, and comes back empty.

use std::time::{Duration, Instant};

use steadfast_api::{Span, test::NodeFailureBy};
use steadfast_controller::platform::{Order, Platform, What};

use crate::stage::{Stage, of, words};

const LONG: Span = Span::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_silent_then_withdrawn_then_replaced_and_comes_back_empty() {
    let mut stage = Stage::serving(3, 3).await;
    let lost = stage.serving_now().remove(0);
    let order = stage.platform.apply(Order::LoseNodes { nodes: vec![lost.node.clone()], by: NodeFailureBy::Auto, lasts: LONG }, LONG).await.unwrap();
    let t0 = order.since;
    // Until it is noticed the gateway goes on asking it: a third of the users waits in vain, nobody is refused.
    let mut silent = 0;
    for _ in 0..3 {
        match stage.ask(Duration::from_millis(150)).await {
            (_, Some(answer)) => assert_eq!(answer.status(), 200),
            (_, None) => silent += 1,
        }
    }
    assert_eq!(silent, 1);
    assert_eq!(stage.serving_now().len(), 3);
    let noticed = stage.next(|what| matches!(what, What::Node { ready: false, .. })).await;
    let after = noticed.at - t0;
    assert!((Duration::from_millis(700)..Duration::from_millis(1200)).contains(&after), "noticed after {after:?}");
    stage.next(|what| matches!(what, What::Endpoint { present: false, .. })).await;
    assert_eq!(stage.ask_all().await.len(), 2, "nobody is sent there any more");
    let created = stage.next(|what| matches!(what, What::Created { .. })).await;
    let after = created.at - noticed.at;
    assert!((Duration::from_millis(600)..Duration::from_millis(1100)).contains(&after), "replaced after {after:?}");
    let What::Created { pod: new, replaces } = created.what else { unreachable!() };
    assert_eq!(replaces.as_deref(), Some(lost.uid.as_str()));
    stage.until_serving(3).await;
    let new = stage.serving_now().into_iter().find(|pod| pod.uid == new.uid).unwrap();
    assert_ne!(new.node, lost.node);
    let undone = stage.platform.undo(order).await;
    assert!(undone.left_behind.is_empty() && undone.evidence[0].contains("2 processes (pods: 1) stopped at once"), "{undone:?}");
    stage.catch_up().await;
    assert_eq!(words(&of(&stage.told, &lost.uid))[6..], ["detected", "not ready", "out", "terminating", "gone"]);
    assert!(stage.told.iter().any(|change| change.what == What::Node { node: lost.node.clone(), ready: true }));
    assert!(stage.platform.pods().iter().all(|pod| pod.node != lost.node) && stage.platform.pods().len() == 3);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_back_before_anybody_noticed_starts_its_pods_anew() {
    let mut stage = Stage::serving(2, 2).await;
    let lost = stage.serving_now().remove(0);
    let order = stage.platform.apply(Order::LoseNodes { nodes: vec![lost.node.clone()], by: NodeFailureBy::Auto, lasts: LONG }, LONG).await.unwrap();
    assert!(
        stage
            .platform
            .apply(Order::LoseNodes { nodes: vec![lost.node.clone()], by: NodeFailureBy::Auto, lasts: LONG }, LONG)
            .await
            .unwrap_err()
            .to_string()
            .contains("is lost already")
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    stage.platform.undo(order).await;
    let detected = stage.next(|what| matches!(what, What::Detected { .. })).await;
    assert!(matches!(&detected.what, What::Detected { reason, .. } if reason == "its node started anew"), "{detected:?}");
    stage.next(|what| matches!(what, What::Endpoint { present: true, .. })).await;
    assert_eq!(words(&of(&stage.told, &lost.uid))[6..], ["detected", "not ready", "out", "initialized", "started", "ready", "in"]);
    // The timers of a loss that is over do nothing.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(stage.serving_now().len(), 2);
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_comes_back_when_its_time_is_up_whatever_the_caller_does() {
    let mut stage = Stage::serving(2, 2).await;
    let lost = stage.serving_now().remove(0);
    let order =
        stage.platform.apply(Order::LoseNodes { nodes: vec![lost.node.clone()], by: NodeFailureBy::Auto, lasts: LONG }, Span::from_millis(1000)).await.unwrap();
    let back = stage.next(|what| matches!(what, What::Node { ready: true, .. })).await;
    let after = back.at - order.since;
    assert!((Duration::from_secs(1)..Duration::from_millis(1500)).contains(&after), "{after:?}");
    let asked = Instant::now();
    let undone = stage.platform.undo(order).await;
    assert!(asked.elapsed() < Duration::from_millis(500) && undone.evidence.len() == 1, "{undone:?}");
    stage.until_serving(2).await;
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_on_a_lost_node_is_replaced_and_gone_only_when_the_node_is_back() {
    let mut stage = Stage::serving(2, 2).await;
    let lost = stage.serving_now().remove(0);
    let order = stage.platform.apply(Order::LoseNodes { nodes: vec![lost.node.clone()], by: NodeFailureBy::Auto, lasts: LONG }, LONG).await.unwrap();
    stage.next(|what| matches!(what, What::Node { ready: false, .. })).await;
    stage.platform.apply(Order::Kill { pods: vec![lost.name.clone()], grace: Span::ZERO }, LONG).await.unwrap();
    stage.until_serving(2).await;
    assert!(stage.platform.pods().iter().any(|pod| pod.uid == lost.uid), "terminating: its node does not say that it is gone");
    stage.platform.undo(order).await;
    stage.next(|what| matches!(what, What::Gone { uid, .. } if *uid == lost.uid)).await;
    assert_eq!(stage.platform.pods().len(), 2);
    stage.close().await;
}
