use proptest::prelude::*;
use steadfast_api::Span;

use super::*;
use crate::observe::testing::{Story, uid};

/// Pod `a` serves from 50 ms, is killed at 1,000 ms, and `b` serves from 1,250 ms.
fn killed() -> Story {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1");
    story.requests(60, 1000, 10, "a", Kind::Right);
    story.kill(1000, 0, &["a"]);
    story.change(1002, What::Detected { uid: uid("a"), reason: "killed".to_owned() });
    story.requests(1005, 1100, 10, "a", Kind::Silence).requests(1100, 1260, 10, "", Kind::Proxy);
    story.endpoint(1100, "a", false);
    story.created(1150, "b", "node-2", Some("a")).comes_up(1200, "b", "node-2");
    story.requests(1260, 4000, 10, "b", Kind::Right);
    story
}

#[test]
fn a_killed_pod_has_every_mark_and_both_outages() {
    let lost = killed().outages(500, 4000);
    assert_eq!(lost.len(), 1);
    let outage = &lost[0].outage;
    let expected = [
        (Mark::Fault, 1000.0),
        (Mark::FirstFailure, 1005.0),
        (Mark::Detected, 1002.0),
        (Mark::EndpointRemoved, 1100.0),
        (Mark::ReplacementCreated, 1150.0),
        (Mark::Scheduled, 1200.0),
        (Mark::Initialized, 1210.0),
        (Mark::ContainerStarted, 1220.0),
        (Mark::ModelLoaded, 1230.0),
        (Mark::Ready, 1240.0),
        (Mark::EndpointAdded, 1250.0),
        (Mark::FirstGoodResponse, 1261.0),
        (Mark::FirstCorrectPrediction, 1261.0),
        (Mark::Sustained, 1261.0),
    ];
    assert_eq!(outage.marks.0.iter().map(|(mark, at)| (*mark, *at)).collect::<Vec<_>>(), expected);
    assert_eq!((outage.routing_outage_ms, outage.capacity_outage_ms, outage.censored), (Some(245.0), 261.0, false));
    assert_eq!((outage.replacement.as_deref(), outage.replacement_node.as_deref(), outage.fault), (Some("b"), Some("node-2"), Some(0)));
}

/// Users who wait two seconds before they give up are without an answer from the moment they asked.
#[test]
fn a_routing_outage_is_counted_from_when_users_asked_and_not_from_when_they_gave_up() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    story.planned(1000, 0, true, &[], &["node-1"]).endpoint(5000, "a", false);
    let asked = (1000..5000).step_by(100).map(|ms| Answer { sent: ms * 1000, ended: (ms + 2000) * 1000, kind: Kind::Silence });
    story.traffic.by_pod.get_mut(&uid("a")).unwrap().extend(asked);
    let outage = &story.outages(500, 9000)[0].outage;
    assert_eq!((outage.marks.get(Mark::FirstFailure), outage.routing_outage_ms), (Some(1000.0), Some(3900.0)));
}

/// Nobody planned it: the platform's word is the first sign.
#[test]
fn an_outage_is_detected_at_the_latest_when_it_begins() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    story.change(1000, What::Detected { uid: uid("a"), reason: "deleted".to_owned() }).change(1000, What::Terminating { uid: uid("a") });
    story.endpoint(1010, "a", false);
    let marks = &story.outages(500, 4000)[0].outage.marks;
    assert_eq!([Mark::Fault, Mark::Detected, Mark::EndpointRemoved].map(|mark| marks.get(mark)), [Some(1000.0), Some(1000.0), Some(1010.0)]);
    // One that was noticed and got well again says nothing of the next.
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 3000, 10, "a", Kind::Right);
    story.change(500, What::Ready { uid: uid("a"), ready: false }).change(500, What::Detected { uid: uid("a"), reason: "not ready any more".to_owned() });
    story.change(600, What::Ready { uid: uid("a"), ready: true }).kill(3000, 0, &["a"]);
    assert_eq!(story.outages(500, 4000)[0].outage.marks.get(Mark::Detected), None);
}

