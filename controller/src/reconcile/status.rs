//! Statuses as the API server takes them. One text that is too long, and the whole status would be refused: nobody would ever hear how a run ended.

use serde::Serialize;
use serde_json::Value;

use super::schema::{ITEMS_MAX, TEXT_MAX};
use crate::words::cut;

/// Most characters of a condition's message, as Kubernetes' own conditions have it.
pub const MESSAGE_MAX: usize = 32_768;

/// A status with every text and list cut to the bounds of its schema; what is cut says so.
pub fn fit(status: &impl Serialize) -> Value {
    // Statuses are plain data: they can always be written as JSON.
    let mut status = serde_json::to_value(status).unwrap_or_default();
    bound(&mut status, TEXT_MAX as usize);
    status
}

fn bound(value: &mut Value, most: usize) {
    match value {
        Value::String(text) if text.len() > most => *text = cut(text, most),
        Value::Array(items) => {
            items.truncate(ITEMS_MAX as usize);
            for item in items {
                bound(item, most);
            }
        }
        Value::Object(fields) => {
            let is_condition = fields.contains_key("lastTransitionTime");
            for (name, field) in fields {
                bound(field, if is_condition && name == "message" { MESSAGE_MAX } else { most });
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use steadfast_api::resource::{Condition, GoldenSetStatus, LIVE_PODS_MAX, LivePod, LiveProgress, ResilienceTestStatus};

    use super::*;
    use crate::reconcile::crd;

    /// What of `value` the published schema would refuse.
    fn refused(schema: &Value, value: &Value, path: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let over = |bound: &str, length: usize| schema[bound].as_u64().is_some_and(|most| length as u64 > most);
        match value {
            Value::String(text) if over("maxLength", text.chars().count()) => wrong.push(path.to_owned()),
            Value::Array(items) => {
                if over("maxItems", items.len()) {
                    wrong.push(path.to_owned());
                }
                wrong.extend(items.iter().enumerate().flat_map(|(index, item)| refused(&schema["items"], item, &format!("{path}[{index}]"))));
            }
            Value::Object(fields) => {
                wrong.extend(fields.iter().flat_map(|(name, field)| refused(&schema["properties"][name], field, &format!("{path}.{name}"))));
            }
            _ => {}
        }
        wrong
    }

    fn status_schema(plural: &str) -> Value {
        let (_, crd) = crd::all().into_iter().find(|(name, _)| *name == plural).unwrap();
        crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"].clone()
    }

    #[test]
    fn whatever_a_status_says_its_published_schema_takes() {
        let long = "no sidecar of ünder-standing-7b9c listens; ".repeat(1_000);
        let condition = Condition {
            kind: "Verdict".into(),
            status: "False".into(),
            reason: "Fail".into(),
            message: long.clone(),
            last_transition_time: "2026-01-01T00:00:00Z".into(),
            observed_generation: Some(1),
        };
        let pod = LivePod { name: "p".into(), node: "n".into(), state: steadfast_api::report::PodState::Serving, golden: None, p99_ms: None };
        let live = LiveProgress { on: long.clone(), name: long.clone(), pods: vec![pod; LIVE_PODS_MAX], ..LiveProgress::default() };
        let status = ResilienceTestStatus {
            conditions: vec![condition.clone()],
            reason: Some(long.clone()),
            progress: Some(long.clone()),
            last_outage: Some(long.clone()),
            live: Some(live),
            ..ResilienceTestStatus::default()
        };
        let schema = status_schema("resiliencetests");
        assert!(refused(&schema, &serde_json::to_value(&status).unwrap(), "status").len() > 4, "as it stands it would be refused");
        let fitted = fit(&status);
        assert_eq!(refused(&schema, &fitted, "status"), [""; 0]);
        let said = fitted["reason"].as_str().unwrap();
        assert!(said.starts_with("no sidecar of ünder") && said.ends_with(" characters more"), "{said}");
        assert!(fitted["conditions"][0]["message"].as_str().unwrap().chars().count() > 30_000, "conditions may say more");

        let golden = GoldenSetStatus { conditions: vec![condition], failing: vec![long; 100], ..GoldenSetStatus::default() };
        assert_eq!(refused(&status_schema("goldensets"), &fit(&golden), "status"), [""; 0]);
    }
}
