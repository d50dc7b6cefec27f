//! The custom resources of `steadfast.dev/v1alpha1` as objects of a cluster; their words are `steadfast_api`'s.
//!
//! An object that this version cannot read (made by a newer one, or before a rule was there) is still an object: it is listed, watched and told what is wrong
//! with it, and it stands in nobody else's way. So a spec is [`Parsed`].

use std::{borrow::Cow, fmt};

use kube::{Resource, api::ObjectMeta, core::NamespaceResourceScope};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;
use steadfast_api::{
    node::{NodeFaultSpec, NodeFaultStatus},
    policy::FaultPolicySpec,
    resource::{FaultPolicyStatus, GoldenSetSpec, GoldenSetStatus, ResilienceScheduleSpec, ResilienceScheduleStatus, ResilienceTestStatus},
    test::ResilienceTestSpec,
};

pub const GROUP: &str = "steadfast.dev";
pub const VERSION: &str = "v1alpha1";
pub const API_VERSION: &str = "steadfast.dev/v1alpha1";
/// Field manager of every apply, and reporter of every Event.
pub const MANAGER: &str = "steadfast";

/// What somebody wrote: read, or as it stands with what is wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed<S> {
    Good(Box<S>),
    Bad { value: Value, why: String },
}

impl<S> Parsed<S> {
    /// # Errors
    /// What is wrong, and where.
    pub fn get(&self) -> Result<&S, &str> {
        match self {
            Self::Good(spec) => Ok(spec),
            Self::Bad { why, .. } => Err(why),
        }
    }
}

impl<S> From<S> for Parsed<S> {
    fn from(spec: S) -> Self {
        Self::Good(Box::new(spec))
    }
}

impl<S: Serialize> Serialize for Parsed<S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        match self {
            Self::Good(spec) => spec.serialize(serializer),
            Self::Bad { value, .. } => value.serialize(serializer),
        }
    }
}

impl<'de, S: DeserializeOwned> Deserialize<'de> for Parsed<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match S::deserialize(&value) {
            Ok(spec) => Self::Good(Box::new(spec)),
            Err(error) => Self::Bad { value, why: error.to_string() },
        })
    }
}

/// A status that cannot be read is written anew.
fn lenient<'de, D: Deserializer<'de>, S: DeserializeOwned>(deserializer: D) -> Result<Option<S>, D::Error> {
    Ok(S::deserialize(Value::deserialize(deserializer)?).ok())
}

fn default_type() -> String {
    API_VERSION.to_owned()
}

macro_rules! resource {
    ($name:ident, $spec:ty, $status:ty, $plural:literal) => {
        #[doc = concat!("A `", stringify!($name), "` of a cluster.")]
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            #[serde(default = "default_type")]
            pub api_version: String,
            #[serde(default)]
            pub kind: String,
            pub metadata: ObjectMeta,
            pub spec: Parsed<$spec>,
            #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
            pub status: Option<$status>,
        }

        impl $name {
            pub const KIND: &'static str = stringify!($name);
            pub const PLURAL: &'static str = $plural;

            /// An object of this name, not yet on any cluster.
            pub fn new(name: &str, spec: $spec) -> Self {
                let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
                Self { api_version: API_VERSION.to_owned(), kind: Self::KIND.to_owned(), metadata, spec: spec.into(), status: None }
            }
        }

        impl Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                Self::KIND.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                GROUP.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                VERSION.into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                Self::PLURAL.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let part = |part: &Option<String>| part.clone().unwrap_or_default();
                write!(f, "{} {}/{}", Self::KIND, part(&self.metadata.namespace), part(&self.metadata.name))
            }
        }
    };
}

resource!(ResilienceTest, ResilienceTestSpec, ResilienceTestStatus, "resiliencetests");
resource!(ResilienceSchedule, ResilienceScheduleSpec, ResilienceScheduleStatus, "resilienceschedules");
resource!(FaultPolicy, FaultPolicySpec, FaultPolicyStatus, "faultpolicies");
resource!(GoldenSet, GoldenSetSpec, GoldenSetStatus, "goldensets");
resource!(NodeFault, NodeFaultSpec, NodeFaultStatus, "nodefaults");

impl ResilienceTest {
    /// It is a template, and not run itself.
    pub fn is_suspended(&self) -> bool {
        self.spec.get().is_ok_and(|spec| spec.suspend)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_that_cannot_be_read_says_why_and_is_written_as_it_was() {
        let object = json!({
            "apiVersion": API_VERSION, "kind": "FaultPolicy", "metadata": { "name": "p", "namespace": "n" },
            "spec": { "expiresAfter": "soon" }, "status": { "podsArmed": "many" },
        });
        let policy: FaultPolicy = serde_json::from_value(object.clone()).unwrap();
        assert!(policy.spec.get().unwrap_err().contains("such as 500ms"), "{:?}", policy.spec);
        assert_eq!(policy.status, None);
        assert_eq!(serde_json::to_value(&policy).unwrap()["spec"], object["spec"]);
        assert_eq!(policy.to_string(), "FaultPolicy n/p");
    }
}
