//! Certificates that cert-manager makes, a real one: its controllers and its cainjector.

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::{Child, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    experiments::ASKS,
    harness::{Cluster, Installation, Namespace, cluster_alone, output},
    install::{Installed, install_anew},
};

/// Definitions of cert-manager that have a part in this.
const KINDS: [&str; 4] =
    ["crd/certificaterequests.cert-manager.io", "crd/certificates.cert-manager.io", "crd/clusterissuers.cert-manager.io", "crd/issuers.cert-manager.io"];

/// An issuer of somebody's own, for every namespace. Secrets of these are in cert-manager's namespace.
const OWN: &str = "apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: nobody}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: own, namespace: cert-manager}
spec: {isCA: true, commonName: own, secretName: own, privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Never}, issuerRef: {kind: ClusterIssuer, name: nobody}}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: own}
spec: {ca: {secretName: own}}
";

const POLICY: &str = "apiVersion: steadfast.dev/v1alpha1
kind: FaultPolicy
metadata: {name: policy}
spec:
  selector: {matchLabels: {app: recommender}}
  expiresAfter: 30m
  budget: {concurrent: 1, share: 1%}
  rules: [{match: {model: nobodys}, faults: [{delay: {fixed: 1ms}}]}]
";

/// cert-manager, until this is dropped.
struct CertManager<'a> {
    cluster: &'a Cluster,
    process: Child,
}

impl<'a> CertManager<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let kinds =
            output(cluster.command("sh").args(["-c", "kubectl apply --server-side -f \"$(dirname \"$(command -v cert-manager)\")/cert-manager.yaml\""]), None);
        kinds.unwrap_or_else(|why| panic!("{why}"));
        cluster.kubectl(&[&["wait", "--for=condition=Established", "--timeout=30s"][..], &KINDS].concat()).expect("established");
        cluster.kubectl(&["create", "namespace", "cert-manager"]).expect("made");
        let process = cluster.command("cert-manager").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        Self { cluster, process }
    }
}

impl Drop for CertManager<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = self.cluster.kubectl(&[&["delete", "--wait=false", "--ignore-not-found"][..], &KINDS].concat());
        let _ = self.cluster.kubectl(&["delete", "namespace", "cert-manager", "--wait=false"]);
    }
}

/// The installation, as those see it who are shown its certificates.
struct Seen<'a> {
    cluster: &'a Cluster,
    installed: &'a Installed<'a>,
}

impl Seen<'_> {
    fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        self.cluster.kubectl(&[&["--namespace", &self.installed.system], args].concat())
    }

    /// What the Secret of the controller's certificates has under a name; `None` while there is none.
    fn secret(&self, name: &str) -> Option<String> {
        let secret: Value = serde_json::from_str(&self.kubectl(&["get", "secret/steadfast-tls", "-o", "json", "--ignore-not-found"]).ok()?).ok()?;
        String::from_utf8(STANDARD.decode(secret["data"][name].as_str()?).ok()?).ok()
    }

    /// Addresses of the controller's pods that stay.
    fn addresses(&self) -> Vec<String> {
        let pods = self.cluster.objects("pods", Some(&self.installed.system), "app.kubernetes.io/name=steadfast");
        let stay = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        stay.filter_map(|pod| pod["status"]["podIP"].as_str()).map(str::to_owned).collect()
    }

    /// As `cmctl renew` asks for it.
    fn renew(&self, certificate: &str) {
        let condition = json!({ "type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "", "lastTransitionTime": jiff::Timestamp::now().to_string() });
        let patch = json!([{ "op": "add", "path": "/status/conditions/-", "value": condition }]).to_string();
        self.kubectl(&["patch", &format!("certificates.cert-manager.io/{certificate}"), "--subresource=status", "--type=json", "-p", &patch]).expect("patched");
    }

    /// Waits until every replica shows another certificate than `before`: the one that the Secret holds. From when kubelet has written it. Returns it.
    fn shown(&self, space: &Namespace<'_>, what: &str, before: Option<&str>) -> String {
        space.wait(180, format_args!("{what} in every replica\n{}", self.installed.state()), || {
            let certificate = self.secret("tls.crt").filter(|certificate| Some(certificate.as_str()) != before)?;
            let shows = |address: &String| {
                let mut client = self.cluster.command("openssl");
                let said = client.args(["s_client", "-connect", &format!("{address}:9443")]).output().expect("openssl");
                String::from_utf8_lossy(&said.stdout).contains(certificate.trim())
            };
            self.addresses().iter().all(shows).then_some(certificate)
        })
    }
}

/// What clients do all the while. Nothing of it may fail.
struct Loop<'a> {
    seen: &'a Seen<'a>,
    over: AtomicBool,
}

