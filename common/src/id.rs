//! Names and ids: checked once when they enter, plain text when they leave.

use crate::platform::{BadPlatform, Platform};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

/// The text is not a name of the wanted kind.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a {kind}: expected {expected}")]
pub struct BadId {
    /// What was given.
    pub text: String,
    /// What it should have been: "pipeline name", "version", …
    pub kind: &'static str,
    /// The form, for people.
    pub expected: &'static str,
}

/// Longest name of a pipeline, step or worker: a DNS label, so that names can be host and container names.
const NAME_MAX_LEN: usize = 63;
/// Longest version: fits a docker tag (128) and a path component (255).
const VERSION_MAX_LEN: usize = 128;

fn is_name(text: &str) -> bool {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    first_ok
        && text.len() <= NAME_MAX_LEN
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Not versions: these files and this directory lie beside the builds' directories, see [`crate::layout`].
const RESERVED_VERSIONS: [&str; 3] = ["builds.json", "latest.json", "channels"];

fn is_version(text: &str) -> bool {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first_ok
        && text.len() <= VERSION_MAX_LEN
        && !RESERVED_VERSIONS.contains(&text)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+' | b'_'))
}

fn is_variant(text: &str) -> bool {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first_ok
        && text.len() <= NAME_MAX_LEN
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Groups are often named by branches: `main`, `feature/kernel-7.1`.
fn is_group(text: &str) -> bool {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first_ok
        && text.len() <= VERSION_MAX_LEN
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/'))
}

/// The names of people are mail addresses more often than not.
fn is_pin(text: &str) -> bool {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first_ok
        && text.len() <= VERSION_MAX_LEN
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@' | b'+' | b'/'))
}

/// Whether a name is the one that a setting means: the name itself, or with a `*` at the end, all that begin so.
pub fn is_match(pattern: &str, name: &str) -> bool {
    pattern == name || pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start))
}

/// Whether a pattern of [`is_match`] can be meant for names of that sort.
pub fn is_pattern<Name: FromStr>(pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some("") => true,
        // Some names end with a letter or a digit; what stands for the `*` can be one.
        Some(start) => format!("{start}0").parse::<Name>().is_ok(),
        None => pattern.parse::<Name>().is_ok(),
    }
}

/// Written and read as its text.
macro_rules! as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = BadId;

            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.to_string()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text(PhantomData))
            }
        }
    };
}

/// Reads an id from a text that need not be copied for that.
struct Text<T>(PhantomData<T>);

impl<T: FromStr<Err = BadId>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

// Shared text: a farm's state names the same few things hundreds of thousands of times.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                if $check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(BadId { text: text.to_owned(), kind: $kind, expected: $expected })
                }
            }
        }

        as_text!($name);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_id!(
    /// A pipeline's name.
    PipelineName, "pipeline name", is_name, "1 to 63 of a-z, 0-9 and -, not starting with -"
);
text_id!(
    /// A step's name, unique in its pipeline.
    StepName, "step name", is_name, "1 to 63 of a-z, 0-9 and -, not starting with -"
);
text_id!(
    /// A worker's name: what its certificate says.
    WorkerName, "worker name", is_name, "1 to 63 of a-z, 0-9 and -, not starting with -"
);
text_id!(
    /// A pool of workers: those outside of it do not take its jobs, those inside take no others.
    PoolName, "pool name", is_name, "1 to 63 of a-z, 0-9 and -, not starting with -"
);
text_id!(
    /// A group of jobs or of builds that are not to run side by side, for instance `signing` or `main`.
    GroupName, "group name", is_group, "1 to 128 letters, digits, `.`, `-`, `_` or `/`, starting with a letter or digit"
);
text_id!(
    /// A channel's name: alpha, stable, nightly, or the user's own.
    ChannelName, "channel name", is_name, "1 to 63 of a-z, 0-9 and -, not starting with -"
);
impl ChannelName {
    /// The channel of builds that name none.
    pub fn usual() -> &'static Self {
        static USUAL: LazyLock<ChannelName> = LazyLock::new(|| "default".parse().expect("a valid name"));
        &USUAL
    }
}

text_id!(
    /// A build's version, for instance `4799.0.0+nightly-20261121-2100`.
    Version, "version", is_version, "1 to 128 letters, digits, `.`, `-`, `+` or `_`, starting with a letter or digit; not builds.json, latest.json or channels"
);
impl Version {
    /// Longest version, in characters.
    pub const MAX_LEN: usize = VERSION_MAX_LEN;
}

text_id!(
    /// A matrix variant: the values of the matrix, joined by `-`.
    Variant, "matrix variant", is_variant, "1 to 63 letters, digits, `.`, `-` or `_`, starting with a letter or digit"
);

text_id!(
    /// A name that people give to a build of a pipeline, and move from one to the next.
    TagName, "tag", is_variant, "1 to 63 letters, digits, `.`, `-` or `_`, starting with a letter or digit"
);
text_id!(
    /// Tells one pin of a build from the others: by default the name of whoever pinned it.
    PinName, "name of a pin", is_pin, "1 to 128 letters, digits, `.`, `-`, `_`, `@`, `+` or `/`, starting with a letter or digit"
);

text_id!(
    /// A secret that an operator has stored: also the name of its file in a step.
    SecretName, "secret name", is_variant, "1 to 63 letters, digits, `.`, `-` or `_`, starting with a letter or digit"
);

/// Only in tables is a copy needed.
fn padded(f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>) -> fmt::Result {
    if f.width().is_none() && f.precision().is_none() { f.write_fmt(text) } else { f.pad(&text.to_string()) }
}

