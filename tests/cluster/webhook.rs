//! Injection and policies on a cluster that has Steadfast installed.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    harness::{IMAGE, Installation, Namespace, cluster, cluster_alone, condition, recommender},
    install::install,
};

const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed, pod-security.kubernetes.io/enforce: restricted";

fn sidecar(pod: &Value) -> Option<&Value> {
    pod["spec"]["initContainers"].as_array()?.iter().find(|container| container["name"] == "steadfast-proxy")
}

/// Reason of a policy's condition.
fn standing(space: &Namespace<'_>, policy: &str) -> Option<String> {
    let policy = space.get(&format!("faultpolicy/{policy}"))?;
    Some(policy["status"]["conditions"][0]["reason"].as_str()?.to_owned())
}

fn slow(name: &str, expires: &str) -> String {
    format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: FaultPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: recommender}}}}
  expiresAfter: {expires}
  budget: {{concurrent: 100, share: 100%}}
  rules: [{{match: {{model: recommender}}, faults: [{{delay: {{fixed: 700ms}}}}]}}]
"
    )
}

/// How long an answer of the model takes by the Service.
fn latency(space: &Namespace<'_>) -> Duration {
    let began = Instant::now();
    space.ask("recommender:80", "/v2/models/recommender").expect("an answer");
    began.elapsed()
}

#[test]
fn a_namespace_that_asks_gets_sidecars_and_a_policy_is_armed_in_them_until_it_is_deleted() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("webhook", ASKS);
    for pod in space.recommender("recommender", 2, "") {
        let pod = space.get(&format!("pod/{pod}")).expect("it is there");
        assert!(sidecar(&pod).is_some(), "{pod:#}");
    }
    space.wait(10, "a quick answer", || (latency(&space) < Duration::from_millis(600)).then_some(()));
    space.apply(&slow("slow", "10m"));
    let policy = space.wait(20, format_args!("a policy in force\n{}", installed.state()), || {
        space.get("faultpolicy/slow").filter(|policy| policy["status"]["conditions"][0]["reason"] == "Armed")
    });
    assert_eq!((&policy["status"]["podsMatched"], &policy["status"]["podsArmed"]), (&2.into(), &2.into()), "{policy:#}");
    assert!(latency(&space) >= Duration::from_millis(700));
    // A pod that comes later has it too.
    space.kubectl(&["scale", "deployment/recommender", "--replicas=3"]).expect("scaled");
    space.wait_ready("app=recommender", 3);
    space.wait(20, "the policy in three pods", || {
        let policy = space.get("faultpolicy/slow")?;
        (policy["status"]["podsArmed"] == 3).then_some(())
    });
    space.kubectl(&["delete", "faultpolicy/slow"]).expect("deleted");
    space.wait(20, "quick answers", || (0..6).all(|_| latency(&space) < Duration::from_millis(600)).then_some(()));
}

#[test]
fn a_policy_that_no_sidecar_would_take_is_invalid_and_stands_in_no_others_way() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("invalid", ASKS);
    space.recommender("recommender", 1, "");
    space.apply(&slow("good", "10m"));
    space.wait(20, format_args!("a policy in force\n{}", installed.state()), || (standing(&space, "good")? == "Armed").then_some(()));
    space.apply(&slow("bad", "10m").replace("{model: recommender}", "{path: {regex: '('}}"));
    space.wait(20, "a policy that is refused", || (standing(&space, "bad")? == "Invalid").then_some(()));
    let message = space.get("faultpolicy/bad").expect("it is there")["status"]["conditions"][0]["message"].to_string();
    assert!(message.contains("spec.rules[0].match.path.regex") && message.contains("unclosed group"), "{message}");
    assert!(latency(&space) >= Duration::from_millis(700), "the good one is in force");
    space.kubectl(&["delete", "faultpolicy/good"]).expect("deleted");
    space.wait(20, "quick answers", || (latency(&space) < Duration::from_millis(600)).then_some(()));
}

