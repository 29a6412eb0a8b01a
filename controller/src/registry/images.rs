//! Which images there are, in the farm's own state.

use railyard_common::blob::Image;
use railyard_common::id::Version;
use railyard_common::image_name::{LATEST, repository, tag};
use railyard_common::platform::Platform;
use railyard_common::retention::Keep;
use railyard_core::{Build, BuildState, Farm, Verdict};
use std::collections::{BTreeMap, BTreeSet};

/// What a tag stands for: the images that one step of one build left.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub version: Version,
    /// By platform; those that are there.
    pub images: Vec<(Platform, Image)>,
    /// Whether the step runs on several platforms.
    pub several: bool,
}

/// Every repository that has an image, by name.
pub(super) fn repositories(farm: &Farm) -> BTreeSet<String> {
    let committed = farm.builds().filter(|build| build.keep() == Keep::All).flat_map(|build| {
        let jobs = build.plan.jobs.iter().zip(build.jobs()).filter(|(spec, _)| spec.run.commit);
        let made = jobs.filter(|(_, id)| farm.job(*id).and_then(|job| job.result()?.image.as_ref()).is_some());
        made.map(|(spec, _)| repository(&build.plan.build.pipeline, &spec.name))
    });
    committed.collect()
}

/// The repository's tags; `None` if no step commits such an image.
pub(super) fn tags(farm: &Farm, name: &str) -> Option<BTreeSet<String>> {
    let builds = builds(farm, name)?;
    let given = builds.iter().filter(|build| !build.kept.tags.is_empty() && shown(farm, build, name).is_some());
    let given: BTreeSet<String> = given.flat_map(|build| build.kept.tags.iter().map(ToString::to_string)).collect();
    let succeeded = builds.iter().any(|build| is_release(build) && shown(farm, build, name).is_some());
    let mut tagged: BTreeMap<String, Vec<&Build>> = BTreeMap::new();
    for build in builds.into_iter().filter(|build| shown(farm, build, name).is_some()) {
        tagged.entry(tag(&build.id().version)).or_default().push(build);
    }
    let tags = tagged.into_iter().filter(|(_, builds)| only(builds.iter().copied()).is_some()).map(|(tag, _)| tag);
    Some(tags.chain(given).chain(succeeded.then(|| LATEST.to_owned())).collect())
}

/// What the tag stands for.
pub(super) fn tagged(farm: &Farm, name: &str, wanted: &str) -> Option<Shown> {
    let builds = builds(farm, name)?;
    if wanted == LATEST {
        return builds.into_iter().filter(|build| is_release(build)).find_map(|build| shown(farm, build, name));
    }
    let named: Vec<&Build> = builds.iter().copied().filter(|build| tag(&build.id().version) == wanted).collect();
    // A version goes before a tag that somebody gave, which goes before the version of what nobody has looked at.
    let given = || builds.iter().copied().find(|build| has_tag(build, wanted));
    let build = if named.iter().any(|build| !build.is_untrusted()) {
        only(named.into_iter())
    } else {
        given().or_else(|| only(named.into_iter()))
    };
    shown(farm, build?, name)
}

/// The one build of these, which have one tag: a tag that would mean two versions means neither. Untrusted ones do not count
/// beside others: whoever finds a version with the tag of another cannot take that away.
fn only<'f>(builds: impl Iterator<Item = &'f Build>) -> Option<&'f Build> {
    let (untrusted, trusted): (Vec<_>, Vec<_>) = builds.partition(|build| build.is_untrusted());
    match if trusted.is_empty() { untrusted } else { trusted }.as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

/// Every build's images, newest first, and those of untrusted builds last: only so many are searched. `None` if no step commits
/// such an image.
pub(super) fn all(farm: &Farm, name: &str) -> Option<Vec<Shown>> {
    Some(builds(farm, name)?.into_iter().filter_map(|build| shown(farm, build, name)).collect())
}

/// Whether somebody gave it that tag.
fn has_tag(build: &Build, wanted: &str) -> bool {
    build.kept.tags.iter().any(|tag| tag.as_str() == wanted)
}

/// Whether `latest` may mean it.
fn is_release(build: &Build) -> bool {
    matches!(build.state, BuildState::Ended { verdict: Verdict::Succeeded, .. }) && !build.is_untrusted()
}

/// The builds with a step that commits such images, newest first, the untrusted ones last.
fn builds<'f>(farm: &'f Farm, name: &str) -> Option<Vec<&'f Build>> {
    let whole = farm.builds().filter(|build| build.keep() == Keep::All);
    let mut builds: Vec<&Build> = whole.filter(|build| specs(build, name).next().is_some()).collect();
    builds.sort_by_key(|build| (build.is_untrusted(), std::cmp::Reverse(build.first_job)));
    (!builds.is_empty()).then_some(builds)
}

/// The places in the plan of the jobs that commit such images.
fn specs(build: &Build, name: &str) -> impl Iterator<Item = usize> {
    let pipeline = &build.plan.build.pipeline;
    // Told apart cheaply: a farm has thousands of builds, and most are of other pipelines.
    let could_be = name.split('/').next().is_some_and(|first| first == pipeline.as_str() || first.contains('.'));
    let jobs = build.plan.jobs.iter().enumerate().filter(move |(_, spec)| could_be && spec.run.commit);
    jobs.filter(move |(_, spec)| repository(pipeline, &spec.name) == name).map(|(index, _)| index)
}

fn shown(farm: &Farm, build: &Build, name: &str) -> Option<Shown> {
    let ids: Vec<_> = build.jobs().collect();
    let places: Vec<usize> = specs(build, name).collect();
    let images = places.iter().filter_map(|place| {
        let image = farm.job(*ids.get(*place)?)?.result()?.image.clone()?;
        Some((build.plan.jobs.get(*place)?.name.platform, image))
    });
    let mut images: Vec<(Platform, Image)> = images.collect();
    images.sort_by_key(|(platform, _)| *platform);
    let several = places.len() > 1;
    (!images.is_empty()).then(|| Shown { version: build.id().version.clone(), images, several })
}
