//! Figures for people and programs: medians with their spread, whether goals hold, a table and JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    Failure, io,
    peer::{PEERS, Peer, Running},
    rows::Goal,
};

/// What several runs of each peer told.
pub(crate) struct Samples(BTreeMap<Peer, Sampled>);

#[derive(Default)]
struct Sampled {
    values: Vec<f64>,
    per_second: Vec<f64>,
    why_not: Option<String>,
}

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) cells: Vec<Cell>,
    pub(crate) goals: Vec<Held>,
}

/// One peer's part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cell {
    pub(crate) peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) median: Option<f64>,
    /// All runs, in their order.
    pub(crate) runs: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_second: Option<f64>,
    /// Why there is no figure, or what went wrong in some run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why_not: Option<String>,
}

/// Whether a goal holds. `is`: what stands beside it, `None` where it could not be told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Held {
    pub(crate) goal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) is: Option<f64>,
    pub(crate) holds: Option<bool>,
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { *upper } else { f64::midpoint(sorted[middle - 1], *upper) })
}

impl Samples {
    pub(crate) fn new(started: &BTreeMap<Peer, Result<Running, String>>) -> Self {
        Self(started.iter().map(|(peer, running)| (*peer, Sampled { why_not: running.as_ref().err().cloned(), ..Sampled::default() })).collect())
    }

    pub(crate) fn of(peers: &[Peer]) -> Self {
        Self(peers.iter().map(|peer| (*peer, Sampled::default())).collect())
    }

    pub(crate) fn add(&mut self, peer: Peer, value: f64, per_second: Option<f64>) {
        let sampled = self.0.entry(peer).or_default();
        sampled.values.push(value);
        sampled.per_second.extend(per_second);
    }

    pub(crate) fn failed(&mut self, peer: Peer, why: String) {
        self.0.entry(peer).or_default().why_not.get_or_insert(why);
    }

    pub(crate) fn row(&self, group: &str, title: &str, unit: &str, goals: &[Goal]) -> Row {
        let of = |peer: Peer| self.0.get(&peer).and_then(|sampled| median(&sampled.values));
        let held = |goal: &Goal| {
            let us = of(Peer::Sidecar);
            let ratio = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
            let (text, is, holds): (_, _, fn(f64, f64) -> bool) = match *goal {
                Goal::AtMostTimes(times, peer) => (format!("≤ {times} × {}", peer.name()), ratio(us, of(peer)).map(|is| (is, times)), |is, goal| is <= goal),
                Goal::LessThan(times, peer) => {
                    (format!("≥ {times:.1} × less than {}", peer.name()), ratio(of(peer), us).map(|is| (is, times)), |is, goal| is >= goal)
                }
                Goal::AtMost(most) => (format!("≤ {most} {unit}"), us.map(|is| (is, most)), |is, goal| is <= goal),
            };
            Held { goal: text, is: is.map(|(is, _)| is), holds: is.map(|(is, goal)| holds(is, goal)) }
        };
        let cells = self.0.iter().map(|(peer, sampled)| Cell {
            peer: peer.name().to_owned(),
            median: median(&sampled.values),
            runs: sampled.values.clone(),
            per_second: median(&sampled.per_second),
            why_not: sampled.why_not.clone(),
        });
        Row { group: group.to_owned(), title: title.to_owned(), unit: unit.to_owned(), cells: cells.collect(), goals: goals.iter().map(held).collect() }
    }
}

impl Row {
    pub(crate) fn cell(&self, peer: Peer) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.peer == peer.name())
    }

    /// Goals that do not hold or could not be told, in words.
    pub(crate) fn missed(&self) -> Vec<String> {
        let missed = self.goals.iter().filter(|held| held.holds != Some(true));
        missed
            .map(|held| format!("{}: {} was the goal, {}", self.title, held.goal, held.is.map_or("not told".to_owned(), |is| format!("{is:.2} it is"))))
            .collect()
    }
}