#[test]
fn without_its_namespaces_leave_a_policy_arms_nothing_and_says_how_to_allow_it() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("forbidden", "steadfast.dev/inject: 'true'");
    space.recommender("recommender", 1, "");
    space.apply(&slow("slow", "10m"));
    space.wait(20, "a policy that is not allowed", || (standing(&space, "slow")? == "NotAllowed").then_some(()));
    assert!(latency(&space) < Duration::from_millis(600));
    let message = space.get("faultpolicy/slow").expect("it is there")["status"]["conditions"][0]["message"].to_string();
    assert!(message.contains("kubectl label namespace") && message.contains("steadfast.dev/faults=allowed"), "{message}");
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/faults=allowed"]).expect("labelled");
    space.wait(20, "a policy in force", || (standing(&space, "slow")? == "Armed").then_some(()));
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/faults-"]).expect("labelled");
    space.wait(20, "quick answers", || (latency(&space) < Duration::from_millis(600)).then_some(()));
}

#[test]
fn a_pod_that_a_limit_range_makes_guaranteed_is_let_in_with_its_sidecar() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("limited", "steadfast.dev/inject: 'true'");
    space.apply("{apiVersion: v1, kind: LimitRange, metadata: {name: most}, spec: {limits: [{type: Container, max: {cpu: 500m, memory: 512Mi}}]}}");
    space.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: server}}\nspec:\n  containers: [{{name: server, image: '{IMAGE}', imagePullPolicy: Never, args: [serve, /golden-sets/digits, --port, '18000'], \
         ports: [{{name: http, containerPort: 18000}}]}}]\n"
    ));
    let pod = space.get("pod/server").expect("it is let in");
    assert_eq!(pod["status"]["qosClass"], "Guaranteed", "{pod:#}");
    assert_eq!(sidecar(&pod).expect("it has one")["resources"]["limits"]["cpu"], "500m", "{pod:#}");
}

#[test]
fn a_pod_that_cannot_have_a_sidecar_starts_without_and_is_told_why() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("skipped", "");
    let pod = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{steadfast.dev/inject: 'true'}}}}\nspec:\n  {spec}\n  containers: [{{name: server, image: '{IMAGE}', \
             imagePullPolicy: Never, args: [serve, /golden-sets/digits, --port, '18000'], ports: [{{containerPort: 18000}}]}}]\n"
        )
    };
    let warned = space.try_apply(&pod("unnamed", "")).expect("it is let in");
    assert!(space.get("pod/unnamed").is_some_and(|pod| sidecar(&pod).is_none()), "{warned}");
    space.apply(&pod("host", "hostNetwork: true"));
    let warned = space.try_apply(&pod("mislabelled", "").replace("inject: 'true'", "inject: 'yes'")).expect("it is let in");
    assert!(space.get("pod/mislabelled").is_some_and(|pod| sidecar(&pod).is_none()), "{warned}");
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/inject=True"]).expect("labelled");
    space.wait(30, "an Event about the namespace's label", || {
        let about = |event: &&Value| event["involvedObject"]["kind"] == "Namespace" && event["reason"] == "NoSuchLabel";
        space.list("events").iter().find(about).map(|_| ())
    });
    for (pod, reason) in [("unnamed", "NoNamedPort"), ("host", "HostNetwork"), ("mislabelled", "NoSuchLabel")] {
        space.wait(30, "an Event that says why", || {
            let events = space.list("events");
            events.iter().find(|event| event["involvedObject"]["name"] == pod && event["reason"] == reason).map(|_| ())
        });
    }
}

#[test]
fn while_nobody_answers_pods_start_without_and_are_found_afterwards() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("away", "steadfast.dev/inject: 'true'");
    let scale = |replicas: u32| {
        cluster.kubectl(&["--namespace", &installed.system, "scale", "deployment/steadfast-controller", &format!("--replicas={replicas}")]).expect("scaled");
    };
    scale(0);
    space.wait(40, "no controller", || {
        cluster.kubectl(&["--namespace", &installed.system, "get", "pods", "-o", "name"]).ok().filter(|pods| pods.trim().is_empty())
    });
    let pods = space.recommender("recommender", 1, "");
    assert!(sidecar(&space.get(&format!("pod/{}", pods[0])).expect("it is there")).is_none());
    scale(2);
    space.wait(60, format_args!("an Event about the pod\n{}", installed.state()), || {
        space.list("events").iter().find(|event| event["reason"] == "NotInjected" && event["involvedObject"]["name"] == pods[0].as_str()).map(|_| ())
    });
    space.kubectl(&["delete", "pod", &pods[0]]).expect("deleted");
    let next = space.wait_ready("app=recommender", 1);
    assert!(sidecar(&space.get(&format!("pod/{}", next[0])).expect("it is there")).is_some(), "the next one has it");
}

