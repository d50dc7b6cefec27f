//! Two versions against each other, as programs: sidecars of the previous one under this controller, and sidecars of this one under the previous controller.
//! `tests/cluster/versions REVISION` builds the other one and names its checkout in `STEADFAST_PREVIOUS`.

use std::{
    env, fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use steadfast_api::report::{PhaseKind, Report, RunOutcome};

use crate::{
    experiments::{ASKS, digits, run_by, test},
    golden::status,
    harness::{Cluster, Entered, Installation, Namespace, STEADFAST, cluster_alone, output, root},
    injection::{Users, ask_for, service},
    install::{Installed, helm, install_anew},
    upgrade::{slow, standing},
};

/// Of every kind that a sidecar does.
const STEPS: &str = "  golden: [{set: digits, every: 100ms}]
  baseline: 4s
  steps:
    - {name: slow, networkLatency: {pods: {mode: one}, delay: 300ms}, for: 5s}
    - {name: silent, networkLoss: {pods: {mode: one}, share: 50%}, for: 4s}
    - {name: wrong, corrupt: {pods: {mode: one}, magnitude: 50%, share: 100%}, for: 4s}
    - {name: busy, cpuPressure: {pods: {mode: one}, load: 20%}, for: 4s}
    - {name: held, podHoldDown: {pods: {mode: one}}, for: 4s}
  stable: {within: 60s, hold: 3s}
";
const TAG: &str = "previous";
const CONTROLLERS: [&str; 2] = ["--selector", "app.kubernetes.io/name=steadfast"];

/// A cluster alone, and where the other version lies; or it is said why there is none.
fn both() -> Option<(Entered, PathBuf)> {
    let Some(previous) = env::var_os("STEADFAST_PREVIOUS").map(PathBuf::from) else {
        eprintln!("not run: STEADFAST_PREVIOUS names no other version; tests/cluster/versions REVISION builds one");
        return None;
    };
    let cluster = cluster_alone(Installation::Own)?;
    let images = root().join("tests/cluster/images");
    output(Command::new(images).args(["--as-built", "--tag", TAG]).env("CARGO_TARGET_DIR", previous.join("target")), None).expect("its images");
    Some((cluster, previous))
}

/// `helm upgrade` to a chart, with other images than this version's where there is a tag.
fn upgrade_to(cluster: &Cluster, installed: &Installed<'_>, chart: &Path, tag: Option<&str>) {
    let tags = tag.map(|tag| format!("image.tag={tag},proxy.image.tag={tag}"));
    let mut args = vec!["upgrade", "steadfast", chart.to_str().expect("UTF-8"), "--wait", "--timeout", "180s", "--set", "failures.workloads=true"];
    args.extend(tags.iter().flat_map(|tags| ["--set-string", tags.as_str()]));
    helm(cluster, &installed.system, &args).unwrap_or_else(|why| panic!("{why}\n{}", installed.state()));
}

fn to_previous(cluster: &Cluster, installed: &Installed<'_>, previous: &Path) {
    upgrade_to(cluster, installed, &previous.join("deploy/chart"), Some(TAG));
}

/// Images of the pods of a selector, of their sidecars or their only containers.
fn images(cluster: &Cluster, namespace: &str, selector: [&str; 2], path: &str) -> Vec<String> {
    let path = format!("jsonpath={{range .items[*]}}{{{path}}}{{\"\\n\"}}{{end}}");
    let listed = cluster.kubectl(&["--namespace", namespace, "get", "pods", selector[0], selector[1], "-o", &path]).expect("listed");
    listed.lines().map(str::to_owned).collect()
}

/// Of all of them, once those of before are gone.
fn all_end_with(space: &Namespace<'_>, images: impl Fn() -> Vec<String>, tag: &str) {
    space.wait(60, format_args!("nothing but {tag}: {}", fmt::from_fn(|f| write!(f, "{:?}", images()))), || {
        let images = images();
        (!images.is_empty() && images.iter().all(|image| image.ends_with(tag))).then_some(())
    });
}

fn takes(cluster: &Cluster, to: SocketAddr) -> Duration {
    let asked = Instant::now();
    cluster.inside(|| ask_for(to, "digits")).expect("an answer");
    asked.elapsed()
}

fn no_request_lost(users: Users, during: &str) {
    let (good, failed) = users.stop();
    println!("{good} requests answered during and after {during}");
    assert!(good > 50 && failed.is_empty(), "{good}, {failed:?}");
}

/// The sidecars that are there do what the controller that is there says, and tell it what they see.
fn they_work_together(cluster: &Cluster, space: &Namespace<'_>, installed: &Installed<'_>, program: &Path) {
    let (to, context) = (
        service(space, "digits"),
        fmt::from_fn(|f| write!(f, "{}\n{}\n{}", space.get("faultpolicy/slow").unwrap_or_default(), status(space), installed.state())),
    );
    space.wait(60, format_args!("quick answers\n{context}"), || (takes(cluster, to) < Duration::from_millis(250)).then_some(()));
    space.apply(&slow("digits"));
    space.wait(30, format_args!("slow answers\n{context}"), || (takes(cluster, to) >= Duration::from_millis(300)).then_some(()));
    space.wait(20, "its word", || (standing(space)? == "Armed").then_some(()));
    space.kubectl(&["delete", "faultpolicy/slow"]).expect("deleted");
    space.wait(30, format_args!("quick answers again\n{context}"), || (takes(cluster, to) < Duration::from_millis(250)).then_some(()));
    let judged =
        space.wait(90, format_args!("a verdict\n{context}"), || Some(status(space)).filter(|status| status["verdict"] == "Pass" && status["podsPassing"] == 2));
    assert_eq!(judged["podsFailing"], 0, "{judged:#}");

    let ended = run_by(program, cluster, space, &test("both", STEPS));
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}\n{}", ended.said, installed.state()));
    check(report, &ended.said);
    space.wait_ready("app=digits", 2);
}

