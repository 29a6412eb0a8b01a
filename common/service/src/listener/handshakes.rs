//! Connections whose TLS handshake is not done.

use super::ledger::{Client, Over};
use super::limits::{HANDSHAKE_GRACE, HANDSHAKES_MAX};
use crate::clock::runtime_now;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How often those who wait look for one that stalls.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// All of them. Where they are too many, the oldest that stalls gives way.
#[derive(Debug)]
pub(super) struct Handshakes {
    per_address: usize,
    places: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_age: BTreeMap<u64, Unfinished>,
    by_address: BTreeMap<Client, usize>,
}

#[derive(Debug)]
struct Unfinished {
    client: Client,
    begun: Instant,
    cut: CancellationToken,
}

/// A place for one more handshake, of all that there are.
pub(super) type Place = OwnedSemaphorePermit;

impl Handshakes {
    pub(super) fn new(per_address: usize) -> Self {
        Self { per_address, places: Arc::new(Semaphore::new(HANDSHAKES_MAX)), open: Arc::default() }
    }

    /// Waits for a place. Can be dropped at any time.
    pub(super) async fn place(&self) -> Option<Place> {
        loop {
            match Arc::clone(&self.places).try_acquire_owned() {
                Ok(place) => return Some(place),
                Err(TryAcquireError::NoPermits) => lock(&self.open).evict(None, runtime_now()),
                // Nobody closes the semaphore.
                Err(TryAcquireError::Closed) => return None,
            };
            let place = Arc::clone(&self.places).acquire_owned();
            if let Ok(place) = timeout(LOOK_EVERY, place).await {
                return place.ok();
            }
        }
    }

    /// Begins one.
    pub(super) fn begin(&self, client: Client, place: Place) -> Result<Handshake, Over> {
        let now = runtime_now();
        let mut open = lock(&self.open);
        let count = open.by_address.get(&client).copied().unwrap_or(0);
        if count >= self.per_address && !open.evict(Some(&client), now) {
            return Err(Over::Handshakes);
        }
        let (id, cut) = (open.next, CancellationToken::new());
        open.next += 1;
        *open.by_address.entry(client.clone()).or_default() += 1;
        open.by_age.insert(id, Unfinished { client, begun: now, cut: cut.clone() });
        drop(open);
        Ok(Handshake { id, cut, open: Arc::clone(&self.open), _place: place })
    }
}

impl Open {
    /// Ends the oldest one, of a client or of all, if it is old enough to be no honest one.
    fn evict(&mut self, client: Option<&Client>, now: Instant) -> bool {
        let mut those = self.by_age.iter().filter(|(_, one)| client.is_none_or(|client| one.client == *client));
        let Some((&id, oldest)) = those.next() else { return false };
        if now.saturating_duration_since(oldest.begun) < HANDSHAKE_GRACE {
            return false;
        }
        oldest.cut.cancel();
        self.remove(id);
        true
    }

    fn remove(&mut self, id: u64) {
        let Some(Unfinished { client, .. }) = self.by_age.remove(&id) else { return };
        if let Some(count) = self.by_address.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&client);
            }
        }
    }
}

/// One of them; dropped when it is over.
#[derive(Debug)]
pub(super) struct Handshake {
    id: u64,
    /// It has to give way.
    pub(super) cut: CancellationToken,
    open: Arc<Mutex<Open>>,
    _place: Place,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        lock(&self.open).remove(self.id);
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn address(n: u8) -> Client {
        Client::at(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)))
    }

    #[tokio::test(start_paused = true)]
    async fn who_stalls_gives_way_to_the_next_of_its_address_only() {
        let all = Handshakes::new(2);
        let first = all.begin(address(1), all.place().await.unwrap()).unwrap();
        let second = all.begin(address(1), all.place().await.unwrap()).unwrap();
        let refused = all.begin(address(1), all.place().await.unwrap());
        assert!(matches!(refused, Err(Over::Handshakes)) && !first.cut.is_cancelled());
        let other = all.begin(address(2), all.place().await.unwrap()).unwrap();
        tokio::time::sleep(HANDSHAKE_GRACE).await;
        let third = all.begin(address(1), all.place().await.unwrap()).unwrap();
        assert!(first.cut.is_cancelled() && !second.cut.is_cancelled() && !other.cut.is_cancelled());
        // One that was cut frees nothing twice.
        drop((first, second, third));
        assert!(!lock(&all.open).by_address.contains_key(&address(1)));
        drop(other);
        assert!(lock(&all.open).by_age.is_empty() && lock(&all.open).by_address.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn when_every_place_is_taken_the_oldest_of_all_gives_way() {
        let all = Handshakes::new(HANDSHAKES_MAX);
        let mut stalling = Vec::new();
        for _ in 0..HANDSHAKES_MAX {
            stalling.push(all.begin(address(1), all.place().await.unwrap()).unwrap());
        }
        let cut = stalling[0].cut.clone();
        let freed = async {
            cut.cancelled().await;
            drop(stalling.remove(0));
        };
        let (place, ()) = tokio::join!(all.place(), freed);
        assert!(all.begin(address(2), place.unwrap()).is_ok());
    }
}
