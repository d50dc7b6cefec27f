//! The rules that types alone cannot hold. Each names the field, what stands there and what would be right.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use steadfast_api::{
    Percent, Span,
    fault::Length,
    node::{LASTS_MAX, LATENCY_MAX},
    policy::{GOLDEN_SETS_MAX, LabelSelector},
    test::{
        Action, During, Halt, Hypothesis, LatencyBy, Local, NetworkLatency, NodeFailure, NodeFailureBy, RecoveredAt, ResilienceTest, ResilienceTestSpec,
        Selection, Step, Taint,
    },
};

use super::{
    super::sets::{Finder, Sets},
    Target, estimate,
};
use crate::observe::requests::Requests;

/// An agent heals a node by itself no later than this.
const NODE_FAILURE_MAX: Span = LASTS_MAX;

/// Nobody looks at one step for longer; what is forgotten must end.
const STEP_MAX: Span = Span::from_secs(24 * 3600);
/// A pod that takes longer to end is not ended by a test.
const GRACE_MAX: Span = Span::from_secs(3600);

/// Something wrong at a field: what stands there, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    pub field: String,
    pub message: String,
}

struct Check<'a> {
    spec: &'a ResilienceTestSpec,
    target: Target,
    finder: &'a Finder,
    sets: Sets,
    problems: Vec<Problem>,
}

/// The golden sets that could be read, and everything that is wrong.
pub(super) fn check(test: &ResilienceTest, target: Target, finder: &Finder) -> (Sets, Vec<Problem>) {
    let mut check = Check { spec: &test.spec, target, finder, sets: Sets::default(), problems: Vec::new() };
    check.name("metadata.name", &test.metadata.name);
    check.target();
    match (&test.spec.local, target) {
        // `local` is read by the local platform alone.
        (_, Target::Cluster) => {}
        (Some(local), Target::Local) => check.local(local),
        (None, Target::Local) => {
            check.wrong("spec", "has no `local`: the local platform needs to know how many nodes and which pods, such as `local: {nodes: 3, pods: {…}}`");
        }
    }
    check.load();
    check.golden();
    check.times();
    check.steps();
    check.hypotheses();
    check.halts();
    check.size();
    (check.sets, check.problems)
}