/// One run of a pipeline at one version, written `PIPELINE/VERSION`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// The version.
    pub version: Version,
}

impl FromStr for BuildId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let (pipeline, version) =
            text.split_once('/').ok_or(BadId { text: text.to_owned(), kind: "build", expected: "PIPELINE/VERSION" })?;
        Ok(Self { pipeline: pipeline.parse()?, version: version.parse()? })
    }
}

as_text!(BuildId);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        padded(f, format_args!("{}/{}", self.pipeline, self.version))
    }
}

/// One step for one platform in one build, written `STEP[.VARIANT]@PLATFORM`, for instance `vms.qcow2@linux/amd64`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobName {
    /// The step.
    pub step: StepName,
    /// Which of the step's matrix, if it has one.
    pub variant: Option<Variant>,
    /// What it runs on.
    pub platform: Platform,
}

impl JobName {
    /// For paths and container names: `vms.qcow2-linux-amd64`.
    pub fn slug(&self) -> String {
        self.to_string().replace(['@', '/'], "-")
    }
}

impl FromStr for JobName {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { text: text.to_owned(), kind: "job", expected: "STEP[.VARIANT]@PLATFORM" };
        let (name, platform) = text.split_once('@').ok_or_else(bad)?;
        let platform = platform.parse().map_err(|_: BadPlatform| bad())?;
        let (step, variant) = match name.split_once('.') {
            Some((step, variant)) => (step, Some(variant.parse()?)),
            None => (name, None),
        };
        Ok(Self { step: step.parse()?, variant, platform })
    }
}

as_text!(JobName);

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variant {
            Some(variant) => padded(f, format_args!("{}.{variant}@{}", self.step, self.platform)),
            None => padded(f, format_args!("{}@{}", self.step, self.platform)),
        }
    }
}

/// What a person writes to point at jobs: `STEP[.VARIANT][@PLATFORM]`; what is left out matches all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSelector {
    step: StepName,
    variant: Option<Variant>,
    platform: Option<Platform>,
}

impl JobSelector {
    /// Whether it points at `job`.
    pub fn matches(&self, job: &JobName) -> bool {
        self.step == job.step
            && (self.variant.is_none() || self.variant == job.variant)
            && self.platform.is_none_or(|platform| platform == job.platform)
    }
}

impl fmt::Display for JobSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        if let Some(variant) = &self.variant {
            write!(f, ".{variant}")?;
        }
        if let Some(platform) = self.platform {
            write!(f, "@{platform}")?;
        }
        Ok(())
    }
}

impl FromStr for JobSelector {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let (name, platform) = match text.split_once('@') {
            Some((name, platform)) => {
                let expected = "STEP[.VARIANT][@PLATFORM], the platform linux/amd64 or linux/arm64";
                let parsed = platform.parse().map_err(|_| BadId { text: text.to_owned(), kind: "job", expected })?;
                (name, Some(parsed))
            }
            None => (text, None),
        };
        let (step, variant) = match name.split_once('.') {
            Some((step, variant)) => (step, Some(variant.parse()?)),
            None => (name, None),
        };
        Ok(Self { step: step.parse()?, variant, platform })
    }
}

/// A job's number: unique in the farm, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}", self.0)
    }
}

/// The exclusive, expiring right to run one attempt of a job, written `jJOB.ATTEMPT`. The attempt is the fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId {
    /// The job.
    pub job: JobId,
    /// From 1, never reused.
    pub attempt: u32,
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.attempt)
    }
}

impl FromStr for LeaseId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { text: text.to_owned(), kind: "lease", expected: "jJOB.ATTEMPT" };
        let (job, attempt) = text.strip_prefix('j').and_then(|rest| rest.split_once('.')).ok_or_else(bad)?;
        Ok(Self { job: JobId(job.parse().map_err(|_| bad())?), attempt: attempt.parse().map_err(|_| bad())? })
    }
}

/// Names one start of a worker process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_write() {
        for text in ["vms.qcow2@linux/amd64", "image@linux/arm64"] {
            assert_eq!(text.parse::<JobName>().unwrap().to_string(), text);
        }
        let build = "flatcar/4799.0.0+nightly-20261121-2100";
        assert_eq!(build.parse::<BuildId>().unwrap().to_string(), build);
        assert_eq!("j42.3".parse::<LeaseId>().unwrap(), LeaseId { job: JobId(42), attempt: 3 });
        assert_eq!("vms.qcow2@linux/amd64".parse::<JobName>().unwrap().slug(), "vms.qcow2-linux-amd64");
    }

    #[test]
    fn refuses_names_that_could_leave_a_path_or_a_flag() {
        for bad in ["", "-a", "a/b", "..", "A", "a_b", &"x".repeat(64)] {
            assert!(bad.parse::<StepName>().is_err(), "{bad}");
        }
        for bad in ["", "..", "-1", "1/2", "1 2", "ä", "builds.json", "latest.json", "channels"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
        for bad in ["mini", "mini/", "/1", "mini/1/2"] {
            assert!(bad.parse::<BuildId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_selector_matches_what_it_does_not_name() {
        let job: JobName = "vms.qcow2@linux/amd64".parse().unwrap();
        for (text, want) in [
            ("vms", true),
            ("vms.qcow2", true),
            ("vms@linux/amd64", true),
            ("vms.vhd", false),
            ("vms@linux/arm64", false),
            ("image", false),
        ] {
            assert_eq!(text.parse::<JobSelector>().unwrap().matches(&job), want, "{text}");
        }
    }
}
