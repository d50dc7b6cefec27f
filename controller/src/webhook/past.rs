//! Services that lead users past the sidecars: what the controller tells in the cluster, and `steadfast inject` in manifests.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::json;

use super::decide::{HEALTH_PORT, INTERCEPTION_ANNOTATION, LEFT_ANNOTATION, REDIRECT, ROUTES_ANNOTATION, is_apart};

/// A server's port, as an injected pod's annotation tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub name: String,
    /// Where the sidecar listens.
    pub sidecar: i32,
    /// Where the server does.
    pub server: i32,
}

/// What the sidecar of an injected pod stands in front of.
pub fn taken(annotations: &BTreeMap<String, String>) -> Vec<Taken> {
    let of = |route: &str| {
        let (name, numbers) = route.split_once('=')?;
        let (sidecar, server) = numbers.split_once(':')?;
        Some(Taken { name: name.to_owned(), sidecar: sidecar.parse().ok()?, server: server.parse().ok()? })
    };
    annotations.get(ROUTES_ANNOTATION).into_iter().flat_map(|routes| routes.split(',')).filter_map(of).collect()
}

/// Whether whoever dials a server's number in this pod is led to the sidecar.
pub fn is_redirected(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(INTERCEPTION_ANNOTATION).is_some_and(|word| word == REDIRECT)
}

/// Where the numbers of an injected pod lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPorts {
    /// To the sidecar.
    pub sidecar: Vec<i32>,
    /// Past the sidecar, to a server that it stands in front of; and the name that leads to the sidecar.
    pub past: Vec<(i32, String)>,
    /// Past it, as they were meant to; `None`: whoever injected the pod did not tell.
    pub left: Option<Vec<i32>>,
}

impl PodPorts {
    pub fn read(annotations: &BTreeMap<String, String>) -> Self {
        let is_redirected = is_redirected(annotations);
        let number = |port: &str| port.split_once(':')?.1.parse().ok();
        let mut ports = Self { left: annotations.get(LEFT_ANNOTATION).map(|left| left.split(',').filter_map(number).collect()), ..Self::default() };
        for Taken { name, sidecar, server } in taken(annotations) {
            ports.sidecar.push(sidecar);
            if is_redirected {
                ports.sidecar.push(server);
            } else {
                ports.past.push((server, name));
            }
        }
        ports
    }
}

/// A port of a Service by which users come past the sidecars, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Index in the Service's `ports`.
    pub index: usize,
    pub port: i32,
    pub how: How,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It targets the number of a server that has a sidecar in front of it; and the one name that leads to the sidecar.
    Number(i32, Option<String>),
    /// It targets a number that no sidecar stands in front of, and that nobody left out.
    NotTaken(i32),
    /// The Service has no address of its own: whoever finds the pods by DNS dials the server's number.
    Headless,
}

/// Whether a Service has no address of its own.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether a Service selects pods with these labels. One without a selector selects none.
pub fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|selector| !selector.is_empty());
    selector.is_some_and(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// The ports of a Service that lead past the sidecars of the injected pods behind it.
pub fn past(service: &Service, behind: &[&PodPorts]) -> Vec<Past> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let leads_past = |number: i32| behind.iter().any(|ports| ports.past.iter().any(|(server, _)| *server == number));
    let name = |number: i32| {
        let mut names: BTreeSet<&String> = behind.iter().flat_map(|ports| &ports.past).filter(|(server, _)| *server == number).map(|(_, name)| name).collect();
        names.pop_first().filter(|_| names.is_empty()).cloned()
    };
    let not_taken = |number: i32| {
        let known = |ports: &&PodPorts, left: &Vec<i32>| ports.sidecar.contains(&number) || number == HEALTH_PORT || left.contains(&number);
        behind.iter().any(|ports| ports.left.as_ref().is_some_and(|left| !known(ports, left)))
    };
    let tcp = spec.ports.iter().flatten().enumerate().filter(|(_, port)| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    tcp.filter_map(|(index, port)| {
        let target = match &port.target_port {
            None => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(_)) => None,
        };
        let how = match target {
            // Whatever it targets: who dials a pod's address dials the server.
            _ if is_headless(service) && leads_past(port.port) => How::Headless,
            Some(target) if leads_past(target) => How::Number(target, name(target)),
            // By its name it is not for users, and nobody misses the sidecar there.
            Some(target) if not_taken(target) && !port.name.as_deref().is_some_and(is_apart) => How::NotTaken(target),
            Some(_) | None => return None,
        };
        Some(Past { index, port: port.port, how })
    })
    .collect()
}