impl Check<'_> {
    fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { field: field.into(), message: message.into() });
    }

    /// RFC 1123 label.
    fn name(&mut self, field: &str, name: &str) {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inner = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if name.len() > 63 || !inner || !edge(name.chars().next()) || !edge(name.chars().last()) {
            self.wrong(field, format!("{name:?} is not a name: write lower case letters, digits and `-`, at most 63, a letter or digit first and last"));
        }
    }

    fn bounds(&mut self, field: &str, value: u32, most: u32) {
        if !(1..=most).contains(&value) {
            self.wrong(field, format!("{value} is out of bounds: write 1 to {most}"));
        }
    }

    fn more_than_zero(&mut self, field: &str, span: Span, example: &str) {
        if span.is_zero() {
            self.wrong(field, format!("0s is too short: write more than zero, such as {example}"));
        }
    }

    fn target(&mut self) {
        let selector = &self.spec.target.selector;
        if selector.is_empty() {
            self.wrong("spec.target.selector", "selects every pod: name at least one label, such as `matchLabels: {app: recommender}`");
        }
        if self.spec.target.port.is_empty() {
            self.wrong("spec.target.port", "is empty: name the Service's port, such as http");
        }
    }

    fn local(&mut self, local: &Local) {
        self.bounds("spec.local.nodes", local.nodes, 64);
        let pods = &local.pods;
        self.bounds("spec.local.pods.replicas", pods.replicas, 256);
        let selector: &LabelSelector = &self.spec.target.selector;
        if !selector.matches(&pods.labels) {
            let wanted = show(&selector.match_labels);
            self.wrong("spec.local.pods.labels", format!("{} are not selected by spec.target.selector: the pods must carry {wanted}", show(&pods.labels)));
        }
        self.command(local);
        let probe = &pods.ready;
        if !probe.http_get.path.starts_with('/') {
            self.wrong("spec.local.pods.ready.httpGet.path", format!("{:?} is not a path: begin with `/`, such as /v2/health/ready", probe.http_get.path));
        }
        self.more_than_zero("spec.local.pods.ready.period", probe.period, "1s");
        self.more_than_zero("spec.local.pods.ready.timeout", probe.timeout, "1s");
        self.bounds("spec.local.pods.ready.failureThreshold", probe.failure_threshold, 100);
        let timers = &local.timers;
        self.more_than_zero("spec.local.timers.nodeMonitorGracePeriod", timers.node_monitor_grace_period, "4s");
        self.more_than_zero("spec.local.timers.backOff", timers.back_off, "1s");
        if timers.back_off > timers.back_off_max {
            let message = format!("{} is shorter than backOff, {}: write at least that", timers.back_off_max, timers.back_off);
            self.wrong("spec.local.timers.backOffMax", message);
        }
    }

    fn command(&mut self, local: &Local) {
        let field = "spec.local.pods.command";
        let command = &local.pods.command;
        let Some(program) = command.first().filter(|program| !program.is_empty()) else {
            return self.wrong(field, "is empty: write the model server's command line, such as [steadfast, serve, MODEL_DIR, --port, $(PORT)]");
        };
        if program != "steadfast" && !self.runs(program) {
            self.wrong(format!("{field}[0]"), format!("there is no program {program:?}, neither in PATH nor from {}", self.finder.work_dir.display()));
        }
        let texts = || command.iter().chain(local.pods.env.values());
        for (index, text) in command.iter().enumerate() {
            if let Some(unknown) = placeholders(text).find(|name| !["PORT", "POD_NAME", "NODE_NAME"].contains(name)) {
                self.wrong(format!("{field}[{index}]"), format!("$({unknown}) is not known: $(PORT), $(POD_NAME) and $(NODE_NAME) are"));
            }
        }
        if !texts().any(|text| placeholders(text).any(|name| name == "PORT")) {
            self.wrong(field, "does not name $(PORT): several servers run on one machine, so each must be told its own port, in `command` or in `env`");
        }
    }

    fn runs(&self, program: &str) -> bool {
        if program.contains('/') {
            return self.finder.work_dir.join(program).is_file();
        }
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
    }

    fn load(&mut self) {
        let mut names = BTreeSet::new();
        for (index, load) in self.spec.load.iter().enumerate() {
            let field = |name: &str| format!("spec.load[{index}].{name}");
            self.name(&field("name"), &load.name);
            if !names.insert(&load.name) {
                self.wrong(field("name"), format!("{:?} is there twice: give every load its own name", load.name));
            }
            self.set(&field("inputs.goldenSet"), &load.inputs.golden_set);
            self.more_than_zero(&field("timeout"), load.timeout, "2s");
            self.bounds(&field("maxInFlight"), load.max_in_flight, 100_000);
        }
    }

    fn golden(&mut self) {
        let mut names = BTreeSet::new();
        for (index, golden) in self.spec.golden.iter().enumerate() {
            let field = |name: &str| format!("spec.golden[{index}].{name}");
            if !names.insert(&golden.set) {
                self.wrong(field("set"), format!("{:?} is there twice: replay it more often with `every`", golden.set));
            }
            self.set(&field("set"), &golden.set);
            if golden.every.get() < Duration::from_millis(10) {
                self.wrong(field("every"), format!("{} is too often: write 10ms or more, such as 1s", golden.every));
            }
        }
        if self.target == Target::Cluster && self.spec.golden.len() > GOLDEN_SETS_MAX {
            self.wrong("spec.golden", format!("{} sets are more than a sidecar takes: write {GOLDEN_SETS_MAX} at most", self.spec.golden.len()));
        }
    }

    fn set(&mut self, field: &str, name: &str) {
        if self.target == Target::Cluster && self.finder.shelves.is_empty() {
            return self.name(field, name);
        }
        if let Err(why) = self.sets.load(name, self.finder) {
            self.wrong(field, format!("{name:?} cannot be used: {why}"));
        }
    }

    fn times(&mut self) {
        if self.spec.baseline.get() < Duration::from_secs(1) {
            let message = format!("{} is too short: write 1s or more, or there is nothing to compare with", self.spec.baseline);
            self.wrong("spec.baseline", message);
        }
        let stable = &self.spec.stable;
        self.more_than_zero("spec.stable.hold", stable.hold, "10s");
        if stable.hold >= stable.within {
            let message = format!("{} is not shorter than `within`, {}: no system could ever be called stable", stable.hold, stable.within);
            self.wrong("spec.stable.hold", message);
        }
        self.bounds("spec.rounds", self.spec.rounds, 1000);
        self.watch();
    }

    /// What is of use in a test without steps alone, or in every other.
    fn watch(&mut self) {
        let watches = self.spec.steps.is_empty();
        if let Some(window) = self.spec.window {
            if !watches {
                self.wrong("spec.window", format!("{window}: windows are for tests without steps, which watch on: take `window` out, or the steps"));
            } else if !(Duration::from_secs(10)..=Duration::from_hours(24)).contains(&window.get()) {
                self.wrong("spec.window", format!("{window} is out of bounds: write 10s to 24h"));
            }
        }
        if watches && !self.spec.halt.is_empty() {
            self.wrong("spec.halt", "ends faults, and a test without steps has none: take `halt` out, or name a step");
        }
    }

    fn steps(&mut self) {
        let mut names = BTreeSet::new();
        for (index, step) in self.spec.steps.iter().enumerate() {
            let field = format!("spec.steps[{index}]");
            if step.name.trim().is_empty() || step.name.chars().count() > 80 || step.name.chars().any(char::is_control) {
                self.wrong(format!("{field}.name"), format!("{:?} is not a name: write 1 to 80 characters on one line", step.name));
            }
            if !names.insert(&step.name) {
                self.wrong(format!("{field}.name"), format!("{:?} is there twice: give every step its own name", step.name));
            }
            self.step(&format!("{field}.{}", step.action.name()), step);
        }
    }

    fn step(&mut self, field: &str, step: &Step) {
        let (nodes, pods) =
            self.spec.local.as_ref().filter(|_| self.target == Target::Local).map_or((u32::MAX, u32::MAX), |local| (local.nodes, local.pods.replicas));
        if let Some(selection) = step.action.nodes() {
            self.selection(&format!("{field}.nodes"), selection, nodes, "nodes");
        }
        if let Some(selection) = step.action.pods() {
            self.selection(&format!("{field}.pods"), selection, pods, "pods");
        }
        match &step.action {
            Action::NetworkLatency(action) => self.latency(field, action, step.duration),
            Action::NetworkLoss(action) => self.share(&format!("{field}.share"), action.share, "5%"),
            Action::CpuPressure(action) => self.share(&format!("{field}.load"), action.load, "90%"),
            Action::Corrupt(action) => {
                self.share(&format!("{field}.share"), action.share, "100%");
                self.share(&format!("{field}.magnitude"), action.magnitude, "10%");
            }
            Action::Rollout(action) => {
                self.name(&format!("{field}.container"), &action.container);
                if action.image.trim().is_empty() || action.image.contains(char::is_whitespace) {
                    self.wrong(format!("{field}.image"), format!("{:?} is not an image: write its reference, such as registry.example/model:2", action.image));
                }
            }
            Action::ContainerKill(action) => {
                if let Some(container) = &action.container {
                    self.name(&format!("{field}.container"), container);
                }
            }
            Action::Scale(action) => self.scale(&format!("{field}.replicas"), action.replicas),
            Action::Taint(action) => self.taint(field, action),
            Action::PodKill(action) if action.grace_period > GRACE_MAX => {
                self.wrong(format!("{field}.gracePeriod"), format!("{} is too long: write {GRACE_MAX} or less", action.grace_period));
            }
            _ => {}
        }
        if step.duration > STEP_MAX {
            self.wrong(format!("{field}.for"), format!("{} is too long: write 24h or less", step.duration));
        }
        if self.target == Target::Cluster && matches!(step.action, Action::NodeFailure(_)) && step.duration > NODE_FAILURE_MAX {
            self.wrong(format!("{field}.for"), format!("{} is too long for a node to be lost: write {NODE_FAILURE_MAX} or less", step.duration));
        }
        if self.target == Target::Local
            && let Some((which, why)) = not_local(&step.action)
        {
            let field = which.map_or_else(|| field.to_owned(), |which| format!("{field}.{which}"));
            self.wrong(field, why);
        }
    }

    fn taint(&mut self, field: &str, action: &Taint) {
        if !qualified_name(&action.key) {
            self.wrong(
                format!("{field}.key"),
                format!("{:?} is not the key of a taint: write letters, digits, `-`, `_` and `.`, such as example.com/maintenance", action.key),
            );
        }
        if !action.value.is_empty() && !plain(&action.value, 63, char::is_ascii_alphanumeric) {
            self.wrong(
                format!("{field}.value"),
                format!("{:?} is not the value of a taint: write at most 63 letters, digits, `-`, `_` and `.`, a letter or digit first and last", action.value),
            );
        }
    }

    fn latency(&mut self, field: &str, action: &NetworkLatency, lasts: Span) {
        self.more_than_zero(&format!("{field}.delay"), action.delay, "500ms");
        let most = Span::new(action.delay.get().saturating_add(action.jitter.get()));
        if action.by == LatencyBy::Sidecar {
            if most > Length::MOST {
                self.wrong(format!("{field}.delay"), format!("{most} with its jitter is too long for a sidecar to wait: write 1h or less"));
            }
            return;
        }
        if action.pods.is_some() {
            self.wrong(format!("{field}.by"), "the agent delays what comes to whole nodes: choose `nodes`, or leave `by` out".to_owned());
        }
        if most > LATENCY_MAX {
            self.wrong(format!("{field}.delay"), format!("{most} with its jitter is too long for packets to wait: write {LATENCY_MAX} or less"));
        }
        if lasts > NODE_FAILURE_MAX {
            self.wrong(format!("{field}.for"), format!("{lasts} is too long for a node's network to be slow: write {NODE_FAILURE_MAX} or less"));
        }
    }

    fn scale(&mut self, field: &str, replicas: u32) {
        if replicas > 10_000 {
            self.wrong(field, format!("{replicas} is out of bounds: write 0 to 10000"));
        }
        if self.target == Target::Local && replicas > 256 {
            self.wrong(field, format!("{replicas} is out of bounds on one machine: write 0 to 256"));
        }
    }

    fn share(&mut self, field: &str, share: Percent, example: &str) {
        if share == Percent::ZERO {
            self.wrong(field, format!("0% does nothing: write more, such as {example}"));
        }
    }

    fn selection(&mut self, field: &str, selection: Selection, candidates: u32, of: &str) {
        if let Selection::Fixed(count) = selection
            && count > candidates
            && candidates > 0
        {
            self.wrong(format!("{field}.value"), format!("{count} of {candidates} {of} cannot be chosen: write 1 to {candidates}, or mode all"));
        }
    }

    fn hypotheses(&mut self) {
        for (index, hypothesis) in self.spec.hypothesis.iter().enumerate() {
            let (name, during) = match hypothesis {
                Hypothesis::Availability(at_least) => ("availability", Some(at_least.during)),
                Hypothesis::Latency(latency) => ("latency", Some(latency.during)),
                Hypothesis::Recovery(_) => ("recovery", None),
                Hypothesis::Consistency(at_least) => ("consistency", Some(at_least.during)),
            };
            let field = format!("spec.hypothesis[{index}].{name}");
            let users = !self.spec.load.is_empty();
            let checked = users || !self.spec.golden.is_empty();
            match hypothesis {
                Hypothesis::Availability(_) | Hypothesis::Latency(_) if !users => {
                    self.wrong(&field, "is what users see, and `load` has none: add one, such as {name: users, rate: 200/s, inputs: {goldenSet: recommender}}");
                }
                Hypothesis::Consistency(_) if !checked => self.wrong(&field, "needs answers to check: add a `load` or a `golden` set"),
                Hypothesis::Recovery(recovery) => match recovery.until {
                    RecoveredAt::FirstGoodResponse if !users => {
                        self.wrong(format!("{field}.until"), "firstGoodResponse needs users: add a `load`, or write ready");
                    }
                    RecoveredAt::FirstCorrectPrediction if !checked => {
                        self.wrong(format!("{field}.until"), "firstCorrectPrediction needs answers to check: add a `load` or a `golden` set, or write ready");
                    }
                    _ => (),
                },
                _ => (),
            }
            if let Hypothesis::Latency(latency) = hypothesis
                && latency.quantile == Percent::ZERO
            {
                self.wrong(format!("{field}.quantile"), "0% is no quantile: write above 0% up to 100%, such as 99%");
            }
            self.during(&format!("{field}.during"), during);
        }
    }

    fn during(&mut self, field: &str, during: Option<During>) {
        let lasting = self.spec.steps.iter().any(|step| !step.duration.is_zero());
        match during {
            Some(During::Faults) if !lasting => self.wrong(field, "faults: no step lasts for a while, so nothing is due during one: write recovery or run"),
            Some(During::Recovery) if self.spec.steps.is_empty() => self.wrong(field, "recovery: there is no step to recover from: write run"),
            _ => (),
        }
    }

    fn halts(&mut self) {
        for (index, Halt::Availability(halt)) in self.spec.halt.iter().enumerate() {
            let field = format!("spec.halt[{index}].availability");
            if self.spec.load.is_empty() {
                self.wrong(&field, "is what users see, and `load` has none: add one");
            }
            if halt.below == Percent::ZERO {
                self.wrong(format!("{field}.below"), "0%: availability is never below that: write more, such as 20%");
            }
            if halt.duration.get() < Duration::from_secs(1) || halt.duration.get() > super::super::halt::WINDOW_MAX {
                self.wrong(format!("{field}.for"), format!("{} is out of bounds: write 1s to 10m", halt.duration));
            }
        }
    }

    /// The whole must fit into memory.
    fn size(&mut self) {
        let (_, most) = estimate(self.spec);
        let rate: f64 = self.spec.load.iter().map(|load| load.rate.per_second()).sum();
        let requests = rate * most.as_secs_f64();
        if requests > Requests::MAX as f64 {
            let message = format!(
                "{rate}/s for up to {} would be {requests:.0} requests, and {} are kept: lower the rate, `rounds` or `stable.within`",
                Span::new(most),
                Requests::MAX
            );
            self.wrong("spec.load", message);
        }
    }
}

