//! `builds.json` and `latest.json`: what they say of a pipeline's builds, and of a channel's.
//!
//! **Invariant:** the list of a whole pipeline follows from the farm's state and, for builds that the farm does not know, from the
//! list as it stands. Everything else follows from that list alone.

use crate::document::{SCHEMA_VERSION, json, rfc3339};
use bytes::Bytes;
use railyard_common::id::{BuildId, ChannelName, PipelineName, TagName, Version};
use railyard_common::platform::Platform;
use railyard_common::retention::Keep;
use railyard_common::time::Millis;
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
    /// Its place in the order of submission, which tells it from a later build of that version. Lists of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
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

/// What is true of a build and is not in the farm's state.
#[derive(Clone, Debug)]
pub enum News {
    /// It is written out and about to end.
    Ending {
        /// Which.
        build: BuildId,
        /// How it comes out.
        verdict: Verdict,
    },
    /// The farm does not know it, and somebody has deleted it from the cache.
    Deleted {
        /// Which.
        build: BuildId,
        /// The channel in which it was.
        channel: ChannelName,
        /// When.
        at: Millis,
        /// Why, or by whom.
        why: String,
    },
}

/// What the farm says of each build of a pipeline that may be listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts(BTreeMap<Version, Known>);

#[derive(Clone, Debug)]
struct Known {
    /// Its place in the order of submission. The clock does not tell that: it is put back now and then.
    number: u64,
    fact: Fact,
}

#[derive(Clone, Debug)]
enum Fact {
    /// It has ended.
    Ended(Entry),
    /// It has not, or not again: how it came out is what was said of it before, if anything was.
    Open(Entry),
    Deleted(Tombstone),
    /// It is deleted, and the farm does not know it. Its channel is the one in which it is listed, if it is.
    Denied(Tombstone),
}

impl Facts {
    /// What `farm` knows. No untrusted build is ever listed.
    pub(crate) fn of(farm: &Farm, pipeline: &PipelineName, news: Option<&News>) -> Self {
        let builds = farm.builds().filter(|build| build.id().pipeline == *pipeline && !build.is_untrusted());
        let known = |build: &Build| Known { number: build.first_job.0, fact: Fact::of(build, news) };
        let mut facts: BTreeMap<_, _> = builds.map(|build| (build.id().version.clone(), known(build))).collect();
        if let Some(News::Deleted { build, channel, at, why }) = news {
            let (version, channel, at, why) = (build.version.clone(), channel.clone(), rfc3339(*at), why.clone());
            // Whatever is submitted from now on comes after it.
            let number = farm.next_job().0.saturating_sub(1);
            let tombstone = Tombstone { version: version.clone(), channel, number: Some(number), at, why };
            facts.entry(version).or_insert(Known { number, fact: Fact::Denied(tombstone) });
        }
        Self(facts)
    }

    /// The list, where `old` is what stands: what the farm does not know it cannot deny. Its journal may be an old backup.
    pub(crate) fn over(self, old: Option<Index>) -> Index {
        let Self(mut facts) = self;
        let (revision, old, graves) =
            old.map_or_else(Default::default, |old| (old.revision, old.builds, old.tombstones));
        let mut tombstones = Vec::new();
        for grave in graves {
            match facts.get_mut(&grave.version).map(|known| (known.number, &mut known.fact)) {
                Some((_, Fact::Deleted(_))) => continue,
                // It is deleted once more, for the first time was cut off.
                Some((_, Fact::Denied(tombstone))) => {
                    tombstone.channel = grave.channel;
                    continue;
                }
                Some((number, Fact::Ended(entry))) if grave.is_before(number, entry) => continue,
                // The farm has forgotten that it was deleted.
                Some((_, Fact::Ended(_))) => drop(facts.remove(&grave.version)),
                Some((_, Fact::Open(_))) | None => {}
            }
            tombstones.push(grave);
        }
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for entry in old.into_iter().filter(|entry| tombstones.iter().all(|grave| grave.version != entry.version)) {
            match facts.get_mut(&entry.version).map(|known| (known.number, &mut known.fact)) {
                Some((_, Fact::Denied(tombstone))) => tombstone.channel = entry.channel,
                Some((number, Fact::Open(now))) => own.push((number, Entry { verdict: entry.verdict, ..now.clone() })),
                Some((_, Fact::Ended(_) | Fact::Deleted(_))) => {}
                None => others.push(entry),
            }
        }
        for Known { number, fact } in facts.into_values() {
            match fact {
                Fact::Ended(entry) => own.push((number, entry)),
                Fact::Open(_) => {}
                Fact::Deleted(tombstone) | Fact::Denied(tombstone) => tombstones.push(tombstone),
            }
        }
        let mut builds = newest_first(own, others);
        bound(&mut builds);
        tombstones.sort_by(|a, b| (&b.at, &b.version).cmp(&(&a.at, &a.version)));
        tombstones.truncate(TOMBSTONES_MAX);
        Index { schema_version: SCHEMA_VERSION, revision, builds, tombstones }
    }
}

impl Fact {
    fn of(build: &Build, news: Option<&News>) -> Self {
        if let Some(reduced) = build.kept.reduced.as_ref().filter(|_| build.is_deleted()) {
            return Self::Deleted(Tombstone {
                version: build.id().version.clone(),
                channel: build.channel().clone(),
                number: Some(build.first_job.0),
                at: rfc3339(reduced.at),
                why: if reduced.why.is_empty() { format!("deleted by {}", reduced.by) } else { reduced.why.clone() },
            });
        }
        let ending = match news {
            Some(News::Ending { build: ending, verdict }) if ending == build.id() => Some(*verdict),
            _ => None,
        };
        match build.state {
            BuildState::Ended { verdict, .. } => Self::Ended(Entry::of(build, verdict)),
            _ => ending.map_or_else(
                || Self::Open(Entry::of(build, Verdict::Cancelled)),
                |verdict| Self::Ended(Entry::of(build, verdict)),
            ),
        }
    }
}

impl Tombstone {
    /// Whether a build of its version is another one, which was submitted later.
    fn is_before(&self, number: u64, entry: &Entry) -> bool {
        match self.number {
            Some(own) if own == number => false,
            Some(own) if own < number => true,
            // The numbers of a farm that is made anew over an old cache begin anew.
            Some(_) | None => entry.submitted_at > self.at,
        }
    }
}

/// The builds that the farm knows by their numbers, and the `others` as they stood in the list. Between the two only the clock can tell.
fn newest_first(mut own: Vec<(u64, Entry)>, others: Vec<Entry>) -> Vec<Entry> {
    own.sort_by_key(|(number, _)| *number);
    let mut own = dated(own.into_iter().map(|(_, entry)| entry)).peekable();
    let mut others = dated(others.into_iter().rev()).peekable();
    let oldest_first = std::iter::from_fn(|| {
        let is_own = match (own.peek(), others.peek()) {
            (Some((at, own)), Some((since, other))) => (at, &own.version) < (since, &other.version),
            (own, _) => own.is_some(),
        };
        let next = if is_own { own.next() } else { others.next() };
        next.map(|(_, entry)| entry)
    });
    let mut builds: Vec<Entry> = oldest_first.collect();
    builds.reverse();
    builds
}

/// When each of these was submitted, which come in that order: none before the one before it, though the clock may have said so.
fn dated(entries: impl Iterator<Item = Entry>) -> impl Iterator<Item = (String, Entry)> {
    entries.scan(String::new(), |at, entry| {
        if *at < entry.submitted_at {
            at.clone_from(&entry.submitted_at);
        }
        Some((at.clone(), entry))
    })
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
