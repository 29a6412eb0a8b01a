//! What was said about keeping a build, and what was left of it so far.

use crate::build::{Build, BuildState, Verdict};
use railyard_common::blob::Blob;
use railyard_common::id::{BuildId, ChannelName, PinName, TagName};
use railyard_common::path::RelPath;
use railyard_common::retention::{Keep, Pin, Policy};
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Pins, tags, promotions and reductions of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Reasons to keep it, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pins: BTreeMap<PinName, Pin>,
    /// Names that people gave it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<TagName>,
    /// Channels that it was put into, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub promotions: Vec<Promotion>,
    /// The next of these, while its files are being published or taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoting: Option<Promoting>,
    /// What is left of it, if not everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduced: Option<Reduced>,
}

/// A build was put into a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// When.
    pub at: Millis,
    /// By whom.
    pub by: String,
    /// The channel.
    pub channel: ChannelName,
    /// What was published for that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub paths: BTreeMap<RelPath, Blob>,
}

/// A promotion of which files are being published, all of them or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoting {
    /// What will be, with the time at which it was begun.
    pub promotion: Promotion,
    /// Those of its paths at which there was nothing.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fresh: BTreeSet<RelPath>,
    /// Why it will not be. What was published for it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Only a part of a build is kept from here on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reduced {
    /// When. What is not kept goes a grace later.
    pub at: Millis,
    /// What is kept.
    pub keep: Keep,
    /// What was kept before.
    pub before: Keep,
    /// By whom.
    pub by: String,
    /// Why.
    pub why: String,
    /// What went with it is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub swept: bool,
}

/// A build that is to be reduced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reduction {
    /// Which.
    pub build: BuildId,
    /// To what.
    pub keep: Keep,
    /// Why, for people.
    pub why: String,
}

/// Who wants builds reduced, and how much that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    /// These rules. They are asked once more: since the plan was made, the build that another one had to make room for may be gone.
    Rules(Arc<Policy>),
    /// A person, who may not know what else needs the build.
    Asked,
    /// A person who knows.
    Forced,
}

/// Whose pins somebody may replace and take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Only those that they set.
    Own,
    /// All.
    Anybodys,
}

impl Whose {
    /// Whether a pin is among them, for `by`.
    pub(crate) fn holds(self, pin: &Pin, by: &str) -> bool {
        self == Self::Anybodys || pin.by == by
    }
}

impl Kept {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Build {
    /// The channel that it is in now.
    pub fn channel(&self) -> &ChannelName {
        self.kept.promotions.last().map_or_else(|| self.plan.channel(), |last| &last.channel)
    }

    /// What is kept of it.
    pub fn keep(&self) -> Keep {
        self.kept.reduced.as_ref().map_or(Keep::All, |reduced| reduced.keep)
    }

    /// Whether nobody is to find it any more.
    pub fn is_deleted(&self) -> bool {
        self.keep() == Keep::Nothing
    }

    /// What must still be there: for `grace_millis` after it was reduced, what was kept before.
    pub fn keep_for_now(&self, now: Millis, grace_millis: u64) -> Keep {
        match &self.kept.reduced {
            Some(reduced) if now.since(reduced.at) < grace_millis => reduced.before,
            Some(reduced) => reduced.keep,
            None => Keep::All,
        }
    }

    /// What is being published for a promotion.
    pub fn on_its_way(&self) -> Option<&Promotion> {
        self.kept.promoting.as_ref().filter(|one| one.failed.is_none()).map(|one| &one.promotion)
    }

    /// Whether it has published what its outputs say, or still may: one that has failed has not, and no untrusted one does.
    pub fn publishes(&self) -> bool {
        !self.is_untrusted() && (self.is_success() || !self.is_ended())
    }

    /// Whether what it has published lies there still.
    pub fn is_published(&self) -> bool {
        self.is_success() && !self.is_untrusted() && self.keep() >= Keep::Published
    }

    /// Whether it ended with every job done and its paths published.
    pub fn is_success(&self) -> bool {
        matches!(self.state, BuildState::Ended { verdict: Verdict::Succeeded, .. })
    }
}
