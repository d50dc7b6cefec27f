//! A real cluster for tests: found or started, asked through `kubectl`, and left as it was.
//!
//! ```text
//! let Some(cluster) = harness::cluster() else { return };           // beside other tests
//! let Some(cluster) = harness::cluster_for_a_run() else { return }; // beside others that run no experiment
//! let Some(cluster) = harness::cluster_alone(Installation::Default) else { return }; // no other test meanwhile: for those that break nodes or change what all share
//!
//! let space = cluster.namespace("marks");                      // steadfast-test-marks-…, removed with everything in it on drop
//! space.apply("apiVersion: v1 …");                             // panics with kubectl's words; `try_apply` returns them
//! space.recommender("recommender", 3, "");                     // a Deployment and a Service `recommender`; waits until all are Ready
//! space.get("pod/x") -> Option<Value>   space.list("pods") -> Vec<Value>   space.pods("app=recommender") -> names, sorted
//! space.wait(SECONDS, "what it should come to", || Some(…))    // else: panics with events, pods and logs of the namespace
//! space.ask("recommender:80", "/v2") -> Result<String, String> // GET through the API server's proxy to a Service; `pod/x:8000` to a pod
//! space.kubectl(&["rollout", "status", …]) -> Result<String, String>   // in this namespace; `cluster.kubectl` without one
//!
//! cluster.command("curl")                                      // a Command in the cluster's network, KUBECONFIG set: your own programs, `STEADFAST`
//! cluster.inside(|| …)                                         // run a closure on a thread in the cluster's network: Service addresses work there
//! let Some(node) = cluster.power("n3") else { return };        // its switches; on drop the node is on, plugged and Ready again
//! node.off();  node.on();  node.cut();  node.join();  node.freeze();  node.thaw();
//! ```
//!
//! Variables: `STEADFAST_REQUIRE_CLUSTER=1` makes a missing cluster a failure, `=0` skips all of these tests; `STEADFAST_TEST_KUBECONFIG=FILE` names another cluster
//! (`KUBECONFIG` alone is not enough: these tests break things on purpose); `STEADFAST_TEST_IMAGES=loaded` takes the images that are on the nodes.

#![allow(dead_code)] // a test module need not use all of it

use std::{
    env,
    fmt::{Display, Write as _},
    io::Write as _,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::reads::{self, Answer, Reads};

/// This build's program, for [`Cluster::command`].
pub(crate) const STEADFAST: &str = env!("CARGO_BIN_EXE_steadfast");
/// Image with `steadfast` and the golden sets; see `tests/cluster/images`.
pub(crate) const IMAGE: &str = "steadfast.test/steadfast:1";
/// `steadfast` with the program nft, for the node agent.
pub(crate) const AGENT_IMAGE: &str = "steadfast.test/agent:1";
/// Image with the sidecar.
pub(crate) const PROXY_IMAGE: &str = "steadfast.test/proxy:1";
/// Nodes of a cluster that these tests start.
const NODES: &str = "3";
/// Kubelets renew their leases every ten seconds.
const HEARD_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(14);
/// Until pods that have their image are Ready, on a busy machine.
pub(crate) const PODS_READY: u64 = 90;

static FOUND: OnceLock<Result<Cluster, String>> = OnceLock::new();
static GATE: Gate = Gate { state: Mutex::new(State { inside: Vec::new(), waiting: Vec::new() }), changed: Condvar::new() };
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// The cluster, beside other tests. `None`: there is none, and it was said why.
pub(crate) fn cluster() -> Option<Entered> {
    enter(Wish::Beside)
}

/// Beside other tests, none of which has the controller run an experiment: it runs one at a time.
pub(crate) fn cluster_for_a_run() -> Option<Entered> {
    enter(Wish::Run)
}

/// The cluster, with no other test of this program using it.
pub(crate) fn cluster_alone(installation: Installation) -> Option<Entered> {
    enter(Wish::Alone(installation))
}

/// What a test that is alone wants installed. Those that want the same come one after the other, since an installation takes half a minute.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Installation {
    /// As [`crate::install::install`] makes it.
    Default,
    /// With [`crate::failures::EVERY_FAILURE`].
    EveryFailure,
    /// With [`crate::sources::READERS`].
    Readers,
    /// One with values of its own, or none.
    Own,
}

