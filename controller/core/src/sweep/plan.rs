//! What a sweep does.

use super::look::Decided;
use crate::kept::Reduction;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::path::RelPath;
use railyard_common::retention::Keep;
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// What kind of thing goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GoneKind {
    /// A blob that nobody needs, and what is noted beside it.
    Blob(Digest),
    /// A log of a build that is gone.
    Log,
    /// A manifest, or what else was kept for a build that is gone.
    Record,
}

/// An object that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Where it lies.
    pub path: RelPath,
    /// Its length as stored.
    pub bytes: u64,
    /// What it is.
    pub kind: GoneKind,
    /// Whose it was, if it was one build's.
    pub build: Option<BuildId>,
}

/// Published paths of a build that go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The build.
    pub build: BuildId,
    /// What is left of it.
    pub keep: Keep,
    /// The paths, and what must lie there: anything else is not the build's.
    pub paths: Vec<(RelPath, Blob)>,
}

/// Everything that a sweep does.
#[derive(Clone, Debug)]
pub struct SweepPlan {
    /// When it was made.
    pub at: Millis,
    /// Every build with what the rules say, newest first; those that only the cache knows come last.
    pub builds: Vec<Decided>,
    /// Reduced builds whose grace is over: with what they had published. When everything of them is gone, the farm is told.
    pub reduced: Vec<Unpublished>,
    /// Objects that go: blobs, logs, records, in this order, so that a build's manifest goes last.
    pub gone: Vec<Gone>,
    /// After a restore from a backup: builds that the state knows and the cache lacks, in whole or in part, because they were deleted
    /// since. Whoever lets sweeps go on reduces them.
    pub lost: Vec<Reduction>,
    /// Builds that only the cache knows, with their channels, and with what each has published and no other of them. They stay until
    /// somebody deletes them.
    pub unknown: BTreeMap<BuildId, (ChannelName, Vec<(RelPath, Blob)>)>,
    /// Where builds have published something whose manifests were read.
    pub published: BTreeSet<RelPath>,
    /// Objects that nobody of the farm put there. They stay.
    pub foreign: u64,
    /// Objects and bytes of the farm that were listed.
    pub listed: (u64, u64),
    /// Of what the plan does; two plans that do the same have the same.
    pub digest: Digest,
}

impl SweepPlan {
    /// Builds of which less is kept from now on.
    pub fn reductions(&self) -> Vec<Reduction> {
        let less = self.builds.iter().filter(|one| one.keep < one.now);
        let told = |one: &Decided| one.why.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        less.map(|one| Reduction { build: one.build.clone(), keep: one.keep, why: told(one) }).collect()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.reduced.is_empty() && self.gone.is_empty() && self.builds.iter().all(|one| one.keep >= one.now)
    }

    /// What this plan does and a newer one would not: the first such thing, for people.
    pub fn outdated_by(&self, newer: &Self) -> Option<String> {
        let reductions: BTreeSet<(&BuildId, Keep)> =
            newer.builds.iter().filter(|one| one.keep < one.now).map(|one| (&one.build, one.keep)).collect();
        let mut own = self.builds.iter().filter(|one| one.keep < one.now);
        if let Some(one) = own.find(|one| !reductions.contains(&(&one.build, one.keep))) {
            return Some(format!("{} is not to be reduced to {} any more", one.build, one.keep));
        }
        let gone: BTreeSet<&RelPath> = newer.gone.iter().map(|gone| &gone.path).collect();
        if let Some(one) = self.gone.iter().find(|one| !gone.contains(&one.path)) {
            return Some(format!("{} is gone already, or needed", one.path));
        }
        let reduced: BTreeSet<&BuildId> = newer.reduced.iter().map(|one| &one.build).collect();
        let other = self.reduced.iter().find(|one| !reduced.contains(&one.build));
        other.map(|one| format!("{} has been swept already", one.build))
    }
}

/// The digest of what a plan does.
pub(super) fn digest(builds: &[Decided], reduced: &[Unpublished], gone: &[Gone]) -> Digest {
    let mut text = String::new();
    let mut line = |words: [&str; 3]| {
        text.push_str(&words.join(" "));
        text.push('\n');
    };
    for one in builds.iter().filter(|one| one.keep < one.now) {
        line(["reduce", &one.build.to_string(), &one.keep.to_string()]);
    }
    for one in reduced {
        line(["sweep", &one.build.to_string(), ""]);
        one.paths.iter().for_each(|(path, blob)| line(["unpublish", path.as_str(), &blob.digest.to_string()]));
    }
    gone.iter().for_each(|one| line(["delete", one.path.as_str(), ""]));
    Digest::of(text.as_bytes())
}
