//! A job with nothing left to substitute: what a worker needs to know, and no more.

use crate::by_channel::ByChannel;
use crate::compress::{ArtifactMatcher, Compress};
use crate::id::{BuildId, ChannelName, GroupName, JobName, PoolName, SecretName};
use crate::path::{BadPath, Glob, RelPath};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a worker has, what a job reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capacity {
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Scratch space.
    pub disk_bytes: u64,
    /// Jobs at a time.
    pub slots: u32,
}

impl Capacity {
    /// Whether `other` fits into this.
    pub fn fits(&self, other: &Self) -> bool {
        other.cpu_millis <= self.cpu_millis
            && other.memory_bytes <= self.memory_bytes
            && other.disk_bytes <= self.disk_bytes
            && other.slots <= self.slots
    }

    /// This and `other` together.
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_add(other.disk_bytes),
            slots: self.slots.saturating_add(other.slots),
        }
    }

    /// This without `other`, not below zero.
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            disk_bytes: self.disk_bytes.saturating_sub(other.disk_bytes),
            slots: self.slots.saturating_sub(other.slots),
        }
    }
}

/// Where a job's root file system comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// A registry reference; a local image of that name is used if there is one.
    Registry(String),
    /// The image that an earlier job committed.
    Job(JobName),
    /// The image that a job of another build committed.
    Build {
        /// The build.
        build: BuildId,
        /// The job.
        job: JobName,
    },
    /// A root tarball (plain, gzip or zstd) that an earlier job left.
    Import {
        /// The build, if it is another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        build: Option<BuildId>,
        /// The job.
        job: JobName,
        /// The artifact: exactly one must match.
        artifact: Glob,
    },
}

/// Artifacts of an earlier job, mounted read-only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputSpec {
    /// The build, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildId>,
    /// The job.
    pub job: JobName,
    /// Which of its artifacts; each glob must match at least one.
    pub artifacts: Vec<Glob>,
    /// Directory in the container, absolute; an artifact appears below it at its own path.
    pub mount_path: String,
}

/// Files that a job leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputSpec {
    /// Relative to the work directory.
    pub glob: Glob,
    /// Published directory below the cache root; the file's own name is appended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<RelPath>,
    /// The same with the channel left open, if that is a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_by_channel: Option<ByChannel>,
    /// It may match nothing.
    #[serde(default)]
    pub optional: bool,
    /// How the files are compressed.
    #[serde(default, skip_serializing_if = "Compress::is_auto")]
    pub compress: Compress,
}

impl OutputSpec {
    /// Tells its artifacts by their paths.
    pub fn matcher(&self) -> ArtifactMatcher {
        ArtifactMatcher::new(&self.glob, self.compress)
    }
}

/// A published directory, or why there is none of that name.
type Directory<'a> = Result<Cow<'a, RelPath>, BadPath>;

/// Where the artifacts of a step are published. The worker and the controller ask the same question, so they ask it here.
#[derive(Debug)]
pub struct Placement<'a> {
    outputs: Vec<Placed<'a>>,
}

/// An output, and where it publishes.
#[derive(Debug)]
struct Placed<'a> {
    output: &'a OutputSpec,
    matcher: ArtifactMatcher,
    dir: Option<Directory<'a>>,
}

/// Who leaves an artifact of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    /// Outputs that compress a file, and append to its name.
    Compressing,
    /// Outputs that leave a file of that very name.
    AsIs,
}

impl<'a> Placement<'a> {
    /// For a step with these outputs.
    pub fn new(outputs: &'a [OutputSpec]) -> Self {
        Self::with(outputs, |output| output.publish.as_ref().map(|dir| Ok(Cow::Borrowed(dir))))
    }

    /// The same in another channel than that of the build.
    pub fn in_channel(outputs: &'a [OutputSpec], channel: &ChannelName) -> Self {
        Self::with(outputs, |output| match &output.publish_by_channel {
            Some(by_channel) => Some(by_channel.of(channel).map(Cow::Owned)),
            None => output.publish.as_ref().map(|dir| Ok(Cow::Borrowed(dir))),
        })
    }

