//! The rules, as they stand in the controller's settings.
//!
//! ```toml
//! [[retention]]
//! pipelines = ["flatcar"]
//! channels = ["nightly"]
//! keep_last = 50
//! max_age = "60d"
//! old = "published"
//! old_max_age = "1y"
//! ```
//! The first rule that names a build's pipeline, channel and tier is the one that holds; where none does, the defaults.

use super::Keep;
use super::decide::strangers;
use crate::id::{BuildId, ChannelName, PipelineName, is_match, is_pattern};
use bytesize::ByteSize;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time as people write it: `90s`, `12h`, `30d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    /// In seconds.
    pub secs: u64,
}

impl Age {
    /// So many days.
    pub const fn days(days: u64) -> Self {
        Self { secs: days * 24 * 3600 }
    }

    /// In milliseconds.
    pub fn millis(self) -> u64 {
        self.secs.saturating_mul(1000)
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&humantime::format_duration(Duration::from_secs(self.secs)).to_string())
    }
}

impl Serialize for Age {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match humantime::parse_duration(&text) {
            Ok(duration) if duration.subsec_nanos() == 0 => Ok(Self { secs: duration.as_secs() }),
            _ => Err(D::Error::custom(format!(
                "`{text}` is not a length of time with its unit, such as `90s`, `12h` or `30d`"
            ))),
        }
    }
}

/// How many releases and promoted builds of a channel are kept whatever else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Releases {
    /// All of them, for ever.
    #[default]
    All,
    /// So many, the newest; the others count like every build of their channel.
    Last(u32),
}

impl Serialize for Releases {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Last(count) => serializer.serialize_u32(*count),
        }
    }
}

impl<'de> Deserialize<'de> for Releases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Count(u32),
            Word(String),
        }
        let bad = || D::Error::custom("expected \"all\", or how many, such as 10");
        match Written::deserialize(deserializer).map_err(|_| bad())? {
            Written::Count(count) => Ok(Self::Last(count)),
            Written::Word(word) if word == "all" => Ok(Self::All),
            Written::Word(_) => Err(bad()),
        }
    }
}

/// One rule: for builds of these pipelines and channels. Builds of one pipeline, channel and tier are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Names of pipelines; with a `*` at the end, all that begin so. Default: all.
    pub pipelines: Vec<String>,
    /// Names of channels, in the same form. Default: all.
    pub channels: Vec<String>,
    /// Only untrusted builds, or only others. Default: both, each counted on their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untrusted: Option<bool>,
    /// How many successes are kept. Default: 50.
    pub keep_last: u32,
    /// How many builds that failed or were cancelled are kept. Default: 20.
    pub keep_failed: u32,
    /// How long those are kept at most. Default: 14 days.
    pub failed_max_age: Age,
    /// How many releases (builds of priority `release`) and promoted builds are kept besides: `"all"`, the default, or a number.
    pub keep_releases: Releases,
    /// Nothing that ended later than that ago is touched. Default: 0s.
    pub min_age: Age,
    /// What ended longer ago is old, whatever `keep_last` says. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Age>,
    /// When the builds of a pipeline and channel have more bytes than that, the oldest go. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Until there are no more than so many. Default: nine tenths of `max_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_bytes: Option<ByteSize>,
    /// What is kept of an old build: `"nothing"`, the default, `"manifest"` (and logs) or `"published"` (those, and the published files).
    pub old: Keep,
    /// Of how many old builds, the newest. Default: of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_last: Option<u32>,
    /// How long after their end. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_max_age: Option<Age>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            pipelines: vec!["*".to_owned()],
            channels: vec!["*".to_owned()],
            untrusted: None,
            keep_last: 50,
            keep_failed: 20,
            failed_max_age: Age::days(14),
            keep_releases: Releases::All,
            min_age: Age::default(),
            max_age: None,
            max_bytes: None,
            low_bytes: None,
            old: Keep::Nothing,
            old_last: None,
            old_max_age: None,
        }
    }
}

/// A rule, or the whole, says what cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// The low mark is above the high one.
    #[error("low_bytes ({low}) must not be more than max_bytes ({high}), and has no meaning without it")]
    Watermarks {
        /// As given.
        low: ByteSize,
        /// As given, 0 if it was not.
        high: ByteSize,
    },
    /// Nothing would be kept.
    #[error("max_bytes = 0 leaves room for nothing; leave it out for no limit")]
    NoRoom,
    /// An old build is one of which something has gone.
    #[error(
        "old = \"all\" would keep old builds whole; say \"published\", \"manifest\" or \"nothing\", or a larger keep_last"
    )]
    OldIsWhole,
    /// A rule for nothing.
    #[error("`{what} = []` names none; leave it out for all")]
    Empty {
        /// Pipelines or channels.
        what: &'static str,
    },
    /// No build can have such a name.
    #[error(
        "`{pattern}` in `{what}` can match none: it is neither a name nor the beginning of one with a `*` behind it"
    )]
    Pattern {
        /// Pipelines or channels.
        what: &'static str,
        /// As given.
        pattern: String,
    },
    /// Untrusted builds are in no other channel.
    #[error("`untrusted = true` is about builds of channel `untrusted`, and `channels` does not name that")]
    NotUntrusted,
    /// Another rule takes all that it could be about.
    #[error("it is never asked: the {}. [[retention]] is about all builds, and comes first", earlier + 1)]
    Never {
        /// From 0.
        earlier: usize,
    },
    /// It has no meaning without the other.
    #[error("`{0}` is about what is left of old builds; with `old = \"nothing\"`, the default, nothing is")]
    NoOld(&'static str),
    /// Which of several it is.
    #[error("the {}. [[retention]]", place + 1)]
    At {
        /// From 0.
        place: usize,
        /// What is wrong with it.
        #[source]
        source: Box<BadRule>,
    },
}

