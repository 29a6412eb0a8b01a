//! Promotions, one step at a time: begun, a file after the other, ended; or failed, and what was placed is taken back.

use super::World;
use railyard_common::blob::Blob;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::path::RelPath;
use railyard_core::{Command, Event, Promoting};
use std::collections::{BTreeMap, BTreeSet};

/// A promotion that somebody is carrying out. Nobody else publishes meanwhile, or takes away what is published.
pub(super) struct Promotion {
    build: BuildId,
    /// What is not there yet.
    left: Vec<(RelPath, Blob)>,
    fails: bool,
}

impl World {
    pub(super) fn begin_promotion(&mut self, id: BuildId, channel: ChannelName) {
        if self.promotion.is_some() {
            return;
        }
        let Some(build) = self.farm.build(&id) else { return };
        let standing: BTreeMap<&RelPath, &Blob> = self.farm.published(build).collect();
        let elsewhere = |path: &RelPath| -> RelPath {
            let which = path.as_str().rsplit(['/', '-']).next().unwrap_or_default();
            format!("images/{channel}-{which}").parse().expect("a path")
        };
        let own = self.farm.artifacts(build).filter_map(|one| Some((elsewhere(one.published.as_ref()?), one.blob)));
        let paths: BTreeMap<RelPath, Blob> = own.filter(|(path, _)| !standing.contains_key(path)).collect();
        let fresh: BTreeSet<RelPath> =
            paths.keys().filter(|path| !self.store.objects.contains_key(*path)).cloned().collect();
        let begin = Command::Promote { build: id, channel, paths, fresh, by: "olga".to_owned() };
        // What the farm refuses is its right.
        let begun = self.decide(&begin).unwrap_or_default();
        if let Some(Event::PromotionBegun { build, promotion, .. }) = begun.into_iter().next() {
            self.carry_out(build, &promotion.paths);
        }
    }

    fn carry_out(&mut self, build: BuildId, paths: &BTreeMap<RelPath, Blob>) {
        let missing = paths.iter().filter(|(path, _)| !self.store.objects.contains_key(*path));
        let left = missing.map(|(path, blob)| (path.clone(), *blob)).collect();
        let fails = self.trouble && self.dice.chance(300);
        self.promotion = Some(Promotion { build, left, fails });
    }

    /// The next step of the promotion that is being carried out; without one, of what the farm still has to settle.
    pub(super) fn promote_on(&mut self) {
        let Some(mut promotion) = self.promotion.take() else { return self.settle_promotion() };
        let Promotion { build, left, fails } = &mut promotion;
        let failed = *fails && self.dice.chance(400);
        match left.pop() {
            Some((path, blob)) if !failed => {
                self.say(|| format!("published {path}"));
                self.store.put(path, Vec::new(), Some(blob.digest), self.now);
                self.promotion = Some(promotion);
            }
            _ => {
                let error = failed.then(|| "the store has a bad moment".to_owned());
                let ended = self.decide(&Command::EndPromotion { build: build.clone(), error });
                debug_assert!(ended.is_ok());
            }
        }
    }

    fn settle_promotion(&mut self) {
        // One that has failed may have to wait for another one that has not.
        let next = self.farm.promoting().min_by_key(|(_, one)| one.failed.is_some());
        let Some((build, promoting)) = next.map(|(build, one)| (build.id().clone(), one.clone())) else { return };
        match &promoting.failed {
            None => self.carry_out(build, &promoting.promotion.paths),
            Some(_) => self.take_back(build, &promoting),
        }
    }

    fn take_back(&mut self, build: BuildId, promoting: &Promoting) {
        let in_use = self.farm.paths_in_use(self.now, 0);
        let is_settled = |path: &RelPath| in_use.get(path).copied();
        if promoting.fresh.iter().any(|path| is_settled(path) == Some(false)) {
            return;
        }
        let unused: Vec<RelPath> = promoting.fresh.iter().filter(|path| is_settled(path).is_none()).cloned().collect();
        for path in unused {
            if let Some(why) = self.model.unpublishing(self.now, &path) {
                self.breaks(why);
            }
            self.store.objects.remove(&path);
        }
        let forgotten = self.decide(&Command::ForgetPromotion { build });
        debug_assert!(forgotten.is_ok());
    }
}
