//! The controller on a cluster: the webhook in every replica, everything else in the one that leads.
//!
//! Pods start whether or not this runs, and what is armed ends on the sidecars' own clocks; so a replica that has lost the lead simply ends, and starts anew as one
//! that does not lead.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use ::http::{Method, Request, Response, StatusCode};
use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::body::Incoming;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Pod, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::sleep,
};

use crate::{
    access::Access,
    events::Events,
    http::{self, BadCertificate, Identity},
    install::version,
    leader::Candidate,
    metrics::Metrics,
    objects::{Objects, ObjectsError},
    platform::kubernetes::{
        UsersPods,
        failures::{Budget, Means, PowerHook, UnavailableMax, closing::Closing, undo},
    },
    reconcile::{
        fault_policy::FaultPolicies,
        golden_set::{self, GoldenSets, reader::Readers, runs::Runs},
        injection::Injection,
        pods::Pods,
        resilience_schedule::{Leave, Schedules},
        resilience_test::{Needs, Tests},
        resource::MANAGER,
        scope::Scope,
    },
    runtime::OwnThread,
    serve::{
        answer::{Body, problem, whole},
        auth::Auth,
        ingest::Ingest,
        policy::PolicyHub,
        server::{self, Sidecars},
        users::Awaited,
    },
    webhook::{
        flags::{self, RunAsUser},
        mounted::{Mounted, Shown, Source},
        patch::{ControllerAddress, LEAVE_SECONDS, RedirectSettings, SidecarResources, SidecarSettings},
        secret::Keeper,
        server::{self as webhook, Webhook},
    },
};

/// While the API server is away, it is asked again so often.
const RETRY: Duration = Duration::from_secs(2);
/// After SIGTERM the webhook goes on for so long, until everybody knows that this replica leaves.
const LEAVE: Duration = Duration::from_secs(5);
/// Pods that are gone are forgotten so often.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Longer than a killed pod is watched for its end.
const FORGET_AFTER: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: usize = 64;