/// In the order in which they come where several wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Run,
    Beside,
    Alone(Installation),
}

/// Who gets the cluster next. Most of a test's time is waiting, so those that disturb nobody go side by side; with more threads than tests
/// (`--test-threads 99`) all of them wait here, and the order is the best one.
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    inside: Vec<Wish>,
    waiting: Vec<Wish>,
}

impl State {
    /// Side by side on two processors.
    const AT_ONCE: usize = 4;

    fn may_enter(&self, wish: Wish) -> bool {
        match wish {
            _ if self.inside.iter().any(|other| matches!(other, Wish::Alone(_))) => false,
            Wish::Alone(_) => self.inside.is_empty() && self.waiting.iter().min() == Some(&wish),
            Wish::Run => self.inside.len() < Self::AT_ONCE && !self.inside.contains(&Wish::Run),
            Wish::Beside => self.inside.len() < Self::AT_ONCE,
        }
    }
}

fn enter(wish: Wish) -> Option<Entered> {
    let cluster = found()?;
    let mut state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
    state.waiting.push(wish);
    state = GATE.changed.wait_while(state, |state| !state.may_enter(wish)).unwrap_or_else(PoisonError::into_inner);
    let place = state.waiting.iter().position(|other| *other == wish).expect("it waited");
    state.waiting.swap_remove(place);
    state.inside.push(wish);
    GATE.changed.notify_all();
    drop(state);
    let entered = Entered { wish, cluster, began: Instant::now() };
    if wish == Wish::Alone(Installation::EveryFailure) {
        cluster.wait_until_every_kubelet_is_heard();
    }
    Some(entered)
}

/// A test that uses the cluster, until it is dropped.
pub(crate) struct Entered {
    wish: Wish,
    cluster: &'static Cluster,
    began: Instant,
}

impl Entered {
    /// For threads that a test joins before it ends.
    pub(crate) const fn everywhere(&self) -> &'static Cluster {
        self.cluster
    }
}

impl Deref for Entered {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Of the time that a test takes, some is waiting for others.
        println!("{}: {:.0} s of the cluster", thread::current().name().unwrap_or_default(), self.began.elapsed().as_secs_f64());
        let mut state = GATE.state.lock().unwrap_or_else(PoisonError::into_inner);
        let place = state.inside.iter().position(|other| *other == self.wish).expect("it entered");
        state.inside.swap_remove(place);
        GATE.changed.notify_all();
    }
}

/// The cluster that tests of this program have used, if they have.
pub(crate) fn known() -> Option<&'static Cluster> {
    FOUND.get()?.as_ref().ok()
}

fn found() -> Option<&'static Cluster> {
    match FOUND.get_or_init(Cluster::find) {
        Ok(cluster) => Some(cluster),
        Err(why) => {
            assert!(env::var("STEADFAST_REQUIRE_CLUSTER").as_deref() != Ok("1"), "STEADFAST_REQUIRE_CLUSTER=1, and there is no cluster: {why}");
            eprintln!("not run, for want of a cluster: {why}");
            None
        }
    }
}

/// This repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn tool() -> PathBuf {
    root().join("tests/cluster/cluster")
}

#[derive(Debug)]
pub(crate) struct Cluster {
    /// Another cluster's; `None`: the one of `tests/cluster/cluster`.
    kubeconfig: Option<PathBuf>,
    reads: OnceLock<Reads>,
    minor: OnceLock<u32>,
}

