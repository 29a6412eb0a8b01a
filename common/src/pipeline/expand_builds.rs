//! Fills in what jobs take from other builds. Which builds those are is found out before, for only the farm knows them.

use super::diagnostic::{Position, quote, quote_list};
use super::expand::Expander;
use super::jobs::Key;
use super::limits::{BUILDS_USED_MAX, MATCHES_MAX, PLAN_MAX_PARTS, VALUE_MAX_BYTES};
use super::model::{Image, OfBuild, Origin, Step};
use super::template::Template;
use crate::build_ref::{BuildRef, UsedBuild, UsedJob, WantedBuilds};
use crate::id::{BuildId, JobName};
use crate::job::InputSpec;
use crate::path::{Glob, RelPath};
use std::collections::{BTreeMap, BTreeSet};

/// Artifacts that are named where none of them fits.
const NAMED_MAX: usize = 10;

/// What is known of other builds while a plan is made.
#[derive(Default)]
pub(super) struct Uses {
    /// Those of which something is taken.
    pub builds: BTreeSet<BuildId>,
    /// Whether a glob matches an artifact of a job.
    met: BTreeMap<(BuildId, JobName, Glob), usize>,
    /// Inputs that come from other builds.
    parts: usize,
    /// Artifacts that were held against globs.
    matches: usize,
}

impl Step {
    /// Everything that it takes from other builds.
    pub(super) fn foreign(&self) -> impl Iterator<Item = &OfBuild> {
        let image = match &self.image {
            Image::Step(origin) | Image::Import(origin, _) => Some(origin),
            Image::Registry(_) | Image::Unread => None,
        };
        let origins = image.into_iter().chain(self.inputs.iter().map(|input| &input.from));
        origins.filter_map(|origin| match origin {
            Origin::Build(of) => Some(of),
            Origin::Step(_) => None,
        })
    }
}

impl<'a> Expander<'a> {
    /// The builds that the jobs of `keys` name, as far as they are named well.
    pub(super) fn wanted_builds(&mut self, keys: &BTreeSet<Key>) -> WantedBuilds {
        let mut wanted = WantedBuilds::new();
        for &key in keys {
            for of in self.pipeline.steps[key.step].foreign() {
                let Some(reference) = self.reference(of, key) else { continue };
                if wanted.len() < BUILDS_USED_MAX || wanted.contains_key(&reference) {
                    wanted.entry(reference).or_default().insert(of.step.clone());
                }
            }
        }
        wanted
    }

    fn reference(&mut self, of: &OfBuild, key: Key) -> Option<BuildRef> {
        let text = self.render(&of.build, key, VALUE_MAX_BYTES)?;
        self.named(&of.build, &text)
    }

    /// The build and those of its jobs that are meant; `None` if that is not known, or has a problem.
    fn used(&mut self, of: &OfBuild, key: Key) -> Option<(&'a BuildId, Vec<(&'a JobName, &'a UsedJob)>)> {
        let reference = self.reference(of, key)?;
        let UsedBuild { build, jobs } = match self.builds?.get(&reference) {
            Some(Ok(used)) => used,
            Some(Err(why)) => {
                self.blame(&of.build, why.clone(), None);
                return None;
            }
            None => {
                let message = format!("a build takes from at most {BUILDS_USED_MAX} others, and this one is too much");
                self.blame(&of.build, message, None);
                return None;
            }
        };
        let platform = of.platform.unwrap_or(key.platform);
        let is_meant = |name: &JobName| {
            name.step == of.step && name.platform == platform && (of.variant.is_none() || name.variant == of.variant)
        };
        let meant: Vec<_> = jobs.iter().filter(|(name, _)| is_meant(name)).collect();
        if meant.is_empty() {
            let variant = of.variant.as_ref().map(|variant| format!(".{variant}")).unwrap_or_default();
            let message = format!("build `{build}` has no job `{}{variant}@{platform}`", of.step);
            self.blame_at(of.at, message, format!("`railyard show {build}` lists its jobs"));
            return None;
        }
        self.uses.builds.insert(build.clone());
        Some((build, meant))
    }

    /// The same where only one job can be meant.
    pub(super) fn used_one(&mut self, of: &OfBuild, key: Key) -> Option<(&'a BuildId, &'a JobName, &'a UsedJob)> {
        let (build, jobs) = self.used(of, key)?;
        if let [(job, left)] = jobs.as_slice() {
            return Some((build, job, left));
        }
        let message = format!(
            "step `{}` of build `{build}` has a matrix, so this could be any of its {} jobs",
            of.step,
            jobs.len()
        );
        let first = jobs.first().and_then(|(job, _)| job.variant.as_ref()).map_or("", |variant| variant.as_str());
        self.blame_at(of.at, message, format!("name the variant, for instance `{}.{first}`", of.step));
        None
    }

