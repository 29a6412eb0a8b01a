//! Mark and sweep of the store, racing with uploads: what no build refers to goes, a grace after somebody last cared.

use super::{Ctl, Waiter};
use crate::store::GRACE;
use crate::world::World;
use railyard_common::digest::Digest;
use railyard_common::planted::{self, Bug};
use railyard_core::{Farm, Input};
use std::collections::BTreeSet;

impl World {
    pub(super) fn begin_sweep(&mut self) {
        self.ask(Waiter::LookSweep, |ticket| Input::Read { ticket });
        let next = self.disks.within(20_000, 60_000);
        self.after(next, Ctl::Sweep);
    }

    pub(super) fn look_sweep(&mut self) {
        let Some(process) = self.process_mut() else { return };
        let marked = reachable(process.core.farm(), planted::is(Bug::SweepIgnoresLeases));
        // Listing takes a while; meanwhile the world goes on.
        let wait = self.disks.within(100, 8_000);
        self.after(wait, Ctl::Delete(marked));
    }

    /// What was listed and is not marked goes, if it is old enough.
    pub(super) fn sweep_deletes(&mut self, marked: &BTreeSet<Digest>) {
        let grace = if planted::is(Bug::SweepWithoutGrace) { 0 } else { GRACE };
        let before = self.now.saturating_sub(grace);
        for digest in self.store.unmarked(before, marked) {
            if self.store.delete(before, &digest) {
                self.check_deleted(&digest);
            }
        }
    }
}

/// Every blob that a build refers to.
pub fn reachable(farm: &Farm, only_ended: bool) -> BTreeSet<Digest> {
    let builds = farm.builds().filter(|build| !only_ended || build.is_ended());
    let results = builds.flat_map(|build| build.jobs()).filter_map(|id| farm.job(id)?.result());
    let blobs = results.flat_map(|result| {
        let images = result.image.iter().flat_map(|image| std::iter::once(&image.config).chain(&image.layers));
        result.artifacts.iter().map(|artifact| &artifact.blob).chain(images).map(|blob| blob.digest)
    });
    blobs.collect()
}
