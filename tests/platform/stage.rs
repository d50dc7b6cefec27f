//! A local platform with pods of the digits classifier, and what it told so far.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use steadfast_api::read::from_yaml;
use steadfast_controller::{
    platform::{
        Change, Platform, Pod, What,
        local::{LocalOptions, LocalPlatform, scan},
    },
    serve::Seen,
};
use steadfast_golden_sets::{
    GoldenSet,
    oip::{self, RequestOptions},
    set,
};
use tokio::sync::{Mutex, MutexGuard, mpsc};

pub(crate) const STEADFAST: &str = env!("CARGO_BIN_EXE_steadfast");
/// Nothing here takes this long on a machine that works.
const PATIENCE: Duration = Duration::from_secs(30);

/// Platforms measure time: two at once would disturb each other.
pub(crate) static ONE: Mutex<()> = Mutex::const_new(());
static RUNS: AtomicU32 = AtomicU32::new(0);

/// See the module.
pub(crate) struct Stage {
    pub(crate) platform: LocalPlatform,
    pub(crate) seen: mpsc::Receiver<Seen>,
    /// Every change so far, in order.
    pub(crate) told: Vec<Change>,
    pub(crate) run: String,
    pub(crate) run_dir: PathBuf,
    client: Client<HttpConnector, Full<Bytes>>,
    body: Bytes,
    uri: String,
    _one: MutexGuard<'static, ()>,
}

/// A good answer.
pub(crate) struct Answered {
    pub(crate) pod: String,
    pub(crate) took: Duration,
    pub(crate) injected: bool,
}

pub(crate) fn file(nodes: usize, replicas: usize, command: &str) -> String {
    format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {{name: platform}}
spec:
  target: {{selector: {{matchLabels: {{app: digits}}}}}}
  local:
    nodes: {nodes}
    pods:
      replicas: {replicas}
      labels: {{app: digits}}
      command: [{command}]
      ready: {{period: 100ms, timeout: 500ms}}
      terminationGracePeriod: 5s
    timers: {{nodeMonitorGracePeriod: 700ms, tolerationSeconds: 600ms, backOff: 300ms, backOffMax: 2s}}
  load: [{{name: users, rate: 100/s, inputs: {{goldenSet: digits}}}}]
  golden: [{{set: digits, every: 200ms}}]
  steps: []
  seed: 7
"
    )
}

pub(crate) const SERVE: &str = "steadfast, serve, golden-sets/sets/digits, --port, $(PORT)";

pub(crate) fn digits() -> GoldenSet {
    set::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden-sets/sets/digits")).unwrap()
}

