//! CPU pressure on nodes.

use std::time::Duration;

use steadfast_api::{Percent, Span};
use steadfast_controller::platform::{Order, Platform};

use crate::stage::{Stage, processes_with};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_burns_until_it_is_told_to_stop_and_says_how_much() {
    let stage = Stage::serving(2, 2).await;
    let burn = |nodes: &[&str]| Order::Burn { nodes: nodes.iter().map(ToString::to_string).collect(), load: Percent::from_ratio(0.5) };
    let order = stage.platform.apply(burn(&["node-1"]), Span::from_secs(60)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(processes_with(&format!("STEADFAST_RUN={}", stage.run), "burn").len(), 1);
    let undone = stage.platform.undo(order).await;
    assert!(undone.left_behind.is_empty() && undone.evidence.len() == 1, "{undone:?}");
    let burned: f64 = undone.evidence[0].split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("{}", undone.evidence[0]);
    // Never more than was asked; less where something else wants the core too.
    assert!((10.0..=51.0).contains(&burned), "{undone:?}");
    // Ends by itself, and tells afterwards.
    let order = stage.platform.apply(burn(&["node-1", "node-2"]), Span::from_secs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1800)).await;
    assert_eq!(processes_with(&format!("STEADFAST_RUN={}", stage.run), "burn"), [] as [i32; 0]);
    assert!(!stage.platform.undo(order).await.evidence.is_empty());
    stage.close().await;
}