/// Run the controller on a Kubernetes cluster: inject sidecars, carry out custom resources.
///
/// It talks to the cluster of its own pod, or to that of KUBECONFIG. The chart in deploy/chart runs it with everything that it needs.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Namespace of this pod.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this pod: by it one replica knows itself from the other.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub name: String,
    /// Address of this pod, where sidecars dial in while it leads.
    #[arg(long, value_name = "ADDRESS", env = "POD_IP")]
    pub address: IpAddr,
    /// Image of the sidecar.
    #[arg(long, value_name = "IMAGE", value_parser = flags::image)]
    pub proxy_image: String,
    /// Always, IfNotPresent or Never. Without it: Kubernetes' own rule.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub proxy_image_pull_policy: Option<String>,
    /// User of sidecars, of the users' pod, of readers and of pods that burn CPU; none: whom the platform draws (OpenShift), or the image names.
    #[arg(long, value_name = "USER", default_value_t = RunAsUser::DEFAULT)]
    pub run_as_user: RunAsUser,
    /// CPU that each sidecar requests.
    #[arg(long, value_name = "QUANTITY", default_value = "50m", value_parser = flags::cpu)]
    pub proxy_cpu: String,
    /// CPU that a sidecar requests and is limited to in pods of the class Guaranteed; in others there is no limit.
    #[arg(long, value_name = "QUANTITY", default_value = "1", value_parser = flags::cpu)]
    pub proxy_cpu_limit: String,
    /// Memory that each sidecar requests.
    #[arg(long, value_name = "QUANTITY", default_value = "64Mi", value_parser = flags::memory)]
    pub proxy_memory: String,
    /// Memory beyond which a sidecar is killed.
    #[arg(long, value_name = "QUANTITY", default_value = "256Mi", value_parser = flags::memory)]
    pub proxy_memory_limit: String,
    /// Seconds for which an injected server without a preStop hook goes on before it is told to stop; 0: no such hook, as on Kubernetes before 1.30, which has none.
    #[arg(long, value_name = "SECONDS", default_value_t = LEAVE_SECONDS, value_parser = clap::value_parser!(u32).range(..=600))]
    pub leave_seconds: u32,
    /// Seconds for which no other replica takes over from a leader that fell silent; it renews its Lease seven times meanwhile.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(5..=300))]
    pub lease_duration_seconds: u32,
    /// Port of the webhook.
    #[arg(long, value_name = "PORT", default_value_t = 9443)]
    pub webhook_port: u16,
    /// Port where sidecars dial in.
    #[arg(long, value_name = "PORT", default_value_t = 4193)]
    pub sidecar_port: u16,
    /// Port of /healthz, /readyz and /metrics.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub metrics_port: u16,
    /// Service of the webhook.
    #[arg(long, value_name = "NAME", default_value = "steadfast-webhook")]
    pub webhook_service: String,
    /// Service without a selector that leads sidecars to whoever leads.
    #[arg(long, value_name = "NAME", default_value = "steadfast-sidecars")]
    pub sidecar_service: String,
    /// Secret that holds the certificates.
    #[arg(long, value_name = "NAME", default_value = "steadfast-certificates")]
    pub secret: String,
    /// MutatingWebhookConfiguration that is told whom to believe.
    #[arg(long, value_name = "NAME", default_value = "steadfast")]
    pub webhook_configuration: String,
    /// Folder with tls.crt, tls.key and ca.crt that somebody else makes and renews, such as cert-manager: then no certificates are made here, nor told to the API
    /// server. They are read again when they change.
    #[arg(long, value_name = "DIR")]
    pub certificates: Option<PathBuf>,
    /// Image of steadfast with the program nft. With it, pods may ask to be redirected; without it they may not.
    #[arg(long, value_name = "IMAGE", value_parser = flags::image)]
    pub redirect_image: Option<String>,
    /// Always, IfNotPresent or Never, of that image. Without it: Kubernetes' own rule.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"], requires = "redirect_image")]
    pub redirect_image_pull_policy: Option<String>,
    /// Object store for reports, such as s3://BUCKET/PATH; its keys are in the variables of the store's own tools. Without it they are ConfigMaps.
    #[arg(long, value_name = "URL")]
    pub reports_url: Option<String>,
    /// Lease by which one replica leads.
    #[arg(long, value_name = "NAME", default_value = "steadfast")]
    pub lease: String,
    /// Have the users of a test ask from a pod of their own, away from the target's pods, where the right to make it was given.
    #[arg(long)]
    pub users_in_pod: bool,
    /// CPU that this pod requests.
    #[arg(long, value_name = "QUANTITY", default_value = "100m", value_parser = flags::cpu)]
    pub users_cpu: String,
    /// Memory that it requests.
    #[arg(long, value_name = "QUANTITY", default_value = "64Mi", value_parser = flags::memory)]
    pub users_memory: String,
    /// Memory beyond which it is killed.
    #[arg(long, value_name = "QUANTITY", default_value = "512Mi", value_parser = flags::memory)]
    pub users_memory_limit: String,
    #[command(flatten)]
    pub power: PowerArgs,
    /// Nodes that one step of a test may take away, slow down or close at once, with those that are away already: a number, or a share of all nodes, such as 34%.
    #[arg(long, value_name = "NUMBER|SHARE", default_value_t = UnavailableMax::Percent(34))]
    pub max_unavailable_nodes: UnavailableMax,
    /// Pods of its target that one step of a test may take away at once, with those that are away already: a number, or a share of them, such as 50%.
    #[arg(long, value_name = "NUMBER|SHARE", default_value_t = UnavailableMax::Percent(50))]
    pub max_unavailable_pods: UnavailableMax,
    /// Look at these namespaces alone, and need rights in no other.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
}

impl Args {
    /// What every sidecar is given.
    fn resources(&self) -> SidecarResources {
        SidecarResources {
            cpu: self.proxy_cpu.clone(),
            cpu_limit: self.proxy_cpu_limit.clone(),
            memory: self.proxy_memory.clone(),
            memory_limit: self.proxy_memory_limit.clone(),
        }
    }
}

