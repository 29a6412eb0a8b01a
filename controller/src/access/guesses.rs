//! How often somebody may be wrong about a token.
//!
//! A token's secret has 256 bits and is not guessed; this keeps those who try from costing anything, and makes them visible.

use railyard_common::time::Millis;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// Wrong tokens from one place in [`WINDOW_MILLIS`], before it has to wait: more than people who paste badly need.
const WRONG_MAX: u32 = 10;
/// So long after the first wrong token the count begins anew.
const WINDOW_MILLIS: u64 = 60_000;
/// Places that are remembered: a flood from everywhere must not fill the memory. A hundred bytes each.
const PLACES_MAX: usize = 10_000;

/// Wrong tokens by the place that they came from.
#[derive(Debug, Default)]
pub struct Guesses(Mutex<BTreeMap<IpAddr, Count>>);

#[derive(Clone, Copy, Debug)]
struct Count {
    since: Millis,
    wrong: u32,
}

impl Guesses {
    /// For how many seconds nobody at `from` is listened to; `None` if they are.
    pub fn wait_secs(&self, from: SocketAddr, now: Millis) -> Option<u64> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = places.get(&place(from)).filter(|count| count.wrong >= WRONG_MAX)?;
        let left = WINDOW_MILLIS.saturating_sub(now.since(count.since));
        (left > 0).then(|| left.div_ceil(1000))
    }

    /// Somebody at `from` was wrong.
    pub fn wrong(&self, from: SocketAddr, now: Millis) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = place(from);
        if places.len() >= PLACES_MAX && !places.contains_key(&place) {
            places.retain(|_, count| now.since(count.since) < WINDOW_MILLIS);
            if places.len() >= PLACES_MAX {
                // Whoever was wrong least often is forgotten: a single place that goes on and on is not.
                let least = places.iter().min_by_key(|(_, count)| (count.wrong, count.since)).map(|(place, _)| *place);
                least.map(|least| places.remove(&least));
            }
        }
        let count = places.entry(place).or_insert(Count { since: now, wrong: 0 });
        if now.since(count.since) >= WINDOW_MILLIS {
            *count = Count { since: now, wrong: 0 };
        }
        count.wrong += 1;
    }
}

/// One host has a whole network of IPv6 addresses to choose from.
fn place(from: SocketAddr) -> IpAddr {
    match from.ip().to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_wrong_too_often_waits_and_nobody_else_does() {
        let guesses = Guesses::default();
        let (here, there): (SocketAddr, SocketAddr) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        for n in 0..WRONG_MAX {
            assert_eq!(guesses.wait_secs(here, Millis(1_000)), None, "{n}");
            guesses.wrong(here, Millis(1_000));
        }
        assert_eq!(guesses.wait_secs("192.0.2.1:9".parse().unwrap(), Millis(1_500)), Some(60), "another port");
        assert_eq!(guesses.wait_secs(there, Millis(1_500)), None);
        assert_eq!(guesses.wait_secs(here, Millis(61_000)), None);
        guesses.wrong(here, Millis(61_000));
        assert_eq!(guesses.wait_secs(here, Millis(61_000)), None, "the count begins anew");
        let (one, other) = ("[2001:db8:1:2:a::1]:1", "[2001:db8:1:2:b::2]:1");
        (0..WRONG_MAX).for_each(|_| guesses.wrong(one.parse().unwrap(), Millis(0)));
        assert!(guesses.wait_secs(other.parse().unwrap(), Millis(1)).is_some(), "the same network");
    }

    #[test]
    fn a_flood_from_everywhere_takes_no_more_memory() {
        let guesses = Guesses::default();
        let stubborn = "192.0.2.1:1".parse().unwrap();
        (0..WRONG_MAX).for_each(|_| guesses.wrong(stubborn, Millis(0)));
        for n in 0..PLACES_MAX as u32 + 100 {
            guesses.wrong(SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 1)), Millis(1));
        }
        assert_eq!(guesses.0.lock().unwrap().len(), PLACES_MAX);
        assert!(guesses.wait_secs(stubborn, Millis(2)).is_some());
    }
}