impl Cluster {
    fn find() -> Result<Self, String> {
        if env::var("STEADFAST_REQUIRE_CLUSTER").as_deref() == Ok("0") {
            return Err("STEADFAST_REQUIRE_CLUSTER=0".to_owned());
        }
        if let Some(file) = env::var_os("STEADFAST_TEST_KUBECONFIG") {
            let cluster = Self { kubeconfig: Some(PathBuf::from(file)), reads: OnceLock::new(), minor: OnceLock::new() };
            cluster.kubectl(&["get", "nodes"]).map_err(|why| format!("STEADFAST_TEST_KUBECONFIG: {why}"))?;
            return Ok(cluster);
        }
        if !nix::unistd::geteuid().is_root() {
            return Err("starting one needs root; STEADFAST_TEST_KUBECONFIG=FILE names another".to_owned());
        }
        let required = env::var("STEADFAST_REQUIRE_CLUSTER").as_deref() == Ok("1");
        match output(Command::new(tool()).arg("status"), None) {
            Ok(_) => {}
            Err(why) if why.contains("not built") && !required => return Err(why),
            Err(_) => {
                output(Command::new(tool()).args(["up", NODES]), None)?;
            }
        }
        if env::var("STEADFAST_TEST_IMAGES").as_deref() != Ok("loaded") {
            output(&mut Command::new(root().join("tests/cluster/images")), None)?;
        }
        Ok(Self { kubeconfig: None, reads: OnceLock::new(), minor: OnceLock::new() })
    }

    /// Whether its Kubernetes is older than 1.`minor`.
    #[track_caller]
    pub(crate) fn is_before(&self, minor: u32) -> bool {
        let ask = || {
            let said = get(self.kubectl(&["get", "--raw", "/version"])).expect("a version");
            let digits = said["minor"].as_str().map(|minor| minor.trim_end_matches(|c: char| !c.is_ascii_digit()));
            digits.and_then(|minor| minor.parse().ok()).unwrap_or_else(|| panic!("no minor version: {said}"))
        };
        *self.minor.get_or_init(ask) < minor
    }

    /// Whether it is too old for something that came with 1.`since`; said on standard error where it is.
    #[track_caller]
    pub(crate) fn lacks(&self, what: &str, since: u32) -> bool {
        let lacks = self.is_before(since);
        if lacks {
            eprintln!("not run: {what} came with Kubernetes 1.{since}, and this cluster is older");
        }
        lacks
    }

