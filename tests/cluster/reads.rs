//! GET requests to the API server by one `kubectl proxy` on a Unix socket, which reaches over networks. To start `kubectl` costs a fifth of a second of a processor,
//! and tests that wait ask all the time.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// Kind, its plural, and the path of its group's version.
const KINDS: [(&str, &str, &str); 18] = [
    ("configmap", "configmaps", "/api/v1"),
    ("event", "events", "/api/v1"),
    ("namespace", "namespaces", "/api/v1"),
    ("node", "nodes", "/api/v1"),
    ("pod", "pods", "/api/v1"),
    ("service", "services", "/api/v1"),
    ("serviceaccount", "serviceaccounts", "/api/v1"),
    ("daemonset", "daemonsets", "/apis/apps/v1"),
    ("deployment", "deployments", "/apis/apps/v1"),
    ("statefulset", "statefulsets", "/apis/apps/v1"),
    ("job", "jobs", "/apis/batch/v1"),
    ("lease", "leases", "/apis/coordination.k8s.io/v1"),
    ("endpointslice", "endpointslices", "/apis/discovery.k8s.io/v1"),
    ("faultpolicy", "faultpolicies", "/apis/steadfast.dev/v1alpha1"),
    ("goldenset", "goldensets", "/apis/steadfast.dev/v1alpha1"),
    ("nodefault", "nodefaults", "/apis/steadfast.dev/v1alpha1"),
    ("resilienceschedule", "resilienceschedules", "/apis/steadfast.dev/v1alpha1"),
    ("resiliencetest", "resiliencetests", "/apis/steadfast.dev/v1alpha1"),
];

const OUTSIDE_NAMESPACES: [&str; 2] = ["namespaces", "nodes"];

/// Where objects of a kind are: in a namespace, or in all.
fn base(kind: &str, namespace: Option<&str>) -> Option<String> {
    let (_, plural, group) = KINDS.iter().find(|(singular, plural, _)| kind == *singular || kind == *plural)?;
    let namespace = namespace.filter(|_| !OUTSIDE_NAMESPACES.contains(plural));
    Some(namespace.map_or_else(|| format!("{group}/{plural}"), |name| format!("{group}/namespaces/{name}/{plural}")))
}

/// The path of `pod/x`, as `kubectl get` takes it; `None`: ask `kubectl`.
pub(crate) fn object(what: &str, namespace: Option<&str>) -> Option<String> {
    let (kind, name) = what.split_once('/')?;
    let base = base(kind, namespace)?;
    let is_outside = OUTSIDE_NAMESPACES.iter().any(|plural| base.ends_with(&format!("/{plural}")));
    (namespace.is_some() || is_outside).then(|| format!("{base}/{name}"))
}

/// The path of all objects of a kind that a label selector takes, `""` being all.
pub(crate) fn objects(kind: &str, namespace: Option<&str>, selector: &str) -> Option<String> {
    let mut path = base(kind, namespace)?;
    if !selector.is_empty() {
        path.push_str("?labelSelector=");
        for byte in selector.bytes() {
            if byte.is_ascii_alphanumeric() {
                path.push(char::from(byte));
            } else {
                let _ = write!(path, "%{byte:02X}");
            }
        }
    }
    Some(path)
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// The proxy; it ends with this program, however that ends.
#[derive(Debug)]
pub(crate) struct Reads {
    socket: PathBuf,
}

impl Reads {
    /// `shell` is a command that runs what follows in the cluster's network.
    pub(crate) fn start(mut shell: Command) -> io::Result<Self> {
        let socket = std::env::temp_dir().join(format!("steadfast-test-{}.sock", std::process::id()));
        let script = "kubectl proxy --unix-socket=\"$1\" >/dev/null 2>&1 & cat >/dev/null; kill $!; rm -f \"$1\"";
        let mut child = shell.args(["-c", script, "sh"]).arg(&socket).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        // Its other end closes with this process.
        std::mem::forget(child.stdin.take());
        let reads = Self { socket };
        for _ in 0..100 {
            if reads.get("/version").is_ok() {
                return Ok(reads);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(io::Error::other("kubectl proxy does not answer"))
    }

    pub(crate) fn get(&self, path: &str) -> io::Result<Answer> {
        self.ask("GET", path)
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)?;
        // Whoever was cut off may keep a connection that leads nowhere.
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // In this version an answer is not in chunks, and ends with its connection.
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other("no head"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| io::Error::other("no status"))?;
        Ok(Answer { status, body: body.to_owned() })
    }
}