/// Pod `a` answers every 30 ms and its sidecar speaks every second until the power of its node goes at 5,000 ms; the cluster says so 45 s later.
fn without_power(users: bool) -> Story {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").created(0, "b", "node-2", None).comes_up(0, "b", "node-2");
    if users {
        story.requests(60, 5000, 30, "a", Kind::Right).requests(5010, 50_000, 30, "", Kind::Silence).requests(60, 90_000, 30, "b", Kind::Right);
    }
    story.silent(4_200, "a");
    story.change(50_000, What::Node { node: "node-1".to_owned(), ready: false }).change(50_010, What::Ready { uid: uid("a"), ready: false });
    story.change(50_010, What::Detected { uid: uid("a"), reason: "not ready any more".to_owned() }).endpoint(50_100, "a", false);
    story.change(55_000, What::Terminating { uid: uid("a") });
    story.created(55_100, "c", "node-2", Some("a")).comes_up(55_200, "c", "node-2");
    if users {
        story.requests(55_260, 90_000, 30, "c", Kind::Right);
    }
    story
}

/// Nobody planned it, and the cluster takes most of a minute to notice.
#[test]
fn a_node_without_power_is_lost_from_the_first_request_that_failed_and_not_from_when_it_is_called_lost() {
    let lost = without_power(true).outages(500, 80_000);
    let outage = &lost[0].outage;
    assert_eq!((lost.len(), outage.pod.as_str(), outage.node_lost, outage.fault), (1, "a", true, None));
    let marks = [Mark::Fault, Mark::FirstFailure, Mark::Detected, Mark::EndpointRemoved, Mark::ReplacementCreated];
    assert_eq!(marks.map(|mark| outage.marks.get(mark)), [Some(5010.0), Some(5010.0), Some(50_000.0), Some(50_100.0), Some(55_100.0)]);
    assert_eq!((outage.routing_outage_ms, outage.capacity_outage_ms), (Some(44_970.0), 50_251.0));
    assert_eq!(outage.cause, "node node-1 was lost: nobody heard from it");
    // Its endpoint is heard of before its node.
    let mut story = without_power(true);
    for (at, _) in story.facts.iter_mut().filter(|(_, fact)| matches!(fact, Fact::Change(What::Node { .. }))) {
        *at += 300_000;
    }
    assert_eq!(story.outages(500, 80_000)[0].outage.cause, outage.cause);
}

#[test]
fn where_nobody_asks_a_silent_sidecar_tells_when_its_node_was_lost() {
    let lost = without_power(false).outages(500, 80_000);
    assert_eq!(lost[0].outage.marks.get(Mark::Fault), Some(5_200.0), "when its next report did not come");
    // Silence that began longer ago than anybody takes to notice says nothing.
    let mut story = without_power(false);
    story.traffic.silences.clear();
    story.silent(-30_000, "a");
    assert_eq!(story.outages(500, 80_000)[0].outage.marks.get(Mark::Fault), Some(50_010.0));
    // Nor does that of a sidecar that cannot reach the controller, while its pod answers.
    let mut story = without_power(false);
    story.requests(60, 50_000, 30, "a", Kind::Right);
    assert_eq!(story.outages(500, 80_000)[0].outage.marks.get(Mark::Fault), Some(50_010.0));
}

#[test]
fn a_server_that_hangs_is_lost_from_the_first_request_that_it_failed() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    // One that fails and then answers is well.
    story.requests(500, 501, 10, "a", Kind::Upstream).requests(1010, 4000, 100, "a", Kind::Proxy);
    story.change(4000, What::Ready { uid: uid("a"), ready: false }).endpoint(4001, "a", false);
    let outage = &story.outages(500, 6000)[0].outage;
    assert_eq!((outage.marks.get(Mark::Fault), outage.routing_outage_ms), (Some(1010.0), Some(2900.0)));
    assert!(outage.cause.contains("readiness probe") && !outage.node_lost, "{}", outage.cause);
    // What reached nobody is not this pod's doing while its sidecar speaks.
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right).requests(1010, 4000, 100, "", Kind::Silence);
    story.change(4000, What::Terminating { uid: uid("a") });
    assert_eq!(story.outages(500, 6000)[0].outage.marks.get(Mark::Fault), Some(4000.0));
}

