//! A headless Chromium on its debugging pipe: opens a page as a person would, and tells everything that went wrong in it.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest wait for one answer; a cold start on a busy machine takes several seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// How a page is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) dark: bool,
}

impl Screen {
    pub(crate) const DESKTOP: Self = Self { width: 1280, height: 900, dark: false };
    pub(crate) const DARK: Self = Self { dark: true, ..Self::DESKTOP };
    pub(crate) const PHONE: Self = Self { width: 360, height: 780, dark: false };
}

/// The binary to use: `CHROMIUM`, or the first of the usual names in `PATH`.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os("CHROMIUM").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
        .into_iter()
        .find_map(|name| env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file()))
}

pub(crate) struct Browser {
    process: Child,
    pipe: Option<ChildStdin>,
    messages: Receiver<Value>,
    events: VecDeque<Value>,
    session: String,
    next: u64,
    visits: u64,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start(binary: &Path) -> Self {
        let profile = TempDir::new().expect("a directory for the browser's profile");
        // Chromium talks on descriptors 3 and 4; the shell puts our two pipes there and becomes the browser.
        let mut process = Command::new("/bin/sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(binary)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--disable-sync",
                "--disable-extensions",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--force-color-profile=srgb",
                "--remote-debugging-pipe",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        let (sender, messages) = channel();
        let output = process.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(value) = message.map_err(drop).and_then(|bytes| serde_json::from_slice(&bytes).map_err(drop)) else { return };
                if sender.send(value).is_err() {
                    return;
                }
            }
        });
        let pipe = process.stdin.take();
        let mut browser = Self { process, pipe, messages, events: VecDeque::new(), session: String::new(), next: 0, visits: 0, _profile: profile };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", &json!({"targetId": target, "flatten": true}))["sessionId"].clone();
        session.as_str().expect("a session").clone_into(&mut browser.session);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Sends a command and waits for its answer; what happens meanwhile is kept.
    pub(crate) fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_call(&mut self, method: &str, parameters: &Value) -> Result<Value, Value> {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": parameters});
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        let pipe = self.pipe.as_mut().expect("open until dropped");
        pipe.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.receive(deadline).unwrap_or_else(|| panic!("{method}: no answer within {PATIENCE:?}"));
            if answer["id"] == json!(self.next) {
                return answer.get("error").map_or_else(|| Ok(answer["result"].clone()), |error| Err(error.clone()));
            }
            self.events.push_back(answer);
        }
    }

    fn receive(&mut self, deadline: Instant) -> Option<Value> {
        match self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the browser ended"),
        }
    }

    /// Opens a file, and waits until it has loaded.
    pub(crate) fn open(&mut self, file: &Path, screen: Screen) {
        self.look(screen);
        self.evaluate("1");
        self.events.clear();
        // The visit's number tells this page from the one before, also where it is the same file.
        self.visits += 1;
        let visit = format!("?{}", self.visits);
        self.call("Page.navigate", &json!({"url": format!("file://{}{visit}", file.display())}));
        let deadline = Instant::now() + PATIENCE;
        let arrived = format!("location.search === {visit:?} && document.readyState === 'complete'");
        // While one page gives way to the next there is a moment without either.
        while self.try_evaluate(&arrived).ok() != Some(Value::Bool(true)) {
            assert!(Instant::now() < deadline, "{}: not loaded within {PATIENCE:?}", file.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        // One more turn of the page's own loop, so that what it does on its first frame has happened.
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))");
    }

    pub(crate) fn look(&mut self, screen: Screen) {
        let Screen { width, height, dark } = screen;
        self.call("Emulation.setDeviceMetricsOverride", &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}));
        self.call("Emulation.setEmulatedMedia", &json!({"features": [{"name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" }}]}));
    }

    /// The value of an expression, awaited.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        self.try_evaluate(expression).unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    fn try_evaluate(&mut self, expression: &str) -> Result<Value, Value> {
        let answer = self.try_call("Runtime.evaluate", &json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true}))?;
        answer.get("exceptionDetails").map_or_else(|| Ok(answer["result"]["value"].clone()), |exception| Err(exception.clone()))
    }

    /// Everything that went wrong since the page was opened: errors and warnings on the console, exceptions, violations of the page's own policy, and every
    /// request to anywhere but the file itself.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // Forces everything that the page has caused so far onto the pipe.
        self.evaluate("1");
        let complain = |message: &Value| {
            let parameters = &message["params"];
            match message["method"].as_str()? {
                "Runtime.consoleAPICalled" if ["error", "warning", "assert"].contains(&parameters["type"].as_str()?) => {
                    Some(format!("console: {}", parameters["args"]))
                }
                "Runtime.exceptionThrown" => Some(format!("exception: {}", parameters["exceptionDetails"])),
                "Log.entryAdded" if ["error", "warning"].contains(&parameters["entry"]["level"].as_str()?) => {
                    Some(format!("log: {}", parameters["entry"]["text"]))
                }
                "Network.requestWillBeSent" => {
                    let url = parameters["request"]["url"].as_str()?;
                    (!["file:", "data:", "about:"].iter().any(|scheme| url.starts_with(scheme))).then(|| format!("request: {url}"))
                }
                _ => None,
            }
        };
        self.events.iter().filter_map(complain).collect()
    }

    /// A picture of the whole page, as PNG.
    pub(crate) fn picture(&mut self, width: u32) -> Vec<u8> {
        let whole = self.evaluate("document.documentElement.scrollHeight").as_f64().expect("a height");
        let clip = json!({"x": 0, "y": 0, "width": width, "height": whole, "scale": 1});
        let answer = self.call("Page.captureScreenshot", &json!({"format": "png", "captureBeyondViewport": true, "clip": clip}));
        decode(answer["data"].as_str().expect("a picture"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // With its pipe closed the browser ends by itself, and its children with it.
        drop(self.pipe.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn decode(base64: &str) -> Vec<u8> {
    let place = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bytes = base64.trim_end_matches('=').as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len() * 3 / 4);
    for group in bytes.chunks(4) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 6 | u32::from(place(*byte))) << (6 * (4 - group.len()));
        decoded.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    decoded
}
