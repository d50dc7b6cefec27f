//! What a sidecar is told when it starts: flags, checked once into [`Config`].

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use steadfast_api::{Span, sidecar::PodIdentity};
use steadfast_golden_sets::engine::EngineChoice;

/// Variable with the bearer token for the controller; a flag would show it to everybody who may list processes.
pub const TOKEN_VARIABLE: &str = "STEADFAST_CONTROLLER_TOKEN";
/// Threads that forward requests.
const THREADS_MAX: usize = 256;

/// Stand in front of one model server: measure, inject faults when armed, replay golden inputs.
///
/// When it listens it prints one line of JSON with its addresses on standard output; logs go to standard error.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  steadfast proxy --listen 127.0.0.1:9000 --upstream 127.0.0.1:8000 --golden golden-sets/sets/recommender\n  curl -T policy.yaml http://127.0.0.1:ADMIN/policy      arm faults by hand; DELETE disarms everything"
)]
pub struct Args {
    /// Address that users reach. Port 0: any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Address of the model server.
    #[arg(long, value_name = "ADDRESS")]
    pub upstream: SocketAddr,
    /// Address of metrics, health and /policy. Loopback only.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub admin: SocketAddr,
    /// The model server's readiness path.
    #[arg(long, value_name = "PATH", default_value = "/v2/health/ready")]
    pub ready_path: String,
    /// Name of the pod, for reports.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub pod_name: String,
    /// UID of the pod, for reports.
    #[arg(long, value_name = "UID", default_value = "")]
    pub pod_uid: String,
    /// Name of the pod's node, for reports.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub node_name: String,
    /// Controller to take policies from and to report to, such as http://127.0.0.1:8600. The bearer token is read from STEADFAST_CONTROLLER_TOKEN.
    #[arg(long, value_name = "URL")]
    pub controller: Option<String>,
    /// Golden set to replay against the model server; may be repeated.
    #[arg(long, value_name = "DIRECTORY")]
    pub golden: Vec<PathBuf>,
    /// Time between two replays of one set.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub golden_every: Span,
    /// Seed of the order in which samples are drawn.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub golden_seed: u64,
    /// How long a replay waits for its answer.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub golden_timeout: Span,
    /// Replays are skipped, and counted, while more user requests than this are in progress. 0: never skipped.
    #[arg(long, value_name = "NUMBER", default_value_t = 64)]
    pub golden_skip_above: u32,
    /// Engine that recomputes reference answers: auto, rten or onnxruntime.
    #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = engine)]
    pub engine: EngineChoice,
    /// Policy to arm at once: one named policy or a snapshot, as YAML or JSON.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Threads that forward requests. 0: one per core.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub threads: usize,
    /// Seed of fault draws. Without it they differ from start to start.
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// After SIGTERM: time during which new connections are served as before, so that whoever routes here notices that readiness is off.
    #[arg(long, value_name = "TIME", default_value = "500ms")]
    pub drain_grace: Span,
    /// After SIGTERM: longest wait for requests in progress.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub drain_timeout: Span,
    /// Client connections at one moment, over all threads; more wait in the kernel's queue.
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000)]
    pub max_connections: usize,
    /// A client that has not sent a whole request head by then is disconnected. Idle kept-alive connections count too.
    #[arg(long, value_name = "TIME", default_value = "90s")]
    pub header_timeout: Span,
    /// Longest wait for a connection to the model server; then 504.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub connect_timeout: Span,
    /// Longest wait for the model server's response head; then 504.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub upstream_timeout: Span,
    /// Answers larger than this many bytes cannot be corrupted: they pass unharmed and are counted.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20)]
    pub corrupt_max_bytes: usize,
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

/// The controller's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// `host:port`.
    pub authority: String,
    /// Bearer token; empty: none.
    pub token: String,
}

/// Checked flags.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub upstream: SocketAddr,
    pub admin: SocketAddr,
    pub ready_path: http::uri::PathAndQuery,
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
    /// Checks `args`. `token` is the controller's bearer token.
    pub fn new(args: Args, token: Option<String>) -> Result<Self, BadFlag> {
        let bad = |flag, value: &dyn ToString, why: &str| BadFlag { flag, value: value.to_string(), why: why.to_owned() };
        if !args.admin.ip().is_loopback() {
            return Err(bad("admin", &args.admin, "the admin port has no authentication and stays on loopback: give 127.0.0.1:PORT or [::1]:PORT"));
        }
        if args.upstream.port() == 0 {
            return Err(bad("upstream", &args.upstream, "port 0 cannot be dialled: give the model server's port"));
        }
        let ready_path = args.ready_path.parse().ok().filter(|_| args.ready_path.starts_with('/'));
        let ready_path = ready_path.ok_or_else(|| bad("ready-path", &args.ready_path, "give a path that begins with a slash, such as /v2/health/ready"))?;
        if args.threads > THREADS_MAX {
            return Err(bad("threads", &args.threads, "give 1 to 256, or 0 for one per core"));
        }
        if args.max_connections == 0 {
            return Err(bad("max-connections", &0, "give at least 1"));
        }
        for (flag, span) in [
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
        let controller = match args.controller {
            None => None,
            Some(url) => {
                let uri: Option<http::Uri> = url.parse().ok();
                let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none());
                let authority = uri.as_ref().and_then(http::Uri::authority).filter(|authority| authority.port().is_some());
                let Some(authority) = authority else {
                    return Err(bad("controller", &url, "give http://HOST:PORT"));
                };
                let token = token.unwrap_or_default();
                if http::HeaderValue::try_from(&token).is_err() {
                    return Err(BadFlag {
                        flag: "controller",
                        value: url,
                        why: format!("the token in {TOKEN_VARIABLE} has characters that no header can carry"),
                    });
                }
                Some(Controller { authority: authority.to_string(), token })
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            listen: args.listen,
            upstream: args.upstream,
            admin: args.admin,
            ready_path,
            pod: PodIdentity { name: args.pod_name, uid: args.pod_uid, node: args.node_name, namespace: String::new() },
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
        Config::new(Line::try_parse_from(line).unwrap().args, Some("secret".into()))
    }

    #[test]
    fn a_bad_flag_is_refused_with_what_would_be_right() {
        for (flags, says) in [
            ("--admin 0.0.0.0:9000", "loopback"),
            ("--ready-path ready", "/v2/health/ready"),
            ("--threads 257", "1 to 256"),
            ("--controller 127.0.0.1:80", "http://HOST:PORT"),
            ("--controller https://127.0.0.1:80", "http://HOST:PORT"),
            ("--controller http://localhost", "http://HOST:PORT"),
            ("--golden-every 0s", "at least 1ms"),
        ] {
            let error = config(flags).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(flags), "{error}");
        }
    }

    #[test]
    fn defaults_are_enough() {
        let config = config("--controller http://127.0.0.1:80").unwrap();
        assert!(config.threads >= 1);
        assert_eq!(config.controller.unwrap(), Controller { authority: "127.0.0.1:80".into(), token: "secret".into() });
    }
}
