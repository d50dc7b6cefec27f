//! Is the chart what it says, and are the plain manifests what it renders?
//!
//! Helm is looked for in PATH, among the programs of the test cluster (`tests/cluster/cluster build`), or named by `HELM`; without it these tests say that they did
//! not run, unless `STEADFAST_REQUIRE_HELM=1`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use steadfast_api::read::from_yaml;

/// Oldest version that the chart takes, and the one of the test cluster.
const OLDEST: &str = "1.29.0";
const NEWEST: &str = "1.34.0";
/// Where the plain manifests put it.
const NAMESPACE: &str = "steadfast-system";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What Helm says to `helm template`; `None`: there is no Helm, and it was said.
fn try_template(more: &[&str]) -> Option<Result<String, String>> {
    let built = env::var("CLUSTER_DIR").unwrap_or_else(|_| "/var/tmp/steadfast-cluster".to_owned());
    let candidates = [env::var("HELM").ok().map(PathBuf::from), Some(PathBuf::from("helm")), Some(Path::new(&built).join("bin/helm"))];
    for helm in candidates.into_iter().flatten() {
        let mut command = Command::new(&helm);
        command.args(["template", "steadfast", "deploy/chart", "--namespace", NAMESPACE, "--no-hooks"]).args(more).current_dir(root());
        match command.output() {
            Ok(ran) if ran.status.success() => return Some(Ok(String::from_utf8(ran.stdout).expect("YAML is UTF-8"))),
            Ok(ran) => return Some(Err(String::from_utf8_lossy(&ran.stderr).into_owned())),
            Err(_) => {}
        }
    }
    assert!(env::var("STEADFAST_REQUIRE_HELM").as_deref() != Ok("1"), "STEADFAST_REQUIRE_HELM=1, and there is no helm");
    println!("not run: there is no helm; `tests/cluster/cluster build` makes one");
    None
}

fn template(more: &[&str]) -> Option<String> {
    let mut args = vec!["--kube-version", NEWEST];
    args.extend(more);
    try_template(&args).map(|rendered| rendered.unwrap_or_else(|why| panic!("{why}")))
}

/// Objects of a rendered chart.
fn objects(rendered: &str) -> impl Iterator<Item = &str> {
    rendered.split("\n---\n").filter(|object| object.contains("\nkind: "))
}

fn of_kind<'a>(rendered: &'a str, kind: &str) -> Vec<&'a str> {
    let line = format!("\nkind: {kind}\n");
    objects(rendered).filter(|object| object.contains(&line)).collect()
}

/// As it is published: nobody's release, so not Helm's.
fn plain(rendered: &str) -> String {
    let line = |line: &&str| !line.trim_start().starts_with("app.kubernetes.io/managed-by:");
    rendered.lines().filter(line).flat_map(|line| [line.trim_end(), "\n"]).collect()
}

#[test]
fn plain_manifests_are_what_the_chart_renders() {
    let head = "# Made from deploy/chart by `just manifests`; change the chart.\n";
    // `kubectl apply` of a folder takes its files by their names.
    let namespace = format!("{head}---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n");
    published("00-namespace.yaml", &namespace);
    let crds = ["--show-only", "templates/crds.yaml"];
    let agent = ["--show-only", "templates/agent.yaml", "--set", "nodeAgent.enabled=true"];
    for (file, values) in [
        ("crds.yaml", &crds[..]),
        ("steadfast.yaml", &["--set", "crds.install=false,admissionPolicies.enabled=false"]),
        // Kubernetes 1.29 does not know them.
        ("admission.yaml", &["--show-only", "templates/admission.yaml", "--set", "nodeAgent.enabled=true"]),
        // In a folder of its own: `kubectl apply -f deploy/manifests` must not bring what is privileged.
        ("opt-in/node-agent.yaml", &agent),
    ] {
        let Some(rendered) = template(values) else { return };
        published(file, &format!("{head}{}", plain(&rendered)));
    }
}

fn published(file: &str, wanted: &str) {
    let path = root().join("deploy/manifests").join(file);
    if env::var_os("STEADFAST_WRITE_MANIFESTS").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(&path, wanted).expect("written");
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(published == wanted, "{} is not what the chart renders: write it anew with `just manifests`", path.display());
}

