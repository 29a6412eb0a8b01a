//! `builds.json` and `latest.json`: what they say of a pipeline's builds, and of a channel's.
//!
//! **Invariant:** the list of a whole pipeline follows from the farm's state and, for builds that the farm does not know, from the
//! list as it stands. Everything else follows from that list alone.

use crate::document::{SCHEMA_VERSION, json, rfc3339};
use bytes::Bytes;
use railyard_common::id::{BuildId, ChannelName, PipelineName, TagName, Version};
use railyard_common::platform::Platform;
use railyard_common::retention::Keep;
use railyard_core::{Build, BuildState, Farm, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most builds that are listed of a channel; retention keeps about fifty. Its newest success stays, however old.
const CHANNEL_MAX: usize = 1_000;
/// Most that are listed of a pipeline, but for the newest success of each channel: the file is read and written whole.
const PIPELINE_MAX: usize = 5_000;
/// Most deleted builds that are spoken of in one list.
const TOMBSTONES_MAX: usize = 500;

/// `builds.json`: the builds of a pipeline, or of a channel, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    schema_version: u32,
    /// How often the file was changed. Two states of it never have the same bytes, so who saw one is not taken for somebody who
    /// saw the other.
    #[serde(default)]
    revision: u64,
    builds: Vec<Entry>,
    /// Builds that were deleted, the last one first.
    #[serde(default)]
    tombstones: Vec<Tombstone>,
}

/// One build of `builds.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    version: Version,
    #[serde(default = "usual")]
    channel: ChannelName,
    verdict: Verdict,
    submitted_at: String,
    platforms: Vec<Platform>,
    #[serde(default)]
    tags: BTreeSet<TagName>,
    /// What is kept of it, if not everything.
    #[serde(default, skip_serializing_if = "is_all")]
    keep: Keep,
}

/// A build that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    version: Version,
    channel: ChannelName,
    at: String,
    why: String,
}

/// `latest.json`: the newest success of which everything is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Latest {
    schema_version: u32,
    version: Version,
    channel: ChannelName,
    submitted_at: String,
}

fn usual() -> ChannelName {
    ChannelName::usual().clone()
}

fn is_all(keep: &Keep) -> bool {
    *keep == Keep::All
}

/// A build that is written out and about to end.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Which.
    pub build: BuildId,
    /// How it comes out.
    pub verdict: Verdict,
}

/// What the farm says of each build of a pipeline that may be listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts(BTreeMap<Version, Fact>);

#[derive(Clone, Debug)]
enum Fact {
    /// It has ended.
    Ended(Entry),
    /// It has not, or not again: how it came out is what was said of it before, if anything was.
    Open(Entry),
    Deleted(Tombstone),
}

impl Facts {
    /// What `farm` knows. No untrusted build is ever listed.
    pub(crate) fn of(farm: &Farm, pipeline: &PipelineName, ending: Option<&Ending>) -> Self {
        let builds = farm.builds().filter(|build| build.id().pipeline == *pipeline && !build.is_untrusted());
        Self(builds.map(|build| (build.id().version.clone(), Fact::of(build, ending))).collect())
    }

    /// The list, where `old` is what stands: what the farm does not know it cannot deny. Its journal may be an old backup.
    pub(crate) fn over(self, old: Option<Index>) -> Index {
        let Self(mut facts) = self;
        let (revision, old, graves) =
            old.map_or_else(Default::default, |old| (old.revision, old.builds, old.tombstones));
        let mut tombstones = Vec::new();
        for grave in graves {
            match facts.get(&grave.version) {
                Some(Fact::Deleted(_)) => continue,
                // Another build of that version, which came later.
                Some(Fact::Ended(entry)) if entry.submitted_at > grave.at => continue,
                // The farm has forgotten that it was deleted.
                Some(Fact::Ended(_)) => drop(facts.remove(&grave.version)),
                Some(Fact::Open(_)) | None => {}
            }
            tombstones.push(grave);
        }
        let mut builds = Vec::new();
        for entry in old.into_iter().filter(|entry| tombstones.iter().all(|grave| grave.version != entry.version)) {
            match facts.get(&entry.version) {
                Some(Fact::Open(now)) => builds.push(Entry { verdict: entry.verdict, ..now.clone() }),
                Some(Fact::Ended(_) | Fact::Deleted(_)) => {}
                None => builds.push(entry),
            }
        }
        for fact in facts.into_values() {
            match fact {
                Fact::Ended(entry) => builds.push(entry),
                Fact::Open(_) => {}
                Fact::Deleted(tombstone) => tombstones.push(tombstone),
            }
        }
        builds.sort_by(|a, b| (&b.submitted_at, &b.version).cmp(&(&a.submitted_at, &a.version)));
        bound(&mut builds);
        tombstones.sort_by(|a, b| (&b.at, &b.version).cmp(&(&a.at, &a.version)));
        tombstones.truncate(TOMBSTONES_MAX);
        Index { schema_version: SCHEMA_VERSION, revision, builds, tombstones }
    }
}

