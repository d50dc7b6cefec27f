//! How exact the sidecar's CPU burns are, on an idle core and on one that has a proxy's work to do as well. They are its own code on a thread of this process.

use std::{net::SocketAddr, time::Duration};

use steadfast_proxy::fault::cpu::{Burn, Target};
use tokio::time::sleep;

use crate::{
    Failure,
    load::{self, Load},
    measure::Pace,
    peer::{Peer, Places},
    process::{Cores, stay_on},
    rows::{ACCURACY, Goal},
    table::{Row, Samples},
};

/// Percentage points by which a burn may miss what it was asked for.
const POINTS: f64 = 0.1;

/// The worst of three loads alone; and one beside `busy` under `load`.
pub(crate) async fn rows(places: &Places, busy: Option<SocketAddr>, load: Load, pace: Pace) -> Result<Vec<Row>, Failure> {
    let (mut alone, mut beside) = (Samples::of(&[Peer::Sidecar]), Samples::of(&[Peer::Sidecar]));
    let length = pace.length.max(Duration::from_secs(1));
    for _ in 0..pace.rounds.min(3) {
        let mut worst = 0.0_f64;
        for share in [0.1, 0.5, 0.9] {
            worst = worst.max(off(share, places.cores, length).await?);
        }
        alone.add(Peer::Sidecar, worst, None);
        if let Some(target) = busy {
            let _going = load::start(load, target);
            sleep(pace.warm).await;
            beside.add(Peer::Sidecar, off(0.3, places.cores, length).await?, None);
        }
    }
    let row = |samples: Samples, title: &str| samples.row(ACCURACY, title, "points", &[Goal::AtMost(POINTS)]);
    Ok(vec![
        row(alone, "CPU burns of 10, 50 and 90 %: the worst error"),
        row(beside, "CPU burn of 30 % on the core of a sidecar with 5,000 delayed requests/s: error"),
    ])
}

/// Percentage points between what was asked and what was burned.
async fn off(share: f64, cores: Cores, length: Duration) -> Result<f64, Failure> {
    // It takes no core that this thread may not use.
    stay_on(&[cores.proxy, cores.load])?;
    let burn = Burn::start(&Target { load: share, threads: 1, pin: vec![cores.proxy], duration: length });
    stay_on(&[cores.load])?;
    let mut burn = burn.map_err(|error| Failure::Other(format!("a CPU burn: {error}")))?;
    sleep(length).await;
    Ok((burn.join().achieved - share).abs() * 100.0)
}
