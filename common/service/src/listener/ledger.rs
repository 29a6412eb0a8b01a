//! Who has taken how much: an account for each client.
//!
//! **Invariant:** there is never more than one account of a client, and accounts that nobody uses are forgotten: there are at
//! most [`CONNECTIONS_MAX`] in use and [`SPARE_MAX`] others.

use super::bucket::Bucket;
use super::limits::{
    ARRIVALS_BURST_SECS, CONNECTIONS_MAX, Limits, MESSAGES_MAX_BYTES, REQUESTS_BURST_SECS, SMALL_MESSAGE_BYTES,
};
use super::peer::Complaints;
use crate::clock::runtime_now;
use crate::tls::{Identity, Role};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Accounts that are remembered though nobody uses them, because they are not as new: 200 bytes each.
const SPARE_MAX: usize = 65_536;
/// How often an operator hears of the same client.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Whose account it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// Whoever a certificate speaks for, whatever it is limited to.
    Known(Role, String),
    /// Everybody at an address.
    Address(IpAddr),
}

impl Client {
    /// Whoever has shown that.
    pub(super) fn known(identity: &Identity) -> Self {
        Self::Known(identity.role, identity.name.clone())
    }

    /// One customer has a whole IPv6 network, so that is one client.
    pub(super) fn at(ip: IpAddr) -> Self {
        let ip = match ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
            ip => ip,
        };
        Self::Address(ip)
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(role, name) => write!(f, "{role} {name}"),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Arrivals,
    Handshakes,
    Connections,
    Requests,
    Rate { wait: Duration },
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arrivals => "too many new connections",
            Self::Handshakes => "too many unfinished TLS handshakes",
            Self::Connections => "too many connections",
            Self::Requests => "too many requests at the same time",
            Self::Rate { .. } => "too many requests in a short time",
        })
    }
}

/// Every account.
#[derive(Debug)]
pub(super) struct Ledger {
    limits: Arc<Limits>,
    accounts: Mutex<BTreeMap<Client, Arc<Account>>>,
}

/// What one client has taken.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) client: Client,
    limits: Arc<Limits>,
    used: Mutex<Used>,
    /// Room for messages that are not whole yet, in pieces of [`SMALL_MESSAGE_BYTES`].
    pub(super) messages: Arc<Semaphore>,
}

#[derive(Debug)]
struct Used {
    connections: u32,
    requests: u32,
    arrivals: Bucket,
    rate: Bucket,
    told: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self { limits, accounts: Mutex::default() }
    }

    /// The account of a client.
    pub(super) fn account(&self, client: Client) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        if let Some(known) = accounts.get(&client) {
            return Arc::clone(known);
        }
        let now = runtime_now();
        if accounts.len() >= CONNECTIONS_MAX + SPARE_MAX {
            // Those in use are as many as there are connections at most.
            accounts.retain(|_, account| Arc::strong_count(account) > 1 || !account.is_new(now));
            if accounts.len() >= CONNECTIONS_MAX + SPARE_MAX {
                accounts.retain(|_, account| Arc::strong_count(account) > 1);
            }
        }
        let account = Arc::new(Account::new(client.clone(), Arc::clone(&self.limits), now));
        accounts.insert(client, Arc::clone(&account));
        account
    }
}

impl Account {
    fn new(client: Client, limits: Arc<Limits>, now: Instant) -> Self {
        let (arrivals, rate) = (limits.arrivals_per_address_per_sec, limits.requests_per_client_per_sec);
        let used = Used {
            connections: 0,
            requests: 0,
            arrivals: Bucket::new(arrivals.saturating_mul(ARRIVALS_BURST_SECS), arrivals, now),
            rate: Bucket::new(rate.saturating_mul(REQUESTS_BURST_SECS), rate, now),
            told: None,
        };
        let messages = Arc::new(Semaphore::new(MESSAGES_MAX_BYTES / SMALL_MESSAGE_BYTES));
        Self { client, limits, used: Mutex::new(used), messages }
    }

    /// Whether it is as a new one would be.
    fn is_new(&self, now: Instant) -> bool {
        let used = &mut *lock(&self.used);
        used.connections == 0 && used.requests == 0 && used.arrivals.is_full(now) && used.rate.is_full(now)
    }

    /// A connection has come in.
    pub(super) fn arrive(&self) -> Result<(), Over> {
        lock(&self.used).arrivals.take(runtime_now()).map_err(|_| Over::Arrivals)
    }

