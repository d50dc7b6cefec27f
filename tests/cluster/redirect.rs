//! Pods that ask to be redirected: numbers lead through the sidecar, probes do not, and nobody has it who did not ask or may not.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    harness::{Cluster, IMAGE, Installation, Namespace, STEADFAST, cluster, cluster_alone, output},
    install::install_with,
};

const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed";

/// A server whose port has no name, with probes by number, and a Service by number.
fn by_number(name: &str, annotation: &str, port: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}, annotations: {{{annotation}}}}}
spec:
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  terminationGracePeriodSeconds: 1
  containers:
    - name: server
      image: {IMAGE}
      imagePullPolicy: Never
      args: [serve, /golden-sets/digits, --host, 0.0.0.0, --port, '8000']
      ports: [{port}]
      readinessProbe: {{httpGet: {{path: /v2/health/ready, port: 8000}}, periodSeconds: 1, failureThreshold: 1}}
      livenessProbe: {{httpGet: {{path: /v2/health/live, port: 8000}}, periodSeconds: 1, failureThreshold: 2}}
      resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}
      securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8000}}]}}
"
    )
}

/// Head of the answer to a GET at an address of the cluster.
fn asked(cluster: &Cluster, to: &str) -> Result<String, String> {
    let to: SocketAddr = to.parse().expect("an address");
    cluster.inside(|| {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /v2/models/digits HTTP/1.1\r\nhost: digits\r\nconnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        ask().map_err(|error| error.to_string())
    })
}

fn address(space: &Namespace<'_>, what: &str, field: &str) -> String {
    let object = space.get(what).expect("it is there");
    object.pointer(field).and_then(|value| value.as_str()).expect("an address").to_owned()
}

fn told(space: &Namespace<'_>, about: &str, reason: &str) -> bool {
    space.list("events").iter().any(|event| event["involvedObject"]["name"] == about && event["reason"] == reason)
}

#[test]
fn numbers_lead_through_the_sidecar_of_who_asked_and_probes_do_not() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install_with(&cluster, &["redirect.allowed=true"]);
    let space = cluster.namespace_with("redirect", ASKS);
    let restricted = cluster.namespace_with("noredirect", &format!("{ASKS}, pod-security.kubernetes.io/enforce: restricted"));
    let redirect = "steadfast.dev/interception: redirect";
    space.apply(&by_number("numbered", redirect, "{containerPort: 8000}"));
    space.apply(&by_number("plain", "", "{name: http, containerPort: 8000}"));
    restricted.apply(&by_number("numbered", redirect, "{containerPort: 8000}"));
    space.wait_ready("app=numbered", 1);
    space.wait_ready("app=plain", 1);
    let pod = format!("{}:8000", address(&space, "pod/numbered", "/status/podIP"));
    let service = format!("{}:80", address(&space, "service/numbered", "/spec/clusterIP"));
    for to in [&pod, &service] {
        let answer = asked(&cluster, to).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("digits"), "{to}: {answer}\n{}", installed.state());
    }

    // Everything that users ask is refused, by whichever number; kubelet goes on finding the server well.
    space.apply(
        "apiVersion: steadfast.dev/v1alpha1
kind: FaultPolicy
metadata: {name: refuse}
spec:
  selector: {}
  expiresAfter: 5m
  budget: {concurrent: 100, share: 100%}
  rules: [{faults: [{abort: {httpStatus: 503}}]}]
",
    );
    let refused = |to: &str| asked(&cluster, to).is_ok_and(|answer| answer.starts_with("HTTP/1.1 503") && answer.contains("steadfast-injected"));
    space.wait(20, format_args!("faults by both numbers\n{}", installed.state()), || (refused(&pod) && refused(&service)).then_some(()));
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(500));
        let now = space.get("pod/numbered").expect("it is there");
        assert_eq!(crate::harness::condition(&now, "Ready").as_deref(), Some("True"), "{}", space.state());
        assert_eq!(now["status"]["containerStatuses"][0]["restartCount"], 0, "{}", space.state());
    }
    // Who did not ask is led past its sidecar by the number, and that is told; of who asked it is not.
    let past = format!("{}:80", address(&space, "service/plain", "/spec/clusterIP"));
    assert!(asked(&cluster, &past).expect("an answer").starts_with("HTTP/1.1 200"));
    space.wait(30, "an Event about the Service", || told(&space, "plain", "BypassesSidecar").then_some(()));
    assert!(!told(&space, "numbered", "BypassesSidecar"));

    restricted.wait(60, "a reason", || told(&restricted, "numbered", "RedirectNotAllowed").then_some(()));
    let without = restricted.get("pod/numbered").expect("it is let in");
    assert!(without["spec"]["initContainers"].is_null(), "{without:#}");
}

