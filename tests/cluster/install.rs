//! Steadfast on the cluster as its chart installs it. To install and to remove it takes half a minute, so an installation stands until a test wants other values, wants
//! none, has changed it, or fails; the last one goes when this program ends.

use std::{
    fmt::{self, Display},
    sync::{Mutex, Once, PoisonError},
    time::{Duration, Instant},
};

use crate::harness::{AGENT_IMAGE, Cluster, IMAGE, PROXY_IMAGE, known, output, root};

/// The minor version of Kubernetes that ValidatingAdmissionPolicies came with.
pub(crate) const POLICIES_SINCE: u32 = 30;

static STANDING: Mutex<Standing> = Mutex::new(Standing { users: 0, installations: 0, there: None });
static LAST: Once = Once::new();

struct Standing {
    users: usize,
    installations: usize,
    there: Option<Release>,
}

#[derive(Clone)]
struct Release {
    system: String,
    values: Vec<String>,
    /// Somebody has changed it, or failed with it: nobody else gets it.
    is_spent: bool,
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

/// One that nobody had before and nobody gets afterwards: for tests that change it, or measure what it holds. They are alone on the cluster.
#[track_caller]
pub(crate) fn install_anew<'a>(cluster: &'a Cluster, values: &[&str]) -> Installed<'a> {
    nothing_installed(cluster);
    let installed = install_with(cluster, values);
    spend();
    installed
}

/// With more values, as `KEY=VALUE`; for tests that are alone on the cluster.
#[track_caller]
pub(crate) fn install_with<'a>(cluster: &'a Cluster, values: &[&str]) -> Installed<'a> {
    let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
    if standing.users == 0 && standing.there.as_ref().is_some_and(|there| there.is_spent || there.values != values) {
        uninstall(cluster, &mut standing).unwrap_or_else(|why| panic!("{why}"));
    }
    let system = if let Some(there) = &standing.there {
        // The test before may have killed its pods.
        let ready = ["--namespace", &there.system, "rollout", "status", "deployment/steadfast-controller", "--timeout=90s"];
        cluster.kubectl(&ready).unwrap_or_else(|why| panic!("{why}\n{}", state(cluster, &there.system)));
        there.system.clone()
    } else {
        standing.installations += 1;
        let system = format!("steadfast-test-system-{}-{}", std::process::id(), standing.installations);
        let mut args = vec!["upgrade", "--install", "steadfast", "deploy/chart", "--take-ownership", "--create-namespace", "--wait", "--timeout", "120s"];
        // What tests do beyond pods; by default nobody may.
        args.extend(["--set", "failures.workloads=true"]);
        args.extend(values.iter().flat_map(|value| ["--set", value]));
        helm(cluster, &system, &args).unwrap_or_else(|why| panic!("{why}\n{}", state(cluster, &system)));
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        standing.there = Some(Release { system: system.clone(), values, is_spent: false });
        LAST.call_once(remove_at_exit);
        system
    };
    standing.users += 1;
    Installed { cluster, system }
}

/// For tests that want none; they are alone on the cluster.
#[track_caller]
pub(crate) fn nothing_installed(cluster: &Cluster) {
    let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(standing.users, 0, "others use it");
    uninstall(cluster, &mut standing).unwrap_or_else(|why| panic!("{why}"));
}

/// Helm gives up where a definition comes into being between two of its looks.
pub(crate) fn while_nobody_installs<T>(work: impl FnOnce() -> T) -> T {
    let _standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

fn uninstall(cluster: &Cluster, standing: &mut Standing) -> Result<(), String> {
    let Some(Release { system, .. }) = standing.there.take() else { return Ok(()) };
    let gone = helm(cluster, &system, &["uninstall", "steadfast", "--wait", "--timeout", "60s"]);
    let gone = gone.and_then(|_| nothing_stays(cluster, &system));
    let gone = gone.and_then(|()| cluster.kubectl(&["delete", "namespace", &system, "--wait=false"]));
    gone.map(drop).map_err(|why| format!("the chart could not be uninstalled: {why}"))
}

/// Which test is the last one, no test knows.
#[allow(unsafe_code)]
fn remove_at_exit() {
    extern "C" fn remove() {
        let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(why)) = known().map(|cluster| uninstall(cluster, &mut standing)) {
            eprintln!("{why}");
            // SAFETY: ends this process, which is ending already, with the status of tests that failed.
            unsafe { nix::libc::_exit(101) };
        }
    }
    // SAFETY: `remove` is a function of this program, which needs nothing that is torn down before it runs.
    assert_eq!(unsafe { nix::libc::atexit(remove) }, 0, "the last installation would stay");
}

