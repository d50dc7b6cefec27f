//! Custom resources: the API server itself refuses mistakes, with words that say what would be right.

use crate::{
    harness::{Cluster, cluster, root},
    install::while_nobody_installs,
};

fn definitions(cluster: &Cluster) {
    while_nobody_installs(|| apply_definitions(cluster));
}

fn apply_definitions(cluster: &Cluster) {
    for file in std::fs::read_dir(root().join("deploy/chart/files/crds")).expect("the chart's definitions") {
        let file = file.expect("a file").path();
        cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.display().to_string()]).expect("a definition that the API server takes");
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd/resiliencetests.steadfast.dev"]).expect("an established definition");
}

const TEST: &str = "
apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {name: case-study}
spec:
  target: {selector: {matchLabels: {app: recommender}}, port: http}
  load: [{name: users, rate: 200/s, inputs: {goldenSet: recommender}}]
  golden: [{set: recommender, every: 1s}]
  baseline: 30s
  steps:
    - {name: slow network, networkLatency: {nodes: {mode: one}, delay: 500ms}, for: 60s}
    - {name: busy node, cpuPressure: {nodes: {mode: fixedPercent, value: 50%}, load: 90%}, for: 60s}
    - {name: killed, podKill: {pods: {mode: fixed, value: 2}}}
  hypothesis:
    - availability: {atLeast: 99%}
  halt: [{availability: {below: 20%, for: 30s}}]
";

