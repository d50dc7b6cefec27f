//! `steadfast report`: draws `report.html` from a `report.json`, or from the report of a test on a cluster.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use steadfast_api::report::Report;
use steadfast_controller::{
    access::Access,
    experiment::remote::{Remote, RemoteError},
    report::{html, json, junit, store},
};

use crate::exit;

/// Draw a report from its report.json, or from a test on a cluster.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  steadfast report steadfast-reports/demo/report.json --html demo.html\n  steadfast report --test watch --namespace models --outage --html outage.html"
)]
pub(crate) struct Args {
    /// A report.json.
    #[arg(required_unless_present = "test", conflicts_with = "test")]
    file: Option<PathBuf>,
    /// On a cluster: the ResilienceTest whose report is drawn.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// Its namespace [default: the context's].
    #[arg(long, short, value_name = "NAME", requires = "test")]
    namespace: Option<String>,
    #[command(flatten)]
    access: Access,
    /// Of a test without steps: the last window with an outage, not the last window.
    #[arg(long, requires = "test")]
    outage: bool,
    /// Where the page goes [default: report.html beside the file, or here].
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write junit.xml here too.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write report.json here too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let report = match (&args.file, &args.test) {
        (Some(file), _) => match read(file) {
            Ok(report) => report,
            Err(error) => return exit::bad_input(format!("{}: {error}", file.display())),
        },
        (None, test) => match fetch(&args.access, test.as_deref().unwrap_or_default(), args.namespace, args.outage) {
            Ok(report) => report,
            Err(RemoteError::Refused(why)) => return exit::bad_input(why),
            Err(error) => return exit::failed(error),
        },
    };
    let beside = args.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
    let mut files = vec![(args.html.unwrap_or_else(|| beside.join("report.html")), html::render(&report))];
    for (file, text) in [(args.junit, junit::render(&report)), (args.json, json::render(&report).map_err(|error| error.to_string()))] {
        match (file, text) {
            (Some(file), Ok(text)) => files.push((file, text)),
            (Some(_), Err(error)) => return exit::failed(error),
            (None, _) => {}
        }
    }
    for (file, text) in files {
        if let Err(error) = store::replace(&file, &text) {
            return exit::failed(error);
        }
        println!("{}", file.display());
    }
    ExitCode::SUCCESS
}

fn read(file: &Path) -> Result<Report, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    json::read(&text).map_err(|error| error.to_string())
}

fn fetch(access: &Access, test: &str, namespace: Option<String>, outage: bool) -> Result<Report, RemoteError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| RemoteError::Failed(format!("no runtime: {error}")))?;
    runtime.block_on(async {
        let remote = Remote::connect(access, namespace).await?;
        remote.report(&remote.address(test, outage).await?).await
    })
}
