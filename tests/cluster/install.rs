//! Steadfast on the cluster as its chart installs it: once for all tests that run at the same time, gone after the last of them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::harness::{AGENT_IMAGE, Cluster, IMAGE, PROXY_IMAGE, output, root};

static USERS: Mutex<Users> = Mutex::new(Users { now: 0, installations: 0 });

struct Users {
    now: usize,
    installations: usize,
}

/// Keeps it installed.
pub(crate) struct Installed<'a> {
    cluster: &'a Cluster,
    /// The namespace, another one each time: the last one may still be on its way out.
    pub(crate) system: String,
}

#[track_caller]
pub(crate) fn install(cluster: &Cluster) -> Installed<'_> {
    install_with(cluster, &[])
}

/// With more values, as `KEY=VALUE`; for tests that are alone on the cluster.
#[track_caller]
pub(crate) fn install_with<'a>(cluster: &'a Cluster, values: &[&str]) -> Installed<'a> {
    let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
    if users.now == 0 {
        users.installations += 1;
    }
    let system = format!("steadfast-test-system-{}-{}", std::process::id(), users.installations);
    if users.now == 0 {
        let mut args = vec!["upgrade", "--install", "steadfast", "deploy/chart", "--take-ownership", "--create-namespace", "--wait", "--timeout", "120s"];
        // What tests do beyond pods; by default nobody may.
        args.extend(["--set", "failures.workloads=true"]);
        args.extend(values.iter().flat_map(|value| ["--set", value]));
        helm(cluster, &system, &args).unwrap_or_else(|why| panic!("{why}\n{}", state(cluster, &system)));
    }
    users.now += 1;
    Installed { cluster, system }
}

/// `helm` on the release, with the images of these tests.
pub(crate) fn helm(cluster: &Cluster, system: &str, args: &[&str]) -> Result<String, String> {
    let split = |image: &str| image.rsplit_once(':').map(|(repository, tag)| (repository.to_owned(), tag.to_owned())).expect("an image with a tag");
    let mut command = cluster.command("helm");
    command.args(args).args(["--namespace", system]);
    if args.first() == Some(&"upgrade") {
        for (key, image) in [("image", IMAGE), ("proxy.image", PROXY_IMAGE), ("nodeAgent.image", AGENT_IMAGE)] {
            let (repository, tag) = split(image);
            command.args(["--set", &format!("{key}.repository={repository},{key}.pullPolicy=Never"), "--set-string", &format!("{key}.tag={tag}")]);
        }
    }
    output(command.current_dir(root()), None)
}

/// What the controller made itself goes with the chart, within the garbage collector's time. Of tests are `steadfast-test-…` and `steadfast-tls`.
fn nothing_stays(cluster: &Cluster, system: &str) -> Result<(), String> {
    let made = "leases,endpointslices,services,serviceaccounts,secrets,configmaps,pods,jobs,deployments,daemonsets,roles,rolebindings,nodefaults";
    let wide = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings";
    let began = Instant::now();
    loop {
        let left = cluster.kubectl(&["--namespace", system, "get", made, "-o", "name"])? + &cluster.kubectl(&["get", wide, "-o", "name"])?;
        let left: Vec<&str> = left.lines().filter(|name| name.contains("/steadfast") && !name.contains("/steadfast-t")).collect();
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > Duration::from_secs(30) {
            return Err(format!("left behind in {system}: {}", left.join(", ")));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn state(cluster: &Cluster, system: &str) -> String {
    let ask = |args: &[&str]| cluster.kubectl(args).unwrap_or_else(|why| why);
    format!(
        "{}\n{}",
        ask(&["--namespace", system, "describe", "pods"]),
        ask(&["--namespace", system, "logs", "--selector", "app.kubernetes.io/name=steadfast", "--tail=60", "--prefix"])
    )
}

impl Installed<'_> {
    /// `helm upgrade` of what is there, with more values; waits until it is rolled out.
    #[track_caller]
    pub(crate) fn upgrade(&self, values: &[&str]) {
        let mut args = vec!["upgrade", "steadfast", "deploy/chart", "--reuse-values", "--wait", "--timeout", "180s"];
        args.extend(values.iter().flat_map(|value| ["--set", value]));
        helm(self.cluster, &self.system, &args).unwrap_or_else(|why| panic!("{why}\n{}", self.state()));
    }

    /// What the pods of the controller said, for tests that fail.
    pub(crate) fn state(&self) -> String {
        state(self.cluster, &self.system)
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.state());
        }
        let mut users = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        users.now -= 1;
        if users.now == 0 {
            let gone = helm(self.cluster, &self.system, &["uninstall", "steadfast", "--wait", "--timeout", "60s"]);
            let gone = gone.and_then(|_| nothing_stays(self.cluster, &self.system));
            let gone = gone.and_then(|()| self.cluster.kubectl(&["delete", "namespace", &self.system, "--wait=false"]));
            if let Err(why) = gone {
                let why = format!("the chart could not be uninstalled: {why}");
                if std::thread::panicking() { eprintln!("{why}") } else { panic!("{why}") }
            }
        }
    }
}
