//! Which jobs a build has, and in what order they stand in its plan.

use super::model::{Dependency, Origin, Pipeline, Step};
use crate::id::JobName;
use crate::job::JobSpec;
use crate::platform::Platform;
use std::collections::{BTreeMap, BTreeSet};

/// A job before it has a name: its step, platform and variant by index. Its order is the display order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub step: usize,
    pub platform: Platform,
    pub variant: usize,
}

impl Pipeline {
    /// Every job for `platforms`, and the jobs on other platforms that those need.
    pub(super) fn keys(&self, platforms: &[Platform]) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        let mut waiting: Vec<Key> = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            for &platform in step.platforms.iter().filter(|platform| platforms.contains(platform)) {
                waiting.extend((0..step.variants.len()).map(|variant| Key { step: index, platform, variant }));
            }
        }
        // Variants share their dependencies: the first to come asks for all.
        let mut asked: BTreeSet<(usize, Platform)> = BTreeSet::new();
        while let Some(key) = waiting.pop() {
            if keys.insert(key) && asked.insert((key.step, key.platform)) {
                let needed = self.steps[key.step].dependencies().flat_map(|dependency| self.targets(dependency, key));
                waiting.extend(needed.filter(|needed| !keys.contains(needed)));
            }
        }
        keys
    }

    /// The jobs that `dependency` of job `key` means.
    pub(super) fn targets(&self, dependency: &Dependency, key: Key) -> impl Iterator<Item = Key> {
        let platform = dependency.platform.unwrap_or(key.platform);
        let step = dependency.step;
        let target = self.steps.get(step).filter(|target| target.platforms.contains(&platform));
        let variants = target.map_or(&[][..], |target| &target.variants);
        let wanted = dependency.variant.clone();
        let named = variants.iter().enumerate().filter(move |(_, v)| wanted.is_none() || v.name == wanted);
        named.map(move |(variant, _)| Key { step, platform, variant })
    }

    /// The name of job `key`.
    pub(super) fn job_name(&self, key: Key) -> JobName {
        let step = &self.steps[key.step];
        let variant = step.variants.get(key.variant).and_then(|variant| variant.name.clone());
        JobName { step: step.name.clone(), variant, platform: key.platform }
    }

    /// How many jobs all platforms together make.
    pub(super) fn job_count(&self) -> usize {
        self.steps.iter().map(|step| step.platforms.len() * step.variants.len()).sum()
    }

    /// How many dependencies, input globs and outputs the jobs of all platforms have together.
    pub(super) fn part_count(&self) -> usize {
        let width = |dependency: &Dependency| match dependency.variant {
            Some(_) => 1,
            None => self.steps.get(dependency.step).map_or(0, |target| target.variants.len()),
        };
        // Those of other builds are counted when they are known.
        let sources = |origin: &Origin| match origin {
            Origin::Step(dependency) => width(dependency),
            Origin::Build(_) => 1,
        };
        let parts = |step: &Step| {
            let waits: usize = step.dependencies().map(width).sum();
            let globs: usize = step.inputs.iter().map(|input| sources(&input.from) * input.artifacts.len()).sum();
            waits + globs + step.outputs.len()
        };
        self.steps.iter().map(|step| step.platforms.len() * step.variants.len() * parts(step)).sum()
    }
}

/// `jobs`, which stand in display order, with dependencies first and display order otherwise.
/// `None` where they go round in a cycle.
pub(super) fn in_order(jobs: Vec<JobSpec>) -> Option<Vec<JobSpec>> {
    let index: BTreeMap<&JobName, usize> = jobs.iter().enumerate().map(|(index, job)| (&job.name, index)).collect();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); jobs.len()];
    let mut missing: Vec<usize> = vec![0; jobs.len()];
    for (job, spec) in jobs.iter().enumerate() {
        for need in &spec.needs {
            dependents[*index.get(need)?].push(job);
            missing[job] += 1;
        }
    }
    let mut ready: BTreeSet<usize> = (0..jobs.len()).filter(|&job| missing[job] == 0).collect();
    let mut order = Vec::with_capacity(jobs.len());
    while let Some(job) = ready.pop_first() {
        order.push(job);
        for &dependent in &dependents[job] {
            missing[dependent] -= 1;
            if missing[dependent] == 0 {
                ready.insert(dependent);
            }
        }
    }
    let mut jobs: Vec<Option<JobSpec>> = jobs.into_iter().map(Some).collect();
    order.into_iter().map(|job| jobs[job].take()).collect::<Option<Vec<_>>>().filter(|order| order.len() == jobs.len())
}
