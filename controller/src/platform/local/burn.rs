//! CPU pressure on nodes: one burner process a node, on the node's cores, which reports how much it burned.

use std::{fmt::Write as _, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};
use steadfast_api::{Percent, Span};
use tokio::{io::AsyncReadExt, process::ChildStdout, time::timeout};

use super::{
    inner::Inner,
    log::Log,
    process::{Launch, Process},
};
use crate::platform::{Undone, burned::Burned};

/// A burner stops within some milliseconds of SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// A process that burns.
pub(super) struct Burner {
    pub node: String,
    cores: String,
    process: Process,
    output: Option<ChildStdout>,
    log: Log,
}

impl Burner {
    pub(super) const fn pid(&self) -> Pid {
        self.process.pid()
    }
}

/// Starts a burner on each node. Nodes may share cores where the machine has few; a core is burned once, whoever shares it.
pub(super) fn start(inner: &Inner, nodes: &[String], load: Percent, time: Span) -> Result<Vec<Burner>, String> {
    inner.cluster().check_nodes(nodes)?;
    let mut taken: Vec<usize> = Vec::new();
    let mut burners = Vec::new();
    for node in nodes {
        let mut cores = inner.cores(node);
        if cores.is_empty() {
            cores.clone_from(&inner.settings.cores);
        }
        cores.retain(|core| !taken.contains(core));
        if cores.is_empty() {
            continue;
        }
        taken.extend(&cores);
        let cores = cores.iter().fold(String::new(), |mut text, core| {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{}{core}", if text.is_empty() { "" } else { "," });
            text
        });
        let settings = &inner.settings;
        let launch = Launch {
            program: settings.exe.clone(),
            arguments: ["burn", "--load", &load.to_string(), "--cores", &cores, "--for", &time.to_string()].map(Into::into).to_vec(),
            variables: Vec::new(),
            run: settings.run.clone(),
            folder: settings.work_dir.clone(),
            cores: Vec::new(),
            speaks: true,
        };
        let log = Log::new(&inner.logs, settings.run_dir.join(format!("{node}.burn.log")));
        let mut process = launch.start(&log).map_err(|error| format!("{node}: {error}"))?;
        let output = process.take_output();
        burners.push(Burner { node: node.clone(), cores, process, output, log });
    }
    Ok(burners)
}

/// Stops burners that have not stopped by themselves, and reads what they burned.
pub(super) async fn stop(burners: Vec<Burner>) -> Undone {
    let mut undone = Undone::default();
    for burner in &burners {
        burner.process.signal(Signal::SIGTERM);
    }
    for mut burner in burners {
        let mut said = String::new();
        let ended = timeout(STOP_WITHIN, async {
            if let Some(output) = burner.output.take() {
                // Anything longer is no line of a burner.
                let _ = output.take(4096).read_to_string(&mut said).await;
            }
            burner.process.ended().await
        });
        if ended.await.is_err() {
            burner.process.kill().await;
        }
        match Burned::read(&said) {
            Ok(burned) => match burned.judged(&burner.node, &format!("core {}", burner.cores)) {
                Ok(proof) => undone.evidence.push(proof),
                Err(doubt) => undone.doubts.push(doubt),
            },
            // Without evidence the run is inconclusive; this is for whoever asks why.
            Err(error) => tracing::warn!(node = burner.node, %error, said, log = burner.log.last_lines(3), "a burner did not say what it burned"),
        }
    }
    undone
}