/// Who switches nodes off and on, if anybody does.
#[derive(clap::Args, Clone, Debug)]
pub struct PowerArgs {
    /// Address that nodes are switched by: POST {"node": …, "action": "off" or "on"}. Without it nodes are cut off by their agents.
    #[arg(long, value_name = "URL")]
    pub power_hook: Option<::http::Uri>,
    /// File with the token that the power hook wants.
    #[arg(long, value_name = "FILE", requires = "power_hook")]
    pub power_hook_token: Option<PathBuf>,
    /// PEM file with the authorities that the power hook's certificate comes from [default: those of this machine].
    #[arg(long, value_name = "FILE", requires = "power_hook")]
    pub power_hook_ca: Option<PathBuf>,
}

impl PowerArgs {
    fn hook(&self) -> Option<PowerHook> {
        let url = self.power_hook.clone()?;
        Some(PowerHook { url, token_file: self.power_hook_token.clone(), ca_file: self.power_hook_ca.clone() })
    }
}

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{0}; or run it in a pod")]
    NoCluster(Box<dyn std::error::Error + Send + Sync>),
    #[error("{what}: {why}")]
    Start { what: String, why: io::Error },
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
    #[error("--reports-url {0}")]
    Reports(#[from] ObjectsError),
    /// Flags that contradict each other.
    #[error("{0}")]
    Flags(String),
    #[error("this replica leads no more: {0}")]
    LeadLost(String),
}

fn start<T>(what: impl Into<String>, result: io::Result<T>) -> Result<T, ClusterError> {
    result.map_err(|why| ClusterError::Start { what: what.into(), why })
}

/// Logs to standard error. A program that has set up logging already keeps its own.
pub fn log() {
    let _ = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO).try_init();
}

