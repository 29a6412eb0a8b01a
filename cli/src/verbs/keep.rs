//! `pin`, `unpin`, `tag`, `untag` and `delete`: which builds are kept, and by which names.

use crate::args::{DeleteArgs, PinArgs, TagArgs, UnpinArgs, UntagArgs};
use crate::confirm;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, keep as render};
use crate::view::Pin;
use jiff::Timestamp;
use railyard_proto::v1::{DeleteBuildRequest, PinBuildRequest, TagBuildRequest, UnpinBuildRequest, UntagBuildRequest};
use serde::Serialize;

/// What `pin` says.
#[derive(Serialize)]
struct Pinned {
    build: String,
    pin: Pin,
}

/// Keeps a build.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn pin(args: &PinArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let request = PinBuildRequest {
        build: args.build.clone(),
        why: args.why.clone(),
        name: args.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        until: args.until.map(stamp),
        for_secs: args.term.map_or(0, |term| term.as_secs()),
    };
    let answer = farm.client().pin_build(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let answer = answer.into_inner();
    let told = Pinned { build: answer.build, pin: answer.pin.unwrap_or_default().into() };
    if console.is_json() {
        return console.json(&told);
    }
    let until = told.pin.until.map_or_else(
        || format!("until somebody takes it back: railyard unpin {} --name {}", told.build, told.pin.name),
        |until| format!("until {}", console.date(until)),
    );
    console.print(&format!("{} is pinned as {} {until}\n", told.build, told.pin.name))
}

/// What `unpin` says.
#[derive(Serialize)]
struct Unpinned {
    build: String,
    names: Vec<String>,
}

/// Takes pins back.
///
/// # Errors
/// [`Failure::Farm`], also if there is none, or none that is ours.
pub async fn unpin(args: &UnpinArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let name = args.name.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = UnpinBuildRequest { build: args.build.clone(), name, all: args.all };
    let answer = farm.client().unpin_build(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let answer = answer.into_inner();
    let told = Unpinned { build: answer.build, names: answer.names };
    if console.is_json() {
        return console.json(&told);
    }
    console.print(&format!("{} is no longer pinned by {}\n", told.build, told.names.join(", ")))
}

/// What `tag` and `untag` say.
#[derive(Serialize)]
struct Tagged<'a> {
    build: String,
    tag: &'a str,
    /// The build that had it before.
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_from: Option<String>,
}

/// Gives a build a tag.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn tag(args: &TagArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let request = TagBuildRequest { build: args.build.clone(), tag: args.tag.to_string() };
    let answer = farm.client().tag_build(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let answer = answer.into_inner();
    let moved_from = Some(answer.moved_from).filter(|from| !from.is_empty());
    if console.is_json() {
        return console.json(&Tagged { build: answer.build, tag: args.tag.as_str(), moved_from });
    }
    let before = moved_from.map(|from| format!(", which was {from} before")).unwrap_or_default();
    let pipeline = answer.build.split('/').next().unwrap_or_default();
    console.print(&format!("{} is {pipeline}/{}{before}\n", answer.build, args.tag))
}

/// Takes a tag back.
///
/// # Errors
/// [`Failure::Farm`], also if no build has it.
pub async fn untag(args: &UntagArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let request = UntagBuildRequest { pipeline: args.pipeline.to_string(), tag: args.tag.to_string() };
    let answer = farm.client().untag_build(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let build = answer.into_inner().build;
    if console.is_json() {
        return console.json(&Tagged { build, tag: args.tag.as_str(), moved_from: None });
    }
    console.print(&format!("{build} is no longer {}/{}\n", args.pipeline, args.tag))
}

/// What `delete` says.
#[derive(Serialize)]
struct Deleted {
    build: String,
    deleted: bool,
}

/// Deletes a build.
///
/// # Errors
/// [`Failure::Usage`] if nobody says yes; [`Failure::Farm`], also if the build is needed.
pub async fn delete(args: &DeleteArgs, console: &Console) -> Result<(), Failure> {
    if !args.build.contains('/') {
        return Err(Failure::Usage(format!(
            "`{}` is whichever build of that pipeline is the newest; name the one to delete, PIPELINE/VERSION",
            args.build
        )));
    }
    if !args.yes {
        confirm::possible("--yes")?;
    }
    let farm = Farm::open(&args.ask.farm).await?;
    // What was looked at is what is deleted, whoever moves the tag meanwhile.
    let mut build = args.build.clone();
    if !args.yes {
        let found = farm.build(&args.build).await?;
        console.note(&render::about(&found, console.now()));
        if !confirm::ask(&format!("Delete {}? It cannot be taken back.", found.build))? {
            return Err(Failure::Usage("nothing was deleted".to_owned()));
        }
        build = found.build;
    }
    let request = DeleteBuildRequest { build, why: args.why.clone(), force: args.force };
    let answer = farm.client().delete_build(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let build = answer.into_inner().build;
    if console.is_json() {
        return console.json(&Deleted { build, deleted: true });
    }
    console.print(&format!("{build} is deleted; what only it needed goes with a sweep, after the grace\n"))
}

fn stamp(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}
