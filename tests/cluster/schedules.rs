//! ResilienceSchedules on a real cluster: leashed they tell, armed they run, and they leave in peace what is not well.

use std::fmt::Display;

use serde_json::Value;

use crate::{
    experiments::{digits, test},
    harness::{Namespace, cluster_for_a_run},
    install::install,
};

const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed";
const TEMPLATE: &str = "  suspend: true\n  baseline: 2s\n  steps: [{name: killed, podKill: {pods: {mode: one}}}]\n  stable: {within: 60s, hold: 2s}\n";

/// Of a moment every three seconds.
fn schedule(name: &str, more: &str) -> String {
    format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: ResilienceSchedule
metadata: {{name: {name}}}
spec:
  test: {{name: template}}
  meanTimeBetween: 3s
  window: {{days: [Mon, Tue, Wed, Thu, Fri, Sat, Sun], from: '00:00', to: '24:00', timeZone: Europe/Berlin}}
  {more}
"
    )
}

/// Waits until a moment was let pass for this reason, and returns the schedule.
fn skipped(space: &Namespace<'_>, name: &str, reason: &str, context: &impl Display) -> Value {
    space.wait(40, format_args!("a moment let pass for {reason}\n{context}"), || {
        let schedule = space.get(&format!("resilienceschedule/{name}"))?;
        (schedule["status"]["lastSkipped"]["reason"] == reason).then_some(schedule)
    })
}

fn made(space: &Namespace<'_>) -> Vec<Value> {
    space.list("resiliencetests").into_iter().filter(|test| test["metadata"]["name"] != "template").collect()
}

