//! The same injection offline: manifests in, manifests out, for GitOps and for reading what the webhook would do.
//!
//! Documents in which nothing changes pass as they are written, comments and all. A Service that targets a number would go past the sidecar, so the number is given a
//! name, in the Service and in the workload that it selects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{
    decide::{Decision, INJECT_LABEL, decide},
    patch::{SidecarSettings, patch},
};

/// What was done to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `Deployment default/recommender`.
    pub object: String,
    pub what: Done,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Ports taken over, in words.
    Injected(Vec<String>),
    /// The Service's port now has this name as its target.
    Named {
        port: i64,
        name: String,
    },
    Already,
    /// It says `steadfast.dev/inject: "false"`.
    Declined,
    Skipped(String),
}

/// Why manifests could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, line {line}: {why}")]
pub struct BadManifest {
    /// From 1.
    pub document: usize,
    /// Within the file.
    pub line: usize,
    pub why: String,
}

struct Document<'a> {
    text: &'a str,
    line: usize,
    /// The document itself, or the items of a List.
    value: Value,
    changed: bool,
}

/// Injects every workload of `text` (YAML documents or JSON) that does not decline.
///
/// # Errors
/// When a document is not to be read; then nothing is written.
pub fn inject(text: &str, settings: &SidecarSettings) -> Result<(String, Vec<Note>), BadManifest> {
    let mut documents = Vec::new();
    for (index, (line, text)) in split(text).into_iter().enumerate() {
        // YAML 1.1 would read the name `y` as true.
        let options = serde_saphyr::options! { strict_booleans: true };
        let value = serde_saphyr::from_str_with_options::<Value>(text, options).map_err(|error| {
            let error = error.without_snippet();
            BadManifest { document: index + 1, line: line + error.location().map_or(0, |at| at.line() as usize), why: error.to_string() }
        })?;
        documents.push(Document { text, line, value, changed: false });
    }
    let mut notes = Vec::new();
    name_targets(&mut documents, &mut notes);
    for (index, document) in documents.iter_mut().enumerate() {
        let fail = |why: String| BadManifest { document: index + 1, line: document.line + 1, why };
        let mut changed = false;
        for object in objects(&mut document.value) {
            if let Some(note) = inject_object(object, settings).map_err(fail)? {
                changed |= matches!(note.what, Done::Injected(_));
                notes.push(note);
            }
        }
        document.changed |= changed;
    }
    let mut written = String::new();
    for document in &documents {
        if !written.is_empty() {
            written.push_str("---\n");
        }
        if document.changed {
            written.push_str(&serde_saphyr::to_string(&document.value).map_err(|error| BadManifest { document: 0, line: 0, why: error.to_string() })?);
        } else {
            written.push_str(document.text);
        }
        if !written.ends_with('\n') {
            written.push('\n');
        }
    }
    Ok((written, notes))
}

/// Documents with the number of lines before each. Empty ones are left out.
pub(crate) fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut begin, mut begin_line, mut at) = (0, 0, 0);
    let mut push = |from: usize, to: usize, line: usize| {
        let document = &text[from..to];
        let is_empty = document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if !is_empty {
            documents.push((line, document));
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            push(begin, at, begin_line);
            (begin, begin_line) = (at + line.len(), number + 1);
        }
        at += line.len();
    }
    push(begin, text.len(), begin_line);
    documents
}

/// The objects of a document: itself, or a List's items.
fn objects(document: &mut Value) -> Vec<&mut Value> {
    if document["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && document["items"].is_array() {
        document["items"].as_array_mut().map(|items| items.iter_mut().collect()).unwrap_or_default()
    } else {
        vec![document]
    }
}