/// Runs the controller until SIGTERM or SIGINT, or until it has lost the lead.
pub fn run(args: Args) -> Result<(), ClusterError> {
    log();
    flags::within_limits(&args.resources(), "--proxy-").map_err(ClusterError::Flags)?;
    http::provide();
    let runtime = start("no runtime", tokio::runtime::Builder::new_current_thread().enable_all().build())?;
    let ended = runtime.block_on(lead(args));
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

async fn lead(args: Args) -> Result<(), ClusterError> {
    let mut stopped = stop_signals()?;
    let (client, prompt) = Access::default().clients().await.map_err(|error| ClusterError::NoCluster(Box::new(error)))?;
    let metrics = Metrics::new();
    let (ready, is_ready) = watch::channel(false);
    tokio::spawn(http::serve(listen("metrics", args.metrics_port)?, None, CONNECTIONS_MAX, {
        let metrics = metrics.clone();
        move |request| std::future::ready(health(&request, &metrics, *is_ready.borrow()))
    }));

    let names = [&args.webhook_service, &args.sidecar_service].map(|service| format!("{service}.{}.svc", args.namespace));
    let source = match &args.certificates {
        Some(folder) => Source::Mounted(Mounted::new(folder.clone())),
        None => Source::Own(Box::new(Keeper::new(client.clone(), &args.namespace, &args.secret, &args.webhook_configuration, names.to_vec()))),
    };
    let shown = tokio::select! {
        shown = source.first() => shown,
        _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
    };
    let mut args = args;
    tokio::select! {
        sleeps = hooks_sleep(&client) => if !sleeps {
            tracing::info!("this Kubernetes has no preStop hook that sleeps: servers without one of their own stop at once");
            args.leave_seconds = 0;
        },
        _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
    }
    let identity = Identity::new(&shown.certificate, &shown.key)?;
    let settings = Arc::new(ArcSwap::from_pointee(settings(&args, &shown.authorities)));
    tokio::spawn({
        let (args, identity, settings) = (args.clone(), Arc::clone(&identity), Arc::clone(&settings));
        async move {
            let changed = |now: &Shown| {
                let replaced = identity.replace(&now.certificate, &now.key);
                replaced.map(|()| settings.store(Arc::new(self::settings(&args, &now.authorities))))
            };
            source.keep(shown, changed).await;
        }
    });

    let events = Events::start(client.clone(), metrics.events_dropped.clone());
    let answers = Arc::new(Webhook { settings: Arc::clone(&settings), metrics: metrics.clone(), events: Some(events.clone()) });
    // On a thread of its own: whoever waits for a pod to be admitted waits for nothing else that happens here.
    let webhook_thread = start("webhook thread", OwnThread::start("webhook"))?;
    let listener = start("webhook port", bind(args.webhook_port))?;
    let acceptor = identity.acceptor();
    webhook_thread.handle().spawn(async move {
        match TcpListener::from_std(listener) {
            Ok(listener) => webhook::serve(listener, acceptor, answers).await,
            Err(error) => tracing::error!(%error, "the webhook cannot listen"),
        }
    });
    ready.send_replace(true);
    tracing::info!(namespace = args.namespace, webhook = args.webhook_port, "answers for pods");

    let candidate = Candidate::new(client.clone(), &args.namespace, &args.lease, &args.name, Duration::from_secs(args.lease_duration_seconds.into()));
    // Leads until what it had begun is ended, and hands the lead over only then.
    let (done, is_done) = watch::channel(false);
    let stopping = stopped.clone();
    let lost = tokio::select! {
        asked = candidate.win() => {
            metrics.leader.set(1);
            tracing::info!("leads");
            let duties = async {
                Box::pin(duties(&args, client, prompt, &identity, &settings, metrics.clone(), events, stopping)).await?;
                done.send_replace(true);
                // Until the lead is handed over.
                std::future::pending::<Result<(), ClusterError>>().await
            };
            tokio::select! {
                lost = candidate.hold(asked, is_done) => lost,
                error = duties => return error,
            }
        }
        _ = stopped.wait_for(|stopped| *stopped) => String::new(),
    };
    metrics.leader.set(0);
    ready.send_replace(false);
    if *stopped.borrow() {
        sleep(LEAVE).await;
        return Ok(());
    }
    Err(ClusterError::LeadLost(lost))
}

/// Whether a preStop hook may sleep. An API server that does not know such hooks refuses the pod.
async fn hooks_sleep(client: &Client) -> bool {
    loop {
        match client.apiserver_version().await {
            Ok(version) => return version::hooks_sleep(&version),
            Err(error) => tracing::warn!(%error, "the API server does not tell its version; asked again soon"),
        }
        sleep(RETRY).await;
    }
}

/// What the leader alone does. Returns when it cannot, or when it was told to stop and its run has ended; no sidecar is connected any more then, so that nothing they
/// say is acknowledged and lost with this process.
#[allow(clippy::too_many_arguments, reason = "one call site, where all of it is made")]
async fn duties(
    args: &Args,
    client: Client,
    prompt: Client,
    identity: &Arc<Identity>,
    settings: &Arc<ArcSwap<SidecarSettings>>,
    metrics: Metrics,
    events: Events,
    stopping: watch::Receiver<bool>,
) -> Result<(), ClusterError> {
    // Before anything is begun there is nothing to end, and what is waited for may be long in coming.
    let mut told = stopping.clone();
    let mut told = std::pin::pin!(async move { drop(told.wait_for(|told| *told).await) });
    let pods = Arc::new(Pods::watch(&client, Scope::new(&args.watch_namespaces)));
    let sidecars = Sidecars::new(PolicyHub::closed());
    let (means, uid) = tokio::select! {
        (means, uid) = means(args, client.clone(), prompt, Arc::clone(&pods), Arc::clone(&sidecars.users)) => (Arc::new(means), uid),
        () = &mut told => return Ok(()),
    };
    let users_pods = args.users_in_pod.then(|| UsersPods {
        settings: Arc::clone(settings),
        sets: Arc::clone(&sidecars.sets),
        leader: (args.name.clone(), uid),
        cpu: args.users_cpu.clone(),
        memory: args.users_memory.clone(),
        memory_limit: args.users_memory_limit.clone(),
    });
    let listener = listen("sidecars", args.sidecar_port)?;
    let mut policies = FaultPolicies::new(client.clone(), Arc::clone(&pods), Arc::clone(&sidecars.hub), Arc::clone(&sidecars.ingest), events.clone());
    tokio::select! {
        () = policies.first() => {}
        () = &mut told => return Ok(()),
    }
    let runs = Runs::new(Arc::clone(&sidecars.hub), Arc::clone(&sidecars.sets));
    let mut golden_sets = GoldenSets::new(golden_set::Parts {
        client: client.clone(),
        pods: Arc::clone(&pods),
        hub: Arc::clone(&sidecars.hub),
        ingest: Arc::clone(&sidecars.ingest),
        sets: Arc::clone(&sidecars.sets),
        readers: Readers {
            client: client.clone(),
            handed: Arc::clone(&sidecars.handed),
            settings: Arc::clone(settings),
            image: means.image.clone(),
            image_pull_policy: means.image_pull_policy.clone(),
        },
        runs: Arc::clone(&runs),
        events: events.clone(),
        metrics: metrics.clone(),
    });
    // Sidecars are told what they had before, who is out included; readers bring the rest later, and nobody's faults or runs wait for that.
    let serving = server::serve(listener, Some(identity.acceptor()), Auth::tokens(client.clone()), sidecars.clone());
    let mut serving = Box::pin(async { tokio::join!(serving, advertise(&client, args)) });
    tokio::select! {
        () = golden_sets.first() => {}
        _ = &mut serving => {}
        () = &mut told => {
            sidecars.hub.end();
            return Ok(());
        }
    }
    sidecars.hub.open();
    let schedules = Leave::new(client.clone(), Arc::clone(&pods));
    let reports = args.reports_url.as_deref().map(Objects::open).transpose()?;
    let tests = Tests::new(Needs {
        means,
        hub: Arc::clone(&sidecars.hub),
        ingest: Arc::clone(&sidecars.ingest),
        golden: runs,
        events: events.clone(),
        metrics: metrics.clone(),
        stopping,
        schedules: Arc::clone(&schedules),
        reports,
        users_pods,
    });
    let schedules = Schedules::new(client.clone(), schedules, Arc::clone(&pods), metrics.clone(), events.clone());
    let injection = Injection::new(client.clone(), Arc::clone(&pods), &args.namespace, args.redirect_image.is_some(), metrics, events);
    let for_ever = async { tokio::join!(serving, policies.run(), golden_sets.run(), schedules.run(), injection.run(), forget(&pods, &sidecars.ingest),) };
    tokio::select! {
        () = tests.run() => {}
        _ = for_ever => {}
    }
    sidecars.hub.end();
    Ok(())
}

/// What failures are made with; this pod tells its node and its image. And its UID.
async fn means(args: &Args, client: Client, prompt: Client, pods: Arc<Pods>, users: Arc<Awaited>) -> (Means, String) {
    let api: Api<Pod> = Api::namespaced(client.clone(), &args.namespace);
    let (spec, uid) = loop {
        match api.get(&args.name).await {
            Ok(pod) => break (pod.spec.unwrap_or_default(), pod.metadata.uid.unwrap_or_default()),
            Err(error) => tracing::warn!(%error, pod = args.name, "this pod cannot be read; tried again soon"),
        }
        sleep(RETRY).await;
    };
    let container = spec.containers.into_iter().next().unwrap_or_default();
    let means = Means {
        client,
        prompt,
        pods,
        namespace: args.namespace.clone(),
        node: spec.node_name.unwrap_or_default(),
        users,
        image: container.image.unwrap_or_default(),
        image_pull_policy: container.image_pull_policy,
        run_as_user: args.run_as_user,
        image_pull_secrets: spec.image_pull_secrets.unwrap_or_default(),
        power: args.power.hook(),
        budget: Budget { nodes: args.max_unavailable_nodes, pods: args.max_unavailable_pods },
    };
    (means, uid)
}

/// Take back everything that runs have in force on a cluster: cut or switched-off nodes, cordons, taints, images, replicas, burners.
///
/// Runs that go on are stopped first, with their reports, those that wait too, and none begins meanwhile. The chart runs it before it is uninstalled; run it by hand when a
/// controller is lost for good.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Example:\n  steadfast undo --namespace steadfast-system\n\nWhat is armed in sidecars ends by their own clocks and needs no undoing.")]
pub struct UndoArgs {
    /// Namespace of the controller.
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Where its tests are, if it looks at these namespaces alone.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// What cannot be taken back (a node without power whose hook is gone) is said, and no longer stands in the way of other runs.
    #[arg(long)]
    pub forget: bool,
    /// The controller is about to be removed: let no run begin afterwards either, for some minutes.
    #[arg(long)]
    pub for_good: bool,
    #[command(flatten)]
    pub power: PowerArgs,
    #[command(flatten)]
    pub access: Access,
}

/// Returns what was done, and what could not be.
///
/// # Errors
/// When there is no cluster, or it does not say what is in force.
pub async fn undo_everything(args: UndoArgs) -> Result<undo::Summary, String> {
    let (client, prompt) = args.access.clients().await.map_err(|error| error.to_string())?;
    let (closing, for_good) = (Closing::new(prompt.clone(), &args.namespace), args.for_good);
    closing.close().await.map_err(|error| error.to_string())?;
    let undone = stop_and_undo(args, client, prompt).await;
    // Also where that failed: who may not undo must not keep others from running anything.
    let opened = if for_good { Ok(()) } else { closing.open().await.map_err(|error| error.to_string()) };
    undone.and_then(|summary| opened.map(|()| summary))
}

async fn stop_and_undo(args: UndoArgs, client: Client, prompt: Client) -> Result<undo::Summary, String> {
    let scope = Scope::new(&args.watch_namespaces);
    let (stopped, problems) = crate::reconcile::resilience_test::stop_all(&client, &scope).await.map_err(|error| format!("runs cannot be stopped: {error}"))?;
    for test in &stopped {
        tracing::info!(test, "it was told to stop");
    }
    let pods = Arc::new(Pods::watch(&client, scope));
    let means = Means {
        client,
        prompt,
        pods,
        namespace: args.namespace,
        node: String::new(),
        users: Arc::default(),
        image: String::new(),
        image_pull_policy: None,
        run_as_user: RunAsUser::DEFAULT,
        image_pull_secrets: Vec::new(),
        power: args.power.hook(),
        budget: Budget::ALL,
    };
    let mut summary = undo::everything(&means, args.forget).await.map_err(|error| error.to_string())?;
    summary.failed.extend(problems);
    Ok(summary)
}

/// Whose the Lease and the EndpointSlice are that nobody installs: the account of this pod, so that they go with it when the chart goes. It goes last, so nobody is left
/// who could make them again.
async fn owner(client: &Client, args: &Args) -> Result<serde_json::Value, kube::Error> {
    let pod = Api::<Pod>::namespaced(client.clone(), &args.namespace).get(&args.name).await?;
    let name = pod.spec.and_then(|spec| spec.service_account_name).unwrap_or_default();
    let account = Api::<ServiceAccount>::namespaced(client.clone(), &args.namespace).get(&name).await?;
    Ok(json!([{ "apiVersion": "v1", "kind": "ServiceAccount", "name": name, "uid": account.metadata.uid }]))
}

/// Leads sidecars here, and goes on doing so should somebody change it.
async fn advertise(client: &Client, args: &Args) {
    let owned = async {
        let owner = owner(client, args).await?;
        let leases: Api<Lease> = Api::namespaced(client.clone(), &args.namespace);
        leases.patch(&args.lease, &PatchParams::default(), &Patch::Merge(json!({ "metadata": { "ownerReferences": owner } }))).await?;
        Ok::<_, kube::Error>(owner)
    };
    let owner = owned.await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the Lease and the EndpointSlice cannot be told whose they are, and stay when the chart goes");
        json!([])
    });
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &args.namespace);
    let name = format!("{}-leader", args.sidecar_service);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "ownerReferences": owner,
            "labels": { "kubernetes.io/service-name": args.sidecar_service, "endpointslice.kubernetes.io/managed-by": "steadfast.dev" },
        },
        "addressType": if args.address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [args.address.to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "sidecars", "port": args.sidecar_port, "protocol": "TCP" }],
    });
    loop {
        let wait = match slices.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&slice)).await {
            Ok(_) => FORGET_EVERY,
            Err(error) => {
                tracing::warn!(%error, "sidecars cannot be led here");
                RETRY
            }
        };
        sleep(wait).await;
    }
}

