//! Where the controller looks: in every namespace, or in those that it was told, where it then needs rights in those alone.

use std::sync::Arc;

use kube::{Api, Client, Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

/// Every namespace, or some.
#[derive(Clone, Debug, Default)]
pub struct Scope(Arc<[String]>);

impl Scope {
    /// None: every namespace.
    pub fn new(namespaces: &[String]) -> Self {
        let mut namespaces = namespaces.to_vec();
        namespaces.sort();
        namespaces.dedup();
        Self(namespaces.into())
    }

    pub fn contains(&self, namespace: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|known| known == namespace)
    }

    /// What to ask for objects of one kind.
    pub fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        if self.0.is_empty() {
            return vec![Api::all(client.clone())];
        }
        self.0.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
    }

    /// Every object of one kind.
    pub async fn list<K>(&self, client: &Client) -> Result<Vec<K>, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let mut objects = Vec::new();
        for api in self.apis(client) {
            objects.extend(api.list(&ListParams::default()).await?.items);
        }
        Ok(objects)
    }
}
