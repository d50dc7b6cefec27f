//! The same injection offline: manifests in, manifests out, for GitOps and for reading what the webhook would do.
//!
//! Documents in which nothing changes pass as they are written, comments and all; the others are written anew. A Service that targets a number would go past the sidecar, so the number is given a
//! name, in the Service and in the workload that it selects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    networking::v1::NetworkPolicy,
};
use serde_json::{Map, Value, json};
use steadfast_api::read::{Places, from_value};

use super::{
    allowed::{self, CutOff, Servers},
    decide::{Decision, INJECT_LABEL, Plan, ROUTES_ANNOTATION, Skip, decide, is_apart, is_meaningless, is_tcp},
    past::{self, PodPorts, Taken},
    patch::{SidecarSettings, patch},
    yaml,
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
        /// The Service has no address of its own, so not everybody who uses it asks where to dial.
        is_headless: bool,
    },
    /// The Service's port goes on leading to this number, past the sidecar, and why.
    Unnamed {
        port: i64,
        why: String,
    },
    /// Ports of the Service by which users come past the sidecars all the same, and what would be right.
    Past(String),
    /// Ports of the node that lead to unnamed ports of these numbers, past the sidecar.
    OnNode(Vec<i32>),
    /// The NetworkPolicy let users in by this number alone, and now by the port's name too, which leads to the sidecar.
    LetIn {
        port: i32,
        name: String,
    },
    /// The NetworkPolicy let its pods out to this number alone, and now to the port's name too.
    LetOut {
        port: i32,
        name: String,
    },
    /// The Service targets numbers, and this workload has the labels that it selects, but only one of the two says its namespace.
    Elsewhere(String),
    /// The Namespace has this for the label that asks, which means nothing.
    Mislabelled(String),
    /// Pods are made of it, by an operator that is not known here.
    UnknownKind,
    Already,
    /// It says `steadfast.dev/inject: "false"`.
    Declined,
    Skipped(String),
}

/// A file of manifests.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// As its user calls it.
    pub name: &'a str,
    pub text: &'a str,
}

/// Why manifests could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: document {document}, line {line}: {why}")]
pub struct BadManifest {
    pub file: String,
    /// From 1, within the file.
    pub document: usize,
    /// Within the file.
    pub line: usize,
    pub why: String,
}

struct Document<'a> {
    file: &'a str,
    /// From 1, within the file.
    number: usize,
    text: &'a str,
    /// Lines before it.
    line: usize,
    is_json: bool,
    /// It follows an object of JSON with nothing between them.
    follows_json: bool,
    /// The document itself, or the items of a List.
    value: Value,
    changed: bool,
}

impl Document<'_> {
    fn refuse(&self, line: usize, why: String) -> BadManifest {
        BadManifest { file: self.file.to_owned(), document: self.number, line: self.line + line.max(1), why }
    }

    /// Keys are sorted in what changed, and comments are gone.
    fn write(&self) -> Result<String, String> {
        match (self.changed, self.is_json) {
            (false, _) => Ok(self.text.to_owned()),
            (true, true) => serde_json::to_string_pretty(&self.value).map_err(|error| error.to_string()),
            (true, false) => serde_saphyr::to_string(&self.value).map_err(|error| error.to_string()),
        }
    }
}

/// The documents of a file.
fn documents<'a>(file: &File<'a>) -> Result<Vec<Document<'a>>, BadManifest> {
    let mut documents: Vec<Document<'a>> = Vec::new();
    for (line, text) in split(file.text) {
        let new = |documents: &Vec<Document<'a>>| Document {
            file: file.name,
            number: documents.len() + 1,
            text,
            line,
            is_json: false,
            follows_json: false,
            value: Value::Null,
            changed: false,
        };
        if let Some(objects) = json_objects(text) {
            for (at, (before, text, value)) in objects.into_iter().enumerate() {
                let document = Document { text, line: line + before, is_json: true, follows_json: at > 0, value, ..new(&documents) };
                documents.push(document);
            }
        } else {
            let document = new(&documents);
            let value = yaml::read(text).map_err(|(at, why)| document.refuse(at as usize, why))?;
            documents.push(Document { value, ..document });
        }
    }
    Ok(documents)
}

/// Objects of JSON, one after another, with the lines before each; `None`: it is something else.
fn json_objects(text: &str) -> Option<Vec<(usize, &str, Value)>> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Map<String, Value>>();
    let (mut objects, mut from) = (Vec::new(), 0);
    while let Some(object) = stream.next() {
        let object = object.ok()?;
        let to = stream.byte_offset();
        let written = text[from..to].trim_start();
        let lines = text[..to - written.len()].matches('\n').count();
        objects.push((lines, written, Value::Object(object)));
        from = to;
    }
    (!objects.is_empty()).then_some(objects)
}

