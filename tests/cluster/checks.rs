//! `steadfast install --check` and `kubectl steadfast` against a real API server, as an administrator and as people who may less.

use std::{fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Cluster, Installation, Namespace, STEADFAST, cluster, cluster_alone, output},
    install::{POLICIES_SINCE, install, nothing_installed},
};

/// What was found, and the exit status.
struct Found {
    status: Option<i32>,
    json: Value,
}

/// With these options, by this kubeconfig or the administrator's.
#[track_caller]
fn check(cluster: &Cluster, kubeconfig: Option<&str>, options: &[&str]) -> Found {
    let mut command = cluster.command("env");
    command.args(kubeconfig.map(|file| format!("KUBECONFIG={file}")));
    let ran = command.args([STEADFAST, "install", "--check", "--output", "json"]).args(options).output().expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    let json = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&ran.stderr)));
    Found { status: ran.status.code(), json }
}

impl Found {
    fn with(&self, check: &str, severity: &str) -> Vec<&Value> {
        let findings = self.json["findings"].as_array().expect("findings");
        findings.iter().filter(|finding| finding["check"] == check && finding["severity"] == severity).collect()
    }

    /// That there is such a finding, that says `word`; one that is not well says what to do.
    #[track_caller]
    fn has(&self, check: &str, severity: &str, word: &str) {
        let found = self.with(check, severity);
        let finding = found.iter().find(|finding| finding["message"].as_str().is_some_and(|message| message.contains(word)));
        let finding = finding.unwrap_or_else(|| panic!("no {check} that is {severity} and says {word:?}: {:#}", self.json));
        assert!(severity == "ok" || finding["next"].as_str().is_some_and(|next| next.len() > 10), "{finding}");
    }
}

/// A user of the cluster: a service account of `space`, by a kubeconfig of its own.
fn user(space: &Namespace<'_>, name: &str, directory: &Path) -> String {
    space.kubectl(&["create", "serviceaccount", name]).expect("made");
    let token = space.kubectl(&["create", "token", name, "--duration", "10m"]).expect("a token");
    let config = space.kubectl(&["config", "view", "--raw", "--flatten", "--minify", "-o", "json"]).expect("the administrator's");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["users"][0]["user"] = json!({ "token": token.trim() });
    let file = directory.join(name);
    fs::write(&file, config.to_string()).expect("written");
    file.to_str().expect("UTF-8").to_owned()
}

/// Everything that an installation would make, by kind and name.
fn everything(cluster: &Cluster) -> Vec<String> {
    let kinds = "namespaces,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,customresourcedefinitions";
    let named = |kinds: &str| cluster.kubectl(&["get", kinds, "--all-namespaces", "-o", "name"]).expect("listed");
    let mut all: Vec<String> = format!("{}{}", named(kinds), named("pods,deployments,secrets,roles")).lines().map(str::to_owned).collect();
    all.retain(|name| name.contains("steadfast"));
    all.sort();
    all
}

#[test]
fn an_administrator_may_install_it_and_asking_leaves_nothing_behind() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    nothing_installed(&cluster);
    let space = cluster.namespace("checks");
    let before = everything(&cluster);
    let found = check(&cluster, None, &["--namespace", "steadfast-test-nowhere", "--target", space.name()]);
    assert_eq!(found.status, Some(0), "{:#}", found.json);
    assert_ne!(found.json["verdict"], "blocked");
    found.has("permissions", "ok", "you may make");
    // Where no hook sleeps, and where no policy says what roles cannot, it is said, and no reason to refuse.
    let old = if cluster.is_before(30) { "warning" } else { "ok" };
    found.has("version", old, found.json["version"].as_str().expect("a version"));
    if cluster.is_before(POLICIES_SINCE) {
        found.has("kinds", "warning", "serves no ValidatingAdmissionPolicies");
    }
    found.has("nodes", "ok", "Linux");
    found.has("admission", "ok", "tried by dry run");
    found.has("namespace", "ok", "not there yet");
    found.has("targets", "ok", space.name());
    // And where its namespace is there, what goes into it is tried as well.
    let there = check(&cluster, None, &["--namespace", space.name()]);
    assert_eq!(there.status, Some(0), "{:#}", there.json);
    there.has("namespace", "ok", "lets the controller's pods in");
    // What ended before may go meanwhile.
    let new: Vec<_> = everything(&cluster).into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(new, [""; 0]);
    let unreachable = cluster.command("env").args(["KUBECONFIG=/nowhere", STEADFAST, "install", "--check"]).status().expect("it runs");
    assert_eq!(unreachable.code(), Some(2));
}

