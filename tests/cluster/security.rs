//! What docs/security.md claims of rights and ports, asked of a real API server and a real pod.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use steadfast_golden_sets::set;

use crate::{
    experiments::{ASKS, digits, run_with, test},
    golden::{digits_set, servers},
    harness::{Cluster, IMAGE, Installation, Namespace, cluster, cluster_alone, cluster_for_a_run, condition, output},
    install::{POLICIES_SINCE, install, install_anew, install_with},
    sources::{self, HERE, Store},
    truth::pod_of,
};

fn may(cluster: &Cluster, who: &str, namespace: &str, verb: &str, what: &str) -> bool {
    // After a slash kubectl expects a name.
    let (resource, part) = what.split_once('/').unwrap_or((what, ""));
    let part = format!("--subresource={part}");
    // The answer is also its exit status.
    cluster.kubectl(&["auth", "can-i", verb, resource, &part, "--namespace", namespace, "--as", who]).is_ok()
}

#[test]
fn nobody_has_a_right_that_was_not_asked_for() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    let space = cluster.namespace("rights");
    for (values, granted) in
        [(&[][..], false), (&["nodeAgent.enabled=true", "failures.nodes=true", "failures.workloads=true", "failures.cpuPressureOnNodes=true"][..], true)]
    {
        let installed = install_with(&cluster, if granted { values } else { &["failures.workloads=false", "users.ownPod=false"] });
        let account = |name: &str| format!("system:serviceaccount:{}:{name}", installed.system);
        let controller = account("steadfast-controller");
        let others = space.name();
        for (verb, what, wanted) in [
            ("delete", "pods", true),
            ("create", "pods", false),
            ("create", "pods/exec", false),
            ("get", "secrets", false),
            ("list", "secrets", false),
            ("create", "clusterrolebindings.rbac.authorization.k8s.io", false),
            ("patch", "nodes", granted),
            ("patch", "deployments.apps", granted),
            ("delete", "deployments.apps", false),
            ("create", "nodefaults.steadfast.dev", false),
        ] {
            assert_eq!(may(&cluster, &controller, others, verb, what), wanted, "the controller in other namespaces, values {values:?}: {verb} {what}");
        }
        assert!(may(&cluster, &controller, &installed.system, "create", "nodefaults.steadfast.dev"));
        assert_eq!(may(&cluster, &controller, &installed.system, "create", "pods"), granted, "pods that burn, and pods of users");
        assert!(!may(&cluster, &controller, &installed.system, "list", "secrets"), "of its own namespace it reads the one that holds its certificates");
        let agent = account("steadfast-agent");
        for (verb, what, wanted) in [
            ("list", "nodefaults.steadfast.dev", granted),
            ("create", "nodefaults.steadfast.dev", false),
            ("patch", "nodefaults.steadfast.dev", false),
            ("get", "secrets", false),
            ("delete", "pods", false),
        ] {
            assert_eq!(may(&cluster, &agent, &installed.system, verb, what), wanted, "the agent, values {values:?}: {verb} {what}");
        }
    }
    // Pods that read golden sets are made where that is granted, and nowhere else.
    {
        let ungranted = cluster.namespace("ungranted");
        let installed = install_with(&cluster, &[&format!("goldenSets.readerNamespaces={{{}}}", space.name())]);
        let controller = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
        for (namespace, verb, what, wanted) in
            [(&space, "create", "pods", true), (&space, "get", "secrets", false), (&space, "create", "pods/exec", false), (&ungranted, "create", "pods", false)]
        {
            assert_eq!(may(&cluster, &controller, namespace.name(), verb, what), wanted, "readers, in {}: {verb} {what}", namespace.name());
        }
    }
    // People, by Kubernetes' own roles.
    let installed = install(&cluster);
    let controller = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
    // The right to make users' pods goes with the policy that narrows it.
    let narrowed = !cluster.is_before(POLICIES_SINCE);
    for (verb, what, wanted) in [("create", "pods", narrowed), ("patch", "pods", false), ("create", "pods/exec", false), ("get", "pods/log", false)] {
        assert_eq!(may(&cluster, &controller, &installed.system, verb, what), wanted, "pods of users: {verb} {what}");
    }
    for role in ["edit", "view"] {
        space.kubectl(&["create", "rolebinding", role, &format!("--clusterrole={role}"), &format!("--user={role}or")]).expect("bound");
    }
    let elsewhere = cluster.namespace("elsewhere");
    space.wait(20, "aggregated roles", || may(&cluster, "editor", space.name(), "create", "resiliencetests.steadfast.dev").then_some(()));
    for (who, namespace, verb, what, wanted) in [
        ("editor", &space, "create", "faultpolicies.steadfast.dev", true),
        ("editor", &space, "create", "nodefaults.steadfast.dev", false),
        ("editor", &elsewhere, "create", "resiliencetests.steadfast.dev", false),
        ("viewor", &space, "get", "resiliencetests.steadfast.dev", true),
        ("viewor", &space, "create", "resiliencetests.steadfast.dev", false),
    ] {
        assert_eq!(may(&cluster, who, namespace.name(), verb, what), wanted, "{who} in {}: {verb} {what}", namespace.name());
    }
}

