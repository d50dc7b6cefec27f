//! The plain manifests: `kubectl apply` of them gives a controller that runs and puts sidecars into pods, again changes nothing, and `kubectl delete` takes it away.

use std::fs;

use tempfile::TempDir;

use crate::{
    harness::{Cluster, IMAGE, Installation, PROXY_IMAGE, cluster_alone, output, root},
    install::{POLICIES_SINCE, helm, nothing_installed},
};

const SYSTEM: &str = "steadfast-system";

/// The manifests with the images of these tests, which no registry has.
struct Applied<'a> {
    cluster: &'a Cluster,
    folder: TempDir,
}

impl<'a> Applied<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        let folder = TempDir::new().expect("a folder");
        let version = env!("CARGO_PKG_VERSION");
        let published = fs::read_dir(root().join("deploy/manifests")).expect("the manifests").map(|entry| entry.expect("an entry").path());
        for path in published.filter(|path| path.is_file() && !(cluster.is_before(POLICIES_SINCE) && path.ends_with("admission.yaml"))) {
            let text = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
                .replace(&format!("\"steadfast:{version}\""), IMAGE)
                .replace(&format!("steadfast-proxy:{version}"), PROXY_IMAGE)
                .replace("imagePullPolicy: IfNotPresent", "imagePullPolicy: Never")
                .replace("--proxy-image-pull-policy=IfNotPresent", "--proxy-image-pull-policy=Never");
            fs::write(folder.path().join(path.file_name().expect("a name")), text).expect("written");
        }
        Self { cluster, folder }
    }

    /// As the README says. Definitions are left by charts of other tests, which own their fields.
    fn apply(&self) {
        let apply = ["apply", "--server-side", "--force-conflicts", "--filename"];
        output(self.cluster.command("kubectl").args(apply).arg(self.folder.path()), None).expect("applied");
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        // Other tests' objects go with their definitions.
        let _ = fs::remove_file(self.folder.path().join("crds.yaml"));
        let delete = ["delete", "--ignore-not-found", "--wait=true", "--timeout=100s", "--filename"];
        if let Err(why) = output(self.cluster.command("kubectl").args(delete).arg(self.folder.path()), None) {
            eprintln!("{why}");
        }
    }
}

#[test]
fn plain_manifests_give_a_controller_that_injects_and_are_applied_again_without_harm() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    nothing_installed(&cluster);
    let releases = helm(&cluster, SYSTEM, &["list", "--short"]).expect("helm answers");
    assert_eq!(releases.trim(), "", "another test is done with its chart");
    let applied = Applied::new(&cluster);
    applied.apply();
    let rolled = || cluster.kubectl(&["--namespace", SYSTEM, "rollout", "status", "deployment/steadfast-controller", "--timeout=120s"]);
    rolled().unwrap_or_else(|why| panic!("{why}\n{}", cluster.kubectl(&["--namespace", SYSTEM, "describe", "pods"]).unwrap_or_default()));
    let space = cluster.namespace_with("plain", "steadfast.dev/inject: 'true', pod-security.kubernetes.io/enforce: restricted");
    let has_sidecar = |pod: &str| space.get(&format!("pod/{pod}")).expect("it is there")["spec"]["initContainers"][0]["name"] == "steadfast-proxy";
    let pods = space.recommender("recommender", 1, "");
    assert!(has_sidecar(&pods[0]));
    let certificates = || cluster.kubectl(&["--namespace", SYSTEM, "get", "secret/steadfast-certificates", "-o", "jsonpath={.data}"]).expect("it is there");
    let before = certificates();
    assert!(before.len() > 100, "{before}");
    // An upgrade by the same words: what the controller wrote stays.
    applied.apply();
    rolled().expect("still there");
    assert_eq!(certificates(), before);
    space.kubectl(&["delete", "pod", &pods[0]]).expect("deleted");
    let next = space.wait_ready("app=recommender", 1);
    assert!(has_sidecar(&next[0]), "the API server still believes the webhook");
    // Before it goes, by the same words as the chart's hook.
    let undone = cluster.kubectl(&["--namespace", SYSTEM, "exec", "deployment/steadfast-controller", "--", "/bin/steadfast", "undo"]).expect("undone");
    assert!(undone.contains("nothing is in force"), "{undone}");
    drop(applied);
    assert!(cluster.get("mutatingwebhookconfiguration/steadfast").is_none() && cluster.get(&format!("namespace/{SYSTEM}")).is_none());
}