/// Watching begins at 10,000 ms, by a leader that follows one which stood on the same node: pod `a` has been without power for 6 s, and its sidecar is not heard.
fn watched_too_late() -> Story {
    let mut story = Story { watched_from: Some(10_000_000), ..Story::default() };
    for (name, node) in [("a", "node-1"), ("b", "node-2")] {
        story.created(9_990, name, node, None).endpoint(9_995, name, true);
    }
    story.traffic.unheard.insert(uid("a"));
    story.requests(10_000, 50_100, 30, "", Kind::Silence).requests(10_010, 90_000, 30, "b", Kind::Right);
    story.change(50_000, What::Node { node: "node-1".to_owned(), ready: false }).change(50_010, What::Ready { uid: uid("a"), ready: false });
    story.change(50_010, What::Detected { uid: uid("a"), reason: "not ready any more".to_owned() }).endpoint(50_100, "a", false);
    story
}

#[test]
fn a_pod_that_was_lost_before_anybody_watched_has_a_t0_that_is_said_to_be_a_bound() {
    let lost = watched_too_late().outages(500, 80_000);
    let outage = &lost[0].outage;
    assert_eq!((lost.len(), outage.pod.as_str(), outage.node_lost, outage.began_before), (1, "a", true, true));
    let marks = [Mark::Fault, Mark::FirstFailure, Mark::Detected, Mark::EndpointRemoved];
    assert_eq!(marks.map(|mark| outage.marks.get(mark)), [Some(10_000.0), Some(10_000.0), Some(50_000.0), Some(50_100.0)]);
    assert_eq!((outage.routing_outage_ms, outage.censored), (Some(40_080.0), true));
    assert_eq!(outage.cause, "node node-1 was lost: nobody heard from it (since before anybody watched)");
    // Without users the same holds.
    let mut story = watched_too_late();
    (story.traffic.by_pod, story.traffic.nowhere) = Default::default();
    let outage = &story.outages(500, 80_000)[0].outage;
    assert_eq!((outage.marks.get(Mark::Fault), outage.began_before), (Some(10_000.0), true));
    // One that gave a sign of life since then was lost after it.
    let mut story = watched_too_late();
    story.requests(10_005, 20_000, 30, "a", Kind::Right);
    let outage = &story.outages(500, 80_000)[0].outage;
    assert!(!outage.began_before && outage.marks.get(Mark::Fault) >= Some(20_000.0), "{outage:?}");
    // So was one whose sidecar dialled in.
    let mut story = watched_too_late();
    story.traffic.unheard.clear();
    story.silent(20_000, "a");
    let outage = &story.outages(500, 80_000)[0].outage;
    assert!(!outage.began_before && outage.marks.get(Mark::Fault) >= Some(20_000.0), "{outage:?}");
    // One that is lost long after is lost then, whatever its sidecar never said.
    let mut story = watched_too_late();
    for (at, _) in story.facts.iter_mut().filter(|(at, _)| *at >= 50_000_000) {
        *at += 300_000_000;
    }
    story.requests(10_000, 340_000, 500, "a", Kind::Right);
    let outage = &story.outages(500, 390_000)[0].outage;
    assert!(!outage.began_before && outage.marks.get(Mark::Fault) > Some(339_000.0), "{outage:?}");
}

#[test]
fn a_pod_that_is_down_when_watching_begins_is_an_outage_without_the_marks_that_were_before() {
    let mut story = Story { watched_from: Some(1_000_000), ..Story::default() };
    story.created(900, "a", "node-1", None).created(900, "b", "node-2", None).endpoint(950, "b", true);
    story.facts.push((1_000_000, Fact::Down { uids: vec![uid("a"), uid("b")] }));
    story.requests(1_010, 9_000, 30, "b", Kind::Right);
    let mut recovers = Story { facts: story.facts.clone(), watched_from: story.watched_from, ..Story::default() };
    let outage = &story.change(1_100, What::Node { node: "node-1".to_owned(), ready: false }).outages(500, 5_000)[0].outage;
    assert_eq!(outage.marks.0.keys().copied().collect::<Vec<_>>(), [Mark::Fault], "nobody saw the rest");
    assert!(outage.began_before && outage.censored && outage.cause.starts_with("node node-1 was lost"), "{outage:?}");
    recovers.upstream(2_000, "a", true).change(2_100, What::Ready { uid: uid("a"), ready: true }).endpoint(2_200, "a", true);
    recovers.requests(2_210, 9_000, 30, "a", Kind::Right).requests(1_010, 9_000, 30, "b", Kind::Right);
    let lost = recovers.outages(500, 9_000);
    let outage = &lost[0].outage;
    assert_eq!((lost.len(), outage.pod.as_str(), outage.began_before, outage.censored), (1, "a", true, false));
    assert_eq!([Mark::Fault, Mark::ModelLoaded, Mark::Sustained].map(|mark| outage.marks.get(mark)), [Some(1000.0), Some(2000.0), Some(2211.0)]);
    assert_eq!(outage.cause, "was out of the Service when watching began (since before anybody watched)");
}

