//! `steadfast run --platform kubernetes`: the same file, the same report, on a cluster.
//!
//! The test there, and the report that goes with it, are taken away only once the report lies here.

use std::process::ExitCode;

use steadfast_api::{report::Report, resource::RunPhase, test::ResilienceTest};
use steadfast_controller::{
    access::Access,
    experiment::{
        Progress,
        remote::{Remote, RemoteError, Submitted},
    },
};
use tokio::sync::watch;

use super::{Common, Output, can_keep, interrupts, written};
use crate::{exit, progress};

/// Hands `test` to the controller there, tells how it gets on, and keeps its report here.
pub(super) fn lead(test: &ResilienceTest, access: &Access, namespace: Option<String>, common: &Common) -> ExitCode {
    if let Err(error) = can_keep(common) {
        return exit::bad_input(error);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    let ended = runtime.block_on(async {
        let interrupt = interrupts().map_err(RemoteError::Failed)?;
        let remote = Remote::connect(access, namespace).await?;
        let submitted = remote.submit(test).await?;
        eprintln!("steadfast: resiliencetest {} in namespace {}", submitted.name, remote.namespace());
        let (told, hear) = watch::channel(Progress::default());
        let view = tokio::spawn(progress::show(hear, common.output == Output::Json));
        let report = follow(&remote, &submitted, interrupt, &told).await;
        drop(told);
        // It ends with the sender; its last frame must not come after the summary.
        let _ = view.await;
        let status = match report {
            Ok(report) => written(&report, common).map_err(|why| RemoteError::Failed(stays(&why, access, &remote, &submitted)))?,
            Err(RemoteError::Failed(why)) => return Err(RemoteError::Failed(stays(&why, access, &remote, &submitted))),
            Err(withdrawn @ RemoteError::Withdrawn(_)) => return Err(withdrawn),
            Err(refused) => {
                remote.remove(&submitted).await?;
                return Err(refused);
            }
        };
        // The run counts, and its report is here.
        if let Err(error) = remote.remove(&submitted).await {
            eprintln!("steadfast: resiliencetest {} stays in namespace {}: {error}", submitted.name, remote.namespace());
        }
        Ok(status)
    });
    match ended {
        Ok(status) => status,
        Err(RemoteError::Refused(why)) => exit::bad_input(why),
        // Nothing was tested, or nothing is known of it: not the target's failure.
        Err(error) => {
            eprintln!("steadfast: {error}");
            ExitCode::from(3)
        }
    }
}

/// Where the report is when it did not come here, and how to get it.
fn stays(why: &str, access: &Access, remote: &Remote, test: &Submitted) -> String {
    let (name, namespace) = (&test.name, remote.namespace());
    format!(
        "{why}\nresiliencetest {name} stays, with its report if there is one: steadfast report --test {name} --namespace {namespace}{} gets it; \
         kubectl -n {namespace} delete resiliencetest {name} takes both away",
        access.flags()
    )
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
