//! How a pipeline file names another build: the exact one, or whichever is the newest.

use crate::id::{BadId, BuildId, ChannelName, JobName, PipelineName, StepName, Version};
use crate::path::RelPath;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// A build, written `PIPELINE/VERSION`, `PIPELINE/TAG`, `PIPELINE` or `PIPELINE:CHANNEL`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildRef {
    /// Whose build.
    pub pipeline: PipelineName,
    /// Which of them.
    pub which: Which,
}

/// Which of a pipeline's builds is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Which {
    /// That of this version, or with this tag: a tag is never the version of a build.
    Named(Version),
    /// The newest success.
    Newest,
    /// The newest success of a channel.
    NewestOf(ChannelName),
}

impl FromStr for BuildRef {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |_| BadId {
            text: text.to_owned(),
            kind: "build",
            expected: "PIPELINE/VERSION, PIPELINE/TAG, PIPELINE for its newest success, or PIPELINE:CHANNEL for that of a channel",
        };
        let (pipeline, which) = match (text.split_once('/'), text.split_once(':')) {
            (Some((pipeline, name)), _) => (pipeline, Which::Named(name.parse().map_err(bad)?)),
            (None, Some((pipeline, channel))) => (pipeline, Which::NewestOf(channel.parse().map_err(bad)?)),
            (None, None) => (text, Which::Newest),
        };
        Ok(Self { pipeline: pipeline.parse().map_err(bad)?, which })
    }
}

impl fmt::Display for BuildRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Named(name) => write!(f, "{}/{name}", self.pipeline),
            Which::Newest => write!(f, "{}", self.pipeline),
            Which::NewestOf(channel) => write!(f, "{}:{channel}", self.pipeline),
        }
    }
}

/// The build that a [`BuildRef`] has turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedBuild {
    /// Which.
    pub build: BuildId,
    /// What the jobs of the steps in question have left.
    pub jobs: BTreeMap<JobName, UsedJob>,
}

/// What a job of another build has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsedJob {
    /// An image.
    pub image: bool,
    /// Its artifacts.
    pub artifacts: Vec<RelPath>,
}

/// What became of the builds that a request names: which they are, or why they cannot be used.
pub type UsedBuilds = BTreeMap<BuildRef, Result<UsedBuild, String>>;

/// The builds that a request names, and the steps of each that it wants something of.
pub type WantedBuilds = BTreeMap<BuildRef, BTreeSet<StepName>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_back_what_they_write() {
        for text in ["sdk", "sdk/4799.0.0+x", "sdk/golden", "sdk:nightly"] {
            assert_eq!(text.parse::<BuildRef>().unwrap().to_string(), text);
        }
        for bad in ["", "/1", "sdk/", "sdk:", ":beta", "SDK", "sdk/1/2", "sdk:a:b", "sdk:a/1", "a b"] {
            let error = bad.parse::<BuildRef>().unwrap_err();
            assert_eq!((error.text.as_str(), error.kind), (bad, "build"));
        }
    }
}