/// What was over before the run is none of it, and what was seen before is evidence in it.
#[test]
fn evidence_from_before_the_run_counts_and_outages_from_before_do_not() {
    let mut story = killed();
    story.facts.sort_by_key(|(at, _)| *at);
    let terms = Terms { hold: 500_000, look_back: 65_000_000, watched_from: None };
    let of = |begin: i64| outages(&story.facts, &story.traffic, terms, begin * 1000, 4_000_000).first().map(|lost| lost.outage.marks.get(Mark::FirstFailure));
    assert_eq!((of(1500), of(2000)), (Some(Some(-495.0)), None));
}

#[test]
fn what_reached_no_pod_is_charged_to_the_outage_that_can_have_caused_it() {
    let mut story = Story::default();
    for (name, node) in [("a", "node-1"), ("b", "node-2"), ("c", "node-3")] {
        story.created(0, name, node, None).comes_up(0, name, node).requests(60, 20_000, 100, name, Kind::Right);
    }
    // One is taken out at its own word, and nobody is led there any more.
    story.upstream(20_000, "a", false).endpoint(20_050, "a", false);
    // Another's node is lost a while later.
    story.requests(60, 90_000, 100, "c", Kind::Right).requests(20_000, 40_000, 100, "b", Kind::Right);
    story.requests(40_005, 80_000, 50, "", Kind::Silence).silent(39_500, "b");
    story.change(80_000, What::Node { node: "node-2".to_owned(), ready: false }).endpoint(80_050, "b", false);
    let failed = |story: &mut Story| {
        let lost = story.outages(500, 90_000);
        lost.iter().map(|lost| (lost.outage.pod.clone(), lost.outage.marks.get(Mark::FirstFailure), lost.outage.routing_outage_ms)).collect::<Vec<_>>()
    };
    assert_eq!(failed(&mut story), [("a".to_owned(), None, None), ("b".to_owned(), Some(40_005.0), Some(39_950.0))]);
    // Those in the first seconds are of the first.
    story.requests(21_000, 21_001, 10, "", Kind::Silence);
    assert_eq!(failed(&mut story)[0], ("a".to_owned(), Some(21_000.0), Some(0.0)));
    // Later ones, too, where nothing else explains them, or where nobody is left.
    story.requests(30_000, 30_001, 10, "", Kind::Silence);
    assert_eq!(failed(&mut story)[0], ("a".to_owned(), Some(21_000.0), Some(9_000.0)));
    story.endpoint(81_000, "c", false).requests(81_500, 81_501, 10, "", Kind::Silence).endpoint(82_000, "c", true);
    assert_eq!(failed(&mut story)[0], ("a".to_owned(), Some(21_000.0), Some(60_500.0)));
}

#[test]
fn a_pod_that_is_lost_again_is_noticed_again() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    for at in [1000, 5000] {
        story.upstream(at, "a", false).change(at + 8, What::Detected { uid: uid("a"), reason: "not ready any more".to_owned() }).endpoint(at + 10, "a", false);
        story.upstream(at + 500, "a", true).change(at + 600, What::Ready { uid: uid("a"), ready: true }).endpoint(at + 610, "a", true);
        story.requests(at + 620, at + 4000, 10, "a", Kind::Right);
    }
    let detected = |story: &mut Story| story.outages(500, 9000).iter().map(|lost| lost.outage.marks.get(Mark::Detected)).collect::<Vec<_>>();
    assert_eq!(detected(&mut story), [Some(1008.0), Some(5008.0)]);
    // Where the pod is heard of after its endpoint, somebody had noticed before that.
    for (at, _) in story.facts.iter_mut().filter(|(_, fact)| matches!(fact, Fact::Change(What::Detected { .. }))) {
        *at += 50_000;
    }
    assert_eq!(detected(&mut story), [Some(1010.0), Some(5010.0)]);
}

