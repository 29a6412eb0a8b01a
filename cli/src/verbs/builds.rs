//! `builds` and `show`.

use crate::args::{BuildsArgs, ShowArgs};
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, build, graph, lists};
use crate::view::Build;
use railyard_common::id::PipelineName;
use railyard_proto::v1::ListBuildsRequest;

/// Lists builds, newest first.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn builds(args: &BuildsArgs, console: &Console) -> Result<(), Failure> {
    let pipeline = args.pipeline.clone().unwrap_or_default();
    if !pipeline.is_empty() {
        pipeline.parse::<PipelineName>().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let farm = Farm::open(&args.ask.farm).await?;
    let request = farm.request(ListBuildsRequest { pipeline, limit: args.limit, deleted: args.deleted });
    let answer = farm.client().list_builds(request).await.map_err(|status| farm.refused(&status))?;
    let builds: Vec<Build> = answer.into_inner().builds.into_iter().map(Build::from).collect();
    if console.is_json() {
        return console.json(&builds);
    }
    if builds.is_empty() {
        console.note(match args.deleted {
            true => "nothing was deleted, or all of it is gone already; builds.json in the cache lists what was",
            false => "no builds yet; `railyard submit FILE` makes one",
        });
        return Ok(());
    }
    if args.deleted {
        return console.print(&lists::deleted(&builds, console.now()).render(console.out));
    }
    console.print(&lists::builds(&builds, console.now()).render(console.out))
}

/// Shows one build.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn show(args: &ShowArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let found = farm.build(&args.build).await?;
    if console.is_json() {
        return console.json(&found);
    }
    let mut text = build::show(&found, console);
    if args.graph {
        text.push('\n');
        text.push_str(&graph::graph(&found, console.out));
    }
    console.print(&text)
}
