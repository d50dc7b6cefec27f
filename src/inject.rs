//! `steadfast inject`: the sidecar in manifests, as the webhook would put it into pods.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
    process::ExitCode,
};

use steadfast_controller::webhook::{
    flags::{self, RunAsUser},
    manifest::{self, Done, File},
    patch::{ControllerAddress, LEAVE_SECONDS, RedirectSettings, SidecarResources, SidecarSettings},
};
use steadfast_proxy::control::address::Controller;

use crate::exit;

/// Manifests are text that people write.
const INPUT_MAX: u64 = 64 << 20;

/// Put the sidecar into Kubernetes manifests: every workload in them that does not say steadfast.dev/inject: "false".
///
/// The manifests go to standard output; what was done, and what was not and why, to standard error. They are read as kubectl reads them. Documents in which nothing
/// changes pass as they are written; those that change are written anew, JSON as JSON and YAML as YAML, with their keys sorted and without their comments. So keep the
/// manifests that you edit, and inject on their way to the cluster.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast inject -f recommender.yaml --image registry.example/steadfast-proxy:0.1 | kubectl apply -f -")]
pub(crate) struct Args {
    /// File with manifests, YAML or JSON; `-`: standard input. Given several times: files that belong together, such as a workload's and its Service's.
    #[arg(short, long, value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    /// Image of the sidecar.
    #[arg(long, value_name = "IMAGE", value_parser = flags::image)]
    image: String,
    /// Always, IfNotPresent or Never. Without it: Kubernetes' own rule.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: Option<String>,
    /// Where sidecars dial in, such as https://steadfast-sidecars.steadfast-system.svc:4193. Without it they stand alone, and take policies on their own admin port.
    #[arg(long, value_name = "URL", requires = "controller_ca")]
    controller: Option<String>,
    /// File with the certificates by which the controller proves itself, PEM.
    #[arg(long, value_name = "FILE", requires = "controller")]
    controller_ca: Option<PathBuf>,
    /// User of the sidecar; none: whom the platform draws (OpenShift), or the image names.
    #[arg(long, value_name = "USER", default_value_t = RunAsUser::DEFAULT)]
    run_as_user: RunAsUser,
    /// CPU that the sidecar requests.
    #[arg(long, value_name = "QUANTITY", default_value = "50m", value_parser = flags::cpu)]
    cpu: String,
    /// CPU that the sidecar requests and is limited to in pods of the class Guaranteed; in others there is no limit.
    #[arg(long, value_name = "QUANTITY", default_value = "1", value_parser = flags::cpu)]
    cpu_limit: String,
    /// Memory that the sidecar requests.
    #[arg(long, value_name = "QUANTITY", default_value = "64Mi", value_parser = flags::memory)]
    memory: String,
    /// Memory beyond which it is killed.
    #[arg(long, value_name = "QUANTITY", default_value = "256Mi", value_parser = flags::memory)]
    memory_limit: String,
    /// Seconds for which a server without a preStop hook goes on before it is told to stop, so that everybody hears that the pod leaves; 0: no such hook, and
    /// right for Kubernetes 1.29, which has none that sleeps and refuses the pod ("preStop: Required value").
    #[arg(long, value_name = "SECONDS", default_value_t = LEAVE_SECONDS, value_parser = clap::value_parser!(u32).range(..=600))]
    leave_seconds: u32,
    /// Image of steadfast with the program nft: pods with the annotation steadfast.dev/interception: redirect are then given an init container with NET_ADMIN. Without
    /// it they are left out.
    #[arg(long, value_name = "IMAGE", value_parser = flags::image)]
    redirect_image: Option<String>,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let mut texts = Vec::new();
    for file in &args.file {
        match read(file) {
            Ok(text) => texts.push((file.display().to_string(), text)),
            Err(error) => return exit::bad_input(format!("{}: {error}", file.display())),
        }
    }
    let controller = match (args.controller, args.controller_ca) {
        (Some(url), Some(file)) => {
            let ca = match fs::read_to_string(&file) {
                Ok(ca) => ca,
                Err(error) => return exit::bad_input(format!("--controller-ca {}: {error}", file.display())),
            };
            // As the sidecar will read them.
            if let Err(error) = Controller::new(&url, None, None, Some(ca.clone())) {
                return exit::bad_input(format!("--controller {url}, --controller-ca {}: {error}", file.display()));
            }
            if !url.starts_with("https://") {
                return exit::bad_input(format!("--controller {url}: a sidecar shows it its token: write https://HOST:PORT"));
            }
            Some(ControllerAddress { url, ca })
        }
        _ => None,
    };
    let resources = SidecarResources { cpu: args.cpu, cpu_limit: args.cpu_limit, memory: args.memory, memory_limit: args.memory_limit };
    if let Err(why) = flags::within_limits(&resources, "--") {
        return exit::bad_input(why);
    }
    let image_pull_policy = args.image_pull_policy;
    let redirect = args.redirect_image.map(|image| RedirectSettings { image, image_pull_policy: image_pull_policy.clone() });
    let settings = SidecarSettings {
        image: args.image,
        image_pull_policy,
        run_as_user: args.run_as_user,
        controller,
        resources,
        leave_seconds: args.leave_seconds,
        redirect,
    };
    let files: Vec<File<'_>> = texts.iter().map(|(name, text)| File { name, text }).collect();
    let (written, notes) = match manifest::inject(&files, &settings) {
        Ok(injected) => injected,
        Err(error) => return exit::bad_input(error),
    };
    if notes.is_empty() {
        let names: Vec<&str> = files.iter().map(|file| file.name).collect();
        eprintln!("steadfast: no workload in {}: all of it passes as it is", names.join(", "));
    }
    for note in notes {
        let what = match note.what {
            Done::Injected(ports) => format!("injected: {}", ports.join(", ")),
            Done::Named { port, name, is_headless: false } => format!("targets port {port} by its name now, {name}: a number would go past the sidecar"),
            Done::Named { port, name, is_headless: true } => {
                format!("targets port {port} by its name now, {name}, for who asks where to dial (EndpointSlices, SRV records)")
            }
            Done::Past(what) => what,
            Done::LetIn { port, name } => format!("lets users in by the port's name too, {name}: number {port} alone would cut them off from the sidecar"),
            Done::LetOut { port, name } => format!("lets its pods out to the port's name too, {name}: number {port} alone would keep them from the sidecar"),
            Done::Elsewhere(workload) => format!(
                "selects no workload of its namespace here, so its ports are left as they are: {workload} has the labels that it selects, but only one of the two says its namespace; write it in both"
            ),
            Done::Unnamed { port, why } => format!("goes on leading to number {port}, past the sidecar: {why}"),
            Done::OnNode(ports) => format!(
                "a port of the node leads to {}, past the sidecar: give that port a name, and its hostPort moves with it",
                ports.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
            ),
            Done::Mislabelled(value) => format!("label steadfast.dev/inject is {value:?}, which means nothing: write \"true\", or leave it out"),
            Done::UnknownKind => "not injected: its pods are made by an operator that is not known here; label them steadfast.dev/inject: \"true\" in it, and the webhook injects them".to_owned(),
            Done::Already => "has the sidecar already".to_owned(),
            Done::Declined => "declines by its label".to_owned(),
            Done::Skipped(why) => format!("not injected: {why}"),
        };
        eprintln!("{}: {what}", note.object);
    }
    match io::stdout().write_all(written.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(format!("standard output: {error}")),
    }
}

fn read(file: &PathBuf) -> io::Result<String> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().lock().take(INPUT_MAX + 1).read_to_string(&mut text)?
    } else {
        fs::File::open(file)?.take(INPUT_MAX + 1).read_to_string(&mut text)?
    };
    if read as u64 > INPUT_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {INPUT_MAX} bytes are no manifests")));
    }
    Ok(text)
}
