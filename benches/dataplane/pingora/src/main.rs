//! The smallest reverse proxy on pingora: one thread, every request to one server. `dataplane-pingora LISTEN UPSTREAM h1|h2`: what it speaks to the server; clients may speak either.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_core::{
    Result,
    apps::HttpServerOptions,
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

struct Forward(HttpPeer);

#[async_trait]
impl ProxyHttp for Forward {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(self.0.clone()))
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, protocol] = arguments.as_slice() else {
        eprintln!("usage: dataplane-pingora LISTEN UPSTREAM h1|h2");
        std::process::exit(2);
    };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 4096, work_stealing: false, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut peer = HttpPeer::new(upstream.as_str(), false, String::new());
    if protocol == "h2" {
        peer.options.set_http_version(2, 2);
        peer.options.max_h2_streams = 128;
    }
    let mut service = http_proxy_service(&Arc::clone(&server.configuration), Forward(peer));
    if let Some(app) = service.app_logic_mut() {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.keepalive_request_limit = None;
        app.server_options = Some(options);
    }
    service.add_tcp(listen);
    server.add_service(service);
    server.run_forever();
}
