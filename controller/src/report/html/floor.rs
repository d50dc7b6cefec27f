//! The floor of every recovery: the platform's own timers, what was seen of each in this run, and what would change it.

use steadfast_api::{
    Span,
    mark::{Mark, Outage},
    report::{PlatformTimers, ProbeTimers, Report},
};

use super::markup::{esc, span, table};

/// Seen is far above its floor when it is so many times as long, and a second longer.
const FAR: f64 = 1.5;
const FAR_MS: f64 = 1000.0;

/// One timer.
struct Timer {
    what: &'static str,
    field: &'static str,
    /// As it is set here, in words, and the longest that it makes anybody wait, in milliseconds.
    here: String,
    most_ms: Option<f64>,
    seen: Vec<f64>,
    kubernetes: &'static str,
    /// What is to be done where it lasted much longer.
    above: &'static str,
    /// What makes it shorter, where it can be.
    lower: Option<&'static str>,
}

impl Timer {
    /// Lower median, and the longest.
    fn median_and_max(&self) -> Option<(f64, f64)> {
        let mut seen = self.seen.clone();
        seen.sort_by(f64::total_cmp);
        Some((*seen.get(seen.len().checked_sub(1)? / 2)?, *seen.last()?))
    }

    fn seen(&self) -> String {
        match (self.median_and_max(), self.seen.len()) {
            (None, _) => "–".to_owned(),
            (Some((once, _)), 1) => format!("{}<span class=\"under\">once</span>", span(once)),
            (Some((median, max)), count) => format!("{}, {}<span class=\"under\">median, longest of {count}</span>", span(median), span(max)),
        }
    }

    /// Of what took place here, and of nothing else.
    fn advice(&self) -> Option<String> {
        let (median, _) = self.median_and_max()?;
        let most = self.most_ms?;
        if median > FAR * most && median > most + FAR_MS {
            return Some(format!("Seen is far above the floor of {}: {}.", span(most), self.above));
        }
        self.lower.map(|lower| format!("The floor itself can be lowered: {lower}."))
    }

