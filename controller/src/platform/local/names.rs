//! Names and UIDs as Kubernetes makes them, from the run's seed: two runs of one seed have pods of the same names.

use std::{collections::HashSet, fmt::Write as _};

use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Kubernetes' own alphabet for generated names: no vowels, so that no words come of it, and nothing easily misread.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

#[derive(Debug)]
pub(super) struct Names {
    random: StdRng,
    /// As of a ReplicaSet: `recommender-7d9f4c8b6d`.
    set: String,
    given: HashSet<String>,
}

impl Names {
    pub(super) fn new(base: &str, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let set = format!("{base}-{}", word(&mut random, 10));
        Self { random, set, given: HashSet::new() }
    }

    /// A name that was never given before, and a UID.
    pub(super) fn next(&mut self) -> (String, String) {
        loop {
            let name = format!("{}-{}", self.set, word(&mut self.random, 5));
            if self.given.insert(name.clone()) {
                return (name, uid(&mut self.random));
            }
        }
    }
}

fn word(random: &mut StdRng, length: usize) -> String {
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// RFC 9562, version 4.
fn uid(random: &mut StdRng) -> String {
    let mut bytes: [u8; 16] = random.random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes.iter().enumerate().fold(String::with_capacity(36), |mut text, (index, byte)| {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_uids_have_kubernetes_form_and_come_from_the_seed() {
        let mut names = Names::new("recommender", 7);
        let mut again = Names::new("recommender", 7);
        for _ in 0..100 {
            let (name, uid) = names.next();
            assert_eq!((name.clone(), uid.clone()), again.next());
            let parts: Vec<_> = name.split('-').collect();
            assert_eq!((parts[0], parts[1].len(), parts[2].len()), ("recommender", 10, 5), "{name}");
            let lengths: Vec<_> = uid.split('-').map(str::len).collect();
            assert_eq!((lengths, uid.as_bytes()[14]), (vec![8, 4, 4, 4, 12], b'4'), "{uid}");
        }
        assert_ne!(Names::new("recommender", 8).next().0, Names::new("recommender", 7).next().0);
    }
}
