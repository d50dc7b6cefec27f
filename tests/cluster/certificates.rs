//! Certificates that somebody else makes: the chart's side of cert-manager, with this test in the place of cert-manager itself.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use steadfast_controller::webhook::certificate::{Certificates, Lifetimes};

use crate::{
    harness::{Cluster, Installation, Namespace, cluster_alone},
    install::{helm, install_anew},
};

/// Kinds of cert-manager, which takes any of them.
const KINDS: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: PLURAL.cert-manager.io}
spec:
  group: cert-manager.io
  scope: Namespaced
  names: {kind: KIND, plural: PLURAL, singular: SINGULAR}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
";

struct Kinds<'a>(&'a Cluster);

impl Drop for Kinds<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(&["delete", "crd", "issuers.cert-manager.io", "certificates.cert-manager.io", "--wait=false", "--ignore-not-found"]);
    }
}

/// What cert-manager would do: the Secret that the Certificate names, and the authority where the annotation asks for it.
fn issue(cluster: &Cluster, system: &str, authorities: &mut Vec<String>) {
    let names = ["webhook", "sidecars"].map(|service| format!("steadfast-{service}.{system}.svc"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let made = Certificates::make(&names, now, &Lifetimes::default()).expect("certificates");
    let mut data = json!({ "tls.crt": made.server().certificate, "tls.key": made.server().key, "ca.crt": made.trust() });
    for (_, text) in data.as_object_mut().expect("an object") {
        *text = STANDARD.encode(text.as_str().expect("text")).into();
    }
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": { "name": "steadfast-tls", "namespace": system }, "data": data });
    cluster.apply(&secret.to_string());
    // Both are believed meanwhile, as by a bundle of authorities.
    authorities.push(made.trust());
    let bundle = STANDARD.encode(authorities.concat());
    let webhooks = cluster.get("mutatingwebhookconfiguration/steadfast").expect("it is there")["webhooks"].as_array().map_or(0, Vec::len);
    let operations: Vec<_> =
        (0..webhooks).map(|index| json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle })).collect();
    cluster.kubectl(&["patch", "mutatingwebhookconfiguration/steadfast", "--type=json", "-p", &json!(operations).to_string()]).expect("patched");
}

fn is_injected(space: &Namespace<'_>, name: &str) -> bool {
    space.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: server, image: steadfast.test/none:1, imagePullPolicy: Never, ports: [{{name: http, containerPort: 8000}}]}}]}}}}"
    ));
    let injected = space.get(&format!("pod/{name}")).is_some_and(|pod| pod["spec"]["initContainers"].is_array());
    space.kubectl(&["delete", &format!("pod/{name}"), "--grace-period=0", "--force"]).expect("deleted");
    injected
}

#[test]
fn mounted_certificates_are_shown_and_their_successors_without_a_restart() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    if !cluster.is_within_reach() {
        return;
    }
    let _kinds = Kinds(&cluster);
    for (kind, plural) in [("Issuer", "issuers"), ("Certificate", "certificates")] {
        cluster.apply(&KINDS.replace("KIND", kind).replace("PLURAL", plural).replace("SINGULAR", &kind.to_lowercase()));
    }
    let crds = ["issuers", "certificates"].map(|plural| format!("crd/{plural}.cert-manager.io"));
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", &crds[0], &crds[1]]).expect("established");
    let installed = install_anew(&cluster, &[]);
    let system = installed.system.as_str();
    let mut authorities = Vec::new();
    issue(&cluster, system, &mut authorities);
    let upgrade = ["upgrade", "steadfast", "deploy/chart", "--reuse-values", "--set", "webhook.certManager.enabled=true", "--wait", "--timeout", "120s"];
    helm(&cluster, system, &upgrade).unwrap_or_else(|why| panic!("{why}\n{}", installed.state()));
    let certificate =
        cluster.kubectl(&["--namespace", system, "get", "certificates.cert-manager.io/steadfast", "-o", "jsonpath={.spec.dnsNames}"]).expect("made");
    assert!(certificate.contains(&format!("steadfast-webhook.{system}.svc")), "{certificate}");
    let account = format!("system:serviceaccount:{system}:steadfast-controller");
    for what in ["secrets/steadfast-certificates", "secrets/steadfast-tls"] {
        assert!(cluster.kubectl(&["auth", "can-i", "get", what, "--namespace", system, "--as", &account]).is_err(), "no right on {what} is left");
    }
    // The upgrade may have taken the authorities away, as it may from under cert-manager, which puts them back.
    authorities.clear();
    issue(&cluster, system, &mut authorities);
    let addresses = || {
        let pods = cluster.kubectl(&["--namespace", system, "get", "pods", "--selector", "app.kubernetes.io/name=steadfast", "-o", "json"]).expect("listed");
        let pods: serde_json::Value = serde_json::from_str(&pods).expect("JSON");
        let stay = pods["items"].as_array().into_iter().flatten().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        stay.map(|pod| pod["status"]["podIP"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let shown_by_all = |authority: &str| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), authority).expect("written");
        let name = format!("steadfast-webhook.{system}.svc");
        let shows = |address: String| {
            let mut curl = cluster.command("curl");
            curl.args(["--silent", "--output", "/dev/null", "--cacert"]).arg(file.path());
            curl.args(["--resolve", &format!("{name}:9443:{address}"), &format!("https://{name}:9443/")]).status().is_ok_and(|status| status.success())
        };
        addresses().into_iter().all(shows).then_some(())
    };
    let space = cluster.namespace_with("mounted", "steadfast.dev/inject: 'true'");
    space.wait(180, format_args!("the mounted certificate in every replica\n{}", installed.state()), || shown_by_all(&authorities[0]));
    space.wait(30, format_args!("an injected pod\n{}", installed.state()), || is_injected(&space, "first").then_some(()));

    // The next ones, of another authority: from when kubelet has written them, which takes it a minute or two.
    issue(&cluster, system, &mut authorities);
    space.wait(180, format_args!("the new certificate in every replica\n{}", installed.state()), || {
        // All the while pods are injected.
        assert!(is_injected(&space, "meanwhile"), "{}", installed.state());
        shown_by_all(&authorities[1])
    });
    let restarts = [
        "--namespace",
        system,
        "get",
        "pods",
        "--selector",
        "app.kubernetes.io/name=steadfast",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ];
    assert!(cluster.kubectl(&restarts).expect("listed").split_whitespace().all(|count| count == "0"), "nobody was started anew");
}