#[test]
fn a_user_without_rights_is_told_which_are_missing_and_one_whose_rights_end_before_what_roles_hand_on_too() {
    // What another test has installed would not be handed on anew.
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    nothing_installed(&cluster);
    let (space, files) = (cluster.namespace("rights"), TempDir::new().expect("a directory"));
    let nobody = user(&space, "nobody", files.path());
    let found = check(&cluster, Some(&nobody), &["--namespace", space.name(), "--target", space.name()]);
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    for kind in
        ["clusterroles.rbac.authorization.k8s.io cluster-wide", "deployments.apps in namespace", "customresourcedefinitions", "mutatingwebhookconfigurations"]
    {
        found.has("permissions", "blocked", kind);
    }
    found.has("permissions", "blocked", "you may not create, get, patch");
    found.has("nodes", "warning", "could not be looked at");

    // May make everything, and has none of the rights that the controller would be given.
    let maker = user(&space, "maker", files.path());
    let role = format!("{}-maker", space.name());
    let account = format!("--serviceaccount={}:maker", space.name());
    let policies = "validatingadmissionpolicies.admissionregistration.k8s.io,validatingadmissionpolicybindings.admissionregistration.k8s.io,";
    let policies = if cluster.is_before(POLICIES_SINCE) { "" } else { policies };
    let resources = "namespaces,secrets,services,serviceaccounts,deployments.apps,poddisruptionbudgets.policy,mutatingwebhookconfigurations.admissionregistration.k8s.io,\
                     customresourcedefinitions.apiextensions.k8s.io,roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io,\
                     clusterroles.rbac.authorization.k8s.io,clusterrolebindings.rbac.authorization.k8s.io";
    let resources = format!("--resource={policies}{resources}");
    cluster.kubectl(&["create", "clusterrole", &role, "--verb=create,get,list,patch", &resources]).expect("made");
    let bound = cluster.kubectl(&["create", "clusterrolebinding", &role, &format!("--clusterrole={role}"), &account]);
    let found = check(&cluster, Some(&maker), &["--namespace", space.name()]);
    for kind in ["clusterrolebinding", "clusterrole"] {
        cluster.kubectl(&["delete", kind, &role, "--ignore-not-found"]).expect("deleted");
    }
    bound.expect("bound");
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    found.has("permissions", "ok", "you may make");
    found.has("permissions", "blocked", "ClusterRole steadfast-controller: it hands on rights that you do not have");
    found.has("namespace", "warning", "you may not create pods there");
}

#[test]
fn what_a_namespace_would_refuse_is_told_before_it_refuses_it() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.namespace_with("refuses", "pod-security.kubernetes.io/enforce: baseline");
    space.apply(
        "{apiVersion: v1, kind: ResourceQuota, metadata: {name: cpu}, spec: {hard: {limits.cpu: '4'}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: dials-nobody}, spec: {podSelector: {}, policyTypes: [Egress]}}
---
apiVersion: v1
kind: Pod
metadata: {name: taken}
spec:
  containers:
    - {name: server, image: 'steadfast.test/pause:1', imagePullPolicy: Never, resources: {limits: {cpu: 10m}}, ports: [{name: http, containerPort: 8000}, {containerPort: 4179}]}
",
    );
    // The quota counts what is there before it refuses.
    space.wait(20, "a quota that counts", || space.get("resourcequota/cpu").filter(|quota| quota["status"]["used"]["limits.cpu"] != Value::Null));
    let found = check(&cluster, None, &["--namespace", space.name(), "--node-agent", "--target", space.name()]);
    assert_eq!(found.status, Some(1), "{:#}", found.json);
    found.has("namespace", "blocked", "PodSecurity level baseline");
    found.has("targets", "blocked", "limits.cpu");
    found.has("targets", "warning", "dials-nobody");
    found.has("targets", "warning", "PortTaken");
    let without = check(&cluster, None, &["--namespace", space.name()]);
    without.has("namespace", "blocked", "limits.cpu");
    // With defaults the quota is content.
    space.apply("{apiVersion: v1, kind: LimitRange, metadata: {name: defaults}, spec: {limits: [{type: Container, default: {cpu: 500m}}]}}");
    let content = check(&cluster, None, &["--namespace", space.name(), "--target", space.name()]);
    content.has("targets", "ok", "lets a pod with the sidecar in");
    content.has("namespace", "ok", "lets the controller's pods in");
}

#[test]
fn an_installation_that_is_there_is_found_and_a_second_one_is_blocked() {
    let Some(cluster) = cluster() else { return };
    let installed = install(&cluster);
    let same = check(&cluster, None, &["--namespace", &installed.system]);
    assert_eq!(same.status, Some(0), "{:#}", same.json);
    same.has("earlier", "ok", "helm upgrade");
    same.has("webhooks", "ok", "answered");
    same.has("definitions", "ok", "as this version has them");
    let other = check(&cluster, None, &["--namespace", "steadfast-test-nowhere"]);
    assert_eq!(other.status, Some(1), "{:#}", other.json);
    other.has("earlier", "blocked", &installed.system);
    other.has("definitions", "warning", &format!("release steadfast of namespace {}", installed.system));
}

#[test]
fn kubectl_finds_the_program_as_its_plugin_and_help_says_so() {
    let Some(cluster) = cluster() else { return };
    let folder = TempDir::new().expect("a directory");
    symlink(STEADFAST, folder.path().join("kubectl-steadfast")).expect("linked");
    let kubectl = |args: &[&str]| {
        let path = format!("PATH={}:{}", folder.path().display(), std::env::var("PATH").expect("a path"));
        // The tool puts its own programs first, and `env` runs after it.
        let script = "PATH=$1:$PATH; shift; exec kubectl \"$@\"";
        output(cluster.command("bash").args(["-c", script, "bash", path.trim_start_matches("PATH=")]).args(args), None)
    };
    let help = kubectl(&["steadfast", "run", "--help"]).expect("help");
    assert!(help.contains("Usage: kubectl steadfast run") && help.contains("  kubectl steadfast run examples/"), "{help}");
    let wrong = kubectl(&["steadfast", "run"]).expect_err("a file is missing");
    assert!(wrong.contains("Usage: kubectl steadfast run"), "{wrong}");
    let checked = kubectl(&["steadfast", "install", "--check", "--namespace", "steadfast-test-nowhere"]);
    let checked = checked.unwrap_or_else(|why| why);
    assert!(checked.contains("permissions") && checked.contains("It can"), "{checked}");
    assert!(kubectl(&["plugin", "list"]).expect("plugins").contains("kubectl-steadfast"));
}
