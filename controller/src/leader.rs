//! Which of the controller's replicas leads: a Lease, as Kubernetes' own controllers use it.
//!
//! Nobody's clock is compared with anybody else's: a lease has run out when this replica has seen it unchanged for its whole duration, and a leader that could not renew it for
//! two thirds of that no longer leads, whatever the API server may say.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
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

    /// A leader that could not renew for so long leads no more: an answer that is waited for meanwhile comes before the lease has run out.
    fn renew_within(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// Stands for election until this replica leads.
    pub async fn win(&self) {
        let mut seen: Option<Seen> = None;
        loop {
            match timeout(self.ask_within(), self.stand(&mut seen)).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be read or written"),
                Err(_) => tracing::warn!("the API server does not answer about the Lease"),
            }
            sleep(self.retry()).await;
        }
    }

    /// Renews until it no longer leads, and says why; or until `stop` is told, when it hands the lease back.
    pub async fn hold(&self, mut stop: watch::Receiver<bool>) -> String {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = sleep(self.retry()) => {}
                // The sender is gone: nobody will tell us any more.
                stopped = stop.wait_for(|stop| *stop) => {
                    if stopped.is_ok() {
                        self.release().await;
                    }
                    return "it was told to stop".to_owned();
                }
            }
            match timeout(self.ask_within(), self.renew()).await {
                Ok(Ok(None)) => renewed = Instant::now(),
                Ok(Ok(Some(other))) => return format!("{other} leads"),
                Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be renewed"),
                Err(_) => tracing::warn!("the API server does not answer about the Lease"),
            }
            if renewed.elapsed() > self.renew_within() {
                return format!("the Lease could not be renewed for {:?}", self.renew_within());
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
