//! TLS is the server's own business: it passes unread, and is counted.

use std::process::{Command, Stdio};

use super::{
    curl::curl,
    peers::{Pod, Process, free_port, output, program},
    table::Table,
};

#[test]
fn tls_passes_unread_and_is_counted() {
    if program("curl").is_none() || program("openssl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=model", "-days", "2"])
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(&folder)
        .stderr(Stdio::null())
        .status();
    assert!(made.is_ok_and(|status| status.success()), "openssl makes a certificate");
    std::fs::write(folder.path().join("hello"), "hello").unwrap();
    let port = free_port();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-quiet", "-WWW", "-key", "key.pem", "-cert", "certificate.pem", "-accept", &port.to_string()]).current_dir(&folder);
    let pod = Pod::at(port, Process::start(server.stdout(Stdio::null()).stderr(Stdio::null())));
    let mut table = Table::of("curl over TLS, and a server that speaks TLS itself");
    table.same(&pod, "`curl --insecure https://`", |way| curl(way, "https", "/hello", &["--insecure", "--http1.1"]));
    table.same(&pod, "the server's own certificate is what the client sees", |way| {
        let url = format!("https://{way}/hello");
        let (_, said) = output(Command::new("curl").args(["--silent", "--insecure", "--http1.1", "--output", "/dev/null", "--write-out", "%{certs}", &url]));
        said
    });
    for sidecar in [&pod.relay, &pod.stack] {
        assert_eq!(sidecar.metric("steadfast_opaque_connections_total", ""), 2);
        assert!(sidecar.metric("steadfast_opaque_bytes_total", "") > 1000);
        assert_eq!(sidecar.metric("steadfast_requests_total", ""), 0);
    }
    table.must_be_on_the_page();
}
