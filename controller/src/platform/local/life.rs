//! A pod's processes, from its first breath to its last: what kubelet does on a node.
//!
//! The sidecar starts first and the model server once the sidecar listens, as native sidecars do on a cluster. A container that ends is started again in
//! the same pod after its back-off. The readiness probe goes through the sidecar. When a container ends the pod is not ready from that moment.

use std::{
    ffi::OsString,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde::Deserialize;
use steadfast_api::Span;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::ChildStdout,
    sync::{mpsc, oneshot},
    time::{timeout, timeout_at},
};

use super::{
    command_line::fill_in,
    container::Container,
    inner::Inner,
    probe::Prober,
    process::{Launch, in_words},
};
use crate::platform::Pod;

/// A sidecar that does not say by then where it listens is started anew.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);
/// As on a cluster: sidecars have at least this long to end after the containers that they serve.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);
/// After a failed start for want of something on the machine.
const RETRY: Duration = Duration::from_secs(1);
/// What a pod is told to do.
#[derive(Debug)]
pub(super) enum Command {
    /// End: SIGTERM, SIGKILL after this.
    Delete { grace: Duration },
    /// The node lost its power, as far as anybody can see. Answers with the number of process groups that were stopped.
    Freeze(oneshot::Sender<usize>),
    /// The node is back: nothing survived. Start anew, or be gone.
    Thaw { again: bool, done: oneshot::Sender<()> },
}

/// The first line of a sidecar.
#[derive(Debug, Deserialize)]
struct Listens {
    data: SocketAddr,
}

type Line = Pin<Box<dyn Future<Output = Result<SocketAddr, String>> + Send>>;

/// See the module.
pub(super) struct Life {
    inner: Arc<Inner>,
    pod: Pod,
    commands: mpsc::Receiver<Command>,
    /// Of the model server.
    port: Option<u16>,
    sidecar: Container,
    server: Container,
    line: Option<Line>,
    /// Where the sidecar listens.
    address: Option<SocketAddr>,
    prober: Prober,
    frozen: bool,
}

impl Life {
    /// `frozen`: the node that it was given has no power, and nobody has noticed yet.
    pub(super) fn new(inner: Arc<Inner>, pod: Pod, commands: mpsc::Receiver<Command>, frozen: bool) -> Self {
        let prober = Prober::new(inner.settings.local.pods.ready.clone());
        let (sidecar, server) = (Container::new(&inner, &pod, "sidecar"), Container::new(&inner, &pod, "server"));
        Self { inner, pod, commands, port: None, sidecar, server, line: None, address: None, prober, frozen }
    }

    /// Runs until the pod is gone.
    pub(super) async fn run(mut self) {
        let reason = self.live().await;
        self.inner.forget(&self.pod);
        if let Some(port) = self.port {
            self.inner.ports().give_back(port);
        }
        self.inner.change(|cluster, at| cluster.gone(at, &self.pod.uid, reason));
    }