/// A kubelet tells up to a second late.
#[test]
fn what_the_sidecar_saw_of_a_server_that_restarted_stands_against_kubelets_late_word() {
    let restarts = |unready: i64, loaded: i64, ended: i64, started: i64| {
        let mut story = Story::default();
        story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
        story.upstream(unready, "a", false).upstream(loaded, "a", true);
        story.change(ended, What::BackOff { uid: uid("a"), reason: "exited with status 137".to_owned(), wait: Span::ZERO });
        story.endpoint(ended + 5, "a", false).change(started, What::ContainerStarted { uid: uid("a"), restarts: 1 });
        story.change(3000, What::Ready { uid: uid("a"), ready: true }).endpoint(3010, "a", true).requests(3020, 6000, 10, "a", Kind::Right);
        let lost = story.outages(500, 6000);
        assert_eq!((lost.len(), lost[0].outage.censored), (1, false), "{lost:?}");
        [Mark::Fault, Mark::ContainerStarted, Mark::ModelLoaded].map(|mark| lost[0].outage.marks.get(mark))
    };
    assert_eq!(restarts(1000, 1500, 1100, 2000), [Some(1000.0), Some(1500.0), Some(1500.0)]);
    assert_eq!(restarts(1000, 1500, 1900, 1900), [Some(1000.0), Some(1500.0), Some(1500.0)], "the whole of it is told late");
    assert_eq!(restarts(1000, 2500, 1100, 2000), [Some(1000.0), Some(2000.0), Some(2500.0)], "in order");
    // What was loaded before a later end of the server, which nobody but kubelet saw, was loaded in vain.
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").upstream(1000, "a", false).endpoint(1010, "a", false);
    story.change(1100, What::ContainerStarted { uid: uid("a"), restarts: 1 }).upstream(1500, "a", true);
    story.change(2000, What::ContainerStarted { uid: uid("a"), restarts: 2 }).endpoint(3000, "a", true);
    assert_eq!(story.outages(500, 6000)[0].outage.marks.get(Mark::ModelLoaded), None);
}

#[test]
fn a_pod_that_is_kept_out_for_its_answers_says_so_whichever_is_heard_of_first() {
    for at in [1005, 1015] {
        let mut story = Story::default();
        story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").endpoint(1010, "a", false);
        story.change(at, What::HeldOut { uid: uid("a"), why: "golden set g says that its answers are wrong".to_owned() });
        assert_eq!(story.outages(500, 4000)[0].outage.cause, "golden set g says that its answers are wrong");
    }
    // What was over explains nothing.
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").change(1000, What::HeldOut { uid: uid("a"), why: "wrong".to_owned() });
    story.change(2000, What::Ready { uid: uid("a"), ready: true }).endpoint(3000, "a", false);
    assert_eq!(story.outages(500, 4000)[0].outage.cause, UNREADY);
}

/// A kubelet that looks once a second is not the first to know.
#[test]
fn a_sidecar_that_tells_of_its_server_is_up() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").kill(1000, 0, &["a"]).created(1150, "b", "node-2", Some("a"));
    story.upstream(1160, "b", false).comes_up(1200, "b", "node-2");
    let at = |outage: &Lost| [Mark::Initialized, Mark::ContainerStarted].map(|mark| outage.outage.marks.get(mark));
    assert_eq!(at(&story.outages(500, 4000)[0]), [Some(1160.0), Some(1220.0)]);
    // One that has been up all the time did not come up now.
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").upstream(1000, "a", false).endpoint(1010, "a", false);
    story.upstream(1020, "a", false).upstream(1200, "a", true).endpoint(1250, "a", true);
    assert_eq!(at(&story.outages(500, 4000)[0]), [None, None]);
}

