//! What a sidecar is told when it starts: flags, checked once into [`Config`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use steadfast_api::{Span, sidecar::PodIdentity};
use steadfast_golden_sets::engine::EngineChoice;

use crate::{
    control::address::Controller,
    upstream::{BadUpstream, Upstream},
};

/// Variable with the bearer token for the controller; a flag would show it to everybody who may list processes.
pub const TOKEN_VARIABLE: &str = "STEADFAST_CONTROLLER_TOKEN";
/// Variable with the certificates by which the controller proves itself, PEM.
pub const CA_VARIABLE: &str = "STEADFAST_CONTROLLER_CA";
/// Threads that forward requests.
const THREADS_MAX: usize = 256;
/// Ports of one model server.
const ROUTES_MAX: usize = 16;

/// Stand in front of one model server: measure, inject faults when armed, replay golden inputs.
///
/// When it listens it prints one line of JSON with its addresses on standard output; logs go to standard error.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  steadfast proxy --listen 127.0.0.1:9000 --upstream 127.0.0.1:8000 --golden golden-sets/sets/recommender\n  curl -T policy.yaml http://127.0.0.1:ADMIN/policy      arm faults by hand; DELETE disarms everything"
)]
pub struct Args {
    /// Address that users reach. Port 0: any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = socket, help_heading = "Where")]
    pub listen: SocketAddr,
    /// Address of the model server: ADDRESS:PORT, or unix:/PATH of its socket.
    #[arg(long, value_name = "ADDRESS", required_unless_present = "route", help_heading = "Where")]
    pub upstream: Option<Upstream>,
    /// Instead of --listen and --upstream, for servers with several ports: where users come in and where the server listens; a port alone means all interfaces
    /// there, loopback here; unix:/PATH is the server's socket. May be repeated; the first is also the way of golden replays.
    #[arg(long, value_name = "LISTEN=UPSTREAM", conflicts_with_all = ["listen", "upstream"], help_heading = "Where")]
    pub route: Vec<String>,
    /// Address of metrics, health and /policy. Loopback only.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = socket, help_heading = "Where")]
    pub admin: SocketAddr,
    /// Address, or port on all interfaces, of /healthz, /readyz and /metrics for those who are not on this machine. /policy is not there.
    #[arg(long, value_name = "ADDRESS", help_heading = "Where")]
    pub health: Option<String>,
    /// The model server's readiness path.
    #[arg(long, value_name = "PATH", default_value = "/v2/health/ready", help_heading = "Readiness")]
    pub ready_path: String,
    /// Port on which the model server tells its readiness. Without it: the first upstream's, or its socket.
    #[arg(long, value_name = "PORT", help_heading = "Readiness")]
    pub ready_port: Option<u16>,
    /// The model server is ready when it takes connections; nothing is asked.
    #[arg(long, conflicts_with = "ready_path", help_heading = "Readiness")]
    pub ready_tcp: bool,
    /// The model server is not ready when it takes longer to say that it is.
    #[arg(long, value_name = "TIME", default_value = "1s", help_heading = "Readiness")]
    pub ready_timeout: Span,
    /// /readyz says "ready" for so long after the model server has last been.
    #[arg(long, value_name = "TIME", default_value = "0s", help_heading = "Readiness")]
    pub ready_patience: Span,
    /// Name of the pod, for reports.
    #[arg(long, value_name = "NAME", default_value = "", help_heading = "For reports")]
    pub pod_name: String,
    /// UID of the pod, for reports.
    #[arg(long, value_name = "UID", default_value = "", help_heading = "For reports")]
    pub pod_uid: String,
    /// Name of the pod's node, for reports.
    #[arg(long, value_name = "NAME", default_value = "", help_heading = "For reports")]
    pub node_name: String,
    /// Namespace of the pod, for reports.
    #[arg(long, value_name = "NAME", default_value = "", help_heading = "For reports")]
    pub namespace: String,
    /// Controller to take policies from and to report to, such as http://127.0.0.1:8600 or https://HOST:PORT, which must then prove itself by the certificates in
    /// STEADFAST_CONTROLLER_CA. The bearer token is read from STEADFAST_CONTROLLER_TOKEN, or from --token-file.
    #[arg(long, value_name = "URL", help_heading = "Controller")]
    pub controller: Option<String>,
    /// File with the bearer token; read again whenever it is sent.
    #[arg(long, value_name = "FILE", requires = "controller", help_heading = "Controller")]
    pub token_file: Option<PathBuf>,
    /// Golden set to replay against the model server; may be repeated.
    #[arg(long, value_name = "DIRECTORY", help_heading = "Golden replays")]
    pub golden: Vec<PathBuf>,
    /// Time between two replays of one set.
    #[arg(long, value_name = "TIME", default_value = "1s", help_heading = "Golden replays")]
    pub golden_every: Span,
    /// Seed of the order in which samples are drawn.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "Golden replays")]
    pub golden_seed: u64,
    /// How long a replay waits for its answer.
    #[arg(long, value_name = "TIME", default_value = "5s", help_heading = "Golden replays")]
    pub golden_timeout: Span,
    /// Replays are skipped, and counted, while more user requests than this are in progress. 0: never skipped.
    #[arg(long, value_name = "NUMBER", default_value_t = 64, help_heading = "Golden replays")]
    pub golden_skip_above: u32,
    /// Engine that recomputes reference answers: auto, rten or onnxruntime.
    #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = engine, help_heading = "Golden replays")]
    pub engine: EngineChoice,
    /// Policy to arm at once: one named policy or a snapshot, as YAML or JSON.
    #[arg(long, value_name = "FILE", help_heading = "Faults")]
    pub policy: Option<PathBuf>,
    /// Threads that forward requests. 0: one per core.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = "Limits")]
    pub threads: usize,
    /// Seed of fault draws. Without it they differ from start to start.
    #[arg(long, value_name = "NUMBER", help_heading = "Faults")]
    pub seed: Option<u64>,
    /// After SIGTERM: time during which new connections are served as before, so that whoever routes here notices that readiness is off.
    #[arg(long, value_name = "TIME", default_value = "500ms", help_heading = "End")]
    pub drain_grace: Span,
    /// After SIGTERM: longest wait for requests in progress.
    #[arg(long, value_name = "TIME", default_value = "30s", help_heading = "End")]
    pub drain_timeout: Span,
    /// Client connections at one moment, over all threads; more wait in the kernel's queue.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, help_heading = "Limits")]
    pub max_connections: usize,
    /// A client that has not sent a whole request head by then is disconnected. Idle kept-alive connections count too.
    #[arg(long, value_name = "TIME", default_value = "90s", help_heading = "Limits")]
    pub header_timeout: Span,
    /// Longest wait for a connection to the model server; then 504. A server that has not been there since this sidecar started is waited for as long; then 503.
    #[arg(long, value_name = "TIME", default_value = "2s", help_heading = "Limits")]
    pub connect_timeout: Span,
    /// Longest wait for the model server's response head; then 504.
    #[arg(long, value_name = "TIME", default_value = "5m", help_heading = "Limits")]
    pub upstream_timeout: Span,
    /// Answers larger than this many bytes cannot be corrupted: they pass unharmed and are counted.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, help_heading = "Faults")]
    pub corrupt_max_bytes: usize,
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "give ADDRESS:PORT, such as 127.0.0.1:9000 or [::1]:9000".to_owned())
}

