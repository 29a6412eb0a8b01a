//! What a build's manifest, `build.json`, says of what the build needs in the cache. The controller writes it; this reads it again.

use crate::blob::{Artifact, Blob, Image};
use crate::id::{BuildId, ChannelName};
use crate::path::RelPath;
use crate::time::Millis;
use jiff::Timestamp;
use serde::Deserialize;

/// The form that is written and understood.
pub const SCHEMA_VERSION: u32 = 1;

/// What a manifest refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct References {
    /// Whose manifest it is.
    pub build: BuildId,
    /// Its artifacts, image configurations and layers.
    pub blobs: Vec<Blob>,
    /// Where files of it lie: none, unless it succeeded.
    pub published: Vec<(RelPath, Blob)>,
    /// Its channel; builds of before there were channels are in the usual one.
    pub channel: ChannelName,
    /// When it was submitted, if that can be read.
    pub submitted_at: Option<Millis>,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadManifest {
    /// It is no manifest.
    #[error("it is no manifest: {0}")]
    NotJson(#[from] serde_json::Error),
    /// A newer controller wrote it.
    #[error("it is of form {0}, and this controller knows {SCHEMA_VERSION}")]
    Newer(u32),
}

#[derive(Deserialize)]
struct Head {
    schema_version: u32,
}

#[derive(Deserialize)]
struct Written {
    build: BuildId,
    verdict: String,
    #[serde(default)]
    untrusted: bool,
    channel: Option<ChannelName>,
    submitted_at: Option<Timestamp>,
    jobs: Vec<WrittenJob>,
}

#[derive(Deserialize)]
struct WrittenJob {
    #[serde(default)]
    image: Option<Image>,
    #[serde(default)]
    artifacts: Vec<Artifact>,
}

impl References {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`BadManifest`].
    pub fn read(bytes: &[u8]) -> Result<Self, BadManifest> {
        let head: Head = serde_json::from_slice(bytes)?;
        if head.schema_version != SCHEMA_VERSION {
            return Err(BadManifest::Newer(head.schema_version));
        }
        let Written { build, verdict, untrusted, channel, submitted_at, jobs } = serde_json::from_slice(bytes)?;
        let publishes = verdict == "succeeded" && !untrusted;
        let (mut blobs, mut published) = (Vec::new(), Vec::new());
        for job in jobs {
            blobs.extend(job.image.into_iter().flat_map(|image| std::iter::once(image.config).chain(image.layers)));
            for artifact in job.artifacts {
                blobs.push(artifact.blob);
                published.extend(artifact.published.filter(|_| publishes).map(|path| (path, artifact.blob)));
            }
        }
        let channel = channel.unwrap_or_else(|| ChannelName::usual().clone());
        let millis = |at: Timestamp| u64::try_from(at.as_millisecond()).ok().map(Millis);
        Ok(Self { build, blobs, published, channel, submitted_at: submitted_at.and_then(millis) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_or_refused() {
        let read = |text: &str| References::read(text.as_bytes()).map_err(|error| error.to_string());
        let empty = read(
            r#"{"schema_version":1,"build":"mini/1","verdict":"succeeded","jobs":[{"name":"a@linux/amd64"}],"more":1}"#,
        )
        .unwrap();
        assert_eq!((empty.build.to_string().as_str(), empty.blobs.len()), ("mini/1", 0));
        assert!(read(r#"{"schema_version":2,"builds":1}"#).unwrap_err().contains("of form 2"));
        for bad in [
            "",
            "{",
            "[]",
            r#"{"schema_version":1}"#,
            r#"{"schema_version":1,"build":"mini","verdict":"failed","jobs":[]}"#,
        ] {
            assert!(read(bad).unwrap_err().starts_with("it is no manifest"), "{bad}");
        }
    }
}
