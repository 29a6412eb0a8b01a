//! Where everything lies in the cache. One root for every kind of thing; nothing gets a prefix in front of that.
//!
//! ```text
//! blobs/sha256/ab/abcdef…        plain bytes; with .zst behind: zstd frames of the bytes with that digest
//!                                behind either .sha256: digest and length of what is stored there
//! builds/PIPELINE/VERSION/build.json
//! builds/PIPELINE/builds.json, latest.json
//! builds/PIPELINE/channels/CHANNEL/builds.json, latest.json
//! logs/PIPELINE/VERSION/JOB/ATTEMPT.log.zst
//! anything else                  published paths
//! ```

use crate::blob::{Blob, Encoding};
use crate::id::{BuildId, ChannelName, JobName, PipelineName};
use crate::path::RelPath;

/// First parts of paths that the farm keeps for itself: nothing can be published below them.
pub const RESERVED: [&str; 4] = ["blobs", "builds", "logs", "uploads"];

fn path(text: String) -> RelPath {
    // Every part comes from a type whose form is a path part; see the tests.
    text.parse().expect("ids make valid paths")
}

/// Where a blob lies.
pub fn blob(blob: &Blob) -> RelPath {
    let hex = blob.digest.hex();
    let suffix = match blob.encoding {
        Encoding::Identity => "",
        Encoding::Zstd => ".zst",
    };
    path(format!("blobs/sha256/{}/{hex}{suffix}", &hex[..2]))
}

/// Where the digest of a blob's stored bytes is kept, if somebody wanted to know it.
pub fn stored_digest(of: &Blob) -> RelPath {
    path(format!("{}.sha256", blob(of)))
}

/// The farm's own directories that a sweep lists.
pub const SWEPT: [&str; 3] = ["builds", "blobs", "logs"];

/// The last object of one of them, in the order of listings: a listing without it was cut short.
pub fn end_mark(directory: &str) -> RelPath {
    path(format!("{directory}/~end"))
}

/// Where a build's manifest lies.
pub fn build_manifest(build: &BuildId) -> RelPath {
    path(format!("builds/{}/{}/build.json", build.pipeline, build.version))
}

/// Where a build that is being written out keeps what it is about to publish.
pub fn placing(build: &BuildId) -> RelPath {
    path(format!("builds/{}/{}/placing.json", build.pipeline, build.version))
}

/// Where a pipeline's list of builds lies, newest first.
pub fn builds_index(pipeline: &PipelineName) -> RelPath {
    path(format!("builds/{pipeline}/builds.json"))
}

/// Where a pipeline's newest successful build is named.
pub fn latest(pipeline: &PipelineName) -> RelPath {
    path(format!("builds/{pipeline}/latest.json"))
}

/// What lies below this is of one channel of the pipeline each.
pub fn channels(pipeline: &PipelineName) -> RelPath {
    path(format!("builds/{pipeline}/channels"))
}

/// Where a channel's list of builds lies, newest first.
pub fn channel_index(pipeline: &PipelineName, channel: &ChannelName) -> RelPath {
    path(format!("builds/{pipeline}/channels/{channel}/builds.json"))
}

/// Where a channel's newest successful build is named.
pub fn channel_latest(pipeline: &PipelineName, channel: &ChannelName) -> RelPath {
    path(format!("builds/{pipeline}/channels/{channel}/latest.json"))
}

/// Where all logs of a build lie, one below the other.
pub fn logs(build: &BuildId) -> RelPath {
    path(format!("logs/{}/{}", build.pipeline, build.version))
}

/// Where an attempt's log lies.
pub fn log(build: &BuildId, job: &JobName, attempt: u32) -> RelPath {
    path(format!("{}/{}/{attempt}.log.zst", logs(build), job.slug()))
}

/// The pipeline whose builds or logs lie at `path`, or below it.
pub fn pipeline_of(path: &RelPath) -> Option<PipelineName> {
    let mut parts = path.as_str().split('/');
    let of_builds = matches!(parts.next(), Some("builds" | "logs"));
    parts.next().filter(|_| of_builds)?.parse().ok()
}

/// What lies beside published files, with the sums of all of them.
pub const SUMS: &str = "SHA256SUMS";

/// Whether a pipeline may publish at `path`.
pub fn is_publishable(path: &RelPath) -> bool {
    let mut parts = path.as_str().split('/');
    let first = parts.clone().next().unwrap_or_default();
    // Its last part may be a list of sums, of the step's own.
    parts.next_back();
    !RESERVED.contains(&first) && !first.starts_with('.') && parts.all(|part| part != SUMS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn builds_and_logs_are_their_pipeline_s() {
        let of = |text: &str| pipeline_of(&text.parse().unwrap()).map(|name| name.to_string());
        assert_eq!(of("builds/flatcar/1/build.json").as_deref(), Some("flatcar"));
        assert_eq!(of("logs/flatcar").as_deref(), Some("flatcar"));
        assert_eq!([of("builds"), of("blobs/sha256/ab/x"), of("images/flatcar/1")], [None, None, None]);
    }

    #[test]
    fn paths_are_as_documented() {
        let digest = Digest::of(b"");
        let mut one = Blob::plain(digest, 0);
        assert_eq!(blob(&one).as_str(), format!("blobs/sha256/e3/{}", digest.hex()));
        one.encoding = Encoding::Zstd;
        assert!(blob(&one).as_str().ends_with("855.zst"));
        let (pipeline, channel) = ("mini".parse().unwrap(), "beta".parse().unwrap());
        assert_eq!(channel_index(&pipeline, &channel).as_str(), "builds/mini/channels/beta/builds.json");
        assert_eq!(channel_latest(&pipeline, &channel).as_str(), "builds/mini/channels/beta/latest.json");
        let build: BuildId = "mini/1.0.0+x".parse().unwrap();
        assert_eq!(build_manifest(&build).as_str(), "builds/mini/1.0.0+x/build.json");
        assert_eq!(
            log(&build, &"vms.vhd@linux/amd64".parse().unwrap(), 2).as_str(),
            "logs/mini/1.0.0+x/vms.vhd-linux-amd64/2.log.zst"
        );
    }

    #[test]
    fn the_farm_s_own_directories_cannot_be_published_into() {
        for (text, want) in [
            ("images/amd64/x", true),
            ("images/SHA256SUMS", true),
            ("images/SHA256SUMS/x", false),
            ("blobs/x", false),
            ("builds/x", false),
            ("logs", false),
            (".x/y", false),
        ] {
            assert_eq!(is_publishable(&text.parse().unwrap()), want, "{text}");
        }
    }
}