    fn with(outputs: &'a [OutputSpec], dir: impl Fn(&'a OutputSpec) -> Option<Directory<'a>>) -> Self {
        let placed = |output| Placed { output, matcher: output.matcher(), dir: dir(output) };
        Self { outputs: outputs.iter().map(placed).collect() }
    }

    /// Where the artifact is published, if it is: where the first of its outputs says that publishes it. `None` if it is
    /// an artifact of none of them. If an output makes a file of that name by compressing another one, those that would leave
    /// such a file as it is have no say.
    ///
    /// # Errors
    /// The published path is too long.
    pub fn of(&self, artifact: &RelPath) -> Option<Result<Option<RelPath>, BadPath>> {
        self.said_by(Maker::Compressing, artifact).or_else(|| self.said_by(Maker::AsIs, artifact))
    }

    /// The output that gives this name to what it compresses, if a file that has the name already would be published
    /// elsewhere: who sees only the artifact could not tell which it is.
    pub fn rival(&self, artifact: &RelPath) -> Option<&'a OutputSpec> {
        let rival = self.makers(Maker::Compressing, artifact).next()?;
        let as_is = self.said_by(Maker::AsIs, artifact)?;
        (self.said_by(Maker::Compressing, artifact)? != as_is).then_some(rival.output)
    }

    fn makers(&self, maker: Maker, artifact: &RelPath) -> impl Iterator<Item = &Placed<'a>> {
        let makes = move |placed: &&Placed<'a>| {
            let its = if placed.output.compress.suffix().is_empty() { Maker::AsIs } else { Maker::Compressing };
            its == maker && placed.matcher.is_match(artifact.as_str())
        };
        self.outputs.iter().filter(makes)
    }

    fn said_by(&self, maker: Maker, artifact: &RelPath) -> Option<Result<Option<RelPath>, BadPath>> {
        let mut its = self.makers(maker, artifact);
        let first = its.next()?;
        let dir = first.dir.as_ref().or_else(|| its.find_map(|placed| placed.dir.as_ref()));
        let place = |dir: &Directory<'_>| match dir {
            Ok(dir) => dir.join(artifact.file_name()),
            Err(error) => Err(error.clone()),
        };
        Some(dir.map(place).transpose())
    }
}

/// A host device for the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute, below `/dev`.
    pub path: String,
    /// Left out where the host lacks it.
    #[serde(default)]
    pub optional: bool,
}

/// A directory or file of the host in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPath {
    /// Absolute, on the host.
    pub source: String,
    /// Absolute, in the container.
    pub target: String,
    /// The step may write there.
    #[serde(default)]
    pub writable: bool,
}

/// A secret that a step gets: as the file `/run/secrets/NAME`, and as a variable if it asks for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Under which name the operator stored it. Its value is in no plan and no order.
    pub name: SecretName,
    /// The environment variable that the script finds it in, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Left out where there is none for the step, and for the build of an untrusted change.
    #[serde(default)]
    pub optional: bool,
}

/// What happens in the container: the part of a job that a worker needs as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Run by its `#!` line, else by `/bin/sh -e`.
    pub script: String,
    /// Environment of the step, without the RAILYARD_ variables that the worker adds.
    pub env: BTreeMap<String, String>,
    /// What is kept.
    pub outputs: Vec<OutputSpec>,
    /// The container's file system becomes the job's image.
    pub commit: bool,
    /// What it reserves; limits of its container.
    pub resources: Capacity,
    /// Wall clock limit of the script.
    pub timeout_secs: u64,
    /// Longest time without output; 0: no limit.
    pub silence_timeout_secs: u64,
    /// Every capability and device.
    pub privileged: bool,
    /// Host devices.
    pub devices: Vec<Device>,
    /// Capabilities that are kept; `default` stands for the engine's default set.
    pub capabilities: Vec<String>,
    /// No network at all.
    pub network_none: bool,
    /// Directories and files of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_paths: Vec<HostPath>,
    /// Secrets that it gets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRef>,
}

/// Jobs of one group run at most `limit` at a time, across all builds and pipelines, in the order in which they became ready.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Concurrency {
    /// The group.
    pub group: GroupName,
    /// From 1. Where jobs of a group disagree, the smallest limit of those that run and of the next one holds.
    pub limit: u32,
}

/// One step for one platform, frozen at submit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Its name in the build.
    pub name: JobName,
    /// Every job that must succeed first, those of `image` and `inputs` included; sorted, without repeats.
    pub needs: Vec<JobName>,
    /// The root file system.
    pub image: ImageSource,
    /// What is mounted.
    pub inputs: Vec<InputSpec>,
    /// How long the lease lives without a heartbeat.
    pub lease_ttl_secs: u64,
    /// How often the step's own failures are retried.
    pub retries: u32,
    /// It waits until somebody approves it; what there is to approve, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// The group in which it takes its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Only workers of this pool take it; without one, only those of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// Only workers with all of these labels take it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What happens in the container.
    pub run: Arc<RunSpec>,
}

