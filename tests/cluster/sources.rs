//! Golden sets that lie in claims, images and object stores: read by a pod in their namespace, and only where that was granted.

use std::{
    net::TcpStream,
    path::Path,
    process::Child,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use steadfast_controller::webhook::certificate::{Certificates, Lifetimes};
use steadfast_golden_sets::set::{self, archive};

use crate::{
    experiments::{run, run_with, test},
    golden::{digits_set, reason, servers, status},
    harness::{Cluster, Installation, Namespace, cluster, cluster_alone},
    install::{helm, install, install_anew, install_with},
};

const ASKS: &str = "steadfast.dev/inject: 'true', steadfast.dev/faults: allowed, pod-security.kubernetes.io/enforce: restricted";
/// Golden sets are read in every namespace.
pub(crate) const READERS: &str = "goldenSets.readerNamespaces={*}";
/// An image that holds sets and nothing to run.
const SETS_IMAGE: &str = "steadfast.test/sets:1";
/// Where pods of the cluster on this machine reach this machine.
pub(crate) const HERE: &str = "10.77.0.254";

/// A folder that is there on every node, since they share this machine's disk; readable for everybody.
pub(crate) fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("opened");
    folder
}

/// A volume over a folder, and the claim `models` on it; the volume goes on drop.
struct Volume<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Volume<'a> {
    fn new(space: &Namespace<'a>, folder: &Path) -> Self {
        let name = format!("{}-models", space.name());
        space.apply(&format!(
            "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadOnlyMany]
  storageClassName: ''
  claimRef: {{namespace: {space}, name: models}}
  hostPath: {{path: {folder}, type: Directory}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: models}}
spec: {{accessModes: [ReadOnlyMany], storageClassName: '', volumeName: {name}, resources: {{requests: {{storage: 1Gi}}}}}}
",
            space = space.name(),
            folder = folder.display()
        ));
        Self { cluster: space.cluster(), name }
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "persistentvolume", &self.name, "--wait=false"]);
    }
}

/// The GoldenSet `digits` with this source, and perhaps a digest.
pub(crate) fn apply(space: &Namespace<'_>, source: &str, digest: &str) {
    let digest = if digest.is_empty() { String::new() } else { format!("\n  digest: '{digest}'") };
    space.apply(&format!(
        "apiVersion: steadfast.dev/v1alpha1\nkind: GoldenSet\nmetadata: {{name: digits}}\nspec:\n  selector: {{matchLabels: {{app: digits}}}}\n  source: {source}{digest}\n  schedule: {{every: 200ms, share: 100%}}\n  verdict: {{detect: 10%}}\n"
    ));
}

fn readers(space: &Namespace<'_>) -> Vec<String> {
    space.pods("steadfast.dev/part=golden-reader")
}

fn message(status: &Value) -> String {
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().find(|condition| condition["type"] == "Ready").and_then(|condition| condition["message"].as_str()).unwrap_or_default().to_owned()
}

/// Waits for this reason of the condition Ready about the object as it is now, and for the reader to be gone; returns what was said.
#[track_caller]
pub(crate) fn comes_to(space: &Namespace<'_>, wanted: &str) -> String {
    let generation = space.get("goldenset/digits").expect("it is there")["metadata"]["generation"].clone();
    let said = space.wait(60, format_args!("the reason {wanted}, but {:#}", status(space)), || {
        let status = status(space);
        (status["observedGeneration"] == generation && reason(&status, "Ready") == wanted).then(|| message(&status))
    });
    if wanted != "SourceReading" {
        space.wait(20, "no reader", || readers(space).is_empty().then_some(()));
    }
    said
}

