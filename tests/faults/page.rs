//! `docs/faults.md`, run as it stands: under every heading the policy is armed, then every request is asked, and what the page says must come.
//!
//! Of `curl` the page uses `-i` and `-H`. Lines that begin with `curl:` stand for a failure; `# N ms or more` for the time that it takes; every other line must be in the
//! answer, in this order.

use std::time::{Duration, Instant};

use crate::harness::{Server, Sidecar, client, get, try_ask};

const PAGE: &str = include_str!("../../docs/faults.md");

/// The blocks of a section: language and text.
fn blocks(section: &str) -> Vec<(&str, &str)> {
    section.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').expect("a language, then lines")).collect()
}

fn sections() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    PAGE.split("\n## ").map(|section| (section.lines().next().unwrap_or_default(), blocks(section))).collect()
}

/// An answer as `curl -i` shows it.
async fn curl(sidecar: &Sidecar, command: &str) -> Result<String, String> {
    let mut words = Vec::new();
    for (i, part) in command.split('\'').enumerate() {
        if i % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(ToOwned::to_owned));
        }
    }
    let (mut headers, mut url) = (Vec::new(), None);
    let mut words = words.into_iter();
    assert_eq!(words.next().as_deref(), Some("curl"));
    while let Some(word) = words.next() {
        match word.as_str() {
            "-i" => {}
            "-H" => headers.push(words.next().expect("a header")),
            other => url = Some(other.replace("127.0.0.1:4180", &sidecar.data.to_string())),
        }
    }
    let headers: Vec<(&str, &str)> = headers.iter().map(|header| header.split_once(": ").expect("name: value")).collect();
    let reply = try_ask(&client(), get(&url.expect("an address"), &headers)).await?;
    let status = http::StatusCode::from_u16(reply.status).unwrap();
    let mut text = format!("HTTP/1.1 {} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    // The page names what was injected last.
    let of = |name: &&http::HeaderName| (name.as_str() == "steadfast-injected", name.to_string());
    let mut names: Vec<_> = reply.headers.keys().collect();
    names.sort_by_key(of);
    for name in names {
        text.extend([name.as_str(), ": ", reply.header(name.as_str()), "\n"]);
    }
    Ok(text + "\n" + &reply.text())
}

#[tokio::test]
async fn every_example_of_the_page_does_what_it_says() {
    let server = Server::start().await;
    let sidecar = Sidecar::start(server.address, &[]);
    let sections = sections();
    let policy = sections[0].1.iter().find(|(language, _)| *language == "yaml").expect("the policy").1;
    let mut asked = 0;
    for (heading, blocks) in &sections[1..] {
        for (language, text) in blocks {
            if *language == "yaml" {
                let (field, _) = text.split_once(':').expect("a field");
                let armed = if field == "rules" { policy.replace("rules: []", text) } else { policy.replace("rules: []", &format!("rules: []\n  {text}")) };
                sidecar.arm(&armed).await;
                continue;
            }
            assert_eq!(*language, "console", "{heading}");
            for example in text.trim().trim_start_matches("$ ").split("\n$ ") {
                let mut lines = example.lines();
                let command = lines.next().expect("a command");
                let begun = Instant::now();
                let answer = curl(&sidecar, command).await;
                let took = begun.elapsed();
                asked += 1;
                let mut rest = answer.as_deref().unwrap_or_default();
                for line in lines {
                    if let Some(ms) = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" ms or more")) {
                        assert!(took >= Duration::from_millis(ms.parse().unwrap()), "{heading}: {command} took {took:?}");
                    } else if line.starts_with("curl:") {
                        assert!(answer.is_err(), "{heading}: {command} gives {answer:?}");
                    } else {
                        let Some((_, after)) = rest.split_once(line) else { panic!("{heading}: {command} does not say {line:?}: {answer:?}") };
                        rest = after;
                    }
                }
            }
        }
    }
    assert!(asked >= 25, "{asked} examples");
}

#[test]
fn every_kind_of_fault_has_its_heading_and_an_example() {
    let sections = sections();
    for kind in steadfast_api::FaultKind::ALL {
        let found = sections.iter().find(|(heading, _)| *heading == kind.name());
        let (_, blocks) = found.unwrap_or_else(|| panic!("docs/faults.md has no heading {kind}"));
        assert_eq!(blocks.iter().map(|(language, _)| *language).collect::<Vec<_>>(), ["yaml", "console"], "{kind}");
    }
}
