//! curl, the client that everybody has.

use std::{fmt::Write as _, net::SocketAddr};

use super::{
    origin::Origin,
    peers::{Pod, output, program},
    raw::plain,
    table::Table,
};

/// What `curl ARGS http://ADDRESS/PATH` prints, heads included, and how it ended.
pub(super) fn curl(address: SocketAddr, scheme: &str, path: &str, args: &[&str]) -> String {
    let url = format!("{scheme}://{address}{path}");
    let (succeeded, said) = output(std::process::Command::new("curl").args(["--silent", "--show-error", "--include", "--max-time", "30"]).args(args).arg(url));
    let mut seen = plain(&said);
    if !succeeded {
        let _ = write!(seen, " | curl failed");
    }
    seen
}

#[test]
fn curl_sees_no_difference() {
    if program("curl").is_none() {
        return;
    }
    let pod = Pod::around(Origin::start().address);
    let mut table = Table::of("curl, and a server that does all that HTTP/1.1 allows");
    let folder = tempfile::tempdir().unwrap();
    let upload = folder.path().join("upload");
    std::fs::write(&upload, (0..3_000_000_u32).map(|i| i as u8).collect::<Vec<u8>>()).unwrap();
    let (file, data) = (upload.display().to_string(), format!("@{}", upload.display()));
    let mut same = |what: &str, path: &str, args: &[&str]| table.same(&pod, what, |way| curl(way, "http", path, args));
    same("`--http1.0`", "/hello", &["--http1.0"]);
    same("`--http1.1`", "/hello", &["--http1.1"]);
    same("`--http2`, which asks by `Upgrade: h2c`: answered in HTTP/1.1, as RFC 9110 §7.8 allows", "/hello", &["--http2"]);
    same("`--head`", "/hello", &["--head"]);
    same("204", "/204", &[]);
    same("an answer in chunks", "/chunked", &["--no-buffer"]);
    same("103 before the answer", "/103", &[]);
    same("3 MB by `--data-binary`, with `Expect: 100-continue`", "/echo", &["--data-binary", &data, "--header", "expect: 100-continue"]);
    same("3 MB by `--upload-file`, in chunks", "/echo", &["--upload-file", &file, "--header", "transfer-encoding: chunked", "--request", "POST"]);
    same("3 MB, refused before they are read", "/refuse", &["--data-binary", &data, "--header", "expect: 100-continue"]);
    table.same(&pod, "three requests by one connection", |way| {
        let url = format!("http://{way}/hello");
        let (_, said) = output(std::process::Command::new("curl").args([
            "--silent",
            "--max-time",
            "30",
            "--write-out",
            " %{num_connects} %{http_version}\n",
            &url,
            &url,
            &url,
        ]));
        said
    });
    pod.engines_were_used();
    table.must_be_on_the_page();
}