/// Pods and endpoints are heard of by two watches.
#[test]
fn what_is_heard_of_a_pod_after_its_endpoint_had_happened_before_it() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").kill(1000, 0, &["a"]).created(1150, "b", "node-2", Some("a"));
    story.upstream(1200, "b", true).endpoint(1250, "b", true);
    story.change(1280, What::ContainerStarted { uid: uid("b"), restarts: 0 }).change(1290, What::Ready { uid: uid("b"), ready: true });
    let outage = &story.outages(500, 4000)[0].outage;
    let marks = [Mark::ContainerStarted, Mark::ModelLoaded, Mark::Ready, Mark::EndpointAdded];
    assert_eq!(marks.map(|mark| outage.marks.get(mark)), [Some(1200.0), Some(1200.0), Some(1250.0), Some(1250.0)]);
}

#[test]
fn an_outage_that_is_not_wanted_any_more_is_none() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    story.change(1000, What::Terminating { uid: uid("a") }).change(1050, What::Retired { uid: uid("a") }).endpoint(1060, "a", false);
    assert!(story.outages(500, 4000).is_empty());
    // One that had gone on for long was an outage, whatever became of it.
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    story.change(1000, What::Terminating { uid: uid("a") }).change(9000, What::Retired { uid: uid("a") });
    assert_eq!(story.outages(500, 12_000).len(), 1);
}

#[test]
fn an_outage_that_has_not_held_long_enough_when_the_run_ends_is_censored_with_its_lower_bound() {
    let lost = killed().outages(500, 1700);
    assert_eq!((lost[0].outage.censored, lost[0].outage.capacity_outage_ms), (true, 700.0));
    assert_eq!(lost[0].outage.marks.get(Mark::FirstGoodResponse), Some(1261.0), "what was seen is kept");
}

#[test]
fn a_failure_by_the_successor_starts_the_hold_anew() {
    let mut story = killed();
    story.requests(1500, 1501, 1, "b", Kind::Upstream);
    let outage = &story.outages(500, 4000)[0].outage;
    assert_eq!(outage.marks.get(Mark::Sustained), Some(1511.0));
    assert_eq!(outage.marks.get(Mark::FirstGoodResponse), Some(1261.0));
    assert_eq!(outage.routing_outage_ms, Some(1500.0 - 1005.0), "clients saw it within the outage");
}

#[test]
fn ready_but_wrong_is_a_first_response_long_before_a_first_correct_prediction() {
    let mut story = killed();
    story.traffic.by_pod.remove(&uid("b"));
    story.requests(1260, 2000, 10, "b", Kind::Wrong).requests(2000, 4000, 10, "b", Kind::Right);
    story.traffic.matches.insert(uid("b"), vec![1_990_000, 2_500_000]);
    story.traffic.matches.insert(uid("a"), vec![500_000, 1_300_000]);
    let outage = &story.outages(500, 4000)[0].outage;
    assert_eq!(outage.marks.get(Mark::FirstGoodResponse), Some(1261.0));
    assert_eq!(outage.marks.get(Mark::FirstCorrectPrediction), Some(1990.0), "the golden replay saw it before the first user");
}

#[test]
fn a_container_that_dies_and_comes_back_is_an_outage_of_the_same_pod() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").requests(60, 1000, 10, "a", Kind::Right);
    story.change(1000, What::BackOff { uid: uid("a"), reason: "exit status 1".to_owned(), wait: Span::from_secs(1) });
    story.upstream(1010, "a", false).endpoint(1020, "a", false);
    story.change(2000, What::ContainerStarted { uid: uid("a"), restarts: 1 });
    story.upstream(2100, "a", true).change(2150, What::Ready { uid: uid("a"), ready: true }).endpoint(2160, "a", true);
    story.requests(2170, 4000, 10, "a", Kind::Right);
    let lost = story.outages(500, 4000);
    let outage = &lost[0].outage;
    assert_eq!((lost.len(), outage.replacement.as_deref(), outage.fault, outage.cause.as_str()), (1, Some("a"), None, "exit status 1"));
    assert_eq!(outage.marks.get(Mark::ContainerStarted), Some(2000.0));
    assert_eq!((outage.marks.get(Mark::ReplacementCreated), outage.marks.get(Mark::Sustained)), (None, Some(2171.0)));
}

