//! HTTP/2 without TLS: nghttp2's tools and curl, before nghttp2's server, which speaks nothing else.

use std::{net::SocketAddr, path::Path};

use super::{
    curl::curl,
    origin::Origin,
    peers::{Pod, Process, free_port, output, program},
    table::Table,
};

/// nghttpd, serving `folder`.
pub(super) fn nghttpd(folder: &Path, flags: &[&str]) -> Option<Pod> {
    let mut command = program("nghttpd")?;
    let port = free_port();
    command.args(["--no-tls", "--address", "127.0.0.1", "--htdocs"]).arg(folder).args(flags).arg(port.to_string());
    Some(Pod::at(port, Process::start(&mut command)))
}

/// A folder to serve.
pub(super) fn htdocs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small"), "hello").unwrap();
    std::fs::write(folder.path().join("large"), "0123456789abcdef".repeat(100_000)).unwrap();
    folder
}

fn nghttp(address: SocketAddr, path: &str, args: &[&str]) -> String {
    let url = format!("http://{address}{path}");
    let (succeeded, said) = output(std::process::Command::new("nghttp").args(["--timeout=30"]).args(args).arg(url));
    // What differs from run to run: times, and the order of what is sent at once.
    format!("{succeeded} {} bytes {}", said.len(), if said.len() < 100 { said.trim() } else { "" })
}

/// Statuses, sizes and paths, out of nghttp's statistics.
fn statistics(said: &str) -> String {
    let mut rows: Vec<String> =
        said.lines().filter(|line| line.contains(" /")).map(|line| line.split_whitespace().rev().take(3).collect::<Vec<_>>().join(" ")).collect();
    rows.sort();
    rows.join(", ")
}

#[test]
fn http2_clients_see_no_difference() {
    let folder = htdocs();
    if program("nghttp").is_none() || program("curl").is_none() {
        return;
    }
    let Some(pod) = nghttpd(folder.path(), &["--trailer", "x-end: to end", "--echo-upload"]) else { return };
    let mut table = Table::of("nghttp and curl in HTTP/2 by prior knowledge, and nghttpd");
    let prior = "--http2-prior-knowledge";
    table.same(&pod, "curl: an answer with trailers", |way| curl(way, "http", "/small", &[prior]));
    table.same(&pod, "curl: HEAD", |way| curl(way, "http", "/small", &[prior, "--head"]));
    table.same(&pod, "curl: 404", |way| curl(way, "http", "/nothing", &[prior]));
    table.same(&pod, "curl: 304", |way| curl(way, "http", "/small", &[prior, "--header", "if-modified-since: Thu, 01 Jan 2099 00:00:00 GMT"]));
    let large = folder.path().join("large").display().to_string();
    table.same(&pod, "curl: 1.6 MB up and back", |way| {
        let said = curl(way, "http", "/small", &[prior, "--data-binary", &format!("@{large}")]);
        format!("{} bytes, {:?}", said.len(), said.get(..said.len().min(200)))
    });
    table.same(&pod, "nghttp: an answer", |way| nghttp(way, "/small", &[]));
    table.same(&pod, "nghttp: 1.6 MB", |way| nghttp(way, "/large", &[]));
    table.same(&pod, "nghttp: 20 requests at once by one connection", |way| {
        let urls = ["/small", "/large"].map(|path| format!("http://{way}{path}"));
        let (_, said) = output(std::process::Command::new("nghttp").args(["--null-out", "--stat", "--multiply=10", "--no-dep"]).args(urls));
        statistics(&said)
    });
    table.same(&pod, "nghttp: trailers", |way| {
        let (_, said) = output(std::process::Command::new("nghttp").args(["--null-out", "--verbose", &format!("http://{way}/small")]));
        said.lines().filter_map(|line| line.split_once(") ")).map(|(_, field)| field).filter(|field| field.starts_with("x-end")).collect()
    });
    table.same(&pod, "nghttp: a small window, and frames with padding", |way| nghttp(way, "/large", &["--window-bits=10", "--padding=100"]));
    pod.engines_were_used();
    table.must_be_on_the_page();
}

#[test]
fn an_upgrade_to_http2_is_answered_in_http1() {
    if program("nghttp").is_none() {
        return;
    }
    let pod = Pod::around(Origin::start().address);
    let mut table = Table::of("nghttp -u, which asks by `Upgrade: h2c`, and a server of HTTP/1.1");
    table.same(&pod, "the upgrade is passed over, as RFC 9110 §7.8 allows, and nghttp says so", |way| {
        let url = format!("http://{way}/hello");
        let (succeeded, said) = output(std::process::Command::new("nghttp").args(["--upgrade", "--timeout=30", &url]));
        format!("{succeeded} {}", said.trim())
    });
    table.must_be_on_the_page();
}