#[test]
fn a_test_is_taken_and_its_mistakes_are_refused_with_what_would_be_right() {
    let Some(cluster) = cluster() else { return };
    definitions(&cluster);
    let space = cluster.namespace("resources");
    space.try_apply(TEST).expect("a good test is taken");
    for (right, wrong, says) in [
        ("delay: 500ms", "delay: '500'", "a length of time such as 500ms"),
        ("atLeast: 99%", "atLeast: 990%", "a share from 0% to 100%"),
        ("rate: 200/s", "rate: fast", "a rate such as 200/s"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "podKill: {pods: {mode: fixed}}", "fixed takes a count"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "podKill: {pods: {mode: one}}, for: 3s", "happen in an instant"),
        ("delay: 500ms}, for: 60s", "delay: 500ms}", "say how long the step lasts"),
        ("networkLatency: {nodes: {mode: one}", "networkLatency: {nodes: {mode: one}, pods: {mode: one}", "exactly one of nodes and pods"),
        ("podKill: {pods", "evict: {pods: {mode: one}}, podKill: {pods", "a step does one thing"),
        ("mode: fixedPercent, value: 50%", "mode: fixedPercent, value: 50", "take a share, such as `value: 50%`"),
        ("mode: fixedPercent", "mode: most", "supported values"),
        ("availability: {atLeast: 99%}", "availability: {atLeast: 99%}\n      consistency: {atLeast: 99%}", "exactly one of"),
        ("baseline: 30s", "baselin: 30s", "unknown field"),
        ("app: recommender", "", "at least one label"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 400d", "for: write 1ms to 24h"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 300h", "for: write 1ms to 24h"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 0s", "for: write 1ms to 24h"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 1day 1h", "for: write 1ms to 24h"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "podKill: {pods: {mode: one}, gracePeriod: 100d}", "write 1h or less"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "nodeFailure: {nodes: {mode: one}}, for: 2h", "nodeFailure lasts 1h or less"),
        ("delay: 500ms}, for: 60s", "delay: 500ms, by: agent}, for: 2h", "networkLatency by the agent lasts 1h or less"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "taint: {nodes: {mode: one}, key: bad key}, for: 5s", "such as example.com/maintenance"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "taint: {nodes: {mode: one}, value: 'bad value!'}, for: 5s", "a letter or digit first and last"),
        ("below: 20%, for: 30s", "below: 20%, for: 1ms", "write 1s to 10m"),
        ("below: 20%, for: 30s", "below: 20%, for: 1d", "write 1s to 10m"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 5 bananas", "a length of time such as 500ms"),
        ("atLeast: 99%", "atLeast: 100.5%", "a share from 0% to 100%"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "podKill: {pods: {mode: fixed, value: 0}}", "fixed takes a count"),
        ("mode: fixedPercent, value: 50%", "mode: fixedPercent, value: lots", "take a share, such as `value: 50%`"),
        ("mode: fixedPercent, value: 50%", "mode: fixedPercent, value: 0%", "take a share, such as `value: 50%`"),
        ("baseline: 30s", "baseline: 0s", "baseline: write 1s or more"),
        ("baseline: 30s", "window: 10m", "take window out, or the steps"),
    ] {
        assert!(TEST.contains(right), "{right}");
        let refused = space.try_apply(&TEST.replacen(right, wrong, 1)).expect_err(wrong);
        assert!(refused.contains(says), "{wrong}: {refused}");
    }
    // However it is written.
    for (right, good) in [
        ("load: 90%}, for: 60s", "load: 90%}, for: 24h"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 1day"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 1h 30m 5s"),
        ("load: 90%}, for: 60s", "load: 90%}, for: 5 minutes"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "taint: {nodes: {mode: one}, key: example.com/a_b, value: so.on}, for: 1h"),
        ("podKill: {pods: {mode: fixed, value: 2}}", "podKill: {pods: {mode: one}, gracePeriod: 10s}"),
        ("below: 20%, for: 30s", "below: 20%, for: 10m"),
        ("atLeast: 99%", "atLeast: 100.0%"),
    ] {
        space.try_apply(&TEST.replacen(right, good, 1)).expect(good);
    }
}

#[test]
fn the_spec_of_a_test_that_runs_stays_and_that_of_a_template_or_a_watch_may_change() {
    let Some(cluster) = cluster() else { return };
    definitions(&cluster);
    let space = cluster.namespace("spec");
    let template = TEST.replace("spec:\n", "spec:\n  suspend: true\n");
    space.apply(&template);
    let other = template.replace("baseline: 30s", "baseline: 40s");
    space.try_apply(&other).expect("nothing runs it yet");
    let is = |phase: &str| {
        let status = format!("{{\"status\": {{\"phase\": \"{phase}\"}}}}");
        space.kubectl(&["patch", "resiliencetest/case-study", "--subresource=status", "--type=merge", "--patch", &status]).expect("patched");
    };
    for phase in ["Running", "Finished"] {
        is(phase);
        let refused = space.try_apply(&template).expect_err("it is run as it stands");
        assert!(refused.contains("apply another under another name"), "{phase}: {refused}");
        space.try_apply(&other).expect("nothing changes");
        space.kubectl(&["label", "--overwrite", "resiliencetest/case-study", &format!("phase={phase}")]).expect("it is not the spec");
    }
    is("Refused");
    space.try_apply(&template).expect("what was refused is mended");
}

#[test]
fn the_other_resources_refuse_their_mistakes_too() {
    let Some(cluster) = cluster() else { return };
    definitions(&cluster);
    let space = cluster.namespace("resources");
    let object = |kind: &str, spec: &str| format!("{{apiVersion: steadfast.dev/v1alpha1, kind: {kind}, metadata: {{name: x}}, spec: {spec}}}");
    let policy = "{selector: {matchLabels: {app: a}}, expiresAfter: 10m, budget: {concurrent: 10, share: 5%}}";
    let schedule =
        "{test: {name: x}, meanTimeBetween: 4h, window: {days: [Mon], from: '09:30', to: '16:00', timeZone: Europe/Berlin}, blackoutDates: ['2026-12-24']}";
    let set = "{selector: {matchLabels: {app: a}}, source: {configMap: {name: x}}}";
    for (kind, spec) in [("FaultPolicy", policy), ("ResilienceSchedule", schedule), ("GoldenSet", set)] {
        space.try_apply(&object(kind, spec)).expect("it is taken");
    }
    space.try_apply(&object("ResilienceSchedule", &schedule.replace("2026-12-24", "2028-02-29").replace("4h", "2d"))).expect("a leap year");
    for (kind, spec, right, wrong, says) in [
        ("FaultPolicy", policy, "expiresAfter: 10m, ", "", "expiresAfter: Required"),
        ("FaultPolicy", policy, "expiresAfter: 10m", "expiresAfter: 30d", "write 1ms to 24h"),
        ("FaultPolicy", policy, "concurrent: 10", "concurrent: 0", "should be greater than or equal to 1"),
        ("ResilienceSchedule", schedule, "'09:30'", "'9'", "a time of day such as 09:30"),
        ("ResilienceSchedule", schedule, "days: [Mon]", "days: []", "name at least one of Mon"),
        ("ResilienceSchedule", schedule, "'16:00'", "'09:30'", "never open"),
        ("ResilienceSchedule", schedule, "2026-12-24", "24.12.", "a date that the calendar has"),
        ("ResilienceSchedule", schedule, "2026-12-24", "2026-02-30", "a date that the calendar has"),
        ("ResilienceSchedule", schedule, "2026-12-24", "2026-02-29", "that year has no 29th of February"),
        ("ResilienceSchedule", schedule, "meanTimeBetween: 4h", "meanTimeBetween: 0s", "write 1s to a year"),
        ("GoldenSet", set, "configMap: {name: x}", "", "exactly one of"),
        ("GoldenSet", set, "source:", "digest: sha256:1, source:", "64 hexadecimal digits"),
        ("GoldenSet", set, "configMap: {name: x}", "objectStore: {url: bucket}", "write s3://BUCKET/PATH"),
        ("GoldenSet", set, "configMap: {name: x}", "objectStore: {url: 'https://bucket/set'}", "write s3://BUCKET/PATH"),
    ] {
        assert!(spec.contains(right), "{right}");
        let refused = space.try_apply(&object(kind, &spec.replacen(right, wrong, 1))).expect_err(wrong);
        assert!(refused.contains(says), "{wrong}: {refused}");
    }
}