/// Ends the streams of pods that are gone, and frees their places. One that was deleted without grace still runs for a while, and is heard: that its sidecar falls
/// silent by itself is the proof that it ended.
async fn forget(pods: &Pods, ingest: &Ingest) {
    // Since when they are gone, or none.
    let mut known: HashMap<String, Option<Instant>> = HashMap::new();
    loop {
        let now = pods.with_sidecar();
        known.retain(|uid, gone| {
            if now.contains(uid) {
                return true;
            }
            let since = *gone.get_or_insert_with(Instant::now);
            if since.elapsed() >= FORGET_AFTER {
                ingest.forget(uid);
            }
            since.elapsed() < FORGET_AFTER
        });
        for uid in now {
            known.entry(uid).or_default();
        }
        sleep(FORGET_EVERY).await;
    }
}

fn settings(args: &Args, authorities: &str) -> SidecarSettings {
    SidecarSettings {
        image: args.proxy_image.clone(),
        image_pull_policy: args.proxy_image_pull_policy.clone(),
        run_as_user: args.run_as_user,
        controller: Some(ControllerAddress {
            url: format!("https://{}.{}.svc:{}", args.sidecar_service, args.namespace, args.sidecar_port),
            ca: authorities.to_owned(),
        }),
        resources: args.resources(),
        leave_seconds: args.leave_seconds,
        redirect: args.redirect_image.clone().map(|image| RedirectSettings { image, image_pull_policy: args.redirect_image_pull_policy.clone() }),
    }
}