#[test]
fn without_the_charts_value_nobody_is_redirected() {
    let Some(cluster) = cluster() else { return };
    let _installed = install_with(&cluster, &[]);
    let space = cluster.namespace_with("unallowed", ASKS);
    space.apply(&by_number("numbered", "steadfast.dev/interception: redirect", "{containerPort: 8000}"));
    space.wait(60, "a reason", || told(&space, "numbered", "RedirectNotAllowed").then_some(()));
    assert!(space.get("pod/numbered").expect("it is let in")["spec"]["initContainers"].is_null());
}

/// Two network namespaces on one cable, removed on drop.
struct Cable {
    inside: String,
    outside: String,
}

impl Cable {
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let cable = Self { inside: format!("sf-redirect-{id}-a"), outside: format!("sf-redirect-{id}-b") };
        let (a, b) = (cable.inside.as_str(), cable.outside.as_str());
        for line in [
            format!("netns add {a}"),
            format!("netns add {b}"),
            format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"),
            format!("-n {a} address add 192.0.2.1/24 dev eth0"),
            format!("-n {b} address add 192.0.2.2/24 dev eth0"),
            format!("-n {a} address add 2001:db8::1/64 dev eth0 nodad"),
            format!("-n {b} address add 2001:db8::2/64 dev eth0 nodad"),
            format!("-n {a} link set lo up"),
            format!("-n {a} link set eth0 up"),
            format!("-n {b} link set eth0 up"),
        ] {
            output(Command::new("ip").args(line.split(' ')), None)?;
        }
        Ok(cable)
    }
}

fn at(place: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", place, program]).stdin(Stdio::null());
    command
}

impl Drop for Cable {
    fn drop(&mut self) {
        for place in [&self.inside, &self.outside] {
            let _ = output(Command::new("ip").args(["netns", "delete", place]), None);
        }
    }
}

struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn both_families_are_redirected_and_loopback_is_not() {
    let Some(_cluster) = cluster() else { return };
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: network namespaces need root");
        return;
    }
    let cable = Cable::new().expect("two network namespaces");
    // Two servers that answer with the path of their folder: which of them, tells who was reached.
    let serve = |set: &str, port: &str| {
        let folder = crate::harness::root().join("golden-sets/sets").join(set);
        let mut command = at(&cable.inside, STEADFAST);
        command.arg("serve").arg(folder).args(["--host", "::", "--port", port]).stderr(Stdio::null());
        Ends(command.spawn().expect("it starts"))
    };
    let _servers = (serve("digits", "8000"), serve("recommender", "4180"));
    let reached = |place: &str, host: &str, port: u16| {
        let models = ["digits", "recommender"];
        let asks = |model: &str| {
            let url = format!("http://{host}:{port}/v2/models/{model}");
            output(at(place, "curl").args(["--silent", "--fail", "--globoff", "--max-time", "2", &url]), None).is_ok()
        };
        models.into_iter().find(|model| asks(model))
    };
    let (inside, outside) = (cable.inside.clone(), cable.outside.clone());
    for _ in 0..100 {
        if reached(&outside, "192.0.2.1", 8000).is_some() && reached(&outside, "192.0.2.1", 4180).is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(reached(&outside, "[2001:db8::1]", 8000), Some("digits"), "before there are rules");
    let rules = ["redirect", "--route", "8000=4180", "--probes", "4200=8000"];
    // Twice is as once.
    for _ in 0..2 {
        output(at(&inside, STEADFAST).args(rules), None).expect("rules");
    }
    for host in ["192.0.2.1", "[2001:db8::1]"] {
        assert_eq!(reached(&outside, host, 8000), Some("recommender"), "users of {host} reach the sidecar");
        assert_eq!(reached(&outside, host, 4200), Some("digits"), "probes of {host} reach the server");
    }
    for host in ["127.0.0.1", "[::1]"] {
        assert_eq!(reached(&inside, host, 8000), Some("digits"), "the sidecar reaches its server at {host}");
    }
}
