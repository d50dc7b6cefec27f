//! Where reports of tests are kept: in the object store where there is one, else in a ConfigMap beside each.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use k8s_openapi::{
    ByteString,
    api::core::v1::ConfigMap,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use steadfast_api::{report::Report, resource::ReportAddress};

use super::Tests;
use crate::{
    reconcile::resource::{API_VERSION, MANAGER, ResilienceTest},
    report::json,
};

/// Key of the report in its ConfigMap.
pub const REPORT_KEY: &str = "report.json.gz";
/// A ConfigMap takes 1 MiB, and the rest of it is small.
const REPORT_MAX: usize = 1_000_000;

/// Name of the ConfigMap that holds a test's report.
pub fn report_name(test: &str) -> String {
    format!("steadfast-run-{test}")
}

impl Tests {
    /// Stores the report; that it could not is told.
    pub(super) async fn keep(&self, test: &ResilienceTest, name: &str, report: &Report) -> Option<ReportAddress> {
        match self.store(test, name, report).await {
            Ok(address) => Some(address),
            Err(why) => {
                self.events.warn(test.object_ref(&()), "ReportNotKept", "Report", &why);
                None
            }
        }
    }

    /// The report, in the object store where there is one; else, and when the store does not take it, in a ConfigMap of this name that goes with its test.
    async fn store(&self, test: &ResilienceTest, name: &str, report: &Report) -> Result<ReportAddress, String> {
        let text = json::render(report).map_err(|error| error.to_string())?;
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        let packed = packed.write_all(text.as_bytes()).and_then(|()| packed.finish()).map_err(|error| error.to_string())?;
        let digest = steadfast_golden_sets::set::sha256(text.as_bytes()).to_string();
        let namespace = test.namespace().unwrap_or_default();
        if let Some(reports) = &self.reports {
            let file = format!("{namespace}/{name}-{}/{REPORT_KEY}", test.uid().unwrap_or_default());
            match reports.put(&file, packed.clone().into()).await {
                Ok(address) => return Ok(ReportAddress { address, digest }),
                Err(error) => self.events.warn(test.object_ref(&()), "ReportNotStored", "Report", &format!("{error}; a ConfigMap is tried")),
            }
        }
        if packed.len() > REPORT_MAX {
            return Err(format!("the report has {} bytes, and a ConfigMap takes {REPORT_MAX}", packed.len()));
        }
        let owner = OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: ResilienceTest::KIND.to_owned(),
            name: test.name_any(),
            uid: test.uid().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta { name: Some(name.to_owned()), owner_references: Some(vec![owner]), ..ObjectMeta::default() };
        let map = ConfigMap { metadata, binary_data: Some([(REPORT_KEY.to_owned(), ByteString(packed))].into()), ..ConfigMap::default() };
        let api: Api<ConfigMap> = Api::namespaced(self.means.client.clone(), &namespace);
        api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await.map_err(|error| error.to_string())?;
        Ok(ReportAddress { address: format!("configMap/{name}"), digest })
    }
}
