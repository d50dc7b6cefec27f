//! The class that kubelet gives a pod by its resources (quality of service), as far as a sidecar could change it.

use std::{cmp::Ordering, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::api::resource::Quantity,
};

use super::patch::SidecarResources;

/// The resources that decide on the class.
const COUNTED: [&str; 2] = ["cpu", "memory"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Requests and limits of every container are equal; the sidecar's must be as well, or the pod would lose its class.
    Guaranteed,
    /// The pod as a whole has requests and limits, which its containers share: what the sidecar asked for would have to fit into what they have left.
    OfItsOwn,
    Other,
}

/// What is said of a sidecar's resources besides what every sidecar has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub cpu: Option<String>,
    pub cpu_limit: Option<String>,
    pub memory: Option<String>,
    pub memory_limit: Option<String>,
}

impl SidecarResources {
    /// Where only one of request and limit is said, the other gives way: no pod may request more than it is limited to.
    #[must_use]
    pub fn with(&self, said: &Overrides) -> Self {
        let (cpu, cpu_limit) = pair(&self.cpu, &self.cpu_limit, said.cpu.as_ref(), said.cpu_limit.as_ref());
        let (memory, memory_limit) = pair(&self.memory, &self.memory_limit, said.memory.as_ref(), said.memory_limit.as_ref());
        Self { cpu, cpu_limit, memory, memory_limit }
    }
}

fn pair(request: &str, limit: &str, said: Option<&String>, said_limit: Option<&String>) -> (String, String) {
    match (said, said_limit) {
        (Some(request), Some(limit)) => (request.clone(), limit.clone()),
        (Some(request), None) => (request.clone(), if least(request, limit) == limit { request.clone() } else { limit.to_owned() }),
        (None, Some(limit)) => (least(request, limit).to_owned(), limit.clone()),
        (None, None) => (request.to_owned(), limit.to_owned()),
    }
}

/// The smaller of two quantities.
pub(super) fn least<'a>(one: &'a str, other: &'a str) -> &'a str {
    if amount(one).zip(amount(other)).is_some_and(|(one, other)| other < one) { other } else { one }
}

/// The most CPU that a container of the pod is limited to.
pub(super) fn most_cpu(spec: &PodSpec) -> Option<&str> {
    let limits = spec.containers.iter().filter_map(|container| Some(container.resources.as_ref()?.limits.as_ref()?.get("cpu")?.0.as_str()));
    limits.filter_map(|limit| Some((amount(limit)?, limit))).max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, limit)| limit)
}

/// By the rules of kubelet, which count init containers too.
pub fn class(spec: &PodSpec) -> Class {
    let counted = |list: &Option<BTreeMap<String, Quantity>>| list.iter().flatten().any(|(name, _)| COUNTED.contains(&name.as_str()));
    if spec.resources.as_ref().is_some_and(|own| counted(&own.requests) || counted(&own.limits)) {
        return Class::OfItsOwn;
    }
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(is_guaranteed);
    if all { Class::Guaranteed } else { Class::Other }
}

fn is_guaranteed(container: &Container) -> bool {
    let Some(limits) = container.resources.as_ref().and_then(|resources| resources.limits.as_ref()) else { return false };
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    COUNTED.into_iter().all(|name| {
        // What is not requested is requested as limited.
        limits.get(name).is_some_and(|limit| requests.and_then(|requests| requests.get(name)).is_none_or(|request| is_same(request, limit)))
    })
}

fn is_same(one: &Quantity, other: &Quantity) -> bool {
    one == other || amount(&one.0).zip(amount(&other.0)).is_some_and(|(one, other)| one.total_cmp(&other) == Ordering::Equal)
}