#[test]
fn the_admin_port_is_reached_from_its_own_pod_alone() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("ports", ASKS);
    digits(&space, 1);
    let pods = space.list("pods");
    let address = pods[0]["status"]["podIP"].as_str().expect("an address").to_owned();
    let reached = |port: u16| {
        let address: SocketAddr = format!("{address}:{port}").parse().expect("an address");
        cluster.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok())
    };
    if !cluster.is_elsewhere() {
        assert!(reached(4180) && reached(4179), "users and kubelet get in");
        assert!(!reached(4178), "the admin port listens on loopback alone");
    }
    // Neither does the way of users lead there, however they ask; what would be seen is there to be seen.
    space.apply(&format!(
        "{{apiVersion: steadfast.dev/v1alpha1, kind: FaultPolicy, metadata: {{name: {MARKER}}}, spec: {{selector: {{matchLabels: {{app: digits}}}}, expiresAfter: 5m, \
         budget: {{concurrent: 1, share: 1%}}}}}}"
    ));
    space.wait(30, "a policy in force", || (space.get(&format!("faultpolicy/{MARKER}"))?["status"]["podsArmed"] == 1).then_some(()));
    let forward = Forward::to(&cluster, space.name(), pods[0]["metadata"]["name"].as_str().expect("a name"));
    let policies = |host: &str| format!("GET /policy HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let seen =
        space.wait(20, "the admin port, from within", || exchange(&cluster, forward.0, &policies("127.0.0.1:4178")).filter(|said| said.contains(" 200 ")));
    assert!(seen.contains(MARKER), "{seen}");
    if cluster.is_elsewhere() {
        return;
    }
    let users: SocketAddr = format!("{address}:4180").parse().expect("an address");
    for request in [
        policies("127.0.0.1:4178"),
        policies("localhost:4178"),
        policies(&users.to_string()),
        "GET http://127.0.0.1:4178/policy HTTP/1.1\r\nHost: 127.0.0.1:4178\r\nConnection: close\r\n\r\n".to_owned(),
        "CONNECT 127.0.0.1:4178 HTTP/1.1\r\nHost: 127.0.0.1:4178\r\n\r\nGET /policy HTTP/1.1\r\nHost: 127.0.0.1:4178\r\nConnection: close\r\n\r\n".to_owned(),
        "DELETE /policy HTTP/1.1\r\nHost: 127.0.0.1:4178\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let said = exchange(&cluster, users, &request).unwrap_or_else(|| panic!("no answer to {request}"));
        assert!(said.starts_with("HTTP/1.1 ") && !said.contains(MARKER), "{request}\n{said}");
    }
    assert!(exchange(&cluster, forward.0, &policies("127.0.0.1:4178")).is_some_and(|said| said.contains(MARKER)), "and nothing was disarmed");
}

/// What pods of the controller's own namespace could have of it.
const OF_THE_NAMESPACE: [&str; 6] = [
    "}], serviceAccountName: steadfast-controller}",
    "}], volumes: [{name: stolen, secret: {secretName: steadfast-certificates}}]}",
    "}], volumes: [{name: stolen, projected: {sources: [{secret: {name: steadfast-certificates}}]}}]}",
    "}], volumes: [{name: token, projected: {sources: [{serviceAccountToken: {path: token}}]}}]}",
    ", envFrom: [{secretRef: {name: steadfast-certificates}}]}]}",
    ", env: [{name: STOLEN, valueFrom: {secretKeyRef: {name: steadfast-certificates, key: tls.key}}}]}]}",
];

