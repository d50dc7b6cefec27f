use super::*;

fn policy(name: &str, expires_after: &str) -> NamedPolicy {
    serde_json::from_value(serde_json::json!({ "name": name, "spec": { "expiresAfter": expires_after, "budget": { "concurrent": 1, "share": "100%" } } }))
        .unwrap()
}

fn golden(digest: &str) -> GoldenAssignment {
    serde_json::from_value(serde_json::json!({ "name": "g", "digest": digest, "every": "1s", "share": "1%", "alpha": "1e-8" })).unwrap()
}

fn unready(reason: &str, seconds: u64) -> Unready {
    Unready { reason: reason.into(), expires_after: Span::from_secs(seconds) }
}

fn names(snapshot: &PolicySnapshot) -> Vec<&str> {
    snapshot.policies.iter().map(|policy| policy.name.as_str()).collect()
}

#[tokio::test]
async fn who_connects_late_is_told_at_once_and_every_change_has_a_newer_generation() {
    let hub = Arc::new(PolicyHub::default());
    let generation = hub.set_policies("run", "a", vec![policy("one", "1m")]).unwrap();
    let mut stream = hub.subscribe("a").unwrap();
    let first = stream.next().await.unwrap();
    assert_eq!((first.generation, names(&first), first.epoch.as_str()), (generation, vec!["one"], hub.epoch()));
    let second = hub.set_policies("run", "a", vec![]).unwrap();
    assert!(second > generation);
    assert_eq!(stream.next().await.unwrap().policies, vec![]);
    hub.remove_pod("a");
    assert_eq!(stream.next().await, None, "the stream of a pod that is gone ends");
}

#[tokio::test]
async fn who_leads_no_more_ends_every_stream_and_begins_none() {
    let (hub, closed) = (Arc::new(PolicyHub::default()), Arc::new(PolicyHub::closed()));
    let (mut heard, mut waits) = (hub.subscribe("a").unwrap(), closed.subscribe("a").unwrap());
    heard.next().await.unwrap();
    hub.end();
    closed.end();
    assert_eq!(heard.next().await, None);
    // What it was subscribed with, at most.
    while waits.next().await.is_some() {}
    assert_eq!(hub.subscribe("a").err(), Some(HubError::Over));
    assert_eq!((hub.connected("a"), hub.set_policies("run", "a", vec![])), (false, Err(HubError::Over)));
}

#[test]
fn a_snapshot_is_the_sum_of_what_its_owners_set() {
    let hub = PolicyHub::default();
    hub.set_policies("policy/b", "a", vec![policy("b", "1m")]).unwrap();
    hub.set_policies("run/a", "a", vec![policy("a", "1m"), policy("aa", "1m")]).unwrap();
    hub.set_golden("golden/g", "a", vec![golden("sha256:1")]).unwrap();
    hub.set_unready("golden/g", "a", Some(unready("wrong", 30))).unwrap();
    hub.set_unready("golden/h", "a", Some(unready("worse", 60))).unwrap();
    let snapshot = hub.snapshot("a");
    assert_eq!((names(&snapshot), &snapshot.golden), (vec!["b", "a", "aa"], &vec![golden("sha256:1")]));
    let said = snapshot.unready.unwrap();
    assert!(said.reason == "wrong; worse" && said.expires_after > Span::from_secs(59), "the longest counts: {said:?}");
    assert!(hub.replays("a", "sha256:1") && !hub.replays("a", "sha256:2") && !hub.replays("b", "sha256:1"));
    hub.clear("golden/g");
    hub.set_policies("run/a", "a", vec![]).unwrap();
    let left = hub.snapshot("a");
    assert_eq!((names(&left), left.golden.len()), (vec!["b"], 0));
    assert_eq!(left.unready.unwrap().reason, "worse");
    assert_eq!((hub.pods_of("policy/b"), hub.pods_of("run/a")), (vec!["a".to_owned()], vec![]));
}

#[tokio::test]
async fn saying_something_again_never_makes_it_last_longer() {
    let hub = PolicyHub::default();
    hub.set_policies("run", "a", vec![policy("short", "100ms"), policy("long", "1m")]).unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    hub.set_golden("golden", "a", vec![golden("sha256:1")]).unwrap();
    let snapshot = hub.snapshot("a");
    assert_eq!(names(&snapshot), ["long"], "what has expired is not said again");
    assert!(snapshot.policies[0].spec.expires_after <= Span::new(Duration::from_millis(59_880)), "{:?}", snapshot.policies[0].spec.expires_after);
}

#[test]
fn saying_the_same_again_changes_nothing_and_renewing_an_expiry_does() {
    let hub = PolicyHub::default();
    let first = hub.set_policies("run", "a", vec![policy("one", "1m")]).unwrap();
    assert_eq!(hub.set_policies("run", "a", vec![policy("one", "1m")]), Ok(first));
    assert!(hub.set_policies("run", "a", vec![policy("one", "2m")]).unwrap() > first);
    let out = hub.set_unready("gate", "a", Some(unready("wrong", 30))).unwrap();
    assert_eq!(hub.set_unready("gate", "a", Some(unready("wrong", 30))), Ok(out));
    assert!(hub.set_unready("gate", "a", Some(unready("wrong", 32))).unwrap() > out);
}