impl Rule {
    /// Whether it is about these builds.
    pub fn is_for(&self, build: &BuildId, channel: &ChannelName, untrusted: bool) -> bool {
        let named = |patterns: &[String], name: &str| patterns.iter().any(|pattern| is_match(pattern, name));
        named(&self.pipelines, build.pipeline.as_str())
            && named(&self.channels, channel.as_str())
            && self.untrusted.is_none_or(|only| only == untrusted)
    }

    /// From how many bytes on, and down to how many.
    pub fn marks(&self) -> Option<(ByteSize, ByteSize)> {
        marks(self.max_bytes, self.low_bytes)
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`BadRule`].
    pub fn check(&self) -> Result<(), BadRule> {
        check_patterns::<PipelineName>("pipelines", &self.pipelines)?;
        check_patterns::<ChannelName>("channels", &self.channels)?;
        if self.untrusted == Some(true) && !self.channels.iter().any(|pattern| is_match(pattern, strangers().as_str()))
        {
            return Err(BadRule::NotUntrusted);
        }
        match self.old {
            Keep::All => return Err(BadRule::OldIsWhole),
            Keep::Nothing if self.old_last.is_some() => return Err(BadRule::NoOld("old_last")),
            Keep::Nothing if self.old_max_age.is_some() => return Err(BadRule::NoOld("old_max_age")),
            _ => {}
        }
        check_marks(self.max_bytes, self.low_bytes)
    }
}

/// Each is a name, or the beginning of one with a `*` behind it; a mistake here would leave builds to another rule.
fn check_patterns<Name: FromStr>(what: &'static str, patterns: &[String]) -> Result<(), BadRule> {
    if patterns.is_empty() {
        return Err(BadRule::Empty { what });
    }
    match patterns.iter().find(|pattern| !is_pattern::<Name>(pattern)) {
        None => Ok(()),
        Some(pattern) => Err(BadRule::Pattern { what, pattern: pattern.clone() }),
    }
}

fn is_all(patterns: &[String]) -> bool {
    patterns.iter().any(|pattern| pattern == "*")
}

fn marks(max: Option<ByteSize>, low: Option<ByteSize>) -> Option<(ByteSize, ByteSize)> {
    max.map(|max| (max, low.unwrap_or(ByteSize(max.as_u64() / 10 * 9))))
}

fn check_marks(max: Option<ByteSize>, low: Option<ByteSize>) -> Result<(), BadRule> {
    if max == Some(ByteSize(0)) {
        return Err(BadRule::NoRoom);
    }
    match low {
        Some(low) if max.is_none_or(|max| low > max) => Err(BadRule::Watermarks { low, high: max.unwrap_or_default() }),
        _ => Ok(()),
    }
}

/// What a published file takes in the cache besides its blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    /// It is another name of the blob, and a copy only of one that is stored in another form.
    #[default]
    OfEncoded,
    /// It is a copy.
    Always,
}

/// Everything that was said about retention.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The first that fits holds.
    pub rules: Vec<Rule>,
    /// When all builds together have more bytes than that, the oldest go.
    pub max_bytes: Option<ByteSize>,
    /// Until there are no more than so many.
    pub low_bytes: Option<ByteSize>,
    /// What the cache does to publish a file; it counts.
    pub copies: Copies,
}

impl Policy {
    /// From how many bytes on, and down to how many, for the whole cache.
    pub fn marks(&self) -> Option<(ByteSize, ByteSize)> {
        marks(self.max_bytes, self.low_bytes)
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// [`BadRule`].
    pub fn check(&self) -> Result<(), BadRule> {
        for (place, rule) in self.rules.iter().enumerate() {
            rule.check().map_err(|error| BadRule::At { place, source: Box::new(error) })?;
        }
        let all = |rule: &Rule| {
            rule.untrusted.is_none() && [&rule.pipelines, &rule.channels].iter().all(|names| is_all(names))
        };
        if let Some(earlier) = self.rules.iter().position(all).filter(|place| place + 1 < self.rules.len()) {
            return Err(BadRule::At { place: earlier + 1, source: Box::new(BadRule::Never { earlier }) });
        }
        check_marks(self.max_bytes, self.low_bytes)
    }
}
