//! Real runs of this build's `steadfast`, one at a time: two at once would disturb each other's timing.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use steadfast_api::report::Report;
use tempfile::TempDir;

pub(crate) const STEADFAST: &str = env!("CARGO_BIN_EXE_steadfast");
/// No run of these tests takes this long on a machine that works.
const PATIENCE: Duration = Duration::from_mins(3);

static ONE_RUN: Mutex<()> = Mutex::new(());

/// An experiment on two pods of a small classifier; `spec` is what follows `golden` in the file, indented by two.
pub(crate) fn experiment(name: &str, serve: &str, spec: &str) -> String {
    format!(
        "apiVersion: steadfast.dev/v1alpha1
kind: ResilienceTest
metadata: {{name: {name}}}
spec:
  target: {{selector: {{matchLabels: {{app: digits}}}}}}
  local:
    nodes: 2
    pods:
      replicas: 2
      labels: {{app: digits}}
      command: [steadfast, serve, golden-sets/sets/digits, --port, $(PORT){serve}]
      ready: {{period: 100ms}}
    timers: {{nodeMonitorGracePeriod: 1s, tolerationSeconds: 1s, backOff: 200ms}}
  load: [{{name: users, rate: 100/s, inputs: {{goldenSet: digits}}}}]
  golden: [{{set: digits, every: 200ms}}]
{spec}"
    )
}

/// A run of an experiment.
pub(crate) struct Run {
    _one: MutexGuard<'static, ()>,
    folder: TempDir,
    child: Child,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) folder: TempDir,
}

impl Run {
    pub(crate) fn start(test: &str, args: &[&str]) -> Self {
        let one = ONE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("test.yaml");
        fs::write(&file, test).expect("the file is written");
        fs::create_dir(folder.path().join("tmp")).expect("a folder");
        let out = |name: &str| fs::File::create(folder.path().join(name)).expect("a file");
        let child = Command::new(STEADFAST)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("TMPDIR", folder.path().join("tmp"))
            .arg("run")
            .arg(&file)
            .arg("--report-dir")
            .arg(folder.path().join("report"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(out("stdout"))
            .stderr(out("stderr"))
            .spawn()
            .expect("steadfast starts");
        Self { _one: one, folder, child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it wrote to standard output so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    /// Waits until a line of progress contains `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let began = Instant::now();
        while !self.said().contains(text) {
            let ended = self.child.try_wait().expect("its state is known");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{text:?} never came; {ended:?}\n{}\n{}", self.said(), self.complaints());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid() as i32), signal).expect("the process is there");
    }

    pub(crate) fn ended(mut self) -> Ended {
        let began = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.child.try_wait().expect("its state is known") {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "it never ended\n{}\n{}", self.said(), self.complaints());
            std::thread::sleep(Duration::from_millis(20));
        };
        let (stdout, stderr) = (self.said(), self.complaints());
        let folder = std::mem::replace(&mut self.folder, TempDir::new().expect("a folder"));
        Ended { code: status.code(), stdout, stderr, folder }
    }

    fn complaints(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Its keeper ends what it started.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    pub(crate) fn report(&self) -> Report {
        let text =
            fs::read_to_string(self.folder.path().join("report/report.json")).unwrap_or_else(|error| panic!("{error}\n{}\n{}", self.stdout, self.stderr));
        serde_json::from_str(&text).expect("the report is one")
    }

    /// For failures: everything that was said.
    pub(crate) fn all(&self) -> String {
        format!("exit {:?}\n{}\n{}", self.code, self.stdout, self.stderr)
    }

    /// Nothing but the report is in the run's folders, at the latest a moment after it ended: the keeper of a killed run comes after it.
    pub(crate) fn assert_no_files(&self) {
        let began = Instant::now();
        loop {
            let left: Vec<_> = fs::read_dir(self.folder.path().join("tmp")).expect("the folder").flatten().map(|entry| entry.path()).collect();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Everything that a run has started: its processes by run id, and the ports that they listen on.
#[derive(Debug, Default)]
pub(crate) struct Started {
    pub(crate) runs: BTreeSet<String>,
    pub(crate) processes: BTreeSet<u32>,
    pub(crate) ports: BTreeSet<u16>,
}

impl Started {
    pub(crate) fn by(runner: u32) -> Self {
        let mut started = Self { processes: BTreeSet::from([runner]), ..Self::default() };
        // Parents come before their children sooner or later.
        loop {
            let before = started.processes.len();
            for (pid, parent) in processes() {
                if started.processes.contains(&parent) {
                    started.processes.insert(pid);
                }
            }
            if started.processes.len() == before {
                break;
            }
        }
        started.runs = started.processes.iter().filter_map(|pid| run_id(*pid)).collect();
        started.ports = listening(&started.processes);
        started.processes.remove(&runner);
        started
    }

    /// Waits until all of it is gone.
    pub(crate) fn assert_gone(&self) {
        let began = Instant::now();
        loop {
            let alive: Vec<u32> = processes().into_iter().map(|(pid, _)| pid).filter(|pid| run_id(*pid).is_some_and(|run| self.runs.contains(&run))).collect();
            let open: Vec<u16> = self.ports.iter().copied().filter(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()).collect();
            if alive.is_empty() && open.is_empty() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "left behind: processes {alive:?}, ports {open:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Every process with its parent; what has ended and was not waited for is none.
fn processes() -> Vec<(u32, u32)> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut rest = stat.rsplit_once(") ")?.1.split(' ');
        let (state, parent) = (rest.next()?, rest.next()?.parse().ok()?);
        (state != "Z").then_some((pid, parent))
    })
    .collect()
}

fn run_id(pid: u32) -> Option<String> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let entry = environment.split(|byte| *byte == 0).find(|entry| entry.starts_with(b"STEADFAST_RUN="))?;
    Some(String::from_utf8_lossy(&entry[14..]).into_owned())
}

fn listening(pids: &BTreeSet<u32>) -> BTreeSet<u16> {
    let mut inodes = BTreeSet::new();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path())
                && let Some(inode) = target.to_string_lossy().strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'))
            {
                inodes.insert(inode.to_owned());
            }
        }
    }
    let table = fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(3) == Some(&"0A") && inodes.contains(*fields.get(9)?);
            listens.then(|| u16::from_str_radix(fields[1].rsplit_once(':')?.1, 16).ok())?
        })
        .collect()
}

/// A file of this repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