#[tokio::test]
async fn a_generation_is_confirmed_only_by_the_sidecar_that_runs_now() {
    let hub = PolicyHub::default();
    let generation = hub.set_policies("run", "a", vec![policy("one", "1m")]).unwrap();
    let at = Instant::now();
    hub.confirm("a", generation + 1, &[], at);
    assert!(!hub.confirmed("a", generation), "a generation that was never given is another controller's");
    hub.confirm("a", generation, &["newer".to_owned()], at);
    assert_eq!(hub.wait("a", generation, Duration::from_secs(1)).await, Ok(at));
    assert!(hub.refuses("a", "newer") && !hub.refuses("a", "one"), "what its sidecar does not understand is not in force");
    hub.sidecar_starts("a");
    let error = hub.wait("a", generation, Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error, HubError::NotConfirmed { uid: "a".into(), generation, confirmed: 0, waited: Duration::from_millis(20) });
}

#[test]
fn generations_of_the_next_process_are_newer() {
    let before = PolicyHub::default();
    let last = (0..1_000).map(|_| before.set_unready("gate", "a", None).unwrap()).last().unwrap();
    assert_eq!(last, before.set_unready("gate", "a", None).unwrap(), "nothing changed, so nothing is new");
    std::thread::sleep(Duration::from_millis(1_001));
    let after = PolicyHub::default();
    assert!(after.set_policies("run", "a", vec![policy("one", "1m")]).unwrap() > last);
    assert_ne!(before.epoch(), after.epoch());
}

#[tokio::test]
async fn a_closed_hub_says_nothing_until_it_is_opened() {
    let hub = Arc::new(PolicyHub::closed());
    let mut stream = hub.subscribe("a").unwrap();
    assert!(timeout(Duration::from_millis(50), stream.next()).await.is_err());
    hub.set_golden("golden", "a", vec![golden("sha256:1")]).unwrap();
    hub.open();
    assert_eq!(stream.next().await.unwrap().golden.len(), 1, "the first snapshot is whole");
}

#[test]
fn pods_and_owners_are_bounded_and_a_pod_that_nobody_speaks_for_makes_room() {
    let hub = Arc::new(PolicyHub::default());
    for pod in 0..PODS_MAX - 1 {
        hub.set_policies("run", &pod.to_string(), vec![policy("one", "1m")]).unwrap();
    }
    let stream = hub.subscribe("last").unwrap();
    assert!(hub.connected("last") && hub.connections() == 1);
    assert_eq!(hub.set_unready("gate", "one more", None), Err(HubError::Full));
    drop(stream);
    assert!(!hub.connected("last"));
    assert!(hub.set_policies("run", "one more", vec![policy("one", "1m")]).is_ok());
    for owner in 0..OWNERS_MAX - 1 {
        hub.set_golden(&owner.to_string(), "0", vec![golden("sha256:1")]).unwrap();
    }
    assert_eq!(hub.set_policies("too many", "0", vec![policy("one", "1m")]), Err(HubError::Crowded { uid: "0".into(), owner: "too many".into() }));
}

#[test]
fn a_pod_is_told_no_more_policies_than_its_sidecar_takes() {
    let hub = PolicyHub::default();
    for owner in 0..POLICIES_MAX {
        hub.set_policies(&owner.to_string(), "a", vec![policy("one", "1m")]).unwrap();
    }
    assert_eq!(hub.set_policies("more", "a", vec![policy("one", "1m")]), Err(HubError::TooManyPolicies { uid: "a".into(), owner: "more".into() }));
    assert_eq!(hub.snapshot("a").policies.len(), POLICIES_MAX, "the others stay");
    assert!(hub.set_policies("0", "a", vec![policy("one", "2m")]).is_ok() && hub.set_policies("0", "a", Vec::new()).is_ok());
    assert!(hub.set_policies("more", "a", vec![policy("one", "1m")]).is_ok(), "there is room again");
}

#[test]
fn of_more_golden_sets_than_a_sidecar_takes_those_of_runs_come_first_and_whose_is_left_out_is_known() {
    let hub = PolicyHub::default();
    let set = |number: usize| vec![golden(&format!("sha256:{number}"))];
    let owner = |number: usize| format!("goldenset/models/{number:02}");
    for number in 0..GOLDEN_SETS_MAX {
        hub.set_golden(&owner(number), "a", set(number)).unwrap();
    }
    let left_out = || (0..GOLDEN_SETS_MAX).filter(|number| hub.leaves_out(&owner(*number), "a")).collect::<Vec<_>>();
    assert_eq!(left_out(), [0; 0]);
    hub.set_golden("run/x/golden", "a", set(99)).unwrap();
    let told = hub.snapshot("a").golden;
    assert_eq!((told.len(), told[0].digest.as_str()), (GOLDEN_SETS_MAX, "sha256:99"));
    assert_eq!((left_out(), hub.leaves_out("run/x/golden", "a")), (vec![GOLDEN_SETS_MAX - 1], false));
    hub.set_golden("run/x/golden", "a", set(GOLDEN_SETS_MAX - 1)).unwrap();
    assert_eq!(left_out(), [0; 0], "the run has the very same replayed");
}