    /// Whether it is a cluster of somebody else's, whose network is not this machine's.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.kubeconfig.is_some()
    }

    /// Whether addresses of pods and Services can be dialled from here; said on standard error where they cannot.
    pub(crate) fn is_within_reach(&self) -> bool {
        if self.is_elsewhere() {
            eprintln!("not run: addresses of this cluster cannot be dialled from here");
        }
        !self.is_elsewhere()
    }

    /// A command that runs in the cluster's network with `KUBECONFIG` set. On a cluster of somebody else's: in this machine's network.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = if let Some(file) = &self.kubeconfig {
            let mut command = Command::new(program);
            command.env("KUBECONFIG", file);
            command
        } else {
            let mut command = Command::new(tool());
            command.arg("exec").arg(program);
            command
        };
        command.current_dir(root()).stdin(Stdio::null());
        command
    }

    /// What `kubectl` printed, or what it complained of.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        output(self.command("kubectl").args(args), None)
    }

    fn reads(&self) -> &Reads {
        self.reads.get_or_init(|| Reads::start(self.command("sh")).expect("kubectl proxy starts"))
    }

    /// A GET of the API server; `None` where it cannot be asked this way.
    fn read(&self, path: &str) -> Option<Answer> {
        self.reads().get(path).ok()
    }

    /// `None`: it cannot be read this way. Null: there is none.
    fn read_object(&self, what: &str, namespace: Option<&str>) -> Option<Value> {
        let answer = self.read(&reads::object(what, namespace)?)?;
        match answer.status {
            200 => serde_json::from_str(&answer.body).ok(),
            404 => Some(Value::Null),
            _ => None,
        }
    }

    fn read_objects(&self, kind: &str, namespace: Option<&str>, selector: &str) -> Option<Vec<Value>> {
        let answer = self.read(&reads::objects(kind, namespace, selector)?).filter(|answer| answer.status == 200)?;
        let list: Value = serde_json::from_str(&answer.body).ok()?;
        Some(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// What is not read as it should be, `kubectl` is asked for.
    #[track_caller]
    fn object(&self, what: &str, namespace: Option<&str>) -> Option<Value> {
        if let Some(object) = self.read_object(what, namespace) {
            return Some(object).filter(|object| !object.is_null());
        }
        let within = namespace.map(|name| format!("--namespace={name}"));
        get(self.kubectl(&within.iter().map(String::as_str).chain(["get", what, "-o", "json", "--ignore-not-found"]).collect::<Vec<_>>()))
    }

    /// Objects of a namespace, `None` being all, that a label selector takes, `""` being all.
    #[track_caller]
    pub(crate) fn objects(&self, kind: &str, namespace: Option<&str>, selector: &str) -> Vec<Value> {
        self.read_objects(kind, namespace, selector).unwrap_or_else(|| {
            let within = namespace.map_or_else(|| "--all-namespaces".to_owned(), |name| format!("--namespace={name}"));
            items(self.kubectl(&[&within, "get", kind, "--selector", selector, "-o", "json"]))
        })
    }

    /// A kubelet whose API server was cut off takes up to a minute to come back by another connection, and its node is lost for that long: to those who come after, too.
    fn wait_until_every_kubelet_is_heard(&self) {
        if self.is_elsewhere() {
            return;
        }
        let began = Instant::now();
        let is_heard = |lease: &Value| {
            let renewed = lease["spec"]["renewTime"].as_str().and_then(|moment| moment.parse::<jiff::Timestamp>().ok());
            renewed.is_some_and(|moment| jiff::Timestamp::now().duration_since(moment) < HEARD_WITHIN)
        };
        while !self.objects("lease", Some("kube-node-lease"), "").iter().all(is_heard) {
            assert!(began.elapsed() < Duration::from_secs(90), "a kubelet is not heard after {:?}", began.elapsed());
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// `kubectl apply` of YAML. The error is kubectl's.
    pub(crate) fn try_apply(&self, yaml: &str) -> Result<String, String> {
        output(self.command("kubectl").args(["apply", "-f", "-"]), Some(yaml))
    }

    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        if let Err(why) = self.try_apply(yaml) {
            panic!("{why}\n{yaml}");
        }
    }

    /// An object outside namespaces as JSON, such as `node/n1`; `None` when there is none.
    #[track_caller]
    pub(crate) fn get(&self, what: &str) -> Option<Value> {
        self.object(what, None)
    }

    /// All objects of a kind outside namespaces; with a namespace's, those of all namespaces.
    #[track_caller]
    pub(crate) fn list(&self, kind: &str) -> Vec<Value> {
        self.objects(kind, None, "")
    }

    /// Names of all nodes, sorted.
    #[track_caller]
    pub(crate) fn nodes(&self) -> Vec<String> {
        names(&self.list("nodes"))
    }

    /// A namespace for one test. `topic` is a short name of a DNS label's letters.
    #[track_caller]
    pub(crate) fn namespace(&self, topic: &str) -> Namespace<'_> {
        self.namespace_with(topic, "")
    }

    /// With labels as in YAML's flow style, such as `steadfast.dev/faults: allowed`.
    #[track_caller]
    pub(crate) fn namespace_with(&self, topic: &str, labels: &str) -> Namespace<'_> {
        let name = format!("steadfast-test-{topic}-{}-{}", std::process::id(), NAMESPACES.fetch_add(1, Ordering::Relaxed));
        self.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{steadfast.dev/test: {topic}, {labels}}}}}\n"));
        let space = Namespace { cluster: self, name };
        // A pod is refused until the controllers have made the namespace's service account.
        space.wait(30, "the namespace's service account", || space.get("serviceaccount/default"));
        space
    }

    /// Runs `work` on a thread of the cluster's network: addresses of pods and Services can be dialled there. On another cluster: in this machine's.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if self.kubeconfig.is_none() {
                    let path = output(Command::new(tool()).arg("network"), None).unwrap_or_else(|why| panic!("{why}"));
                    let network = std::fs::File::open(path.trim()).expect("the cluster is up");
                    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter it");
                }
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Nobody reaches the API server, which goes on beside them; `None`, said on standard error, on a cluster that cannot be cut from here.
    #[track_caller]
    pub(crate) fn cut_api(&self) -> Option<ApiCut> {
        if self.kubeconfig.is_some() {
            eprintln!("not run: the API server of this cluster cannot be cut off from here");
            return None;
        }
        output(Command::new(tool()).args(["cut", "api"]), None).unwrap_or_else(|why| panic!("{why}"));
        Some(ApiCut)
    }

    /// The API server is another one, with these feature gates (`NAME=false`); `None`, said on standard error, on a cluster that has no other from here.
    #[track_caller]
    pub(crate) fn gates(&self, gates: &str) -> Option<Gates> {
        if self.kubeconfig.is_some() {
            eprintln!("not run: feature gates of this cluster cannot be set from here");
            return None;
        }
        output(Command::new(tool()).args(["gates", gates]), None).unwrap_or_else(|why| panic!("{why}"));
        Some(Gates)
    }

    /// Makes an image of files, each `PATH_IN_IMAGE=FILE`, and loads it on every node; false, said on standard error, on a cluster that takes none from here.
    #[track_caller]
    pub(crate) fn load(&self, image: &str, files: &[String]) -> bool {
        if self.kubeconfig.is_some() {
            eprintln!("not run: images cannot be loaded on this cluster from here");
            return false;
        }
        output(Command::new(tool()).args(["load", image]).args(files), None).unwrap_or_else(|why| panic!("{why}"));
        true
    }

    /// The switches of a node; `None`, said on standard error, on a cluster whose nodes cannot be switched from here.
    pub(crate) fn power(&self, node: &str) -> Option<Power<'_>> {
        if self.kubeconfig.is_some() {
            eprintln!("not run: the nodes of this cluster cannot be switched off from here");
            return None;
        }
        let number = node.strip_prefix('n').unwrap_or_else(|| panic!("nodes are n1, n2 …, not {node:?}")).to_owned();
        Some(Power { cluster: self, node: node.to_owned(), number })
    }
}