impl Loop<'_> {
    /// Until it is over: how often `ask` was answered, and what it complained of.
    fn run(&self, ask: impl Fn() -> Result<(), String>) -> (usize, BTreeSet<String>) {
        let (mut good, mut lost) = (0, BTreeSet::new());
        while !self.over.load(Ordering::Relaxed) {
            match ask() {
                Ok(()) => good += 1,
                Err(why) => drop(lost.insert(format!("{}: {why}", jiff::Timestamp::now()))),
            }
            thread::sleep(Duration::from_millis(50));
        }
        (good, lost)
    }

    /// A pod that is let in gets a sidecar.
    fn admissions(&self, space: &Namespace<'_>) -> (usize, BTreeSet<String>) {
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: meanwhile}, spec: {containers: [{name: server, image: 'steadfast.test/none:1', ports: [{name: http, containerPort: 8000}]}]}}";
        self.run(|| {
            let mut create = self.seen.cluster.command("kubectl");
            create.args(["--namespace", space.name(), "create", "--dry-run=server", "-o", "jsonpath={.spec.initContainers[*].name}", "-f", "-"]);
            let made = output(&mut create, Some(pod))?;
            if made.contains("steadfast-proxy") { Ok(()) } else { Err(format!("no sidecar: {made:?}")) }
        })
    }

    /// Whoever was given an authority at its start believes what sidecars are shown.
    fn connections(&self, authority: &str) -> (usize, BTreeSet<String>) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(authority.as_bytes()).expect("written");
        let address = self.seen.kubectl(&["get", "service/steadfast-sidecars", "-o", "jsonpath={.spec.clusterIP}"]).expect("a Service");
        let name = format!("steadfast-sidecars.{}.svc:4193", self.seen.installed.system);
        self.run(|| {
            let mut curl = self.seen.cluster.command("curl");
            curl.args(["--silent", "--show-error", "--output", "/dev/null", "--max-time", "5", "--cacert"]).arg(file.path());
            output(curl.args(["--resolve", &format!("{name}:{address}"), &format!("https://{name}/")]), None).map(drop)
        })
    }
}

/// The authority that a pod's sidecar was given.
fn given(space: &Namespace<'_>, pod: &str) -> String {
    let pod = space.get(&format!("pod/{pod}")).expect("it is there");
    let containers = pod["spec"]["initContainers"].as_array().expect("a sidecar");
    let mut variables = containers.iter().flat_map(|container| container["env"].as_array().into_iter().flatten());
    variables.find(|variable| variable["name"] == "STEADFAST_CONTROLLER_CA").and_then(|variable| variable["value"].as_str()).expect("an authority").to_owned()
}

fn armed(space: &Namespace<'_>, installed: &Installed<'_>, pods: usize) {
    space.wait(30, format_args!("the policy in {pods} sidecars\n{}", installed.state()), || {
        let status = &space.get("faultpolicy/policy")?["status"];
        (status["podsMatched"] == pods && status["podsArmed"] == pods).then_some(())
    });
}