#[test]
fn what_the_first_attempt_reached_does_not_count_for_the_second() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").kill(1000, 0, &["a"]).endpoint(1001, "a", false);
    story.created(1100, "b", "node-1", Some("a")).comes_up(1200, "b", "node-1");
    story.change(1400, What::Gone { uid: uid("b"), reason: "exit status 9".to_owned() });
    story.created(2000, "c", "node-1", Some("b")).comes_up(2100, "c", "node-1");
    let lost = story.outages(500, 4000);
    assert_eq!(lost.len(), 1, "lost again before it was recovered: the same outage");
    let outage = &lost[0].outage;
    assert_eq!((outage.pod.as_str(), outage.replacement.as_deref()), ("a", Some("c")));
    assert_eq!((outage.marks.get(Mark::ReplacementCreated), outage.marks.get(Mark::EndpointAdded)), (Some(2000.0), Some(2150.0)));
    assert_eq!(outage.capacity_outage_ms, 1150.0, "without users, good service begins with the endpoint");
}

#[test]
fn a_planned_fault_on_an_unrecovered_place_cuts_the_first_outage_off() {
    let mut story = killed();
    story.kill(1500, 1, &["b"]).endpoint(1501, "b", false);
    let lost = story.outages(500, 4000);
    assert_eq!(
        lost.iter().map(|lost| (lost.outage.fault, lost.outage.censored, lost.outage.capacity_outage_ms)).collect::<Vec<_>>(),
        [(Some(0), true, 500.0), (Some(1), true, 2500.0)]
    );
}

#[test]
fn a_lost_node_takes_its_pods_and_a_slow_network_takes_none() {
    let mut story = Story::default();
    for (name, node) in [("a", "node-1"), ("b", "node-1"), ("c", "node-2")] {
        story.created(0, name, node, None).comes_up(0, name, node);
    }
    story.planned(500, 0, false, &[], &["node-2"]).planned(1000, 1, true, &[], &["node-1"]);
    story.change(1400, What::Node { node: "node-1".to_owned(), ready: false });
    let lost = story.outages(500, 4000);
    assert_eq!(
        lost.iter().map(|lost| (lost.outage.pod.as_str(), lost.outage.fault, lost.outage.marks.get(Mark::Detected))).collect::<Vec<_>>(),
        [("a", Some(1), Some(1400.0)), ("b", Some(1), Some(1400.0))]
    );
}

#[test]
fn readiness_that_is_lost_under_pressure_names_the_pressure_and_begins_with_its_first_sign() {
    let mut story = Story::default();
    story.created(0, "a", "node-1", None).comes_up(0, "a", "node-1").planned(500, 3, false, &[], &["node-1"]);
    story.upstream(700, "a", false).change(800, What::Ready { uid: uid("a"), ready: false }).endpoint(801, "a", false);
    story.upstream(1000, "a", true).change(1100, What::Ready { uid: uid("a"), ready: true }).endpoint(1101, "a", true);
    let outage = &story.outages(500, 4000)[0].outage;
    assert_eq!((outage.fault, outage.marks.get(Mark::Fault), outage.marks.get(Mark::EndpointRemoved)), (Some(3), Some(700.0), Some(801.0)));
    assert!(outage.cause.contains("fault 3"), "{}", outage.cause);
    assert_eq!((outage.marks.get(Mark::ModelLoaded), outage.marks.get(Mark::Sustained)), (Some(1000.0), Some(1101.0)));
}

#[test]
fn a_probe_that_is_faster_than_the_sidecars_poll_bounds_when_the_model_was_loaded() {
    let mut story = killed();
    story.facts.retain(|(_, fact)| !matches!(fact, Fact::Upstream { uid, .. } if uid == "uid-b"));
    story.upstream(1255, "b", true);
    let outage = &story.outages(500, 4000)[0].outage;
    assert_eq!((outage.marks.get(Mark::ModelLoaded), outage.marks.get(Mark::Ready)), (Some(1240.0), Some(1240.0)));
}

/// Any tangle of facts about three pods on two nodes and their successors, once all of them serve (from 50 ms on).
fn tangle() -> impl Strategy<Value = Vec<(i64, u8, usize)>> {
    prop::collection::vec((51_i64..10_000, 0_u8..12, 0_usize..3), 0..120)
}

