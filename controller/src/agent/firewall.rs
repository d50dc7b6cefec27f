//! The node's cuts, as one nftables table of its own: sets whose elements the kernel forgets by its own timer, and rules that drop what matches them.
//!
//! Programmed through `nft`, as kube-proxy does. Outside the table nothing is touched, and without elements its rules match nothing.

use std::{collections::BTreeSet, fmt::Write as _, fs, net::SocketAddr, process::Stdio, sync::PoisonError, time::Duration};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, sync::Mutex, time::timeout};

use super::{
    latency::{self, Counts, Waited},
    marked::{MARK, MASK},
};

const TABLE: &str = "steadfast";
const NFT_WITHIN: Duration = Duration::from_secs(5);
/// Rules that count before they drop. `own` sees a packet after its Service's address has become an endpoint's. What the agent itself says to the API server is let through,
/// known by its mark, and so is what comes back to it: `mine` holds whom it spoke to as the network sees it (address, port, the agent's port), and forgets who falls silent.
/// So is neighbour discovery, as ARP is, without which nobody could be spoken to.
const RULES: &str = "
table inet steadfast {
    set mine4 { type ipv4_addr . inet_service . inet_service; size 4096; flags dynamic,timeout; timeout 2m; }
    set mine6 { type ipv6_addr . inet_service . inet_service; size 4096; flags dynamic,timeout; timeout 2m; }
    set uplinks { type ifname; flags timeout; }
    set api4 { type ipv4_addr . inet_service; flags timeout; }
    set api6 { type ipv6_addr . inet_service; flags timeout; }
    chain in {
        type filter hook prerouting priority -450; policy accept;
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        ip saddr . tcp sport . tcp dport @mine4 accept
        ip6 saddr . tcp sport . tcp dport @mine6 accept
        iifname @uplinks counter drop
    }
    chain out {
        type filter hook postrouting priority 450; policy accept;
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        meta mark & MASK == MARK update @mine4 { ip daddr . tcp dport . tcp sport timeout 2m } accept
        meta mark & MASK == MARK update @mine6 { ip6 daddr . tcp dport . tcp sport timeout 2m } accept
        oifname @uplinks counter drop
    }
    chain own {
        type filter hook output priority 450; policy accept;
        meta mark & MASK == MARK accept
        ip daddr . tcp dport @api4 counter drop
        ip6 daddr . tcp dport @api6 counter drop
    }
}
";

/// What is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Everything that comes or goes by an uplink.
    Node,
    /// What the node itself sends to these.
    ApiServer(Vec<SocketAddr>),
}

/// What was in force until it was taken away.
pub(super) struct Cleared {
    /// Packets, since the last cut began.
    pub dropped: u64,
    pub waited: Waited,
}

pub(super) struct Firewall {
    uplinks: Vec<String>,
    api_servers: Vec<SocketAddr>,
    client: Client,
    waited: Counts,
    /// Packets that were dropped since the last cut began, as far as they were counted: whoever clears takes the counters away, and a fault's own end and its being ended
    /// come at the same moment.
    dropped: Mutex<u64>,
}

