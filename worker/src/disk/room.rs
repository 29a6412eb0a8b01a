//! Room for a job that comes: what is kept for others makes way for it.

use super::evict;
use super::policy::Reach;
use crate::attempt::fault::Fault;
use crate::log::JobLog;
use crate::workshop::Workshop;
use bytesize::ByteSize;
use railyard_common::disk::Role;
use railyard_common::id::LeaseId;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use std::time::Duration;

/// How long a job waits for room: what others have removed may take a moment to be free. Longer would only keep it from a worker that
/// has room.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether there is room now.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A file system without room for a job.
struct Lack {
    role: Role,
    free_bytes: u64,
    /// So much more has to be free.
    bytes: u64,
}

/// Returns well when the job can take what it reserves. What it needs beside what others were promised and the host keeps is freed if it
/// can be.
///
/// # Errors
/// [`Fault`]: lost, because the disk is full.
pub async fn admit(shop: &Workshop, order: &Order, log: &JobLog) -> Result<(), Fault> {
    let wanted_bytes = order.run.resources.disk_bytes;
    if wanted_bytes == 0 {
        return Ok(());
    }
    let until = shop.clock.monotonic() + PATIENCE;
    let mut told = false;
    loop {
        let Some(lack) = lack_of(shop, order.lease, wanted_bytes) else { return Ok(()) };
        evict::evict(shop, lack.role, lack.bytes, Reach::Unused).await;
        let Some(lack) = lack_of(shop, order.lease, wanted_bytes) else { return Ok(()) };
        if shop.clock.monotonic() >= until {
            return Err(no_room(shop, &lack, wanted_bytes));
        }
        if !std::mem::replace(&mut told, true) {
            log.note("the worker's disk has no room for this job yet; waiting").await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn lack_of(shop: &Workshop, lease: LeaseId, wanted_bytes: u64) -> Option<Lack> {
    let promised = shop.disks.promises.outstanding_bytes(Some(lease));
    let kept = shop.config.capacity.disk_reserve.as_u64();
    let needed = wanted_bytes.saturating_add(promised).saturating_add(kept);
    shop.disks.places.roles().iter().find_map(|role| {
        // One that cannot be measured is no reason to refuse.
        let free_bytes = evict::space(shop, *role)?.free_bytes;
        let bytes = needed.saturating_sub(free_bytes);
        (bytes > 0).then_some(Lack { role: *role, free_bytes, bytes })
    })
}

fn no_room(shop: &Workshop, lack: &Lack, wanted_bytes: u64) -> Fault {
    let human = |bytes: u64| ByteSize::b(bytes).display().iec();
    let message = format!(
        "the worker's disk is full: the step reserves {}, and {} are free at {}, of which other jobs and the host have a claim to {}; nothing \
         that could be removed was left. Free some space there, or let the step reserve a smaller `disk`",
        human(wanted_bytes),
        human(lack.free_bytes),
        shop.disks.places.dir(lack.role).display(),
        human((lack.free_bytes + lack.bytes).saturating_sub(wanted_bytes)),
    );
    Fault::ended(OutcomeKind::Lost, Reason::DiskFull, message)
}
