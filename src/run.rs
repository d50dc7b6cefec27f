//! `steadfast run`, and what `steadfast demo` shares with it: lead a plan to its report, show progress, keep the report, say how it went.

mod cluster;
mod summary;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use steadfast_api::{
    read::{BadFile, from_yaml},
    report::Report,
    test::ResilienceTest,
};
use steadfast_controller::{
    access::Access,
    experiment::{
        Plan, Progress,
        local::{Options, run_local},
        plan::{Target, dry_run},
        sets::Finder,
    },
    report::{json, store},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{exit, progress};

/// Run an experiment.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  steadfast run examples/pod-kill.yaml --seed 7\n\nExit status: 0 pass, 1 fail, 2 bad input, 3 inconclusive, 4 halted, 130 ended at once by a second signal."
)]
pub(crate) struct Args {
    /// The experiment: a ResilienceTest in YAML. Relative paths in it are taken from the working directory.
    file: PathBuf,
    /// Where to run it.
    #[arg(long, value_enum, default_value_t = Platform::Local)]
    platform: Platform,
    /// Only check the file; print it with every default written out, and the plan.
    #[arg(long)]
    dry_run: bool,
    /// Draw nodes, pods and inputs from this instead of the file's seed.
    #[arg(long)]
    seed: Option<u64>,
    /// On a cluster: the namespace of the target [default: the file's, or the context's].
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    access: Access,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Platform {
    /// This machine: pods are processes, nodes are groups of them.
    Local,
    /// A Kubernetes cluster that has Steadfast installed.
    Kubernetes,
}

impl Platform {
    pub(crate) const ALL: [Self; 2] = [Self::Local, Self::Kubernetes];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Kubernetes => "kubernetes",
        }
    }

    const fn target(self) -> Target {
        match self {
            Self::Local => Target::Local,
            Self::Kubernetes => Target::Cluster,
        }
    }

    /// A test that could run there. On a cluster the golden sets are those of its namespace, which are not looked for here.
    pub(crate) fn read(self, name: &str, text: &str, finder: &Finder) -> Result<Plan, Vec<BadFile>> {
        let finder = match self {
            Self::Local => finder.clone(),
            Self::Kubernetes => Finder { shelves: Vec::new(), work_dir: finder.work_dir.clone() },
        };
        Plan::read(name, text, self.target(), &finder)
    }
}

/// Options of every command that leads a run.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// Where the report goes [default: steadfast-reports/NAME-TIME].
    #[arg(long, value_name = "DIR")]
    pub(crate) report_dir: Option<PathBuf>,
    /// A summary for people, or the report as JSON.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Folder that holds golden sets by name [default: golden-sets/sets, here or where Steadfast was built].
    #[arg(long, value_name = "DIR")]
    pub(crate) golden_sets: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let finder = match finder(args.common.golden_sets.as_deref()) {
        Ok(finder) => finder,
        Err(error) => return exit::failed(error),
    };
    let (name, text) = match read(&args.file) {
        Ok(read) => read,
        Err(error) => return exit::bad_input(error),
    };
    if args.platform == Platform::Kubernetes && !args.dry_run {
        return match from_yaml::<ResilienceTest>(&name, &text) {
            Ok(mut test) => {
                test.spec.seed = args.seed.unwrap_or(test.spec.seed);
                let namespace = match (args.namespace, test.metadata.namespace.clone()) {
                    (Some(flag), Some(file)) if flag != file => {
                        return exit::bad_input(format!("{name}: metadata.namespace: {file} is not that of --namespace {flag}: leave one of them out"));
                    }
                    (flag, file) => flag.or(file),
                };
                cluster::lead(&test, &args.access, namespace, &args.common)
            }
            Err(error) => refuse(&[error]),
        };
    }
    let mut plan = match args.platform.read(&name, &text, &finder) {
        Ok(plan) => plan,
        Err(errors) => return refuse(&errors),
    };
    if let Some(seed) = args.seed {
        plan.test.spec.seed = seed;
    }
    if args.dry_run {
        return match dry_run(&plan, args.platform.target()) {
            Ok(text) => print(&text),
            Err(error) => exit::failed(error),
        };
    }
    let rerun = format!("steadfast run {name} --seed {}", plan.test.spec.seed);
    lead(&plan, rerun, finder.work_dir, &args.common)
}

/// Prints every problem of a file.
pub(crate) fn refuse(errors: &[impl std::fmt::Display]) -> ExitCode {
    for error in errors {
        eprintln!("steadfast: {error}");
    }
    ExitCode::from(2)
}

