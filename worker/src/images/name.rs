//! Names that say whose an image is, in the forms that Docker takes.

use crate::runtime::ImageName;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, WorkerName};

/// Never a real registry: an image of that name is never pulled or pushed by accident.
const HOST: &str = "railyard.local";

/// Longest tag that Docker takes.
const TAG_MAX_LEN: usize = 128;

/// Hex digits that tell names apart which had to be changed.
const MARK_LEN: usize = 8;

/// What every name of a worker's images begins with.
pub(super) fn prefix(farm: &str, worker: &WorkerName) -> String {
    format!("{HOST}/{farm}/{}/", component(worker.as_str()).0)
}

/// `PREFIX/PIPELINE:VERSION-WHAT`, changed where Docker takes no such name, and then with a mark that keeps it unique.
pub(super) fn of(prefix: &str, build: &BuildId, what: &str) -> ImageName {
    let (pipeline, same) = component(build.pipeline.as_str());
    let wanted = format!("{}-{what}", build.version);
    let mut tag: String =
        wanted.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    if !same || tag != wanted || tag.len() > TAG_MAX_LEN {
        let mark = &Digest::of(format!("{build} {what}").as_bytes()).hex()[..MARK_LEN];
        tag.truncate(TAG_MAX_LEN - MARK_LEN - 1);
        tag = format!("{tag}-{mark}");
    }
    ImageName { repository: format!("{prefix}{pipeline}"), tag }
}

/// A part of a repository's name, and whether it is unchanged: Docker takes no `-` at the end.
fn component(name: &str) -> (String, bool) {
    if name.ends_with('-') { (format!("{name}0"), false) } else { (name.to_owned(), true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(build: &str, what: &str) -> String {
        let prefix = prefix("cafe", &"w1".parse().unwrap());
        of(&prefix, &build.parse().unwrap(), what).to_string()
    }

    #[test]
    fn names_are_plain_where_they_can_be() {
        assert_eq!(name("mini/1.0", "sdk-linux-amd64"), "railyard.local/cafe/w1/mini:1.0-sdk-linux-amd64");
    }

    #[test]
    fn changed_names_stay_apart() {
        let plus = name("mini/1.0+x", "sdk");
        assert!(plus.starts_with("railyard.local/cafe/w1/mini:1.0-x-sdk-"), "{plus}");
        assert_ne!(plus, name("mini/1.0-x", "sdk"));
        assert_ne!(name("mini-/1", "a"), name("mini-0/1", "a"));
        let long = format!("mini/{}", "1".repeat(128));
        assert_ne!(name(&long, "a"), name(&long, "b"));
        assert!(name(&long, "a").rsplit(':').next().unwrap().len() <= TAG_MAX_LEN);
    }
}