/// What is said about a Service, each kind of way with its remedy. `by`: who else could do it.
pub fn note(past: &[Past], by: &str) -> String {
    const REDIRECT: &str = "annotate the pods steadfast.dev/interception: redirect";
    let named = format!("give the server's port one name in the pod templates and make it the targetPort{by}");
    let list = |of: &dyn Fn(&Past) -> Option<String>| past.iter().filter_map(of).collect::<Vec<_>>().join(", ");
    let leads = |past: &Past, target: i32| format!("{} leads to number {target}", past.port);
    let numbers = list(&|past| if let How::Number(target, Some(_)) = past.how { Some(leads(past, target)) } else { None });
    let names = list(&|past| if let How::Number(_, Some(name)) = &past.how { Some(format!("targetPort: {name} in port {}", past.port)) } else { None });
    let unnamed = list(&|past| if let How::Number(target, None) = past.how { Some(leads(past, target)) } else { None });
    let not_taken = list(&|past| if let How::NotTaken(target) = past.how { Some(leads(past, target)) } else { None });
    let headless = list(&|past| (past.how == How::Headless).then(|| past.port.to_string()));
    let mut notes = Vec::new();
    if !numbers.is_empty() {
        notes.push(format!("port {numbers}, past the sidecars of the pods behind it: set {names}, or {REDIRECT}"));
    }
    if !unnamed.is_empty() {
        notes.push(format!("port {unnamed}, past the sidecars of the pods behind it: {named}, or {REDIRECT}"));
    }
    if !not_taken.is_empty() {
        notes.push(format!("port {not_taken}, which no sidecar of the pods behind it stands in front of: {named}, and start the pods anew"));
    }
    if !headless.is_empty() {
        notes.push(format!(
            "port {headless} is the server's own number, which clients of a headless Service dial at the pods' addresses, past the sidecars: {REDIRECT}"
        ));
    }
    notes.join("; ")
}

