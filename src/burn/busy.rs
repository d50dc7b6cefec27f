//! How busy some cores of this machine were with everything that ran on them, from `/proc/stat`.

/// Clock ticks since the machine began: all of them, and those in which nothing ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticks {
    all: u64,
    idle: u64,
}

/// Of these cores; none: of all.
pub(super) fn read(cores: &[usize]) -> Option<Ticks> {
    parse(&std::fs::read_to_string("/proc/stat").ok()?, cores)
}

fn parse(text: &str, cores: &[usize]) -> Option<Ticks> {
    let wanted = |name: &str| if cores.is_empty() { name == "cpu" } else { cores.iter().any(|core| name == format!("cpu{core}")) };
    let mut sum = Ticks { all: 0, idle: 0 };
    let mut lines = 0;
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        if !fields.next().is_some_and(wanted) {
            continue;
        }
        // user nice system idle iowait irq softirq steal; what guests had is in user already.
        let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
        sum.idle += ticks.get(3)? + ticks.get(4)?;
        sum.all += ticks.iter().sum::<u64>();
        lines += 1;
    }
    (lines == cores.len().max(1)).then_some(sum)
}

impl Ticks {
    /// Share of the time since `before` in which something ran; `None` when no tick has passed.
    pub(super) fn since(self, before: &Self) -> Option<f64> {
        let (all, idle) = (self.all.checked_sub(before.all)?, self.idle.saturating_sub(before.idle));
        (all > 0).then(|| 1.0 - idle.min(all) as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  30 0 20 40 10 0 0 0 5 0\ncpu0 10 0 10 20 10 0 0 0 0 0\ncpu1 20 0 10 20 0 0 0 0 5 0\ncpu10 1 1 1 1 1 1 1 1 1 1\nintr 1 2 3\n";

    #[test]
    fn all_cores_or_some_of_them_are_counted() {
        assert_eq!(parse(STAT, &[]), Some(Ticks { all: 100, idle: 50 }));
        assert_eq!(parse(STAT, &[1]), Some(Ticks { all: 50, idle: 20 }));
        assert_eq!(parse(STAT, &[0, 1]), Some(Ticks { all: 100, idle: 50 }));
        assert_eq!(parse(STAT, &[2]), None, "there is none of this number");
    }

    #[test]
    fn busy_is_what_was_not_idle() {
        let (before, after) = (Ticks { all: 100, idle: 50 }, Ticks { all: 200, idle: 60 });
        assert!(after.since(&before).is_some_and(|busy| (busy - 0.9).abs() < 1e-9));
        assert_eq!(before.since(&before), None);
    }
}
