//! How fast this cluster can be: its own timers, from its settings where they can be read, else from what its version has by default.

use k8s_openapi::api::core::v1::{Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::{util::intstr::IntOrString, version::Info};
use kube::{Api, Client, api::ListParams};
use steadfast_api::{
    Span,
    report::{PlatformTimers, ProbeTimers},
};

use super::facts::server;
use crate::webhook::decide::SIDECAR;

const FLAG: &str = "--node-monitor-grace-period";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Kubernetes' own, which no cluster can change, or few do and nobody tells: a kubelet renews its Lease four times in the 40 s for which it holds, and the controller
/// manager looks at nodes every 5 s (`--node-monitor-period`).
const NODE_HEARTBEAT: Span = Span::from_secs(10);
const NODE_MONITOR_PERIOD: Span = Span::from_secs(5);
const BACK_OFF: Span = Span::from_secs(10);
const BACK_OFF_MAX: Span = Span::from_secs(300);

/// `pod`: one of the target's; `port`: where its Service leads.
pub(super) async fn timers(client: &Client, pod: &Pod, port: &IntOrString) -> Option<PlatformTimers> {
    let spec = pod.spec.as_ref()?;
    let (node_monitor_grace_period, known_from) = grace_period(client).await;
    let sidecar = spec.init_containers.iter().flatten().find(|container| container.name == SIDECAR);
    Some(PlatformTimers {
        node_monitor_grace_period,
        known_from,
        node_heartbeat: NODE_HEARTBEAT,
        node_monitor_period: NODE_MONITOR_PERIOD,
        toleration_seconds: toleration(spec),
        back_off: BACK_OFF,
        back_off_max: BACK_OFF_MAX,
        readiness: server(pod, port).and_then(|server| server.readiness_probe.as_ref()).map(probe),
        sidecar_readiness: sidecar.and_then(|sidecar| sidecar.readiness_probe.as_ref()).map(probe),
    })
}

/// The controller manager tells its flags to nobody; where it runs as a pod, its command line does, to whoever may read that namespace.
async fn grace_period(client: &Client) -> (Span, String) {
    let managers = ListParams::default().labels("component=kube-controller-manager").limit(8);
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    let (pods, unread) = match pods.list(&managers).await {
        Ok(pods) => (pods.items, "its flag is not there"),
        Err(_) => (Vec::new(), "its pods may not be read"),
    };
    match pods.iter().find_map(flag) {
        Some(span) => (span, format!("{FLAG} of kube-controller-manager")),
        None => by_default(client.apiserver_version().await.ok().as_ref(), unread),
    }
}

/// As one word or as two.
fn flag(manager: &Pod) -> Option<Span> {
    let containers = manager.spec.iter().flat_map(|spec| &spec.containers);
    let words: Vec<&str> = containers.flat_map(|container| container.command.iter().chain(&container.args).flatten()).map(String::as_str).collect();
    words.iter().enumerate().find_map(|(index, word)| {
        let rest = word.strip_prefix(FLAG)?;
        let value = if rest.is_empty() { words.get(index + 1)? } else { rest.strip_prefix('=')? };
        value.parse().ok()
    })
}

fn by_default(version: Option<&Info>, unread: &str) -> (Span, String) {
    let minor = |version: &Info| version.minor.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok();
    let (minor, of) = match version.and_then(|version| Some((minor(version)?, &version.major))) {
        Some((minor, major)) => (minor, format!("Kubernetes {major}.{minor}")),
        None => (u32::MAX, "Kubernetes since 1.32".to_owned()),
    };
    let span = Span::from_secs(if minor >= 32 { 50 } else { 40 });
    (span, format!("the default of {of}: kube-controller-manager's own is not readable here ({unread})"))
}

/// Nothing: it tolerates a lost node for ever.
fn toleration(spec: &PodSpec) -> Option<Span> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let of_loss = tolerations.iter().find(|toleration| {
        let effect = toleration.effect.as_deref().is_none_or(|effect| effect == "NoExecute");
        effect && toleration.key.as_deref().is_none_or(|key| key == UNREACHABLE)
    });
    match of_loss {
        Some(toleration) => toleration.toleration_seconds.map(|seconds| Span::from_secs(seconds.max(0).unsigned_abs())),
        None => Some(Span::ZERO),
    }
}

fn probe(probe: &Probe) -> ProbeTimers {
    let seconds = |value: Option<i32>, default: u32| value.map_or(default, |value| value.max(0).unsigned_abs());
    ProbeTimers {
        initial_delay: Span::from_secs(seconds(probe.initial_delay_seconds, 0).into()),
        period: Span::from_secs(seconds(probe.period_seconds, 10).into()),
        failure_threshold: seconds(probe.failure_threshold, 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_period_is_that_of_the_flag_or_of_the_version() {
        let manager =
            |args: &str| serde_saphyr::from_str::<Pod>(&format!("spec: {{containers: [{{name: m, command: [kube-controller-manager{args}]}}]}}")).unwrap();
        assert_eq!((flag(&manager(", --node-monitor-grace-period=16s")), flag(&manager(""))), (Some(Span::from_secs(16)), None));
        assert_eq!(flag(&manager(", --node-monitor-grace-period, 17s, --v=2")), Some(Span::from_secs(17)));
        assert_eq!((flag(&manager(", --node-monitor-grace-period")), flag(&manager(", --node-monitor-grace-periods, 17s"))), (None, None));
        let version = |minor: &str| Info { major: "1".into(), minor: minor.into(), ..Info::default() };
        let (span, words) = by_default(Some(&version("31+")), "its pods may not be read");
        assert_eq!(span, Span::from_secs(40));
        assert_eq!(words, "the default of Kubernetes 1.31: kube-controller-manager's own is not readable here (its pods may not be read)");
        assert_eq!((by_default(Some(&version("34")), "").0, by_default(None, "").0), (Span::from_secs(50), Span::from_secs(50)));
    }

    /// A heartbeat may be ten seconds old when its node falls silent, and who watches looks every five.
    #[test]
    fn a_node_is_called_lost_within_a_range_and_its_pods_are_replaced_after_their_toleration() {
        let timers = PlatformTimers {
            node_monitor_grace_period: Span::from_secs(50),
            known_from: String::new(),
            node_heartbeat: NODE_HEARTBEAT,
            node_monitor_period: NODE_MONITOR_PERIOD,
            toleration_seconds: Some(Span::from_secs(300)),
            back_off: BACK_OFF,
            back_off_max: BACK_OFF_MAX,
            readiness: None,
            sidecar_readiness: None,
        };
        assert_eq!(timers.node_called_lost(), (Span::from_secs(40), Span::from_secs(55)));
        assert_eq!(timers.node_loss(), Some((Span::from_secs(340), Span::from_secs(355))));
        assert_eq!(PlatformTimers { toleration_seconds: None, ..timers }.node_loss(), None);
    }

    #[test]
    fn a_pod_says_how_long_it_waits_on_a_lost_node() {
        let of = |tolerations: &str| toleration(&serde_saphyr::from_str(&format!("{{containers: [], tolerations: {tolerations}}}")).unwrap());
        assert_eq!(of("[{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]"), Some(Span::from_secs(300)));
        assert_eq!(of("[{operator: Exists}]"), None, "as DaemonSets' pods");
        assert_eq!(of("[{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoSchedule}]"), Some(Span::ZERO));
    }
}
