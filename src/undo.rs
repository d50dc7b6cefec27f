//! `steadfast undo`: takes back what runs have in force on a cluster.

use std::process::ExitCode;

pub(crate) use steadfast_controller::cluster::UndoArgs as Args;

use steadfast_controller::platform::kubernetes::failures::undo::Summary;

use crate::exit;

pub(crate) fn main(args: Args) -> ExitCode {
    steadfast_controller::http::provide();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    let summary = match runtime.block_on(steadfast_controller::cluster::undo_everything(args)) {
        Ok(summary) => summary,
        Err(error) => return exit::failed(error),
    };
    for words in [&summary.undone, &summary.restored, &summary.unproven].into_iter().flatten() {
        println!("undone: {words}");
    }
    for words in &summary.not_ours {
        println!("left to whoever changed it: {words}");
    }
    for why in &summary.forgotten {
        println!("not undone, and forgotten: {why}");
    }
    if summary == Summary::default() {
        println!("nothing is in force");
    }
    if summary.failed.is_empty() { ExitCode::SUCCESS } else { exit::failed(format!("not undone: {}", summary.failed.join("; "))) }
}
