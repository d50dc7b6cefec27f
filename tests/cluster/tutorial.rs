//! docs/tutorial.md, run: its `sh` blocks in their order, in one shell, on this cluster. What differs here stands in [`HERE`], and nowhere else.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use tempfile::TempDir;

use crate::{
    harness::{Cluster, IMAGE, Installation, PROXY_IMAGE, STEADFAST, cluster_alone, root},
    install::nothing_installed,
};

/// Words of the page, and what they are on this cluster: its images come from no registry and were not loaded by kind, and other tests may have left definitions.
const HERE: [(&str, &str); 4] = [
    (
        "helm install steadfast deploy/chart ",
        "helm install steadfast deploy/chart --take-ownership --set image.repository=steadfast.test/steadfast,proxy.image.repository=steadfast.test/proxy \
         --set-string image.tag=1,proxy.image.tag=1 --set image.pullPolicy=Never,proxy.image.pullPolicy=Never ",
    ),
    (
        "kubectl apply -n models -f examples/tutorial/digits.yaml",
        "sed -e s,steadfast:0.1.0,steadfast.test/steadfast:1, -e s,IfNotPresent,Never, examples/tutorial/digits.yaml | kubectl apply -n models -f -",
    ),
    ("--report-dir first-report", "--report-dir \"$FOLDER/first-report\""),
    ("first-report/report.json", "\"$FOLDER/first-report/report.json\""),
];
/// Programs of blocks that are not run here.
const ELSEWHERE: [&str; 3] = ["kind", "docker", "cargo"];

/// The page's blocks, each with the word behind its fence.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(kind), None) => open = Some((kind.to_owned(), String::new())),
            (None, Some((kind, text))) => open = Some((kind, text + line + "\n")),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// The page as one script for this cluster. Every step says what it does, and the first that fails ends it.
fn script() -> String {
    let page = fs::read_to_string(root().join("docs/tutorial.md")).expect("the page");
    let mut used = [false; HERE.len()];
    let mut script = "set -euo pipefail\nset -x\n".to_owned();
    for (kind, text) in blocks(&page) {
        match kind.as_str() {
            "console" => {
                for line in text.lines() {
                    let program = line.split(' ').next().unwrap_or_default();
                    assert!(ELSEWHERE.contains(&program), "{line}: this could be run here, so it belongs into a `sh` block");
                }
            }
            "sh" => {
                let mut here = text;
                for ((words, instead), used) in HERE.iter().zip(&mut used) {
                    *used |= here.contains(words);
                    here = here.replace(words, instead);
                }
                script += &here;
            }
            other => panic!("a block of kind {other:?} is neither run nor known to be of elsewhere"),
        }
    }
    assert_eq!(used, [true; HERE.len()], "the page does not say any more what is replaced here");
    assert!(IMAGE == "steadfast.test/steadfast:1" && PROXY_IMAGE == "steadfast.test/proxy:1");
    script
}

/// Takes away what the page would have, were it to end early.
struct CleanUp<'a>(&'a Cluster);

impl Drop for CleanUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for args in [
                &["-n", "models", "get", "pods,goldensets,faultpolicies,resiliencetests", "-o", "wide"][..],
                &["-n", "models", "get", "events"],
                &["-n", "steadfast-system", "logs", "-l", "app.kubernetes.io/name=steadfast", "--tail=40"],
            ] {
                eprintln!("{}", self.0.kubectl(args).unwrap_or_else(|why| why));
            }
        }
        let _ = self
            .0
            .command("helm")
            .args(["uninstall", "steadfast", "--namespace", "steadfast-system", "--ignore-not-found", "--wait", "--timeout", "60s"])
            .output();
        for namespace in ["models", "steadfast-system"] {
            let _ = self.0.kubectl(&["delete", "namespace", namespace, "--ignore-not-found", "--wait=false"]);
        }
    }
}

#[test]
fn the_tutorial_leads_from_an_empty_cluster_to_a_verdict() {
    let Some(cluster) = cluster_alone(Installation::Own) else { return };
    nothing_installed(&cluster);
    let _clean_up = CleanUp(&cluster);
    let folder = TempDir::new().expect("a folder");
    let programs = Path::new(STEADFAST).parent().expect("a folder").display();
    let script = format!("export PATH={programs}:$PATH FOLDER={}\n{}", folder.path().display(), script());
    let mut child = cluster.command("bash").arg("-c").arg(format!("exec 2>&1\n{script}")).stdout(Stdio::piped()).spawn().expect("bash");
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("UTF-8");
        println!("{line}");
        said.push(line);
    }
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status} after: {}", said.iter().rev().find(|line| line.starts_with("+ ")).map_or("", String::as_str));
    let has = |words: &str| said.iter().any(|line| line.contains(words));
    assert!(has("http=4180:8000"), "pods say what their sidecars stand in front of");
    assert!(has("\"outcome\"") && folder.path().join("first-report/report.html").is_file());
    assert!(has("It can be installed"));
    for gone in ["namespace/models", "namespace/steadfast-system", "mutatingwebhookconfiguration/steadfast"] {
        assert!(cluster.get(gone).is_none(), "{gone} is still there");
    }
}
