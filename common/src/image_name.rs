//! What the images of builds are called in a registry: `PIPELINE/STEP[.VARIANT]:TAG`.
//!
//! Registries allow less in names and tags than the farm allows in its own. What does not fit is replaced, and then
//! has digits of its digest behind it, so that two names stay two.

use crate::digest::Digest;
use crate::id::{BuildId, JobName, PipelineName, Version};

/// The tag of a pipeline's newest success.
pub const LATEST: &str = "latest";

/// What a registry takes as a tag.
const TAG_MAX_LEN: usize = 128;

/// Digits of a digest that tell names apart: the chance that two of a thousand are alike is one in ten thousand, and then
/// neither is served.
const DIGITS: usize = 8;

/// Repository and tag, without the registry's host.
pub fn reference(build: &BuildId, job: &JobName) -> String {
    format!("{}:{}", repository(&build.pipeline, job), tag(&build.version))
}

/// The repository of a step's images: `mini/sdk`, `mini/vms.qcow2`.
pub fn repository(pipeline: &PipelineName, job: &JobName) -> String {
    let step = match &job.variant {
        Some(variant) => format!("{}.{variant}", job.step),
        None => job.step.to_string(),
    };
    format!("{}/{}", component(pipeline.as_str()), component(&step))
}

/// The tag of a version: the version, with `_` for `+`, as other tools do it. A version with a `_` of its own could be taken
/// for another one then, and one may be named `latest`: those have digits of their digest behind them.
pub fn tag(version: &Version) -> String {
    let text = version.as_str();
    if !text.contains('_') && text != LATEST {
        return text.replace('+', "_");
    }
    let kept = TAG_MAX_LEN - DIGITS - 1;
    format!("{}-{}", text[..text.len().min(kept)].replace('+', "_"), digits(text))
}

fn digits(text: &str) -> String {
    Digest::of(text.as_bytes()).hex()[..DIGITS].to_owned()
}

/// A part of a repository's name: words of `a-z` and `0-9`, with `.`, `_`, `__` or any number of `-` between two.
fn component(text: &str) -> String {
    if is_component(text) {
        return text.to_owned();
    }
    let words = text.to_ascii_lowercase();
    let words = words.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    format!("{}.{}", words.collect::<Vec<_>>().join("-"), digits(text))
}

fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    let ends_well = |b: Option<u8>| b.is_some_and(is_word);
    // Between two words stands a run of what no word has.
    let mut runs = text.split(|c: char| u8::try_from(c).is_ok_and(is_word)).filter(|run| !run.is_empty());
    ends_well(text.bytes().next()) && ends_well(text.bytes().last()) && runs.all(is_separator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn versions_become_tags_and_no_two_the_same() {
        let tag = |text: &str| tag(&text.parse().unwrap());
        assert_eq!(tag("4799.0.0+nightly-20261121-2100"), "4799.0.0_nightly-20261121-2100");
        assert_eq!(tag("1.0"), "1.0");
        let alike = ["1.0+x", "1.0_x", "1.0+x_", "1.0_x+", "1.0__x", "1.0+_x", "1.0_+x", "1.0++x", "latest", "Latest"];
        let tags: BTreeSet<String> = alike.iter().map(|version| tag(version)).collect();
        assert_eq!(tags.len(), alike.len(), "{tags:?}");
        assert!(!tags.contains(LATEST));
        for version in alike.map(str::to_owned).into_iter().chain([format!("{}_", "1".repeat(127))]) {
            let tag = tag(&version);
            assert!(tag.len() <= TAG_MAX_LEN, "{tag}");
            assert!(tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{tag}");
        }
    }

    #[test]
    fn steps_become_repositories() {
        let name = |pipeline: &str, job: &str| repository(&pipeline.parse().unwrap(), &job.parse().unwrap());
        assert_eq!(name("mini", "sdk@linux/amd64"), "mini/sdk");
        assert_eq!(name("mini", "vms.qcow2@linux/amd64"), "mini/vms.qcow2");
        assert_eq!(name("a--b", "x.1_2@linux/amd64"), "a--b/x.1_2");
        let odd = ["vms.Debug@linux/amd64", "vms.debug@linux/amd64", "vms.a..b@linux/amd64", "vms.a--b@linux/amd64"];
        let names: BTreeSet<String> = odd.iter().map(|job| name("mini-", job)).collect();
        assert_eq!(names.len(), odd.len());
        for name in names {
            assert!(name.split('/').all(is_component), "{name}");
        }
    }
}
