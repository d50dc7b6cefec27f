//! What a burner (`steadfast burn`) says of itself in its last line, and whether that proves pressure.

use serde::Deserialize;

/// A burner that fell this far short had to share its cores.
const SHORT: f64 = 0.02;
/// One that burned less than this share of what was asked proves nothing by itself.
pub(super) const PROVEN: f64 = 0.5;

/// Shares of each core.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Burned {
    asked: f64,
    achieved: f64,
    seconds: f64,
    /// How busy these cores were with everything that ran on them; absent: the burner could not read it, or is older.
    #[serde(default)]
    busy: Option<f64>,
    /// Why the burner stayed behind, where it did.
    #[serde(default)]
    limited_by: Option<String>,
}

impl Burned {
    pub(super) fn read(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim())
    }

    /// Whether there was pressure: at least half of what was asked was burned, or the cores were as busy as was asked all the same, since others had them.
    fn is_proof(&self) -> bool {
        self.achieved >= self.asked * PROVEN || self.busy.is_some_and(|busy| busy >= self.asked - SHORT)
    }

    /// On `node`, and on which of its `cores`: what proves the pressure, or why nothing does.
    pub(super) fn judged(&self, node: &str, cores: &str) -> Result<String, String> {
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        let said = format!("{node}: {} of {cores} burned for {:.1} s ({} asked", percent(self.achieved), self.seconds, percent(self.asked));
        let busy = self.busy.map(|busy| format!("with everything else on them they were {} busy", percent(busy)));
        if self.achieved >= self.asked - SHORT {
            return Ok(format!("{said})"));
        }
        if self.is_proof() {
            let rest = busy.map(|busy| format!(": {busy}")).unwrap_or_default();
            return Ok(format!("{said}; others on it took the rest{rest})"));
        }
        let busy = busy.unwrap_or_else(|| "how busy they were with everything else was not measured".to_owned());
        let limit = self.limited_by.as_deref().map(|limit| format!("; {limit}")).unwrap_or_default();
        Err(format!("{said}), less than half: {busy}{limit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(achieved: f64, busy: Option<f64>) -> Result<String, String> {
        let busy = busy.map_or_else(String::new, |busy| format!(", \"busy\": {busy}"));
        let line = format!("{{\"asked\": 0.9, \"achieved\": {achieved}, \"seconds\": 60.0{busy}}}\n");
        Burned::read(&line).unwrap().judged("n1", "every core")
    }

    #[test]
    fn pressure_that_hardly_happened_is_no_proof_unless_the_cores_were_busy_all_the_same() {
        assert_eq!(judged(0.899, None).unwrap(), "n1: 89.90 % of every core burned for 60.0 s (90.00 % asked)");
        assert!(judged(0.6, None).unwrap().contains("others on it took the rest)"));
        let doubt = judged(0.186, Some(0.3)).unwrap_err();
        assert!(doubt.contains("18.60 %") && doubt.contains("less than half") && doubt.contains("30.00 % busy"), "{doubt}");
        assert!(judged(0.186, None).unwrap_err().contains("not measured"));
        assert!(judged(0.186, Some(0.99)).unwrap().contains("they were 99.00 % busy"));
    }
}
