//! wrk and h2load: many requests at once, and none of them fails.

use super::{
    http2::{htdocs, nghttpd},
    origin::Origin,
    peers::{Pod, output, program},
    table::Table,
};

#[test]
fn under_load_no_request_fails() {
    let mut table = Table::of("wrk and h2load, many requests at once");
    if program("wrk").is_none() || program("h2load").is_none() {
        return;
    }
    let pod = Pod::around(Origin::start().address);
    table.same(&pod, "wrk, 16 connections for a second: errors", |way| {
        let (succeeded, said) = output(std::process::Command::new("wrk").args(["-t1", "-c16", "-d1s"]).arg(format!("http://{way}/hello")));
        assert!(succeeded && !said.contains("requests in 0."), "{said}");
        let errors: Vec<&str> = said.lines().map(str::trim).filter(|line| line.starts_with("Non-2xx") || line.starts_with("Socket errors")).collect();
        format!("errors: {errors:?}")
    });
    table.same(&pod, "h2load in HTTP/1.1, 2,000 requests by 8 connections", |way| h2load(&["--h1", "-n2000", "-c8"], &format!("http://{way}/hello")));
    pod.engines_were_used();
    let folder = htdocs();
    let Some(pod) = nghttpd(folder.path(), &[]) else { return };
    table.same(&pod, "h2load in HTTP/2, 5,000 requests by 4 connections with 25 streams each", |way| {
        h2load(&["-n5000", "-c4", "-m25"], &format!("http://{way}/small"))
    });
    table.same(&pod, "h2load in HTTP/2, 100 × 1.6 MB by one connection with 10 streams", |way| {
        h2load(&["-n100", "-c1", "-m10"], &format!("http://{way}/large"))
    });
    pod.engines_were_used();
    table.must_be_on_the_page();
}

fn h2load(args: &[&str], url: &str) -> String {
    let (_, said) = output(std::process::Command::new("h2load").args(args).arg(url));
    let lines = said.lines().filter(|line| line.starts_with("requests:") || line.starts_with("status codes:"));
    let seen: Vec<&str> = lines.collect();
    assert_eq!(seen.len(), 2, "{said}");
    seen.join(" ")
}