#[test]
fn a_new_leader_takes_over_and_what_was_armed_stays() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("leader", ASKS);
    space.recommender("recommender", 1, "");
    space.apply(&slow("slow", "10m"));
    space.wait(20, "a policy in force", || (standing(&space, "slow")? == "Armed").then_some(()));
    let leader = || {
        let lease = cluster.kubectl(&["--namespace", &installed.system, "get", "lease/steadfast", "-o", "jsonpath={.spec.holderIdentity}"]).expect("a lease");
        lease.trim().to_owned()
    };
    let first = leader();
    cluster.kubectl(&["--namespace", &installed.system, "delete", "pod", &first, "--grace-period=0", "--force"]).expect("killed");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(25) {
        assert!(latency(&space) >= Duration::from_millis(700), "after {:?}", began.elapsed());
        let now = leader();
        if now != first && !now.is_empty() && began.elapsed() > Duration::from_secs(5) {
            break;
        }
    }
    assert_ne!(leader(), first, "{}", installed.state());
    // The new one is in charge: it takes away what the first one armed.
    space.kubectl(&["delete", "faultpolicy/slow"]).expect("deleted");
    space.wait(30, "quick answers", || (latency(&space) < Duration::from_millis(600)).then_some(()));
}

#[test]
fn what_leads_past_the_sidecar_is_found_and_told() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("bypass", "steadfast.dev/inject: 'true'");
    space.recommender("recommender", 1, "");
    space.apply("apiVersion: v1\nkind: Service\nmetadata: {name: by-number}\nspec: {selector: {app: recommender}, ports: [{port: 80, targetPort: 8000}]}\n");
    space.wait(30, "an Event about the Service", || {
        let events = space.list("events");
        let event = events.iter().find(|event| event["reason"] == "BypassesSidecar" && event["involvedObject"]["name"] == "by-number")?;
        event["message"].as_str().filter(|message| message.contains("8000") && message.contains("targetPort")).map(|_| ())
    });
    assert!(space.list("events").iter().all(|event| event["reason"] != "BypassesSidecar" || event["involvedObject"]["name"] != "recommender"));
    let pod = &space.list("pods")[0];
    assert_eq!(condition(pod, "Ready").as_deref(), Some("True"));
    assert_eq!(pod["metadata"]["annotations"]["steadfast.dev/routes"], "http=4180:8000");
    // Both names exist, so both Services have endpoints, and one of them is the sidecar's.
    assert!(recommender("recommender", 1, "").contains("targetPort: http"));
}

/// Every probe fails its pod at once if it meets a fault.
const PROBED: &str = "apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: server
      image: IMAGE
      imagePullPolicy: Never
      args: [serve, /golden-sets/digits, --host, 0.0.0.0, --port, '8000']
      ports: [{name: http, containerPort: 8000}]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      startupProbe: {exec: {command: [/bin/steadfast, --version]}, periodSeconds: 1}
      livenessProbe: {tcpSocket: {port: http}, periodSeconds: 1, failureThreshold: 1}
      readinessProbe: {httpGet: {path: /v2/health/ready, port: http}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: probed}
spec: {selector: {app: probed}, ports: [{name: http, port: 80, targetPort: http}]}
";
const EVERYTHING_FAILS: &str = "apiVersion: steadfast.dev/v1alpha1
kind: FaultPolicy
metadata: {name: everything}
spec:
  selector: {matchLabels: {app: probed}}
  expiresAfter: 5m
  budget: {concurrent: 100, share: 100%}
  rules: [{faults: [{abort: {httpStatus: 503}}]}]
  connections: [{share: 100%, fault: reset}]
";

#[test]
fn probes_of_every_kind_mean_the_server_and_meet_no_fault() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let space = cluster.namespace_with("probes", ASKS);
    space.apply(&PROBED.replace("IMAGE", IMAGE));
    let ask = || space.ask("probed:80", "/v2/models/digits");
    space.wait(60, "a pod that answers", || ask().ok());
    space.apply(EVERYTHING_FAILS);
    space.wait(20, format_args!("faults\n{}", installed.state()), || ask().err());
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        let pod = space.get("pod/probed").expect("it is there");
        let server = &pod["status"]["containerStatuses"][0];
        assert!(condition(&pod, "Ready").as_deref() == Some("True") && server["restartCount"] == 0, "{:#}", pod["status"]);
        assert!(ask().is_err(), "the policy is in force all the while");
        std::thread::sleep(Duration::from_millis(250));
    }
}
