//! Do the alert rules of `deploy/alerts` fire when they should, on metrics that there are?
//!
//! `promtool` (Debian package `prometheus`) is looked for in PATH, or named by `PROMTOOL`; without it only the metrics' names are checked, unless
//! `STEADFAST_REQUIRE_PROMTOOL=1`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

fn alerts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts")
}

/// Runs it, unless there is none; then says so.
fn promtool(args: &[&str]) {
    let program = std::env::var("PROMTOOL").unwrap_or_else(|_| "promtool".to_owned());
    match Command::new(&program).args(args).current_dir(alerts()).output() {
        Ok(ran) => assert!(ran.status.success(), "{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr)),
        Err(error) => {
            assert!(std::env::var("STEADFAST_REQUIRE_PROMTOOL").as_deref() != Ok("1"), "STEADFAST_REQUIRE_PROMTOOL=1, and {program}: {error}");
            println!("not run: the alert rules by promtool, because {program}: {error}");
        }
    }
}

#[test]
fn the_rules_are_rules() {
    promtool(&["check", "rules", "steadfast.yaml"]);
}

#[test]
fn each_rule_fires_when_it_should() {
    promtool(&["test", "rules", "steadfast.test.yaml"]);
}

#[test]
fn every_metric_in_a_rule_is_one_that_sidecar_or_controller_tells_and_every_rule_is_tested() {
    let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (rules, tests) = (read(alerts().join("steadfast.yaml")), read(alerts().join("steadfast.test.yaml")));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told: String = ["proxy/src/admin.rs", "proxy/src/measure/mod.rs", "controller/src/metrics.rs"].map(|file| read(root.join(file))).concat();
    let expressions = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let words = expressions.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let metrics: BTreeSet<&str> = words.filter(|word| word.starts_with("steadfast_")).collect();
    assert!(metrics.len() >= 8, "{metrics:?}");
    for metric in metrics {
        assert!(told.contains(&format!("\"{metric}\"")), "nobody tells {metric}");
    }
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(alert) || alert == "SteadfastEventsDropped", "{alert} is in no test");
    }
}
