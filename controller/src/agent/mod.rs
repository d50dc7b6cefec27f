//! The node agent: the one privileged part, opt-in, a DaemonSet. It does what `NodeFault` objects of its own node ask for, and nothing else: cuts the node or its
//! kubelet off ([`firewall`]), makes what comes to the node wait ([`latency`]), or kills a container ([`process`]).
//!
//! ```text
//! Pending ──▶ InForce ──▶ Healed        InForce is written before the cut, because a node without network can say nothing;
//!        └──▶ Refused                   Healed after the kernel's own timer, or sooner where the object says `ended` or is deleted
//! ```
//!
//! Nothing outlives its time whatever becomes of this process: what drops packets, or leads them here, is a set element that the kernel forgets by itself. An agent that
//! starts anew ends what an earlier one had begun and left. While a node is cut off, its agent goes on hearing from the API server ([`marked`]), so that what is ended early
//! ends early.

mod firewall;
mod latency;
mod marked;
mod process;
pub mod redirect;
mod tap;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::watcher,
};
use serde_json::json;
use steadfast_api::{
    Span,
    fault::Delay,
    node::{LASTS_MAX, LATENCY_MAX, NodeFaultKind, NodeFaultPhase, NodeFaultSpec, NodeFaultStatus},
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::{
    firewall::{Cleared, Cut, Firewall},
    latency::Latency,
};
use crate::reconcile::{
    resource::{MANAGER, NodeFault},
    watched::Watched,
};

/// A status that could not be written (there is no network yet) is written again so often.
const AGAIN: Duration = Duration::from_millis(500);
const TRIES: u32 = 7_200;
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Several changes come at once.
const SETTLE: Duration = Duration::from_millis(5);

/// Run the node agent: does what `NodeFault` objects of one node ask for. The chart runs it where `nodeAgent.enabled` is set; it needs the node's network, its
/// processes, and the capabilities `NET_ADMIN` and `KILL`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of this node.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node: String,
    /// Namespace of the controller, where its NodeFaults are.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Network devices by which the node reaches others [default: those of the default routes].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub uplinks: Vec<String>,
    /// Address and port of the API server as kubelets dial it, such as 192.0.2.1:6443, where it is not among the endpoints of the Service kubernetes.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub api_servers: Vec<std::net::SocketAddr>,
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("no cluster: {0}; run it in a pod, or set KUBECONFIG")]
    NoCluster(Box<dyn std::error::Error + Send + Sync>),
    #[error("{0}")]
    Start(io::Error),
    #[error("this node's network cannot be changed: {0}; the agent needs the capability NET_ADMIN, hostNetwork and the program nft")]
    Firewall(String),
}

/// Runs until SIGTERM or SIGINT. Wants `get`, `list` and `watch` on nodefaults of its namespace, `patch` on their status, `get` on the EndpointSlice of Service kubernetes.
pub fn run(args: Args) -> Result<(), AgentError> {
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO).try_init();
    crate::http::provide();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AgentError::Start)?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(AgentError::Start)?;
        let client = marked::client().await.map_err(AgentError::NoCluster)?;
        let firewall = Firewall::new(args.uplinks.clone(), args.api_servers.clone(), client.clone()).await.map_err(AgentError::Firewall)?;
        tracing::info!(node = args.node, uplinks = ?firewall.uplinks(), "waits for node faults");
        tokio::select! {
            () = Agent { args, client, firewall: Arc::new(firewall), anew: Arc::default(), doing: HashMap::new() }.work() => {}
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        // The device to which it leads goes with this process; cuts go on by themselves.
        latency::clear().await;
        Ok(())
    })
}

struct Agent {
    args: Args,
    client: Client,
    firewall: Arc<Firewall>,
    /// A cut began, or is over: the API server must be asked anew, for the cut lets through what comes back to the agent only once the agent has spoken, and a connection
    /// that was open meanwhile may hang for minutes.
    anew: Arc<Notify>,
    /// By UID: what is being done.
    doing: HashMap<String, JoinHandle<()>>,
}

impl Agent {
    fn api(&self) -> Api<NodeFault> {
        Api::namespaced(self.client.clone(), &self.args.namespace)
    }

    async fn work(mut self) {
        loop {
            let objects = Watched::objects(self.api(), watcher::Config::default(), |_| {});
            let mut changes = objects.changes();
            objects.listed().await;
            loop {
                self.look(&objects.all()).await;
                tokio::select! {
                    _ = changes.changed() => sleep(SETTLE).await,
                    () = self.anew.notified() => break,
                }
            }
        }
    }