fn check(report: &Report, said: &str) {
    assert_eq!(report.verdict.outcome, RunOutcome::Pass, "{said}");
    assert!(report.run.left_behind.is_empty() && report.faults.len() == 5 && report.faults.iter().all(|fault| !fault.evidence.is_empty()), "{said}");
    let during = |index: u32| &report.phases.iter().find(|phase| phase.kind == PhaseKind::Fault && phase.step == Some(index)).expect("its phase").service;
    assert!(during(0).latency.p99_ms >= 300.0, "{said}");
    assert!(during(1).availability.ratio.is_some_and(|ratio| ratio < 1.0), "{said}");
    assert!(during(2).consistency.ratio.is_some_and(|ratio| ratio < 0.9), "{said}");
    assert!(report.outages.iter().any(|outage| outage.fault == Some(4) && outage.capacity_outage_ms >= 4_000.0), "{said}");
    assert!(report.pods.iter().filter(|pod| pod.golden.iter().map(|point| point.matched).sum::<u32>() >= 20).count() >= 2, "{said}");
}

#[test]
fn each_versions_sidecars_work_with_the_others_controller_and_an_upgrade_and_the_way_back_lose_no_request() {
    let Some((cluster, previous)) = both() else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_anew(&cluster, &[]);
    let space = cluster.namespace_with("versions", ASKS);
    let controllers = || images(&cluster, &installed.system, CONTROLLERS, ".spec.containers[0].image");
    to_previous(&cluster, &installed, &previous);
    all_end_with(&space, controllers, TAG);
    digits(&space, 2);
    // Judged within seconds.
    let often = r#"{"spec": {"schedule": {"every": "200ms", "share": "100%"}, "verdict": {"detect": "10%"}}}"#;
    space.kubectl(&["patch", "goldenset/digits", "--type=merge", "-p", often]).expect("patched");
    let pods = space.pods("app=digits");
    let sidecars = || images(&cluster, space.name(), ["--selector", "app=digits"], ".spec.initContainers[0].image");
    all_end_with(&space, sidecars, TAG);
    let to = service(&space, "digits");

    // Upgraded under load, with a policy in force.
    space.apply(&slow("digits"));
    space.wait(30, "slow answers", || (takes(&cluster, to) >= Duration::from_millis(300)).then_some(()));
    let users = Users::of(cluster.everywhere(), to, "digits");
    upgrade_to(&cluster, &installed, Path::new("deploy/chart"), None);
    all_end_with(&space, controllers, ":1");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        assert!(takes(&cluster, to) >= Duration::from_millis(300), "what was armed stays");
    }
    no_request_lost(users, "the upgrade");
    space.kubectl(&["delete", "faultpolicy/slow"]).expect("deleted");
    they_work_together(&cluster, &space, &installed, Path::new(STEADFAST));
    all_end_with(&space, sidecars, TAG);
    assert_eq!(space.pods("app=digits"), pods, "every sidecar is the old one");

    // Sidecars of this version, and the way back under load.
    space.kubectl(&["rollout", "restart", "deployment/digits"]).expect("restarted");
    space.kubectl(&["rollout", "status", "deployment/digits", "--timeout=120s"]).expect("rolled over");
    all_end_with(&space, sidecars, ":1");
    space.apply(&slow("digits"));
    space.wait(30, "slow answers", || (takes(&cluster, to) >= Duration::from_millis(300)).then_some(()));
    let users = Users::of(cluster.everywhere(), to, "digits");
    to_previous(&cluster, &installed, &previous);
    all_end_with(&space, controllers, TAG);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(15) {
        assert!(takes(&cluster, to) >= Duration::from_millis(300), "what was armed stays");
    }
    no_request_lost(users, "the way back");
    space.kubectl(&["delete", "faultpolicy/slow"]).expect("deleted");
    they_work_together(&cluster, &space, &installed, &previous.join("target/debug/steadfast"));
    all_end_with(&space, sidecars, ":1");
}