#[test]
fn whoever_has_the_controllers_token_makes_users_in_its_namespace_and_nothing_else() {
    let Some(cluster) = cluster_alone(Installation::Default) else { return };
    if cluster.lacks("ValidatingAdmissionPolicy", POLICIES_SINCE) {
        return;
    }
    let installed = install(&cluster);
    let account = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
    let make = |image: &str, more: &str| {
        let container = format!("image: '{image}', imagePullPolicy: Never");
        let spec = "automountServiceAccountToken: false, containers";
        let pod = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: made}}, spec: {{{spec}: [{{name: users, {container}{more}}}");
        let mut command = cluster.command("kubectl");
        command.args(["--as", &account, "--namespace", &installed.system, "create", "--dry-run=server", "-f", "-"]);
        output(&mut command, Some(&pod))
    };
    let token = "volumes: [{name: token, projected: {sources: [{serviceAccountToken: {path: token, audience: steadfast.dev}}]}}]";
    make(IMAGE, &format!(", args: [users, '--controller=https://x:1']}}], {token}}}")).unwrap_or_else(|why| panic!("as users are made: {why}"));
    let others = [", args: [controller]}]}", "}]}", ", command: [/bin/steadfast], args: [users]}]}", ", args: [users]}, {name: b, image: other}]}"];
    for (image, more) in others.map(|more| (IMAGE, more)).into_iter().chain([("steadfast.test/pause:1", ", args: [users]}]}")]) {
        let why = make(image, more).expect_err("it is denied");
        assert!(why.contains("ValidatingAdmissionPolicy") && why.contains("users of tests, of its own image"), "{image} {more}: {why}");
    }
    for more in OF_THE_NAMESPACE {
        let why = make(IMAGE, &more.replacen('}', ", args: [users]}", usize::from(more.starts_with('}')))).expect_err("it is denied");
        assert!(why.contains("ValidatingAdmissionPolicy"), "{more}: {why}");
    }
}

/// A policy's name that stands in no model server's answer.
const MARKER: &str = "marker-of-the-admin-port";

/// The admin port of a pod as seen from its own loopback, by `kubectl port-forward`.
struct Forward(SocketAddr, Child);

impl Forward {
    fn to(cluster: &Cluster, namespace: &str, pod: &str) -> Self {
        let port = 14_178;
        let mut command = cluster.command("kubectl");
        command.args(["--namespace", namespace, "port-forward", &format!("pod/{pod}"), &format!("{port}:4178")]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("kubectl runs");
        Self(SocketAddr::from(([127, 0, 0, 1], port)), child)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.1.kill();
        let _ = self.1.wait();
    }
}

/// What comes back within two seconds; `None`: nobody listens.
fn exchange(cluster: &Cluster, to: SocketAddr, request: &str) -> Option<String> {
    cluster.inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut said = Vec::new();
        // A connection that stays open has said what it had to say.
        let _ = stream.read_to_end(&mut said);
        (!said.is_empty()).then(|| String::from_utf8_lossy(&said).into_owned())
    })
}

