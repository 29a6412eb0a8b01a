//! What events about keeping builds change.

use crate::build::Build;
use crate::event::Event;
use crate::farm::Farm;
use crate::kept::{Promoting, Reduced, Reduction};
use railyard_common::id::{BuildId, TagName};
use railyard_common::time::Millis;
use std::collections::BTreeSet;

impl Farm {
    pub(crate) fn apply_keep(&mut self, event: &Event) {
        match event {
            Event::BuildPinned { build, name, pin, .. } => {
                if let Some(build) = self.builds.get_mut(build) {
                    build.kept.pins.insert(name.clone(), pin.clone());
                }
            }
            Event::BuildUnpinned { build, names, .. } => {
                if let Some(build) = self.builds.get_mut(build) {
                    build.kept.pins.retain(|name, _| !names.contains(name));
                }
            }
            Event::BuildTagged { build, tag, .. } => self.tag(build, tag),
            Event::BuildUntagged { build, tag, .. } => {
                if let Some(build) = self.builds.get_mut(build) {
                    build.kept.tags.remove(tag);
                }
            }
            Event::PromotionBegun { build, promotion, fresh, .. } => {
                if let Some(build) = self.builds.get_mut(build) {
                    let (promotion, fresh) = (promotion.clone(), fresh.clone());
                    build.kept.promoting = Some(Promoting { promotion, fresh, failed: None });
                }
            }
            Event::PromotionFailed { build, why, .. } => {
                if let Some(one) = self.builds.get_mut(build).and_then(|build| build.kept.promoting.as_mut()) {
                    one.failed = Some(why.clone());
                }
            }
            Event::PromotionForgotten { build, .. } => {
                if let Some(build) = self.builds.get_mut(build) {
                    build.kept.promoting = None;
                }
            }
            Event::BuildPromoted { build, promotion, .. } => {
                if let Some(build) = self.builds.get_mut(build) {
                    build.kept.promoting = None;
                    build.kept.promotions.push(promotion.clone());
                }
            }
            Event::BuildsReduced { at, builds, by } => builds.iter().for_each(|one| self.reduce(*at, one, by)),
            Event::BuildsSwept { builds, .. } => {
                for id in builds {
                    if let Some(reduced) = self.builds.get_mut(id).and_then(|build| build.kept.reduced.as_mut()) {
                        reduced.swept = true;
                    }
                }
            }
            Event::BuildsForgotten { builds, .. } => self.forget(builds),
            // A lease that has ended counts on nothing.
            Event::BlobsClaimed { lease, blobs, .. } if self.holder(*lease).is_some() => {
                self.claims.entry(*lease).or_default().extend(blobs);
            }
            Event::SweepResumed { .. } => self.restored_at = None,
            _ => {}
        }
    }

    fn tag(&mut self, id: &BuildId, tag: &TagName) {
        for build in self.builds.values_mut().filter(|build| build.id().pipeline == id.pipeline) {
            if build.id() == id {
                build.kept.tags.insert(tag.clone());
            } else {
                build.kept.tags.remove(tag);
            }
        }
    }

    fn reduce(&mut self, at: Millis, one: &Reduction, by: &str) {
        let Some(build) = self.builds.get_mut(&one.build) else { return };
        let before = build.keep();
        if one.keep >= before {
            return;
        }
        // What went with an earlier reduction may still be there.
        let before = match &build.kept.reduced {
            Some(earlier) if !earlier.swept => earlier.before,
            _ => before,
        };
        let (by, why) = (by.to_owned(), one.why.clone());
        build.kept.reduced = Some(Reduced { at, keep: one.keep, before, by, why, swept: false });
        if build.is_deleted() {
            build.kept.tags.clear();
            build.kept.pins.clear();
        }
    }

    fn forget(&mut self, builds: &[BuildId]) {
        let gone: Vec<Build> = builds.iter().filter_map(|id| self.builds.remove(id)).collect();
        for job in gone.iter().flat_map(Build::jobs) {
            self.jobs.remove(&job);
        }
        let gone: BTreeSet<&BuildId> = gone.iter().map(Build::id).collect();
        self.keys.retain(|_, build| !gone.contains(build));
    }
}
