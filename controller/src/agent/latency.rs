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
    time::{Instant, sleep, sleep_until, timeout_at},
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
/// The device stays so much longer, for packets that are led to it until the rule is gone.
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
    /// A packet that went on, after so long; or was lost.
    fn add(&mut self, waited: Option<Duration>) {
        let Some(waited) = waited else {
            self.lost += 1;
            return;
        };
        self.packets += 1;
        self.total += waited;
        self.longest = self.longest.max(waited);
    }

    pub(super) const fn packets(self) -> u64 {
        self.packets
    }

    pub(super) fn words(self) -> String {
        let mean = u32::try_from(self.packets).ok().filter(|packets| *packets > 0).map_or(Duration::ZERO, |packets| self.total / packets);
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        format!(
            "{} packets waited, {:.1} ms on average and {:.1} ms at most; {} were lost for want of room",
            self.packets,
            ms(mean),
            ms(self.longest),
            self.lost
        )
    }
}

pub(super) type Counts = Arc<Mutex<Waited>>;

/// Devices in which packets wait, and no rule yet that leads to them. Once it is dropped nothing waits any more, and they go.
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

/// Until `ended`; whatever waits then waits no longer.
async fn pump(tap: Tap, delay: Delay, counts: Counts, mut ended: watch::Receiver<()>) {
    let mut buffer = vec![0; FRAME_MAX];
    let mut held: VecDeque<Held> = VecDeque::new();
    let mut bytes = 0;
    loop {
        let goes = held.front().map(|held| held.goes);
        tokio::select! {
            biased;
            _ = ended.changed() => break,
            () = async { sleep_until(goes.unwrap_or_else(Instant::now)).await }, if goes.is_some() => {}
            read = tap.read(&mut buffer) => {
                let Ok(length) = read else { return gone() };
                if bytes + length > HELD_MAX {
                    counts.lock().unwrap_or_else(PoisonError::into_inner).add(None);
                    continue;
                }
                bytes += length;
                let came = Instant::now();
                // What comes in order goes in order.
                let goes = (came + draw(&delay)).max(held.back().map_or(came, |held| held.goes));
                held.push_back(Held { came, goes, frame: buffer[..length].into() });
            }
        }
        let now = Instant::now();
        while let Some(first) = held.pop_front_if(|first| first.goes <= now) {
            bytes -= first.frame.len();
            // The kernel may have no room: as on a network, it is lost.
            let arrived = tap.write(&first.frame).is_ok();
            let waited = first.came.elapsed();
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.add(arrived.then_some(waited));
        }
    }
    for held in held {
        let _ = tap.write(&held.frame);
    }
    let last = Instant::now() + LAST_ONES;
    while let Ok(read) = timeout_at(last, tap.read(&mut buffer)).await {
        let Ok(length) = read else { return gone() };
        let _ = tap.write(&buffer[..length]);
    }
}

fn gone() {
    tracing::error!("the device in which packets wait is gone");
}

fn draw(delay: &Delay) -> Duration {
    let jitter = delay.jitter.get();
    delay.fixed.get() + if jitter.is_zero() { Duration::ZERO } else { jitter.mul_f64(rand::rng().random::<f64>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_a_device_is_forgotten_by_itself() {
        let uplinks = ["eth0".to_owned(), "eth1".to_owned()];
        let rules = rules(&uplinks);
        assert!(rules.contains("device \"eth1\"") && rules.contains("iifname @late meta protocol { ip, ip6 } fwd to \"steadfast2\""), "{rules}");
        assert!(!rules.contains("add element"), "{rules}");
        let elements = elements(&uplinks, Duration::from_millis(1500));
        assert_eq!(elements.matches("timeout 1500ms").count(), 2, "{elements}");
    }

    #[test]
    fn packets_wait_as_long_as_asked_and_are_counted() {
        let span = |text: &str| text.parse().unwrap();
        let delay = Delay { fixed: span("300ms"), jitter: span("20ms") };
        let drawn: Vec<Duration> = (0..1000).map(|_| draw(&delay)).collect();
        assert!(drawn.iter().all(|wait| (300..=320).contains(&wait.as_millis())) && drawn.iter().max() > drawn.iter().min(), "{drawn:?}");
        let mut waited = Waited::default();
        waited.add(Some(Duration::from_millis(300)));
        waited.add(Some(Duration::from_millis(310)));
        waited.add(None);
        assert_eq!(waited.words(), "2 packets waited, 305.0 ms on average and 310.0 ms at most; 1 were lost for want of room");
        assert!(Waited::default().words().starts_with("0 packets waited, 0.0 ms"));
    }
}
