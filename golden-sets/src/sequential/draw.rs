//! Which sample is replayed next.

use std::num::NonZeroUsize;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Uniform draws with replacement from a seed: the one way of choosing under which a mismatch has the same probability at every step.
#[derive(Debug)]
pub struct Draw {
    rng: StdRng,
    samples: NonZeroUsize,
}

impl Draw {
    /// `samples`: how many there are to choose from.
    pub fn new(seed: u64, samples: NonZeroUsize) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), samples }
    }
}

impl Iterator for Draw {
    type Item = usize;

    /// The index of the next sample; never `None`.
    fn next(&mut self) -> Option<usize> {
        Some(self.rng.random_range(0..self.samples.get()))
    }
}
