//! The reasons for a decision, as people read them.

use super::policy::Age;
use crate::id::{BuildId, ChannelName, PinName, TagName};
use crate::platform::Platform;
use bytesize::ByteSize;
use std::fmt;

/// Why a build is kept, or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has not ended.
    Running,
    /// Somebody pinned it.
    Pinned {
        /// The pin.
        name: PinName,
        /// What its owner said.
        why: String,
    },
    /// It has a tag.
    Tagged(TagName),
    /// It was put into a channel by hand.
    Promoted(ChannelName),
    /// It was submitted as a release.
    Release,
    /// A build that is kept was made from it.
    UsedBy(BuildId),
    /// The newest success of its channel for a platform.
    LastSuccess {
        /// The channel.
        channel: ChannelName,
        /// The platform.
        platform: Platform,
    },
    /// The cache has its manifest, and the farm does not know it.
    Unknown,
    /// It is too young for anything to happen to it.
    Young(Age),
    /// One of the newest of its channel.
    Recent {
        /// How many of them are kept.
        of: u32,
        /// Whether failures are counted, and not successes.
        failed: bool,
    },
    /// What is left of it is still kept.
    Old,
    /// It is not one of the newest of its channel any more.
    Beyond {
        /// How many of them are kept.
        of: u32,
        /// Whether failures are counted, and not successes.
        failed: bool,
    },
    /// It has been there for too long.
    TooOld(Age),
    /// Its channel holds too much.
    ChannelFull {
        /// Down to here.
        low: ByteSize,
    },
    /// The cache holds too much.
    CacheFull {
        /// Down to here.
        low: ByteSize,
    },
    /// The farm's state is a backup of before it was deleted.
    Lost,
    /// Somebody deleted it.
    Deleted {
        /// Who.
        by: String,
        /// What was said.
        why: String,
    },
}

impl Why {
    /// Whether the rules cannot overrule it.
    pub fn is_binding(&self) -> bool {
        matches!(
            self,
            Self::Running
                | Self::Pinned { .. }
                | Self::Tagged(_)
                | Self::Promoted(_)
                | Self::Release
                | Self::UsedBy(_)
                | Self::LastSuccess { .. }
                | Self::Unknown
        )
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |failed: &bool| if *failed { "failures" } else { "successes" };
        match self {
            Self::Running => f.write_str("it has not ended"),
            Self::Pinned { name, why } if why.is_empty() => write!(f, "pinned by {name}"),
            Self::Pinned { name, why } => write!(f, "pinned by {name}: {why}"),
            Self::Tagged(tag) => write!(f, "tagged {tag}"),
            Self::Promoted(channel) => write!(f, "promoted to {channel}"),
            Self::Release => f.write_str("a release"),
            Self::UsedBy(build) => write!(f, "{build} was built from it"),
            Self::LastSuccess { channel, platform } => write!(f, "last success of {channel} for {platform}"),
            Self::Unknown => f.write_str("the journal does not know it, and its manifest is in the cache"),
            Self::Young(age) => write!(f, "younger than {age}"),
            Self::Recent { of, failed } => write!(f, "one of the last {of} {} of its channel", kind(failed)),
            Self::Old => f.write_str("old, and already reduced"),
            Self::Beyond { of, failed } => write!(f, "not one of the last {of} {} of its channel", kind(failed)),
            Self::TooOld(age) => write!(f, "older than {age}"),
            Self::ChannelFull { low } => write!(f, "its channel is over its limit, and goes down to {low}"),
            Self::CacheFull { low } => write!(f, "the cache is over its limit, and goes down to {low}"),
            Self::Lost => {
                f.write_str("not in the cache any more: deleted since the backup from which the journal was restored")
            }
            Self::Deleted { by, why } if why.is_empty() => write!(f, "deleted by {by}"),
            Self::Deleted { by, why } => write!(f, "deleted by {by}: {why}"),
        }
    }
}