#[test]
fn names_that_look_like_numbers_stay_names() {
    let values = ["--namespace", "12345", "--set-string", "watchNamespaces={123,on},goldenSets.readerNamespaces={123},reports.url=s3://a/b,reports.secret=42"];
    let Some(rendered) = template(&values) else { return };
    for name in ["12345", "123", "on"] {
        assert!(rendered.contains(&format!("namespace: \"{name}\"")) && !rendered.contains(&format!("namespace: {name}")), "{name}");
    }
    assert!(rendered.contains("secretRef: {name: \"42\"}"));
}

#[test]
fn before_kubernetes_1_30_no_pod_is_given_a_hook_that_its_api_server_refuses_and_before_1_29_nothing_is_installed() {
    let Some(newest) = template(&[]) else { return };
    assert!(newest.contains("--leave-seconds=5"));
    let oldest = try_template(&["--kube-version", OLDEST]).expect("helm is there").expect("1.29 is enough");
    assert!(oldest.contains("--leave-seconds=0"));
    // As clouds write theirs.
    let cloud = try_template(&["--kube-version", "v1.29.7-gke.1008000"]).expect("helm is there").expect("1.29 is enough");
    assert!(cloud.contains("--leave-seconds=0"));
    let refused = try_template(&["--kube-version", "1.28.9"]).expect("helm is there").expect_err("native sidecars came with 1.29");
    assert!(refused.contains("kubeVersion"), "{refused}");
}