impl Stage {
    /// All pods are created, none need be ready.
    pub(crate) async fn set(nodes: usize, replicas: usize, command: &str) -> Self {
        let one = ONE.lock().await;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let run = format!("platform-test-{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let run_dir = std::env::temp_dir().join(&run);
        let (platform, seen) = LocalPlatform::start(LocalOptions {
            exe: STEADFAST.into(),
            test: from_yaml("platform.yaml", &file(nodes, replicas, command)).unwrap(),
            golden: vec![root.join("golden-sets/sets/digits")],
            run_id: run.clone(),
            run_dir: run_dir.clone(),
            work_dir: root.to_owned(),
        })
        .await
        .unwrap();
        let set = digits();
        let body = oip::encode_request(&set.samples()[0].inputs, &RequestOptions::default()).unwrap().body;
        let uri = format!("http://{}{}", platform.service(), oip::route::infer(&set.manifest().model, ""));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { platform, seen, told: Vec::new(), run, run_dir, client, body, uri, _one: one }
    }

    /// All pods are in the Service.
    pub(crate) async fn serving(nodes: usize, replicas: usize) -> Self {
        let mut stage = Self::set(nodes, replicas, SERVE).await;
        stage.until_serving(replicas).await;
        stage
    }

    pub(crate) async fn until_serving(&mut self, pods: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.serving_now().len() != pods {
            let next = tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), self.platform.next_change()).await;
            self.told.push(next.unwrap_or_else(|_| panic!("not {pods} pods in the Service: {:#?}", self.told)).unwrap());
        }
        self.catch_up().await;
    }

    pub(crate) fn serving_now(&self) -> Vec<Pod> {
        self.platform.pods().into_iter().filter(|pod| pod.in_service).collect()
    }

    /// Waits for the next change that `wanted` accepts, among those not looked at yet.
    pub(crate) async fn next(&mut self, wanted: impl Fn(&What) -> bool) -> Change {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let next = tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), self.platform.next_change()).await;
            let change = next.unwrap_or_else(|_| panic!("it did not come: {:#?}", self.told)).unwrap();
            self.told.push(change.clone());
            if wanted(&change.what) {
                return change;
            }
        }
    }

    /// Takes in what was told until now.
    pub(crate) async fn catch_up(&mut self) {
        while let Ok(Some(change)) = tokio::time::timeout(Duration::from_millis(1), self.platform.next_change()).await {
            self.told.push(change);
        }
    }

    /// A user's request, given up after `patience`: how long it took, and the answer.
    pub(crate) async fn ask(&self, patience: Duration) -> (Duration, Option<Response<Incoming>>) {
        let request = Request::post(&self.uri).header("content-type", "application/json").body(Full::new(self.body.clone())).unwrap();
        let asked = Instant::now();
        let answer = tokio::time::timeout(patience, self.client.request(request)).await.ok().map(Result::unwrap);
        (asked.elapsed(), answer)
    }

    /// One user's request to each pod in the Service. All must be answered 200.
    pub(crate) async fn ask_all(&self) -> Vec<Answered> {
        let mut answers = Vec::new();
        for _ in 0..self.serving_now().len() {
            let (took, answer) = self.ask(Duration::from_secs(5)).await;
            let answer = answer.unwrap();
            let (status, headers) = (answer.status(), answer.headers().clone());
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(status, 200, "{body:?}");
            answers.push(Answered { pod: headers["steadfast-pod"].to_str().unwrap().to_owned(), took, injected: headers.contains_key("steadfast-injected") });
        }
        answers.sort_by(|a, b| a.pod.cmp(&b.pod));
        answers
    }

    /// Kills everything and checks that nothing is left.
    pub(crate) async fn close(self) {
        assert_eq!(self.platform.close().await, Vec::<String>::new());
        assert_eq!(scan::processes_of(&self.run), []);
        assert!(!self.run_dir.exists(), "{}", self.run_dir.display());
    }
}

/// Processes whose environment holds `entry` and whose command line holds `word`.
pub(crate) fn processes_with(entry: &str, word: &str) -> Vec<i32> {
    let holds = |file: &str, text: &str| fs::read(file).is_ok_and(|bytes| bytes.split(|byte| *byte == 0).any(|part| part == text.as_bytes()));
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| holds(&format!("/proc/{pid}/environ"), entry) && holds(&format!("/proc/{pid}/cmdline"), word)).collect()
}

pub(crate) fn uid_of(what: &What) -> Option<&str> {
    match what {
        What::Created { pod, .. } => Some(&pod.uid),
        What::Scheduled { uid, .. }
        | What::Initialized { uid }
        | What::ContainerStarted { uid, .. }
        | What::Ready { uid, .. }
        | What::Endpoint { uid, .. }
        | What::Detected { uid, .. }
        | What::HeldOut { uid, .. }
        | What::BackOff { uid, .. }
        | What::Retired { uid }
        | What::Terminating { uid }
        | What::Gone { uid, .. } => Some(uid),
        What::Node { .. } => None,
    }
}

/// What was told of one pod, in order.
pub(crate) fn of<'a>(told: &'a [Change], uid: &str) -> Vec<&'a Change> {
    told.iter().filter(|change| uid_of(&change.what) == Some(uid)).collect()
}

/// Words of the changes, for comparing.
pub(crate) fn words(changes: &[&Change]) -> Vec<&'static str> {
    let word = |change: &&Change| match &change.what {
        What::Created { .. } => "created",
        What::Scheduled { .. } => "scheduled",
        What::Initialized { .. } => "initialized",
        What::ContainerStarted { .. } => "started",
        What::Ready { ready: true, .. } => "ready",
        What::Ready { ready: false, .. } => "not ready",
        What::Endpoint { present: true, .. } => "in",
        What::Endpoint { present: false, .. } => "out",
        What::Detected { .. } => "detected",
        What::HeldOut { .. } => "held out",
        What::BackOff { .. } => "back-off",
        What::Retired { .. } => "retired",
        What::Terminating { .. } => "terminating",
        What::Gone { .. } => "gone",
        What::Node { .. } => "node",
    };
    changes.iter().map(word).collect()
}