/// What stands is nobody else's.
fn spend() {
    let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(there) = &mut standing.there {
        there.is_spent = true;
    }
}

/// `helm` on the release, with the images of these tests where `args` do not name others.
pub(crate) fn helm(cluster: &Cluster, system: &str, args: &[&str]) -> Result<String, String> {
    let split = |image: &str| image.rsplit_once(':').map(|(repository, tag)| (repository.to_owned(), tag.to_owned())).expect("an image with a tag");
    let mut command = cluster.command("helm");
    command.arg(args[0]).args(["--namespace", system]);
    if args[0] == "upgrade" {
        for (key, image) in [("image", IMAGE), ("proxy.image", PROXY_IMAGE), ("nodeAgent.image", AGENT_IMAGE)] {
            let (repository, tag) = split(image);
            command.args(["--set", &format!("{key}.repository={repository},{key}.pullPolicy=Never"), "--set-string", &format!("{key}.tag={tag}")]);
        }
    }
    output(command.args(&args[1..]).current_dir(root()), None)
}

/// What the controller made itself goes with the chart, within the garbage collector's time. Of tests are `steadfast-test-…`, of cert-manager `steadfast-tls` and `steadfast-ca`.
fn nothing_stays(cluster: &Cluster, system: &str) -> Result<(), String> {
    let made = "leases,endpointslices,services,serviceaccounts,secrets,configmaps,pods,jobs,deployments,daemonsets,roles,rolebindings,nodefaults";
    let mut wide = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations".to_owned();
    if !cluster.is_before(POLICIES_SINCE) {
        wide += ",validatingadmissionpolicies,validatingadmissionpolicybindings";
    }
    let began = Instant::now();
    loop {
        let left = cluster.kubectl(&["--namespace", system, "get", made, "-o", "name"])? + &cluster.kubectl(&["get", &wide, "-o", "name"])?;
        let left: Vec<&str> =
            left.lines().filter(|name| name.contains("/steadfast") && !name.contains("/steadfast-t") && !name.ends_with("/steadfast-ca")).collect();
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
    // The most telling first: whoever shows it may cut it off.
    [
        &["get", "resiliencetests", "--all-namespaces", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status}{\"\\n\"}{end}"][..],
        &["--namespace", system, "logs", "--selector", "app.kubernetes.io/name=steadfast", "--tail=20", "--prefix"],
        &["--namespace", system, "logs", "--selector", "steadfast.dev/part=agent", "--tail=20", "--prefix"],
        &["--namespace", system, "get", "pods,nodefaults", "-o", "wide"],
        &["get", "nodes"],
        &["--namespace", system, "get", "events", "--sort-by=.metadata.creationTimestamp"],
    ]
    .map(ask)
    .join("\n")
}

impl Installed<'_> {
    /// `helm upgrade` of what is there, with more values; waits until it is rolled out.
    #[track_caller]
    pub(crate) fn upgrade(&self, values: &[&str]) {
        spend();
        let mut args = vec!["upgrade", "steadfast", "deploy/chart", "--reuse-values", "--wait", "--timeout", "180s"];
        args.extend(values.iter().flat_map(|value| ["--set", value]));
        helm(self.cluster, &self.system, &args).unwrap_or_else(|why| panic!("{why}\n{}", self.state()));
    }

    /// What the pods of the controller said, for tests that fail; asked for when it is shown.
    pub(crate) fn state(&self) -> impl Display {
        fmt::from_fn(|f| f.write_str(&state(self.cluster, &self.system)))
    }
}

impl Drop for Installed<'_> {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("{}", self.state());
            spend();
        }
        let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
        standing.users -= 1;
        if standing.users == 0
            && standing.there.as_ref().is_some_and(|there| there.is_spent)
            && let Err(why) = uninstall(self.cluster, &mut standing)
        {
            if failed { eprintln!("{why}") } else { panic!("{why}") }
        }
    }
}
