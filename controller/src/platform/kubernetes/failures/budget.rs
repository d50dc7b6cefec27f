//! How much of a cluster, and of the target, one step may take away.

use std::{fmt, str::FromStr};

use crate::words::{NAMES_MAX, some};

/// What one step may take away at once, together with what is away already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the cluster's nodes.
    pub nodes: UnavailableMax,
    /// Of the target's pods.
    pub pods: UnavailableMax,
}

impl Budget {
    /// No bound, for whoever only takes back.
    pub const ALL: Self = Self { nodes: UnavailableMax::Percent(100), pods: UnavailableMax::Percent(100) };

    /// # Errors
    /// When `taken` of `all` nodes are too many beside those that are `away` already, with what would be right.
    pub(super) fn allows_nodes(self, taken: usize, away: &[String], all: usize) -> Result<(), String> {
        self.nodes.allows(Of { what: "nodes", value: "failures.maxUnavailableNodes" }, taken, away, all)
    }

    /// # Errors
    /// When `taken` of `all` pods of the target are too many beside those that are `away` already, with what would be right.
    pub(in super::super) fn allows_pods(self, taken: usize, away: &[String], all: usize) -> Result<(), String> {
        self.pods.allows(Of { what: "pods", value: "failures.maxUnavailablePods" }, taken, away, all)
    }
}

/// A number, or a share of all (rounded down, and at least one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableMax {
    Number(u32),
    Percent(u32),
}

struct Of {
    what: &'static str,
    /// In the chart's values.
    value: &'static str,
}

impl UnavailableMax {
    fn allows(self, of: Of, taken: usize, away: &[String], all: usize) -> Result<(), String> {
        let most = match self {
            Self::Number(number) => number as usize,
            Self::Percent(percent) => (all * percent as usize / 100).max(1),
        };
        if taken + away.len() <= most {
            return Ok(());
        }
        let Of { what, value } = of;
        let left = most.saturating_sub(away.len());
        let already = if away.is_empty() { String::new() } else { format!(", beside what is away already ({})", some(away, NAMES_MAX)) };
        let advice = if left == 0 { "wait until they are back".to_owned() } else { format!("choose fewer, such as {what}: {{mode: fixed, value: {left}}}") };
        Err(format!(
            "would take {taken} of {all} {what} away at once{already}, and {value} in the chart's values allows {self} ({most}): {advice}, or raise it"
        ))
    }
}

impl fmt::Display for UnavailableMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for UnavailableMax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no number: write one from 1, such as 2, or a share of all from 1% to 100%, such as 34%");
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Self::Percent).ok_or_else(wrong),
            None => text.parse().ok().filter(|number| *number >= 1).map(Self::Number).ok_or_else(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_takes_no_more_than_is_allowed_and_one_always_unless_it_is_away_already() {
        let nodes = |max: &str, taken, away: &[&str], all| {
            let away: Vec<String> = away.iter().map(|name| (*name).to_owned()).collect();
            Budget { nodes: max.parse().unwrap(), ..Budget::ALL }.allows_nodes(taken, &away, all)
        };
        assert!(nodes("34%", 1, &[], 3).is_ok() && nodes("34%", 1, &[], 1).is_ok() && nodes("34%", 3, &[], 10).is_ok());
        assert!(nodes("34%", 2, &[], 3).unwrap_err().contains("nodes: {mode: fixed, value: 1}"));
        assert!(nodes("2", 2, &[], 100).is_ok() && nodes("2", 3, &[], 100).is_err() && nodes("100%", 7, &[], 7).is_ok());
        let why = nodes("34%", 1, &["n2"], 3).unwrap_err();
        assert!(why.contains("away already (n2)") && why.contains("wait until they are back") && why.contains("maxUnavailableNodes"), "{why}");
        let why = nodes("50%", 4, &["n2"], 8).unwrap_err();
        assert!(why.contains("value: 3}"), "{why}");
        let why = Budget { pods: "50%".parse().unwrap(), ..Budget::ALL }.allows_pods(3, &[], 3).unwrap_err();
        assert!(why.contains("3 of 3 pods") && why.contains("failures.maxUnavailablePods") && why.contains("pods: {mode: fixed, value: 1}"), "{why}");
        for wrong in ["", "0", "0%", "101%", "-1", "1.5", "x", "%"] {
            assert!(wrong.parse::<UnavailableMax>().unwrap_err().contains("34%"), "{wrong}");
        }
    }
}