    /// What is asked for, held against what is being done.
    async fn look(&mut self, objects: &[Arc<NodeFault>]) {
        let mine: Vec<&Arc<NodeFault>> = objects.iter().filter(|object| object.spec.get().is_ok_and(|spec| spec.node == self.args.node)).collect();
        self.doing.retain(|uid, task| {
            let wanted = mine.iter().any(|object| object.uid().as_deref() == Some(uid) && object.spec.get().is_ok_and(|spec| !spec.ended));
            if !wanted {
                task.abort();
            }
            wanted
        });
        if self.doing.values().all(JoinHandle::is_finished) {
            // What was ended early, or was begun by an agent that is no more.
            for object in mine.iter().filter(|object| phase(object) == NodeFaultPhase::InForce && !self.doing.contains_key(&object.uid().unwrap_or_default())) {
                self.heal(object).await;
            }
            if mine.iter().all(|object| !matches!(phase(object), NodeFaultPhase::InForce | NodeFaultPhase::Pending)) {
                self.firewall.clear().await;
            }
        }
        for object in mine.iter().filter(|object| phase(object) == NodeFaultPhase::Pending) {
            let uid = object.uid().unwrap_or_default();
            if let (Ok(spec), false) = (object.spec.get(), self.doing.contains_key(&uid)) {
                let (api, firewall, anew, name, spec) = (self.api(), Arc::clone(&self.firewall), Arc::clone(&self.anew), object.name_any(), spec.clone());
                let work = async move {
                    carry_out(&api, &firewall, &name, spec, &anew).await;
                    anew.notify_one();
                };
                self.doing.insert(uid, tokio::spawn(work));
            }
        }
    }

    /// In force, and nobody here is at it: asked to end, or begun by an agent that is no more.
    async fn heal(&self, object: &NodeFault) {
        let Ok(spec) = object.spec.get() else { return };
        let cleared = self.firewall.clear().await;
        tell(&self.api(), &object.name_any(), healed(spec, &cleared)).await;
    }
}

fn phase(object: &NodeFault) -> NodeFaultPhase {
    object.status.as_ref().map(|status| status.phase).unwrap_or_default()
}

fn healed(spec: &NodeFaultSpec, cleared: &Cleared) -> NodeFaultStatus {
    let (words, seen) = match spec.fault {
        NodeFaultKind::Latency(_) => (cleared.waited.words(), cleared.waited.packets()),
        _ => (format!("{} packets were dropped", cleared.dropped), cleared.dropped),
    };
    let message = format!("{} of node {}: healed; {words}", spec.fault.name(), spec.node);
    NodeFaultStatus { phase: NodeFaultPhase::Healed, message: Some(message), seen: Some(seen) }
}

fn refused(why: String) -> NodeFaultStatus {
    NodeFaultStatus { phase: NodeFaultPhase::Refused, message: Some(why), seen: None }
}

/// What is done for as long as the fault lasts.
enum Act {
    Cut(Cut),
    Delay(Latency),
}

impl Act {
    fn delay(firewall: &Firewall, delay: &Delay) -> Result<Self, String> {
        let most = Span::new(delay.fixed.get().saturating_add(delay.jitter.get()));
        if most > LATENCY_MAX {
            return Err(format!("spec.fault.latency: {most} is longer than {LATENCY_MAX}"));
        }
        Latency::new(firewall.uplinks(), delay, firewall.waited()).map(Self::Delay)
    }

    async fn hold(&self, firewall: &Firewall, lasts: Duration, anew: &Notify) -> Result<(), String> {
        match self {
            Self::Cut(cut) => {
                firewall.cut(cut, lasts).await?;
                anew.notify_one();
                sleep(lasts).await;
                Ok(())
            }
            Self::Delay(latency) => latency.hold(lasts).await,
        }
    }
}

/// Why it shall not begin, if it shall not.
fn unwanted(spec: &NodeFaultSpec, now: Timestamp) -> Option<String> {
    if spec.ended {
        return Some("it had ended before it began".to_owned());
    }
    match spec.not_after.parse::<Timestamp>() {
        Ok(moment) if moment >= now => None,
        Ok(_) => Some(format!(
            "spec.notAfter: {} is past by this node's clock ({now:.0}): if it was made just now, the clocks of this node and of the controller's differ",
            spec.not_after
        )),
        Err(error) => Some(format!("spec.notAfter: {error}")),
    }
}