/// The control plane's cable is unplugged until this is dropped.
pub(crate) struct ApiCut;

impl Drop for ApiCut {
    fn drop(&mut self) {
        if let Err(why) = output(Command::new(tool()).args(["join", "api"]), None) {
            if thread::panicking() { eprintln!("{why}") } else { panic!("{why}") }
        }
    }
}

/// The API server has other feature gates until this is dropped.
pub(crate) struct Gates;

impl Drop for Gates {
    fn drop(&mut self) {
        if let Err(why) = output(Command::new(tool()).arg("gates"), None) {
            if thread::panicking() { eprintln!("{why}") } else { panic!("{why}") }
        }
    }
}

/// Switches of one node of the cluster on this machine. When it is dropped, the node is on, plugged in and Ready.
pub(crate) struct Power<'a> {
    cluster: &'a Cluster,
    node: String,
    number: String,
}

impl Power<'_> {
    /// Every process of the node is killed at once, and its cable unplugged.
    #[track_caller]
    pub(crate) fn off(&self) {
        self.switch("off");
    }
    #[track_caller]
    pub(crate) fn on(&self) {
        self.switch("on");
    }
    /// Unplugs its cable: a partition.
    #[track_caller]
    pub(crate) fn cut(&self) {
        self.switch("cut");
    }
    #[track_caller]
    pub(crate) fn join(&self) {
        self.switch("join");
    }
    /// Stops every process of the node where it is.
    #[track_caller]
    pub(crate) fn freeze(&self) {
        self.switch("freeze");
    }
    #[track_caller]
    pub(crate) fn thaw(&self) {
        self.switch("thaw");
    }

    /// Waits until the API server holds it Ready.
    pub(crate) fn wait_ready(&self, seconds: u64) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(seconds);
        while self.cluster.get(&format!("node/{}", self.node)).is_none_or(|node| condition(&node, "Ready").as_deref() != Some("True")) {
            if Instant::now() > until {
                return Err(format!("node {} was not Ready within {seconds} s", self.node));
            }
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    #[track_caller]
    fn switch(&self, how: &str) {
        if let Err(why) = output(Command::new(tool()).args([how, &self.number]), None) {
            panic!("{why}");
        }
    }
}

