//! Latency of a whole node: everything that comes by an uplink waits before the kernel sees it.
//!
//! ```text
//! uplink ─▶ nftables, family netdev: fwd ─▶ TAP device ─▶ here: waits ─▶ TAP device ─▶ the kernel, as if it came now
//! ```
//!
//! Any kernel with nftables and TUN/TAP does, without a queueing discipline that would stay. Two things end it, whatever becomes of anybody: the rule asks a set whose
//! element the kernel forgets after [`FORGOTTEN_AFTER`] unless it is written again, and the device goes with this process. Between the two, packets are lost.
//!
//! Neither ARP nor neighbour discovery waits, and nothing that leaves: a round trip takes the delay once.

use std::{
    collections::VecDeque,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::RngExt;
use steadfast_api::fault::Delay;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    firewall::nft,
    tap::{FRAME_MAX, Tap},
};

const TABLE: &str = "steadfast";
/// Of what waits, on each uplink; what comes beyond that is lost, and counted.
const HELD_MAX: usize = 48 << 20;
/// An element that is not written again. So long packets are lost when this process is killed.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);
const WRITTEN_EVERY: Duration = Duration::from_millis(500);
/// From the end of the rule to the end of the device: packets that are on their way to it.
const LAST_ONES: Duration = Duration::from_millis(200);

/// What became of the packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waited {
    packets: u64,
    total: Duration,
    longest: Duration,
    lost: u64,
}

impl Waited {
    pub(super) fn words(self) -> String {
        let mean = u32::try_from(self.packets).ok().filter(|packets| *packets > 0).map_or(Duration::ZERO, |packets| self.total / packets);
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        format!(
            "{} packets waited, {:.1} ms on average and {:.1} ms at most; {} were lost for want of memory",
            self.packets,
            ms(mean),
            ms(self.longest),
            self.lost
        )
    }
}

pub(super) type Counts = Arc<Mutex<Waited>>;

/// Devices that delay, and no rule yet that leads to them. Once it is dropped they go, as soon as nothing waits in them.
pub(super) struct Latency {
    uplinks: Vec<String>,
    _over: watch::Sender<()>,
}

impl Latency {
    /// # Errors
    /// When this node's kernel cannot do it, and why.
    pub(super) fn new(uplinks: &[String], delay: &Delay, counts: &Counts) -> Result<Self, String> {
        let strict = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").is_ok_and(|value| value.trim() == "1");
        if strict {
            return Err("net.ipv4.conf.all.rp_filter is 1 on this node, which drops what comes by another device than its answer leaves by: set it to 2 or 0"
                .to_owned());
        }
        let (over, ended) = watch::channel(());
        for (number, uplink) in (1..).zip(uplinks) {
            let tap = Tap::open(&device(number), uplink, number).map_err(|error| error.to_string())?;
            tokio::spawn(pump(tap, delay.clone(), Arc::clone(counts), ended.clone()));
        }
        *counts.lock().unwrap_or_else(PoisonError::into_inner) = Waited::default();
        Ok(Self { uplinks: uplinks.to_vec(), _over: over })
    }

    /// Leads what comes by the uplinks to the devices, for so long.
    pub(super) async fn hold(&self, lasts: Duration) -> Result<(), String> {
        let end = Instant::now() + lasts;
        nft(&["-f", "-"], &rules(&self.uplinks)).await?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            nft(&["-f", "-"], &elements(&self.uplinks, left.min(FORGOTTEN_AFTER))).await?;
            sleep(left.min(WRITTEN_EVERY)).await;
        }
    }
}

/// Takes the rules away, whoever set them.
pub(super) async fn clear() {
    // Made first, so that there is something to delete. A kernel without this family has none of them.
    if let Err(error) = nft(&["-f", "-"], &format!("table netdev {TABLE}\ndelete table netdev {TABLE}\n")).await {
        tracing::debug!(error, "no rules of the family netdev are taken away");
    }
}

fn device(number: u8) -> String {
    format!("steadfast{number}")
}

fn rules(uplinks: &[String]) -> String {
    let chains = (1..).zip(uplinks).map(|(number, uplink)| {
        format!(
            "    chain late{number} {{
        type filter hook ingress device \"{uplink}\" priority -450; policy accept;
        icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} accept
        iifname @late meta protocol {{ ip, ip6 }} fwd to \"{}\"
    }}
",
            device(number)
        )
    });
    let made_anew = format!("table netdev {TABLE}\ndelete table netdev {TABLE}\n");
    format!("{made_anew}table netdev {TABLE} {{\n    set late {{ type ifname; flags timeout; }}\n{}}}\n", chains.collect::<String>())
}

/// In place of the elements that are there: their time cannot be changed.
fn elements(uplinks: &[String], lasts: Duration) -> String {
    let elements: Vec<String> = uplinks.iter().map(|uplink| format!("\"{uplink}\" timeout {}ms", lasts.as_millis().max(1))).collect();
    format!("flush set netdev {TABLE} late\nadd element netdev {TABLE} late {{ {} }}\n", elements.join(", "))
}

struct Held {
    came: Instant,
    goes: Instant,
    frame: Box<[u8]>,
}

/// Until `ended`, and until nothing waits.
async fn pump(tap: Tap, delay: Delay, counts: Counts, mut ended: watch::Receiver<()>) {
    let mut buffer = vec![0; FRAME_MAX];
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut bytes = 0;
    // No frame comes any more after this.
    let mut last: Option<Instant> = None;
    loop {
        let goes = held.front().map(|held| held.goes);
        if goes.is_none() && last.is_some_and(|last| last <= Instant::now()) {
            return;
        }
        let wakes = goes.or(last);
        tokio::select! {
            biased;
            () = async { sleep_until(wakes.unwrap_or_else(Instant::now)).await }, if wakes.is_some() => {}
            _ = ended.changed(), if last.is_none() => last = Some(Instant::now() + LAST_ONES),
            read = tap.read(&mut buffer) => {
                let Ok(length) = read else {
                    tracing::error!("the device that delays is gone");
                    return;
                };
                if bytes + length > HELD_MAX {
                    counts.lock().unwrap_or_else(PoisonError::into_inner).lost += 1;
                    continue;
                }
                bytes += length;
                let came = Instant::now();
                let waits = if last.is_some() { Duration::ZERO } else { draw(&delay) };
                // What comes in order goes in order.
                let goes = (came + waits).max(held.back().map_or(came, |held| held.goes));
                held.push_back(Held { came, goes, frame: buffer[..length].into() });
            }
        }
        let now = Instant::now();
        while let Some(first) = held.pop_front_if(|first| first.goes <= now) {
            bytes -= first.frame.len();
            // The kernel has no room: as on a network, it is lost.
            let arrived = tap.write(&first.frame).is_ok();
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            if arrived {
                let waited = first.came.elapsed();
                counts.packets += 1;
                counts.total += waited;
                counts.longest = counts.longest.max(waited);
            } else {
                counts.lost += 1;
            }
        }
    }
}

fn draw(delay: &Delay) -> Duration {
    let jitter = delay.jitter.get();
    delay.fixed.get() + if jitter.is_zero() { Duration::ZERO } else { jitter.mul_f64(rand::rng().random::<f64>()) }
}
