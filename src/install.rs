//! `steadfast install --check`: would it work on this cluster?

use std::process::ExitCode;

use clap::Args as ClapArgs;
use steadfast_controller::{
    access::Access,
    install::{self, CheckError, Checked, NAMESPACE, Options, Severity},
    webhook::{
        flags::{self, RunAsUser},
        patch::SidecarResources,
        resources::Overrides,
    },
};

use crate::{
    exit,
    run::{Output, print},
};

/// Ask a cluster whether Steadfast can be installed there and would work: versions, your rights, what is there already, and what would be refused.
///
/// Nothing is changed: objects and pods are tried by dry run, with your own rights. Installing itself is one command of Helm (deploy/chart) or kubectl
/// (deploy/manifests).
#[derive(ClapArgs)]
#[command(
    after_help = "Example:\n  steadfast install --check --target models && helm install steadfast deploy/chart --namespace steadfast-system --create-namespace\n\nExit status: 0 it can be installed (warnings or not), 1 something blocks it, 2 no cluster, 3 the API server does not answer."
)]
pub(crate) struct Args {
    /// Only look, and say what was found.
    #[arg(long, required = true)]
    check: bool,
    /// Where the controller would be.
    #[arg(long, short, value_name = "NAME", default_value = NAMESPACE, value_parser = namespace)]
    namespace: String,
    /// With the node agent, the one privileged part.
    #[arg(long)]
    node_agent: bool,
    /// Namespaces of model servers [default: those labelled steadfast.dev/inject=true or steadfast.dev/faults=allowed].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = namespace)]
    target: Vec<String>,
    /// CPU that sidecars would request (proxy.cpu) [default: as the controller that is there says, or the chart].
    #[arg(long, value_name = "QUANTITY", value_parser = flags::cpu)]
    proxy_cpu: Option<String>,
    /// CPU that they would request and be limited to in pods of the class Guaranteed (proxy.cpuLimit).
    #[arg(long, value_name = "QUANTITY", value_parser = flags::cpu)]
    proxy_cpu_limit: Option<String>,
    /// Memory that they would request (proxy.memory).
    #[arg(long, value_name = "QUANTITY", value_parser = flags::memory)]
    proxy_memory: Option<String>,
    /// Memory beyond which they would be killed (proxy.memoryLimit).
    #[arg(long, value_name = "QUANTITY", value_parser = flags::memory)]
    proxy_memory_limit: Option<String>,
    /// User of the controller's pods and of sidecars (runAsUser); none: whom the platform draws.
    #[arg(long, value_name = "USER")]
    run_as_user: Option<RunAsUser>,
    #[command(flatten)]
    access: Access,
    /// Text for people, or JSON.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

fn namespace(text: &str) -> Result<String, String> {
    let is_label = !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_label && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(text.to_owned());
    }
    Err("a namespace's name has lower-case letters, digits and dashes inside, and at most 63 of them".to_owned())
}

pub(crate) fn main(args: Args) -> ExitCode {
    debug_assert!(args.check, "clap wants it");
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    let proxy = Overrides { cpu: args.proxy_cpu, cpu_limit: args.proxy_cpu_limit, memory: args.proxy_memory, memory_limit: args.proxy_memory_limit };
    if let Err(why) = flags::within_limits(&SidecarResources::default().with(&proxy), "--proxy-") {
        return exit::bad_input(why);
    }
    let options =
        Options { namespace: args.namespace, node_agent: args.node_agent, targets: args.target, proxy, run_as_user: args.run_as_user, access: args.access };
    let checked = match runtime.block_on(install::check(&options)) {
        Ok(checked) => checked,
        Err(error @ CheckError::NoCluster(_)) => return exit::bad_input(error),
        Err(error @ CheckError::Unavailable { .. }) => {
            eprintln!("steadfast: {error}");
            return ExitCode::from(3);
        }
    };
    let text = match args.output {
        Output::Text => told(&checked),
        Output::Json => match serde_json::to_string_pretty(&checked) {
            Ok(json) => json + "\n",
            Err(error) => return exit::failed(error),
        },
    };
    match checked.verdict {
        Severity::Blocked => {
            print(&text);
            ExitCode::FAILURE
        }
        Severity::Ok | Severity::Warning => print(&text),
    }
}

fn told(checked: &Checked) -> String {
    let head = format!("Kubernetes {} at {}, Steadfast {} in namespace {}\n", checked.version, checked.server, env!("CARGO_PKG_VERSION"), checked.namespace);
    let mut lines = vec![head];
    for finding in &checked.findings {
        lines.push(format!("{:<8} {:<12} {}", finding.severity.name(), finding.check, finding.message));
        lines.extend(finding.next.as_ref().map(|next| format!("{:<21} → {next}", "")));
    }
    let count = |severity| checked.findings.iter().filter(|finding| finding.severity == severity).count();
    lines.push(match checked.verdict {
        Severity::Ok => "\nIt can be installed.".to_owned(),
        Severity::Warning => format!("\nIt can be installed; warnings: {}.", count(Severity::Warning)),
        Severity::Blocked => format!("\nIt cannot be installed yet; what blocks it: {}.", count(Severity::Blocked)),
    });
    lines.join("\n") + "\n"
}
