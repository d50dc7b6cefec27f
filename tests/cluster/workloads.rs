//! Every kind of workload has its sidecar from the webhook, and goes on being what it is.

use serde_json::Value;

use crate::{
    harness::{IMAGE, Namespace, cluster, condition},
    install::install,
};

fn server(kind: &str, api: &str, more: &str) -> String {
    let pod = format!(
        "{{terminationGracePeriodSeconds: 2, containers: [{{name: server, image: '{IMAGE}', imagePullPolicy: Never, args: [serve, /golden-sets/digits, --host, 0.0.0.0, \
         --port, '8000'], ports: [{{name: http, containerPort: 8000}}], readinessProbe: {{httpGet: {{path: /v2/health/ready, port: http}}, periodSeconds: 1}}}}]}}"
    );
    let name = kind.to_lowercase();
    if kind == "Pod" {
        return format!("{{apiVersion: v1, kind: Pod, metadata: {{name: pod, labels: {{app: pod}}}}, spec: {pod}}}");
    }
    format!(
        "{{apiVersion: {api}, kind: {kind}, metadata: {{name: {name}}}, spec: {{selector: {{matchLabels: {{app: {name}}}}}, {more} template: {{metadata: {{labels: {{app: \
         {name}}}}}, spec: {pod}}}}}}}"
    )
}

fn has_sidecar(space: &Namespace<'_>, pod: &str) -> bool {
    let pod = space.get(&format!("pod/{pod}")).expect("it is there");
    pod["spec"]["initContainers"].as_array().is_some_and(|all| all.iter().any(|container| container["name"] == "steadfast-proxy"))
}

#[test]
fn stateful_sets_daemon_sets_and_bare_pods_answer_by_the_sidecar() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("workloads", "steadfast.dev/inject: 'true'");
    let nodes = cluster.nodes().len();
    for (kind, api, more, count) in
        [("StatefulSet", "apps/v1", "serviceName: statefulset, replicas: 2,", 2), ("DaemonSet", "apps/v1", "", nodes), ("Pod", "v1", "", 1)]
    {
        let name = kind.to_lowercase();
        space.apply(&server(kind, api, more));
        space.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: http}}]}}}}"
        ));
        let pods = space.wait_ready(&format!("app={name}"), count);
        assert!(pods.iter().all(|pod| has_sidecar(&space, pod)), "{kind}: {pods:?}");
        let model = space.wait(20, "an answer by the Service", || space.ask(&format!("{name}:80"), "/v2/models/digits").ok());
        assert_eq!(serde_json::from_str::<Value>(&model).expect("JSON")["name"], "digits");
        let seen = |pod: &String| space.ask(&format!("pod/{pod}:4179"), "/metrics").is_ok_and(|metrics| metrics.contains("steadfast_requests_total{"));
        assert!(pods.iter().any(seen), "{kind}: users go through the sidecar");
    }
    // A stateful pod comes back under its name, with its sidecar.
    space.kubectl(&["delete", "pod", "statefulset-0"]).expect("deleted");
    space.wait_ready("app=statefulset", 2);
    assert!(has_sidecar(&space, "statefulset-0"));
}

#[test]
fn a_job_of_an_injected_namespace_finishes_and_so_does_one_that_fails() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("jobs", "steadfast.dev/inject: 'true'");
    for (name, args, end) in [("good", "[golden, show, /golden-sets/digits]", "Complete"), ("bad", "[golden, show, /nowhere]", "Failed")] {
        space.apply(&format!(
            "{{apiVersion: batch/v1, kind: Job, metadata: {{name: {name}}}, spec: {{backoffLimit: 0, template: {{spec: {{restartPolicy: Never, containers: [{{name: batch, image: \
             '{IMAGE}', imagePullPolicy: Never, args: {args}, ports: [{{name: http, containerPort: 8000}}]}}]}}}}}}}}"
        ));
        space.wait(60, format_args!("a Job that is {end}"), || space.get(&format!("job/{name}")).filter(|job| condition(job, end).as_deref() == Some("True")));
        let pods = space.pods(&format!("job-name={name}"));
        assert!(pods.len() == 1 && has_sidecar(&space, &pods[0]), "{pods:?}");
    }
}
