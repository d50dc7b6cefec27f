//! While `steadfast undo` is at work, and for some minutes after one that goes before the chart's removal, no run begins: it would be left behind by a controller that has
//! no rights any more.
//!
//! A ConfigMap of the controller's namespace says so, until a moment that it names itself, so that one that was left there opens by itself; it belongs to the controller's
//! Deployment, so that it goes with it and the next installation is open at once. Whoever closes does so first and looks for runs then; whoever begins a run says so first
//! and looks here then: one of them sees the other.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams},
};

use super::{FailureError, error::patiently};

const NAME: &str = "steadfast-closing";
const DEPLOYMENT: &str = "steadfast-controller";
const UNTIL: &str = "until";
/// Longer than an uninstallation takes.
const CLOSED_FOR: SignedDuration = SignedDuration::from_mins(10);

/// See the module. Wants `get`, `create`, `update` and `delete` on ConfigMaps of the controller's namespace, and `get` on its Deployment.
#[derive(Clone, Debug)]
pub struct Closing {
    maps: Api<ConfigMap>,
    deployments: Api<Deployment>,
}

impl Closing {
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { maps: Api::namespaced(client.clone(), namespace), deployments: Api::namespaced(client, namespace) }
    }

    /// From now on no run begins.
    ///
    /// # Errors
    /// When that cannot be written.
    pub async fn close(&self) -> Result<(), FailureError> {
        let refuse = |error: &kube::Error| FailureError::api(format!("ConfigMap {NAME}"), error);
        let until = Timestamp::now().checked_add(CLOSED_FOR).unwrap_or(Timestamp::MAX).to_string();
        // Without its Deployment it opens by its time alone.
        let owner = self.deployments.get_metadata_opt(DEPLOYMENT).await.ok().flatten().and_then(|deployment| deployment.uid());
        let owner = owner.map(|uid| OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: DEPLOYMENT.to_owned(),
            uid,
            ..OwnerReference::default()
        });
        let metadata = ObjectMeta { name: Some(NAME.to_owned()), owner_references: owner.map(|owner| vec![owner]), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, data: Some([(UNTIL.to_owned(), until)].into()), ..ConfigMap::default() };
        let parameters = DeleteParams::default();
        match patiently(|| self.maps.delete(NAME, &parameters)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(refuse(&error)),
        }
        let parameters = PostParams::default();
        match patiently(|| self.maps.create(&parameters, &map)).await {
            Ok(_) => Ok(()),
            // Somebody closed just now.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(refuse(&error)),
        }
    }

    /// Runs may begin again.
    ///
    /// # Errors
    /// When that cannot be written; they may after some minutes all the same.
    pub async fn open(&self) -> Result<(), FailureError> {
        let parameters = DeleteParams::default();
        match patiently(|| self.maps.delete(NAME, &parameters)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(FailureError::api(format!("ConfigMap {NAME}"), &error)),
        }
    }

    /// Why no run may begin now, if none may.
    ///
    /// # Errors
    /// When it cannot be read: then none may either.
    pub async fn closed(&self) -> Result<Option<String>, FailureError> {
        let map = patiently(|| self.maps.get_opt(NAME)).await.map_err(|error| FailureError::api(format!("ConfigMap {NAME}"), &error))?;
        Ok(map.and_then(|map| closed_until(&map, Timestamp::now())))
    }
}

fn closed_until(map: &ConfigMap, now: Timestamp) -> Option<String> {
    let until: Timestamp = map.data.as_ref()?.get(UNTIL)?.parse().ok()?;
    // One that claims more than anybody writes has a clock that nobody else has.
    (now < until && until.duration_since(now) <= CLOSED_FOR.saturating_mul(2)).then(|| {
        format!(
            "`steadfast undo` takes everything back, and no run begins before {until}; if Steadfast stays: kubectl delete configmap {NAME} in its namespace"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_closed_opens_by_itself() {
        let closed = |until: &str, now: &str| {
            let map = ConfigMap { data: Some([(UNTIL.to_owned(), until.to_owned())].into()), ..ConfigMap::default() };
            closed_until(&map, now.parse().unwrap()).is_some()
        };
        assert!(closed("2026-01-01T00:10:00Z", "2026-01-01T00:00:00Z") && closed("2026-01-01T00:10:00Z", "2026-01-01T00:09:59Z"));
        assert!(
            !closed("2026-01-01T00:10:00Z", "2026-01-01T00:10:00Z")
                && !closed("2027-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
                && !closed("soon", "2026-01-01T00:00:00Z")
        );
        assert_eq!(closed_until(&ConfigMap::default(), Timestamp::now()), None);
    }
}
