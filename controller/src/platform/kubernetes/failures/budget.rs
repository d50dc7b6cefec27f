//! How much of a cluster one step may take away.

use std::{fmt, str::FromStr};

/// Nodes that one step may take away: a number, or a share of all (rounded down, and at least one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodesMax {
    Number(u32),
    Percent(u32),
}

impl NodesMax {
    /// # Errors
    /// When `taken` of `all` nodes are too many, with what would be right.
    pub(super) fn allows(self, taken: usize, all: usize) -> Result<(), String> {
        let most = match self {
            Self::Number(number) => number as usize,
            Self::Percent(percent) => (all * percent as usize / 100).max(1),
        };
        if taken <= most {
            return Ok(());
        }
        Err(format!(
            "would take {taken} of {all} nodes away at once, and failures.maxUnavailableNodes in the chart's values allows {self} ({most}): choose fewer, \
             such as nodes: {{mode: fixed, value: {most}}}, or raise it"
        ))
    }
}

impl fmt::Display for NodesMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for NodesMax {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no number of nodes: write a number from 1, such as 2, or a share of all nodes from 1% to 100%, such as 34%");
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
    fn one_step_takes_no_more_nodes_than_are_allowed_and_one_always() {
        let of = |text: &str| text.parse::<NodesMax>().unwrap();
        assert!(of("34%").allows(1, 3).is_ok() && of("34%").allows(1, 1).is_ok() && of("34%").allows(3, 10).is_ok());
        assert!(of("34%").allows(2, 3).unwrap_err().contains("{mode: fixed, value: 1}"));
        assert!(of("2").allows(2, 100).is_ok() && of("2").allows(3, 100).is_err() && of("100%").allows(7, 7).is_ok());
        for wrong in ["", "0", "0%", "101%", "-1", "1.5", "x", "%"] {
            assert!(wrong.parse::<NodesMax>().unwrap_err().contains("34%"), "{wrong}");
        }
    }
}
