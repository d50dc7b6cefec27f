use super::*;

fn cluster(nodes: usize, replicas: usize) -> (Cluster, mpsc::UnboundedReceiver<Change>) {
    let (changes, told) = mpsc::unbounded_channel();
    (Cluster::new(vec![vec![]; nodes], replicas, BTreeMap::new(), "m", 7, changes), told)
}

fn told(changes: &mut mpsc::UnboundedReceiver<Change>) -> Vec<What> {
    std::iter::from_fn(|| changes.try_recv().ok()).map(|change| change.what).collect()
}

/// As many as wanted, scheduled and in the Service.
fn serving(nodes: usize, replicas: usize) -> (Cluster, mpsc::UnboundedReceiver<Change>, Instant) {
    let (mut cluster, mut changes) = cluster(nodes, replicas);
    let at = Instant::now();
    cluster.fill(at, &[]);
    for (index, pod) in cluster.schedule(at).into_iter().enumerate() {
        cluster.listens(at, &pod.uid, Some(([127, 0, 0, 1], 9000 + index as u16).into()));
        cluster.ready(at, &pod.uid, true);
    }
    assert_eq!(cluster.take_backends().unwrap().len(), replicas);
    told(&mut changes);
    (cluster, changes, at)
}

fn per_node(cluster: &Cluster) -> Vec<usize> {
    cluster.nodes.iter().map(|node| cluster.pods.iter().filter(|held| held.pod.node == node.name && !held.terminating).count()).collect()
}

#[test]
fn pods_are_spread_over_ready_nodes() {
    assert_eq!(per_node(&serving(3, 3).0), [1, 1, 1]);
    let mut seven = per_node(&serving(3, 7).0);
    seven.sort_unstable();
    assert_eq!(seven, [2, 2, 3]);
}

#[test]
fn a_pod_is_in_the_service_only_while_it_listens_and_is_ready() {
    let (mut cluster, mut changes, at) = serving(1, 1);
    let uid = cluster.pods[0].pod.uid.clone();
    cluster.listens(at, &uid, None);
    assert_eq!(told(&mut changes), [What::Endpoint { uid: uid.clone(), present: false }]);
    assert_eq!(cluster.take_backends(), Some(vec![]));
    cluster.ready(at, &uid, false);
    cluster.listens(at, &uid, Some(([127, 0, 0, 1], 9100).into()));
    assert_eq!(cluster.take_backends(), None, "nothing changed for the Service");
    cluster.ready(at, &uid, true);
    let ready = What::Ready { uid: uid.clone(), ready: true };
    let not = What::Ready { uid: uid.clone(), ready: false };
    assert_eq!(told(&mut changes), [not, What::Initialized { uid: uid.clone() }, ready, What::Endpoint { uid, present: true }]);
}

#[test]
fn a_deleted_pod_leaves_the_service_and_is_replaced_in_one_moment() {
    let (mut cluster, mut changes, at) = serving(3, 3);
    let lost = cluster.pods[1].pod.clone();
    cluster.delete(at, std::slice::from_ref(&lost.uid), "deleted");
    let new = cluster.schedule(at);
    assert_eq!((new.len(), cluster.pods.len()), (1, 4));
    assert_eq!(new[0].node, lost.node, "the node with the fewest pods");
    let what = told(&mut changes);
    assert!(
        matches!(&what[..], [
            What::Detected { .. }, What::Terminating { uid }, What::Endpoint { present: false, .. }, What::Created { pod, replaces: Some(replaced) }, What::Scheduled { .. }
        ] if *uid == lost.uid && *replaced == lost.uid && pod.uid != lost.uid),
        "{what:?}"
    );
    cluster.gone(at, &lost.uid, "killed");
    assert_eq!(told(&mut changes).len(), 1, "only Gone: it has been replaced");
    assert_eq!(cluster.take_backends().unwrap().len(), 2);
}

#[test]
fn a_lost_node_is_noticed_then_its_pods_are_replaced_elsewhere() {
    let (mut cluster, mut changes, at) = serving(3, 3);
    let loss = cluster.lose("node-2").unwrap();
    assert_eq!(cluster.lose("node-2"), None, "lost already");
    assert!(told(&mut changes).is_empty() && cluster.take_backends().is_none(), "nobody knows yet");
    cluster.unreachable(at, "node-2", loss);
    assert_eq!(cluster.take_backends().unwrap().len(), 2);
    assert!(matches!(
        told(&mut changes)[..],
        [What::Node { ready: false, .. }, What::Detected { .. }, What::Ready { ready: false, .. }, What::Endpoint { .. }]
    ));
    cluster.evict(at, "node-2", loss);
    assert_eq!(cluster.schedule(at).len(), 1);
    assert!(matches!(told(&mut changes)[..], [What::Terminating { .. }, What::Created { replaces: Some(_), .. }, What::Scheduled { .. }]));
    let counts = per_node(&cluster);
    assert!(counts[1] == 0 && counts.iter().sum::<usize>() == 3, "{counts:?}");
    cluster.back(at, "node-2");
    assert_eq!(told(&mut changes), [What::Node { node: "node-2".into(), ready: true }]);
    cluster.evict(at, "node-2", loss);
    cluster.unreachable(at, "node-2", loss);
    assert!(told(&mut changes).is_empty(), "timers of a loss that is over do nothing");
}

#[test]
fn without_a_ready_node_pods_wait() {
    let (mut cluster, _changes, at) = serving(1, 2);
    let loss = cluster.lose("node-1").unwrap();
    cluster.unreachable(at, "node-1", loss);
    cluster.evict(at, "node-1", loss);
    assert_eq!((cluster.schedule(at), cluster.pods.len()), (vec![], 4));
    cluster.back(at, "node-1");
    assert_eq!(cluster.schedule(at).len(), 2);
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    let (cluster, _changes, _) = serving(2, 1);
    assert!(cluster.check_nodes(&["node-2".into()]).is_ok());
    assert_eq!(cluster.check_nodes(&["node-9".into()]).unwrap_err(), "node-9 is no node of the target: there are node-1, node-2");
    assert!(cluster.uids(&["x".into()]).unwrap_err().contains(&cluster.pods[0].pod.name));
}

#[test]
fn who_comes_back_after_scaling_takes_the_places_of_those_that_went_and_guests_retire() {
    let (mut cluster, mut changes, at) = serving(2, 2);
    let (before, went) = cluster.scale(at, 1, &[], false);
    assert_eq!((before, went.len()), (2, 1));
    told(&mut changes);
    cluster.scale(at, before, &went, true);
    assert!(matches!(&told(&mut changes)[..], [What::Created { replaces: Some(uid), .. }] if *uid == went[0]));
    let (_, none) = cluster.scale(at, 3, &[], false);
    assert!(none.is_empty() && matches!(told(&mut changes)[..], [What::Created { replaces: None, .. }]));
    let (_, guests) = cluster.scale(at, 2, &none, true);
    let told = told(&mut changes);
    assert!(matches!(&told[..], [What::Retired { uid }, What::Detected { .. }, What::Terminating { .. }] if *uid == guests[0]), "{told:?}");
}