#[test]
fn with_named_namespaces_the_cluster_wide_role_is_left_with_what_has_no_namespace() {
    let Some(everywhere) = template(&[]) else { return };
    let named = template(&["--set", "watchNamespaces={models,vision}"]).expect("helm is there");
    let cluster_role = |rendered: &str| {
        let roles = of_kind(rendered, "ClusterRole");
        (*roles.iter().find(|role| role.contains("name: steadfast-controller\n")).expect("the controller's")).to_owned()
    };
    for right in ["pods", "configmaps", "events", "resiliencetests", "deployments", "endpointslices", "services"] {
        let resource = format!("resources: [{right}");
        assert!(cluster_role(&everywhere).contains(&resource), "{right}");
        assert!(!cluster_role(&named).contains(&resource), "{right} cluster-wide, though namespaces are named");
    }
    for right in ["namespaces", "nodes", "tokenreviews", "mutatingwebhookconfigurations"] {
        assert!(cluster_role(&named).contains(right), "{right}");
    }
    for namespace in ["models", "vision"] {
        for kind in ["Role", "RoleBinding"] {
            let here = of_kind(&named, kind).into_iter().filter(|role| role.contains(&format!("namespace: {namespace}\n"))).count();
            assert_eq!(here, 1, "{kind} in {namespace}");
        }
    }
    assert!(named.contains("--watch-namespaces=models,vision") && !everywhere.contains("--watch-namespaces"));
    let webhook = of_kind(&named, "MutatingWebhookConfiguration").concat();
    assert_eq!(webhook.matches(r#"operator: In, values: ["models","vision"]"#).count(), 2, "{webhook}");
}

#[test]
fn values_that_contradict_each_other_are_refused_with_what_would_be_right() {
    let with = |values: &str| try_template(&["--kube-version", NEWEST, "--set", "watchNamespaces={models}", "--set", values]);
    for values in ["failures.nodes=true", "failures.cpuPressureOnNodes=true", "nodeAgent.enabled=true", "powerHook.url=http://hook"] {
        let Some(refused) = with(values) else { return };
        assert!(refused.as_ref().is_err_and(|why| why.contains("watchNamespaces") && why.contains("leave")), "{values}: {refused:?}");
    }
    let own = with(&format!("watchNamespaces={{{NAMESPACE}}}")).expect("helm is there");
    assert!(own.is_err_and(|why| why.contains("own namespace")));
    for elsewhere in ["{vision}", "{models,vision}", "{*}"] {
        let readers = with(&format!("goldenSets.readerNamespaces={elsewhere}")).expect("helm is there");
        assert!(readers.as_ref().is_err_and(|why| why.contains("readerNamespaces") && why.contains("watchNamespaces")), "{elsewhere}: {readers:?}");
    }
    assert!(with("goldenSets.readerNamespaces={models}").expect("helm is there").is_ok());
}

/// What `at` of the schema says, whether here or in a definition that it names.
fn resolved<'a>(schema: &'a Value, at: &'a Value) -> &'a Value {
    at["$ref"].as_str().and_then(|path| schema.pointer(path.trim_start_matches('#'))).unwrap_or(at)
}

/// Holds values against the schema, both ways: every key is described, and nothing is described that is no key.
fn held_against(schema: &Value, at: &Value, values: &Value, path: &str) {
    let rule = resolved(schema, at);
    let described = at["description"].as_str().or(rule["description"].as_str()).is_some_and(|text| !text.is_empty());
    assert!(path.is_empty() || described, "{path}: the schema does not say what it is");
    let Some(properties) = rule["properties"].as_object().filter(|_| values.as_object().is_some_and(|fields| !fields.is_empty())) else { return };
    // What Kubernetes defines is not written out.
    if path.ends_with(".resources") {
        return;
    }
    assert_eq!(rule["additionalProperties"], false, "{path}: a key that is written wrong would pass");
    for (key, value) in values.as_object().expect("an object") {
        let here = format!("{path}.{key}");
        held_against(schema, properties.get(key).unwrap_or_else(|| panic!("{here} is not in values.schema.json")), value, &here);
    }
    // Helm hands `global` to every chart of a parent.
    let unknown = properties.keys().find(|key| values.get(key).is_none() && *key != "global");
    assert_eq!(unknown, None, "{path}: in values.schema.json, and not in values.yaml");
}

#[test]
fn every_value_is_in_the_schema_with_what_it_is_for() {
    let read = |file: &str| fs::read_to_string(root().join("deploy/chart").join(file)).expect(file);
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let values: Value = from_yaml("values.yaml", &read("values.yaml")).expect("YAML");
    held_against(&schema, &schema, &values, "");
}

#[test]
fn a_value_that_is_misspelt_or_means_nothing_is_refused_by_its_name() {
    let with = |value: &str| try_template(&["--kube-version", NEWEST, "--set", value]);
    for (value, place) in [
        ("networkpolicy.enabled=true", "networkpolicy"),
        ("nodeAgent.enable=true", "/nodeAgent"),
        ("webhook.failurePolicy=ignore", "/webhook/failurePolicy"),
        ("webhook.timeoutSeconds=31", "/webhook/timeoutSeconds"),
        ("image.pullPolicy=never", "/image/pullPolicy"),
        ("image.digest=sha256:0", "/image"),
        ("image.repository=", "/image/repository"),
        ("proxy.image.repository=a b", "/proxy/image/repository"),
        // A number of that size would be written 2.0261126e+07.
        ("proxy.image.tag=20261126", "/proxy/image/tag"),
        ("proxy.leaveSeconds=abc", "/proxy/leaveSeconds"),
        ("proxy.leaveSeconds=601", "/proxy/leaveSeconds"),
        ("proxy.memory=64MB", "/proxy/memory"),
        ("failures.maxUnavailableNodes=abc", "/failures/maxUnavailableNodes"),
        ("failures.maxUnavailableNodes=101%", "/failures/maxUnavailableNodes"),
        ("failures.maxUnavailableNodes=0", "/failures/maxUnavailableNodes"),
        ("failures.nodes=yes", "/failures/nodes"),
        ("replicas=0", "/replicas"),
        ("watchNamespaces=models", "/watchNamespaces"),
        ("watchNamespaces={models,models}", "/watchNamespaces"),
        ("watchNamespaces={Models}", "/watchNamespaces/0"),
        ("goldenSets.readerNamespaces={a,a}", "/goldenSets/readerNamespaces"),
        ("leaderElection.leaseDurationSeconds=2", "/leaderElection/leaseDurationSeconds"),
        ("leaderElection.leaseDurationSeconds=301", "/leaderElection/leaseDurationSeconds"),
        ("reports.url=file:///etc", "/reports/url"),
        ("powerHook.url=hook", "/powerHook/url"),
        ("runAsUser=0", "/runAsUser"),
        ("runAsUser=2147483648", "/runAsUser"),
    ] {
        let Some(refused) = with(value) else { return };
        assert!(refused.as_ref().is_err_and(|why| why.contains("schema") && why.contains(&format!("{place}'"))), "{value}: {refused:?}");
    }
    for value in [
        "failures.maxUnavailableNodes=2",
        "failures.maxUnavailableNodes=100%",
        "proxy.cpuLimit=0.5",
        "runAsUser=null",
        "image.repository=localhost:5000/team/steadfast",
        "image.repository=registry.example/steadfast@sha256",
        "goldenSets.readerNamespaces={*}",
        "reports.url=s3://bucket/path",
        "leaderElection.leaseDurationSeconds=5",
        "global.imageRegistry=x",
    ] {
        let taken = with(value).expect("helm is there");
        assert!(taken.is_ok(), "{value}: {taken:?}");
    }
}

#[test]
fn a_failure_beyond_pods_is_a_right_that_nobody_has_by_default() {
    let Some(default) = template(&[]) else { return };
    for (value, rule) in [
        ("failures.workloads", "resources: [deployments, statefulsets, daemonsets, replicasets], verbs: [get, patch]"),
        ("failures.nodes", "resources: [nodes], verbs: [patch]"),
        ("failures.cpuPressureOnNodes", "resources: [pods], verbs: [create, patch, delete]"),
    ] {
        assert!(!default.contains(rule), "{value}: {rule}");
        let granted = template(&["--set", &format!("{value}=true")]).expect("helm is there");
        assert!(granted.contains(rule), "{value}: {rule}");
    }
    assert_eq!(of_kind(&default, "ValidatingAdmissionPolicy").len(), 5);
    let oldest = try_template(&["--kube-version", OLDEST]).expect("helm is there").expect("1.29 is enough");
    assert!(!oldest.contains("ValidatingAdmissionPolicy"), "it came with 1.30");
}

#[test]
fn the_right_to_make_the_users_pod_comes_with_the_policy_that_narrows_it() {
    let Some(default) = template(&[]) else { return };
    let right = "resources: [pods], verbs: [create, delete]";
    let made = |rendered: &str| {
        of_kind(rendered, "ValidatingAdmissionPolicy").into_iter().find(|policy| policy.contains("name: steadfast-pods-made")).map(str::to_owned)
    };
    let image = format!("c.image == 'steadfast:{}'", env!("CARGO_PKG_VERSION"));
    assert!(default.contains(right) && default.contains("--users-in-pod") && made(&default).expect("a policy").contains(&image));
    for values in ["users.ownPod=false", "admissionPolicies.enabled=false"] {
        assert!(!template(&["--set", values]).expect("helm is there").contains(right), "{values}");
    }
    let oldest = try_template(&["--kube-version", OLDEST]).expect("helm is there").expect("1.29 is enough");
    assert!(!oldest.contains(right), "nothing narrows it before 1.30");
    // Burners are of any image, and have nothing of the namespace either.
    let burners = made(&template(&["--set", "failures.cpuPressureOnNodes=true"]).expect("helm is there")).expect("a policy");
    assert!(!burners.contains("c.image") && burners.contains("serviceAccountName"), "{burners}");
    for readers in ["*", NAMESPACE] {
        let granted = made(&template(&["--set", &format!("goldenSets.readerNamespaces={{{readers}}}")]).expect("helm is there")).expect("a policy");
        assert!(!granted.contains("serviceAccountName"), "readers mount what GoldenSets name: {granted}");
    }
}

#[test]
fn every_pod_goes_to_linux_and_takes_the_secrets_and_the_user_that_the_values_say() {
    let hooks = |more: &[&str]| {
        let mut args = vec!["--set", "nodeAgent.enabled=true,nodeSelector.disk=fast,imagePullSecrets[0].name=registry"];
        args.extend(more);
        template(&args)
    };
    let Some(rendered) = hooks(&[]) else { return };
    let pods: Vec<&str> = ["Deployment", "DaemonSet"].into_iter().flat_map(|kind| of_kind(&rendered, kind)).collect();
    assert_eq!(pods.len(), 2);
    for pod in &pods {
        assert!(pod.contains("kubernetes.io/os: linux") && pod.contains("seccompProfile: {type: RuntimeDefault}") && pod.contains("- name: registry"), "{pod}");
    }
    assert!(pods[0].contains("disk: fast") && pods[0].contains("runAsUser: 65532") && !pods[1].contains("disk: fast"));
    let drawn = hooks(&["--set", "runAsUser=null"]).expect("helm is there");
    let drawn = of_kind(&drawn, "Deployment").concat();
    assert!(!drawn.contains("runAsUser") && drawn.contains("--run-as-user=none"), "the platform draws it");
    let own = hooks(&["--set", "runAsUser=1000680000"]).expect("helm is there");
    assert!(own.contains("--run-as-user=1000680000\n") && pods[0].contains("--run-as-user=65532\n"), "sidecars and pods of the controller's have the same one");
}

#[test]
fn a_network_policy_is_made_when_it_is_asked_for_and_lets_in_what_each_port_is_for() {
    let Some(without) = template(&[]) else { return };
    assert!(of_kind(&without, "NetworkPolicy").is_empty());
    let with = template(&["--set", "networkPolicy.enabled=true", "--set", "networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus"])
        .expect("helm is there");
    let policies = of_kind(&with, "NetworkPolicy");
    let [policy] = policies[..] else { panic!("{} policies", policies.len()) };
    let controller = of_kind(&with, "Deployment").concat();
    for port in ["webhook", "sidecars", "metrics"] {
        assert!(policy.contains(&format!("ports: [{{port: {port}}}]")) && controller.contains(&format!("name: {port}, containerPort")), "{port}");
    }
    assert!(policy.contains("app: prometheus") && policy.contains("policyTypes: [Ingress]"), "{policy}");
}

#[test]
fn the_dockerfile_makes_each_image_that_the_chart_names_of_files_that_are_there() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let (dockerfile, values, toolchain) = (read("deploy/Dockerfile"), read("deploy/chart/values.yaml"), read("rust-toolchain.toml"));
    for image in values.lines().filter_map(|line| line.trim().strip_prefix("repository: ")) {
        let target = image.strip_prefix("steadfast-").unwrap_or(image);
        assert!(dockerfile.contains(&format!(" AS {target}\n")), "no stage makes {image}");
        assert!(dockerfile.contains(&format!("--target {target} -t {image}:{}", env!("CARGO_PKG_VERSION"))), "its head does not say how {image} is built");
    }
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).expect("a channel").trim_matches('"');
    assert!(
        dockerfile.contains(&format!("FROM rust:{channel}-")) && dockerfile.contains(&format!("RUSTUP_TOOLCHAIN={channel}")),
        "another toolchain than {channel}"
    );
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ") && !line.contains("--from")) {
        let source = line.split(' ').nth(1).expect("a source");
        assert!(root().join(source).exists(), "{line}");
    }
}