#[test]
fn a_set_in_a_claim_is_read_by_a_pod_that_goes_again_and_is_replayed() {
    let Some(cluster) = cluster_alone(Installation::Readers) else { return };
    if cluster.is_elsewhere() {
        eprintln!("not run: the nodes of this cluster do not share this machine's disk");
        return;
    }
    let space = cluster.namespace_with("claims", ASKS);
    let installed = install_with(&cluster, &[READERS]);
    let digits = digits_set();
    let digest = digits.digest().to_string();
    let folder = folder();
    set::write(&digits, folder.path().join("digits")).expect("written");
    std::fs::write(folder.path().join("digits.tar"), archive::pack(&digits).expect("packed")).expect("written");
    let _volume = Volume::new(&space, folder.path());
    space.apply(&servers("web", 1, "/golden-sets/digits", "", ""));
    space.wait_ready("app=digits", 1);

    // What has the digest of what is there already would not be read.
    for (path, digest) in [("digits", digest.as_str()), ("digits.tar", "")] {
        apply(&space, &format!("{{persistentVolumeClaim: {{claimName: models, path: {path}}}}}"), digest);
        comes_to(&space, "Replaying");
        assert_eq!(status(&space)["digest"], digits.digest().to_string(), "{}", installed.state());
    }
    space.wait(60, "a verdict", || (status(&space)["verdict"] == "Pass").then_some(()));
    // What a run replays and sends comes from the same place.
    let ended = run(
        &cluster,
        &space,
        &test(
            "claim",
            "  golden: [{set: digits, every: 100ms}]\n  baseline: 4s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 20ms}, for: 2s}]\n",
        ),
    );
    let report = ended.report.unwrap_or_else(|| panic!("{}\n{}", ended.said, installed.state()));
    assert!(report.total.consistency.ratio == Some(1.0) && report.pods[0].golden.iter().any(|point| point.matched > 0), "{:?}", report.total);

    apply(&space, "{persistentVolumeClaim: {claimName: models, path: nothing}}", "");
    assert!(comes_to(&space, "SourceBroken").contains("no such file or folder"));
    apply(&space, "{persistentVolumeClaim: {claimName: models, path: digits}}", &format!("sha256:{}", "0".repeat(64)));
    assert!(comes_to(&space, "DigestMismatch").contains(&digest));

    // A reader that waits is told of, and goes with its set.
    apply(&space, "{persistentVolumeClaim: {claimName: later, path: digits}}", "");
    comes_to(&space, "SourceReading");
    space.wait(30, "the scheduler's words", || message(&status(&space)).contains("\"later\" not found").then_some(()));
    assert_eq!(readers(&space).len(), 1);
    space.kubectl(&["delete", "goldenset/digits"]).expect("deleted");
    space.wait(20, "no reader", || readers(&space).is_empty().then_some(()));
}

#[test]
fn a_set_in_an_image_is_read_by_a_pod_that_mounts_it_and_is_replayed() {
    let Some(cluster) = cluster_alone(Installation::Readers) else { return };
    let not_supported = |space: &Namespace<'_>| {
        apply(space, &format!("{{image: {{reference: '{SETS_IMAGE}'}}}}"), "");
        let said = comes_to(space, "SourceNotSupported");
        assert!(said.contains("ImageVolume") && said.contains("1.33"), "{said}");
    };
    if cluster.is_before(31) {
        let space = cluster.namespace_with("no-images", ASKS);
        let _installed = install_with(&cluster, &[READERS]);
        return not_supported(&space);
    }
    let digits = digits_set();
    let folder = folder();
    let (files, tar) = (folder.path().join("digits"), folder.path().join("digits.tar"));
    set::write(&digits, &files).expect("written");
    std::fs::write(&tar, archive::pack(&digits).expect("packed")).expect("written");
    let inside = |file: std::io::Result<std::fs::DirEntry>| file.map(|file| format!("/{}={}", file.file_name().display(), file.path().display()));
    let mut contents: Vec<String> = std::fs::read_dir(&files).expect("a folder").map(|file| inside(file).expect("a file")).collect();
    contents.push(format!("/sets/digits.tar={}", tar.display()));
    if !cluster.load(SETS_IMAGE, &contents) {
        return;
    }
    let space = cluster.namespace_with("images", ASKS);
    let installed = install_with(&cluster, &[READERS]);
    space.apply(&servers("web", 1, "/golden-sets/digits", "", ""));
    space.wait_ready("app=digits", 1);
    let image = |more: &str| format!("{{image: {{reference: '{SETS_IMAGE}'{more}}}}}");

    apply(&space, &image(""), &digits.digest().to_string());
    comes_to(&space, "Replaying");
    space.wait(60, format_args!("a verdict\n{}", installed.state()), || (status(&space)["verdict"] == "Pass").then_some(()));
    let tar = image(", path: sets/digits.tar, pullPolicy: Never");
    apply(&space, &tar, "");
    comes_to(&space, "Replaying");
    assert_eq!(status(&space)["digest"], digits.digest().to_string(), "{}", installed.state());
    apply(&space, &tar, &format!("sha256:{}", "0".repeat(64)));
    assert!(comes_to(&space, "DigestMismatch").contains(&digits.digest().to_string()));
    apply(&space, &image(", path: nothing"), "");
    assert!(comes_to(&space, "SourceBroken").contains("no such file or folder"));
    apply(&space, "{image: {reference: 'steadfast.test/nothing:1', pullPolicy: Never}}", "");
    comes_to(&space, "SourceReading");
    space.wait(30, "kubelet's words", || message(&status(&space)).contains("ErrImageNeverPull").then_some(()));

    // As on clusters without image volumes.
    let Some(gates) = cluster.gates("ImageVolume=false") else { return };
    not_supported(&space);
    drop(gates);
    apply(&space, &tar, "");
    comes_to(&space, "Replaying");
}