    /// A connection is made.
    pub(super) fn connect(self: &Arc<Self>) -> Result<Connected, Over> {
        let most = match self.client {
            Client::Known(..) => self.limits.connections_per_identity,
            Client::Address(_) => self.limits.connections_per_address,
        };
        let mut used = lock(&self.used);
        if used.connections >= most {
            return Err(Over::Connections);
        }
        used.connections += 1;
        drop(used);
        Ok(Connected(Arc::clone(self)))
    }

    /// A request begins.
    pub(super) fn request(self: &Arc<Self>) -> Result<Running, Over> {
        let mut used = lock(&self.used);
        if used.requests >= self.limits.requests_per_client {
            return Err(Over::Requests);
        }
        used.rate.take(runtime_now()).map_err(|wait| Over::Rate { wait })?;
        used.requests += 1;
        drop(used);
        Ok(Running(Arc::clone(self)))
    }

    /// Tells the operator which limit this client met, once in a while.
    pub(super) fn tell(&self, over: Over, complaints: &Complaints) {
        let now = runtime_now();
        let mut used = lock(&self.used);
        if used.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY) {
            return;
        }
        used.told = Some(now);
        drop(used);
        tracing::warn!(client = %self.client, limit = %over, "a client takes more than its share and is refused");
        complaints.tell("connection", &over.to_string());
    }
}

/// One connection of the account; dropped when it is over.
#[derive(Debug)]
pub(super) struct Connected(Arc<Account>);

impl Drop for Connected {
    fn drop(&mut self) {
        lock(&self.0.used).connections -= 1;
    }
}

/// One request of the account; dropped when it is answered.
#[derive(Debug)]
pub(super) struct Running(Arc<Account>);

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.0.used).requests -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Numbers are whole after every line here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(limits: Limits) -> Ledger {
        Ledger::new(Arc::new(limits))
    }

    fn address(n: u32) -> Client {
        Client::at(IpAddr::V4(n.into()))
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_an_embedded_ipv4_address_is_itself() {
        let at = |text: &str| Client::at(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
    }

    #[test]
    fn clients_do_not_use_up_each_other_s_share() {
        let ledger = ledger(Limits { connections_per_identity: 1, requests_per_client: 1, ..Limits::default() });
        let known = |name| Client::known(&Identity::new(Role::Worker, name).unwrap());
        let (a, b) = (ledger.account(known("a")), ledger.account(known("b")));
        let (first, running) = (a.connect().unwrap(), a.request().unwrap());
        let again = ledger.account(known("a"));
        assert_eq!((again.connect().unwrap_err(), again.request().unwrap_err()), (Over::Connections, Over::Requests));
        let _other = (b.connect().unwrap(), b.request().unwrap());
        drop((first, running));
        assert!(again.connect().is_ok() && again.request().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_refused_with_the_time_to_wait() {
        let limits = Limits { requests_per_client_per_sec: 10, arrivals_per_address_per_sec: 1, ..Limits::default() };
        let account = ledger(limits).account(address(1));
        let taken = (0..1_000).take_while(|_| account.request().is_ok()).count();
        assert_eq!(taken, 10 * REQUESTS_BURST_SECS as usize);
        let Err(Over::Rate { wait }) = account.request() else { panic!("not refused") };
        assert_eq!(wait, Duration::from_millis(100));
        tokio::time::sleep(wait).await;
        assert!(account.request().is_ok());
        assert_eq!((0..1_000).take_while(|_| account.arrive().is_ok()).count(), ARRIVALS_BURST_SECS as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_that_nobody_uses_are_forgotten_and_those_in_use_are_not() {
        let ledger = ledger(Limits::default());
        let used = ledger.account(address(0));
        let _connected = used.connect().unwrap();
        let most = CONNECTIONS_MAX + SPARE_MAX;
        for n in 1..u32::try_from(most).unwrap() {
            // As somebody who comes with many addresses.
            ledger.account(address(n)).arrive().unwrap();
        }
        assert_eq!(lock(&ledger.accounts).len(), most);
        // None is as new, so those that are not used go.
        let next = ledger.account(address(u32::MAX));
        assert_eq!(lock(&ledger.accounts).len(), 2);
        assert!(
            Arc::ptr_eq(&used, &ledger.account(address(0))) && Arc::ptr_eq(&next, &ledger.account(address(u32::MAX)))
        );
    }
}
