//! Whose a field is, after it was put back.
//!
//! Whoever writes a field owns it (`metadata.managedFields`). An owner that stayed would stand in the way of those whose it was: the next `kubectl apply --server-side`
//! would find a conflict with a test that is long over. So, after the undo, this manager's entries are taken away.

use std::{fmt::Debug, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::reconcile::resource::MANAGER;

/// Kubelets and controllers write the same objects.
const TRIES: u32 = 10;

/// Takes this manager's entries away. What cannot be done is logged: the object itself is as it was.
pub(super) async fn let_go<K>(api: &Api<K>, name: &str)
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    for _ in 0..TRIES {
        let object = match api.get_metadata_opt(name).await {
            Ok(Some(object)) => object,
            Ok(None) => return,
            Err(error) => return tracing::info!(name, %error, "who owns its fields cannot be read"),
        };
        let Some(others) = others(object.managed_fields()) else { return };
        let patch = json!({ "metadata": { "resourceVersion": object.resource_version(), "managedFields": others } });
        match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 409 => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return tracing::info!(name, %error, "its fields cannot be let go"),
        }
    }
    tracing::info!(name, "its fields cannot be let go: others write it all the time");
}

/// Entries of everybody else; nothing: there are none of ours.
fn others(entries: &[ManagedFieldsEntry]) -> Option<Vec<Value>> {
    let ours = |entry: &ManagedFieldsEntry| entry.manager.as_deref() == Some(MANAGER) && entry.operation.as_deref() == Some("Update");
    if !entries.iter().any(ours) {
        return None;
    }
    let others: Vec<Value> = entries.iter().filter(|entry| !ours(entry)).filter_map(|entry| serde_json::to_value(entry).ok()).collect();
    // An empty list would mean that nothing is said of them.
    Some(if others.is_empty() { vec![json!({})] } else { others })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_manager_updated_is_let_go() {
        let entry = |manager: &str, operation: &str| ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some(operation.to_owned()),
            ..ManagedFieldsEntry::default()
        };
        assert_eq!(others(&[entry("kubelet", "Update"), entry(MANAGER, "Apply")]), None);
        let left = others(&[entry("kubectl", "Apply"), entry(MANAGER, "Update"), entry("kubelet", "Update")]).unwrap();
        assert_eq!(left.iter().map(|entry| entry["manager"].as_str().unwrap()).collect::<Vec<_>>(), ["kubectl", "kubelet"]);
        assert_eq!(others(&[entry(MANAGER, "Update")]), Some(vec![json!({})]));
    }
}