/// Where the pod stands in an object of this kind.
fn pod_path(object: &Value) -> Option<&'static str> {
    match object["kind"].as_str()? {
        "Pod" => Some(""),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn described(object: &Value) -> String {
    let metadata = |field: &str| object["metadata"][field].as_str();
    let namespace = metadata("namespace").map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{} {namespace}{}", object["kind"].as_str().unwrap_or("object"), metadata("name").or(metadata("generateName")).unwrap_or("without a name"))
}

fn inject_object(object: &mut Value, settings: &SidecarSettings) -> Result<Option<Note>, String> {
    let described = described(object);
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let Some(template) = pod_path(object).and_then(|path| object.pointer_mut(path)) else { return Ok(None) };
    if !template["metadata"].is_object() {
        template["metadata"] = Value::Object(Map::new());
    }
    let pod: Pod = serde_json::from_value(template.clone()).map_err(|error| format!("{described}: its pod cannot be read: {error}"))?;
    let asked = BTreeMap::from([(INJECT_LABEL.to_owned(), "true".to_owned())]);
    let what = match decide(&pod, &namespace, &asked, settings.redirect.is_some()) {
        Decision::NotAsked => Done::Declined,
        Decision::Already => Done::Already,
        Decision::Skip(skip) => Done::Skipped(skip.to_string()),
        Decision::Inject(plan) => {
            json_patch::patch(template, &patch(&pod, &plan, settings)).map_err(|error| format!("{described}: {error}"))?;
            Done::Injected(plan.routes.iter().map(|route| format!("{} ({} behind {})", route.name, route.server, route.sidecar)).collect())
        }
    };
    Ok(Some(Note { object: described, what }))
}

/// Gives numbers that Services target a name, where the workload is in the same manifests.
fn name_targets(documents: &mut [Document<'_>], notes: &mut Vec<Note>) {
    // Service by service: (document, object, port), then the workload's container.
    let services: Vec<Value> = documents
        .iter_mut()
        .flat_map(|document| objects(&mut document.value))
        .filter(|object| object["kind"] == "Service")
        .map(|object| object.clone())
        .collect();
    for service in services {
        let Some(selector) = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty()).cloned() else { continue };
        for (index, port) in service["spec"]["ports"].as_array().into_iter().flatten().enumerate() {
            let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
            let Some(number) = target.as_i64().filter(|_| port["protocol"].is_null() || port["protocol"] == "TCP") else { continue };
            let wished = port["name"].as_str().unwrap_or("http").to_owned();
            let mut name = None;
            for document in documents.iter_mut() {
                let mut changed = false;
                for workload in objects(&mut document.value) {
                    if workload["metadata"]["namespace"] != service["metadata"]["namespace"] {
                        continue;
                    }
                    if let Some(template) = pod_path(workload).and_then(|path| workload.pointer_mut(path))
                        && selector.iter().all(|(key, value)| template["metadata"]["labels"][key] == *value)
                        && template["metadata"]["labels"][INJECT_LABEL] != "false"
                    {
                        let (given, new) = name_port(template, number, &wished);
                        name = given.or(name);
                        changed |= new;
                    }
                }
                document.changed |= changed;
            }
            let Some(name) = name else { continue };
            notes.push(Note { object: described(&service), what: Done::Named { port: number, name: name.clone() } });
            for document in documents.iter_mut() {
                let mut changed = false;
                for object in objects(&mut document.value).into_iter().filter(|object| **object == service || is_same(object, &service)) {
                    object["spec"]["ports"][index]["targetPort"] = name.clone().into();
                    changed = true;
                }
                document.changed |= changed;
            }
        }
    }
}

fn is_same(object: &Value, other: &Value) -> bool {
    object["kind"] == other["kind"]
        && object["metadata"]["name"] == other["metadata"]["name"]
        && object["metadata"]["namespace"] == other["metadata"]["namespace"]
}

/// The name of the pod's port `number`; given now where it has none. Whether the template changed.
fn name_port(template: &mut Value, number: i64, wished: &str) -> (Option<String>, bool) {
    let Some(containers) = template["spec"]["containers"].as_array_mut() else { return (None, false) };
    let declared = |containers: &[Value], find: &dyn Fn(&Value) -> bool| {
        containers.iter().enumerate().find_map(|(container, value)| Some((container, value["ports"].as_array()?.iter().position(find)?)))
    };
    let taken = |containers: &[Value], name: &str| declared(containers, &|port| port["name"] == name).is_some();
    let name = if taken(containers, wished) { format!("port-{number}") } else { wished.to_owned() };
    if let Some((container, port)) = declared(containers, &|port| port["containerPort"] == number) {
        let port = &mut containers[container]["ports"][port];
        if let Some(name) = port["name"].as_str() {
            return (Some(name.to_owned()), false);
        }
        port["name"] = name.clone().into();
        return (Some(name), true);
    }
    // Not declared: in a pod of one container there is no doubt whose it is.
    let [container] = containers.as_mut_slice() else { return (None, false) };
    if !container["ports"].is_array() {
        container["ports"] = json!([]);
    }
    if let Some(ports) = container["ports"].as_array_mut() {
        ports.push(json!({ "name": name, "containerPort": number }));
    }
    (Some(name), true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::patch::SidecarResources;

    fn settings() -> SidecarSettings {
        SidecarSettings {
            image: "proxy:1".into(),
            image_pull_policy: None,
            controller: None,
            resources: SidecarResources::default(),
            leave_seconds: 0,
            redirect: None,
        }
    }

    const MANIFESTS: &str = "# Everything that the team runs.
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}   # stays as it is
data: {y: 'no'}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, flag: 'yes', n: 'y'}}
    spec:
      containers:
        - name: server
          image: web
          args: [\"8000\", 'off', y]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: web, port: 80, targetPort: 8000}]
";

    fn read(text: &str) -> Vec<Value> {
        split(text).into_iter().map(|(_, text)| serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true }).unwrap()).collect()
    }

    #[test]
    fn numbers_get_names_and_workloads_the_sidecar_and_the_rest_stays() {
        let (written, notes) = inject(MANIFESTS, &settings()).unwrap();
        assert!(written.starts_with("# Everything that the team runs.\n") && written.contains("# stays as it is"), "{written}");
        let documents = read(&written);
        assert_eq!(documents[2]["spec"]["ports"], json!([{ "name": "web", "port": 80, "targetPort": "web" }]));
        let pod = &documents[1]["spec"]["template"];
        assert_eq!(pod["spec"]["containers"][0]["ports"], json!([{ "containerPort": 8000 }, { "name": "web", "containerPort": 4180, "protocol": "TCP" }]));
        assert_eq!(pod["spec"]["containers"][0]["args"], json!(["8000", "off", "y"]), "texts stay texts");
        assert_eq!(pod["metadata"]["labels"], json!({ "app": "web", "flag": "yes", "n": "y" }));
        assert_eq!(pod["spec"]["initContainers"][0]["name"], "steadfast-proxy");
        assert_eq!(
            notes,
            [
                Note { object: "Service web".into(), what: Done::Named { port: 8000, name: "web".into() } },
                Note { object: "Deployment web".into(), what: Done::Injected(vec!["web (8000 behind 4180)".into()]) },
            ]
        );
    }

    #[test]
    fn injecting_what_was_injected_changes_nothing() {
        let (once, _) = inject(MANIFESTS, &settings()).unwrap();
        let (twice, notes) = inject(&once, &settings()).unwrap();
        assert_eq!(twice, once);
        assert_eq!(notes, [Note { object: "Deployment web".into(), what: Done::Already }]);
    }

    #[test]
    fn who_declines_or_cannot_be_injected_passes_as_written_and_it_is_said() {
        let declined = MANIFESTS.replace("app: web, flag", "app: web, steadfast.dev/inject: 'false', flag");
        let (written, notes) = inject(&declined, &settings()).unwrap();
        assert_eq!(written, declined);
        assert_eq!(notes, [Note { object: "Deployment web".into(), what: Done::Declined }]);
        let host = MANIFESTS.replace("    spec:\n      containers", "    spec:\n      hostNetwork: true\n      containers");
        let (_, notes) = inject(&host, &settings()).unwrap();
        assert!(matches!(&notes[1].what, Done::Skipped(why) if why.contains("hostNetwork")), "{notes:?}");
    }

    #[test]
    fn lists_cron_jobs_and_bare_pods_are_injected_too() {
        let container = "containers: [{name: s, image: s, ports: [{name: http, containerPort: 8000}]}]";
        let text = format!(
            "kind: List\napiVersion: v1\nitems:\n- {{kind: Pod, apiVersion: v1, metadata: {{name: a}}, spec: {{{container}}}}}\n- {{kind: CronJob, apiVersion: batch/v1, metadata: {{name: b}}, spec: {{jobTemplate: {{spec: {{template: {{spec: {{{container}}}}}}}}}}}}}\n"
        );
        let (written, notes) = inject(&text, &settings()).unwrap();
        assert_eq!(notes.iter().filter(|note| matches!(note.what, Done::Injected(_))).count(), 2, "{notes:?}");
        assert_eq!(written.matches("restartPolicy: Always").count(), 2);
    }

    #[test]
    fn a_document_that_cannot_be_read_is_named_by_its_line() {
        let error = inject("a: 1\n---\nkind: Pod\nspec: [\n", &settings()).unwrap_err();
        assert!(error.document == 2 && error.line >= 4, "{error}");
        let error = inject("kind: Pod\nmetadata: {name: x}\nspec: {containers: 7}\n", &settings()).unwrap_err();
        assert!(error.why.contains("Pod x"), "{error}");
    }
}
