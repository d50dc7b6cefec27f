//! CustomResourceDefinitions, made from the types of `steadfast_api`. `deploy/chart/files/crds/` holds them as this module makes them.
//!
//! The API server checks what a schema and a rule can say, so that `kubectl apply` refuses most mistakes with words that teach; what needs more than one object
//! the reconcilers check, and say in conditions.

use serde_json::{Value, json};
use steadfast_api::{
    node::{NodeFaultSpec, NodeFaultStatus},
    policy::FaultPolicySpec,
    resource::{FaultPolicyStatus, GoldenSetSpec, GoldenSetStatus, ResilienceScheduleSpec, ResilienceScheduleStatus, ResilienceTestStatus},
    test::ResilienceTestSpec,
};

use super::{
    resilience_schedule::NAME_MAX,
    resource::{GROUP, VERSION},
    schema::{exactly_one, rule, structural},
};

/// Actions that happen in an instant and take no `for`.
const INSTANT: [&str; 3] = ["podKill", "evict", "containerKill"];
/// Actions that take either `nodes` or `pods`.
const PLACED: [&str; 4] = ["networkLatency", "networkLoss", "networkPartition", "cpuPressure"];

/// Keys of taints: an optional DNS name and `/`, then a name.
const TAINT_KEY: &str = "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?$";
/// Values of taints.
const TAINT_VALUE: &str = "^([a-zA-Z0-9]([-a-zA-Z0-9_.]{0,61}[a-zA-Z0-9])?)?$";
/// Days that a calendar has, but for the 29th of February.
const DATE: &str = "^[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|[12][0-9]))$";

/// A column of `kubectl get`. Of the type date are moments that have passed: kubectl shows how long ago they were, and `<invalid>` for those to come.
struct Column(&'static str, &'static str, &'static str);

/// Why it is as it is, in a word; `kubectl describe` has the sentence.
const REASON: Column = Column("Reason", "string", ".status.conditions[?(@.type==\"Ready\")].reason");

const AGE: Column = Column("Age", "date", ".metadata.creationTimestamp");

struct Definition {
    kind: &'static str,
    singular: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    description: &'static str,
    columns: &'static [Column],
    spec: Value,
    status: Value,
}

impl Definition {
    fn crd(self) -> Value {
        let Self { kind, singular, plural, short, description, columns, spec, status } = self;
        let age = (!columns.iter().any(|column| column.2 == AGE.2)).then_some(&AGE);
        let columns: Vec<Value> = columns.iter().chain(age).map(|Column(name, kind, path)| json!({ "name": name, "type": kind, "jsonPath": path })).collect();
        let mut schema = json!({
            "type": "object",
            "description": description,
            "required": ["spec"],
            "properties": {
                "apiVersion": { "type": "string" },
                "kind": { "type": "string" },
                "metadata": { "type": "object" },
                "spec": spec,
                "status": status,
            },
        });
        let (name_max, since) = match kind {
            "ResilienceSchedule" => (NAME_MAX, "since the tests that it makes are named after it"),
            _ => (63, "since pods and reports carry it as a label"),
        };
        if kind == "ResilienceTest" {
            let phase = |phases: &str| format!("has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase in [{phases}]");
            let breaks = |which: &str| format!("(has({which}.spec.steps) && size({which}.spec.steps) > 0)");
            rule(
                &mut schema,
                &format!("!({} && (oldSelf.status.phase == 'Finished' || {})) || self.spec == oldSelf.spec", phase("'Running', 'Finished'"), breaks("oldSelf")),
                "spec: this test runs or has run, and its report is about the spec as it stands: apply another under another name, or delete this test first",
            );
            rule(
                &mut schema,
                &format!("!({}) || {} == {}", phase("'Running'"), breaks("self"), breaks("oldSelf")),
                "spec.steps: this test watches, and with steps it would break things: apply them under another name",
            );
        }
        rule(&mut schema, &format!("size(self.metadata.name) <= {name_max}"), &format!("metadata.name: at most {name_max} characters, {since}"));
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.{GROUP}") },
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": { "kind": kind, "listKind": format!("{kind}List"), "singular": singular, "plural": plural, "shortNames": short, "categories": ["steadfast"] },
                "versions": [{
                    "name": VERSION,
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": schema },
                }],
            },
        })
    }
}

/// All definitions, by their plural.
pub fn all() -> Vec<(&'static str, Value)> {
    [test(), schedule(), policy(), golden_set(), node_fault()].map(|definition| (definition.plural, definition.crd())).into()
}

