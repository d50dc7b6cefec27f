//! Golden sets in production: a pod that answers wrong is named and leaves its Service, and nothing but a wrong pod does.

use std::{path::Path, process::Command};

use prost::Message as _;
use serde_json::{Value, json};
use steadfast_controller::golden::config_map;
use steadfast_golden_sets::{
    GoldenSet, Values,
    engine::{self, EngineChoice, EngineOptions},
    onnx, set,
};

use crate::{
    experiments::{digits, run, test},
    harness::{Cluster, IMAGE, Namespace, STEADFAST, cluster, cluster_for_a_run, condition, names, root},
    install::install,
    watches::metrics,
};

const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed, pod-security.kubernetes.io/enforce: restricted";
/// Five samples a second, a tenth of wrong answers to be seen: verdicts in seconds.
const SPEC: &str = "selector: {matchLabels: {app: digits}}
  schedule: {every: 200ms, share: 100%}
  verdict: {detect: 10%}
  readiness: {gate: true, maxUnavailable: 34%}";

pub(crate) fn digits_set() -> GoldenSet {
    set::read(root().join("golden-sets/sets/digits")).expect("the set of this repository")
}

/// The model of a set with one of its weights one percent off.
fn one_percent_off(set: &GoldenSet) -> onnx::ModelProto {
    let mut model = onnx::decode_model(set.model().clone()).expect("a model");
    let weights = &mut model.graph.as_mut().expect("a graph").initializer;
    let largest = weights.iter_mut().filter(|proto| proto.data_type == 1).max_by_key(|proto| proto.dims.iter().product::<i64>()).expect("weights");
    let mut tensor = onnx::tensor::to_tensor(largest).expect("a tensor");
    let Values::F32(values) = &mut tensor.values else { panic!("filtered by type") };
    for value in values {
        *value *= 1.01;
    }
    *largest = onnx::tensor::from_tensor(&tensor);
    model
}

/// A set for another model, right in itself.
fn of_another_model(set: &GoldenSet) -> GoldenSet {
    let model: bytes::Bytes = one_percent_off(set).encode_to_vec().into();
    let mut engine = engine::open(&model, &EngineOptions { choice: EngineChoice::Rten, ..EngineOptions::default() }).expect("an engine");
    let mut manifest = set.manifest().clone();
    manifest.onnx.digest = set::sha256(&model);
    let mut samples = set.samples().to_vec();
    for sample in &mut samples {
        let names: Vec<String> = sample.outputs.iter().map(|tensor| tensor.name.clone()).collect();
        sample.outputs = engine.run(&sample.inputs).expect("answers").into_iter().filter(|tensor| names.contains(&tensor.name)).collect();
    }
    GoldenSet::new(manifest, model, samples).expect("a set")
}

/// The same set with stored answers that its own model does not give.
fn with_wrong_answers(set: &GoldenSet) -> GoldenSet {
    let mut samples = set.samples().to_vec();
    for tensor in samples.iter_mut().flat_map(|sample| &mut sample.outputs) {
        if let Values::F32(values) = &mut tensor.values {
            for value in values {
                *value = 1.0 - *value;
            }
        }
    }
    GoldenSet::new(set.manifest().clone(), set.model().clone(), samples).expect("a set")
}

/// A ConfigMap with the files of a folder.
fn apply_map(space: &Namespace<'_>, name: &str, folder: &Path) {
    let maps = config_map::pack(name, folder).expect("it can be read");
    let [map] = maps.as_slice() else { panic!("it fits into one") };
    let mut map = serde_json::to_value(map).expect("JSON");
    (map["apiVersion"], map["kind"]) = ("v1".into(), "ConfigMap".into());
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), map.to_string()).expect("written");
    space.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file.path().display().to_string()]).expect("the map is taken");
}

/// The GoldenSet `digits` with this content.
fn apply_set(space: &Namespace<'_>, set: &GoldenSet) {
    let folder = tempfile::tempdir().expect("a folder");
    let written = folder.path().join("set");
    set::write(set, &written).expect("written");
    apply_map(space, "digits-golden", &written);
    space.apply(&format!(
        "apiVersion: steadfast.dev/v1alpha1\nkind: GoldenSet\nmetadata: {{name: digits}}\nspec:\n  source: {{configMap: {{name: digits-golden}}}}\n  digest: '{}'\n  {SPEC}\n",
        set.digest()
    ));
}

/// Pods with the label `app: digits` that serve `model`, `serve` being more arguments of the server.
pub(crate) fn servers(name: &str, replicas: usize, model: &str, serve: &str, more: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  minReadySeconds: 10
  selector: {{matchLabels: {{app: digits, part: {name}}}}}
  template:
    metadata: {{labels: {{app: digits, part: {name}}}}}
    spec:
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      terminationGracePeriodSeconds: 1
      containers:
        - name: server
          image: {IMAGE}
          imagePullPolicy: Never
          args: [serve, {model}, --host, 0.0.0.0, --port, '8000'{serve}]
          ports: [{{name: http, containerPort: 8000}}]
          readinessProbe: {{httpGet: {{path: /v2/health/ready, port: http}}, periodSeconds: 1}}
          resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}
          securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
          {more}