impl Fact {
    fn of(build: &Build, ending: Option<&Ending>) -> Self {
        if let Some(reduced) = build.kept.reduced.as_ref().filter(|_| build.is_deleted()) {
            return Self::Deleted(Tombstone {
                version: build.id().version.clone(),
                channel: build.channel().clone(),
                at: rfc3339(reduced.at),
                why: reduced.why.clone(),
            });
        }
        let ending = ending.filter(|ending| ending.build == *build.id()).map(|ending| ending.verdict);
        match build.state {
            BuildState::Ended { verdict, .. } => Self::Ended(Entry::of(build, verdict)),
            _ => ending.map_or_else(
                || Self::Open(Entry::of(build, Verdict::Cancelled)),
                |verdict| Self::Ended(Entry::of(build, verdict)),
            ),
        }
    }
}

/// Drops the oldest of what is too much.
fn bound(builds: &mut Vec<Entry>) {
    let (mut counts, mut succeeded, mut all) = (BTreeMap::<ChannelName, usize>::new(), BTreeSet::new(), 0);
    builds.retain(|entry| {
        let count = counts.entry(entry.channel.clone()).or_default();
        *count += 1;
        all += 1;
        let is_newest_success = entry.is_whole_success() && succeeded.insert(entry.channel.clone());
        is_newest_success || (*count <= CHANNEL_MAX && all <= PIPELINE_MAX)
    });
}

impl Entry {
    fn of(build: &Build, verdict: Verdict) -> Self {
        Self {
            version: build.id().version.clone(),
            channel: build.channel().clone(),
            verdict,
            submitted_at: rfc3339(build.submitted_at),
            platforms: build.plan.platforms.clone(),
            tags: build.kept.tags.clone(),
            keep: build.keep(),
        }
    }

    /// Whether it can be the latest: whoever follows that fetches it, or builds on it.
    fn is_whole_success(&self) -> bool {
        self.verdict == Verdict::Succeeded && self.keep == Keep::All
    }
}

impl Index {
    /// A list as it stands. One that cannot be read is made anew: it is derived, the farm and the manifests are the truth.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Whether it lists nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.builds.is_empty() && self.tombstones.is_empty()
    }

    /// Every channel that it speaks of.
    pub(crate) fn channels(&self) -> impl Iterator<Item = &ChannelName> {
        self.builds.iter().map(|entry| &entry.channel).chain(self.tombstones.iter().map(|grave| &grave.channel))
    }

    /// The same of one channel.
    pub(crate) fn of_channel(&self, channel: &ChannelName) -> Self {
        let builds = self.builds.iter().filter(|entry| entry.channel == *channel).cloned().collect();
        let tombstones = self.tombstones.iter().filter(|grave| grave.channel == *channel).cloned().collect();
        Self { schema_version: SCHEMA_VERSION, revision: 0, builds, tombstones }
    }

    /// Its newest success of which everything is kept.
    pub(crate) fn latest(&self) -> Option<Latest> {
        let entry = self.builds.iter().find(|entry| entry.is_whole_success())?;
        Some(Latest {
            schema_version: SCHEMA_VERSION,
            version: entry.version.clone(),
            channel: entry.channel.clone(),
            submitted_at: entry.submitted_at.clone(),
        })
    }

    /// The file that takes the place of `old`; the same bytes, if it says nothing new.
    pub(crate) fn file(mut self, old: Option<&[u8]>) -> Bytes {
        self.revision = old.and_then(Self::read).map_or(0, |old| old.revision);
        let same = json(&self);
        if old == Some(&same[..]) {
            return same;
        }
        // What stands there may say anything.
        self.revision = self.revision.saturating_add(1);
        json(&self)
    }
}

impl Latest {
    /// As it is written.
    pub(crate) fn file(&self) -> Bytes {
        json(self)
    }
}

#[cfg(test)]
mod tests;