/// Injects every workload of `files` (YAML documents or JSON) that does not decline.
///
/// # Errors
/// When a document is not to be read; then nothing is written.
pub fn inject(files: &[File<'_>], settings: &SidecarSettings) -> Result<(String, Vec<Note>), BadManifest> {
    let mut documents: Vec<Document<'_>> = files.iter().map(documents).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
    let mut notes = Vec::new();
    name_targets(&mut documents, settings, &mut notes);
    for document in &mut documents {
        let is_list = is_list(&document.value);
        let mut value = document.value.take();
        for (at, object) in objects(&mut value).into_iter().enumerate() {
            let named = described(object);
            let on_node = on_node(object, settings.redirect.is_some());
            let injected = inject_object(object, settings).map_err(|Unreadable { field, why }| {
                let place = if is_list { format!("items[{at}].{field}") } else { field.clone() };
                let line = Places::of(document.text).map_or(1, |places| places.find(&place).0 as usize);
                document.refuse(line, format!("{named}: {field}: {why}"))
            })?;
            if let Some(note) = injected {
                let is_injected = matches!(note.what, Done::Injected(_));
                document.changed |= is_injected;
                let object = note.object.clone();
                notes.push(note);
                if is_injected && !on_node.is_empty() {
                    notes.push(Note { object, what: Done::OnNode(on_node) });
                }
            }
        }
        document.value = value;
    }
    tell_past(&mut documents, &mut notes);
    let_in(&mut documents, &mut notes);
    let mut written = String::new();
    for document in &documents {
        if !written.is_empty() && !document.follows_json {
            written.push_str("---\n");
        }
        written.push_str(&document.write().map_err(|why| document.refuse(1, why))?);
        if !written.ends_with('\n') {
            written.push('\n');
        }
    }
    Ok((written, notes))
}

/// Documents with the number of lines before each. Empty ones are left out, and so are directives such as `%YAML 1.2`, which kubectl does not know.
pub(crate) fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut begin, mut begin_line, mut at) = (0, 0, 0);
    let mut push = |from: usize, to: usize, line: usize| {
        let document = &text[from..to];
        let says_nothing = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%') || line.trim_end() == "...";
        let is_empty = document.lines().all(says_nothing);
        if !is_empty {
            documents.push((line, document));
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // What else stands behind the mark is part of a document, or none of YAML's business.
        if line.strip_prefix("---").is_some_and(|rest| rest.trim().is_empty() || (rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#'))) {
            push(begin, at, begin_line);
            (begin, begin_line) = (at + line.len(), number + 1);
        }
        at += line.len();
    }
    push(begin, text.len(), begin_line);
    documents
}

fn is_list(document: &Value) -> bool {
    document["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && document["items"].is_array()
}

/// The objects of a document: itself, or a List's items.
fn objects(document: &mut Value) -> Vec<&mut Value> {
    if is_list(document) { document["items"].as_array_mut().map(|items| items.iter_mut().collect()).unwrap_or_default() } else { vec![document] }
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

/// Whether it is a model server whose containers its operator knows: a predictor with a model and nothing else.
fn is_server(object: &Value) -> bool {
    const SERVERS: [(&str, &str); 3] =
        [("InferenceService", "serving.kserve.io/"), ("LLMInferenceService", "serving.kserve.io/"), ("SeldonDeployment", "machinelearning.seldon.io/")];
    let is = |field: &str, is: &dyn Fn(&str) -> bool| object[field].as_str().is_some_and(is);
    SERVERS.iter().any(|(kind, group)| is("kind", &|of| of == *kind) && is("apiVersion", &|of| of.starts_with(group)))
}

/// Whether containers are listed anywhere within it.
fn has_containers(value: &Value) -> bool {
    let is_container = |value: &Value| value["image"].is_string();
    match value {
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| (name == "containers" && value.as_array().is_some_and(|all| all.iter().any(is_container))) || has_containers(value)),
        Value::Array(items) => items.iter().any(has_containers),
        _ => false,
    }
}

fn described(object: &Value) -> String {
    let metadata = |field: &str| object["metadata"][field].as_str();
    let namespace = metadata("namespace").map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{} {namespace}{}", object["kind"].as_str().unwrap_or("object"), metadata("name").or(metadata("generateName")).unwrap_or("without a name"))
}

/// What of an object cannot be read.
struct Unreadable {
    /// Dotted path within the object.
    field: String,
    why: String,
}

fn inject_object(object: &mut Value, settings: &SidecarSettings) -> Result<Option<Note>, Unreadable> {
    let described = described(object);
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    if object["kind"] == "Namespace" {
        let label = object["metadata"]["labels"][INJECT_LABEL].as_str().filter(|value| is_meaningless(value));
        return Ok(label.map(|value| Note { object: described, what: Done::Mislabelled(value.to_owned()) }));
    }
    let Some(path) = pod_path(object) else {
        return Ok((has_containers(object) || is_server(object)).then_some(Note { object: described, what: Done::UnknownKind }));
    };
    let Some(template) = object.pointer_mut(path) else { return Ok(None) };
    if !template["metadata"].is_object() {
        template["metadata"] = Value::Object(Map::new());
    }
    let field = |within: &str| [&path.replace('/', ".")[path.len().min(1)..], within].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
    let pod: Pod = from_value(template.clone()).map_err(|(within, why)| {
        let quoted = if why.ends_with("expected a string") { ": write it in quotes, if a text is meant" } else { "" };
        Unreadable { field: field(&within), why: format!("{why}{quoted}") }
    })?;
    let what = match decide(&pod, &namespace, &asked(), settings.redirect.is_some()) {
        Decision::NotAsked => Done::Declined,
        Decision::Already => Done::Already,
        Decision::Skip(skip) => Done::Skipped(skip.offline()),
        Decision::Inject(plan) => {
            json_patch::patch(template, &patch(&pod, &plan, settings)).map_err(|error| Unreadable { field: field(""), why: error.to_string() })?;
            Done::Injected(plan.routes.iter().map(|route| format!("{} ({} behind {})", route.name, route.server, route.sidecar)).collect())
        }
    };
    Ok(Some(Note { object: described, what }))
}

/// Unnamed ports of a workload's pods that a port of the node leads to, and that no sidecar takes over.
fn on_node(object: &Value, may_redirect: bool) -> Vec<i32> {
    let pod = pod_path(object).and_then(|path| from_value::<Pod>(object.pointer(path)?.clone()).ok());
    let Some(spec) = pod.filter(|pod| !(may_redirect && pod.metadata.annotations.as_ref().is_some_and(past::is_redirected))).and_then(|pod| pod.spec) else {
        return Vec::new();
    };
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports.filter(|port| is_tcp(port) && port.host_port.is_some() && port.name.is_none()).map(|port| port.container_port).collect()
}

/// Labels of a namespace that asks: whoever runs the program does.
fn asked() -> BTreeMap<String, String> {
    BTreeMap::from([(INJECT_LABEL.to_owned(), "true".to_owned())])
}

fn services(documents: &mut [Document<'_>]) -> Vec<Value> {
    let all = documents.iter_mut().flat_map(|document| objects(&mut document.value));
    all.filter(|object| object["kind"] == "Service").map(|object| object.clone()).collect()
}

/// Gives numbers that Services target a name, where the workloads are in the same manifests and will have a sidecar there.
fn name_targets(documents: &mut [Document<'_>], settings: &SidecarSettings, notes: &mut Vec<Note>) {
    for service in services(documents) {
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or("default");
        let may_redirect = settings.redirect.is_some();
        let mut is_missed = false;
        for (index, port) in service["spec"]["ports"].as_array().into_iter().flatten().enumerate() {
            let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
            let Some(number) = target.as_i64().filter(|_| port["protocol"].is_null() || port["protocol"] == "TCP") else { continue };
            let wished = port["name"].as_str().unwrap_or("http");
            let mut behind = Vec::new();
            each_template(documents, &service, |template| {
                behind.push(template.clone());
                false
            });
            is_missed |= behind.is_empty();
            // By its name it is not for users, and nobody behind it has named it.
            let is_named = || behind.iter().any(|template| matches!(port_of(template, number), Port::Named(_)));
            if is_apart(wished) && !is_named() {
                continue;
            }
            let name = match common_name(&behind, number, wished) {
                Ok(name) => name,
                Err(why) => {
                    if behind.iter().any(|template| may_have_sidecar(template, namespace, may_redirect)) {
                        notes.push(Note { object: described(&service), what: Done::Unnamed { port: number, why } });
                    }
                    continue;
                }
            };
            // A number leads on to whoever has no sidecar, or lets it pass, or is redirected.
            if !behind.iter().any(|template| takes_over(template, namespace, number, &name, may_redirect)) {
                continue;
            }
            // Also where the sidecar is declined: the Service leads there by the same name.
            each_template(documents, &service, |template| name_port(template, number, &name));
            let is_headless = service["spec"]["clusterIP"] == "None";
            notes.push(Note { object: described(&service), what: Done::Named { port: number, name: name.clone(), is_headless } });
            for document in documents.iter_mut() {
                let mut changed = false;
                for object in objects(&mut document.value).into_iter().filter(|object| is_same(object, &service)) {
                    object["spec"]["ports"][index]["targetPort"] = name.clone().into();
                    changed = true;
                }
                document.changed |= changed;
            }
        }
        if let Some(workload) = is_missed.then(|| elsewhere(documents, &service)).flatten() {
            notes.push(Note { object: described(&service), what: Done::Elsewhere(workload) });
        }
    }
}

/// A workload that a Service would select, if not only one of the two said its namespace.
fn elsewhere(documents: &mut [Document<'_>], service: &Value) -> Option<String> {
    let is_said = |object: &Value| object["metadata"]["namespace"].is_string();
    let mut workloads = documents.iter_mut().flat_map(|document| objects(&mut document.value));
    workloads
        .find(|workload| {
            is_said(workload) != is_said(service)
                && pod_path(workload).and_then(|path| workload.pointer(path)).is_some_and(|template| is_selected(template, service))
        })
        .map(|workload| described(workload))
}

fn decided(template: &Value, namespace: &str, may_redirect: bool) -> Option<Decision> {
    from_value::<Pod>(template.clone()).ok().map(|pod| decide(&pod, namespace, &asked(), may_redirect))
}

/// Whether nothing but names of ports keeps the sidecar from these pods.
fn may_have_sidecar(template: &Value, namespace: &str, may_redirect: bool) -> bool {
    matches!(decided(template, namespace, may_redirect), Some(Decision::Inject(_) | Decision::Already | Decision::Skip(Skip::NoNamedPort | Skip::NoPort)))
}

/// Whether the sidecar of these pods takes over the server's port `number` by its name, which will be this one if it has none.
fn takes_over(template: &Value, namespace: &str, number: i64, name: &str, may_redirect: bool) -> bool {
    let decision = decided(template, namespace, may_redirect);
    let route = |plan: &Plan| plan.routes.iter().find(|route| i64::from(route.server) == number).cloned();
    if let Some(Decision::Inject(plan)) = &decision
        && let Some(route) = route(plan)
    {
        return route.probes.is_none();
    }
    match decision {
        Some(Decision::Already) => ports(template).past.iter().any(|(server, _)| i64::from(*server) == number),
        Some(Decision::NotAsked) | None => false,
        Some(Decision::Inject(_) | Decision::Skip(_)) => {
            let mut named = template.clone();
            let decision = name_port(&mut named, number, name).then(|| decided(&named, namespace, may_redirect)).flatten();
            matches!(decision, Some(Decision::Inject(plan)) if route(&plan).is_some())
        }
    }
}

/// What the annotations of an injected template say.
fn ports(template: &Value) -> PodPorts {
    PodPorts::read(&from_value(template["metadata"]["annotations"].clone()).unwrap_or_default())
}

/// Tells of Services that lead past the sidecars all the same, by the controller's own rule; of those ports of which nothing was said yet.
fn tell_past(documents: &mut [Document<'_>], notes: &mut Vec<Note>) {
    for service in services(documents) {
        let Ok(read) = from_value::<Service>(service.clone()) else { continue };
        let mut behind = Vec::new();
        each_template(documents, &service, |template| {
            if template["metadata"]["annotations"][ROUTES_ANNOTATION].is_string() {
                behind.push(ports(template));
            }
            false
        });
        let object = described(&service);
        let is_told =
            |number: i32| notes.iter().any(|note| note.object == object && matches!(note.what, Done::Unnamed { port, .. } if port == i64::from(number)));
        let mut past = past::past(&read, &behind.iter().collect::<Vec<_>>());
        past.retain(|past| !matches!(past.how, past::How::Number(number, _) | past::How::NotTaken(number) if is_told(number)));
        if !past.is_empty() {
            notes.push(Note { object, what: Done::Past(past::note(&past, "")) });
        }
    }
}

/// Lets users in, and clients out, by the names of ports that sidecars took over, where NetworkPolicies of the same manifests know the numbers alone. The numbers stay: pods without a
/// sidecar, those of before a rollout among them, are still reached by them.
fn let_in(documents: &mut [Document<'_>], notes: &mut Vec<Note>) {
    let mut namespaces: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for object in documents.iter_mut().flat_map(|document| objects(&mut document.value)).filter(|object| object["kind"] == "Namespace") {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        namespaces.insert(name, from_value(object["metadata"]["labels"].clone()).unwrap_or_default());
    }
    let mut pods: Vec<(Value, BTreeMap<String, String>, Vec<Taken>)> = Vec::new();
    for workload in documents.iter_mut().flat_map(|document| objects(&mut document.value)) {
        let Some(template) = pod_path(workload).and_then(|path| workload.pointer(path)) else { continue };
        let read = |field: &str| from_value::<BTreeMap<String, String>>(template["metadata"][field].clone()).unwrap_or_default();
        let (labels, annotations) = (read("labels"), read("annotations"));
        if !past::is_redirected(&annotations) {
            pods.push((workload["metadata"]["namespace"].clone(), labels, past::taken(&annotations)));
        }
    }
    let namespace_labels: Vec<_> = pods.iter().map(|(namespace, ..)| labels_of(namespace, &namespaces)).collect();
    for document in documents {
        let mut changed = false;
        for object in objects(&mut document.value).into_iter().filter(|object| object["kind"] == "NetworkPolicy") {
            let Ok(policy) = from_value::<NetworkPolicy>(object.clone()) else { continue };
            let here = object["metadata"]["namespace"].clone();
            let selected = pods.iter().filter(|(namespace, labels, _)| *namespace == here && allowed::selects(&policy, labels));
            let cut: BTreeSet<CutOff> = selected.flat_map(|(_, _, taken)| allowed::cut_off(&policy, taken)).collect();
            let servers = pods.iter().zip(&namespace_labels).map(|((namespace, labels, taken), namespace_labels)| Servers {
                is_here: *namespace == here,
                namespace_labels,
                labels,
                taken,
            });
            let kept: BTreeSet<CutOff> = servers.flat_map(|servers| allowed::kept_from(&policy, &servers)).collect();
            for (rules, CutOff { rule, number: port, name }) in cut.into_iter().map(|cut| ("ingress", cut)).chain(kept.into_iter().map(|kept| ("egress", kept)))
            {
                if let Some(ports) = object["spec"][rules][rule]["ports"].as_array_mut() {
                    ports.push(json!({ "port": name, "protocol": "TCP" }));
                    changed = true;
                }
                let what = if rules == "ingress" { Done::LetIn { port, name } } else { Done::LetOut { port, name } };
                notes.push(Note { object: described(object), what });
            }
        }
        document.changed |= changed;
    }
}

/// What is known of a namespace's labels: those of the manifests, and its name, where it is said.
fn labels_of(namespace: &Value, known: &BTreeMap<String, BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let Some(name) = namespace.as_str() else { return BTreeMap::new() };
    let mut labels = known.get(name).cloned().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    labels
}

/// Whether a Service without regard to namespaces selects these pods.
fn is_selected(template: &Value, service: &Value) -> bool {
    let selector = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty());
    selector.is_some_and(|selector| selector.iter().all(|(key, value)| template["metadata"]["labels"][key] == *value))
}

/// Does something to every pod template that a Service selects; `act` says whether it changed it.
fn each_template(documents: &mut [Document<'_>], service: &Value, mut act: impl FnMut(&mut Value) -> bool) {
    for document in documents {
        let mut changed = false;
        for workload in objects(&mut document.value) {
            if workload["metadata"]["namespace"] == service["metadata"]["namespace"]
                && let Some(template) = pod_path(workload).and_then(|path| workload.pointer_mut(path))
                && is_selected(template, service)
            {
                changed |= act(template);
            }
        }
        document.changed |= changed;
    }
}

fn is_same(object: &Value, other: &Value) -> bool {
    object["kind"] == other["kind"]
        && object["metadata"]["name"] == other["metadata"]["name"]
        && object["metadata"]["namespace"] == other["metadata"]["namespace"]
}

/// What a template says of a port by its number.
enum Port {
    /// It has a name, here or, where the sidecar is there already, at the sidecar's port.
    Named(String),
    /// It can be given one.
    Unnamed,
    /// Nobody declares it, and any of several containers may listen on it.
    Unknown,
}

fn port_of(template: &Value, number: i64) -> Port {
    let end = format!(":{number}");
    let routes = template["metadata"]["annotations"][ROUTES_ANNOTATION].as_str().unwrap_or_default();
    if let Some((name, _)) = routes.split(',').filter(|route| route.ends_with(&end)).find_map(|route| route.split_once('=')) {
        return Port::Named(name.to_owned());
    }
    let containers = template["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    let mut declared =
        containers.iter().flat_map(|container| container["ports"].as_array().into_iter().flatten()).filter(|port| port["containerPort"] == number);
    match declared.next() {
        Some(port) => port["name"].as_str().map_or(Port::Unnamed, |name| Port::Named(name.to_owned())),
        None if containers.len() == 1 => Port::Unnamed,
        None => Port::Unknown,
    }
}

/// The one name by which all of `templates` will know their port `number`.
fn common_name(templates: &[Value], number: i64, wished: &str) -> Result<String, String> {
    let mut names = BTreeSet::new();
    for template in templates {
        match port_of(template, number) {
            Port::Named(name) => {
                names.insert(name);
            }
            Port::Unnamed => {}
            Port::Unknown => return Err("a workload behind it has several containers, and none declares that port: declare it, with a name".to_owned()),
        }
    }
    let taken = |name: &str| {
        let ports = |template: &Value| -> Vec<Value> {
            let containers = template["spec"]["containers"].as_array().into_iter().flatten();
            containers.flat_map(|container| container["ports"].as_array().cloned().unwrap_or_default()).collect()
        };
        templates.iter().any(|template| matches!(port_of(template, number), Port::Unnamed) && ports(template).iter().any(|port| port["name"] == name))
    };
    let mut names = names.into_iter();
    match (names.next(), names.next()) {
        (Some(one), Some(other)) => Err(format!("workloads behind it name that port {one:?} and {other:?}: give it one name")),
        (Some(one), None) if taken(&one) => {
            Err(format!("a workload behind it names that port {one:?}, and another one names another port so: give it one name"))
        }
        (Some(one), None) => Ok(one),
        (None, _) => {
            let valid = valid_name(wished);
            Ok(if taken(&valid) { format!("port-{number}") } else { valid })
        }
    }
}

/// A name that a container's port may have: of 15 letters, digits and single hyphens at most, one of them a letter.
fn valid_name(wished: &str) -> String {
    const LENGTH_MAX: usize = 15;
    let mut name = String::new();
    for c in wished.chars().map(|c| c.to_ascii_lowercase()) {
        let c = if c.is_ascii_alphanumeric() { c } else { '-' };
        if name.len() < LENGTH_MAX && !(c == '-' && (name.is_empty() || name.ends_with('-'))) {
            name.push(c);
        }
    }
    let name = name.trim_end_matches('-');
    if name.contains(|c: char| c.is_ascii_alphabetic()) { name.to_owned() } else { "http".to_owned() }
}

/// Names the pod's port `number` unless it has a name. Whether the template changed.
fn name_port(template: &mut Value, number: i64, name: &str) -> bool {
    if !matches!(port_of(template, number), Port::Unnamed) {
        return false;
    }
    let Some(containers) = template["spec"]["containers"].as_array_mut() else { return false };
    let declared =
        containers.iter_mut().flat_map(|container| container["ports"].as_array_mut().into_iter().flatten()).find(|port| port["containerPort"] == number);
    if let Some(port) = declared {
        port["name"] = name.into();
        return true;
    }
    // Not declared: in a pod of one container there is no doubt whose it is.
    let Some(container) = containers.first_mut() else { return false };
    if !container["ports"].is_array() {
        container["ports"] = json!([]);
    }
    if let Some(ports) = container["ports"].as_array_mut() {
        ports.push(json!({ "name": name, "containerPort": number }));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::{flags::RunAsUser, patch::SidecarResources};

    fn inject(text: &str, settings: &SidecarSettings) -> Result<(String, Vec<Note>), BadManifest> {
        super::inject(&[File { name: "a.yaml", text }], settings)
    }

    fn settings() -> SidecarSettings {
        SidecarSettings {
            image: "proxy:1".into(),
            image_pull_policy: None,
            run_as_user: RunAsUser::DEFAULT,
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
    metadata: {labels: {app: web, flag: 'yes', 'n': 'y'}}
    spec:
      containers:
        - name: server
          image: web
          args: [\"8000\", 'off', 'y']
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: web, port: 80, targetPort: 8000}]
";

    fn read(text: &str) -> Vec<Value> {
        split(text).into_iter().map(|(_, text)| yaml::read(text).unwrap()).collect()
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
                Note { object: "Service web".into(), what: Done::Named { port: 8000, name: "web".into(), is_headless: false } },
                Note { object: "Deployment web".into(), what: Done::Injected(vec!["web (8000 behind 4180)".into()]) },
            ]
        );
    }

    #[test]
    fn octals_and_booleans_of_yaml_1_1_keep_their_meaning_in_what_is_written() {
        let volume = "volumes: [{name: v, secret: {secretName: s, defaultMode: 0644}}], automountServiceAccountToken: off, containers";
        let pod = |name: &str| {
            format!("{{kind: Pod, metadata: {{name: {name}}}, spec: {{{volume}: [{{name: s, image: s, ports: [{{name: http, containerPort: 8000}}]}}]}}}}")
        };
        let sibling = "{kind: ConfigMap, metadata: {name: x, labels: {a: '0644', b: 'yes', c: '1_0', d: '2001-01-01'}}, mode: 0644, is: yes, whole: 1.0}";
        let (written, _) = inject(&format!("kind: List\nitems:\n- {}\n- {sibling}\n", pod("a")), &settings()).unwrap();
        assert!(written.contains("defaultMode: 420\n") && written.contains("automountServiceAccountToken: false\n"), "{written}");
        assert!(written.contains("mode: 420\n") && written.contains("is: true\n") && written.contains("whole: 1\n"), "{written}");
        let labels = &read(&written)[0]["items"][1]["metadata"]["labels"];
        assert_eq!(*labels, json!({ "a": "0644", "b": "yes", "c": "1_0", "d": "2001-01-01" }), "texts stay texts: {written}");
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
        let (written, notes) = inject(&host, &settings()).unwrap();
        assert_eq!(written, host, "a number leads to the server, who has no sidecar");
        assert!(matches!(&notes[..], [Note { what: Done::Skipped(why), .. }] if why.contains("hostNetwork")), "{notes:?}");
    }

    /// Workloads by name, with the ports of each container, and Services of their label.
    fn manifests(workloads: &[(&str, &[&str])], services: &str) -> String {
        let workload = |(name, containers): &(&str, &[&str])| {
            let containers: Vec<_> = containers.iter().enumerate().map(|(at, ports)| format!("{{name: c{at}, image: x, ports: [{ports}]}}")).collect();
            let pod = format!("{{metadata: {{labels: {{app: x}}}}, spec: {{containers: [{}]}}}}", containers.join(", "));
            format!("{{kind: Deployment, metadata: {{name: {name}}}, spec: {{template: {pod}}}}}\n---\n")
        };
        let workloads: Vec<_> = workloads.iter().map(workload).collect();
        format!("{}{{kind: Service, metadata: {{name: x}}, spec: {{selector: {{app: x}}, ports: [{services}]}}}}\n", workloads.concat())
    }

    fn service_targets(text: &str) -> (Vec<Value>, Vec<Note>) {
        let (written, notes) = inject(text, &settings()).unwrap();
        let service = read(&written).into_iter().find(|object| object["kind"] == "Service").unwrap();
        (service["spec"]["ports"].as_array().unwrap().iter().map(|port| port["targetPort"].clone()).collect(), notes)
    }

    #[test]
    fn a_name_that_a_port_may_not_have_becomes_one_that_it_may() {
        for (wished, name) in
            [("web", "web"), ("inference-api-of-models", "inference-api-o"), ("a--b", "a-b"), ("8080", "http"), ("an-endpoint-for-x", "an-endpoint-for")]
        {
            assert_eq!(valid_name(wished), name);
            let (targets, _) = service_targets(&manifests(&[("a", &["{containerPort: 8000}"])], &format!("{{name: '{wished}', port: 80, targetPort: 8000}}")));
            assert_eq!(targets, [json!(name)]);
        }
    }

    #[test]
    fn a_service_over_two_workloads_moves_only_to_a_name_that_both_have() {
        let over = |first: &str, second: &str| service_targets(&manifests(&[("a", &[first]), ("b", &[second])], "{port: 80, targetPort: 8000}"));
        let (targets, notes) = over("{name: web, containerPort: 8000}", "{name: api, containerPort: 8000}");
        assert_eq!(targets, [json!(8000)]);
        assert!(matches!(&notes[0].what, Done::Unnamed { port: 8000, why } if why.contains("api") && why.contains("web")), "{notes:?}");
        assert_eq!(over("{name: web, containerPort: 8000}", "{containerPort: 8000}").0, [json!("web")]);
        assert_eq!(over("{name: web, containerPort: 8000}", "{name: web, containerPort: 9000}, {containerPort: 8000}").0, [json!(8000)]);
        // Who declines is led to by the same name, so it has to have it too.
        let text = manifests(&[("a", &["{containerPort: 8000}"]), ("b", &["{containerPort: 8000}"])], "{port: 80, targetPort: 8000}");
        let (written, _) = inject(&text.replacen("app: x", "app: x, steadfast.dev/inject: 'false'", 1), &settings()).unwrap();
        let declined = &read(&written)[0]["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(declined["ports"], json!([{ "containerPort": 8000, "name": "http" }]));
        let several = service_targets(&manifests(&[("a", &["{containerPort: 1}", "{containerPort: 2}"])], "{port: 80, targetPort: 8000}"));
        assert!(several.0 == [json!(8000)] && matches!(several.1[0].what, Done::Unnamed { .. }), "{several:?}");
    }

    #[test]
    fn a_service_that_comes_later_is_led_to_the_sidecar_that_is_there() {
        let text = manifests(&[("a", &["{containerPort: 8000}"])], "{port: 80, targetPort: 8000}");
        let (once, _) = inject(&text, &settings()).unwrap();
        let again = format!(
            "{once}---\n{{kind: Service, metadata: {{name: later}}, spec: {{selector: {{app: x}}, ports: [{{name: other, port: 90, targetPort: 8000}}]}}}}\n"
        );
        let (written, _) = inject(&again, &settings()).unwrap();
        let documents = read(&written);
        assert_eq!(documents[2]["spec"]["ports"][0]["targetPort"], "http");
        assert_eq!(documents[0], read(&once)[0]);
    }

    #[test]
    fn a_port_that_is_not_for_users_keeps_its_number_and_a_kind_that_is_not_known_is_told() {
        let (targets, notes) = service_targets(&manifests(&[("a", &["{containerPort: 8002}"])], "{name: metrics, port: 80, targetPort: 8002}"));
        assert!(targets == [json!(8002)] && !notes.iter().any(|note| matches!(note.what, Done::Named { .. })), "{notes:?}");
        let rollout = MANIFESTS.replace("kind: Deployment", "kind: Rollout");
        let (written, notes) = inject(&rollout, &settings()).unwrap();
        assert_eq!((written, notes), (rollout, vec![Note { object: "Rollout web".into(), what: Done::UnknownKind }]));
        let predictor = "{kind: InferenceService, apiVersion: serving.kserve.io/v1beta1, metadata: {name: a}, spec: {predictor: {model: {modelFormat: {name: onnx}, storageUri: 's3://a/b'}}}}\n";
        let told = |text: &str| inject(text, &settings()).unwrap().1;
        assert_eq!(told(predictor), [Note { object: "InferenceService a".into(), what: Done::UnknownKind }]);
        assert_eq!(told(&predictor.replace("kserve.io", "example")), []);
    }

    #[test]
    fn only_what_the_sidecar_will_take_over_is_renamed() {
        let port = "{port: 80, targetPort: 8000}";
        for (container, service) in [
            ("{name: metrics, containerPort: 8000}", port),
            ("{name: redis, containerPort: 8000}, {name: http, containerPort: 1}", port),
            ("{containerPort: 8000}, {containerPort: 4179}", port),
            ("{containerPort: 8000}", "{name: redis, port: 80, targetPort: 8000}"),
        ] {
            let text = manifests(&[("a", &[container])], service);
            let (targets, notes) = service_targets(&text);
            assert!(targets == [json!(8000)] && !notes.iter().any(|note| note.object == "Service x"), "{container}: {notes:?}");
        }
        // Redirected, numbers lead to the sidecar too.
        let text = manifests(&[("a", &["{containerPort: 8000}"])], port).replacen(
            "labels: {app: x}",
            "labels: {app: x}, annotations: {steadfast.dev/interception: redirect}",
            1,
        );
        let redirect = Some(crate::webhook::patch::RedirectSettings { image: "agent:1".into(), image_pull_policy: None });
        let (written, notes) = inject(&text, &SidecarSettings { redirect, ..settings() }).unwrap();
        assert_eq!(read(&written)[1], read(&text)[1]);
        assert!(matches!(&notes[..], [Note { what: Done::Injected(_), .. }]), "{notes:?}");
    }

    /// What the controller would say of the Service once all of it runs.
    fn told_by_the_controller(written: &str) -> Vec<past::Past> {
        let (services, workloads): (Vec<_>, Vec<_>) = read(written).into_iter().partition(|object| object["kind"] == "Service");
        let service: Service = from_value(services[0].clone()).unwrap();
        let behind: Vec<_> = workloads.iter().map(|workload| ports(&workload["spec"]["template"])).collect();
        past::past(&service, &behind.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_headless_service_is_told_what_the_controller_will_say() {
        for (service, is_past) in
            [("{port: 8000}", true), ("{port: 8000, targetPort: http}", true), ("{port: 80, targetPort: http}", false), ("{port: 80, targetPort: 8000}", false)]
        {
            for head in ["clusterIP: None, ", ""] {
                let text = manifests(&[("a", &["{name: http, containerPort: 8000}"])], service).replace("selector: {app", &format!("{head}selector: {{app"));
                let (written, notes) = inject(&text, &settings()).unwrap();
                let told: Vec<_> = notes.iter().filter_map(|note| if let Done::Past(said) = &note.what { Some(said.as_str()) } else { None }).collect();
                let past = told_by_the_controller(&written);
                assert_eq!(!told.is_empty(), !past.is_empty(), "{text}: {notes:?}");
                assert_eq!(!past.is_empty(), is_past && !head.is_empty(), "{text}: {past:?}");
                assert!(told.iter().all(|said| *said == past::note(&past, "") && said.contains("interception: redirect")), "{told:?}");
            }
        }
    }

    #[test]
    fn a_service_whose_workload_alone_says_its_namespace_is_told_so() {
        let text = manifests(&[("a", &["{containerPort: 8000}"])], "{port: 80, targetPort: 8000}");
        let there = text.replacen("metadata: {name: a}", "metadata: {name: a, namespace: default}", 1);
        let (written, notes) = inject(&there, &settings()).unwrap();
        assert_eq!(written, there);
        assert_eq!(notes[0], Note { object: "Service x".into(), what: Done::Elsewhere("Deployment default/a".into()) });
        let apart = there.replace("metadata: {name: x}", "metadata: {name: x, namespace: other}");
        assert!(!inject(&apart, &settings()).unwrap().1.iter().any(|note| matches!(note.what, Done::Elsewhere(_))), "two namespaces are two namespaces");
    }

    #[test]
    fn a_network_policy_that_knows_the_number_lets_users_in_by_the_name_too() {
        let policy = |head: &str, port: &str| {
            format!(
                "{{kind: NetworkPolicy, metadata: {{name: p{head}}}, spec: {{podSelector: {{matchLabels: {{app: x}}}}, ingress: [{{from: [], ports: [{port}]}}]}}}}\n"
            )
        };
        let workload = manifests(&[("a", &["{containerPort: 8000}"])], "{port: 80, targetPort: 8000}");
        let text = format!("{workload}---\n{}", policy("", "{port: 8000}"));
        let (written, notes) = inject(&text, &settings()).unwrap();
        assert_eq!(read(&written)[2]["spec"]["ingress"][0]["ports"], json!([{ "port": 8000 }, { "port": "http", "protocol": "TCP" }]));
        assert!(notes.contains(&Note { object: "NetworkPolicy p".into(), what: Done::LetIn { port: 8000, name: "http".into() } }), "{notes:?}");
        assert_eq!(inject(&written, &settings()).unwrap().0, written, "once is enough");
        for other in [policy(", namespace: other", "{port: 8000}"), policy("", "{port: http}"), policy("", "{port: 9000}")] {
            let (written, _) = inject(&format!("{workload}---\n{other}"), &settings()).unwrap();
            assert!(written.ends_with(&other), "{written}");
        }
        let declined = text.replace("labels: {app: x}", "labels: {app: x, steadfast.dev/inject: 'false'}");
        assert_eq!(inject(&declined, &settings()).unwrap().0, declined, "nothing moves, so nothing has to be let in");
    }

    #[test]
    fn a_client_whose_policy_knows_the_number_is_let_out_by_the_name_too() {
        let workload = manifests(&[("a", &["{name: http, containerPort: 8000}"])], "{port: 80, targetPort: http}");
        let policy = |head: &str, to: &str| {
            format!(
                "{{kind: NetworkPolicy, metadata: {{name: p{head}}}, spec: {{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{{to: [{to}], ports: [{{port: 8000}}]}}]}}}}\n"
            )
        };
        let text = format!("{workload}---\n{}", policy("", "{podSelector: {matchLabels: {app: x}}}"));
        let (written, notes) = inject(&text, &settings()).unwrap();
        assert_eq!(read(&written)[2]["spec"]["egress"][0]["ports"], json!([{ "port": 8000 }, { "port": "http", "protocol": "TCP" }]));
        assert!(notes.contains(&Note { object: "NetworkPolicy p".into(), what: Done::LetOut { port: 8000, name: "http".into() } }), "{notes:?}");
        assert_eq!(inject(&written, &settings()).unwrap().0, written, "once is enough");
        let there = workload.replacen("metadata: {name: a}", "metadata: {name: a, namespace: models}", 1);
        let namespace = "---\n{kind: Namespace, metadata: {name: models, labels: {team: a}}}\n";
        for (to, is_let) in [
            ("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: models}}}", true),
            ("{namespaceSelector: {matchLabels: {team: a}}}", true),
            ("{namespaceSelector: {matchLabels: {team: b}}}", false),
            ("{podSelector: {}}", false),
        ] {
            let (_, notes) = inject(&format!("{there}{namespace}---\n{}", policy(", namespace: clients", to)), &settings()).unwrap();
            assert_eq!(notes.iter().any(|note| matches!(note.what, Done::LetOut { .. })), is_let, "{to}: {notes:?}");
        }
    }

    #[test]
    fn a_label_that_means_nothing_is_told_of_at_pods_and_namespaces() {
        let pod = MANIFESTS.replacen("app: web", "app: web, steadfast.dev/inject: 'yes'", 9);
        assert_ne!(pod, MANIFESTS);
        let (_, notes) = inject(&pod, &settings()).unwrap();
        assert!(notes.iter().any(|note| matches!(&note.what, Done::Skipped(why) if why.contains("\"yes\""))), "{notes:?}");
        let namespace =
            |value: &str| inject(&format!("{{kind: Namespace, metadata: {{name: a, labels: {{steadfast.dev/inject: '{value}'}}}}}}\n"), &settings()).unwrap().1;
        assert_eq!(namespace("True"), [Note { object: "Namespace a".into(), what: Done::Mislabelled("True".into()) }]);
        assert_eq!(namespace("true"), []);
    }

    #[test]
    fn a_port_of_the_node_that_leads_to_a_port_without_a_name_is_told_of() {
        let told = |ports: &str| {
            let pod = format!("{{kind: Pod, metadata: {{name: a}}, spec: {{containers: [{{name: s, image: s, ports: [{ports}]}}]}}}}\n");
            let notes = inject(&pod, &settings()).unwrap().1;
            notes.into_iter().filter_map(|note| if let Done::OnNode(ports) = note.what { Some(ports) } else { None }).collect::<Vec<_>>()
        };
        assert_eq!(told("{name: http, containerPort: 8000}, {containerPort: 9000, hostPort: 90}"), [vec![9000]]);
        assert!(told("{name: http, containerPort: 8000, hostPort: 80}, {containerPort: 53, hostPort: 53, protocol: UDP}").is_empty(), "it moves with the name");
    }

    #[test]
    fn a_pod_without_named_ports_is_not_sent_in_a_circle() {
        let (_, notes) = inject("{kind: Job, metadata: {name: a}, spec: {template: {spec: {containers: [{name: s, image: s}]}}}}", &settings()).unwrap();
        assert!(matches!(&notes[..], [Note { what: Done::Skipped(why), .. }] if !why.contains("steadfast inject") && why.contains("name")), "{notes:?}");
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
    fn json_stays_json_and_its_objects_stay_side_by_side() {
        let pod = json!({ "kind": "Pod", "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "s", "image": "s", "ports": [{ "name": "http", "containerPort": 8000 }] }] } });
        let text = format!("{{\"kind\": \"ConfigMap\",  \"data\": {{}}}}\n{pod}{pod}");
        let (written, notes) = inject(&text, &settings()).unwrap();
        assert!(written.starts_with("{\"kind\": \"ConfigMap\",  \"data\": {}}\n{\n  \"kind\"") && !written.contains("---"), "{written}");
        let objects = json_objects(&written).expect("JSON");
        assert!(objects.len() == 3 && objects[2].2["spec"]["initContainers"][0]["name"] == "steadfast-proxy" && notes.len() == 2, "{written}");
        assert_eq!(inject(&written, &settings()).unwrap().0, written);
        let error = inject(&format!("{{}}\n{}", json!({ "kind": "Pod", "spec": 7 })), &settings()).unwrap_err();
        assert_eq!((error.document, error.line), (2, 2), "{error}");
        // In flow style YAML looks like it.
        assert!(inject("{kind: ConfigMap} # none\n", &settings()).is_ok());
    }

    #[test]
    fn directives_and_marks_with_comments_are_no_documents() {
        let text = format!("%YAML 1.2\n--- # the first\n{MANIFESTS}...\n---\n");
        let (written, notes) = inject(&text, &settings()).unwrap();
        assert!(written.starts_with("# Everything") && notes.len() == 2, "{written}");
        let error = inject("a: 1\n--- {kind: Pod}\n", &settings()).unwrap_err();
        assert!((error.document, error.line) == (1, 2) && !error.why.contains("from_str"), "{error}");
    }

    #[test]
    fn a_service_and_its_workload_may_stand_in_two_files_and_an_error_names_its_own() {
        let text = manifests(&[("a", &["{containerPort: 8000}"])], "{port: 80, targetPort: 8000}");
        let (workload, service) = text.split_once("---\n").unwrap();
        let files = |service| [File { name: "a.yaml", text: workload }, File { name: "b.yaml", text: service }];
        assert_eq!(super::inject(&files(service), &settings()).unwrap(), inject(&text, &settings()).unwrap());
        let error = super::inject(&files("a: 1\n---\nb: [\n"), &settings()).unwrap_err();
        assert!(error.to_string().starts_with("b.yaml: document 2, line "), "{error}");
    }

    #[test]
    fn a_document_that_cannot_be_read_is_named_by_its_line() {
        let error = inject("a: 1\n---\nkind: Pod\nspec: [\n", &settings()).unwrap_err();
        assert!(error.document == 2 && error.line >= 4, "{error}");
        let error = inject("kind: Pod\nmetadata: {name: x}\nspec:\n  containers: 7\n", &settings()).unwrap_err();
        assert!(error.line == 4 && error.why.starts_with("Pod x: spec.containers: ") && error.why.contains('7'), "{error}");
        let text = "kind: Service\n---\nkind: List\nitems:\n- kind: CronJob\n  metadata: {name: x}\n  spec: {jobTemplate: {spec: {template: {spec: {\n    containers: [{name: x, image: x,\n      args: [a,\n      y]}]}}}}}\n";
        let error = inject(text, &settings()).unwrap_err();
        let said = "CronJob x: spec.jobTemplate.spec.template.spec.containers[0].args[1]: invalid type: boolean `true`, expected a string: write it in quotes";
        assert!((error.document, error.line) == (2, 10) && error.why.starts_with(said), "{error}");
        let error = inject("kind: Pod\nspec: 1\nspec: 2\n", &settings()).unwrap_err();
        assert_eq!((error.line, error.why.as_str()), (3, "`spec` is given twice: keep one of them"));
    }
}