/// What a quantity of Kubernetes comes to. Whole numbers of that size are exact, and so are the decimals that people write, each read in one way.
pub(super) fn amount(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    // Thousandths of thousandths are divided by, since a factor of 0.001 would not be exact.
    let (times, by) = match suffix {
        "" => (1.0, 1.0),
        "n" => (1.0, 1e9),
        "u" => (1.0, 1e6),
        "m" => (1.0, 1e3),
        "k" => (1e3, 1.0),
        "M" => (1e6, 1.0),
        "G" => (1e9, 1.0),
        "T" => (1e12, 1.0),
        "P" => (1e15, 1.0),
        "E" => (1e18, 1.0),
        "Ki" => (f64::from(1 << 10), 1.0),
        "Mi" => (f64::from(1 << 20), 1.0),
        "Gi" => (f64::from(1 << 30), 1.0),
        "Ti" => (f64::from(1 << 20) * f64::from(1 << 20), 1.0),
        "Pi" => (f64::from(1 << 30) * f64::from(1 << 20), 1.0),
        "Ei" => (f64::from(1 << 30) * f64::from(1 << 30), 1.0),
        exponent => (10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?), 1.0),
    };
    Some(number * times / by)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classed(containers: &[&str], inits: &[&str]) -> Class {
        let list = |all: &[&str]| all.iter().map(|resources| format!("{{name: x, resources: {resources}}}")).collect::<Vec<_>>().join(", ");
        class(&serde_saphyr::from_str(&format!("{{containers: [{}], initContainers: [{}]}}", list(containers), list(inits))).unwrap())
    }

    #[test]
    fn a_pod_is_guaranteed_when_every_container_is_init_containers_too() {
        let good = "{limits: {cpu: 1, memory: 1Gi}}";
        for resources in [
            good,
            "{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 1, memory: 1Gi}}",
            "{limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 1000m, memory: 1024Mi}}",
            "{limits: {cpu: 1500m, memory: 1e9}, requests: {cpu: '1.5', memory: 1G}}",
        ] {
            assert_eq!(classed(&[resources], &[]), Class::Guaranteed, "{resources}");
        }
        for resources in [
            "{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}",
            "{limits: {memory: 1Gi}}",
            "{limits: {cpu: 1, memory: 1Gi}, requests: {memory: 1G}}",
            "{}",
        ] {
            assert_eq!(classed(&[resources], &[]), Class::Other, "{resources}");
            assert_eq!(classed(&[good], &[resources]), Class::Other, "{resources} in an init container");
        }
        assert_eq!(classed(&[good], &[good]), Class::Guaranteed);
    }

    #[test]
    fn where_one_of_request_and_limit_is_said_the_other_gives_way() {
        let with = |memory: Option<&str>, limit: Option<&str>| {
            let said = Overrides { memory: memory.map(str::to_owned), memory_limit: limit.map(str::to_owned), ..Overrides::default() };
            let SidecarResources { memory, memory_limit, .. } = SidecarResources::default().with(&said);
            (memory, memory_limit)
        };
        let pair = |memory: &str, limit: &str| (memory.to_owned(), limit.to_owned());
        assert_eq!(with(None, None), pair("64Mi", "256Mi"));
        assert_eq!(with(Some("1Gi"), None), pair("1Gi", "1Gi"));
        assert_eq!(with(Some("32Mi"), None), pair("32Mi", "256Mi"));
        assert_eq!(with(None, Some("48Mi")), pair("48Mi", "48Mi"));
        assert_eq!(with(Some("1Gi"), Some("2Gi")), pair("1Gi", "2Gi"));
    }

    #[test]
    fn a_pod_with_resources_of_its_own_shares_them() {
        let pod = "{containers: [{name: x}], resources: {limits: {cpu: 1, memory: 1Gi}}}";
        assert_eq!(class(&serde_saphyr::from_str(pod).unwrap()), Class::OfItsOwn);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, value) in
            [("1", 1.0), ("100m", 0.1), ("0.1", 0.1), ("2Ki", 2048.0), ("1e3", 1000.0), ("1E3", 1000.0), ("1E", 1e18), ("1.5Gi", 1_610_612_736.0)]
        {
            assert_eq!(amount(text), Some(value), "{text}");
        }
        assert_eq!((amount(""), amount("1x"), amount("Gi")), (None, None, None));
    }
}
