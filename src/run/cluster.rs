//! `steadfast run --platform kubernetes`: the same file, the same report, on the cluster of `KUBECONFIG`.

use std::process::ExitCode;

use steadfast_api::{report::Report, resource::RunPhase, test::ResilienceTest};
use steadfast_controller::experiment::{
    Progress,
    remote::{Remote, RemoteError, Submitted},
};
use tokio::sync::watch;

use super::{Common, Output, interrupts, keep};
use crate::{exit, progress};

/// Hands `test` to the controller there, tells how it gets on, and keeps its report here.
pub(super) fn lead(test: &ResilienceTest, namespace: Option<String>, common: &Common) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    let report = runtime.block_on(async {
        let interrupt = interrupts().map_err(RemoteError::Failed)?;
        let (told, hear) = watch::channel(Progress::default());
        let view = tokio::spawn(progress::show(hear, common.output == Output::Json));
        let report = run(test, namespace, interrupt, &told).await;
        drop(told);
        // It ends with the sender; its last frame must not come after the summary.
        let _ = view.await;
        report
    });
    match report {
        Ok(report) => keep(&report, common),
        Err(RemoteError::Refused(why)) => exit::bad_input(why),
        // Nothing was tested: not the target's failure.
        Err(error) => {
            eprintln!("steadfast: {error}");
            ExitCode::from(3)
        }
    }
}

async fn run(
    test: &ResilienceTest,
    namespace: Option<String>,
    interrupt: watch::Receiver<bool>,
    told: &watch::Sender<Progress>,
) -> Result<Report, RemoteError> {
    let remote = Remote::connect(namespace).await?;
    let submitted = remote.submit(test).await?;
    eprintln!("steadfast: resiliencetest {} in namespace {}", submitted.name, remote.namespace());
    let ended = follow(&remote, &submitted, interrupt, told).await;
    // A report that could not be fetched stays where it is.
    if !matches!(ended, Err(RemoteError::Failed(_))) {
        remote.remove(&submitted).await?;
    }
    ended
}

async fn follow(remote: &Remote, test: &Submitted, interrupt: watch::Receiver<bool>, told: &watch::Sender<Progress>) -> Result<Report, RemoteError> {
    let mut last = String::new();
    let status = remote
        .follow(test, interrupt, |status| {
            if let Some(live) = status.live.clone() {
                told.send_replace(live.into());
                return;
            }
            let said = status.progress.clone().unwrap_or_default();
            if !said.is_empty() && said != last {
                eprintln!("{said}");
                last = said;
            }
        })
        .await?;
    let reason = status.reason.unwrap_or_default();
    match (status.phase, status.report) {
        (RunPhase::Refused, _) => Err(RemoteError::Refused(reason)),
        (_, None) => Err(RemoteError::Failed(reason)),
        (_, Some(address)) => remote.report(&address).await,
    }
}
