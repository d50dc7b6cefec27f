//! `steadfast report`: draws `report.html` anew from a `report.json`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use steadfast_controller::report::{html, json, junit, store};

use crate::exit;

/// Draw a report from its report.json.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  steadfast report steadfast-reports/demo/report.json --html demo.html")]
pub(crate) struct Args {
    /// A report.json.
    file: PathBuf,
    /// Where the page goes [default: report.html beside the file].
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write junit.xml here too.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub(crate) fn main(args: Args) -> ExitCode {
    let read = std::fs::read_to_string(&args.file).map_err(|error| error.to_string()).and_then(|text| json::read(&text).map_err(|error| error.to_string()));
    let report = match read {
        Ok(report) => report,
        Err(error) => return exit::bad_input(format!("{}: {error}", args.file.display())),
    };
    let page = args.html.unwrap_or_else(|| args.file.parent().unwrap_or(Path::new("")).join("report.html"));
    let mut files = vec![(page, html::render(&report))];
    if let Some(file) = args.junit {
        match junit::render(&report) {
            Ok(xml) => files.push((file, xml)),
            Err(error) => return exit::failed(error),
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