impl JobSpec {
    /// The jobs of other builds that it takes something from.
    pub fn uses(&self) -> impl Iterator<Item = (&BuildId, &JobName)> {
        let image = match &self.image {
            ImageSource::Build { build, job } | ImageSource::Import { build: Some(build), job, .. } => {
                Some((build, job))
            }
            ImageSource::Registry(_) | ImageSource::Job(_) | ImageSource::Import { build: None, .. } => None,
        };
        image.into_iter().chain(self.inputs.iter().filter_map(|input| Some((input.build.as_ref()?, &input.job))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_takes_from_elsewhere_is_read_and_written_as_it_was() {
        for old in [
            r#"{"registry":"debian"}"#,
            r#"{"job":"a@linux/amd64"}"#,
            r#"{"import":{"job":"a@linux/amd64","artifact":"x"}}"#,
            r#"{"import":{"build":"sdk/1","job":"a@linux/amd64","artifact":"x"}}"#,
            r#"{"build":{"build":"sdk/1","job":"a@linux/amd64"}}"#,
        ] {
            let source: ImageSource = serde_json::from_str(old).unwrap();
            assert_eq!(serde_json::to_string(&source).unwrap(), old);
        }
        let old = r#"{"job":"a@linux/amd64","artifacts":["x"],"mount_path":"/in"}"#;
        let input: InputSpec = serde_json::from_str(old).unwrap();
        assert_eq!((&input.build, serde_json::to_string(&input).unwrap().as_str()), (&None, old));
    }

    #[test]
    fn outputs_of_older_plans_are_read_and_written_as_they_were() {
        let old = r#"{"glob":"out/*","publish":"images","optional":true}"#;
        let output: OutputSpec = serde_json::from_str(old).unwrap();
        assert_eq!(output.compress, Compress::Auto);
        assert_eq!(serde_json::to_string(&output).unwrap(), old);
        let new = r#"{"glob":"out/*","optional":false,"compress":"xz:6"}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<OutputSpec>(new).unwrap()).unwrap(), new);
    }

    #[test]
    fn the_first_output_that_publishes_an_artifact_says_where() {
        let output = |glob: &str, publish: Option<&str>, compress: &str| OutputSpec {
            glob: glob.parse().unwrap(),
            publish: publish.map(|dir| dir.parse().unwrap()),
            publish_by_channel: None,
            optional: false,
            compress: compress.parse().unwrap(),
        };
        let outputs = [
            output("out/a", None, "auto"),
            output("out/*", Some("all"), "auto"),
            output("out/a", Some("packed"), "xz:6"),
            output("deep/**", None, "gzip:6"),
        ];
        let placement = Placement::new(&outputs);
        let place =
            |path: &str| placement.of(&path.parse().unwrap()).map(|path| path.unwrap().map(|path| path.to_string()));
        assert_eq!(place("out/a"), Some(Some("all/a".to_owned())));
        assert_eq!(place("out/a.xz"), Some(Some("packed/a.xz".to_owned())), "`out/*` has not made it");
        assert_eq!(place("deep/x/y.gz"), Some(None));
        assert_eq!(place("deep/x/y"), None);
        let rival = |path: &str| placement.rival(&path.parse().unwrap()).map(|output| output.glob.to_string());
        assert_eq!((rival("out/a.xz"), rival("out/b.xz"), rival("deep/x.gz")), (Some("out/a".to_owned()), None, None));

        // In another channel only what names it lies elsewhere.
        let open = ByChannel::new(vec![String::new(), "/all".to_owned()]).unwrap();
        let outputs = outputs.map(|output| match output.publish.as_ref().map(RelPath::as_str) {
            Some("all") => OutputSpec { publish_by_channel: Some(open.clone()), ..output },
            _ => output,
        });
        let placement = Placement::in_channel(&outputs, &"beta".parse().unwrap());
        let place = |path: &str| placement.of(&path.parse().unwrap()).unwrap().unwrap().map(|path| path.to_string());
        assert_eq!(place("out/b"), Some("beta/all/b".to_owned()));
        assert_eq!(place("out/a.xz"), Some("packed/a.xz".to_owned()));
        assert_eq!(place("out/c.xz"), Some("beta/all/c.xz".to_owned()), "no output makes it by compressing");
        assert_eq!(place("deep/x/y.gz"), None);
    }
}