/// Whether Docker is given this file: of the patterns that match it or a folder that it is in, the last one decides.
fn is_let_through(ignored: &str, path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().expect("UTF-8")).collect();
    ignored.lines().fold(true, |through, line| {
        let (pattern, lets) = line.strip_prefix('!').map_or((line, false), |pattern| (pattern, true));
        let matches = match pattern.strip_prefix("**/") {
            _ if pattern == "**" => true,
            Some(name) => parts.contains(&name),
            None => path.starts_with(pattern),
        };
        if matches { lets } else { through }
    })
}

/// Every file below `folder` that Docker is given, as paths from the root.
fn let_through(ignored: &str, folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root().join(folder)).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = folder.join(entry.file_name());
        if ["target", ".git", ".cache"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => let_through(ignored, &path, found),
            _ if is_let_through(ignored, &path) => found.push(path),
            _ => {}
        }
    }
}

/// The files that a source file takes into the program, without those that its tests take.
fn included(text: &str) -> impl Iterator<Item = &str> {
    let program = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    ["include_str!(\"", "include_bytes!(\""].into_iter().flat_map(|word| program.split(word).skip(1)).filter_map(|rest| rest.split('"').next())
}

#[test]
fn docker_is_given_every_file_that_the_build_reads() {
    let ignored = fs::read_to_string(root().join("deploy/Dockerfile.dockerignore")).expect("it is there");
    let mut files = Vec::new();
    let_through(&ignored, Path::new(""), &mut files);
    // The workspace is whole: cargo finds each member and each target that a manifest names.
    let copy = tempfile::tempdir().expect("a folder");
    for file in &files {
        let to = copy.path().join(file);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::copy(root().join(file), to).expect("copied");
    }
    let cargo = Command::new(env!("CARGO")).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(copy.path()).output();
    let cargo = cargo.expect("it runs");
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let mut seen = 0;
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "rs")) {
        let text = fs::read_to_string(copy.path().join(file)).expect("a source file");
        // Whole files of tests are named by another's attribute.
        if file.file_stem().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with("tests")) {
            continue;
        }
        for inner in included(&text) {
            let wanted = copy.path().join(file.parent().expect("a folder")).join(inner);
            assert!(wanted.is_file(), "{} takes in {inner}, which deploy/Dockerfile.dockerignore keeps from Docker", file.display());
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} files are taken in: are they still found?");
}

#[test]
fn the_libraries_beside_a_program_are_those_that_it_names() {
    let listed = Command::new(root().join("deploy/libraries")).arg(env!("CARGO_BIN_EXE_steadfast")).output().expect("it runs");
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    assert!(listed.lines().any(|line| line.contains("libc.so")) && listed.lines().all(|line| Path::new(line).is_file()), "{listed}");
}