async fn carry_out(api: &Api<NodeFault>, firewall: &Firewall, name: &str, spec: NodeFaultSpec, anew: &Notify) {
    let refuse = |why: String| tell(api, name, refused(why));
    if let Some(why) = unwanted(&spec, Timestamp::now()) {
        return refuse(why).await;
    }
    if spec.lasts > LASTS_MAX {
        return refuse(format!("spec.lasts: {} is longer than {LASTS_MAX}", spec.lasts)).await;
    }
    let act = match &spec.fault {
        NodeFaultKind::ContainerKill { pod_uid, container_id } => {
            return match process::kill_container(pod_uid, container_id) {
                Ok(words) => tell(api, name, NodeFaultStatus { phase: NodeFaultPhase::Healed, message: Some(words), seen: Some(1) }).await,
                Err(why) => refuse(why).await,
            };
        }
        NodeFaultKind::Partition {} => Ok(Act::Cut(Cut::Node)),
        NodeFaultKind::KubeletCut {} => match firewall.api_servers().await {
            addresses if addresses.is_empty() => Err("no address of the API server is known: name them with --api-servers".to_owned()),
            addresses => Ok(Act::Cut(Cut::ApiServer(addresses))),
        },
        NodeFaultKind::Latency(delay) => Act::delay(firewall, delay),
    };
    let act = match act {
        Ok(act) => act,
        Err(why) => return refuse(why).await,
    };
    if !begins(api, name, &spec).await {
        return;
    }
    tracing::warn!(name, fault = spec.fault.name(), lasts = %spec.lasts, "begins");
    let held = act.hold(firewall, spec.lasts.get(), anew).await;
    let cleared = firewall.clear().await;
    if let Err(why) = held {
        return refuse(why).await;
    }
    let status = healed(&spec, &cleared);
    tracing::warn!(name, words = status.message, "healed");
    tell(api, name, status).await;
}

/// Says that it begins, of the very object that nobody has ended, changed or deleted meanwhile. False: it shall not begin.
async fn begins(api: &Api<NodeFault>, name: &str, spec: &NodeFaultSpec) -> bool {
    let message = format!("{} of node {} begins, for {}", spec.fault.name(), spec.node, spec.lasts);
    let status = NodeFaultStatus { phase: NodeFaultPhase::InForce, message: Some(message), seen: None };
    loop {
        let said = async {
            let Some(object) = api.get_opt(name).await? else { return Ok(None) };
            let why = object.spec.get().map_or_else(|why| Some(why.to_string()), |now| unwanted(now, Timestamp::now()));
            if let Some(why) = why {
                return Ok(Some(Err(why)));
            }
            let patch = json!({ "metadata": { "resourceVersion": object.resource_version() }, "status": status });
            api.patch_status(name, &PatchParams::apply(MANAGER), &Patch::Merge(&patch)).await.map(|_| Some(Ok(())))
        };
        match timeout(ANSWERS_WITHIN, said).await {
            Ok(Ok(None)) => return false,
            Ok(Ok(Some(Ok(())))) => break,
            Ok(Ok(Some(Err(why)))) => {
                tell(api, name, refused(why)).await;
                return false;
            }
            Ok(Err(kube::Error::Api(answer))) if answer.code == 404 => return false,
            // Somebody has changed it: it is looked at anew.
            Ok(Err(kube::Error::Api(answer))) if answer.code == 409 => {}
            Ok(Err(error)) => {
                tracing::info!(name, %error, "cannot be told yet");
                sleep(AGAIN).await;
            }
            Err(_) => tracing::info!(name, "the API server does not answer yet"),
        }
        // Nobody waits for it any more.
        if let Some(why) = unwanted(spec, Timestamp::now()) {
            tell(api, name, refused(why)).await;
            return false;
        }
    }
    if let Some(why) = unwanted(spec, Timestamp::now()) {
        tell(api, name, refused(why)).await;
        return false;
    }
    true
}

/// Until the API server has heard it, or an hour.
async fn tell(api: &Api<NodeFault>, name: &str, status: NodeFaultStatus) {
    let status = json!({ "status": status });
    for _ in 0..TRIES {
        let written = timeout(ANSWERS_WITHIN, api.patch_status(name, &PatchParams::apply(MANAGER), &Patch::Merge(&status))).await;
        match written {
            Ok(Ok(_)) => return,
            Ok(Err(kube::Error::Api(refused))) if refused.code == 404 => return,
            Ok(Err(error)) => tracing::info!(name, %error, "cannot be told yet"),
            Err(_) => tracing::info!(name, "the API server does not answer yet"),
        }
        sleep(AGAIN).await;
    }
}