fn engine(text: &str) -> Result<EngineChoice, String> {
    EngineChoice::from_str(text)
}

/// A flag that cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{flag} {value}: {why}")]
pub struct BadFlag {
    pub flag: &'static str,
    pub value: String,
    /// What is wrong and what would be right.
    pub why: String,
}

/// Where users come in, and the model server behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub listen: SocketAddr,
    pub upstream: Upstream,
}

/// How the model server tells that it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Http {
        address: Upstream,
        path: http::uri::PathAndQuery,
    },
    /// It takes connections.
    Tcp {
        address: Upstream,
    },
}

/// Checked flags.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; the first is the way of golden replays.
    pub routes: Vec<Route>,
    pub admin: SocketAddr,
    pub health: Option<SocketAddr>,
    pub readiness: Readiness,
    /// For one look at it.
    pub ready_timeout: Duration,
    /// For so long it may be gone before users are sent elsewhere.
    pub ready_patience: Duration,
    pub pod: PodIdentity,
    pub controller: Option<Controller>,
    pub golden: Vec<PathBuf>,
    pub golden_every: Duration,
    pub golden_seed: u64,
    pub golden_timeout: Duration,
    pub golden_skip_above: u32,
    pub engine: EngineChoice,
    pub policy: Option<PathBuf>,
    pub threads: usize,
    pub seed: u64,
    pub drain_grace: Duration,
    pub drain_timeout: Duration,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub connect_timeout: Duration,
    pub upstream_timeout: Duration,
    pub corrupt_max_bytes: usize,
}