/// As many digits as say something.
fn figure(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

impl Cell {
    fn text(&self) -> String {
        let Some(median) = self.median else { return "–".to_owned() };
        let (low, high) = self.runs.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
        if self.runs.len() == 1 { figure(median) } else { format!("{} ({}…{})", figure(median), figure(low), figure(high)) }
    }
}

/// The table, and beneath it what is missing in it and why.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = "| |".to_owned();
    for peer in PEERS {
        let _ = write!(text, " {} |", peer.name());
    }
    text.push_str(" Goal |\n|---|");
    text.push_str(&"---|".repeat(PEERS.len() + 1));
    // By what is missing and in which rows: who.
    let mut missing: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for row in rows {
        let _ = write!(text, "\n| {}, {} |", row.title, row.unit);
        for peer in PEERS {
            let cell = row.cell(peer);
            let _ = write!(text, " {} |", cell.map_or("–".to_owned(), Cell::text));
            if let Some(why) = cell.and_then(|cell| cell.why_not.as_ref()) {
                missing.entry((why, &row.group)).or_default().insert(peer.name());
            }
        }
        let goals: Vec<_> = row
            .goals
            .iter()
            .map(|held| match (held.is, held.holds) {
                (Some(is), Some(true)) => format!("{}: {}", held.goal, figure(is)),
                (Some(is), _) => format!("{}: **{}, missed**", held.goal, figure(is)),
                (None, _) => format!("{}: not told", held.goal),
            })
            .collect();
        let _ = write!(text, " {} |", goals.join("; "));
    }
    text.push('\n');
    for ((why, group), peers) in missing {
        let _ = write!(text, "\n- {group}: {} – {why}", peers.into_iter().collect::<Vec<_>>().join(", "));
    }
    text
}

/// Rows that an earlier run left in `folder`.
pub(crate) fn read(folder: &Path) -> Vec<Row> {
    fs::read_to_string(folder.join("dataplane.json")).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Writes dataplane.json, dataplane.md and dataplane.svg into `folder`.
pub(crate) fn write(folder: &Path, rows: &[Row]) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(io("the folder for figures"))?;
    let json = serde_json::to_string_pretty(rows).map_err(|error| Failure::Other(error.to_string()))?;
    fs::write(folder.join("dataplane.json"), json + "\n").map_err(io("dataplane.json"))?;
    fs::write(folder.join("dataplane.md"), markdown(rows) + "\n").map_err(io("dataplane.md"))?;
    fs::write(folder.join("dataplane.svg"), crate::picture::draw(rows)).map_err(io("dataplane.svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_missed_or_cannot_be_told_is_named_and_no_peer_is_dropped() {
        let mut samples = Samples::of(&[Peer::Sidecar, Peer::Copy, Peer::Envoy]);
        for value in [12.0, 10.0, 11.0, 30.0] {
            samples.add(Peer::Sidecar, value, Some(1000.0));
        }
        samples.add(Peer::Copy, 10.0, None);
        samples.failed(Peer::Envoy, "not here".to_owned());
        let goals = [Goal::AtMostTimes(1.15, Peer::Copy), Goal::AtMostTimes(1.1, Peer::Copy), Goal::LessThan(3.0, Peer::Envoy), Goal::AtMost(12.0)];
        let row = samples.row("g", "GET", "µs", &goals);
        assert_eq!(row.cell(Peer::Sidecar).unwrap().median, Some(11.5), "the median of an even number lies between the two in the middle");
        let holds: Vec<_> = row.goals.iter().map(|held| held.holds).collect();
        assert_eq!(holds, [Some(true), Some(false), None, Some(true)]);
        assert_eq!(row.missed().len(), 2);
        let text = markdown(&[row]);
        for part in
            ["| GET, µs | 11.5 (10.0…30.0) | 10.0 |", "≤ 1.1 × TCP copy: **1.15, missed**", "≥ 3.0 × less than Envoy: not told", "- g: Envoy – not here"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
