//! How fast this cluster can be: its own timers, from its settings where they can be read, else from what its version has by default.

use k8s_openapi::api::core::v1::{Pod, PodSpec, Probe};
use kube::{Api, Client, api::ListParams};
use steadfast_api::{
    Span,
    report::{PlatformTimers, ProbeTimers},
};

const FLAG: &str = "--node-monitor-grace-period";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Kubernetes' own, which no cluster can change.
const BACK_OFF: Span = Span::from_secs(10);
const BACK_OFF_MAX: Span = Span::from_secs(300);

/// `pod`: one of the target's.
pub(super) async fn timers(client: &Client, pod: &Pod) -> Option<PlatformTimers> {
    let (node_monitor_grace_period, known_from) = grace_period(client).await?;
    let spec = pod.spec.as_ref()?;
    Some(PlatformTimers {
        node_monitor_grace_period,
        known_from,
        toleration_seconds: toleration(spec),
        back_off: BACK_OFF,
        back_off_max: BACK_OFF_MAX,
        readiness: spec.containers.first().and_then(|server| server.readiness_probe.as_ref()).map(probe),
    })
}

/// The controller manager tells its flags to nobody; where it runs as a pod, its command line does.
async fn grace_period(client: &Client) -> Option<(Span, String)> {
    let managers = ListParams::default().labels("component=kube-controller-manager").limit(8);
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    for pod in pods.list(&managers).await.ok()?.items {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let mut words = containers.flat_map(|container| container.command.iter().chain(&container.args).flatten());
        if let Some(span) = words.find_map(|word| word.strip_prefix(FLAG)?.strip_prefix('=')?.parse().ok()) {
            return Some((span, format!("{FLAG} of kube-controller-manager")));
        }
    }
    let version = client.apiserver_version().await.ok()?;
    let minor: u32 = version.minor.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    let span = Span::from_secs(if minor >= 32 { 50 } else { 40 });
    Some((span, format!("the default of Kubernetes {}.{minor}, since the controller manager's flags cannot be read", version.major)))
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
    fn a_pod_says_how_long_it_waits_on_a_lost_node() {
        let of = |tolerations: &str| toleration(&serde_saphyr::from_str(&format!("{{containers: [], tolerations: {tolerations}}}")).unwrap());
        assert_eq!(of("[{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}]"), Some(Span::from_secs(300)));
        assert_eq!(of("[{operator: Exists}]"), None, "as DaemonSets' pods");
        assert_eq!(of("[{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoSchedule}]"), Some(Span::ZERO));
    }
}
