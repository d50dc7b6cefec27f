//! `report.json` and the published JSON schemas.

use schemars::schema_for;
use steadfast_api::{
    policy::NamedPolicy,
    report::{Report, SCHEMA},
    test::ResilienceTest,
};

/// Why a file is not a report that this version can read.
#[derive(Debug, thiserror::Error)]
pub enum BadReport {
    #[error("not a report: {0}")]
    Json(#[from] serde_json::Error),
    #[error("schema is {found:?}: this version reads {SCHEMA:?}")]
    Schema { found: String },
}

/// The report as indented JSON that ends with a line break.
pub fn render(report: &Report) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(text)
}

/// Reads what [`render`] wrote.
pub fn read(text: &str) -> Result<Report, BadReport> {
    let report: Report = serde_json::from_str(text)?;
    if report.schema == SCHEMA { Ok(report) } else { Err(BadReport::Schema { found: report.schema }) }
}

/// JSON schema of `report.json`, as published in `docs/schema/report.v1alpha1.json`.
pub fn report_schema() -> serde_json::Value {
    schema_for!(Report).to_value()
}

/// JSON schema of an experiment file, as published in `docs/schema/resilience-test.v1alpha1.json`.
pub fn test_schema() -> serde_json::Value {
    schema_for!(ResilienceTest).to_value()
}

/// JSON schema of a policy that a sidecar takes by hand, as published in `docs/schema/policy.v1alpha1.json`.
pub fn policy_schema() -> serde_json::Value {
    schema_for!(NamedPolicy).to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_schemas_are_current() {
        for (file, schema) in
            [("report.v1alpha1.json", report_schema()), ("resilience-test.v1alpha1.json", test_schema()), ("policy.v1alpha1.json", policy_schema())]
        {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema").join(file);
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let published: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            assert!(published == schema, "docs/schema/{file} is not what the types say: write it anew with `just schemas`");
        }
    }

    #[test]
    fn a_report_of_another_schema_is_refused_by_name() {
        let mut value = serde_json::to_value(crate::report::junit::tests::small()).unwrap();
        assert_eq!(read(&value.to_string()).unwrap(), crate::report::junit::tests::small());
        value["schema"] = "steadfast.dev/report/v9".into();
        assert!(read(&value.to_string()).unwrap_err().to_string().contains("report/v9"));
    }
}
