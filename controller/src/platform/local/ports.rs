//! Ports for model servers, which cannot say which one they took. They lie below the kernel's range for outgoing connections, so that no connection of
//! anybody's can take a pod's port while its server is between two lives.

use std::{
    collections::HashSet,
    fs, io,
    net::{Ipv4Addr, TcpListener},
};

use rand::RngExt;

const LOWEST: u16 = 15_000;
/// The kernel's default, where its setting cannot be read.
const OUTGOING_FROM: u16 = 32_768;
const TRIES: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Ports {
    given: HashSet<u16>,
}

impl Ports {
    /// A port that nobody listens on, and that was not given before.
    pub(super) fn next(&mut self) -> io::Result<u16> {
        let below = outgoing_from();
        for _ in 0..TRIES {
            // Not from the run's seed: two runs of one seed may run at once.
            let port = rand::rng().random_range(LOWEST..below.max(LOWEST + 1));
            if !self.given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                self.given.insert(port);
                return Ok(port);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free port from {LOWEST} to {below} in {TRIES} tries")))
    }

    pub(super) fn give_back(&mut self, port: u16) {
        self.given.remove(&port);
    }
}

fn outgoing_from() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
    let from = range.and_then(|range| range.split_whitespace().next()?.parse().ok());
    from.filter(|from| *from > LOWEST).unwrap_or(OUTGOING_FROM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_distinct_and_below_those_of_outgoing_connections() {
        let mut ports = Ports::default();
        let given: HashSet<u16> = (0..50).map(|_| ports.next().unwrap()).collect();
        assert_eq!(given.len(), 50);
        assert!(given.iter().all(|port| (LOWEST..outgoing_from()).contains(port)), "{given:?}");
    }
}
