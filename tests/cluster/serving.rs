//! The ground that all other tests stand on: this tree's programs run in pods as an ordinary user would run them, and answer through a Service.

use serde_json::Value;

use crate::harness::{IMAGE, PROXY_IMAGE, cluster};

#[test]
fn recommenders_become_ready_and_answer_through_their_service() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.namespace_with("serving", "pod-security.kubernetes.io/enforce: restricted");
    let pods = space.recommender("recommender", 3, "");
    assert_eq!(pods.len(), 3);
    let model: Value = serde_json::from_str(&space.ask("recommender:80", "/v2/models/recommender").expect("an answer")).expect("JSON");
    assert_eq!(model["name"], "recommender");
}

#[test]
fn a_service_is_dialled_from_the_clusters_network() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.namespace("dial");
    space.recommender("recommender", 1, "");
    let address = space.get("service/recommender").expect("it was applied")["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    if !cluster.is_within_reach() {
        return;
    }
    // kube-proxy hears of the endpoint a moment after the pod is Ready.
    space.wait(20, "a connection to the Service", || cluster.inside(|| std::net::TcpStream::connect((address.as_str(), 80)).ok()));
}

#[test]
fn the_sidecars_image_starts_without_a_shell_root_or_a_writable_disk() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.namespace_with("images", "pod-security.kubernetes.io/enforce: restricted");
    for (name, image) in [("steadfast", IMAGE), ("proxy", PROXY_IMAGE)] {
        space.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  securityContext: {{runAsNonRoot: true, runAsUser: 12345, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: it
      image: {image}
      imagePullPolicy: Never
      args: [--version]
      securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
"
        ));
        space.wait(60, "a pod that ended well", || space.get(&format!("pod/{name}")).filter(|pod| pod["status"]["phase"] == "Succeeded"));
        let said = space.kubectl(&["logs", name]).expect("its log");
        assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
    }
}
