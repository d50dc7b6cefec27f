//! `steadfast golden bring`: a reader pod's whole work.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Args as ClapArgs;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use steadfast_controller::{golden::read, serve::server::READ_SET};
use steadfast_proxy::{config::CA_VARIABLE, control::address::Controller};
use tokio::{
    task::LocalSet,
    time::{sleep, timeout},
};

use super::inconclusive;
use crate::exit;

/// The controller may be about to be another one, and its Service not yet known here.
const TRIED_FOR: Duration = Duration::from_secs(60);
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// One try, with all bytes.
const SENT_WITHIN: Duration = Duration::from_secs(60);
/// Words of either side, in bytes; a character has four at most.
const WORDS_MAX: usize = 4 << 10;

/// Read a golden set and bring it to the controller that waits for it; what reader pods of a cluster run.
#[derive(ClapArgs)]
pub(super) struct Args {
    /// A folder, a tar file, or s3://, gs://, az:// with either.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Address of the controller, https://HOST:PORT; its authorities are in STEADFAST_CONTROLLER_CA.
    #[arg(long, value_name = "URL")]
    controller: String,
    /// File with the pod's token.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

pub(super) async fn main(args: Args) -> Result<ExitCode, ExitCode> {
    let ca = std::env::var(CA_VARIABLE).ok();
    let controller = Controller::new(&args.controller, Some(args.token_file), None, ca).map_err(exit::bad_input)?;
    let (kind, body) = match read::tar(&args.source).await {
        Ok(tar) => ("application/x-tar", tar),
        // The GoldenSet's status tells it.
        Err(why) => ("text/plain", Bytes::from(why.chars().take(WORDS_MAX / 4).collect::<String>())),
    };
    LocalSet::new().run_until(bring(&controller, kind, body)).await.map_err(inconclusive)?;
    Ok(ExitCode::SUCCESS)
}

async fn bring(controller: &Controller, kind: &'static str, body: Bytes) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let why = match timeout(SENT_WITHIN, send(controller, kind, body.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err((StatusCode::FORBIDDEN | StatusCode::CONFLICT | StatusCode::PAYLOAD_TOO_LARGE, why))) => return Err(why),
            Ok(Err((_, why))) => why,
            Err(_) => format!("the controller did not take it within {SENT_WITHIN:?}"),
        };
        if began.elapsed() >= TRIED_FOR {
            return Err(why);
        }
        sleep(AGAIN_AFTER).await;
    }
}

async fn send(controller: &Controller, kind: &'static str, body: Bytes) -> Result<(), (StatusCode, String)> {
    let failed = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why);
    let request = controller.request().map_err(failed)?.method(Method::POST).uri(READ_SET).header(header::CONTENT_TYPE, kind).body(Full::new(body));
    let request = request.map_err(|error| failed(error.to_string()))?;
    let answer = controller.client().send(request, SENT_WITHIN).await.map_err(|error| failed(error.to_string()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let words = Limited::new(answer.into_body(), WORDS_MAX).collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Err((status, format!("the controller answered {status}: {}", String::from_utf8_lossy(&words))))
}