    /// The job of another build whose image this is to be.
    pub(super) fn image_of_build(&mut self, of: &OfBuild, key: Key) -> Option<(BuildId, JobName)> {
        let (build, job, left) = self.used_one(of, key)?;
        if !left.image {
            let message = format!("job `{job}` of build `{build}` left no image");
            self.blame_at(of.at, message, "a step leaves one with `commit: true`".to_owned());
            return None;
        }
        Some((build.clone(), job.clone()))
    }

    /// The job of another build whose root tarball this is to be.
    pub(super) fn import_of_build(
        &mut self,
        of: &OfBuild,
        glob: &Glob,
        template: &Template,
        key: Key,
    ) -> Option<(BuildId, JobName)> {
        let (build, job, left) = self.used_one(of, key)?;
        match self.matches(build, job, left, glob)? {
            0 => self.blame_nothing(build, &[(job, left)], glob, template),
            1 => return Some((build.clone(), job.clone())),
            many => {
                let message = format!("{} matches {many} artifacts of job `{job}`", quote(glob.as_str()));
                self.blame(template, message, Some("name one to import".to_owned()));
            }
        }
        None
    }

    /// One mount for each job of another build, with the globs that match something of it. Each must match something of one.
    pub(super) fn inputs_of_build(
        &mut self,
        of: &OfBuild,
        globs: &[(Glob, &Template)],
        path: &str,
        key: Key,
    ) -> Option<Vec<InputSpec>> {
        let (build, jobs) = self.used(of, key)?;
        self.uses.parts += jobs.len() * globs.len();
        if self.uses.parts > PLAN_MAX_PARTS {
            let message = format!("the jobs take more than {PLAN_MAX_PARTS} inputs from other builds");
            self.blame_at(of.at, message, "ask for fewer globs or variants".to_owned());
            return None;
        }
        let mut found = vec![false; globs.len()];
        let mut specs = Vec::new();
        for &(job, left) in &jobs {
            let mut artifacts = Vec::new();
            for ((glob, _), found) in globs.iter().zip(&mut found) {
                if self.matches(build, job, left, glob)? > 0 {
                    *found = true;
                    artifacts.push(glob.clone());
                }
            }
            if artifacts.is_empty() {
                continue;
            }
            let mount_path = match &job.variant {
                Some(variant) => format!("{path}/{variant}"),
                None => path.to_owned(),
            };
            specs.push(InputSpec { build: Some(build.clone()), job: job.clone(), artifacts, mount_path });
        }
        for ((glob, template), _) in globs.iter().zip(&found).filter(|(_, found)| !**found) {
            self.blame_nothing(build, &jobs, glob, template);
        }
        found.into_iter().all(|found| found).then_some(specs)
    }

    /// How many artifacts of a job a glob matches; `None` when too much would have to be compared.
    fn matches(&mut self, build: &BuildId, job: &JobName, left: &UsedJob, glob: &Glob) -> Option<usize> {
        let key = (build.clone(), job.clone(), glob.clone());
        if let Some(count) = self.uses.met.get(&key) {
            return Some(*count);
        }
        self.uses.matches += left.artifacts.len();
        if self.uses.matches > MATCHES_MAX {
            let message = "the inputs from other builds would have to be held against too many artifacts".to_owned();
            self.blame_at(Position::START, message, "ask for fewer different globs".to_owned());
            return None;
        }
        let matcher = glob.matcher();
        let count = left.artifacts.iter().filter(|path| matcher.is_match(path.as_str())).count();
        self.uses.met.insert(key, count);
        Some(count)
    }

    fn blame_nothing(&mut self, build: &BuildId, jobs: &[(&JobName, &UsedJob)], glob: &Glob, template: &Template) {
        let step = jobs.first().map_or("", |(job, _)| job.step.as_str());
        let left = jobs.iter().flat_map(|(_, left)| &left.artifacts);
        let names: BTreeSet<&str> = left.map(RelPath::as_str).collect();
        let help = match names.len() {
            0 => "the step left no artifacts".to_owned(),
            1..=NAMED_MAX => format!("it left {}", quote_list(names)),
            _ => format!("`railyard artifacts {build}` lists what it left"),
        };
        let message = format!("no artifact of step `{step}` of build `{build}` matches {}", quote(glob.as_str()));
        self.blame(template, message, Some(help));
    }
}
