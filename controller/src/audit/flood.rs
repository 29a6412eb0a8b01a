//! A flood of refusals must not fill the disk: within a minute the first few of each address are written, the rest is counted.

use super::{Act, By, Entry};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// What is counted is written after this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Records of one address and act in a window: enough to see what is tried.
const EACH_MAX: u64 = 5;
/// Records of all in a window. With those that count it is 140 MB a day at worst.
const ALL_MAX: u64 = 60;
/// And as many login failures besides: nobody hides a guess behind a flood of nonsense.
const LOGINS_MAX: u64 = 30;
/// Addresses and acts that are counted by themselves; all others together.
const SOURCES_MAX: usize = 64;

/// Where it comes from, and what it tried.
type Source = (Option<IpAddr>, Act);

/// Counts what is refused.
pub(super) struct Flood {
    /// When the window is over; monotonic. `None`: it has not begun.
    ends_at: Option<Duration>,
    logins: Share,
    others: Share,
}

impl Default for Flood {
    fn default() -> Self {
        let (logins, others) = (Share::new(Act::LoginFailure, LOGINS_MAX), Share::new(Act::Refused, ALL_MAX));
        Self { ends_at: None, logins, others }
    }
}

impl Flood {
    /// Whether the entry is to be written; else it is counted. With `may_write` off it is counted in any case.
    pub(super) fn admits(&mut self, entry: &Entry, now: Duration, may_write: bool) -> bool {
        self.ends_at.get_or_insert(now + WINDOW);
        let share = if entry.act == Act::LoginFailure { &mut self.logins } else { &mut self.others };
        share.admits(entry, may_write)
    }

    /// When the window is over; `None` if nothing was refused.
    pub(super) fn ends_at(&self) -> Option<Duration> {
        self.ends_at
    }

    /// Ends the window: what was only counted, as entries.
    pub(super) fn end(&mut self) -> Vec<Entry> {
        let Self { logins, others, .. } = std::mem::take(self);
        logins.counts().chain(others.counts()).collect()
    }
}

/// What may be written in a window of some acts, and what was.
struct Share {
    /// What those are counted as that are of no source below.
    act: Act,
    max: u64,
    sources: BTreeMap<Source, Counted>,
    written: u64,
    /// Only counted, of no source above.
    more: u64,
}

struct Counted {
    by: By,
    written: u64,
    more: u64,
}

impl Share {
    fn new(act: Act, max: u64) -> Self {
        Self { act, max, sources: BTreeMap::new(), written: 0, more: 0 }
    }

    fn admits(&mut self, entry: &Entry, may_write: bool) -> bool {
        let source = (entry.from.map(network), entry.act);
        let may_write = may_write && self.written < self.max;
        let is_known = self.sources.contains_key(&source);
        if !is_known && self.sources.len() >= SOURCES_MAX {
            self.written += u64::from(may_write);
            self.more += u64::from(!may_write);
            return may_write;
        }
        let counted =
            self.sources.entry(source).or_insert_with(|| Counted { by: entry.by.clone(), written: 0, more: 0 });
        let may_write = may_write && counted.written < EACH_MAX;
        self.written += u64::from(may_write);
        counted.written += u64::from(may_write);
        counted.more += u64::from(!may_write);
        if !may_write && counted.by != entry.by {
            counted.by = By::Nobody;
        }
        may_write
    }

    fn counts(self) -> impl Iterator<Item = Entry> {
        let count = |act: Act, by: By, more: u64| {
            let why = format!("{more} more within a minute, which are not written one by one");
            Entry::new(act).by(by).refused(why).detail("more", more.to_string())
        };
        let others = (self.more > 0).then(|| count(self.act, By::Nobody, self.more).detail("from", "many addresses"));
        let counted = self.sources.into_iter().filter(|(_, counted)| counted.more > 0);
        let counted = counted.map(move |((from, act), counted)| Entry { from, ..count(act, counted.by, counted.more) });
        counted.chain(others)
    }
}

/// Whoever has one address of IPv6 mostly has all of the network.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn guess(from: impl Into<IpAddr>) -> Entry {
        Entry { from: Some(from.into()), ..Entry::new(Act::LoginFailure).by(By::Nobody).refused("no such token") }
    }

    fn more(entries: &[Entry]) -> u64 {
        entries.iter().map(|entry| entry.details["more"].parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn a_flood_of_one_address_is_a_few_records_and_a_count() {
        let mut flood = Flood::default();
        let (guess, other) = (guess(Ipv4Addr::LOCALHOST), Entry { act: Act::Cancel, ..guess(Ipv4Addr::LOCALHOST) });
        let now = Duration::from_secs(7);
        let written = (0..100_000).filter(|_| flood.admits(&guess, now, true)).count();
        assert_eq!(written as u64, EACH_MAX);
        assert!(flood.admits(&other, now, true), "another act has its own count");
        assert_eq!(flood.ends_at(), Some(now + WINDOW));
        let counts = flood.end();
        assert_eq!((counts.len(), more(&counts)), (1, 100_000 - EACH_MAX));
        assert_eq!((counts[0].act, counts[0].from), (Act::LoginFailure, guess.from));
        assert_eq!((flood.ends_at(), flood.end().len()), (None, 0));
        assert!(flood.admits(&guess, now, true));
    }

    #[test]
    fn a_flood_of_many_addresses_is_bounded_too_and_nothing_is_left_uncounted() {
        let mut flood = Flood::default();
        let networks = (0..10_000_u128).map(|n| Ipv6Addr::from_bits(n << 64 | n));
        let written = networks.filter(|ip| flood.admits(&guess(*ip), Duration::ZERO, true)).count() as u64;
        assert_eq!(written, LOGINS_MAX);
        let counts = flood.end();
        assert!(counts.len() <= SOURCES_MAX + 1, "{}", counts.len());
        assert_eq!(more(&counts), 10_000 - LOGINS_MAX);
        assert!(counts.iter().all(|count| count.act == Act::LoginFailure));
    }

    #[test]
    fn nobody_hides_a_guess_behind_nonsense() {
        let mut flood = Flood::default();
        let nonsense = (0..10_000_u32).map(|n| Entry { act: Act::Refused, ..guess(Ipv4Addr::from_bits(n)) });
        assert_eq!(nonsense.filter(|entry| flood.admits(entry, Duration::ZERO, true)).count() as u64, ALL_MAX);
        let guess = guess(Ipv4Addr::LOCALHOST);
        assert_eq!((0..9).filter(|_| flood.admits(&guess, Duration::ZERO, true)).count() as u64, EACH_MAX);
        let counts = flood.end();
        let logins: Vec<&Entry> = counts.iter().filter(|count| count.act == Act::LoginFailure).collect();
        assert_eq!((logins.len(), logins[0].from, &*logins[0].details["more"]), (1, guess.from, "4"));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let mut flood = Flood::default();
        let hosts = (0..1_000_u128).map(|n| Ipv6Addr::from_bits(0xfd << 120 | n));
        assert_eq!(hosts.filter(|ip| flood.admits(&guess(*ip), Duration::ZERO, true)).count() as u64, EACH_MAX);
    }

    #[test]
    fn what_must_not_be_written_is_counted() {
        let mut flood = Flood::default();
        assert!(!flood.admits(&guess(Ipv4Addr::LOCALHOST), Duration::ZERO, false));
        assert_eq!(more(&flood.end()), 1);
    }
}