#[test]
fn what_cert_manager_issues_and_renews_is_shown_without_a_gap_and_without_a_restart() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let _cert_manager = CertManager::start(&cluster);
    let installed = install_anew(&cluster, &["webhook.certManager.enabled=true"]);
    let seen = Seen { cluster: &cluster, installed: &installed };
    let account = format!("system:serviceaccount:{}:steadfast-controller", installed.system);
    for what in ["secrets/steadfast-certificates", "secrets/steadfast-tls", "secrets/steadfast-ca"] {
        assert!(seen.kubectl(&["auth", "can-i", "get", what, "--as", &account]).is_err(), "no right on {what} is left");
    }
    let space = cluster.namespace_with("issued", ASKS);
    let first = seen.shown(&space, "the first certificate", None);
    space.apply(&crate::harness::recommender("recommender", 2, ""));
    let pods = space.wait_injected("app=recommender", 2);
    space.apply(POLICY);
    armed(&space, &installed, 2);
    let authority = given(&space, &pods[0]);

    let clients = Loop { seen: &seen, over: AtomicBool::new(false) };
    let until_renewed = Loop { seen: &seen, over: AtomicBool::new(false) };
    thread::scope(|scope| {
        let admissions = scope.spawn(|| clients.admissions(&space));
        let connections = scope.spawn(|| until_renewed.connections(&authority));
        let over = Over([&clients.over, &until_renewed.over]);

        seen.renew("steadfast");
        let renewed = seen.shown(&space, "the renewed certificate", Some(&first));
        seen.kubectl(&["delete", "secret/steadfast-tls"]).expect("deleted");
        let again = seen.shown(&space, "the one after the Secret was lost", Some(&renewed));
        // The authority's own renewal: it keeps its key.
        let before = seen.secret("ca.crt");
        seen.renew("steadfast-ca");
        space.wait(30, "a renewed authority", || {
            let ca = seen.kubectl(&["get", "certificaterequests.cert-manager.io", "-o", "json"]).ok()?;
            let ca: Value = serde_json::from_str(&ca).ok()?;
            let of = |request: &&Value| request["metadata"]["annotations"]["cert-manager.io/certificate-name"] == "steadfast-ca";
            let issued = |request: &Value| {
                request["metadata"]["annotations"]["cert-manager.io/certificate-revision"] == "2" && !request["status"]["certificate"].is_null()
            };
            ca["items"].as_array()?.iter().filter(of).any(issued).then_some(())
        });
        seen.renew("steadfast");
        let last = seen.shown(&space, "a certificate by the renewed authority", Some(&again));
        assert_ne!(seen.secret("ca.crt"), before, "it is told of the renewed authority");
        until_renewed.over.store(true, Ordering::Relaxed);
        let (good, lost) = connections.join().expect("no panic");
        println!("{good} connections by the first authority");
        assert!(good > 20 && lost.is_empty(), "{good} good, {lost:#?}");

        // Pods that start now are given the renewed one, and those from before are still there.
        space.kubectl(&["delete", "pod", &pods[0]]).expect("deleted");
        let pods = space.wait_injected("app=recommender", 2);
        assert!(pods.iter().any(|pod| given(&space, pod) != authority), "the renewed authority is given");
        armed(&space, &installed, 2);

        // Another authority, by an issuer of one's own. The API server is told of both meanwhile.
        cluster.apply(OWN);
        installed.upgrade(&["webhook.certManager.issuerRef.kind=ClusterIssuer", "webhook.certManager.issuerRef.name=own"]);
        seen.shown(&space, "a certificate of the other issuer", Some(&last));
        drop(over);
        let (good, lost) = admissions.join().expect("no panic");
        println!("{good} admissions");
        assert!(good > 20 && lost.is_empty(), "{good} good, {lost:#?}");
    });
    // Sidecars believe what they were given at their start.
    space.kubectl(&["rollout", "restart", "deployment/recommender"]).expect("restarted");
    space.kubectl(&["rollout", "status", "deployment/recommender", "--timeout=120s"]).expect("rolled out");
    space.wait_injected("app=recommender", 2);
    armed(&space, &installed, 2);
    let restarts =
        seen.kubectl(&["get", "pods", "--selector", "app.kubernetes.io/name=steadfast", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"]);
    assert!(restarts.expect("listed").split_whitespace().all(|count| count == "0"), "nobody was started anew");
}

/// Ends loops, however the test ends.
struct Over<'a>([&'a AtomicBool; 2]);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|over| over.store(true, Ordering::Relaxed));
    }
}