impl Config {
    /// Whether kubelets and others ask at `path` whether the model server is ready.
    pub fn is_ready_path(&self, path: &str) -> bool {
        matches!(&self.readiness, Readiness::Http { path: ready, .. } if ready.path() == path)
    }

    /// Where golden replays go.
    pub fn upstream(&self) -> &Upstream {
        &self.routes[0].upstream
    }

    /// Checks `args`. `variable` reads a variable of the environment.
    pub fn new(args: Args, variable: impl Fn(&str) -> Option<String>) -> Result<Self, BadFlag> {
        let bad = |flag, value: &dyn ToString, why: &str| BadFlag { flag, value: value.to_string(), why: why.to_owned() };
        if !args.admin.ip().is_loopback() {
            return Err(bad("admin", &args.admin, "the admin port has no authentication and stays on loopback: give 127.0.0.1:PORT or [::1]:PORT"));
        }
        let routes = routes(&args)?;
        let health =
            args.health.as_ref().map(|text| address(text, UNSPECIFIED).ok_or_else(|| bad("health", text, "give a port such as 4179, or ADDRESS:PORT")));
        let health = health.transpose()?;
        let ready_address = args.ready_port.map_or_else(|| routes[0].upstream.clone(), |port| routes[0].upstream.with_port(port));
        let ready_path = args.ready_path.parse().ok().filter(|_| args.ready_path.starts_with('/'));
        let ready_path = ready_path.ok_or_else(|| bad("ready-path", &args.ready_path, "give a path that begins with a slash, such as /v2/health/ready"))?;
        let readiness = if args.ready_tcp { Readiness::Tcp { address: ready_address } } else { Readiness::Http { address: ready_address, path: ready_path } };
        if args.threads > THREADS_MAX {
            return Err(bad("threads", &args.threads, "give 1 to 256, or 0 for one per core"));
        }
        if args.max_connections == 0 {
            return Err(bad("max-connections", &0, "give at least 1"));
        }
        for (flag, span) in [
            ("ready-timeout", args.ready_timeout),
            ("golden-every", args.golden_every),
            ("golden-timeout", args.golden_timeout),
            ("header-timeout", args.header_timeout),
            ("connect-timeout", args.connect_timeout),
            ("upstream-timeout", args.upstream_timeout),
        ] {
            if span.get() < Duration::from_millis(1) {
                return Err(bad(flag, &span, "give at least 1ms"));
            }
        }
        let controller = args.controller.map(|url| Controller::new(&url, args.token_file, variable(TOKEN_VARIABLE), variable(CA_VARIABLE))).transpose()?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            routes,
            admin: args.admin,
            health,
            readiness,
            ready_timeout: args.ready_timeout.get(),
            ready_patience: args.ready_patience.get(),
            pod: PodIdentity { name: args.pod_name, uid: args.pod_uid, node: args.node_name, namespace: args.namespace },
            controller,
            golden: args.golden,
            golden_every: args.golden_every.get(),
            golden_seed: args.golden_seed,
            golden_timeout: args.golden_timeout.get(),
            golden_skip_above: args.golden_skip_above,
            engine: args.engine,
            policy: args.policy,
            threads: if args.threads == 0 { cores.min(THREADS_MAX) } else { args.threads },
            seed: args.seed.unwrap_or_else(rand::random),
            drain_grace: args.drain_grace.get(),
            drain_timeout: args.drain_timeout.get(),
            max_connections: args.max_connections,
            header_timeout: args.header_timeout.get(),
            connect_timeout: args.connect_timeout.get(),
            upstream_timeout: args.upstream_timeout.get(),
            corrupt_max_bytes: args.corrupt_max_bytes,
        })
    }
}

/// Every interface, of both families where the machine has both.
pub const UNSPECIFIED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// `ADDRESS:PORT`, or a port of `host`.
fn address(text: &str, host: IpAddr) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse().ok().map(|port: u16| SocketAddr::new(host, port)))
}