---
apiVersion: v1
kind: Service
metadata: {{name: digits}}
spec: {{selector: {{app: digits}}, ports: [{{name: http, port: 80, targetPort: http}}]}}
"
    )
}

/// Names of the pods that users are led to, sorted.
fn serving(space: &Namespace<'_>) -> Vec<String> {
    let slices = space.list("endpointslices");
    let endpoints = slices.iter().filter(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "digits");
    let ready =
        endpoints.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default()).filter(|endpoint| endpoint["conditions"]["ready"] == true);
    let mut names: Vec<String> = ready.filter_map(|endpoint| Some(endpoint["targetRef"]["name"].as_str()?.to_owned())).collect();
    names.sort();
    names
}

pub(crate) fn status(space: &Namespace<'_>) -> Value {
    space.get("goldenset/digits").map(|set| set["status"].clone()).unwrap_or_default()
}

/// Reason of one of the set's conditions.
pub(crate) fn reason(status: &Value, kind: &str) -> String {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == kind).and_then(|condition| condition["reason"].as_str()).unwrap_or_default().to_owned()
}

fn told(space: &Namespace<'_>, about: &str, reason: &str) -> bool {
    space.list("events").iter().any(|event| event["involvedObject"]["name"] == about && event["reason"] == reason)
}

/// Exit status and answer of `steadfast golden gate`.
fn gate(cluster: &Cluster, space: &Namespace<'_>, timeout: &str) -> (Option<i32>, Value) {
    let mut command: Command = cluster.command(STEADFAST);
    command.args(["golden", "gate", "digits", "--namespace", space.name(), "--timeout", timeout, "--output", "json"]);
    let ran = command.output().expect("steadfast runs");
    eprintln!("{}", String::from_utf8_lossy(&ran.stderr));
    (ran.status.code(), serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| json!(String::from_utf8_lossy(&ran.stdout))))
}

#[test]
fn one_wrong_replica_of_three_is_named_and_leaves_its_service_and_returns_when_it_is_mended() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("golden", ASKS);
    apply_set(&space, &digits_set());
    space.apply(&servers("right", 2, "/golden-sets/digits", "", ""));
    // It answers wrong from its first answer on, and is mended after a while without anybody starting it anew.
    space.apply(&servers("odd", 1, "/golden-sets/digits", ", --wrong-seconds, '50'", ""));
    let odd = space.wait(60, "the odd pod", || space.pods("part=odd").into_iter().next());
    let context = || format!("{:#}\n{}", status(&space), installed.state());

    let failed = space.wait(60, "a pod that is named and out", || Some(status(&space)).filter(|status| status["podsGated"] == 1));
    assert_eq!((&failed["failing"], &failed["verdict"], &failed["podsMatched"]), (&json!([odd]), &json!("Fail"), &json!(3)), "{}", context());
    assert_eq!((reason(&failed, "Verdict"), reason(&failed, "Gated")), ("Fail".into(), "Gating".into()), "{failed:#}");
    let right = space.pods("part=right");
    space.wait(20, format_args!("the two others in the Service\n{}", context()), || (serving(&space) == right).then_some(()));
    let pod = space.get(&format!("pod/{odd}")).expect("it is there");
    assert_eq!(condition(&pod, "Ready").as_deref(), Some("False"), "out, and alive");
    let (code, said) = gate(&cluster, &space, "60s");
    assert_eq!((code, &said["verdict"], &said["failing"]), (Some(1), &json!("Fail"), &json!([odd])), "{said:#}");
    let out = format!("steadfast_golden_set_pods{{set=\"digits\",state=\"gated\",target_namespace=\"{}\"}} 1", space.name());
    let counted = metrics(&cluster, &installed.system);
    assert!(counted.contains(&out), "{out} of\n{counted}");
    space.wait(20, "Events about the pod", || (told(&space, &odd, "GoldenFail") && told(&space, &odd, "LeftService")).then_some(()));

    let all = space.wait(120, format_args!("three pods in the Service\n{}", context()), || Some(serving(&space)).filter(|names| names.len() == 3));
    assert!(all.contains(&odd) && space.get(&format!("pod/{odd}")).is_some_and(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 0), "{all:?}");
    space.wait(20, "an Event about the return", || told(&space, &odd, "ReturnedToService").then_some(()));
    let (code, said) = gate(&cluster, &space, "120s");
    assert_eq!((code, &said["verdict"], &said["podsPassing"]), (Some(0), &json!("Pass"), &json!(3)), "{said:#}\n{}", context());
    assert_eq!(names(&space.list("pods")).len(), 3, "nobody was replaced");
    // A set that is deleted leaves nothing behind.
    space.kubectl(&["delete", "goldenset/digits"]).expect("deleted");
    let (code, _) = gate(&cluster, &space, "1s");
    assert_eq!(code, Some(2), "there is no such set any more");
}

