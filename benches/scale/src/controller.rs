//! The controller that is measured: its server, hub and ingest on one thread, as the leader of a cluster runs them.
//!
//! It says where it listens in one line of JSON. Then each line of standard input is `FROM TO NAME`: a policy NAME for the pods of these numbers, from FROM to before TO.

use std::{
    io::{BufRead, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use steadfast_api::{
    Percent, Span,
    policy::{Budget, FaultPolicySpec, NamedPolicy},
};
use steadfast_controller::{
    http::Identity,
    serve::{auth::Auth, policy::PolicyHub, server},
    webhook::certificate::{Certificates, Lifetimes},
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{Failure, io, sidecar::uid};

/// What sidecars have to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) address: String,
    pub(crate) trust: String,
    pub(crate) token: String,
}

/// Name in the certificate.
pub(crate) const NAME: &str = "steadfast-sidecars.bench.svc";
/// Of a thousand pods one has a reader of its evidence, as the target of a run has.
const READ_EACH: usize = 1_000;

pub(crate) fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io("no runtime"))?;
    runtime.block_on(serve())
}

async fn serve() -> Result<(), Failure> {
    let other = |error: &dyn std::fmt::Display| Failure::Other(error.to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let certificates = Certificates::make(&[NAME.to_owned()], now, &Lifetimes::default()).map_err(|error| other(&error))?;
    let identity = Identity::new(&certificates.server().certificate, &certificates.server().key).map_err(|error| other(&error))?;
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io("no port"))?;
    let token = format!("{:032x}", rand::random::<u128>());
    let hello = Hello { address: listener.local_addr().map_err(io("no port"))?.to_string(), trust: certificates.trust(), token: token.clone() };
    say(&serde_json::to_string(&hello).map_err(|error| other(&error))?)?;

    let sidecars = server::Sidecars::new(PolicyHub::default());
    let mut seen = sidecars.ingest.subscribe(65_536, |pod, _| pod.name.parse::<usize>().is_ok_and(|number| number % READ_EACH == 0)).into_receiver();
    let hub = std::sync::Arc::clone(&sidecars.hub);
    let (orders, mut ordered) = mpsc::unbounded_channel::<String>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if orders.send(line).is_err() {
                return;
            }
        }
    });
    let obey = async {
        while let Some(order) = ordered.recv().await {
            let mut words = order.split(' ');
            let (Some(from), Some(to), Some(name)) =
                (words.next().and_then(|word| word.parse::<usize>().ok()), words.next().and_then(|word| word.parse::<usize>().ok()), words.next())
            else {
                return Err(Failure::Other(format!("{order:?} is no order")));
            };
            for number in from..to {
                hub.set_policies("bench", &uid(number), vec![policy(name)]).map_err(|error| Failure::Other(error.to_string()))?;
            }
        }
        Ok(())
    };
    let read = async { while seen.recv().await.is_some() {} };
    tokio::select! {
        () = server::serve(listener, Some(identity.acceptor()), Auth::secret(&token), sidecars) => Ok(()),
        () = read => Ok(()),
        // Whoever gives orders is gone.
        ended = obey => ended,
    }
}

fn policy(name: &str) -> NamedPolicy {
    let spec = FaultPolicySpec::new(Budget::new(100, Percent::HUNDRED), Span::from_secs(600));
    NamedPolicy { name: name.to_owned(), spec }
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(io("standard output"))
}
