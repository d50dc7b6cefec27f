//! `steadfast users`: a users' pod's whole work.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use bytes::Bytes;
use http::{StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use steadfast_api::policy::GOLDEN_BYTES_MAX;
use steadfast_controller::load::{
    pod::{NotHeard, ask},
    wire::{USERS_PATH, USERS_UPGRADE},
};
use steadfast_proxy::{config::CA_VARIABLE, control::address::Controller};
use tokio::task::LocalSet;

use crate::exit;

const ANSWERED_WITHIN: Duration = Duration::from_secs(5);
const GOLDEN_SETS: &str = "/v1alpha1/golden-sets";
/// The controller's words.
const WORDS_MAX: usize = 4 << 10;

/// Ask as users of a test do, and tell its controller what became of it; what users' pods of a cluster run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address of the controller, https://HOST:PORT; its authorities are in STEADFAST_CONTROLLER_CA.
    #[arg(long, value_name = "URL")]
    controller: String,
    /// File with the pod's token.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

pub(crate) fn main(args: Args) -> ExitCode {
    steadfast_controller::cluster::log();
    steadfast_controller::http::provide();
    let ca = std::env::var(CA_VARIABLE).ok();
    let controller = match Controller::new(&args.controller, Some(args.token_file), None, ca) {
        Ok(controller) => controller,
        Err(error) => return exit::bad_input(error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    let work = ask(|| dial(&controller), |digest| fetch(&controller, digest));
    match runtime.block_on(LocalSet::new().run_until(work)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => exit::failed(why),
    }
}

async fn dial(controller: &Controller) -> Result<TokioIo<Upgraded>, NotHeard> {
    let request = controller.request().map_err(NotHeard::NotNow)?.uri(USERS_PATH).header(header::CONNECTION, "upgrade").header(header::UPGRADE, USERS_UPGRADE);
    let request = request.body(Full::new(Bytes::new())).map_err(|error| NotHeard::NotNow(error.to_string()))?;
    let answer = controller.client().send(request, ANSWERED_WITHIN).await.map_err(|error| NotHeard::NotNow(error.to_string()))?;
    match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(|error| NotHeard::NotNow(error.to_string())),
        StatusCode::FORBIDDEN => Err(NotHeard::Unknown(words(answer).await)),
        _ => Err(NotHeard::NotNow(words(answer).await)),
    }
}

async fn fetch(controller: &Controller, digest: String) -> Result<Bytes, String> {
    let request = controller.request()?.uri(format!("{GOLDEN_SETS}/{digest}")).body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    let mut client = controller.client();
    let answer = client.send(request, ANSWERED_WITHIN).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(words(answer).await);
    }
    let body = Limited::new(answer.into_body(), GOLDEN_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
    Ok(body.to_bytes())
}

async fn words(answer: hyper::Response<Incoming>) -> String {
    let status = answer.status();
    let words = Limited::new(answer.into_body(), WORDS_MAX).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    format!("the controller answered {status}: {}", String::from_utf8_lossy(&words))
}