impl Drop for Power<'_> {
    fn drop(&mut self) {
        let restored = output(Command::new(tool()).args(["restore", &self.number]), None).and_then(|_| self.wait_ready(90));
        if let Err(why) = restored {
            if thread::panicking() { eprintln!("{why}") } else { panic!("{why}") }
        }
    }
}

/// A namespace of one test, removed on drop.
pub(crate) struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Namespace<'a> {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        output(self.cluster.command("kubectl").arg("--namespace").arg(&self.name).args(args), None)
    }

    pub(crate) fn try_apply(&self, yaml: &str) -> Result<String, String> {
        output(self.cluster.command("kubectl").arg("--namespace").arg(&self.name).args(["apply", "-f", "-"]), Some(yaml))
    }

    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        if let Err(why) = self.try_apply(yaml) {
            panic!("{why}\n{yaml}");
        }
    }

    /// An object as JSON, such as `pod/x`; `None` when there is none.
    #[track_caller]
    pub(crate) fn get(&self, what: &str) -> Option<Value> {
        self.cluster.object(what, Some(&self.name))
    }

    #[track_caller]
    pub(crate) fn list(&self, kind: &str) -> Vec<Value> {
        self.cluster.objects(kind, Some(&self.name), "")
    }

    #[track_caller]
    fn selected(&self, selector: &str) -> Vec<Value> {
        self.cluster.objects("pods", Some(&self.name), selector)
    }

    /// Names of pods by label selector, sorted; not those on their way out.
    #[track_caller]
    pub(crate) fn pods(&self, selector: &str) -> Vec<String> {
        names(&self.selected(selector).into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect::<Vec<_>>())
    }

    /// The answer to a GET through the API server's proxy: `to` is `SERVICE:PORT` or `pod/NAME:PORT`. The error holds the API server's words.
    pub(crate) fn ask(&self, to: &str, path: &str) -> Result<String, String> {
        let (kind, name) = to.split_once('/').map_or(("services", to), |(_, pod)| ("pods", pod));
        let path = format!("/api/v1/namespaces/{}/{kind}/{name}/proxy{path}", self.name);
        match self.cluster.read(&path) {
            Some(Answer { status: 200..300, body }) => Ok(body),
            Some(Answer { status, body }) => Err(format!("{path}: {status}: {body}")),
            None => self.cluster.kubectl(&["get", "--raw", &path]),
        }
    }

    /// How long the API server takes at most to delete a pod, of ten that no node has.
    #[track_caller]
    pub(crate) fn deletion_takes(&self) -> Duration {
        let pod = |number| {
            format!(
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: nobodys-{number}}}, spec: {{schedulerName: nobody, containers: [{{name: none, image: none}}]}}}}\n"
            )
        };
        self.apply(&(0..10).map(pod).collect::<String>());
        let delete = |number| {
            let path = format!("/api/v1/namespaces/{}/pods/nobodys-{number}", self.name);
            let began = Instant::now();
            let answer = self.cluster.reads().ask("DELETE", &path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(answer.status, 200, "{}", answer.body);
            began.elapsed()
        };
        (0..10).map(delete).max().unwrap_or_default()
    }

    /// Asks again and again until `probe` has something; after `seconds` panics with the state of the namespace.
    #[track_caller]
    pub(crate) fn wait<T>(&self, seconds: u64, what: impl Display, mut probe: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(seen) = probe() {
                return seen;
            }
            assert!(began.elapsed() <= Duration::from_secs(seconds), "after {seconds} s there was not {what}\n{}", self.state());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until `count` pods of a selector, and no others, are Ready; returns their names.
    #[track_caller]
    pub(crate) fn wait_ready(&self, selector: &str, count: usize) -> Vec<String> {
        self.wait(PODS_READY, format_args!("{count} Ready pods of {selector}"), || {
            let pods = self.selected(selector);
            let ready = pods.iter().all(|pod| condition(pod, "Ready").as_deref() == Some("True") && pod["metadata"]["deletionTimestamp"].is_null());
            (ready && pods.len() == count).then(|| names(&pods))
        })
    }

    /// The same of pods with sidecars. The webhook fails open: a pod that was made while it was out of reach is deleted here, as its Event advises.
    pub(crate) fn wait_injected(&self, selector: &str, count: usize) -> Vec<String> {
        self.wait(2 * PODS_READY, format_args!("{count} Ready pods of {selector} with sidecars"), || {
            let pods = self.selected(selector);
            let here: Vec<Value> = pods.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
            let bare: Vec<Value> = here.iter().filter(|pod| pod["metadata"]["annotations"]["steadfast.dev/injected"].is_null()).cloned().collect();
            for name in names(&bare) {
                eprintln!("{name} has no sidecar");
                let _ = self.kubectl(&["delete", "pod", &name, "--wait=false"]);
            }
            let ready = here.iter().all(|pod| condition(pod, "Ready").as_deref() == Some("True"));
            (bare.is_empty() && ready && here.len() == count).then(|| names(&here))
        })
    }

    /// The recommender as users run it: a Deployment `name` of pods labelled `app: name` under the restricted PodSecurity standard, spread over nodes, and a
    /// Service `name` on port 80 that targets the named port `http` (8000). `labels`: more for the pods, in YAML's flow style. Waits until all are Ready.
    #[track_caller]
    pub(crate) fn recommender(&self, name: &str, replicas: usize, labels: &str) -> Vec<String> {
        self.apply(&recommender(name, replicas, labels));
        self.wait_ready(&format!("app={name}"), replicas)
    }

    /// Everything one would look at when something in the namespace is not as it should be.
    pub(crate) fn state(&self) -> String {
        let mut state = String::new();
        let mut add = |args: &[&str]| {
            let text = self.kubectl(args).unwrap_or_else(|why| why);
            let _ = writeln!(state, "--- kubectl {}\n{text}", args.join(" "));
        };
        add(&["get", "all,endpointslices", "-o", "wide"]);
        add(&["get", "events", "--sort-by=.metadata.creationTimestamp"]);
        for pod in self.kubectl(&["get", "pods", "-o", "name"]).unwrap_or_default().lines() {
            add(&["logs", "--all-containers", "--prefix", "--tail=40", pod]);
        }
        state
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("namespace {} as the test left it:\n{}", self.name, self.state());
        }
        // Nothing waits for it: pods take their grace period.
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// See [`Namespace::recommender`].
pub(crate) fn recommender(name: &str, replicas: usize, labels: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}, {labels}}}}}
    spec:
      securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}
      terminationGracePeriodSeconds: 10
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {{matchLabels: {{app: {name}}}}}}}
      containers:
        - name: server
          image: {IMAGE}
          imagePullPolicy: Never
          args: [serve, /golden-sets/recommender, --host, 0.0.0.0, --port, '8000']
          ports: [{{name: http, containerPort: 8000}}]
          readinessProbe: {{httpGet: {{path: /v2/health/ready, port: http}}, periodSeconds: 1}}
          resources: {{requests: {{cpu: 10m, memory: 32Mi}}}}
          securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: http}}]}}
"
    )
}

/// Status of one of an object's conditions: `True`, `False`, `Unknown`.
pub(crate) fn condition(object: &Value, kind: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    Some(conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()?.to_owned())
}

/// Names of objects, sorted.
pub(crate) fn names(objects: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = objects.iter().filter_map(|object| object["metadata"]["name"].as_str()).map(str::to_owned).collect();
    names.sort();
    names
}

#[track_caller]
fn get(answer: Result<String, String>) -> Option<Value> {
    let text = answer.unwrap_or_else(|why| panic!("{why}"));
    (!text.trim().is_empty()).then(|| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[track_caller]
fn items(answer: Result<String, String>) -> Vec<Value> {
    let list = get(answer).unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Standard output, or a line that tells the command, its status and standard error.
pub(crate) fn output(command: &mut Command, input: Option<&str>) -> Result<String, String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{shown}: {error}"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).map_err(|error| format!("{shown}: {error}"))?;
    }
    let output = child.wait_with_output().map_err(|error| format!("{shown}: {error}"))?;
    let (out, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{shown}: {}\n{complaint}{out}", output.status)) }
}