fn tell(tangle: &[(i64, u8, usize)]) -> (Story, usize) {
    let mut story = Story::default();
    let mut names: Vec<String> = (0..3).map(|place| format!("p{place}-0")).collect();
    for (place, name) in names.iter().enumerate() {
        story.created(0, name, &format!("node-{}", place % 2), None).comes_up(0, name, &format!("node-{}", place % 2));
    }
    let mut sorted = tangle.to_vec();
    sorted.sort_unstable();
    let mut kills = 0;
    for (generation, (ms, what, place)) in sorted.into_iter().enumerate() {
        let name = names[place].clone();
        let uid = uid(&name);
        match what {
            0 => {
                story.kill(ms, kills, &[&name]);
                kills += 1;
            }
            1 => {
                names[place] = format!("p{place}-{}", generation + 1);
                story.created(ms, &names[place].clone(), "node-0", Some(&name));
            }
            2 => {
                story.change(ms, What::ContainerStarted { uid, restarts: (generation % 2) as u32 });
            }
            3 => {
                story.upstream(ms, &name, generation % 3 != 0);
            }
            4 => {
                story.change(ms, What::Ready { uid, ready: generation % 3 != 0 });
            }
            5 => {
                story.endpoint(ms, &name, true);
            }
            6 => {
                story.endpoint(ms, &name, false);
            }
            7 => {
                story.change(ms, What::Gone { uid, reason: "gone".to_owned() });
            }
            8 => {
                story.change(ms, What::BackOff { uid, reason: "died".to_owned(), wait: Span::from_secs(1) });
            }
            9 => {
                story.requests(ms, ms + 500, 10, &name, Kind::Right);
            }
            10 => {
                story.requests(ms, ms + 50, 10, &name, Kind::Silence);
            }
            _ => {
                story.requests(ms, ms + 50, 10, "", Kind::Proxy);
            }
        }
    }
    (story, kills as usize)
}

proptest! {
    #[test]
    fn marks_never_run_backwards_and_no_planned_loss_of_a_serving_pod_is_forgotten(tangle in tangle(), end in 1_i64..12_000) {
        let (mut story, _) = tell(&tangle);
        let lost = story.outages(300, end);
        for lost in &lost {
            let marks = &lost.outage.marks;
            let t0 = marks.get(Mark::Fault).unwrap();
            prop_assert!(marks.0.values().all(|at| *at >= t0 && *at <= end as f64), "{:?}", lost);
            let chain: Vec<f64> = CHAIN.iter().filter_map(|mark| marks.get(*mark)).collect();
            prop_assert!(chain.is_sorted(), "{:?}", lost);
            prop_assert_eq!(lost.outage.censored, marks.get(Mark::Sustained).is_none());
            if let Some(sustained) = marks.get(Mark::Sustained) {
                prop_assert!((lost.outage.capacity_outage_ms - (sustained - t0)).abs() < 1e-6);
                prop_assert!(sustained + 300.0 <= end as f64 && marks.get(Mark::EndpointAdded).unwrap() <= sustained);
            }
        }
        prop_assert!(lost.is_sorted_by_key(|lost| lost.at[&Mark::Fault]));
        // Whoever was in the Service when a fault took it has an outage of that fault.
        let mut serving = std::collections::BTreeSet::from(["p0-0".to_owned(), "p1-0".to_owned(), "p2-0".to_owned()]);
        for (at, fact) in story.facts.iter().filter(|(at, _)| *at <= end * 1000 && *at > 50_000) {
            match fact {
                Fact::Fault(planned) if serving.remove(&planned.pods[0]) => {
                    prop_assert!(lost.iter().any(|lost| lost.outage.fault == Some(planned.index)), "lost at {at}: {planned:?}");
                }
                Fact::Change(What::Endpoint { uid, present: true }) => {
                    serving.insert(uid.trim_start_matches("uid-").to_owned());
                }
                Fact::Change(
                    What::Endpoint { uid, present: false } | What::Gone { uid, .. } | What::BackOff { uid, .. } | What::Created { replaces: Some(uid), .. },
                ) => {
                    serving.remove(uid.trim_start_matches("uid-"));
                }
                _ => (),
            }
        }
    }
}