/// Why one machine cannot do this, and which field of it is the reason, if the rest could be done.
const fn not_local(action: &Action) -> Option<(Option<&'static str>, &'static str)> {
    let why = match action {
        Action::Evict(_) => "the local platform has no disruption budgets to respect: write podKill",
        Action::Drain(_) => "the local platform has no disruption budgets to respect: write podKill or nodeFailure",
        Action::ContainerKill(_) => "the local platform kills whole pods: write podKill",
        Action::Rollout(_) => "the local platform runs processes and has no images: write corrupt for a bad model",
        Action::Cordon(_) | Action::Taint(_) => "the local platform's scheduler knows no cordons and taints: write nodeFailure or podKill",
        Action::NetworkLatency(NetworkLatency { by: LatencyBy::Agent, .. }) => {
            return Some((Some("by"), "one machine has no node agents: leave `by` out, and sidecars add the latency"));
        }
        Action::NodeFailure(NodeFailure { by: NodeFailureBy::Agent | NodeFailureBy::Power | NodeFailureBy::Kubelet, .. }) => {
            return Some((Some("by"), "the local platform has one way only for a node to fail: leave `by` out"));
        }
        _ => return None,
    };
    Some((None, why))
}

/// A key as labels and taints have it: an optional DNS prefix and `/`, then a name of at most 63 characters.
fn qualified_name(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let of_domain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    plain(name, 63, char::is_ascii_alphanumeric) && prefix.is_none_or(|prefix| !prefix.contains('_') && plain(prefix, 253, of_domain))
}

/// These characters, and `-`, `_` and `.` but at the edges.
fn plain(text: &str, most: usize, is: impl Fn(&char) -> bool) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| is(&c));
    text.len() <= most && edge(text.chars().next()) && edge(text.chars().last()) && text.chars().all(|c| is(&c) || "-_.".contains(c))
}

fn show(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", labels.join(", "))
}

/// Names inside `$(…)`; `$$(` is an escape, as in Kubernetes.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("$(").filter_map(move |(at, _)| {
        let escaped = at > 0 && text.as_bytes()[at - 1] == b'$';
        let name = &text[at + 2..];
        name.find(')').filter(|_| !escaped).map(|end| &name[..end])
    })
}
