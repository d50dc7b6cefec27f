//! The peers' configurations: the least with which each does the same work. Connections to the server are kept and used again, bodies pass without waiting for their end, nothing is logged.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};

use super::{DELAY, Way};

/// Header that no request here has.
const NOBODYS: &str = "x-nobody";

pub(super) fn haproxy(listen: &str, upstream: &str, way: Way) -> String {
    let proto = if way == Way::Http2 { " proto h2" } else { "" };
    format!(
        "global
    nbthread 1
    maxconn 4000
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind {listen}{proto}
    default_backend out
backend out
    server model {upstream}{proto} pool-max-conn -1
"
    )
}

pub(super) fn nginx(listen: &str, upstream: &str, way: Way, files: &Path) -> String {
    let files = files.display();
    let (http2, pass) = match way {
        Way::Http2 => (" http2", "grpc_pass grpc://model;"),
        _ => ("", "proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_request_buffering off; proxy_buffering off;"),
    };
    format!(
        "daemon off;
master_process off;
worker_processes 1;
pid {files}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 8000; }}
http {{
    access_log off;
    client_body_temp_path {files}/body;
    proxy_temp_path {files}/proxy;
    fastcgi_temp_path {files}/fastcgi;
    uwsgi_temp_path {files}/uwsgi;
    scgi_temp_path {files}/scgi;
    client_max_body_size 0;
    keepalive_requests 1000000000;
    upstream model {{
        server {upstream};
        keepalive 4096;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {listen}{http2};
        location / {{ {pass} }}
    }}
}}
"
    )
}

pub(super) fn envoy(listen: SocketAddr, upstream: SocketAddr, way: Way) -> String {
    let address = |of: SocketAddr| json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } });
    let extension = |package: &str, name: &str| format!("type.googleapis.com/envoy.extensions.{package}.v3.{name}");
    let fault_filter = |more: Value| {
        let mut typed = json!({ "@type": extension("filters.http.fault", "HTTPFault") });
        if let (Some(typed), Value::Object(more)) = (typed.as_object_mut(), more) {
            typed.extend(more);
        }
        json!({ "name": "envoy.filters.http.fault", "typed_config": typed })
    };
    let all = json!({ "numerator": 100, "denominator": "HUNDRED" });
    let delay = json!({ "fixed_delay": format!("{}s", DELAY.as_secs_f64()), "percentage": all });
    let mut filters = Vec::new();
    match way {
        Way::Http1 | Way::Http2 => {}
        Way::Armed => {
            filters.push(fault_filter(json!({ "delay": delay, "headers": [{ "name": NOBODYS, "string_match": { "exact": "1" } }] })));
        }
        Way::Delays => filters.push(fault_filter(json!({ "delay": delay }))),
    }
    filters.push(json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": extension("filters.http.router", "Router") } }));
    let manager = json!({
        "@type": extension("filters.network.http_connection_manager", "HttpConnectionManager"),
        "stat_prefix": "in",
        "codec_type": "AUTO",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "model", "timeout": "0s" } }] }] },
        "http_filters": filters,
    });
    let protocol = if way == Way::Http2 { "http2_protocol_options" } else { "http_protocol_options" };
    let most = json!({ "thresholds": [{ "max_connections": 20_000, "max_pending_requests": 20_000, "max_requests": 20_000 }] });
    let endpoints = json!([{ "lb_endpoints": [{ "endpoint": { "address": address(upstream) } }] }]);
    json!({
        "static_resources": {
            "listeners": [{
                "address": address(listen),
                "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] }],
            }],
            "clusters": [{
                "name": "model",
                "type": "STATIC",
                "circuit_breakers": most,
                "load_assignment": { "cluster_name": "model", "endpoints": endpoints },
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": extension("upstreams.http", "HttpProtocolOptions"),
                        "explicit_http_config": { protocol: {} },
                    },
                },
            }],
        },
    })
    .to_string()
}

/// A policy whose rule every request is held against and none meets.
pub(super) fn policy_for_nobody() -> String {
    format!(
        "name: nobody
spec:
  expiresAfter: 1h
  budget: {{concurrent: 100, share: 100%}}
  rules: [{{match: {{headers: {{{NOBODYS}: \"1\"}}}}, faults: [{{delay: {{fixed: 200ms}}}}]}}]
"
    )
}

pub(super) fn policy_of_delays() -> String {
    format!(
        "name: delays
spec:
  expiresAfter: 1h
  budget: {{concurrent: 10000, share: 100%}}
  rules: [{{faults: [{{delay: {{fixed: {}ms}}}}]}}]
",
        DELAY.as_millis()
    )
}