impl Firewall {
    /// # Errors
    /// When the node has no uplink, or `nft` cannot be used here.
    pub(super) async fn new(uplinks: Vec<String>, api_servers: Vec<SocketAddr>, client: Client) -> Result<Self, String> {
        let uplinks = if uplinks.is_empty() { default_uplinks() } else { uplinks };
        if uplinks.is_empty() {
            return Err("there is no default route: name the node's devices with --uplinks".to_owned());
        }
        if let Some(odd) =
            uplinks.iter().find(|name| name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '"' || c.is_whitespace() || c.is_control()))
        {
            return Err(format!("--uplinks: {odd:?} is not the name of a device, such as eth0"));
        }
        nft(&["list", "tables"], "").await?;
        Ok(Self { uplinks, api_servers, client, waited: Counts::default(), dropped: Mutex::default() })
    }

    pub(super) fn uplinks(&self) -> &[String] {
        &self.uplinks
    }

    pub(super) const fn waited(&self) -> &Counts {
        &self.waited
    }

    /// Where kubelets find the API server: what was named, and the endpoints of the Service kubernetes.
    pub(super) async fn api_servers(&self) -> Vec<SocketAddr> {
        let mut addresses: BTreeSet<SocketAddr> = self.api_servers.iter().copied().collect();
        match Api::<EndpointSlice>::namespaced(self.client.clone(), "default").get("kubernetes").await {
            Ok(slice) => {
                let ports: Vec<u16> = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok()).collect();
                let hosts = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok());
                addresses.extend(hosts.flat_map(|host| ports.iter().map(move |port| SocketAddr::new(host, *port))));
            }
            Err(error) => tracing::warn!(%error, "the endpoints of Service kubernetes cannot be read"),
        }
        addresses.into_iter().collect()
    }

    /// Begins a cut, which the kernel ends after `lasts`.
    pub(super) async fn cut(&self, cut: &Cut, lasts: Duration) -> Result<(), String> {
        let mut dropped = self.dropped.lock().await;
        nft(&["-f", "-"], &script(cut, &self.uplinks, lasts)).await?;
        *dropped = 0;
        Ok(())
    }

    /// Ends every cut and every delay.
    pub(super) async fn clear(&self) -> Cleared {
        latency::clear().await;
        let mut dropped = self.dropped.lock().await;
        // There may be no table.
        *dropped += nft(&["-j", "list", "table", "inet", TABLE], "").await.map_or(0, |listed| packets(&listed));
        // Made first, so that there is something to delete.
        if let Err(error) = nft(&["-f", "-"], &format!("table inet {TABLE}\ndelete table inet {TABLE}\n")).await {
            tracing::error!(error, "the cuts cannot be taken away; the kernel's timers will");
        }
        Cleared { dropped: *dropped, waited: *self.waited.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// All of it in one transaction.
fn script(cut: &Cut, uplinks: &[String], lasts: Duration) -> String {
    let milliseconds = lasts.as_millis().max(1);
    let mut script = RULES.replace("MASK", &format!("{MASK:#x}")).replace("MARK", &format!("{MARK:#x}"));
    // Writing to a `String` cannot fail.
    match cut {
        Cut::Node => {
            for uplink in uplinks {
                let _ = writeln!(script, "add element inet {TABLE} uplinks {{ \"{uplink}\" timeout {milliseconds}ms }}");
            }
        }
        Cut::ApiServer(addresses) => {
            for address in addresses {
                let set = if address.is_ipv4() { "api4" } else { "api6" };
                let _ = writeln!(script, "add element inet {TABLE} {set} {{ {} . {} timeout {milliseconds}ms }}", address.ip(), address.port());
            }
        }
    }
    script
}

/// Sum of the counters of `nft -j list table`.
fn packets(listed: &str) -> u64 {
    let Ok(listed) = serde_json::from_str::<Value>(listed) else { return 0 };
    let rules = listed["nftables"].as_array().into_iter().flatten().filter_map(|entry| entry["rule"]["expr"].as_array());
    rules.flatten().filter_map(|part| part["counter"]["packets"].as_u64()).sum()
}

pub(super) async fn nft(arguments: &[&str], script: &str) -> Result<String, String> {
    let said = |error: std::io::Error| format!("nft: {error}");
    let mut child =
        Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().map_err(said)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing may have ended already; its status tells.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = timeout(NFT_WITHIN, child.wait_with_output()).await.map_err(|_| format!("nft did not end within {NFT_WITHIN:?}"))?.map_err(said)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Devices of the default routes, of both families.
fn default_uplinks() -> Vec<String> {
    let v4 = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    devices(&v4, &v6)
}

fn devices(v4: &str, v6: &str) -> Vec<String> {
    let none = "0".repeat(32);
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")).then(|| fields[0])
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.first() == Some(&none.as_str()) && fields.get(1) == Some(&"00")).then(|| fields.last().copied()).flatten()
    });
    let found: BTreeSet<&str> = v4.chain(v6).filter(|device| *device != "lo").collect();
    found.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplinks_are_the_devices_of_default_routes() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\tFE004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\nveth1\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let v6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 1 0 00000003 ens5\n\
                  00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 1 0 00200200 lo\n";
        assert_eq!(devices(v4, v6), ["ens5", "eth0"]);
    }

    #[test]
    fn every_cut_carries_its_own_end() {
        let script = script(&Cut::Node, &["eth0".to_owned(), "eth1".to_owned()], Duration::from_millis(1500));
        assert_eq!(script.matches("timeout 1500ms").count(), 2, "{script}");
        let addresses = vec!["192.0.2.1:6443".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap()];
        let script = super::script(&Cut::ApiServer(addresses), &[], Duration::from_secs(2));
        assert!(script.contains("api4 { 192.0.2.1 . 6443 timeout 2000ms }") && script.contains("api6 { 2001:db8::1 . 443 timeout 2000ms }"), "{script}");
    }

    #[test]
    fn the_agent_itself_is_let_through_before_anything_is_dropped() {
        let script = script(&Cut::Node, &["eth0".to_owned()], Duration::from_secs(1));
        assert!(!script.contains("MARK") && !script.contains("MASK"), "{script}");
        for chain in ["chain out", "chain own"] {
            let rules = &script[script.find(chain).unwrap()..];
            assert!(rules.find("mark & 0x1f == 0x1d").unwrap() < rules.find("counter drop").unwrap(), "{chain}: {script}");
        }
        assert!(script.find("@mine4 accept").unwrap() < script.find("iifname @uplinks counter drop").unwrap(), "{script}");
    }

    #[test]
    fn dropped_packets_are_summed() {
        let listed = r#"{"nftables": [{"metainfo": {}}, {"rule": {"expr": [{"match": {}}, {"counter": {"packets": 3, "bytes": 9}}, {"drop": null}]}},
            {"rule": {"expr": [{"counter": {"packets": 4, "bytes": 1}}]}}]}"#;
        assert_eq!(packets(listed), 7);
        assert_eq!(packets("nonsense"), 0);
    }
}