#[test]
fn a_sidecars_token_speaks_for_its_own_pod_and_to_nobody_but_the_controller() {
    let Some(cluster) = cluster() else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let installed = install(&cluster);
    let space = cluster.namespace_with("tokens", ASKS);
    digits(&space, 2);
    let pods = space.list("pods");
    let [a, b] = [0, 1].map(|index| (pods[index]["metadata"]["name"].as_str().expect("a name"), pods[index]["metadata"]["uid"].as_str().expect("a UID")));
    // As kubelet asks for it.
    let token = |audience: &[&str]| {
        let mut args = vec!["create", "token", "default", "--bound-object-kind=Pod", "--bound-object-name", a.0, "--bound-object-uid", a.1];
        args.extend(audience);
        space.kubectl(&args).expect("a token").trim().to_owned()
    };
    let ours = token(&["--audience=steadfast.dev"]);
    let service =
        cluster.kubectl(&["--namespace", &installed.system, "get", "service/steadfast-sidecars", "-o", "jsonpath={.spec.clusterIP}"]).expect("a Service");
    // A connection that was opened stays so until curl gives up on it.
    let dial = |uid: &str, token: &str| {
        let url = format!("https://{service}:4193/v1alpha1/connection?uid={uid}");
        let bearer = format!("Authorization: Bearer {token}");
        let mut curl = cluster.command("curl");
        curl.args(["--silent", "--insecure", "--http1.1", "--max-time", "3", "--write-out", "%{http_code}", "--output", "/dev/null"]);
        let ran = curl.args(["--header", "Connection: Upgrade", "--header", "Upgrade: steadfast-sidecar", "--header", &bearer, &url]).output().expect("curl");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    assert_eq!(dial(a.1, &ours), "101", "{}", installed.state());
    assert_eq!(dial(b.1, &ours), "403", "for another pod");
    assert_eq!(dial(a.1, &token(&[])), "401", "the token of another audience");
    assert_eq!(dial(a.1, "nonsense"), "401");
    // To the API server it is nobody's token.
    let server = cluster.kubectl(&["get", "service/kubernetes", "-o", "jsonpath={.spec.clusterIP}"]).expect("a Service");
    let ask = |token: &str| {
        let mut curl = cluster.command("curl");
        curl.args([
            "--silent",
            "--insecure",
            "--max-time",
            "5",
            "--write-out",
            "%{http_code}",
            "--output",
            "/dev/null",
            "--header",
            &format!("Authorization: Bearer {token}"),
        ]);
        String::from_utf8_lossy(&curl.arg(format!("https://{server}/api/v1/namespaces/{}/pods", space.name())).output().expect("curl").stdout).into_owned()
    };
    assert_eq!(ask(&ours), "401");
    assert_eq!(ask(&token(&[])), "403", "as the pod's own account it is known, and may do nothing");
}

#[test]
fn whoever_has_the_controllers_token_meets_what_its_roles_cannot_say() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if cluster.lacks("ValidatingAdmissionPolicy", POLICIES_SINCE) {
        return;
    }
    // The last one gives a right to make pods.
    let installed = install_with(&cluster, &["nodeAgent.enabled=true", "failures.cpuPressureOnNodes=true"]);
    let (allows, refuses) = (cluster.namespace_with("allows", "steadfast.dev/faults: allowed"), cluster.namespace("refuses"));
    for space in [&allows, &refuses] {
        space.apply(
            "{apiVersion: v1, kind: Pod, metadata: {name: idle}, spec: {containers: [{name: pause, image: 'steadfast.test/pause:1', imagePullPolicy: Never}]}}",
        );
        space.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}, data: {a: b}}");
    }
    let account = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
    let as_controller = |namespace: &str, args: &[&str], input: Option<&str>| {
        let mut command = cluster.command("kubectl");
        command.args(["--as", &account, "--namespace", namespace]).args(args);
        output(&mut command, input)
    };
    let denied = |answer: Result<String, String>, says: &str| {
        let why = answer.expect_err("it is denied");
        assert!(why.contains("ValidatingAdmissionPolicy") && why.contains(says), "{why}");
    };
    // Policies are in force some moments after they are made.
    refuses.wait(20, "policies in force", || as_controller(refuses.name(), &["delete", "pod/idle", "--dry-run=server"], None).is_err().then_some(()));
    denied(as_controller(refuses.name(), &["delete", "pod/idle", "--dry-run=server"], None), "steadfast.dev/faults=allowed");
    as_controller(allows.name(), &["delete", "pod/idle", "--dry-run=server"], None).expect("where faults are allowed");
    let eviction = |space: &Namespace<'_>| {
        let body =
            format!("{{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {{\"name\": \"idle\", \"namespace\": \"{}\"}}}}", space.name());
        let path = format!("/api/v1/namespaces/{}/pods/idle/eviction?dryRun=All", space.name());
        as_controller(space.name(), &["create", "--raw", &path, "-f", "-"], Some(&body))
    };
    denied(eviction(&refuses), "steadfast.dev/faults=allowed");
    eviction(&allows).expect("where faults are allowed");
    for space in [&allows, &refuses] {
        let taken = as_controller(space.name(), &["patch", "configmap/settings", "--type=merge", "-p", r#"{"data": {"a": "c"}}"#], None);
        denied(taken, "belong to a ResilienceTest");
        // Nor may it be called a report.
        let claimed = r#"{"metadata": {"ownerReferences": [{"apiVersion": "steadfast.dev/v1alpha1", "kind": "ResilienceTest", "name": "x", "uid": "x"}]}}"#;
        denied(as_controller(space.name(), &["patch", "configmap/settings", "--type=merge", "-p", claimed], None), "belong to a ResilienceTest");
    }
    let pod = |more: &str| {
        let container = "image: 'steadfast.test/pause:1', imagePullPolicy: Never";
        let spec = "automountServiceAccountToken: false, containers";
        let pod = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: made}}, spec: {{{spec}: [{{name: pause, {container}{more}}}");
        as_controller(&installed.system, &["create", "--dry-run=server", "-f", "-"], Some(&pod))
    };
    pod("}]}").expect("as its burners are made");
    for more in
        ["}], hostNetwork: true}", "}], hostPID: true}", "}], volumes: [{name: node, hostPath: {path: /}}]}", ", securityContext: {privileged: true}}]}"]
    {
        denied(pod(more), "no network, process or file of their node");
    }
    for more in OF_THE_NAMESPACE {
        denied(pod(more), "no account, no Secret");
    }
    let webhook = ["patch", "mutatingwebhookconfiguration/steadfast", "--type=json", "-p"];
    for change in [
        r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]"#,
        r#"[{"op": "remove", "path": "/webhooks/0/namespaceSelector"}]"#,
        r#"[{"op": "replace", "path": "/webhooks/1/rules/0/resources", "value": ["secrets"]}]"#,
        r#"[{"op": "replace", "path": "/webhooks/0/clientConfig/service/namespace", "value": "default"}]"#,
    ] {
        denied(as_controller("default", &[&webhook[..], &[change]].concat(), None), "caBundle");
    }
    // An agent's account without its pod's node is no agent of any node.
    let fault = "{apiVersion: steadfast.dev/v1alpha1, kind: NodeFault, metadata: {name: forged}, spec: {node: nowhere, fault: {partition: {}}, lasts: 1s, notAfter: '2026-01-01T00:00:00Z'}}";
    let system = ["--namespace", &installed.system];
    output(cluster.command("kubectl").args(system).args(["create", "-f", "-"]), Some(fault)).expect("made");
    let account = format!("system:serviceaccount:{}:steadfast-agent", installed.system);
    // Not `kubectl patch`, which reads the status first: agents may not.
    let healed = r#"{"apiVersion": "steadfast.dev/v1alpha1", "kind": "NodeFault", "metadata": {"name": "forged"}, "status": {"phase": "Healed"}}"#;
    let apply = ["apply", "--server-side", "--subresource=status", "--validate=false", "-f", "-"];
    denied(output(cluster.command("kubectl").args(["--as", &account]).args(system).args(apply), Some(healed)), "its own node");
    cluster.kubectl(&[&system[..], &["delete", "nodefault/forged"]].concat()).expect("deleted");
}

#[test]
fn who_may_not_make_tests_in_a_namespace_cannot_fault_it() {
    let Some(cluster) = cluster_for_a_run() else { return };
    let installed = install(&cluster);
    let (mine, theirs) = (cluster.namespace_with("mine", "steadfast.dev/inject: 'true'"), cluster.namespace_with("theirs", ASKS));
    let user = format!("user-of-{}", mine.name());
    mine.kubectl(&["create", "rolebinding", "edit", "--clusterrole=edit", &format!("--user={user}")]).expect("bound");
    let make = |space: &Namespace<'_>, kind: &str, spec: &str| {
        let mut command = cluster.command("kubectl");
        command.args(["--as", &user, "--namespace", space.name(), "create", "-f", "-"]);
        output(&mut command, Some(&format!("{{apiVersion: steadfast.dev/v1alpha1, kind: {kind}, metadata: {{name: wish}}, spec: {spec}}}")))
    };
    let kill = "{target: {selector: {matchLabels: {app: digits}}}, steps: [{name: killed, podKill: {pods: {mode: one}}}], stable: {within: 10s, hold: 1s}}";
    let slow = "{selector: {matchLabels: {app: digits}}, expiresAfter: 5m, budget: {concurrent: 9, share: 100%}, rules: [{faults: [{delay: {fixed: 1s}}]}]}";
    for (kind, spec) in [("ResilienceTest", kill), ("FaultPolicy", slow), ("NodeFault", "{node: n1, fault: {partition: {}}, lasts: 1s, notAfter: x}")] {
        let why = make(&theirs, kind, spec).expect_err("no right there");
        assert!(why.contains("orbidden") && why.contains(&user), "{kind}: {why}");
    }
    // With the right, and without its namespace's word, it is refused, and said.
    mine.wait(20, "aggregated roles", || may(&cluster, &user, mine.name(), "create", "resiliencetests.steadfast.dev").then_some(()));
    digits(&mine, 1);
    let pods = mine.pods("app=digits");
    make(&mine, "ResilienceTest", kill).expect("made");
    let said = mine.wait(60, format_args!("a refusal\n{}", installed.state()), || {
        let status = mine.get("resiliencetest/wish")?["status"].clone();
        (status["phase"] == "Refused").then(|| status["reason"].as_str().unwrap_or_default().to_owned())
    });
    assert!(said.contains("steadfast.dev/faults=allowed"), "{said}");
    make(&mine, "FaultPolicy", slow).expect("made");
    mine.wait(30, "a policy that is not in force", || {
        let status = mine.get("faultpolicy/wish")?["status"].clone();
        (status["conditions"][0]["status"] == "False" && status["podsArmed"] == 0).then_some(())
    });
    assert_eq!(mine.pods("app=digits"), pods);
    // What it is, and why, is told at a glance.
    let table = mine.kubectl(&["get", "faultpolicies"]).expect("a table");
    let reason = mine.get("faultpolicy/wish").expect("it is there")["status"]["conditions"][0]["reason"].as_str().expect("a reason").to_owned();
    assert!(table.contains("REASON") && table.contains(&reason) && !table.contains("<invalid>"), "{table}");
}

