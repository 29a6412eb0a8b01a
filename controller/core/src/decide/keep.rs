//! What people and the rules say about keeping builds.

use crate::build::Build;
use crate::event::Event;
use crate::farm::Farm;
use crate::kept::{Force, Reduction, Whose};
use crate::refusal::Refusal;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, LeaseId, PinName, PipelineName, TagName, WorkerName};
use railyard_common::retention::{Decision, Keep, Pin, Policy, decide};
use railyard_common::tier;
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// Most pins of a build: enough for every team, and a bound.
const PINS_MAX: usize = 100;
/// Most tags of a build.
const TAGS_MAX: usize = 100;
/// The registry's own word for the newest success.
const LATEST: &str = "latest";

impl Farm {
    pub(super) fn there(&self, id: &BuildId) -> Result<&Build, Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        if build.is_deleted() { Err(Refusal::BuildDeleted(id.clone())) } else { Ok(build) }
    }

    pub(super) fn decide_pin(
        &self,
        now: Millis,
        id: &BuildId,
        name: &PinName,
        pin: &Pin,
        whose: Whose,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.there(id)?;
        if !pin.holds(now) {
            return Err(Refusal::PinIsOver(id.clone()));
        }
        let known = build.kept.pins.get(name);
        if let Some(known) = known.filter(|known| !whose.holds(known, &pin.by)) {
            return Err(Refusal::NotOwnPin { build: id.clone(), name: name.clone(), by: known.by.clone() });
        }
        if known.is_none() && build.kept.pins.len() >= PINS_MAX {
            return Err(Refusal::TooMany { build: id.clone(), what: "pins", most: PINS_MAX });
        }
        if known.is_some_and(|known| (&known.by, &known.why, known.until) == (&pin.by, &pin.why, pin.until)) {
            return Ok(Vec::new());
        }
        Ok(vec![Event::BuildPinned { at: now, build: id.clone(), name: name.clone(), pin: pin.clone() }])
    }

    pub(super) fn decide_unpin(
        &self,
        now: Millis,
        id: &BuildId,
        name: Option<&PinName>,
        by: &str,
        whose: Whose,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.there(id)?;
        if let Some((name, known)) = name.and_then(|name| build.kept.pins.get_key_value(name))
            && !whose.holds(known, by)
        {
            return Err(Refusal::NotOwnPin { build: id.clone(), name: name.clone(), by: known.by.clone() });
        }
        let wanted = build.kept.pins.iter().filter(|(known, _)| name.is_none_or(|name| name == *known));
        let names: Vec<PinName> =
            wanted.filter(|(_, pin)| whose.holds(pin, by)).map(|(name, _)| name.clone()).collect();
        if names.is_empty() {
            return Err(Refusal::NotPinned { build: id.clone(), name: name.map(ToString::to_string) });
        }
        Ok(vec![Event::BuildUnpinned { at: now, build: id.clone(), names, by: by.to_owned() }])
    }

    pub(super) fn decide_tag(&self, now: Millis, id: &BuildId, tag: &TagName, by: &str) -> Result<Vec<Event>, Refusal> {
        let build = self.there(id)?;
        if build.is_untrusted() {
            return Err(Refusal::IsUntrusted { build: id.clone(), what: "tagged" });
        }
        if tag.as_str() == LATEST {
            return Err(Refusal::ReservedTag(tag.clone()));
        }
        // Wherever a build is named a tag can stand, but what is no version names none; and what untrusted builds are named is theirs.
        if tag.as_str().parse().map_or(true, |version| tier::is_untrusted(&version)) {
            return Err(Refusal::BadTag(tag.clone()));
        }
        if let Some(other) = tag.as_str().parse().ok().map(|version| BuildId { version, ..id.clone() })
            && self.builds.contains_key(&other)
        {
            return Err(Refusal::TagIsVersion(other));
        }
        if build.kept.tags.contains(tag) {
            return Ok(Vec::new());
        }
        if build.kept.tags.len() >= TAGS_MAX {
            return Err(Refusal::TooMany { build: id.clone(), what: "tags", most: TAGS_MAX });
        }
        Ok(vec![Event::BuildTagged { at: now, build: id.clone(), tag: tag.clone(), by: by.to_owned() }])
    }

    pub(super) fn decide_untag(
        &self,
        now: Millis,
        pipeline: &PipelineName,
        tag: &TagName,
        by: &str,
    ) -> Result<Vec<Event>, Refusal> {
        let build = self.tagged(pipeline, tag).ok_or_else(|| Refusal::NoSuchTag(pipeline.clone(), tag.clone()))?;
        let build = build.id().clone();
        Ok(vec![Event::BuildUntagged { at: now, build, tag: tag.clone(), by: by.to_owned() }])
    }

    /// All of them or none: a plan of which a part is wrong by now is to be made again.
    pub(super) fn decide_reduce(
        &self,
        now: Millis,
        reductions: &[Reduction],
        by: &str,
        force: &Force,
    ) -> Result<Vec<Event>, Refusal> {
        let lower = |one: &&Reduction| self.builds.get(&one.build).is_none_or(|build| one.keep < build.keep());
        let builds: Vec<Reduction> = reductions.iter().filter(lower).cloned().collect();
        let going: BTreeSet<&BuildId> =
            reductions.iter().filter(|one| one.keep < Keep::Published).map(|one| &one.build).collect();
        for one in &builds {
            self.may_reduce(now, &one.build, force, &going)?;
        }
        if let Force::Rules(policy) = force {
            self.is_by_the_rules(now, &builds, policy)?;
        }
        Ok(if builds.is_empty() {
            Vec::new()
        } else {
            vec![Event::BuildsReduced { at: now, builds, by: by.to_owned() }]
        })
    }

    fn is_by_the_rules(&self, now: Millis, builds: &[Reduction], policy: &Policy) -> Result<(), Refusal> {
        let facts = self.facts(policy.copies);
        let words = decide(policy, &facts, now);
        let words: BTreeMap<&BuildId, &Decision> = facts.iter().map(|fact| &fact.build).zip(&words).collect();
        let kept =
            builds.iter().find_map(|one| Some((one, words.get(&one.build).filter(|word| word.keep > one.keep)?)));
        match kept {
            None => Ok(()),
            Some((one, word)) => {
                let why = word.why.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Err(Refusal::BuildNeeded { build: one.build.clone(), why })
            }
        }
    }

    fn may_reduce(&self, now: Millis, id: &BuildId, force: &Force, going: &BTreeSet<&BuildId>) -> Result<(), Refusal> {
        let build = self.builds.get(id).ok_or_else(|| Refusal::UnknownBuild(id.clone()))?;
        if !build.is_ended() {
            return Err(Refusal::BuildRuns(id.clone()));
        }
        let needed = |why: String| Err(Refusal::BuildNeeded { build: id.clone(), why });
        if let Some(user) = self.users(id).find(|user| !user.is_ended()) {
            return needed(format!("{}, which has not ended, is built from it", user.id()));
        }
        if let Some(one) = &build.kept.promoting {
            return Err(Refusal::PromotionRuns { build: id.clone(), channel: one.promotion.channel.clone() });
        }
        if *force == Force::Forced {
            return Ok(());
        }
        if let Some((name, pin)) = build.kept.pins.iter().find(|(_, pin)| pin.holds(now)) {
            let why = if pin.why.is_empty() { String::new() } else { format!(": {}", pin.why) };
            return needed(format!("it is pinned by {name}{why}"));
        }
        if let Some(tag) = build.kept.tags.first() {
            return needed(format!("it is tagged {tag}"));
        }
        if let Some(last) = build.kept.promotions.last().filter(|_| *force == Force::Asked) {
            return needed(format!("it was promoted to {}", last.channel));
        }
        match self.users(id).find(|user| user.keep() >= Keep::Published && !going.contains(user.id())) {
            Some(user) => needed(format!("{} was built from it", user.id())),
            None => Ok(()),
        }
    }

    /// Builds that are made from a build.
    pub(super) fn users<'a>(&'a self, id: &'a BuildId) -> impl Iterator<Item = &'a Build> {
        self.builds.values().filter(move |user| user.plan.uses.contains(id))
    }

    /// A build that was reduced once more since then is not swept yet.
    pub(super) fn decide_swept(&self, now: Millis, builds: &[(BuildId, Keep)]) -> Vec<Event> {
        let is_new = |(id, keep): &&(BuildId, Keep)| {
            let reduced = self.builds.get(id).and_then(|build| build.kept.reduced.as_ref());
            reduced.is_some_and(|reduced| !reduced.swept && reduced.keep == *keep)
        };
        let known = builds.iter().filter(is_new).map(|(id, _)| id.clone());
        let (gone, less): (Vec<_>, Vec<_>) = known.partition(|id| self.builds.get(id).is_some_and(Build::is_deleted));
        let swept = (!less.is_empty()).then_some(Event::BuildsSwept { at: now, builds: less });
        let forgotten = (!gone.is_empty()).then_some(Event::BuildsForgotten { at: now, builds: gone });
        swept.into_iter().chain(forgotten).collect()
    }

    pub(super) fn decide_claim(
        &self,
        now: Millis,
        lease: LeaseId,
        worker: &WorkerName,
        blobs: &[Digest],
    ) -> Result<Vec<Event>, Refusal> {
        if self.holder(lease) != Some(worker) {
            return Err(Refusal::StaleLease(lease));
        }
        let known = self.claims.get(&lease);
        let new: BTreeSet<Digest> =
            blobs.iter().filter(|blob| known.is_none_or(|known| !known.contains(*blob))).copied().collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Event::BlobsClaimed { at: now, lease, blobs: new.into_iter().collect() }])
    }

    pub(super) fn decide_resume_sweep(&self, now: Millis, by: &str) -> Vec<Event> {
        match self.restored_at {
            Some(_) => vec![Event::SweepResumed { at: now, by: by.to_owned() }],
            None => Vec::new(),
        }
    }
}
