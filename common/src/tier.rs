//! Trust tiers: a build of a change that nobody has looked at yet is *untrusted*. It reads the cache like any other, and writes
//! nothing that a release reads.
//!
//! The version says which tier a build is of: that of an untrusted one ends in [`SUFFIX`], and no other does. So nothing that is
//! named by builds (manifests, logs, tags of images) is ever named alike in the two tiers.

use crate::id::{PoolName, Version};
use crate::plan::Plan;
use std::sync::Arc;

/// What the version of every untrusted build ends in, and of no other.
pub const SUFFIX: &str = ".untrusted";

/// A version that a build of its tier cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadVersion {
    /// There is no room for [`SUFFIX`] behind it.
    #[error(
        "the version {version} is too long for an untrusted build: `{suffix}` is put behind it, and a version has at most {most} \
         characters; choose one of at most {left}", suffix = SUFFIX, most = Version::MAX_LEN, left = Version::MAX_LEN - SUFFIX.len()
    )]
    TooLong {
        /// Without it.
        version: Version,
    },
    /// It is that of an untrusted build, and the build is none.
    #[error(
        "version {version} ends in `{suffix}`, which only untrusted builds have: submit it with --untrusted, or choose another \
         version", suffix = SUFFIX
    )]
    Untrusted {
        /// As given.
        version: Version,
    },
}

/// Whether `version` is that of an untrusted build.
pub fn is_untrusted(version: &Version) -> bool {
    version.as_str().ends_with(SUFFIX)
}

/// The version of a build for which `version` was given: that of an untrusted one with [`SUFFIX`] behind it, unless it has it
/// already.
///
/// # Errors
/// [`BadVersion`].
pub fn version_of(version: Version, untrusted: bool) -> Result<Version, BadVersion> {
    match (untrusted, is_untrusted(&version)) {
        (true, true) | (false, false) => Ok(version),
        (false, true) => Err(BadVersion::Untrusted { version }),
        (true, false) => format!("{version}{SUFFIX}").parse().map_err(|_| BadVersion::TooLong { version }),
    }
}

/// Makes a plan that of an untrusted build: it publishes nothing, and its jobs run in `pool` whatever their steps say, for a pool
/// is how an operator keeps hosts apart; without `pool`, on workers outside of all pools. Gives a line for each thing that is
/// otherwise than the pipeline says.
pub fn confine(plan: &mut Plan, pool: Option<&PoolName>) -> Vec<String> {
    let mut left_out = Vec::new();
    plan.untrusted = true;
    for job in &mut plan.jobs {
        if job.run.outputs.iter().any(|output| output.publish.is_some()) {
            let run = Arc::make_mut(&mut job.run);
            for output in &mut run.outputs {
                if let Some(path) = output.publish.take() {
                    let line = format!("{}: {} is not published at {path}", job.name, output.glob);
                    left_out.push(format!("{line}: the build is untrusted"));
                }
            }
        }
        if job.pool.as_ref() != pool {
            if let Some(own) = &job.pool {
                let instead =
                    pool.map_or_else(|| "on workers without a pool".to_owned(), |pool| format!("in pool {pool}"));
                left_out.push(format!("{}: it runs {instead}, not in pool {own}: the build is untrusted", job.name));
            }
            job.pool = pool.cloned();
        }
    }
    left_out
}

/// Why a plan is not what its tier allows, if it is not.
pub fn fault(plan: &Plan) -> Option<String> {
    let version = &plan.build.version;
    match (plan.untrusted, is_untrusted(version)) {
        (false, true) => Some(BadVersion::Untrusted { version: version.clone() }.to_string()),
        (true, false) => Some(format!("version {version} of an untrusted build does not end in `{SUFFIX}`")),
        (true, true) => {
            let published = plan.jobs.iter().find(|job| job.run.outputs.iter().any(|output| output.publish.is_some()));
            published.map(|job| format!("{} of an untrusted build publishes outputs", job.name))
        }
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Pipeline, Request, Source};

    const TEXT: &str = "
name: os
steps:
  - name: image
    image: x
    script: 'true'
    pool: signing
    outputs:
      - { path: out/a, publish: images }
      - out/b
  - name: test
    image: x
    script: 'true'
";

    fn plan(version: &str) -> Plan {
        let source = Source { file_name: "x.yaml", text: TEXT, files: &Default::default() };
        let request = Request::of(version.parse().unwrap());
        Pipeline::parse(&source).unwrap().plan(&request).unwrap()
    }

    #[test]
    fn the_version_says_the_tier_once() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let made = |text: &str, untrusted| version_of(version(text), untrusted).map(|made| made.to_string());
        assert_eq!(made("1.0", true).unwrap(), "1.0.untrusted");
        assert_eq!(made("1.0.untrusted", true).unwrap(), "1.0.untrusted");
        assert_eq!(made("1.0", false).unwrap(), "1.0");
        assert!(made("1.0.untrusted", false).unwrap_err().to_string().contains("submit it with --untrusted"));
        for (text, want) in
            [("1.untrusted", true), ("1.untrusted.1", false), ("untrusted", false), ("1untrusted", false)]
        {
            assert_eq!(is_untrusted(&version(text)), want, "{text}");
        }
        assert_eq!(made(&"1".repeat(118), true).unwrap().len(), 128);
        let long = made(&"1".repeat(119), true).unwrap_err().to_string();
        assert!(long.contains("too long") && long.ends_with("choose one of at most 118"), "{long}");
    }

    #[test]
    fn a_plan_of_an_untrusted_build_publishes_nothing_and_keeps_to_its_pool() {
        let changes: PoolName = "changes".parse().unwrap();
        for (pool, instead) in [(Some(&changes), "in pool changes"), (None, "on workers without a pool")] {
            let mut plan = plan("1.untrusted");
            let lines = confine(&mut plan, pool);
            assert!(plan.untrusted && fault(&plan).is_none());
            assert!(plan.jobs.iter().all(|job| job.pool.as_ref() == pool));
            assert!(plan.jobs.iter().flat_map(|job| &job.run.outputs).all(|output| output.publish.is_none()));
            assert_eq!(plan.jobs.iter().map(|job| job.run.outputs.len()).sum::<usize>(), 2);
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert_eq!(lines[0], "image@linux/amd64: out/a is not published at images: the build is untrusted");
            assert!(lines[1].contains(instead) && lines[1].contains("not in pool signing"), "{}", lines[1]);
        }
    }

    #[test]
    fn tier_and_version_belong_together() {
        assert_eq!(fault(&plan("1")), None);
        assert!(fault(&plan("1.untrusted")).unwrap().contains("choose another version"));
        let mut odd = plan("1");
        odd.untrusted = true;
        assert!(fault(&odd).unwrap().contains("does not end in"));
        let mut odd = plan("1.untrusted");
        odd.untrusted = true;
        assert_eq!(fault(&odd).unwrap(), "image@linux/amd64 of an untrusted build publishes outputs");
    }

    #[test]
    fn plans_of_before_are_read_and_written_as_they_were() {
        let plan = plan("1");
        let text = serde_json::to_string(&plan).unwrap();
        assert!(!text.contains("untrusted") && !text.contains("channel"));
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
