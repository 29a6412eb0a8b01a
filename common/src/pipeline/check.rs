//! Checks what only all steps together show: dependencies that cannot be met, and cycles.

use super::diagnostic::{Position, Problems, quote, quote_list};
use super::model::{Dependency, Image, Origin, Pipeline, Step};
use crate::platform::Platform;
use std::collections::VecDeque;

/// Reports every dependency of `pipeline` that cannot be met.
pub(super) fn check(pipeline: &Pipeline, problems: &mut Problems) {
    for step in &pipeline.steps {
        for dependency in step.dependencies() {
            let Some(target) = pipeline.steps.get(dependency.step) else { continue };
            check_platform(step, dependency, target, problems);
            check_variant(dependency, target, problems);
        }
        match &step.image {
            Image::Step(Origin::Step(from)) => check_image(pipeline, step, from, true, problems),
            Image::Import(Origin::Step(from), _) => check_image(pipeline, step, from, false, problems),
            Image::Step(Origin::Build(from)) | Image::Import(Origin::Build(from), _) => {
                check_image_platform(step, from.platform, from.at, problems);
            }
            Image::Registry(_) | Image::Unread => {}
        }
    }
    check_cycles(pipeline, problems);
}

fn names(platforms: &[Platform]) -> String {
    quote_list(platforms.iter().map(|platform| platform.as_str()))
}

fn check_platform(step: &Step, dependency: &Dependency, target: &Step, problems: &mut Problems) {
    let wanted = match &dependency.platform {
        Some(platform) => std::slice::from_ref(platform),
        None => step.platforms.as_slice(),
    };
    let Some(missing) = wanted.iter().find(|platform| !target.platforms.contains(platform)) else { return };
    if target.platforms.is_empty() {
        return; // Its platforms could not be read, which is reported.
    }
    let name = &target.name;
    let message = match dependency.platform {
        Some(_) => format!("step `{name}` does not run on `{missing}`"),
        None => format!("step `{}` runs on `{missing}`, but step `{name}`, which it needs, does not", step.name),
    };
    let help = match (dependency.platform, target.platforms.as_slice()) {
        (None, [only]) => format!("write `{name}@{only}` for its job on that platform"),
        _ => format!("step `{name}` runs on {}", names(&target.platforms)),
    };
    problems.add_help(dependency.at, message, help);
}

fn check_variant(dependency: &Dependency, target: &Step, problems: &mut Problems) {
    let Some(variant) = &dependency.variant else { return };
    let known: Vec<&str> = target.variants.iter().filter_map(|v| v.name.as_ref()).map(|name| name.as_str()).collect();
    if !known.contains(&variant.as_str()) {
        let message = format!("step `{}` has no variant {}", target.name, quote(variant.as_str()));
        problems.add_unknown(dependency.at, message, variant.as_str(), "variants", &known);
    }
}

fn check_image(pipeline: &Pipeline, step: &Step, from: &Dependency, committed: bool, problems: &mut Problems) {
    let Some(target) = pipeline.steps.get(from.step) else { return };
    let name = &target.name;
    if committed && !target.commit {
        let message = format!("step `{name}` leaves no image");
        problems.add_help(from.at, message, format!("add `commit: true` to step `{name}`"));
    }
    if target.has_matrix() && from.variant.is_none() {
        let first = target.variants.iter().find_map(|variant| variant.name.as_ref());
        let message = format!("step `{name}` has a matrix, so this could be any of its {} jobs", target.variants.len());
        let help = format!("name the variant, for instance `{name}.{}`", first.map_or("", |first| first.as_str()));
        problems.add_help(from.at, message, help);
    }
    check_image_platform(step, from.platform, from.at, problems);
}

fn check_image_platform(step: &Step, platform: Option<Platform>, at: Position, problems: &mut Problems) {
    if let Some(platform) = platform
        && let Some(own) = step.platforms.iter().find(|own| **own != platform)
    {
        let message = format!("an image for `{platform}` cannot run step `{}` on `{own}`", step.name);
        problems.add_help(at, message, "an image comes from a job on the same platform; take files as `inputs`");
    }
}

/// Reports one shortest cycle for every group of steps that wait for each other.
///
/// Steps suffice: a job's dependencies are those of its step on every platform, so where steps go round, jobs do.
fn check_cycles(pipeline: &Pipeline, problems: &mut Problems) {
    let mut reported = vec![false; pipeline.steps.len()];
    for start in 0..pipeline.steps.len() {
        if reported[start] {
            continue;
        }
        let Some((path, at)) = shortest_cycle(pipeline, start) else { continue };
        let names: Vec<&str> = path.iter().chain([&start]).map(|&step| pipeline.steps[step].name.as_str()).collect();
        let message = format!("steps need each other in a cycle: {}", names.join(" -> "));
        problems.add_help(at, message, "one of them must do without another");
        path.into_iter().for_each(|step| reported[step] = true);
    }
}

/// The steps of a shortest cycle through `start`, and where `start` names the next of them.
fn shortest_cycle(pipeline: &Pipeline, start: usize) -> Option<(Vec<usize>, Position)> {
    let mut from: Vec<Option<(usize, Position)>> = vec![None; pipeline.steps.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(step) = queue.pop_front() {
        for dependency in pipeline.steps[step].dependencies() {
            let next = dependency.step;
            if next >= from.len() || from[next].is_some() {
                continue;
            }
            from[next] = Some((step, dependency.at));
            if next == start {
                return Some(walk_back(&from, start));
            }
            queue.push_back(next);
        }
    }
    None
}

fn walk_back(from: &[Option<(usize, Position)>], start: usize) -> (Vec<usize>, Position) {
    let mut path = Vec::new();
    let (mut step, mut at) = (start, Position::START);
    while let Some((before, place)) = from[step] {
        path.push(before);
        (step, at) = (before, place);
        if step == start {
            break;
        }
    }
    path.reverse();
    (path, at)
}