#[test]
fn leashed_it_tells_armed_it_runs_and_what_is_not_well_is_left_in_peace() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let state = installed.state();
    let space = cluster.namespace_with("schedules", ASKS);
    digits(&space, 2);

    space.apply(&schedule("often", ""));
    let absent = skipped(&space, "often", "NoTest", &state);
    assert!(absent["status"]["lastSkipped"]["message"].as_str().is_some_and(|message| message.contains("no ResilienceTest template")), "{absent:#}");

    space.apply(&test("template", TEMPLATE));
    let leashed = skipped(&space, "often", "Leashed", &state);
    assert_eq!(leashed["status"]["conditions"][0]["reason"], "Leashed", "{leashed:#}");
    assert!(leashed["status"]["nextRunAt"].is_string() && leashed["status"]["lastRunAt"].is_null(), "{leashed:#}");
    space.wait(20, "an Event that says what would have run", || {
        let events = space.list("events");
        let told = |event: &&Value| event["reason"] == "Leashed" && event["message"].as_str().is_some_and(|message| message.contains("template: killed"));
        events.iter().find(told).map(|_| ())
    });
    assert!(made(&space).is_empty(), "leashed it makes nothing, and a template does not run");

    // Not well: a pod that never becomes ready.
    let unready = "{apiVersion: v1, kind: Pod, metadata: {name: sick, labels: {app: digits, steadfast.dev/inject: 'false'}}, spec: {containers: [{name: server, \
                   image: 'steadfast.test/steadfast:1', imagePullPolicy: Never, args: [serve, /golden-sets/digits, --port, '8000'], readinessProbe: {tcpSocket: {port: 9}}}]}}";
    space.apply(unready);
    space.apply(&schedule("often", "armed: true"));
    let sick = skipped(&space, "often", "UnreadyPods", &state);
    let message = sick["status"]["lastSkipped"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("1 of 3") && message.contains("sick"), "{message}");
    assert!(made(&space).is_empty());
    space.kubectl(&["delete", "pod", "sick", "--grace-period=0", "--force"]).expect("deleted");

    // Well again: it runs, to its end.
    let ran = space.wait(120, format_args!("a run that has ended\n{}", installed.state()), || {
        made(&space).into_iter().find(|test| ["Finished", "Refused"].iter().any(|phase| test["status"]["phase"] == *phase))
    });
    assert_eq!((&ran["status"]["phase"], &ran["status"]["stable"]), (&"Finished".into(), &true.into()), "{ran:#}");
    let owner = &ran["metadata"]["ownerReferences"][0];
    assert!(owner["kind"] == "ResilienceSchedule" && owner["name"] == "often", "{owner}");
    assert!(ran["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("often-20")), "{ran:#}");
    assert_eq!(ran["metadata"]["labels"]["steadfast.dev/schedule"], "often");
    let status = space.get("resilienceschedule/often").expect("it is there")["status"].clone();
    assert!(status["lastRunAt"].is_string() && status["lastRun"].is_string(), "{status:#}");

    // The window closes in the middle of a run: no further fault is made.
    let slow = "networkLatency: {pods: {mode: one}, delay: 50ms}, for";
    let two = format!("steps: [{{name: slow, {slow}: 6s}}, {{name: killed, podKill: {{pods: {{mode: one}}}}}}]");
    space.apply(&test("template", TEMPLATE).replace("steps: [{name: killed, podKill: {pods: {mode: one}}}]", &two));
    let in_fault = |what: &str, step: &str| {
        space.wait(120, format_args!("{what}\n{}", installed.state()), || {
            made(&space).into_iter().find(|test| test["status"]["live"]["phase"] == "Fault" && test["status"]["live"]["name"] == step)
        })
    };
    let ended = |test: &Value| {
        let name = test["metadata"]["name"].as_str().expect("a name");
        space.wait(60, format_args!("the end of {name}\n{}", installed.state()), || {
            let status = space.get(&format!("resiliencetest/{name}"))?["status"].clone();
            (status["phase"] == "Finished").then_some(status)
        })
    };
    let closed = in_fault("a run of two steps", "slow");
    let hour: u32 = closed["metadata"]["creationTimestamp"].as_str().and_then(|at| at.get(11..13)?.parse().ok()).expect("an hour");
    let later = format!("from: '{:02}:00', to: '{:02}:00', timeZone: UTC", (hour + 2) % 24, (hour + 3) % 24);
    space.apply(&schedule("often", "armed: true").replace("from: '00:00', to: '24:00', timeZone: Europe/Berlin", &later));
    let halted = ended(&closed);
    assert!(halted["verdict"] == "halted" && halted["reason"].as_str().is_some_and(|reason| reason.contains("WindowClosed")), "{halted:#}");

    // A run that goes on ends when its schedule is leashed.
    space.apply(&test("template", TEMPLATE).replace("name: killed, podKill: {pods: {mode: one}}", &format!("name: long, {slow}: 5m")));
    space.apply(&schedule("often", "armed: true"));
    let goes_on = in_fault("a long run", "long");
    space.apply(&schedule("often", "armed: false"));
    ended(&goes_on);
    space.apply(&schedule("often", "armed: true"));

    // Leave is asked for at the moment itself; and what was made goes with its maker.
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/faults-"]).expect("labelled");
    let forbidden = skipped(&space, "often", "NotAllowed", &state);
    assert!(forbidden["status"]["lastSkipped"]["message"].as_str().is_some_and(|message| message.contains("steadfast.dev/faults=allowed")));
    space.kubectl(&["delete", "resilienceschedule/often"]).expect("deleted");
    space.wait(60, "no test but the template", || made(&space).is_empty().then_some(()));
}

#[test]
fn no_more_runs_are_kept_than_asked_for_and_a_mistake_is_told() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("history", ASKS);
    digits(&space, 1);
    // Refused as soon as it is looked at, since its golden set is not there: runs that end at once.
    space.apply(&test("template", TEMPLATE).replace("goldenSet: digits", "goldenSet: other"));
    space.apply(&schedule("often", "armed: true\n  historyLimit: 2"));
    let status = space.wait(90, format_args!("runs that were deleted\n{}", installed.state()), || {
        let schedule = space.get("resilienceschedule/often")?;
        schedule["status"]["historyDeleted"].as_u64().filter(|deleted| *deleted >= 2).map(|_| schedule["status"].clone())
    });
    assert!(made(&space).len() <= 2, "{status:#}");
    space.apply(&schedule("often", "armed: true").replace("Europe/Berlin", "Europe/Bärlin"));
    let why = space.wait(20, "a mistake told", || {
        let schedule = space.get("resilienceschedule/often")?;
        (schedule["status"]["conditions"][0]["reason"] == "Invalid").then(|| schedule["status"]["conditions"][0]["message"].to_string())
    });
    assert!(why.contains("spec.window.timeZone") && why.contains("such as Europe/Berlin"), "{why}");
}
