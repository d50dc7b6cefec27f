//! Real processes of this build: `steadfast serve` in the background, other commands to their end. What a test starts ends with it.

#![allow(dead_code, reason = "two test programs share this file, and each uses its part of it")]

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

const STEADFAST: &str = env!("CARGO_BIN_EXE_steadfast");
/// Nothing here takes this long on a machine that works.
const PATIENCE: Duration = Duration::from_mins(2);

/// A golden set of this repository.
pub(crate) fn set(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden-sets/sets").join(name)
}

/// A model server on a free port.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    /// Prints of the process after the first line.
    rest: mpsc::Receiver<String>,
}

impl Server {
    /// `steadfast serve DIRECTORY --port 0` and these; waits until it listens.
    pub(crate) fn start(directory: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(STEADFAST);
        command.arg("serve").arg(directory).args(["--port", "0"]).args(args);
        Self::listen(command, |line| line.rsplit_once("http://127.0.0.1:")?.1.split(' ').next()?.parse().ok())
    }

    /// Any server that prints its port on standard error, found by `port`.
    pub(crate) fn listen(mut command: Command, port: impl Fn(&str) -> Option<u16> + Send + 'static) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (found, wait) = mpsc::channel();
        let (said, rest) = mpsc::channel();
        // Reads to the end: a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                match port(&line) {
                    Some(port) => drop(found.send(port)),
                    None => drop(said.send(line)),
                }
            }
        });
        let Ok(port) = wait.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            panic!("the server never listened: {:?}", rest.try_iter().collect::<Vec<_>>());
        };
        Self { child, port, rest }
    }

    pub(crate) fn ready(directory: &Path, args: &[&str]) -> Self {
        let server = Self::start(directory, args);
        server.wait_until_ready();
        server
    }

    pub(crate) fn wait_until_ready(&self) {
        let began = Instant::now();
        while self.status("/v2/health/ready") != Some(200) {
            assert!(began.elapsed() < PATIENCE, "the server never became ready: {:?}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Status of a GET; `None`: no answer.
    pub(crate) fn status(&self, path: &str) -> Option<u16> {
        get(self.port, path)
    }

    /// What it printed after its first line.
    pub(crate) fn said(&self) -> Vec<String> {
        self.rest.try_iter().collect()
    }

    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("the server is there");
    }

    /// Exit status, once it ends.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        wait(&mut self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `steadfast proxy` in front of a server.
pub(crate) struct Sidecar {
    child: Child,
    pub(crate) port: u16,
}

impl Sidecar {
    /// Waits until it forwards.
    pub(crate) fn before(server: &Server) -> Self {
        let upstream = format!("127.0.0.1:{}", server.port);
        let mut child = Command::new(STEADFAST)
            .args(["proxy", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", &upstream, "--threads", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the sidecar starts");
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
        let told: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let port = told["data"].as_str().and_then(|address| address.rsplit_once(':')?.1.parse().ok());
        let Some(port) = port.filter(|_| read.is_ok()) else {
            let _ = child.kill();
            panic!("the sidecar tells its addresses in one line of JSON, not {line:?}");
        };
        Self { child, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code();
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("it did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Status of one GET over a connection of its own.
pub(crate) fn get(port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A command under way.
pub(crate) struct Running {
    child: Child,
    readers: [std::thread::JoinHandle<String>; 2],
}

impl Running {
    pub(crate) fn end(mut self) -> Ended {
        let code = wait(&mut self.child);
        let [stdout, stderr] = self.readers.map(|reader| reader.join().expect("reading output does not panic"));
        Ended { code, stdout, stderr }
    }
}

/// Starts `steadfast golden …`.
pub(crate) fn golden_in_background<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Running {
    fn reader(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<String> {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = from.read_to_string(&mut text);
            text
        })
    }
    let mut command = Command::new(STEADFAST);
    command.arg("golden").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("steadfast starts");
    let readers = [reader(child.stdout.take().expect("piped")), reader(child.stderr.take().expect("piped"))];
    Running { child, readers }
}

/// Runs `steadfast golden …` to its end.
pub(crate) fn golden<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Ended {
    golden_in_background(args).end()
}
