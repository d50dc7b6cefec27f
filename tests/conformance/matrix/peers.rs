//! Servers, the two sidecars before each of them, and clients as processes.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use serde_json::Value;

use super::table::Way;

/// Nothing here takes this long on a machine that works.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Touches no request that these tests send.
const ELSEWHERE: &str = "name: elsewhere
spec:
  expiresAfter: 1h
  budget: {concurrent: 10, share: 100%}
  rules: [{match: {path: {exact: /somewhere/else}}, faults: [{abort: {httpStatus: 503}}]}]
";

/// A process that ends with this, and those that it has started.
pub(super) struct Process(Child, Ending);

/// How a process is ended.
enum Ending {
    AtOnce,
    /// It is asked to first: it would leave something behind.
    Asked,
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // Its group is its own, and it has not been waited for: nobody else has this number.
            let group = Pid::from_raw(self.0.id() as i32);
            if matches!(self.1, Ending::Asked) {
                let _ = kill(group, Signal::SIGTERM);
                let begun = Instant::now();
                while self.is_running() && begun.elapsed() < Duration::from_secs(20) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            if self.is_running() {
                let _ = killpg(group, Signal::SIGKILL);
                let _ = self.0.wait();
            }
        }
    }
}

impl Process {
    pub(super) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).process_group(0).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")), Ending::AtOnce)
    }

    pub(super) fn asked_to_end(mut self) -> Self {
        self.1 = Ending::Asked;
        self
    }

    /// The first line that it prints.
    pub(super) fn telling(command: &mut Command) -> (Self, String) {
        let mut process = Self::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().expect("piped")).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{command:?} ended before it said anything");
        (process, line)
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

/// The sidecar's process.
pub(super) struct Sidecar {
    _process: Process,
    pub(super) data: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    /// `upstream` as the flag takes it.
    pub(super) fn before(upstream: &str, armed: bool, flags: &[&str]) -> Self {
        Self::armed_with(upstream, armed.then_some(ELSEWHERE), flags)
    }

    pub(super) fn armed_with(upstream: &str, policy: Option<&str>, flags: &[&str]) -> Self {
        let text = policy;
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy.yaml");
        std::fs::write(&policy, text.unwrap_or_default()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfast"));
        command.args(["proxy", "--threads", "1", "--upstream", upstream]).args(flags);
        if text.is_some() {
            command.arg("--policy").arg(&policy);
        }
        let (process, line) = Process::telling(&mut command);
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let address = |key: &str| told[key].as_str().unwrap().parse().unwrap();
        Self { data: address("data"), admin: address("admin"), _process: process }
    }

    pub(super) fn get(&self, path: &str) -> (u16, String) {
        let said = super::raw::talk(self.admin, format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes());
        let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
        (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
    }

    /// The sum of all lines of a metric that contain `label`.
    pub(super) fn metric(&self, name: &str, label: &str) -> u64 {
        let text = self.get("/metrics").1;
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Waits until a metric has reached `value`.
    pub(super) fn metric_reaches(&self, name: &str, label: &str, value: u64) {
        let begun = Instant::now();
        while self.metric(name, label) < value {
            assert!(begun.elapsed() < PATIENCE, "{name} {label} is {} and not {value}", self.metric(name, label));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A server, and both sidecars before it.
pub(super) struct Pod {
    pub(super) server: SocketAddr,
    pub(super) relay: Sidecar,
    pub(super) stack: Sidecar,
    _process: Option<Process>,
}

impl Pod {
    /// Around a server of this process.
    pub(super) fn around(server: SocketAddr) -> Self {
        let [relay, stack] = [false, true].map(|armed| Sidecar::before(&server.to_string(), armed, &["--ready-tcp"]));
        Self { server, relay, stack, _process: None }
    }

    /// Around a program that prints its port.
    pub(super) fn of(command: &mut Command) -> Self {
        let (process, line) = Process::telling(command);
        let port: u16 = line.trim().parse().unwrap_or_else(|error| panic!("{command:?} prints its port, not {line:?}: {error}"));
        Self { _process: Some(process), ..Self::around(([127, 0, 0, 1], port).into()) }
    }

    /// Around a program that was told its port.
    pub(super) fn at(port: u16, mut process: Process) -> Self {
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let begun = Instant::now();
        while TcpStream::connect(server).is_err() {
            assert!(begun.elapsed() < PATIENCE && process.is_running(), "nobody listens on {server}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { _process: Some(process), ..Self::around(server) }
    }

    pub(super) fn ways(&self) -> [(Way, SocketAddr); 3] {
        [(Way::Directly, self.server), (Way::Relay, self.relay.data), (Way::Stack, self.stack.data)]
    }

    /// That each sidecar did what the table says of it: the relay understood everything, and the stack had everything.
    pub(super) fn engines_were_used(&self) {
        assert_eq!(self.relay.metric("steadfast_opaque_connections_total", ""), 0, "the relay did not understand something");
        let requests = |sidecar: &Sidecar| sidecar.metric("steadfast_requests_total", "");
        assert!(requests(&self.relay) > 0 && requests(&self.stack) > 0, "nothing went through");
        assert_eq!(self.stack.metric("steadfast_connections_moved_total", r#"to="relay""#), 0);
    }
}

/// A port that nobody has now.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A script of this folder, run by the python that has what it needs; `None`, and said so, where there is none.
pub(super) fn script(name: &str, what: &str) -> Option<Command> {
    let Some(python) = std::env::var_os("STEADFAST_CONFORMANCE_PYTHON") else {
        assert!(std::env::var_os("STEADFAST_REQUIRE_CONFORMANCE").is_none(), "STEADFAST_CONFORMANCE_PYTHON is not set");
        println!("not run: {what}, because STEADFAST_CONFORMANCE_PYTHON does not name a python with tests/conformance/requirements.txt");
        return None;
    };
    let mut command = Command::new(python);
    command.arg(folder().join(name));
    Some(command)
}

pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/matrix/peers")
}

/// A program of the system's packages; `None`, and said so, where it is not installed.
pub(super) fn program(name: &str) -> Option<Command> {
    if Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
        return Some(Command::new(name));
    }
    assert!(std::env::var_os("STEADFAST_REQUIRE_CONFORMANCE").is_none(), "{name} is not installed");
    println!("not run: conformance with {name}, which is not installed here");
    None
}

/// Runs `command` to its end: whether it succeeded, and all that it said.
pub(super) fn output(command: &mut Command) -> (bool, String) {
    let mut process = Process::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut stderr = process.0.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        text
    });
    let mut text = Vec::new();
    process.0.stdout.take().expect("piped").read_to_end(&mut text).unwrap();
    let succeeded = process.0.wait().is_ok_and(|ended| ended.success());
    text.extend(errors.join().unwrap());
    (succeeded, String::from_utf8_lossy(&text).into_owned())
}

/// What a client's script saw on one way: a JSON object.
pub(super) fn saw(command: &mut Command) -> Value {
    let (succeeded, said) = output(command.stderr(Stdio::inherit()));
    assert!(succeeded, "{command:?}: {said}");
    let line = said.lines().find(|line| line.starts_with("{\"cells\"")).unwrap_or_else(|| panic!("{command:?}: {said}"));
    serde_json::from_str(line).unwrap()
}
