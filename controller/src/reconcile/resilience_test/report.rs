//! Where reports of tests are kept: in the object store where there is one, else in a ConfigMap beside each; what is too large for one lies in several.

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
/// On the first ConfigMap of a report that lies in several: how many.
pub const PARTS_ANNOTATION: &str = "steadfast.dev/parts";
/// On each of them: the digest of the whole report, by which parts of another one are known.
pub const DIGEST_ANNOTATION: &str = "steadfast.dev/digest";
/// A ConfigMap takes 1 MiB, and the rest of it is small.
const PART_MAX: usize = 1_000_000;
/// Of one report.
pub const PARTS_MAX: usize = 16;

/// Name of the ConfigMap that holds a test's report.
pub fn report_name(test: &str) -> String {
    format!("steadfast-run-{test}")
}

/// Name of the ConfigMap with a part of the report whose first is called `first`; from 1. The number stands where no test can have it in its name.
pub fn part_name(first: &str, number: usize) -> String {
    if number == 1 { first.to_owned() } else { first.replacen("steadfast-", &format!("steadfast-part{number}-"), 1) }
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
        if packed.len() > PART_MAX * PARTS_MAX {
            return Err(format!(
                "the report has {} bytes, and {PARTS_MAX} ConfigMaps take {}: set reports.url in the chart's values",
                packed.len(),
                PART_MAX * PARTS_MAX
            ));
        }
        let api: Api<ConfigMap> = Api::namespaced(self.means.client.clone(), &namespace);
        // The first, which names the others, last.
        for map in maps(test, name, &packed, &digest).iter().rev() {
            api.patch(&map.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await.map_err(|error| error.to_string())?;
        }
        Ok(ReportAddress { address: format!("configMap/{name}"), digest })
    }
}

/// The ConfigMaps in which a report lies.
fn maps(test: &ResilienceTest, name: &str, packed: &[u8], digest: &str) -> Vec<ConfigMap> {
    let owner = OwnerReference {
        api_version: API_VERSION.to_owned(),
        kind: ResilienceTest::KIND.to_owned(),
        name: test.name_any(),
        uid: test.uid().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let parts: Vec<&[u8]> = packed.chunks(PART_MAX).collect();
    let annotations = [(PARTS_ANNOTATION.to_owned(), parts.len().to_string()), (DIGEST_ANNOTATION.to_owned(), digest.to_owned())];
    let map = |(index, part): (usize, &&[u8])| {
        let metadata = ObjectMeta {
            name: Some(part_name(name, index + 1)),
            owner_references: Some(vec![owner.clone()]),
            annotations: Some(annotations.clone().into()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, binary_data: Some([(REPORT_KEY.to_owned(), ByteString(part.to_vec()))].into()), ..ConfigMap::default() }
    };
    parts.iter().enumerate().map(map).collect()
}

/// What lies in this ConfigMap; and how many parts the report has, and which it is.
///
/// # Errors
/// When it holds no report.
pub fn part(map: ConfigMap) -> Result<(Vec<u8>, usize, Option<String>), String> {
    let annotation = |name: &str| map.annotations().get(name).cloned();
    let parts = annotation(PARTS_ANNOTATION).and_then(|parts| parts.parse().ok()).unwrap_or(1);
    if parts == 0 || parts > PARTS_MAX {
        return Err(format!("{PARTS_ANNOTATION}: {parts} is not from 1 to {PARTS_MAX}"));
    }
    let digest = annotation(DIGEST_ANNOTATION);
    let packed = map.binary_data.and_then(|mut data| data.remove(REPORT_KEY)).ok_or_else(|| format!("has no {REPORT_KEY}"))?;
    Ok((packed.0, parts, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_is_too_large_for_one_config_map_lies_in_several() {
        let test: ResilienceTest = serde_saphyr::from_str("metadata: {name: t, uid: u}\nspec: {}").unwrap();
        let packed: Vec<u8> = (0..PART_MAX * 2 + 7).map(|byte| byte as u8).collect();
        let maps = maps(&test, &report_name("t"), &packed, "sha256:1");
        let names: Vec<String> = maps.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["steadfast-run-t", "steadfast-part2-run-t", "steadfast-part3-run-t"]);
        assert!(maps.iter().all(|map| map.owner_references()[0].uid == "u"), "they go with their test");
        let mut whole = Vec::new();
        for map in maps {
            let (bytes, parts, digest) = part(map).unwrap();
            assert_eq!((parts, digest.as_deref()), (3, Some("sha256:1")));
            whole.extend(bytes);
        }
        assert!(whole == packed);
        assert!(part(ConfigMap::default()).unwrap_err().contains(REPORT_KEY));
    }
}