    async fn live(&mut self) -> &'static str {
        loop {
            let awake = !self.frozen;
            if awake {
                self.start_what_is_due();
            }
            let due = [self.sidecar.due, self.server.due.filter(|_| self.address.is_some())].into_iter().flatten().min().filter(|_| awake);
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    None => {
                        self.kill().await;
                        return "the run is over";
                    }
                    // A node without power hears of it when it is back: it is thawed to be gone then.
                    Some(Command::Delete { .. }) if self.frozen => {}
                    Some(Command::Delete { grace }) => {
                        self.terminate(grace).await;
                        return "deleted";
                    }
                    Some(Command::Freeze(done)) => self.freeze(done),
                    Some(Command::Thaw { again, done }) => {
                        self.power_lost(again).await;
                        let _ = done.send(());
                        if !again {
                            return "its node came back without it";
                        }
                    }
                },
                (ran, status) = self.server.ended(), if awake => self.server_ended(ran, &status).await,
                (ran, status) = self.sidecar.ended(), if awake => self.sidecar_ended(ran, &status).await,
                line = listening(&mut self.line), if awake => self.listens(line),
                changed = self.prober.changed(), if awake => self.inner.change_at(changed.at, |cluster, at| {
                    if !changed.ready {
                        cluster.detected(at, &self.pod.uid, &format!("readiness probe: {}", changed.reason));
                    }
                    cluster.ready(at, &self.pod.uid, changed.ready);
                }),
                () = until(due) => {}
            }
        }
    }

    fn start_what_is_due(&mut self) {
        if self.sidecar.is_due() {
            self.start_sidecar();
        }
        if self.server.is_due()
            && let Some(address) = self.address
        {
            self.start_server(address);
        }
    }

    fn start_sidecar(&mut self) {
        if let Err(error) = self.try_start_sidecar() {
            self.sidecar.due = Some(tokio::time::Instant::now() + RETRY);
            self.inner.change(|cluster, at| cluster.detected(at, &self.pod.uid, &format!("the sidecar cannot be started: {error}")));
        }
    }

    fn try_start_sidecar(&mut self) -> io::Result<()> {
        let port = match self.port {
            Some(port) => port,
            None => *self.port.insert(self.inner.ports().next()?),
        };
        self.inner.sidecar_starts(&self.pod.uid);
        let launch = self.inner.sidecar(&self.pod, port);
        let process = self.sidecar.start(&launch)?;
        self.inner.watch_memory(&self.pod, Some(process.pid()));
        self.line = process.take_output().map(|output| Box::pin(first_line(output)) as Line);
        Ok(())
    }

    fn listens(&mut self, line: Result<SocketAddr, String>) {
        self.line = None;
        match line {
            Ok(address) => {
                self.address = Some(address);
                self.inner.change(|cluster, at| cluster.listens(at, &self.pod.uid, Some(address)));
                if self.server.process.is_some() {
                    self.prober.begin(address);
                }
            }
            Err(why) => {
                tracing::warn!(pod = self.pod.name, why, "the sidecar does not say where it listens");
                self.sidecar.signal(Signal::SIGKILL);
            }
        }
    }

    async fn sidecar_ended(&mut self, ran: Duration, status: &io::Result<ExitStatus>) {
        self.inner.watch_memory(&self.pod, None);
        self.prober.stop();
        self.line = None;
        // One that never listened has a reason to tell, and nobody waits for the news; one that served leaves the Service at once.
        let how = if self.address.take().is_some() { in_words(status) } else { self.sidecar.obituary(status).await };
        self.sidecar.again(ran);
        self.inner.change(|cluster, at| {
            cluster.detected(at, &self.pod.uid, &format!("the sidecar {how}"));
            cluster.ready(at, &self.pod.uid, false);
            cluster.listens(at, &self.pod.uid, None);
        });
    }

    fn start_server(&mut self, address: SocketAddr) {
        let settings = &self.inner.settings;
        // A port is there once the sidecar runs.
        let port = self.port.unwrap_or_default().to_string();
        let mut variables: Vec<(String, String)> = settings.local.pods.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        variables.extend(
            [("PORT", port.as_str()), ("POD_NAME", &self.pod.name), ("NODE_NAME", &self.pod.node)].map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let mut words = settings.local.pods.command.iter().map(|word| fill_in(word, &variables));
        let program = words.next().unwrap_or_default();
        let launch = Launch {
            program: if program == "steadfast" { settings.exe.clone() } else { PathBuf::from(program) },
            arguments: words.map(OsString::from).collect(),
            variables,
            run: settings.run.clone(),
            folder: settings.work_dir.clone(),
            cores: self.inner.cores(&self.pod.node),
            speaks: false,
        };
        match self.server.start(&launch) {
            Ok(process) => {
                let started = process.started;
                let restarts = self.server.starts - 1;
                self.inner.change_at(started, |cluster, at| cluster.started(at, &self.pod.uid, restarts));
                self.prober.begin(address);
            }
            Err(error) => {
                let (now, reason) = (Instant::now(), format!("cannot start {}: {error}", launch.program.display()));
                self.server_out(now, &reason);
                self.server_again(now, Duration::ZERO, &reason);
            }
        }
    }

    async fn server_ended(&mut self, ran: Duration, status: &io::Result<ExitStatus>) {
        let ended = Instant::now();
        self.server_out(ended, &in_words(status));
        let reason = self.server.obituary(status).await;
        self.server_again(ended, ran, &reason);
    }

    /// The pod leaves the Service before anything else.
    fn server_out(&mut self, at: Instant, how: &str) {
        self.prober.stop();
        self.inner.change_at(at, |cluster, at| {
            cluster.detected(at, &self.pod.uid, how);
            cluster.ready(at, &self.pod.uid, false);
        });
    }

    fn server_again(&mut self, at: Instant, ran: Duration, reason: &str) {
        let wait = self.server.again(ran);
        self.inner.change_at(at, |cluster, at| cluster.backs_off(at, &self.pod.uid, reason, Span::new(wait)));
    }

    fn freeze(&mut self, done: oneshot::Sender<usize>) {
        self.frozen = true;
        // Who asks on a node without power?
        self.prober.stop();
        let _ = done.send(self.server.signal(Signal::SIGSTOP) + self.sidecar.signal(Signal::SIGSTOP));
    }

    /// Nothing survived. If the pod lives on, its containers start at once: a machine that starts anew knows of no back-off.
    async fn power_lost(&mut self, again: bool) {
        self.kill().await;
        self.frozen = false;
        self.inner.change(|cluster, at| {
            if again {
                cluster.detected(at, &self.pod.uid, "its node started anew");
            }
            cluster.ready(at, &self.pod.uid, false);
            cluster.listens(at, &self.pod.uid, None);
        });
        for container in [&mut self.sidecar, &mut self.server] {
            container.back_off.forget();
            container.due = Some(tokio::time::Instant::now());
        }
    }

    async fn kill(&mut self) {
        self.prober.stop();
        self.inner.watch_memory(&self.pod, None);
        (self.line, self.address) = (None, None);
        // Both at once, then wait.
        self.server.signal(Signal::SIGKILL);
        self.sidecar.signal(Signal::SIGKILL);
        self.server.kill().await;
        self.sidecar.kill().await;
    }

    /// The server first; the sidecar serves it to its end.
    async fn terminate(&mut self, grace: Duration) {
        self.prober.stop();
        if !grace.is_zero() {
            let deadline = Instant::now() + grace;
            self.server.signal(Signal::SIGTERM);
            if self.server.process.is_some() && self.interrupted(grace, true).await {
                return self.kill().await;
            }
            self.sidecar.signal(Signal::SIGTERM);
            let left = deadline.saturating_duration_since(Instant::now()).max(SIDECAR_GRACE);
            if self.sidecar.process.is_some() {
                self.interrupted(left, false).await;
            }
        }
        self.kill().await;
    }

    /// Waits for a container to end, for at most `within`. True: the node lost its power and came back meanwhile, or the run is over.
    async fn interrupted(&mut self, within: Duration, server: bool) -> bool {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let container = if server { &mut self.server } else { &mut self.sidecar };
            tokio::select! {
                _ = timeout_at(deadline, container.ended()) => return false,
                command = self.commands.recv() => match command {
                    Some(Command::Freeze(done)) => {
                        self.freeze(done);
                        // Silent until the node is back; what it is told before changes nothing.
                        loop {
                            match self.commands.recv().await {
                                Some(Command::Thaw { done, .. }) => {
                                    self.kill().await;
                                    let _ = done.send(());
                                    return true;
                                }
                                None => return true,
                                Some(_) => {}
                            }
                        }
                    }
                    Some(Command::Thaw { done, .. }) => drop(done.send(())),
                    Some(Command::Delete { grace }) if grace.is_zero() => return true,
                    Some(Command::Delete { .. }) => {}
                    None => return true,
                },
            }
        }
    }
}

async fn until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn listening(line: &mut Option<Line>) -> Result<SocketAddr, String> {
    match line {
        Some(line) => line.await,
        None => std::future::pending().await,
    }
}

async fn first_line(output: ChildStdout) -> Result<SocketAddr, String> {
    let mut line = String::new();
    let mut output = BufReader::new(output.take(4096));
    match timeout(LISTEN_WITHIN, output.read_line(&mut line)).await {
        Ok(Ok(_)) => serde_json::from_str::<Listens>(&line).map(|listens| listens.data).map_err(|error| format!("{line:?}: {error}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no line within {LISTEN_WITHIN:?}")),
    }
}