/// A pod that dials others.
struct Dialler {
    /// One of its processes, on this machine.
    process: i32,
}

impl Dialler {
    fn start(space: &Namespace<'_>) -> Self {
        space.apply(
            "{apiVersion: v1, kind: Pod, metadata: {name: dialler}, spec: {containers: [{name: pause, image: 'steadfast.test/pause:1', imagePullPolicy: Never}]}}",
        );
        let pod = space.wait(60, "a pod that dials", || space.get("pod/dialler").filter(|pod| condition(pod, "Ready").as_deref() == Some("True")));
        let uid = pod["metadata"]["uid"].as_str();
        let processes = std::fs::read_dir("/proc").expect("it is Linux").flatten();
        let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self { process: processes.find(|process| pod_of(*process).as_deref() == uid).expect("a process of this machine") }
    }

    fn reaches(&self, address: &str) -> bool {
        let network = File::open(format!("/proc/{}/ns/net", self.process)).expect("it runs");
        let dial = || {
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter it");
            reaches(address)
        };
        thread::scope(|scope| scope.spawn(dial).join().expect("no panic"))
    }
}

/// From the network of this thread. Whoever leads is the only one that listens for sidecars; what the other refuses has reached it.
fn reaches(address: &str) -> bool {
    let dialled = TcpStream::connect_timeout(&address.parse().expect("an address"), Duration::from_secs(2));
    dialled.err().is_none_or(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// A namespace that lets nothing in and nothing out but what docs/security.md names, and what its readers fetch from.
fn narrow(system: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: nothing}}
spec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: users}}
spec:
  podSelector: {{matchLabels: {{app: digits}}}}
  ingress:
    - from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {system}}}}}, podSelector: {{matchLabels: {{steadfast.dev/part: users}}}}}}]
      ports: [{{port: http}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: controller}}
