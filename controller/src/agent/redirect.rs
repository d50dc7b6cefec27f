//! Redirection in one pod: rules of its network namespace that lead whoever dials a server's port from outside to the sidecar.
//!
//! What the pod itself sends, the sidecar to its server first of all, goes over loopback and is left alone, so nothing goes in circles. Kubelet's probes have numbers
//! of their own, which lead to the server. One table holds the rules, for IPv4 and IPv6; it goes with the pod.

use std::{collections::BTreeSet, fmt::Write as _, str::FromStr};

use super::firewall::nft;

const TABLE: &str = "steadfast_redirect";

/// Who dials one port reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    pub from: u16,
    pub to: u16,
}

impl FromStr for Lead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        let lead = text.split_once('=').and_then(|(from, to)| Some(Self { from: port(from)?, to: port(to)? }));
        lead.filter(|lead| lead.from != lead.to).ok_or_else(|| format!("{text:?} is no pair of ports: write FROM=TO, such as 8000=4180"))
    }
}

/// Sets the rules, in place of those that are there.
///
/// # Errors
/// When one port leads to two, or `nft` refuses.
pub async fn set(routes: &[Lead], probes: &[Lead]) -> Result<(), String> {
    nft(&["-f", "-"], &script(routes, probes)?).await.map(drop)
}

fn script(routes: &[Lead], probes: &[Lead]) -> Result<String, String> {
    let mut known = BTreeSet::new();
    if let Some(twice) = routes.iter().chain(probes).find(|lead| !known.insert(lead.from)) {
        return Err(format!("port {} leads to two others: give each once", twice.from));
    }
    // Made first, so that there is something to delete; all of it is one transaction.
    let mut script = format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n    chain users {{\n        type nat hook prerouting priority dstnat; policy accept;\n        iifname \"lo\" accept\n"
    );
    for lead in probes.iter().chain(routes) {
        // Writing to a `String` cannot fail.
        let _ = writeln!(script, "        tcp dport {} redirect to :{}", lead.from, lead.to);
    }
    script.push_str("    }\n}\n");
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_leads_to_one_other_and_loopback_is_left_alone() {
        let lead = |text: &str| text.parse::<Lead>();
        let script = script(&[lead("8000=4180").unwrap()], &[lead("4200=8000").unwrap()]).unwrap();
        assert!(script.contains("tcp dport 8000 redirect to :4180") && script.contains("tcp dport 4200 redirect to :8000"), "{script}");
        assert!(script.find("lo\" accept").unwrap() < script.find("redirect to").unwrap());
        assert!(super::script(&[lead("8000=4180").unwrap(), lead("8000=4181").unwrap()], &[]).unwrap_err().contains("8000"));
        for wrong in ["", "8000", "8000=", "0=1", "1=65536", "5=5", "8000=4180; flush ruleset"] {
            assert!(lead(wrong).unwrap_err().contains("FROM=TO"), "{wrong}");
        }
    }
}