/// A file's name as it is shown, and its text. At most 1 MiB: nobody writes more by hand.
pub(crate) fn read(file: &Path) -> Result<(String, String), String> {
    const BYTES_MAX: u64 = 1 << 20;
    let name = file.display().to_string();
    let length = std::fs::metadata(file).map_err(|error| format!("{name}: {error}"))?.len();
    if length > BYTES_MAX {
        return Err(format!("{name}: {length} bytes are too many for an experiment: at most {BYTES_MAX}"));
    }
    std::fs::read_to_string(file).map(|text| (name.clone(), text)).map_err(|error| format!("{name}: {error}"))
}

/// Where golden sets are looked for, and where commands run.
pub(crate) fn finder(golden_sets: Option<&Path>) -> Result<Finder, String> {
    let work_dir = std::env::current_dir().map_err(|error| format!("there is no working directory: {error}"))?;
    let shelves = if let Some(shelf) = golden_sets {
        vec![work_dir.join(shelf)]
    } else {
        let mut shelves = vec![work_dir.join("golden-sets/sets"), Path::new(env!("CARGO_MANIFEST_DIR")).join("golden-sets/sets")];
        shelves.dedup();
        shelves
    };
    Ok(Finder { shelves, work_dir })
}

/// Runs a plan on this machine, keeps its report, and says how it went.
pub(crate) fn lead(plan: &Plan, rerun: String, work_dir: PathBuf, common: &Common) -> ExitCode {
    let exe = match std::env::current_exe() {
        Ok(exe) => exe,
        Err(error) => return exit::failed(format!("this program cannot be found, and child processes are started from it: {error}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    if let Err(error) = can_keep(common) {
        return exit::bad_input(error);
    }
    let report = runtime.block_on(async {
        let interrupt = interrupts()?;
        let (told, hear) = watch::channel(Progress::default());
        let view = tokio::spawn(progress::show(hear, common.output == Output::Json));
        let report = run_local(plan, Options { exe, work_dir, rerun }, interrupt, &told).await.map_err(|error| error.to_string());
        drop(told);
        // It ends with the sender; its last frame must not come after the summary.
        let _ = view.await;
        report
    });
    let report = match report {
        Ok(report) => report,
        // Nothing was tested: not the target's failure.
        Err(error) => {
            eprintln!("steadfast: the local platform could not start: {error}");
            return ExitCode::from(3);
        }
    };
    keep(&report, common)
}

/// Whether the report can be written: better asked now than after the run.
fn can_keep(common: &Common) -> Result<(), String> {
    let directory = common.report_dir.clone().unwrap_or_else(|| Path::new(store::DEFAULT_PARENT).join("report"));
    store::can_write(&directory).map_err(|error| format!("the report could not be written: --report-dir: {error}"))
}

/// Writes the report, and says how the run went.
fn keep(report: &Report, common: &Common) -> ExitCode {
    match written(report, common) {
        Ok(status) => status,
        Err(why) => exit::failed(why),
    }
}

/// The exit status of a run whose report is written; `Err` if it is not.
fn written(report: &Report, common: &Common) -> Result<ExitCode, String> {
    let directory = common.report_dir.clone().unwrap_or_else(|| store::default_directory(report));
    let stored = store::write(report, &directory).map_err(|error| format!("the report could not be written: {error}"));
    say(common.output, report, &summary::text(report, stored.as_ref().ok()));
    stored.map(|_| ExitCode::from(report.verdict.outcome.exit_code()))
}

fn say(output: Output, report: &Report, summary: &str) {
    match output {
        Output::Text => drop(print(summary)),
        Output::Json => match json::render(report) {
            Ok(text) => drop(print(&text)),
            Err(error) => eprintln!("steadfast: {error}"),
        },
    }
}

/// Standard output may be a pipe that nobody reads any more: no reason to fail.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    ExitCode::SUCCESS
}

/// Two signals nearer than this are one.
const SAME_WISH: Duration = Duration::from_secs(1);

/// Turns true at the first SIGINT, SIGTERM or SIGHUP; at a second one later, this process ends at once (and the keeper cleans up).
fn interrupts() -> Result<watch::Receiver<bool>, String> {
    let (asked, interrupt) = watch::channel(false);
    let fail = |error| format!("signals cannot be caught: {error}");
    let mut int = signal(SignalKind::interrupt()).map_err(fail)?;
    let mut term = signal(SignalKind::terminate()).map_err(fail)?;
    let mut hup = signal(SignalKind::hangup()).map_err(fail)?;
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            match first {
                // One wish, told twice: `timeout` signals its child and then the child's group, a terminal signals the group.
                Some(first) if first.elapsed() < SAME_WISH => continue,
                Some(_) => std::process::exit(130),
                None => first = Some(Instant::now()),
            }
            asked.send_replace(true);
            eprintln!("\nsteadfast: undoing everything and writing the report; once more ends it at once");
        }
    });
    Ok(interrupt)
}
