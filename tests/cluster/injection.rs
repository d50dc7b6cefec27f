//! The sidecar in pods: users reach it by the Service, nothing is lost on the way there and back, and a pod that was not injected works beside those that were.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;

use crate::{
    harness::{Cluster, Namespace, PROXY_IMAGE, STEADFAST, cluster, condition, output, recommender},
    install::install,
};

/// The minor version of Kubernetes since when a preStop hook may sleep.
const HOOKS_SLEEP_SINCE: u32 = 30;

/// What `steadfast inject` makes of manifests.
fn injected(cluster: &Cluster, yaml: &str) -> String {
    let mut command = Command::new(STEADFAST);
    command.args(["inject", "--file", "-", "--image", PROXY_IMAGE, "--image-pull-policy", "Never"]);
    if cluster.is_before(HOOKS_SLEEP_SINCE) {
        command.args(["--leave-seconds", "0"]);
    }
    output(&mut command, Some(yaml)).expect("manifests with the sidecar")
}

pub(crate) fn service(space: &Namespace<'_>, name: &str) -> SocketAddr {
    let address = space.get(&format!("service/{name}")).expect("it was applied")["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    format!("{address}:80").parse().expect("an address")
}

/// Ports of the endpoints of a Service that are ready.
fn endpoint_ports(space: &Namespace<'_>, name: &str) -> Vec<u64> {
    let slices = space
        .kubectl(&["get", "endpointslices", "--selector", &format!("kubernetes.io/service-name={name}"), "--output", "json"])
        .and_then(|json| serde_json::from_str::<Value>(&json).map_err(|error| error.to_string()))
        .expect("the slices of a Service");
    let slices = slices["items"].as_array().cloned().unwrap_or_default();
    let ready = |slice: &&Value| slice["endpoints"].as_array().is_some_and(|all| all.iter().any(|endpoint| endpoint["conditions"]["ready"] == true));
    slices.iter().filter(ready).flat_map(|slice| slice["ports"].as_array().cloned().unwrap_or_default()).filter_map(|port| port["port"].as_u64()).collect()
}

pub(crate) fn ask(to: SocketAddr) -> Result<(), String> {
    ask_for(to, "recommender")
}

/// About a model.
pub(crate) fn ask_for(to: SocketAddr, model: &str) -> Result<(), String> {
    let fail = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(fail("connect"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(fail("timeout"))?;
    write!(stream, "GET /v2/models/{model} HTTP/1.1\r\nhost: {model}\r\nconnection: close\r\n\r\n").map_err(fail("send"))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail("read"))?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(format!("{:?}", answer.lines().next())) }
}

/// When a request was sent, and what came of it.
type Asked = (Duration, Result<(), String>);

/// How a user comes.
#[derive(Clone, Copy, Debug)]
enum By {
    /// Each request on a connection of its own.
    Connections,
    /// On one that is kept for as long as the other side keeps it, and nothing is asked twice.
    KeptHttp1,
    KeptHttp2,
}

impl By {
    /// A GET each time it is called.
    fn asker(self, to: SocketAddr, model: &'static str) -> Box<dyn FnMut() -> Result<(), String>> {
        let mut builder = Client::builder(TokioExecutor::new());
        match self {
            Self::Connections => return Box::new(move || ask_for(to, model)),
            Self::KeptHttp1 => {
                builder.retry_canceled_requests(false);
            }
            // What came too late for a connection that says GOAWAY was not sent, and goes by the next one.
            Self::KeptHttp2 => {
                builder.http2_only(true);
            }
        }
        let client: Client<_, Empty<Bytes>> = builder.build_http();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Box::new(move || {
            runtime.block_on(async {
                let url = format!("http://{to}/v2/models/{model}").parse().expect("a URL");
                let answer = async {
                    let answer = client.get(url).await.map_err(|error| format!("{error:?}"))?;
                    let status = answer.status();
                    answer.into_body().collect().await.map_err(|error| format!("{error:?}"))?;
                    if status == 200 { Ok(()) } else { Err(status.to_string()) }
                };
                let answered = tokio::time::timeout(Duration::from_secs(5), answer).await;
                // The connection is served while it is waited for; that is when it hears that it shall end.
                tokio::time::sleep(Duration::from_millis(20)).await;
                answered.map_err(|_| "no answer in time".to_owned())?
            })
        })
    }
}

/// Users of a Service, until they are stopped.
pub(crate) struct Users {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<Vec<Asked>>>,
}

impl Users {
    /// Two, each request on a connection of its own.
    pub(crate) fn start(cluster: &'static Cluster, to: SocketAddr) -> Self {
        Self::of(cluster, to, "recommender")
    }

    /// Of a model.
    pub(crate) fn of(cluster: &'static Cluster, to: SocketAddr, model: &'static str) -> Self {
        Self::come(cluster, to, model, &[By::Connections, By::Connections])
    }

    fn come(cluster: &'static Cluster, to: SocketAddr, model: &'static str, users: &[By]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let began = Instant::now();
        let user = |by: &By| {
            let by = *by;
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                cluster.inside(move || {
                    let (mut asked, mut ask) = (Vec::new(), by.asker(to, model));
                    while !stop.load(Ordering::Acquire) {
                        asked.push((began.elapsed(), ask().map_err(|why| format!("{by:?}: {why}"))));
                        thread::sleep(Duration::from_millis(20));
                    }
                    asked
                })
            })
        };
        Self { threads: users.iter().map(user).collect(), stop }
    }

    /// How many requests were answered, and those that were not.
    pub(crate) fn stop(mut self) -> (usize, Vec<(Duration, String)>) {
        self.stop.store(true, Ordering::Release);
        let asked: Vec<_> = self.threads.drain(..).flat_map(|thread| thread.join().expect("a user")).collect();
        let good = asked.iter().filter(|(_, result)| result.is_ok()).count();
        (good, asked.into_iter().filter_map(|(at, result)| Some((at, result.err()?))).collect())
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn requests_seen(space: &Namespace<'_>, pod: &str) -> u64 {
    let metrics = space.ask(&format!("pod/{pod}:4179"), "/metrics").expect("the sidecar's metrics");
    metrics.lines().filter(|line| line.starts_with("steadfast_requests_total")).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
        as u64
}

#[test]
fn injected_pods_pass_the_restricted_standard_and_users_reach_the_sidecar_by_the_service() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.namespace_with("inject", "pod-security.kubernetes.io/enforce: restricted");
    space.apply(&injected(&cluster, &recommender("recommender", 2, "")));
    let pods = space.wait_ready("app=recommender", 2);
    assert_eq!(endpoint_ports(&space, "recommender"), [4180], "the Service's named port is the sidecar's");
    for pod in &pods {
        let pod = space.get(&format!("pod/{pod}")).expect("it is there");
        let sidecar = &pod["status"]["initContainerStatuses"][0];
        assert!(sidecar["name"] == "steadfast-proxy" && sidecar["started"] == true && sidecar["ready"] == true, "{sidecar}");
        assert_eq!(condition(&pod, "Ready").as_deref(), Some("True"));
    }
    let before: u64 = pods.iter().map(|pod| requests_seen(&space, pod)).sum();
    for _ in 0..20 {
        let model: Value = serde_json::from_str(&space.ask("recommender:80", "/v2/models/recommender").expect("an answer")).expect("JSON");
        assert_eq!(model["name"], "recommender");
    }
    let after: u64 = pods.iter().map(|pod| requests_seen(&space, pod)).sum();
    assert!(after - before >= 20, "{before} {after}: users go through the sidecar, and probes of the server do not");
    // Nothing that could arm a fault can be reached from outside of the pod.
    let policy = space.ask(&format!("pod/{}:4179", pods[0]), "/policy").unwrap_err();
    assert!(policy.contains("/policy is not here") || policy.contains("NotFound") || policy.contains("could not find"), "{policy}");
    assert!(space.ask(&format!("pod/{}:4178", pods[0]), "/policy").is_err());
}