/// The command that makes names the targets of ports which lead to numbers, where each has one.
pub fn command(service: &str, namespace: &str, past: &[Past]) -> Option<String> {
    let target = |past: &Past| match &past.how {
        How::Number(_, Some(name)) => Some(json!({ "op": "add", "path": format!("/spec/ports/{}/targetPort", past.index), "value": name })),
        _ => None,
    };
    let operations: Vec<_> = past.iter().filter_map(target).collect();
    (!operations.is_empty()).then(|| format!("kubectl patch service {service} -n {namespace} --type=json -p='{}'", json!(operations)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn where_numbers_lead_is_read_from_the_annotations() {
        let read = |all: &[(&str, &str)]| PodPorts::read(&annotations(all));
        let routes = (ROUTES_ANNOTATION, "http=4180:8000,8001=4181:8001");
        let past = vec![(8000, "http".to_owned()), (8001, "8001".to_owned())];
        assert_eq!(read(&[routes, (LEFT_ANNOTATION, "")]), PodPorts { sidecar: vec![4180, 4181], past, left: Some(Vec::new()) });
        let redirected = read(&[routes, (INTERCEPTION_ANNOTATION, REDIRECT), (LEFT_ANNOTATION, "metrics:8002,redis:6379")]);
        assert_eq!(redirected, PodPorts { sidecar: vec![4180, 8000, 4181, 8001], past: Vec::new(), left: Some(vec![8002, 6379]) });
        assert_eq!(read(&[]), PodPorts::default());
    }

    fn service(spec: &str) -> Service {
        serde_saphyr::from_str(&format!("spec: {spec}")).unwrap()
    }

    #[test]
    fn every_port_of_a_service_that_leads_past_the_sidecar_is_found() {
        let pod = PodPorts { sidecar: vec![4180, 4181], past: vec![(8000, "http".into()), (8001, "grpc".into())], left: Some(vec![8002]) };
        let found = |spec: &str| -> Vec<(i32, How)> { past(&service(spec), &[&pod]).into_iter().map(|past| (past.port, past.how)).collect() };
        let number = |port: i32, target: i32, name: &str| (port, How::Number(target, Some(name.to_owned())));
        assert_eq!(found("{ports: [{port: 80, targetPort: 8000}]}"), [number(80, 8000, "http")]);
        assert_eq!(
            found("{ports: [{port: 8000}, {port: 81, targetPort: grpc}, {port: 82, targetPort: 8001}]}"),
            [number(8000, 8000, "http"), number(82, 8001, "grpc")]
        );
        assert_eq!(found("{ports: [{port: 80, targetPort: 9000}]}"), [(80, How::NotTaken(9000))]);
        let headless = "{clusterIP: None, ports: [{port: 8000, targetPort: http}, {port: 80, targetPort: http}, {port: 8001}, {port: 81, targetPort: 8001}]}";
        assert_eq!(found(headless), [(8000, How::Headless), (8001, How::Headless), number(81, 8001, "grpc")]);
        for right in [
            "{ports: [{port: 80, targetPort: http}]}",
            "{ports: [{port: 8000, targetPort: http}]}",
            "{ports: [{port: 80, targetPort: 8002}, {port: 81, targetPort: 4180}, {port: 82, targetPort: 4179}]}",
            "{ports: [{port: 80, targetPort: 8000, protocol: UDP}, {port: 90, name: http-metrics, targetPort: 9000}]}",
        ] {
            assert_eq!(found(right), [], "{right}");
        }
        // Two names for one number: none of them is right for all.
        let other = PodPorts { past: vec![(8000, "web".into())], ..PodPorts::default() };
        assert_eq!(past(&service("{ports: [{port: 8000}]}"), &[&pod, &other])[0].how, How::Number(8000, None));
    }

    #[test]
    fn a_service_selects_by_all_labels_and_none_without_a_selector() {
        let labels = annotations(&[("app", "x"), ("tier", "y")]);
        assert!(selects(&service("{selector: {app: x}}"), &labels));
        assert!(!selects(&service("{selector: {app: x, tier: z}}"), &labels) && !selects(&service("{selector: {}}"), &labels));
    }

    #[test]
    fn a_service_is_told_of_all_its_ports_and_what_would_be_right_to_the_name() {
        let hows =
            [How::Number(8000, Some("http".into())), How::Number(8001, Some("grpc".into())), How::Number(8003, None), How::NotTaken(9000), How::Headless];
        let past: Vec<_> = hows.into_iter().enumerate().map(|(index, how)| Past { index, port: 80 + index as i32, how }).collect();
        let said = note(&past, " (`steadfast inject` does both in manifests)");
        for word in [
            "port 80 leads to number 8000, 81 leads to number 8001, past",
            "set targetPort: http in port 80, targetPort: grpc in port 81",
            "82 leads to number 8003",
            "83 leads to number 9000",
            "port 84 is the server's own",
            "interception: redirect",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(said.len() <= 1000, "an Event takes no more: {}", said.len());
        let patch =
            concat!(r#"[{"op":"add","path":"/spec/ports/0/targetPort","value":"http"},"#, r#"{"op":"add","path":"/spec/ports/1/targetPort","value":"grpc"}]"#);
        assert_eq!(command("web", "models", &past).unwrap(), format!("kubectl patch service web -n models --type=json -p='{patch}'"));
        assert_eq!(command("web", "models", &past[2..]), None);
    }
}
