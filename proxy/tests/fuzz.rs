//! The properties that are fuzzed (`fuzz/`), for a second each: over their seeds, and over what changes at random make of them.

#[path = "../../fuzz/src/lib.rs"]
mod properties;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

const EACH: Duration = Duration::from_secs(1);
const LARGEST: usize = 32 << 10;

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/../fuzz/seeds/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")).map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Another input out of one or two.
fn changed(rng: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let any = |rng: &mut StdRng| seeds[rng.random_range(0..seeds.len())].clone();
    let mut bytes = any(rng);
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        let end = rng.random_range(at..=bytes.len());
        match rng.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = rng.random(),
            2 => bytes.insert(at, *[b'\r', b'\n', b' ', b':', 0, 0x80, b'0', 0xff].get(rng.random_range(0..8_usize)).unwrap_or(&0)),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let other = any(rng);
                let from = rng.random_range(0..=other.len());
                bytes.splice(at..end, other[from..].iter().copied());
            }
            _ => bytes.truncate(end),
        }
        bytes.truncate(LARGEST);
    }
    bytes
}

#[test]
fn what_is_fuzzed_holds_for_seeds_and_for_what_becomes_of_them() {
    let run: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(run);
    for (name, property) in properties::PROPERTIES {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let check = |bytes: &[u8]| {
            if let Err(broken) = catch_unwind(AssertUnwindSafe(|| property(bytes))) {
                eprintln!("{name} (run {run}) does not hold of: {}", bytes.escape_ascii());
                resume_unwind(broken);
            }
        };
        for seed in &seeds {
            check(seed);
        }
        let (begun, mut times) = (Instant::now(), 0_u64);
        while begun.elapsed() < EACH {
            check(&changed(&mut rng, &seeds));
            times += 1;
        }
        eprintln!("{name}: {times} times");
        assert!(times > 20, "{name} is too slow to be fuzzed: {times} times in a second");
    }
}
