//! A flood of refusals must not fill the disk: within a minute the first few of each caller are written, the rest is counted.
//!
//! **Invariant:** nobody uses up what is kept for others: whoever shows nothing, not what is kept for those who are known, and none
//! of these much of it.

use super::{Act, By, Entry};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// What is counted is written after this time.
const WINDOW: Duration = Duration::from_secs(60);
/// Records of one caller and act in a window: enough to see what is tried.
const EACH_MAX: u64 = 5;
/// Records of one caller in a window, whatever it tries: nobody hides what others do behind one call of every sort.
const CALLER_MAX: u64 = 20;
/// Records in a window of all who are nobody. With the others below and those that count it is 230 MB a day at worst.
const NOBODY_MAX: u64 = 60;
/// And besides of all whom a certificate or a token names: no flood from outside hides what an insider tries.
const NAMED_MAX: u64 = 60;
/// And as many login failures: nobody hides a guess behind a flood of nonsense.
const LOGINS_MAX: u64 = 30;
/// Callers and acts that are counted by themselves; all others together.
const SOURCES_MAX: usize = 64;

/// Who it was, and what was tried.
type Source = (Caller, Act);

/// Whom the count is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Caller {
    /// Wherever it calls from.
    Named(By),
    /// Whoever calls from there.
    At(Option<IpAddr>),
}

/// Counts what is refused.
pub(super) struct Flood {
    /// When the window is over; monotonic. `None`: it has not begun.
    ends_at: Option<Duration>,
    logins: Share,
    named: Share,
    others: Share,
}

impl Default for Flood {
    fn default() -> Self {
        Self {
            ends_at: None,
            logins: Share::new(Act::LoginFailure, LOGINS_MAX),
            named: Share::new(Act::Refused, NAMED_MAX),
            others: Share::new(Act::Refused, NOBODY_MAX),
        }
    }
}

impl Flood {
    /// Whether the entry is to be written; else it is counted. With `may_write` off it is counted in any case.
    pub(super) fn admits(&mut self, entry: &Entry, now: Duration, may_write: bool) -> bool {
        self.ends_at.get_or_insert(now + WINDOW);
        let at = || Caller::At(entry.from.map(network));
        let (share, caller) = match (entry.act, &entry.by) {
            (Act::LoginFailure, _) => (&mut self.logins, at()),
            (_, By::Nobody) => (&mut self.others, at()),
            (_, by) => (&mut self.named, Caller::Named(by.clone())),
        };
        share.admits(caller, entry, may_write)
    }

    /// When the window is over; `None` if nothing was refused.
    pub(super) fn ends_at(&self) -> Option<Duration> {
        self.ends_at
    }

    /// Ends the window: what was only counted, as entries.
    pub(super) fn end(&mut self) -> Vec<Entry> {
        let Self { logins, named, others, .. } = std::mem::take(self);
        logins.counts().chain(named.counts()).chain(others.counts()).collect()
    }
}

/// What may be written in a window of some callers, and what was.
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
    from: Option<IpAddr>,
    written: u64,
    more: u64,
}

impl Share {
    fn new(act: Act, max: u64) -> Self {
        Self { act, max, sources: BTreeMap::new(), written: 0, more: 0 }
    }

    fn admits(&mut self, caller: Caller, entry: &Entry, may_write: bool) -> bool {
        let of_caller: u64 =
            self.sources.iter().filter(|((one, _), _)| *one == caller).map(|(_, counted)| counted.written).sum();
        let may_write = may_write && self.written < self.max && of_caller < CALLER_MAX;
        let source = (caller, entry.act);
        if !self.sources.contains_key(&source) && self.sources.len() >= SOURCES_MAX {
            self.written += u64::from(may_write);
            self.more += u64::from(!may_write);
            return may_write;
        }
        let from = entry.from.map(network);
        let first = || Counted { by: entry.by.clone(), from, written: 0, more: 0 };
        let counted = self.sources.entry(source).or_insert_with(first);
        let may_write = may_write && counted.written < EACH_MAX;
        self.written += u64::from(may_write);
        counted.written += u64::from(may_write);
        counted.more += u64::from(!may_write);
        if !may_write && counted.by != entry.by {
            counted.by = By::Nobody;
        }
        if !may_write && counted.from != from {
            counted.from = None;
        }
        may_write
    }

    fn counts(self) -> impl Iterator<Item = Entry> {
        let count = |act: Act, by: By, more: u64| {
            let why = format!("{more} more within a minute, which are not written one by one");
            Entry::new(act).by(by).refused(why).detail("more", more.to_string())
        };
        let others = (self.more > 0).then(|| count(self.act, By::Nobody, self.more).detail("from", "many callers"));
        let counted = self.sources.into_iter().filter(|(_, counted)| counted.more > 0);
        let counted =
            counted.map(move |((_, act), Counted { by, from, more, .. })| Entry { from, ..count(act, by, more) });
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
    use railyard_service::tls::{Identity, Role};
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
        assert_eq!(nonsense.filter(|entry| flood.admits(entry, Duration::ZERO, true)).count() as u64, NOBODY_MAX);
        let guess = guess(Ipv4Addr::LOCALHOST);
        assert_eq!((0..9).filter(|_| flood.admits(&guess, Duration::ZERO, true)).count() as u64, EACH_MAX);
        let counts = flood.end();
        let logins: Vec<&Entry> = counts.iter().filter(|count| count.act == Act::LoginFailure).collect();
        assert_eq!((logins.len(), logins[0].from, &*logins[0].details["more"]), (1, guess.from, "4"));
    }

    fn somebody(name: &str, act: Act, from: u32) -> Entry {
        let by = By::Somebody(Identity::new(Role::Viewer, name).unwrap());
        Entry { from: Some(Ipv4Addr::from_bits(from).into()), ..Entry::new(act).by(by).refused("forbidden") }
    }

    #[test]
    fn no_flood_from_outside_hides_what_an_insider_tries() {
        let mut flood = Flood::default();
        let mut admits = |entry: &Entry| flood.admits(entry, Duration::ZERO, true);
        for from in 0..4 {
            for act in Act::ALL.iter().filter(|act| **act != Act::LoginFailure) {
                let _ = admits(&Entry { act: *act, ..guess(Ipv4Addr::from_bits(from)) });
            }
        }
        // And another insider, with all that there is to call.
        let written = Act::ALL.iter().filter(|act| admits(&somebody("mallory", **act, 7))).count() as u64;
        assert_eq!(written, CALLER_MAX + 1, "and a login failure");
        assert!(admits(&somebody("victor", Act::Delete, 9)) && admits(&somebody("victor", Act::Backup, 9)));
    }

    #[test]
    fn who_is_named_is_counted_by_that_name_wherever_it_calls_from() {
        let mut flood = Flood::default();
        let calls = (0..100).map(|from| somebody("victor", Act::Delete, from));
        assert_eq!(calls.filter(|call| flood.admits(call, Duration::ZERO, true)).count() as u64, EACH_MAX);
        assert!(flood.admits(&somebody("olga", Act::Delete, 1), Duration::ZERO, true), "at the same address");
        let counts = flood.end();
        assert_eq!((counts.len(), more(&counts)), (1, 100 - EACH_MAX));
        assert_eq!((counts[0].by.text().as_str(), counts[0].from), ("viewer/victor", None));
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
