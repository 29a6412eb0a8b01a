//! A build's frozen plan: the jobs of one run, in an order in which they could run.

use crate::id::{BuildId, ChannelName, GroupName, JobName};
use crate::job::JobSpec;
use crate::platform::Platform;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One run of a pipeline, with nothing left to decide but where and when.
///
/// **Invariant:** `jobs` is in topological order, and every need names a job of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The build that this is the plan of.
    pub build: BuildId,
    /// Every parameter with its value.
    pub params: BTreeMap<String, String>,
    /// The platforms of this build.
    pub platforms: Vec<Platform>,
    /// Nobody has looked at what it builds: nothing that it leaves is read by a release. See [`crate::tier`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// The channel that it is built for; `None` for the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelName>,
    /// A build of the same pipeline, tier and group cancels this one, if it comes while this one still waits for its first worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersede: Option<GroupName>,
    /// Other builds that its jobs take images and artifacts from, sorted: retention keeps them as long as this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<BuildId>,
    /// Dependencies first.
    pub jobs: Vec<JobSpec>,
}

impl Plan {
    /// The channel that it is built for.
    pub fn channel(&self) -> &ChannelName {
        self.channel.as_ref().unwrap_or_else(|| ChannelName::usual())
    }

    /// The job of that name.
    pub fn job(&self, name: &JobName) -> Option<&JobSpec> {
        self.jobs.iter().find(|job| job.name == *name)
    }
}