/// As YAML documents that `kubectl apply -f -` takes.
///
/// # Errors
/// Never, as far as is known: the writer of YAML has a say.
pub fn yaml(crd: &Value) -> Result<String, String> {
    serde_saphyr::to_string(crd).map_err(|error| error.to_string())
}

/// The schema at this path of properties, `[]` meaning a list's items.
fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(schema, |schema, part| match part {
        "[]" => &mut schema["items"],
        name => &mut schema["properties"][name],
    })
}

fn test() -> Definition {
    let mut spec = structural::<ResilienceTestSpec>();
    let step = at(&mut spec, "steps.[]");
    let actions: Vec<String> = step["properties"]
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys())
        .filter(|field| !["name", "for"].contains(&field.as_str()))
        .cloned()
        .collect();
    rule(step, &exactly_one(&actions), &format!("a step does one thing: give exactly one of {}", actions.join(", ")));
    rule(at(step, "for"), &span("self", "1ms", "24h"), "for: write 1ms to 24h, such as 60s");
    rule(at(step, "podKill.gracePeriod"), &span("self", "0s", "1h"), "podKill.gracePeriod: write 1h or less, such as 30s");
    let hour = span("self.__for__", "0s", "1h");
    rule(step, &format!("!has(self.nodeFailure) || !has(self.__for__) || ({hour})"), "for: nodeFailure lasts 1h or less, such as 10m");
    rule(
        step,
        &format!("!has(self.networkLatency) || !has(self.networkLatency.by) || self.networkLatency.by != 'agent' || !has(self.__for__) || ({hour})"),
        "for: networkLatency by the agent lasts 1h or less, such as 10m",
    );
    rule(
        at(step, "taint.key"),
        &format!("self.matches('{TAINT_KEY}')"),
        "taint.key: write letters, digits, `-`, `_` and `.`, at most 63, with a domain before if you like, such as example.com/maintenance",
    );
    rule(
        at(step, "taint.value"),
        &format!("self.matches('{TAINT_VALUE}')"),
        "taint.value: write letters, digits, `-`, `_` and `.`, at most 63, a letter or digit first and last, such as soon; or leave it out",
    );
    let instant: Vec<String> = INSTANT.iter().map(|action| format!("has(self.{action})")).collect();
    rule(
        step,
        &format!("({}) != has(self.__for__)", instant.join(" || ")),
        &format!("say how long the step lasts, such as `for: 60s`; {} happen in an instant and take no `for`", INSTANT.join(", ")),
    );
    for action in actions {
        let action = at(step, &action);
        for place in ["nodes", "pods"] {
            if action["properties"][place].is_object() {
                selection(at(action, place));
            }
        }
    }
    for action in PLACED {
        rule(at(step, action), "has(self.nodes) != has(self.pods)", "give exactly one of nodes and pods, such as `pods: {mode: one}`");
    }
    rule(at(&mut spec, "baseline"), &span("self", "1s", "24h"), "baseline: write 1s or more, such as 30s, or there is nothing to compare with");
    rule(at(&mut spec, "window"), &span("self", "10s", "24h"), "window: write 10s to 24h, such as 10m");
    rule(
        &mut spec,
        "!has(self.window) || !has(self.steps) || size(self.steps) == 0",
        "window: windows are for tests without steps, which watch on: take window out, or the steps",
    );
    rule(at(&mut spec, "halt.[].availability.for"), &span("self", "1s", "10m"), "halt.availability.for: write 1s to 10m, such as 5s");
    rule(
        &mut spec,
        "!has(self.target.selector.matchLabels) || size(self.target.selector.matchLabels) > 0",
        "target.selector.matchLabels: name at least one label of the pods",
    );
    Definition {
        kind: "ResilienceTest",
        singular: "resiliencetest",
        plural: "resiliencetests",
        short: &["rt"],
        description: "An experiment: what is broken, for how long, and what must hold meanwhile. Without steps it watches for unplanned failures until it is deleted.",
        columns: &[
            Column("Phase", "string", ".status.phase"),
            Column("Verdict", "string", ".status.verdict"),
            Column("Score", "integer", ".status.score"),
            Column("Availability", "string", ".status.availability"),
            Column("Recovery", "string", ".status.recovery"),
            Column("Suspend", "boolean", ".spec.suspend"),
            AGE,
            // Sentences: what they push off the screen must not be a verdict.
            Column("Progress", "string", ".status.progress"),
            Column("Reason", "string", ".status.reason"),
        ],
        spec,
        status: structural::<ResilienceTestStatus>(),
    }
}