#[test]
fn no_set_is_read_by_a_pod_in_a_namespace_where_that_was_not_granted() {
    let Some(cluster) = cluster() else { return };
    let _installed = install(&cluster);
    let space = cluster.namespace_with("ungranted", ASKS);
    apply(&space, "{persistentVolumeClaim: {claimName: models, path: digits}}", "");
    assert!(comes_to(&space, "SourceNotAllowed").contains("goldenSets.readerNamespaces"));
}

/// An S3 server over a folder that pods can reach; ended on drop.
pub(crate) struct Store {
    child: Child,
    /// How it is dialled.
    pub(crate) endpoint: String,
}

impl Store {
    /// `None`: there is no program, or pods cannot reach this machine. With `tls` (files of a certificate and its key) it speaks nothing else.
    pub(crate) fn start(cluster: &Cluster, folder: &Path, port: u16, tls: Option<[&Path; 2]>) -> Option<Self> {
        let program = std::env::var("STEADFAST_S3_SERVER").ok().filter(|_| !cluster.is_elsewhere());
        let Some(program) = program else {
            assert!(std::env::var("STEADFAST_REQUIRE_S3_SERVER").as_deref() != Ok("1"), "STEADFAST_REQUIRE_S3_SERVER=1, and STEADFAST_S3_SERVER names none");
            eprintln!("not run: STEADFAST_S3_SERVER names no versitygw that pods could reach; tests/run installs it");
            return None;
        };
        let mut command = cluster.command(&program);
        command.args(["--access", "steadfast", "--secret", "right-secret", "--port", &format!("{HERE}:{port}")]);
        if let Some([certificate, key]) = tls {
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        command.args(["posix", "--nometa"]).arg(folder);
        let endpoint = format!("{}://{HERE}:{port}", if tls.is_some() { "https" } else { "http" });
        let store = Self { child: command.stdout(std::process::Stdio::null()).spawn().expect("the store starts"), endpoint };
        for _ in 0..200 {
            if cluster.inside(|| TcpStream::connect((HERE, port)).is_ok()) {
                return Some(store);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the store never listened");
    }

    /// A Secret with what it takes to ask it, and with these authorities.
    pub(crate) fn secret(&self, name: &str, key: &str, authorities: Option<&str>) -> String {
        let mut data =
            serde_json::json!({ "AWS_ENDPOINT": self.endpoint, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "steadfast", "AWS_SECRET_ACCESS_KEY": key });
        if self.endpoint.starts_with("http:") {
            data["AWS_ALLOW_HTTP"] = "true".into();
        }
        if let Some(authorities) = authorities {
            data["STEADFAST_OBJECT_STORE_CA"] = authorities.into();
        }
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {data}\n")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn sets_are_read_from_and_reports_kept_in_an_object_store_with_the_keys_of_a_secret() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    let digits = digits_set();
    let buckets = folder();
    std::fs::create_dir_all(buckets.path().join("models")).expect("made");
    std::fs::create_dir_all(buckets.path().join("reports")).expect("made");
    set::write(&digits, buckets.path().join("models/digits")).expect("written");
    let Some(store) = Store::start(&cluster, buckets.path(), 17_070, None) else { return };
    // The same by TLS, with an authority of its own.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let certificates = Certificates::make(&[HERE.to_owned()], now, &Lifetimes::default()).expect("certificates");
    let keys = folder();
    let [certificate, key] = ["tls.crt", "tls.key"].map(|name| keys.path().join(name));
    std::fs::write(&certificate, &certificates.server().certificate).expect("written");
    std::fs::write(&key, &certificates.server().key).expect("written");
    let private = Store::start(&cluster, buckets.path(), 17_071, Some([certificate.as_path(), key.as_path()])).expect("the program is there");
    let space = cluster.namespace_with("objects", ASKS);
    let readers = format!("goldenSets.readerNamespaces={{{}}}", space.name());
    let installed = install_anew(&cluster, &[&readers]);
    let secret = store.secret("reports", "right-secret", None).replace("metadata: {", &format!("metadata: {{namespace: {}, ", installed.system));
    cluster.apply(&secret);
    let reports = [
        "upgrade",
        "steadfast",
        "deploy/chart",
        "--reuse-values",
        "--set",
        "reports.url=s3://reports/steadfast,reports.secret=reports",
        "--wait",
        "--timeout",
        "120s",
    ];
    helm(&cluster, &installed.system, &reports).expect("upgraded");
    space.apply(&store.secret("right", "right-secret", None));
    space.apply(&store.secret("wrong", "wrong-secret", None));
    space.apply(&private.secret("private", "right-secret", Some(certificates.trust().as_str())));
    space.apply(&private.secret("unknown", "right-secret", None));
    space.apply(&servers("web", 1, "/golden-sets/digits", "", ""));
    space.wait_ready("app=digits", 1);

    let source = |secret: &str| format!("{{objectStore: {{url: 's3://models/digits', secretName: {secret}}}}}");
    apply(&space, &source("wrong"), "");
    assert!(comes_to(&space, "SourceBroken").contains("SignatureDoesNotMatch"));
    apply(&space, &source("right"), &digits.digest().to_string());
    comes_to(&space, "Replaying");
    apply(&space, &source("unknown"), "");
    let said = comes_to(&space, "SourceBroken");
    assert!(said.contains("UnknownIssuer") && said.contains("STEADFAST_OBJECT_STORE_CA"), "{said}");
    apply(&space, &source("private"), "");
    comes_to(&space, "Replaying");

    let text = test("kept", "  baseline: 4s\n  steps: [{name: slow, networkLatency: {pods: {mode: all}, delay: 20ms}, for: 2s}]\n");
    space.apply(&text);
    let ended = space.wait(60, format_args!("the end of a run\n{}", installed.state()), || {
        let test = space.get("resiliencetest/kept")?;
        (test["status"]["phase"] == "Finished").then(|| test["status"]["report"].clone())
    });
    let address = ended["address"].as_str().unwrap_or_else(|| panic!("{ended}\n{}", installed.state()));
    let file = buckets.path().join(address.strip_prefix("s3://").unwrap_or_else(|| panic!("{address}")));
    let mut report = String::new();
    let packed = std::fs::File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut report).expect("unpacked");
    assert_eq!(set::sha256(report.as_bytes()).to_string(), ended["digest"].as_str().expect("a digest"));
    // Whoever runs from outside fetches it with keys of his own, and without them is told where it lies.
    let with = |key: &str| {
        let variables =
            [("AWS_ENDPOINT", store.endpoint.as_str()), ("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "us-east-1"), ("AWS_ACCESS_KEY_ID", "steadfast")];
        let variables: Vec<_> = variables.into_iter().chain([("AWS_SECRET_ACCESS_KEY", key)]).collect();
        run_with(&cluster, &space, &text, &variables)
    };
    let refused = with("wrong-secret");
    assert!(refused.report.is_none() && refused.said.contains("s3://reports/steadfast/") && refused.said.contains("AWS_ACCESS_KEY_ID"), "{}", refused.said);
    // It goes only once its report is here.
    let stays = refused.said.split("steadfast report --test ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("{}", refused.said));
    assert_eq!(space.get(&format!("resiliencetest/{stays}")).expect("it stays")["status"]["phase"], "Finished");
    let fetched = with("right-secret");
    assert!(fetched.report.is_some_and(|report| report.total.availability.attempted > 0), "{}", fetched.said);
}
