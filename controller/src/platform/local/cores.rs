//! Which cores a node's processes may use, so that what happens on one node is felt on another as little as the machine allows.

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

/// The cores that this process may use.
pub(super) fn allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
}

/// Each node's share: the cores dealt out in turn; where there are more nodes than cores, one core each, in turn. With one core nothing is pinned.
pub(super) fn shares(nodes: usize, cores: &[usize]) -> Vec<Vec<usize>> {
    if cores.len() < 2 {
        return vec![Vec::new(); nodes];
    }
    (0..nodes)
        .map(|node| {
            if nodes > cores.len() {
                return vec![cores[node % cores.len()]];
            }
            cores.iter().copied().skip(node).step_by(nodes).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_dealt_out_in_turn() {
        assert_eq!(shares(3, &[0, 1]), [vec![0], vec![1], vec![0]]);
        assert_eq!(shares(3, &[0, 1, 2, 3, 4, 5, 6]), [vec![0, 3, 6], vec![1, 4], vec![2, 5]]);
        assert_eq!(shares(2, &[4]), [vec![], vec![]] as [Vec<usize>; 2]);
        assert!(!allowed().is_empty());
    }
}