fn routes(args: &Args) -> Result<Vec<Route>, BadFlag> {
    let bad = |flag, value: &dyn ToString, why: &str| BadFlag { flag, value: value.to_string(), why: why.to_owned() };
    if let Some(upstream) = &args.upstream {
        return Ok(vec![Route { listen: args.listen, upstream: upstream.clone() }]);
    }
    if args.route.len() > ROUTES_MAX {
        return Err(bad("route", &format!("{} times", args.route.len()), "give it 16 times at most"));
    }
    let one = |text: &String| {
        let parts = text.split_once('=').and_then(|(listen, upstream)| Some((address(listen, UNSPECIFIED)?, upstream)));
        let form = "give LISTEN=UPSTREAM, each a port or ADDRESS:PORT, such as 4180=8000; UPSTREAM may be unix:/PATH";
        let (listen, upstream) = parts.ok_or_else(|| bad("route", text, form))?;
        let upstream = match address(upstream, Ipv4Addr::LOCALHOST.into()) {
            Some(address) => address.to_string(),
            None => upstream.to_owned(),
        };
        let upstream = upstream.parse().map_err(|why| match why {
            BadUpstream::NoAddress => bad("route", text, form),
            why => bad("route", text, &why.to_string()),
        })?;
        Ok(Route { listen, upstream })
    };
    args.route.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn config(flags: &str) -> Result<Config, BadFlag> {
        let line = ["proxy", "--upstream", "127.0.0.1:8000"].into_iter().chain(flags.split_whitespace());
        Config::new(Line::try_parse_from(line).unwrap().args, |name| (name == TOKEN_VARIABLE).then(|| "secret".into()))
    }

    #[test]
    fn a_route_is_a_pair_of_ports_or_addresses() {
        let config = |flags: &str| Config::new(Line::try_parse_from(["proxy"].into_iter().chain(flags.split_whitespace())).unwrap().args, |_| None);
        let good = config("--route 4180=8000 --route 127.0.0.1:0=10.0.0.1:9 --ready-tcp --ready-port 81 --health 4179").unwrap();
        let addresses: Vec<_> = good.routes.iter().map(|route| format!("{}={}", route.listen, route.upstream)).collect();
        assert_eq!(addresses, ["[::]:4180=127.0.0.1:8000", "127.0.0.1:0=10.0.0.1:9"]);
        assert_eq!(good.readiness, Readiness::Tcp { address: "127.0.0.1:81".parse().unwrap() });
        assert_eq!(good.health.unwrap().port(), 4179);
        for bad in ["4180", "4180=", "4180=0", "x=1", "4180:8000", "4180=unix", "4180=unix:a.sock"] {
            let error = config(&format!("--route {bad}")).unwrap_err().to_string();
            let right = if bad.contains("unix:") { "begins at the root" } else { "4180=8000" };
            assert!(error.contains(bad) && (error.contains(right) || error.contains("port 0")), "{error}");
        }
        let socket = config("--route 4180=unix:/run/model/http.sock").unwrap();
        assert_eq!(socket.readiness, Readiness::Http { address: "unix:/run/model/http.sock".parse().unwrap(), path: "/v2/health/ready".parse().unwrap() });
        let refused = Line::try_parse_from(["proxy", "--upstream", "unix:a.sock"]).err().unwrap().to_string();
        assert!(refused.contains("unix:a.sock") && refused.contains("begins at the root"), "{refused}");
        assert!(Line::try_parse_from(["proxy"]).is_err(), "either is needed");
        assert!(Line::try_parse_from(["proxy", "--route", "1=2", "--upstream", "127.0.0.1:1"]).is_err(), "not both");
    }

    #[test]
    fn a_bad_flag_is_refused_with_what_would_be_right() {
        for (flags, says) in [
            ("--admin 0.0.0.0:9000", "loopback"),
            ("--ready-path ready", "/v2/health/ready"),
            ("--threads 257", "1 to 256"),
            ("--controller 127.0.0.1:80", "http://HOST:PORT"),
            ("--controller https://127.0.0.1:80", "STEADFAST_CONTROLLER_CA"),
            ("--controller http://localhost", "http://HOST:PORT"),
            ("--golden-every 0s", "at least 1ms"),
        ] {
            let error = config(flags).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(flags), "{error}");
        }
    }

    #[test]
    fn help_explains_every_option() {
        use clap::CommandFactory;
        let command = Line::command();
        assert!(command.get_arguments().count() > 30);
        for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.len() > 20, "--{} is not explained: {help:?}", argument.get_id());
        }
    }

    #[test]
    fn defaults_are_enough() {
        let config = config("--controller http://127.0.0.1:80").unwrap();
        assert!(config.threads >= 1);
        let controller = config.controller.unwrap();
        assert_eq!((controller.authority.as_str(), controller.authorization().unwrap().to_str().unwrap()), ("127.0.0.1:80", "Bearer secret"));
    }
}