    fn row(self) -> Vec<String> {
        let advice = self.advice().map(|advice| format!("<span class=\"under\">{}</span>", esc(&advice))).unwrap_or_default();
        vec![
            format!(r#"{}<span class="under"><code>{}</code></span>{advice}"#, self.what, self.field),
            format!("<strong>{}</strong>", self.here),
            self.seen(),
            self.kubernetes.to_owned(),
        ]
    }
}

/// A table, and in words what a lost node costs at least; nothing where the timers are not known.
pub(super) fn section(report: &Report) -> String {
    let Some(known) = &report.run.timers else {
        return String::new();
    };
    let node = known.node_loss().map_or_else(
        || "pods of a lost node are replaced by nobody".to_owned(),
        |floor| {
            format!(
                "a lost node is called so {} after it fell silent, and its pods are replaced after {}; with Kubernetes’ defaults after 5m 40s to 5m 55s",
                range(known.node_called_lost()),
                range(floor)
            )
        },
    );
    let rows = timers(report, known).into_iter().map(Timer::row);
    format!(
        r#"<h3>The floor: the platform’s own timers</h3><p class="note">No recovery is faster than these: {node}. The grace period is known from: {}.</p>{}"#,
        esc(&known.known_from),
        table("Timers of the platform", "timers", &["Timer", "Setting here", "Seen", "Kubernetes’ default"], rows)
    )
}

fn timers(report: &Report, known: &PlatformTimers) -> Vec<Timer> {
    let never = || "never".to_owned();
    let ms = |span: Span| span.get().as_secs_f64() * 1000.0;
    let planned = |outage: &Outage| outage.fault.and_then(|fault| report.faults.get(fault as usize)).is_some_and(|fault| fault.action == "nodeFailure");
    let of_node = |outage: &&Outage| outage.node_lost || planned(outage);
    let seen = |which: &dyn Fn(&&Outage) -> bool, from: Mark, to: Mark| -> Vec<f64> {
        report.outages.iter().filter(which).filter_map(|outage| outage.marks.between(from, to)).filter(|ms| *ms >= 0.0).collect()
    };
    let restarted = |outage: &&Outage| !of_node(outage) && outage.replacement.as_deref() == Some(outage.pod.as_str());
    // Only an endpoint's end that was the probe's doing; a deletion withdraws it at once.
    let unready = |outage: &&Outage| !of_node(outage) && outage.cause.contains("readiness probe");
    let threshold = |probe: &ProbeTimers| format!("{} × {}", probe.period, probe.failure_threshold);
    let threshold_ms = |probe: &ProbeTimers| ms(probe.period) * f64::from(probe.failure_threshold);
    let (probe, sidecar) = (known.readiness.as_ref(), known.sidecar_readiness.as_ref());
    // The sidecar's probe makes the pod unready as the server's own does: whichever is first.
    let by_sidecar = sidecar.map(|probe| format!("{} by the sidecar’s probe", threshold(probe)));
    let by_server = probe.map(|probe| if sidecar.is_some() { format!("{} by the server’s", threshold(probe)) } else { threshold(probe) });
    let either: Vec<String> = by_sidecar.into_iter().chain(by_server).collect();
    let first_ms = probe.into_iter().chain(sidecar).map(threshold_ms).min_by(f64::total_cmp);
    let lost = known.node_called_lost();
    vec![
        Timer {
            what: "A lost node is noticed after",
            field: "nodeMonitorGracePeriod, since its last heartbeat",
            here: range(lost),
            most_ms: Some(ms(lost.1)),
            seen: seen(&of_node, Mark::Fault, Mark::Detected),
            kubernetes: "40s to 55s (30s to 45s before 1.32)",
            above: "look at the load of kube-controller-manager and the API server",
            lower: Some("--node-monitor-grace-period of kube-controller-manager; or do not wait for it, and eject silent pods in front of the Service"),
        },
        Timer {
            what: "Its pods are replaced after a further",
            field: "tolerationSeconds",
            here: known.toleration_seconds.map_or_else(never, |span| span.to_string()),
            most_ms: known.toleration_seconds.map(ms),
            seen: seen(&of_node, Mark::Detected, Mark::ReplacementCreated),
            kubernetes: "5m",
            above: "look at what the workload's controller waited for: a StatefulSet replaces no pod of a lost node until somebody deletes it for good",
            lower: known
                .toleration_seconds
                .filter(|toleration| ms(*toleration) > 5_000.0)
                .map(|_| "a toleration of node.kubernetes.io/unreachable with smaller tolerationSeconds in the pod template"),
        },
        Timer {
            what: "A process that died is started again after",
            field: "backOff, doubling up to backOffMax",
            here: format!("{} to {}", known.back_off, known.back_off_max),
            most_ms: Some(ms(known.back_off_max)),
            seen: seen(&restarted, Mark::Fault, Mark::ContainerStarted),
            kubernetes: "10s to 5m",
            above: "look at what kubelet had to do first, such as pulling an image",
            lower: None,
        },
        Timer {
            what: "Readiness is asked every",
            field: "readinessProbe.periodSeconds",
            here: probe.map_or_else(never, |probe| probe.period.to_string()),
            most_ms: probe.map(|probe| ms(probe.period)),
            seen: seen(&|_| true, Mark::ModelLoaded, Mark::Ready),
            kubernetes: "10s",
            above: "look at initialDelaySeconds and successThreshold of the probe, and at how long kubelet takes to report",
            lower: probe.filter(|probe| ms(probe.period) > 1_000.0).map(|_| "a smaller periodSeconds of the readiness probe"),
        },
        Timer {
            what: "A pod is unready after",
            field: "periodSeconds × failureThreshold",
            here: if either.is_empty() { never() } else { either.join(", ") },
            most_ms: first_ms,
            seen: seen(&unready, Mark::Fault, Mark::EndpointRemoved),
            kubernetes: "10s × 3",
            above: "look at timeoutSeconds of the probe, and at whether the server still answered it",
            lower: first_ms.filter(|ms| *ms > 3_000.0).map(|_| "a smaller periodSeconds or failureThreshold of the readiness probe"),
        },
    ]
}

/// At least and at most: a heartbeat may have been sent a moment ago or be due, and so may the look at it.
fn range((least, most): (Span, Span)) -> String {
    if least == most { least.to_string() } else { format!("{least} to {most}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(seen: &[f64], most_ms: f64, lower: Option<&'static str>) -> Timer {
        Timer { what: "w", field: "f", here: "h".into(), most_ms: Some(most_ms), seen: seen.to_vec(), kubernetes: "k", above: "look", lower }
    }

    #[test]
    fn what_was_seen_stands_beside_the_setting_with_what_would_change_it() {
        let far = timer(&[90_000.0, 20_000.0, 95_000.0], 55_000.0, Some("less"));
        assert!(far.seen().starts_with(&format!("{}, {}", span(90_000.0), span(95_000.0))), "{}", far.seen());
        assert_eq!(far.advice().as_deref(), Some(format!("Seen is far above the floor of {}: look.", span(55_000.0)).as_str()));
        assert_eq!(timer(&[48_000.0], 55_000.0, Some("less")).advice().as_deref(), Some("The floor itself can be lowered: less."));
        assert_eq!(timer(&[48_000.0], 55_000.0, None).advice(), None);
        let none = timer(&[], 55_000.0, Some("less"));
        assert_eq!((none.seen().as_str(), none.advice()), ("–", None), "what did not take place is nobody's advice");
        assert_eq!(timer(&[900.0], 100.0, None).advice(), None, "less than a second is not worth it");
    }
}