#[test]
fn rolling_the_sidecar_out_and_back_under_load_loses_no_request() {
    let Some(shared) = cluster() else { return };
    if !shared.is_within_reach() || shared.lacks("a preStop hook that sleeps", HOOKS_SLEEP_SINCE) {
        return;
    }
    let _installed = install(&shared);
    let space = shared.namespace("rolling");
    let plain = recommender("recommender", 2, "");
    // Without the sidecar it is the server's own business to outlive the news of its leaving.
    let bare = plain.replace("          ports: [{name: http", "          lifecycle: {preStop: {sleep: {seconds: 5}}}\n          ports: [{name: http");
    assert!(bare.contains("preStop"));
    space.apply(&bare);
    space.wait_ready("app=recommender", 2);
    let to = service(&space, "recommender");
    space.wait(20, "an answer by the Service", || shared.inside(|| ask(to).ok()));

    let users = Users::start(shared.everywhere(), to);
    let mut rolled = Vec::new();
    let mut roll = |what: &str, manifest: &str| {
        space.apply(manifest);
        space.kubectl(&["rollout", "restart", "deployment/recommender"]).expect("restarted");
        space.kubectl(&["rollout", "status", "deployment/recommender", "--timeout=90s"]).expect("rolled out");
        rolled.push(what.to_owned());
        // The old pods take their time to go, and kube-proxies to hear of it.
        thread::sleep(Duration::from_secs(3));
    };
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/inject=true"]).expect("labelled");
    // From now on servers have no hook but that which they are given with the sidecar.
    roll("injected", &plain);
    assert_eq!(endpoint_ports(&space, "recommender"), [4180]);
    // Who keeps a connection has it with a sidecar now, and every sidecar ends while its clients go on.
    let kept = Users::come(shared.everywhere(), to, "recommender", &[By::KeptHttp1, By::KeptHttp2]);
    thread::sleep(Duration::from_secs(1));
    roll("restarted", &plain);
    space.kubectl(&["label", "namespace", space.name(), "steadfast.dev/inject-"]).expect("labelled");
    roll("back", &bare);
    assert_eq!(endpoint_ports(&space, "recommender"), [8000]);
    let ((good, failed), (good_kept, failed_kept)) = (users.stop(), kept.stop());
    println!("{good} requests answered while pods were {}, and {good_kept} by connections that are kept", rolled.join(", "));
    assert!(good > 300 && good_kept > 300, "{good} {good_kept}");
    assert_eq!(failed, [], "after {rolled:?}");
    assert_eq!(failed_kept, [], "by connections that are kept, after {rolled:?}");
}

#[test]
fn a_finished_job_is_not_kept_alive_by_its_sidecar() {
    let Some(cluster) = cluster() else { return };
    let space = cluster.namespace("job");
    let job = "apiVersion: batch/v1
kind: Job
metadata: {name: batch}
spec:
  template:
    spec:
      restartPolicy: Never
      containers:
        - {name: batch, image: 'steadfast.test/steadfast:1', imagePullPolicy: Never, args: [golden, show, /golden-sets/digits], ports: [{name: http, containerPort: 8000}]}
";
    space.apply(&injected(&cluster, job));
    space.wait(60, "a finished job", || space.get("job/batch").filter(|job| condition(job, "Complete").as_deref() == Some("True")));
}
