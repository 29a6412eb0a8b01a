//! What an earlier process of this worker was at, and what of that can be gone on with.

use crate::attempt::dirs::JobDir;
use crate::attempt::record::{self, Left, Stage};
use crate::session;
use crate::workshop::Workshop;
use railyard_common::id::LeaseId;
use std::fs;
use std::time::Duration;

/// The attempts whose leases this worker still holds, as far as it can know. What is not among them is to be removed.
pub fn find(shop: &Workshop) -> Vec<Left> {
    let entries = match fs::read_dir(shop.data.jobs()) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, "the jobs of an earlier life cannot be looked at; they are given up");
            return Vec::new();
        }
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let leases = names.filter_map(|name| name.parse::<LeaseId>().ok());
    leases.filter_map(|lease| usable(shop, lease)).collect()
}

fn usable(shop: &Workshop, lease: LeaseId) -> Option<Left> {
    let left = match record::read(&JobDir::of(&shop.data, lease), &shop.config.name) {
        Ok(left) if left.order.lease == lease => left,
        Ok(left) => {
            tracing::warn!(%lease, order = %left.order.lease, "a job's directory has another job's order; it is given up");
            return None;
        }
        Err(why) => {
            tracing::info!(%lease, %why, "a job of an earlier life is given up");
            return None;
        }
    };
    let until = fence_at(&left);
    if until.is_some_and(|until| until <= shop.clock.boottime()) {
        tracing::info!(%lease, "a job of an earlier life is given up: its lease was not confirmed for too long");
        return None;
    }
    Some(left)
}

/// When its container must be gone, if it has one.
pub fn fence_at(left: &Left) -> Option<Duration> {
    match left.stage {
        // Whether the result is still wanted, only the controller knows. What runs no more harms nobody.
        Stage::Pack { .. } | Stage::Upload { .. } | Stage::Report => None,
        Stage::Fetch | Stage::Run(_) => {
            Some(session::fence_at(left.confirmed_at, Duration::from_millis(left.order.ttl_millis.into())))
        }
    }
}