#[test]
fn nobody_leaves_for_a_reference_that_is_broken_or_for_another_model() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("broken", ASKS);
    let set = digits_set();
    space.apply(&servers("right", 3, "/golden-sets/digits", "", ""));
    space.wait_ready("app=digits", 3);
    apply_set(&space, &with_wrong_answers(&set));
    let broken = space.wait(60, format_args!("the verdict ReferenceBroken\n{}", installed.state()), || {
        Some(status(&space)).filter(|status| status["verdict"] == "ReferenceBroken")
    });
    assert_eq!(reason(&broken, "Verdict"), "ReferenceBroken");
    let (code, said) = gate(&cluster, &space, "30s");
    assert_eq!((code, &said["verdict"]), (Some(1), &json!("ReferenceBroken")), "{said:#}");
    assert_eq!((&status(&space)["podsGated"], serving(&space).len()), (&json!(0), 3));

    // A set whose answers are right, of a model that nobody serves: every pod is wrong by it.
    apply_set(&space, &of_another_model(&set));
    let fail = space.wait(90, format_args!("three pods that fail\n{}", installed.state()), || Some(status(&space)).filter(|status| status["podsFailing"] == 3));
    assert_eq!((&fail["podsGated"], reason(&fail, "Gated").as_str()), (&json!(0), "MostFail"), "{fail:#}");
    assert_eq!(serving(&space).len(), 3);
    assert!(space.list("events").iter().all(|event| event["reason"] != "LeftService"), "nobody left, not for a moment");

    // And the digest is believed.
    space
        .kubectl(&["patch", "goldenset/digits", "--type=merge", "-p", &json!({ "spec": { "digest": set.digest().to_string() } }).to_string()])
        .expect("patched");
    space.wait(30, "a refusal", || (reason(&status(&space), "Ready") == "DigestMismatch").then_some(()));
}

#[test]
fn a_rollout_of_wrong_weights_is_stopped_at_the_gate_and_its_pod_serves_nobody() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("weights", ASKS);
    let set = digits_set();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("model.onnx"), one_percent_off(&set).encode_to_vec()).expect("written");
    apply_map(&space, "weights", folder.path());
    apply_set(&space, &set);
    space.apply(&servers("web", 3, "/golden-sets/digits", "", ""));
    let before = space.wait_ready("app=digits", 3);
    let (code, said) = gate(&cluster, &space, "120s");
    assert_eq!(code, Some(0), "{said:#}\n{}", installed.state());
    // The folder names the model.
    let mount = "volumeMounts: [{name: weights, mountPath: /models/digits}]\n      volumes: [{name: weights, configMap: {name: weights}}]";
    space.apply(&servers("web", 3, "/models/digits", "", mount));
    let (code, said) = gate(&cluster, &space, "120s");
    assert_eq!((code, &said["verdict"]), (Some(1), &json!("Fail")), "{said:#}\n{}", installed.state());
    let named = said["failing"][0].as_str().expect("a name").to_owned();
    assert!(!before.contains(&named), "the new one is named: {said:#}");
    space.wait(30, format_args!("users led to the old pods alone\n{}", installed.state()), || {
        serving(&space).iter().all(|name| before.contains(name)).then_some(())
    });
    space.kubectl(&["rollout", "undo", "deployment/web"]).expect("undone");
    let (code, said) = gate(&cluster, &space, "180s");
    assert_eq!((code, &said["podsPassing"]), (Some(0), &json!(3)), "{said:#}\n{}", installed.state());
}

#[test]
fn a_run_has_its_golden_sets_replayed_in_the_pods_of_its_target() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("replays", "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed");
    digits(&space, 2);
    let text = test(
        "replays",
        "  golden: [{set: digits, every: 100ms}]
  baseline: 5s
  steps: [{name: wrong, corrupt: {pods: {mode: one}, magnitude: 50%, share: 100%}, for: 5s}]
  stable: {within: 60s, hold: 3s}
",
    );
    let ended = run(&cluster, &space, &text);
    let report = ended.report.unwrap_or_else(|| panic!("{}\n{}", ended.said, installed.state()));
    let replays: Vec<(&str, u32)> = report.pods.iter().map(|pod| (pod.name.as_str(), pod.golden.iter().map(|point| point.matched).sum())).collect();
    assert!(replays.iter().all(|(_, count)| *count >= 50), "{replays:?}");
    let wrong = report.pods.iter().filter(|pod| pod.golden.iter().any(|point| point.mismatched > 0)).count();
    assert_eq!(wrong, 1, "the pod that was corrupted, and no other: {replays:?}");
}