spec:
  podSelector: {{}}
  policyTypes: [Egress]
  egress:
    - to: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {system}}}}}}}]
      ports: [{{port: 4193}}]
    - ports: [{{port: 53, protocol: UDP}}, {{port: 53}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: readers}}
spec:
  podSelector: {{matchLabels: {{steadfast.dev/part: golden-reader}}}}
  policyTypes: [Egress]
  egress: [{{to: [{{ipBlock: {{cidr: {HERE}/32}}}}]}}]
"
    )
}

#[test]
fn where_network_policies_are_enforced_everything_works_and_nobody_else_gets_in() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let (strangers, watchers) = (cluster.namespace("strangers"), cluster.namespace("watchers"));
    let (stranger, watcher) = (Dialler::start(&strangers), Dialler::start(&watchers));
    let server = cluster.kubectl(&["get", "service/kubernetes", "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}"]).expect("a Service");
    assert!(stranger.reaches(&server), "nothing is forbidden yet");
    strangers.apply("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nothing}, spec: {podSelector: {}, policyTypes: [Egress]}}");
    let began = Instant::now();
    while stranger.reaches(&server) {
        if began.elapsed() > Duration::from_secs(10) {
            eprintln!("not run: nobody enforces NetworkPolicies here; after CLUSTER_NETWORK_POLICIES=1 tests/cluster/cluster up, somebody does");
            return;
        }
        thread::sleep(Duration::from_millis(200));
    }
    strangers.kubectl(&["delete", "networkpolicy/nothing"]).expect("deleted");
    strangers.wait(10, "a way out", || stranger.reaches(&server).then_some(()));

    let (digits, buckets) = (digits_set(), sources::folder());
    std::fs::create_dir_all(buckets.path().join("models")).expect("made");
    std::fs::create_dir_all(buckets.path().join("reports")).expect("made");
    set::write(&digits, buckets.path().join("models/digits")).expect("written");
    let Some(store) = Store::start(&cluster, buckets.path(), 17_072, None) else { return };
    let space = cluster.namespace_with("narrow", ASKS);
    let readers = format!("goldenSets.readerNamespaces={{{}}}", space.name());
    let metrics = format!("networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name={}", watchers.name());
    let installed = install_anew(&cluster, &["networkPolicy.enabled=true", &metrics, &readers]);
    cluster.apply(&store.secret("reports", "right-secret", None).replace("metadata: {", &format!("metadata: {{namespace: {}, ", installed.system)));
    installed.upgrade(&["reports.url=s3://reports/steadfast", "reports.secret=reports"]);
    space.apply(&narrow(&installed.system));
    space.apply(&store.secret("models", "right-secret", None));
    // The API server reaches the webhook, kubelet the pods, and a reader the store.
    space.apply(&servers("web", 2, "/golden-sets/digits", "", ""));
    space.wait_injected("app=digits", 2);
    sources::apply(&space, "{objectStore: {url: 's3://models/digits', secretName: models}}", &digits.digest().to_string());
    sources::comes_to(&space, "Replaying");
    // Sidecars and users reach the controller, users the target, and the controller the store.
    let variables = [
        ("AWS_ENDPOINT", store.endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "steadfast"),
        ("AWS_SECRET_ACCESS_KEY", "right-secret"),
    ];
    let steps = "  golden: [{set: digits, every: 100ms}]\n  baseline: 4s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 20ms}, for: 2s}, {name: killed, podKill: {pods: {mode: one}}}]\n  stable: {within: 90s, hold: 2s}\n";
    let ended = run_with(&cluster, &space, &test("narrow", steps), &variables);
    let report = ended.report.as_ref().unwrap_or_else(|| panic!("{}\n{}", ended.said, installed.state()));
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.said, installed.state());
    let asked = report.run.notes.iter().find(|note| note.starts_with("Users ask by Service")).unwrap_or_else(|| panic!("{:?}", report.run.notes));
    assert!(asked.contains("from pod steadfast-users-"), "{asked}");
    assert!(report.total.availability.attempted > 100 && report.total.consistency.ratio == Some(1.0), "{}", ended.said);
    assert!(report.pods.iter().any(|pod| pod.golden.iter().any(|point| point.matched > 0)), "{}", ended.said);

    let address = |pod: &serde_json::Value| pod["status"]["podIP"].as_str().expect("an address").to_owned();
    let controllers = cluster.objects("pods", Some(&installed.system), "app.kubernetes.io/name=steadfast");
    assert!(!controllers.is_empty());
    for controller in controllers.iter().map(address) {
        // What has no pod comes as the API server does.
        for (port, by_stranger, by_watcher, by_none) in [(9443, true, true, true), (4193, true, true, false), (8080, false, true, false)] {
            let to = format!("{controller}:{port}");
            assert_eq!(stranger.reaches(&to), by_stranger, "a stranger, port {port}");
            assert_eq!(watcher.reaches(&to), by_watcher, "who reads metrics, port {port}");
            assert_eq!(cluster.inside(|| reaches(&to)), by_none, "from outside, port {port}");
        }
    }
    for target in space.list("pods").iter().map(address) {
        for port in [4178, 4179, 4180, 8000] {
            assert!(!stranger.reaches(&format!("{target}:{port}")), "a stranger, port {port} of the target");
        }
    }
}
