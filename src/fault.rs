//! `steadfast fault`: arm, disarm, list and watch faults of one running sidecar, by its admin port, which is on its own machine's loopback alone.

use std::{
    fmt::Write as _,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use http::{Method, Request, header::HOST};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Value, json};
use steadfast_api::{
    policy::NamedPolicy,
    read::{self, BadFile},
};
use steadfast_proxy::client::Client;

use crate::{exit, run::print};

/// Where the sidecar of a pod has it.
const ADMIN: &str = "127.0.0.1:4178";
const WITHIN: Duration = Duration::from_secs(10);
const ANSWER_MAX: usize = 4 << 20;
const POLICY_MAX: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Arm, disarm, list and watch faults of one running sidecar.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  steadfast proxy --upstream 127.0.0.1:8000 --listen 127.0.0.1:4180 --admin 127.0.0.1:4178 &\n  steadfast fault arm examples/policies/slow-and-refused.yaml\n  steadfast fault watch\n  steadfast fault disarm\n\nIn a pod: kubectl port-forward POD 4178, then the same. What each fault is: docs/faults.md"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Arm policies, in place of those that were armed by hand before. What the controller armed stays.
    Arm {
        /// Files, each with one named policy, YAML or JSON; `-`: standard input.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Disarm everything, whoever armed it, or the policies that are named.
    Disarm {
        /// Names of policies.
        #[arg(value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// What is armed, until when, and what it has done.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Print every fault that takes place, as it does.
    Watch {
        /// End after so long. Without it: until it is interrupted.
        #[arg(long = "for", value_name = "TIME")]
        lasts: Option<steadfast_api::Span>,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(clap::Args)]
struct Place {
    /// The sidecar's admin port, as it printed it when it started.
    #[arg(long, value_name = "ADDRESS", default_value = ADMIN)]
    admin: String,
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    File(#[from] BadFile),
    #[error("{0}")]
    Input(String),
    #[error("{0}; is a sidecar running there? It prints its admin address when it starts")]
    Sidecar(#[from] steadfast_proxy::client::ClientError),
    #[error("{0}")]
    Answer(String),
}

pub(crate) fn main(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::failed(format!("no runtime: {error}")),
    };
    // The client's connection is a task of this thread.
    match tokio::task::LocalSet::new().block_on(&runtime, run(args.command)) {
        Ok(text) => print(&text),
        Err(error @ (Failure::File(_) | Failure::Input(_))) => exit::bad_input(error),
        Err(error) => exit::failed(error),
    }
}

async fn run(command: Command) -> Result<String, Failure> {
    match command {
        Command::Arm { files, place } => {
            let policies = files.iter().map(|file| policy(file)).collect::<Result<Vec<_>, _>>()?;
            let body = json!({ "policies": policies }).to_string();
            let armed = Sidecar::new(&place).ask(Method::PUT, "/policy", body).await?;
            Ok(shown(&armed, place.output))
        }
        Command::Disarm { names, place } => {
            let mut sidecar = Sidecar::new(&place);
            let mut left = Value::Null;
            let paths: Vec<String> =
                if names.is_empty() { vec!["/policy".into()] } else { names.iter().map(|name| format!("/policy?name={}", encoded(name))).collect() };
            for path in paths {
                left = sidecar.ask(Method::DELETE, &path, String::new()).await?;
            }
            Ok(shown(&left, place.output))
        }
        Command::List { place } => Ok(shown(&Sidecar::new(&place).ask(Method::GET, "/policy", String::new()).await?, place.output)),
        Command::Watch { lasts, place } => watch(lasts, &place).await,
    }
}

/// Letters, digits and what names of policies have besides stay; everything else is written as its bytes.
fn encoded(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            text.push(byte.into());
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

fn policy(file: &Path) -> Result<NamedPolicy, Failure> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let mut text = String::new();
    let source: Result<Box<dyn Read>, _> =
        if file == Path::new("-") { Ok(Box::new(std::io::stdin())) } else { std::fs::File::open(file).map(|file| Box::new(file) as _) };
    source.and_then(|source| source.take(POLICY_MAX + 1).read_to_string(&mut text)).map_err(|error| Failure::Input(format!("{name}: {error}")))?;
    if text.len() as u64 > POLICY_MAX {
        return Err(Failure::Input(format!("{name}: more than {POLICY_MAX} bytes are no policy")));
    }
    Ok(read::from_yaml(&name, &text)?)
}

struct Sidecar {
    client: Client,
    admin: String,
}

impl Sidecar {
    fn new(place: &Place) -> Self {
        Self { client: Client::new(place.admin.clone(), None), admin: place.admin.clone() }
    }

    async fn ask(&mut self, method: Method, path: &str, body: String) -> Result<Value, Failure> {
        let request = Request::builder().method(method).uri(path).header(HOST, &self.admin).body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| Failure::Input(format!("--admin {:?}: {error}; give an address such as {ADMIN}", self.admin)))?;
        let response = self.client.send(request, WITHIN).await?;
        let status = response.status();
        let body = tokio::time::timeout(WITHIN, Limited::new(response.into_body(), ANSWER_MAX).collect()).await;
        let body = body.ok().and_then(Result::ok).ok_or_else(|| Failure::Answer(format!("{}: the answer broke off", self.admin)))?.to_bytes();
        let answer: Option<Value> = serde_json::from_slice(&body).ok();
        let detail = |answer: &Value| answer["detail"].as_str().map(str::to_owned);
        match answer {
            Some(answer) if status.is_success() && answer["policies"].is_array() => Ok(answer),
            Some(answer) if status.is_client_error() => Err(Failure::Input(detail(&answer).unwrap_or_else(|| format!("the sidecar answers {status}")))),
            _ => Err(Failure::Answer(format!("{} answers {status}, as no sidecar does: give the admin port, not the one for users", self.admin))),
        }
    }
}

/// What a sidecar says of its policies, a line each.
fn shown(answer: &Value, output: Output) -> String {
    if output == Output::Json {
        return format!("{answer:#}\n");
    }
    let policies = answer["policies"].as_array().map_or(&[][..], Vec::as_slice);
    if policies.is_empty() {
        return "nothing is armed\n".to_owned();
    }
    let mut text = format!("{:<32} {:<12} {:>10} {:>10}  injected\n", "policy", "armed by", "expires", "active");
    for policy in policies {
        // What lasts as long as the policy is nothing that could be counted.
        let spec = &policy["spec"];
        let lasts = [
            ("port closed", spec["refuse"] == true),
            ("held down", spec["heldDown"] == true),
            ("burns CPU", !spec["cpuPressure"].is_null()),
            ("holds memory", !spec["memoryPressure"].is_null()),
        ];
        let counted = policy["injected"].as_object().into_iter().flatten().map(|(kind, count)| format!("{kind} {count}"));
        let injected: Vec<_> = lasts.iter().filter(|(_, lasts)| *lasts).map(|(what, _)| (*what).to_owned()).chain(counted).collect();
        let expires = Duration::from_secs(policy["expiresInMs"].as_u64().unwrap_or_default().div_ceil(1000));
        let by = if policy["source"] == "manual" { "hand" } else { "controller" };
        let _ = writeln!(
            text,
            "{:<32} {by:<12} {:>10} {:>10}  {}",
            policy["name"].as_str().unwrap_or_default(),
            steadfast_api::Span::new(expires).to_string(),
            policy["active"],
            if injected.is_empty() { "nothing yet".to_owned() } else { injected.join(", ") }
        );
    }
    text
}

/// Prints as it goes; what is left to print comes back.
async fn watch(lasts: Option<steadfast_api::Span>, place: &Place) -> Result<String, Failure> {
    let mut sidecar = Sidecar::new(place);
    let until = lasts.map(|lasts| tokio::time::Instant::now() + lasts.get());
    let numbers = |answer: &Value| answer["injections"].as_array().cloned().unwrap_or_default();
    // What took place before is no news.
    let first = sidecar.ask(Method::GET, "/policy", String::new()).await?;
    let mut seen = numbers(&first).last().and_then(|last| last["number"].as_u64()).unwrap_or_default();
    loop {
        let over = until.is_some_and(|until| tokio::time::Instant::now() >= until);
        let answer = sidecar.ask(Method::GET, "/policy", String::new()).await?;
        let mut text = String::new();
        for injection in numbers(&answer) {
            let number = injection["number"].as_u64().unwrap_or_default();
            if number <= seen {
                continue;
            }
            if number > seen + 1 {
                let _ = writeln!(text, "… {} more, faster than they could be read", number - seen - 1);
            }
            seen = number;
            let word = |field: &str| injection[field].as_str().unwrap_or_default().to_owned();
            let _ = match place.output {
                Output::Json => writeln!(text, "{injection}"),
                Output::Text => writeln!(text, "{:<10} by {:<24} {} {} {}", word("fault"), word("policy"), word("client"), word("method"), word("path")),
            };
        }
        if over {
            return Ok(text);
        }
        print(&text);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_a_line_and_nothing_is_said() {
        let answer =
            json!({ "policies": [{ "name": "slow", "source": "manual", "expiresInMs": 59_001, "active": 3, "injected": { "delay": 7, "abort": 2 } }] });
        let text = shown(&answer, Output::Text);
        assert!(text.contains("slow") && text.contains("hand") && text.contains("1m") && text.contains("abort 2, delay 7"), "{text}");
        assert_eq!(shown(&json!({ "policies": [] }), Output::Text), "nothing is armed\n");
        assert_eq!(encoded("shop/a b"), "shop%2Fa%20b");
    }
}
