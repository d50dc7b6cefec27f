//! Which of the controller's replicas leads: a Lease, as Kubernetes' own controllers use it.
//!
//! Nobody's clock is compared with anybody else's: a lease has run out when this replica has seen it unchanged for its whole duration, and a leader leads until
//! two thirds of that after the moment at which it asked for what was its last renewal, whoever answers what meanwhile. Others saw that renewal no earlier than
//! it was asked for, so a third of the duration lies between the end of one lead and the begin of the next.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

/// One replica's part in it. Wants `get`, `create` and `update` on the Lease.
#[derive(Clone, Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// How long nobody else takes over from a leader that fell silent.
    duration: Duration,
}

/// The lease as it was last seen, and since when unchanged.
struct Seen {
    lease: Lease,
    since: Instant,
}

impl Candidate {
    /// For the Lease `name` of `namespace`, which runs out after `duration` (whole seconds). `identity` is this replica's alone, such as its pod's name.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, duration: Duration) -> Self {
        Self { leases: Api::namespaced(client, namespace), name: name.to_owned(), identity: identity.to_owned(), duration }
    }

    fn retry(&self) -> Duration {
        self.duration * 2 / 15
    }

    fn ask_within(&self) -> Duration {
        self.duration / 3
    }

    /// A leader leads for so long from the moment at which it asked for its last renewal.
    fn renew_within(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// Stands for election until this replica leads; returns when it asked for what it got.
    pub async fn win(&self) -> Instant {
        let mut seen: Option<Seen> = None;
        loop {
            let asked = Instant::now();
            match timeout(self.ask_within(), self.stand(&mut seen)).await {
                Ok(Ok(true)) => return asked,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be read or written"),
                Err(_) => tracing::warn!("the API server does not answer about the Lease"),
            }
            sleep(self.retry()).await;
        }
    }

    /// Renews until it no longer leads, and says why; or until `stop` is told, when it hands the lease back. `asked`: when the last renewal, or the lead
    /// itself, was asked for.
    pub async fn hold(&self, asked: Instant, mut stop: watch::Receiver<bool>) -> String {
        let mut until = asked + self.renew_within();
        let lost = || format!("the Lease could not be renewed for {:?}", self.renew_within());
        loop {
            tokio::select! {
                // Whatever else is ready: past its time it leads no more.
                biased;
                () = tokio::time::sleep_until(until) => return lost(),
                // Not ok: the sender is gone, and nobody will tell us any more.
                is_told = async { stop.wait_for(|stop| *stop).await.is_ok() } => {
                    if is_told {
                        self.release().await;
                    }
                    return "it was told to stop".to_owned();
                }
                () = sleep(self.retry()) => {}
            }
            let asked = Instant::now();
            match timeout_at(until.min(asked + self.ask_within()), self.renew()).await {
                Ok(Ok(None)) => until = asked + self.renew_within(),
                Ok(Ok(Some(other))) => return format!("{other} leads"),
                Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be renewed"),
                Err(_) => tracing::warn!("the API server does not answer about the Lease"),
            }
        }
    }

    async fn stand(&self, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let lease = Lease { metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() }, spec: Some(self.spec(None)) };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        if seen.as_ref().is_none_or(|seen| seen.lease != lease) {
            *seen = Some(Seen { lease: lease.clone(), since: Instant::now() });
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let free = spec.holder_identity.as_deref().is_none_or(str::is_empty);
        let duration = spec.lease_duration_seconds.map_or(self.duration, |seconds| Duration::from_secs(seconds.unsigned_abs().into()));
        let ours = spec.holder_identity.as_deref() == Some(&self.identity);
        let run_out = seen.as_ref().is_some_and(|seen| seen.since.elapsed() > duration);
        if !(free || ours || run_out) {
            return Ok(false);
        }
        // Its resourceVersion is that of the reading: of several that stand at once one wins.
        won(self.leases.replace(&self.name, &PostParams::default(), &Lease { spec: Some(self.spec(Some(&spec))), ..lease }).await)
    }

    /// Who leads instead, if somebody does.
    async fn renew(&self) -> Result<Option<String>, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else { return Ok(Some("nobody".to_owned())) };
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(Some(spec.holder_identity.unwrap_or_default()));
        }
        let next = LeaseSpec { renew_time: Some(now()), ..spec };
        match self.leases.replace(&self.name, &PostParams::default(), &Lease { spec: Some(next), ..lease }).await {
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn release(&self) {
        let handed_back = async {
            let Some(lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            let free = LeaseSpec { holder_identity: Some(String::new()), lease_duration_seconds: Some(1), renew_time: Some(now()), ..spec };
            self.leases.replace(&self.name, &PostParams::default(), &Lease { spec: Some(free), ..lease }).await.map(drop)
        };
        // Otherwise it runs out by itself.
        if let Ok(Err(error)) = timeout(self.ask_within(), handed_back).await {
            tracing::info!(%error, "the Lease could not be handed back");
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.duration.as_secs() as i32),
            acquire_time: Some(now()),
            renew_time: Some(now()),
            lease_transitions: Some(before.and_then(|before| before.lease_transitions).map_or(0, |transitions| transitions.saturating_add(1))),
            ..before.cloned().unwrap_or_default()
        }
    }
}

fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// As short as a busy machine lets it be.
    const LEASE: Duration = Duration::from_millis(1_500);

    /// What the API server says to a renewal.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Yes,
        Conflict,
        Broken,
        /// Takes it, and answers so much later.
        Late(Duration),
        Nothing,
    }

    /// An API server that holds one Lease.
    #[derive(Debug)]
    struct Server {
        lease: Option<Value>,
        version: u32,
        says: Says,
        /// When a renewal was taken, from first to last.
        taken: Vec<Instant>,
    }

    type Shared = Arc<Mutex<Server>>;

    fn lock(server: &Shared) -> std::sync::MutexGuard<'_, Server> {
        server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(status: StatusCode, body: &Value) -> Response<Body> {
        Response::builder().status(status).header("content-type", "application/json").body(Body::from(body.to_string().into_bytes())).expect("a response")
    }

    fn problem(code: StatusCode) -> Response<Body> {
        let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
        answer(code, &json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "no", "code": code.as_u16() }))
    }

    async fn serve(server: Shared, request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        let method = request.method().clone();
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if method == Method::GET {
            let lease = lock(&server).lease.clone();
            return Ok(lease.map_or_else(|| problem(StatusCode::NOT_FOUND), |lease| answer(StatusCode::OK, &lease)));
        }
        let says = lock(&server).says;
        match says {
            Says::Conflict => return Ok(problem(StatusCode::CONFLICT)),
            Says::Broken => return Ok(problem(StatusCode::INTERNAL_SERVER_ERROR)),
            Says::Nothing => std::future::pending().await,
            Says::Yes | Says::Late(_) => {}
        }
        let mut lease: Value = serde_json::from_slice(&body).expect("a Lease");
        {
            let mut server = lock(&server);
            server.version += 1;
            lease["metadata"]["resourceVersion"] = server.version.to_string().into();
            server.lease = Some(lease.clone());
            server.taken.push(Instant::now());
        }
        if let Says::Late(by) = says {
            sleep(by).await;
        }
        Ok(answer(StatusCode::OK, &lease))
    }

    fn candidate(server: &Shared, identity: &str) -> Candidate {
        let server = Arc::clone(server);
        let client = Client::new(tower::service_fn(move |request| serve(Arc::clone(&server), request)), "system");
        Candidate::new(client, "system", "steadfast", identity, LEASE)
    }

    fn server() -> Shared {
        Arc::new(Mutex::new(Server { lease: None, version: 0, says: Says::Yes, taken: Vec::new() }))
    }

    async fn leads(server: &Shared) -> (watch::Sender<bool>, tokio::task::JoinHandle<(String, Instant)>) {
        let candidate = candidate(server, "a");
        let asked = candidate.win().await;
        let (stop, stopped) = watch::channel(false);
        let held = tokio::spawn(async move { (candidate.hold(asked, stopped).await, Instant::now()) });
        (stop, held)
    }

    /// Whatever the API server does after a while, nobody else may take over before this one has ended.
    async fn ends_in_time(says: Says) -> String {
        let server = server();
        let (_stop, held) = leads(&server).await;
        sleep(LEASE).await;
        assert!(!held.is_finished(), "it renews while it can");
        lock(&server).says = says;
        let (why, ended) = held.await.expect("it ends");
        let last = *lock(&server).taken.last().expect("it renewed");
        assert!(ended < last + LEASE, "{says:?}: it led for {:?} after what others saw last", ended - last);
        why
    }

    #[tokio::test]
    async fn a_leader_ends_before_others_may_take_over_whatever_the_api_server_answers() {
        let (refused, broken, silent) = tokio::join!(ends_in_time(Says::Conflict), ends_in_time(Says::Broken), ends_in_time(Says::Nothing));
        for why in [refused, broken, silent] {
            assert!(why.contains("could not be renewed for 1s"), "{why}");
        }
    }

    #[tokio::test]
    async fn a_slow_renewal_counts_from_when_it_was_asked_for() {
        let server = server();
        let (_stop, held) = leads(&server).await;
        sleep(LEASE / 2).await;
        // In time, but only just: the next that does not come at all ends the lead by what was asked for, not by what was heard.
        lock(&server).says = Says::Late(LEASE / 4);
        let taken = lock(&server).taken.len();
        while lock(&server).taken.len() == taken {
            sleep(Duration::from_millis(5)).await;
        }
        let last = *lock(&server).taken.last().expect("it renewed");
        lock(&server).says = Says::Nothing;
        let (why, ended) = held.await.expect("it ends");
        assert!(why.contains("could not be renewed"), "{why}");
        // 250 ms for a busy machine; counted from the answer it would be 375 ms later.
        assert!(ended < last + LEASE * 2 / 3 + Duration::from_millis(250), "it led for {:?} after what others saw last", ended - last);
    }

    #[tokio::test]
    async fn a_lease_that_somebody_else_holds_is_lost_at_once_and_one_handed_back_is_free() {
        let server = server();
        let (_stop, held) = leads(&server).await;
        if let Some(lease) = &mut lock(&server).lease {
            lease["spec"]["holderIdentity"] = "b".into();
        }
        let (why, _) = held.await.expect("it ends");
        assert_eq!(why, "b leads");

        let server = self::server();
        let (stop, held) = leads(&server).await;
        stop.send_replace(true);
        assert_eq!(held.await.expect("it ends").0, "it was told to stop");
        let began = Instant::now();
        candidate(&server, "b").win().await;
        assert!(began.elapsed() < LEASE / 2, "{:?}", began.elapsed());
        let lease = lock(&server).lease.clone().expect("a Lease");
        assert_eq!(lease["spec"]["holderIdentity"], "b");
    }

    #[tokio::test]
    async fn who_fell_silent_is_succeeded_after_the_whole_duration_and_no_sooner() {
        let server = server();
        candidate(&server, "a").win().await;
        if let Some(lease) = &mut lock(&server).lease {
            lease["spec"]["leaseDurationSeconds"] = 1.into();
        }
        let began = Instant::now();
        candidate(&server, "b").win().await;
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    }
}