/// Whether a length of time at `path` lies within these bounds, as far as CEL can tell: it knows no days or longer (which are more than any bound of less than two
/// days), and of what is written with longer words, such as `5 minutes`, whoever reads the object judges.
fn span(path: &str, least: &str, most: &str) -> String {
    let known = format!("{path}.matches('^([0-9]+ ?(ns|us|ms|s|m|h) ?)+$')");
    let of = format!("duration({path}.replace(' ', ''))");
    let within = format!("(!{known} || ({of} >= duration('{least}') && {of} <= duration('{most}')))");
    let days = format!("{path}.matches('[0-9] ?(d|w|y|M|mon)')");
    match most {
        "8784h" => within,
        "24h" => format!("{path}.matches('^1 ?d(ay)?$') || (!{days} && {within})"),
        _ => format!("!{days} && {within}"),
    }
}

fn selection(schema: &mut Value) {
    rule(
        schema,
        "(self.mode in ['one', 'all']) != has(self.value)",
        "modes one and all take no value; fixed takes a count, fixedPercent and randomMaxPercent a share such as 50%",
    );
    rule(schema, "self.mode != 'fixed' || !has(self.value) || (type(self.value) == int && self.value >= 1)", "mode fixed takes a count, such as `value: 2`");
    rule(
        schema,
        // More would cost more than the API server allows: a value that may be a number has no bound that it believes.
        "!(self.mode in ['fixedPercent', 'randomMaxPercent']) || !has(self.value) || (type(self.value) == string && self.value.endsWith('%') && self.value != '0%')",
        "modes fixedPercent and randomMaxPercent take a share, such as `value: 50%`",
    );
}

fn schedule() -> Definition {
    let mut spec = structural::<ResilienceScheduleSpec>();
    let time = "self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')";
    rule(at(&mut spec, "window.from"), time, "a time of day such as 09:30");
    rule(at(&mut spec, "window.to"), &format!("self == '24:00' || {time}"), "a time of day such as 09:30, or 24:00 for the end of the day");

    rule(at(&mut spec, "window"), "self.from != self.to", "window: from and to are the same, so it is never open; a window over midnight has from after to");
    rule(at(&mut spec, "window.days"), "size(self) > 0", "window.days: name at least one of Mon, Tue, Wed, Thu, Fri, Sat, Sun");
    rule(at(&mut spec, "blackoutDates.[]"), &format!("self.matches('{DATE}')"), "a date that the calendar has, such as 2026-12-24");
    let year = "int(self.substring(0, 4))";
    rule(
        at(&mut spec, "blackoutDates.[]"),
        &format!("!self.matches('^[0-9]{{4}}-02-29$') || ({year} % 4 == 0 && ({year} % 100 != 0 || {year} % 400 == 0))"),
        "that year has no 29th of February",
    );
    rule(at(&mut spec, "meanTimeBetween"), &span("self", "1s", "8784h"), "meanTimeBetween: write 1s to a year, such as 4h");
    Definition {
        kind: "ResilienceSchedule",
        singular: "resilienceschedule",
        plural: "resilienceschedules",
        short: &["rs-schedule"],
        description: "Runs a ResilienceTest at random moments within a window. Leashed until `armed: true`: it tells what it would have run.",
        columns: &[
            Column("Test", "string", ".spec.test.name"),
            Column("Armed", "boolean", ".spec.armed"),
            Column("Next", "string", ".status.nextRunAt"),
            Column("Last", "date", ".status.lastRunAt"),
            Column("Skipped", "string", ".status.lastSkipped.reason"),
            REASON,
        ],
        spec,
        status: structural::<ResilienceScheduleStatus>(),
    }
}

fn policy() -> Definition {
    let mut spec = structural::<FaultPolicySpec>();
    rule(at(&mut spec, "expiresAfter"), &span("self", "1ms", "24h"), "expiresAfter: write 1ms to 24h, such as 10m: what is forgotten must end");
    Definition {
        kind: "FaultPolicy",
        singular: "faultpolicy",
        plural: "faultpolicies",
        short: &["fp"],
        description: "Arms faults in the sidecars of the selected pods, within a budget and until an expiry.",
        columns: &[
            Column("Matched", "integer", ".status.podsMatched"),
            Column("Armed", "integer", ".status.podsArmed"),
            Column("Injected", "integer", ".status.injected"),
            Column("Expires", "string", ".status.expiresAt"),
            REASON,
        ],
        spec,
        status: structural::<FaultPolicyStatus>(),
    }
}

