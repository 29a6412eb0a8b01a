//! Who looks after the disks: measures them, makes room in time, and removes what was left behind.

use super::policy::Reach;
use super::{account, evict};
use crate::cleanup;
use crate::workshop::Workshop;
use railyard_common::disk::Role;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often the disks are looked at, if nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Counts are no closer than this.
const COUNT_EVERY: Duration = Duration::from_secs(15);

/// So much longer than a count is the time without one: a twentieth of a processor goes into it.
const REST: u32 = 20;

/// Looks after the disks for ever.
pub async fn keep(shop: Arc<Workshop>) {
    let reap_every = Duration::from_secs(shop.config.disk.reap_secs.max(1));
    let (mut pause, mut reaped_at) = (COUNT_EVERY, shop.clock.monotonic());
    // Those that are too full, and nothing more can go there. It is said once.
    let mut stuck = BTreeSet::new();
    loop {
        account::look(&shop).await;
        tidy(&shop, &mut stuck).await;
        if shop.disks.is_stale(shop.clock.boottime(), pause) {
            let began = shop.clock.monotonic();
            account::count(&shop).await;
            pause = COUNT_EVERY.max(shop.clock.monotonic().saturating_sub(began) * REST);
        }
        if shop.clock.monotonic().saturating_sub(reaped_at) >= reap_every {
            cleanup::reap(&shop).await;
            reaped_at = shop.clock.monotonic();
        }
        tokio::select! {
            biased;
            () = shop.disks.stirred() => {}
            () = tokio::time::sleep(LOOK_EVERY.min(reap_every)) => {}
        }
    }
}

/// Brings what is above the high mark to the low one.
async fn tidy(shop: &Workshop, stuck: &mut BTreeSet<Role>) {
    for role in shop.disks.places.roles() {
        let Some(space) = evict::space(shop, *role) else { continue };
        if *role == Role::Data {
            shop.disks.reserve.keep(space);
        }
        let excess = space.excess_bytes(&shop.disks.config);
        if excess == 0 {
            stuck.remove(role);
            continue;
        }
        let freed = evict::evict(shop, *role, excess, Reach::Spare).await;
        if freed == 0 && stuck.insert(*role) {
            tracing::warn!(
                place = %shop.disks.places.dir(*role).display(),
                used_bytes = space.used_bytes(), total_bytes = space.total_bytes,
                "this disk is fuller than it should be, and nothing of the worker's can go: others fill it, or running jobs"
            );
        }
    }
}