fn stop_signals() -> Result<watch::Receiver<bool>, ClusterError> {
    let (stop, stopped) = watch::channel(false);
    let mut terminate = start("SIGTERM", signal(SignalKind::terminate()))?;
    let mut interrupt = start("SIGINT", signal(SignalKind::interrupt()))?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.send_replace(true);
        // Whoever waits for it lives longer than the signal.
        stop.closed().await;
    });
    Ok(stopped)
}

/// On all interfaces, of both families where the machine has both.
fn bind(port: u16) -> io::Result<std::net::TcpListener> {
    let listener =
        std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| std::net::TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn listen(what: &str, port: u16) -> Result<TcpListener, ClusterError> {
    start(format!("{what} port {port}"), bind(port).and_then(TcpListener::from_std))
}

fn health(request: &Request<Incoming>, metrics: &Metrics, ready: bool) -> Response<Body> {
    if request.method() != Method::GET {
        return problem(StatusCode::METHOD_NOT_ALLOWED, "use GET");
    }
    let (status, content_type, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "text/plain", Bytes::from_static(b"ok\n")),
        "/readyz" if ready => (StatusCode::OK, "text/plain", Bytes::from_static(b"ok\n")),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", Bytes::from_static(b"no certificates yet, or leaving\n")),
        "/metrics" => {
            let (status, text) = metrics.text();
            (status, prometheus::TEXT_FORMAT, Bytes::from(text))
        }
        other => return problem(StatusCode::NOT_FOUND, &format!("{other} is not here: there are /healthz, /readyz and /metrics")),
    };
    whole(status, content_type, body)
}