fn golden_set() -> Definition {
    let mut spec = structural::<GoldenSetSpec>();
    rule(at(&mut spec, "digest"), "self.matches('^sha256:[0-9a-f]{64}$')", "a digest as `steadfast golden show` prints it: sha256: and 64 hexadecimal digits");
    rule(
        at(&mut spec, "source.objectStore.url"),
        "self.matches('^(s3|gs|az)://[^/@]+(/.*)?$')",
        "write s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH, without keys",
    );
    Definition {
        kind: "GoldenSet",
        singular: "goldenset",
        plural: "goldensets",
        short: &["gs"],
        description: "Golden inputs that the selected pods' sidecars replay, and whose answers must be those of the reference model.",
        columns: &[
            Column("Verdict", "string", ".status.verdict"),
            Column("Matched", "integer", ".status.podsMatched"),
            Column("Passing", "integer", ".status.podsPassing"),
            Column("Failing", "integer", ".status.podsFailing"),
            Column("Gated", "integer", ".status.podsGated"),
            REASON,
        ],
        spec,
        status: structural::<GoldenSetStatus>(),
    }
}

fn node_fault() -> Definition {
    let mut spec = structural::<NodeFaultSpec>();
    for field in ["node", "fault", "lasts", "notAfter"] {
        rule(at(&mut spec, field), "self == oldSelf", &format!("a NodeFault's {field} does not change: delete it and make another"));
    }
    rule(
        &mut spec,
        "!has(oldSelf.ended) || !oldSelf.ended || (has(self.ended) && self.ended)",
        "a NodeFault that has ended does not begin again: make another",
    );
    Definition {
        kind: "NodeFault",
        singular: "nodefault",
        plural: "nodefaults",
        short: &[],
        description: "What the controller asks the agent of one node. People do not write it.",
        columns: &[Column("Node", "string", ".spec.node"), Column("Phase", "string", ".status.phase"), Column("Message", "string", ".status.message")],
        spec,
        status: structural::<NodeFaultStatus>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every schema within, with its path.
    fn walk<'a>(path: String, schema: &'a Value, see: &mut impl FnMut(&str, &'a Value)) {
        see(&path, schema);
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            walk(format!("{path}.{name}"), inner, see);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                walk(format!("{path}.{inner}"), &schema[inner], see);
            }
        }
    }

    #[test]
    fn published_definitions_are_current() {
        for (plural, crd) in all() {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/chart/files/crds/{plural}.yaml"));
            if std::env::var_os("STEADFAST_WRITE_CRDS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, yaml(&crd).unwrap()).unwrap();
            }
            let published = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(published == yaml(&crd).unwrap(), "{} is not what the types say: write it anew with `just crds`", path.display());
        }
    }

    #[test]
    fn schemas_are_structural_and_everything_has_a_type_and_a_bound() {
        for (plural, crd) in all() {
            let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
            walk(plural.to_owned(), schema, &mut |path, schema| {
                for word in ["$ref", "oneOf", "anyOf", "const", "$schema", "examples"] {
                    assert!(schema.get(word).is_none(), "{path}: {word}");
                }
                let free = schema["x-kubernetes-preserve-unknown-fields"] == true || schema["x-kubernetes-int-or-string"] == true;
                assert!(free || schema["type"].is_string(), "{path} has no type: {schema}");
                assert!(schema["type"] != "array" || schema["maxItems"].is_u64(), "{path} has no bound");
            });
        }
    }

    #[test]
    fn a_column_of_type_date_is_of_what_has_passed() {
        for (plural, crd) in all() {
            let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().unwrap();
            let dates: Vec<&str> = columns.iter().filter(|column| column["type"] == "date").filter_map(|column| column["jsonPath"].as_str()).collect();
            assert!(dates.iter().all(|path| [".metadata.creationTimestamp", ".status.lastRunAt"].contains(path)), "{plural}: {dates:?}");
        }
    }

    #[test]
    fn every_action_of_a_step_is_in_the_rule() {
        let mut spec = test().spec;
        let step = at(&mut spec, "steps.[]").clone();
        let rules = step["x-kubernetes-validations"].to_string();
        for action in ["networkLatency", "podKill", "nodeFailure", "cpuPressure", "corrupt", "rollout", "scale", "taint"] {
            assert!(step["properties"][action].is_object() && rules.contains(&format!("has(self.{action})")), "{action}: {rules}");
        }
    }
}
