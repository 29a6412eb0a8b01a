//! What the farm's state says at the moment at which a sweep begins.

use super::plan::Unpublished;
use crate::build::Build;
use crate::farm::Farm;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::path::RelPath;
use railyard_common::planted::{self, Bug};
use railyard_common::retention::{BuildFact, BuildStage, Held, Keep, Policy, Why, held};
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// One look. Everything in it is of one moment.
#[derive(Clone, Debug)]
pub struct Look {
    pub(super) at: Millis,
    pub(super) grace_millis: u64,
    /// The state came back from a backup, and nobody has looked yet.
    pub(super) restored_at: Option<Millis>,
    /// By the rules.
    pub(super) builds: Vec<Decided>,
    /// What is kept of each build until its grace is over.
    pub(super) levels: BTreeMap<BuildId, Keep>,
    /// Ended builds of which the cache must have the manifest.
    pub(super) manifests: BTreeSet<BuildId>,
    /// Those of which everything is kept: their manifests are read.
    pub(super) whole: BTreeSet<BuildId>,
    /// When each build that has ended was submitted. In the cache there may be another one of that name, that was built after the
    /// backup from which the journal came.
    pub(super) submitted: BTreeMap<BuildId, Millis>,
    /// Blobs that must stay, in order.
    pub(super) marks: Vec<Digest>,
    /// Blobs that must be there, in order, each with a build that needs it.
    pub(super) needed: Vec<(Digest, BuildId)>,
    /// What each ended build needs; only after a restore.
    pub(super) users: Vec<(BuildId, Vec<Digest>)>,
    /// Reduced builds whose grace is over, and what they had published that is nobody else's.
    pub(super) reduced: Vec<Unpublished>,
}

/// A build, and what the rules say of it.
#[derive(Clone, Debug)]
pub struct Decided {
    /// Which.
    pub build: BuildId,
    /// Its channel.
    pub channel: ChannelName,
    /// What is kept of it now.
    pub now: Keep,
    /// What is to be kept.
    pub keep: Keep,
    /// Why.
    pub why: Vec<Why>,
    /// Bytes of what is kept of it now, as stored, copies and what it shares with others included.
    pub bytes: u64,
    /// Bytes that no build needs any more when this one, and all others that go, are gone; each blob, and each copy, counts for the
    /// oldest that has it.
    pub frees: u64,
}

impl Look {
    /// Looks at `farm`: the rules, and how long after it was reduced a build's objects stay.
    pub fn of(farm: &Farm, policy: &Policy, grace_millis: u64, now: Millis) -> Self {
        let grace_millis = if planted::is(Bug::SweepWithoutGrace) { 0 } else { grace_millis };
        let facts = farm.facts(policy.copies);
        let decided = railyard_common::retention::decide(policy, &facts, now);
        let level = |build: &Build| build.keep_for_now(now, grace_millis);
        let ended = || farm.builds().filter(|build| build.is_ended() && build.keep() >= Keep::Manifest);
        let mut needed: Vec<(Digest, BuildId)> = ended()
            .flat_map(|build| farm.blobs_of(build, build.keep()).map(|blob| (blob.digest, build.id().clone())))
            .collect();
        needed.sort_unstable_by_key(|(digest, _)| *digest);
        needed.dedup_by_key(|(digest, _)| *digest);
        Self {
            at: now,
            grace_millis,
            restored_at: farm.restored_at(),
            builds: told(farm, &facts, decided),
            levels: farm.builds().map(|build| (build.id().clone(), level(build))).collect(),
            manifests: ended().map(|build| build.id().clone()).collect(),
            whole: ended().filter(|build| build.keep() == Keep::All).map(|build| build.id().clone()).collect(),
            submitted: farm
                .builds()
                .filter(|build| build.is_ended())
                .map(|build| (build.id().clone(), build.submitted_at))
                .collect(),
            marks: farm.marks(now, grace_millis),
            needed,
            users: if farm.restored_at().is_some() {
                ended().map(|build| users(farm, build)).collect()
            } else {
                Vec::new()
            },
            reduced: reduced(farm, now, grace_millis),
        }
    }
}

fn users(farm: &Farm, build: &Build) -> (BuildId, Vec<Digest>) {
    (build.id().clone(), farm.blobs_of(build, build.keep()).map(|blob| blob.digest).collect())
}

/// Builds that were reduced a grace ago, with the paths at which no other build has something.
fn reduced(farm: &Farm, now: Millis, grace_millis: u64) -> Vec<Unpublished> {
    let level = |build: &Build| build.keep_for_now(now, grace_millis);
    let is_over = |build: &&Build| {
        build.kept.reduced.as_ref().is_some_and(|reduced| !reduced.swept && level(build) == reduced.keep)
    };
    let in_use = farm.paths_in_use(now, grace_millis);
    let own = |build: &Build| -> Vec<(RelPath, Blob)> {
        if level(build) >= Keep::Published {
            return Vec::new();
        }
        let own = farm.published(build).filter(|(path, _)| !in_use.get(path).copied().unwrap_or(false));
        own.map(|(path, blob)| (path.clone(), *blob)).collect()
    };
    let told = |build: &Build| Unpublished { build: build.id().clone(), keep: build.keep(), paths: own(build) };
    // What a build that has not ended may publish as well waits until that is known.
    let is_settled = |one: &Unpublished| one.paths.iter().all(|(path, _)| !in_use.contains_key(path));
    farm.builds().filter(is_over).map(told).filter(is_settled).collect()
}

/// What was said when a build was deleted.
fn why_deleted(farm: &Farm, build: &BuildId) -> Vec<Why> {
    let reduced = farm.build(build).and_then(|build| build.kept.reduced.as_ref());
    reduced.map(|reduced| Why::Deleted { by: reduced.by.clone(), why: reduced.why.clone() }).into_iter().collect()
}

/// Builds with what the rules say, newest first.
fn told(farm: &Farm, facts: &[BuildFact], decided: Vec<railyard_common::retention::Decision>) -> Vec<Decided> {
    let stays = facts.iter().zip(&decided).flat_map(|(fact, one)| held(&fact.blobs, one.keep));
    let stays: HashSet<Held<'_>> = stays.map(|(one, _)| one).collect();
    let mut counted = HashSet::new();
    let mut places: Vec<(&BuildFact, railyard_common::retention::Decision)> = facts.iter().zip(decided).collect();
    places.sort_by_key(|(fact, _)| fact.number);
    let mut told: Vec<Decided> = places
        .into_iter()
        .map(|(fact, one)| {
            let own: HashMap<Held<'_>, u64> = held(&fact.blobs, fact.keep).collect();
            let goes = own.iter().filter(|(one, _)| !stays.contains(*one) && counted.insert(**one));
            Decided {
                build: fact.build.clone(),
                channel: fact.channel.clone(),
                now: fact.keep,
                keep: one.keep,
                why: if fact.keep == Keep::Nothing { why_deleted(farm, &fact.build) } else { one.why },
                frees: goes.map(|(_, bytes)| bytes).sum(),
                bytes: own.values().sum(),
            }
        })
        .collect();
    told.reverse();
    debug_assert!(facts.iter().all(|fact| fact.stage != BuildStage::Running || fact.keep == Keep::All));
    told
}
