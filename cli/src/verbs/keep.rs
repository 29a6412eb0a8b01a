//! `pin`, `unpin`, `tag`, `untag`, `promote` and `delete`: which builds are kept, by which names and in which channels.

use crate::args::{DeleteArgs, PinArgs, PromoteArgs, TagArgs, UnpinArgs, UntagArgs};
use crate::confirm;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, keep as render};
use crate::view::{Pin, Promotion};
use jiff::Timestamp;
use railyard_common::image_name;
use railyard_proto::v1::{
    DeleteBuildRequest, PinBuildRequest, PromoteBuildRequest, TagBuildRequest, UnpinBuildRequest, UntagBuildRequest,
};
use serde::Serialize;
use std::time::Duration;

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

/// A store may have to copy many gigabytes.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(3600);

/// What `promote` says.
#[derive(Serialize)]
struct Promoted {
    build: String,
    /// The channel that it was in before.
    from: String,
    channel: String,
    /// Left out if it was there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    promotion: Option<Promotion>,
    /// Why the lists do not have it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    lists_wait: Option<String>,
}

/// Puts a build into a channel.
///
/// # Errors
/// [`Failure::Usage`] for whichever build is the newest; [`Failure::Farm`], also if what it publishes cannot be published there.
pub async fn promote(args: &PromoteArgs, console: &Console) -> Result<(), Failure> {
    named(&args.build, "promote")?;
    let farm = Farm::open(&args.ask.farm).await?;
    let mut request =
        farm.request(PromoteBuildRequest { build: args.build.clone(), channel: args.channel.to_string() });
    request.set_timeout(PROMOTE_TIMEOUT);
    let answer = farm.client().promote_build(request).await.map_err(|status| farm.refused(&status))?;
    let answer = answer.into_inner();
    let told = Promoted {
        build: answer.build,
        from: answer.from,
        channel: args.channel.to_string(),
        promotion: answer.promotion.map(Promotion::from),
        lists_wait: Some(answer.lists_wait).filter(|why| !why.is_empty()),
    };
    if let Some(why) = &told.lists_wait {
        console.note(&format!("The lists of builds cannot be written yet, and are as soon as they can: {why}"));
    }
    if console.is_json() {
        return console.json(&told);
    }
    console.print(&render::promoted(&told.build, &told.from, &told.channel, told.promotion.as_ref()))
}

/// Refuses what names whichever build is the newest.
fn named(build: &str, verb: &str) -> Result<(), Failure> {
    if build.contains('/') {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "`{build}` is whichever build of that pipeline is the newest; name the one to {verb}, PIPELINE/VERSION"
    )))
}

/// Refuses what names whichever build succeeded last, as the controller does; a tag names what an operator chose.
fn still(asked: &str, found: &str, verb: &str) -> Result<(), Failure> {
    let is_latest = asked.rsplit('/').next() == Some(image_name::LATEST);
    if !is_latest || asked == found {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "`{asked}` is whichever build succeeded last, {found} just now; name the one to {verb}, PIPELINE/VERSION"
    )))
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
    named(&args.build, "delete")?;
    if !args.yes {
        confirm::possible("--yes")?;
    }
    let farm = Farm::open(&args.ask.farm).await?;
    // What was looked at is what is deleted, whoever moves the tag meanwhile.
    let mut build = args.build.clone();
    if !args.yes {
        let found = farm.known_build(&args.build).await?;
        if let Some(found) = &found {
            still(&args.build, &found.build, "delete")?;
            console.note(&render::about(found, console.now()));
            build.clone_from(&found.build);
        } else if args.force {
            console.note(&format!(
                "The controller does not know {build}. If the cache has its manifest, that goes, with what it says was published."
            ));
        }
        // Without --force nothing is deleted that the controller does not know.
        if (found.is_some() || args.force) && !confirm::ask(&format!("Delete {build}? It cannot be taken back."))? {
            return Err(Failure::Usage("nothing was deleted".to_owned()));
        }
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
