//! What people say about keeping builds: pins, tags, and that one is to go.

use super::audit::Asked;
use super::auth::{caller, in_scope};
use super::client::{Client, denied_status};
use super::{bad_request, command_status, read, sweep, view};
use crate::access::table;
use crate::audit::{Act, By};
use crate::finalize::PromoteError;
use railyard_common::id::{BuildId, ChannelName, PinName, PipelineName, TagName};
use railyard_common::retention::{Keep, Pin};
use railyard_common::time::Millis;
use railyard_common::{image_name, layout};
use railyard_core::{Command, Event, Force, Reduction, Refusal, Whose};
use railyard_proto::v1;
use railyard_service::convert::{self, TEXT_MAX_BYTES};
use railyard_service::tls::Identity;
use railyard_service::{error_chain, rpc_error};
use tonic::{Code, Request, Status};

/// Longest term of a pin: a hundred years; beyond that it is no time but a mistake.
const PIN_MAX_SECS: u64 = 100 * 365 * 24 * 3600;

/// Keeps a build.
pub(super) async fn pin(
    client: &Client,
    request: Request<v1::PinBuildRequest>,
) -> Result<v1::PinBuildResponse, Status> {
    let who = caller(&request)?;
    let (asked, client) = (Asked::new(&client.audit, &request, Act::Pin), client.clone());
    let request = request.into_inner();
    let asked = asked.target(&request.build).detail("name", &request.name).detail("why", &request.why);
    let pin = async move { client.pin(&who, request).await };
    let told = |entry: crate::audit::Entry, done: &v1::PinBuildResponse| {
        let entry = entry.target(&done.build);
        match done.pin.as_ref().and_then(|pin| pin.until.as_ref()) {
            Some(until) => entry.detail("until", crate::document::rfc3339(convert::millis(until))),
            None => entry,
        }
    };
    asked.carry_out(pin, told).await
}

/// Takes pins back.
pub(super) async fn unpin(
    client: &Client,
    request: Request<v1::UnpinBuildRequest>,
) -> Result<v1::UnpinBuildResponse, Status> {
    let who = caller(&request)?;
    let (asked, client) = (Asked::new(&client.audit, &request, Act::Unpin), client.clone());
    let request = request.into_inner();
    let asked = asked.target(&request.build).detail("name", &request.name);
    let unpin = async move { client.unpin(&who, request).await };
    let told = |entry: crate::audit::Entry, done: &v1::UnpinBuildResponse| {
        entry.target(&done.build).detail("names", done.names.join(" "))
    };
    asked.carry_out(unpin, told).await
}

/// Gives a build a tag.
pub(super) async fn tag(
    client: &Client,
    request: Request<v1::TagBuildRequest>,
) -> Result<v1::TagBuildResponse, Status> {
    let who = caller(&request)?;
    let (asked, client) = (Asked::new(&client.audit, &request, Act::Tag), client.clone());
    let request = request.into_inner();
    let asked = asked.target(&request.build).detail("tag", &request.tag);
    let tag = async move { client.tag(&who, request).await };
    let told = |entry: crate::audit::Entry, done: &v1::TagBuildResponse| {
        let entry = entry.target(&done.build);
        if done.moved_from.is_empty() { entry } else { entry.detail("from", done.moved_from.clone()) }
    };
    asked.carry_out(tag, told).await
}

/// Takes a tag back.
pub(super) async fn untag(
    client: &Client,
    request: Request<v1::UntagBuildRequest>,
) -> Result<v1::UntagBuildResponse, Status> {
    let who = caller(&request)?;
    let (asked, client) = (Asked::new(&client.audit, &request, Act::Untag), client.clone());
    let request = request.into_inner();
    let asked = asked.target(&request.pipeline).detail("tag", &request.tag);
    let untag = async move { client.untag(&who, request).await };
    asked.carry_out(untag, |entry, done: &v1::UntagBuildResponse| entry.target(&done.build)).await
}

/// Puts a build into a channel.
pub(super) async fn promote(
    client: &Client,
    request: Request<v1::PromoteBuildRequest>,
) -> Result<v1::PromoteBuildResponse, Status> {
    let who = caller(&request)?;
    let (asked, client) = (Asked::new(&client.audit, &request, Act::Promote), client.clone());
    let request = request.into_inner();
    let asked = asked.target(&request.build).detail("channel", &request.channel);
    let promote = async move { client.promote(&who, request).await };
    let told = |entry: crate::audit::Entry, done: &v1::PromoteBuildResponse| {
        let paths = done.promotion.as_ref().map_or(0, |promotion| promotion.paths.len());
        entry.target(&done.build).detail("from", done.from.clone()).detail("published", paths.to_string())
    };
    asked.carry_out(promote, told).await
}

/// Deletes a build.
pub(super) async fn delete(
    client: &Client,
    request: Request<v1::DeleteBuildRequest>,
) -> Result<v1::DeleteBuildResponse, Status> {
    let who = caller(&request)?;
    let (asked, client) = (Asked::new(&client.audit, &request, Act::Delete), client.clone());
    let request = request.into_inner();
    let forced = if request.force { "true" } else { "" };
    let asked = asked.target(&request.build).detail("why", &request.why).detail("forced", forced);
    let delete = async move { client.delete(&who, request).await };
    asked.carry_out(delete, |entry, done: &v1::DeleteBuildResponse| entry.target(&done.build)).await
}

impl Client {
    async fn pin(&self, who: &Identity, request: v1::PinBuildRequest) -> Result<v1::PinBuildResponse, Status> {
        // It is journaled, and told to everyone who looks.
        convert::at_most("why", request.why.len(), TEXT_MAX_BYTES, "bytes")?;
        let name = pin_name(who, &request.name)?;
        let now = self.clock.now();
        let until = until(now, request.until.as_ref().map(convert::millis), request.for_secs)?;
        let build = read::resolve(&self.farm, who, &request.build).await?;
        self.in_tier(who, &build).await?;
        let pin = Pin { at: now, by: who.to_string(), why: request.why, until };
        let command = Command::Pin { build: build.clone(), name: name.clone(), pin: pin.clone(), whose: whose(who) };
        self.farm.decide(command).await.map_err(command_status)?;
        Ok(v1::PinBuildResponse { build: build.to_string(), pin: Some(view::pin(&name, &pin)) })
    }

    async fn unpin(&self, who: &Identity, request: v1::UnpinBuildRequest) -> Result<v1::UnpinBuildResponse, Status> {
        let name = match (request.all, request.name.as_str()) {
            (true, "") => None,
            (true, _) => return Err(bad_request("name: with `all` no single pin can be named")),
            (false, name) => Some(pin_name(who, name)?),
        };
        let build = read::resolve(&self.farm, who, &request.build).await?;
        self.in_tier(who, &build).await?;
        let command = Command::Unpin { build: build.clone(), name, by: who.to_string(), whose: whose(who) };
        let events = self.farm.decide(command).await.map_err(command_status)?;
        let names = events.into_iter().flat_map(|event| match event {
            Event::BuildUnpinned { names, .. } => names,
            _ => Vec::new(),
        });
        let names = names.map(|name| name.to_string()).collect();
        Ok(v1::UnpinBuildResponse { build: build.to_string(), names })
    }

    async fn tag(&self, who: &Identity, request: v1::TagBuildRequest) -> Result<v1::TagBuildResponse, Status> {
        let tag: TagName = convert::parsed("tag", &request.tag)?;
        let build = read::resolve(&self.farm, who, &request.build).await?;
        let moved_from = self.tagged(&build.pipeline, &tag).await?.filter(|from| *from != build);
        let command = Command::Tag { build: build.clone(), tag, by: who.to_string() };
        self.farm.decide(command).await.map_err(command_status)?;
        let moved_from = moved_from.map(|from| from.to_string()).unwrap_or_default();
        Ok(v1::TagBuildResponse { build: build.to_string(), moved_from })
    }

    async fn untag(&self, who: &Identity, request: v1::UntagBuildRequest) -> Result<v1::UntagBuildResponse, Status> {
        let pipeline: PipelineName = convert::parsed("pipeline", &request.pipeline)?;
        in_scope(who, &pipeline)?;
        let tag = convert::parsed("tag", &request.tag)?;
        let events = self.farm.decide(Command::Untag { pipeline, tag, by: who.to_string() }).await;
        let had = events.map_err(command_status)?.into_iter().find_map(|event| match event {
            Event::BuildUntagged { build, .. } => Some(build.to_string()),
            _ => None,
        });
        Ok(v1::UntagBuildResponse { build: had.unwrap_or_default() })
    }

    async fn promote(
        &self,
        who: &Identity,
        request: v1::PromoteBuildRequest,
    ) -> Result<v1::PromoteBuildResponse, Status> {
        named(&request.build, "promote")?;
        let channel: ChannelName = convert::parsed("channel", &request.channel)?;
        let build = read::resolve(&self.farm, who, &request.build).await?;
        still(&request.build, &build, "promote")?;
        let asked = build.clone();
        let from = self.farm.read(move |farm, _| farm.build(&asked).map(|build| build.channel().to_string())).await;
        let from = from.map_err(command_status)?.unwrap_or_default();
        let allowed = self.allowed.borrow().clone();
        let promoted = self.finalizer.promote(&build, &channel, &who.to_string(), &allowed.policy).await;
        let promotion = promoted.map_err(promote_status)?;
        tracing::info!(%build, %channel, from, by = %who, "the build is promoted");
        // Also if it was there before: whoever asks once more may do so because of the lists.
        let listed = self.finalizer.indexer().write(&build.pipeline, None).await;
        Ok(v1::PromoteBuildResponse {
            build: build.to_string(),
            from,
            promotion: promotion.map(|promotion| view::promotion(&promotion, true)),
            lists_wait: listed.err().map(|error| error_chain(&error)).unwrap_or_default(),
        })
    }

    async fn delete(&self, who: &Identity, request: v1::DeleteBuildRequest) -> Result<v1::DeleteBuildResponse, Status> {
        convert::at_most("why", request.why.len(), TEXT_MAX_BYTES, "bytes")?;
        named(&request.build, "delete")?;
        let build = match read::resolve(&self.farm, who, &request.build).await {
            Err(status) if rpc_error::reason_of(&status).as_deref() == Some(rpc_error::UNKNOWN_BUILD) => {
                return self.delete_unknown(who, &request, status).await;
            }
            found => found?,
        };
        still(&request.build, &build, "delete")?;
        let by = who.to_string();
        let reduction = Reduction { build: build.clone(), keep: Keep::Nothing, why: request.why };
        let force = if request.force { Force::Forced } else { Force::Asked };
        let command = Command::Reduce { builds: vec![reduction], by, force };
        self.farm.decide(command).await.map_err(command_status)?;
        tracing::info!(%build, by = %who, forced = request.force, "the build is deleted");
        Ok(v1::DeleteBuildResponse { build: build.to_string() })
    }

    /// Deletes a build that the farm does not know and the cache does, as after a restore.
    async fn delete_unknown(
        &self,
        who: &Identity,
        request: &v1::DeleteBuildRequest,
        unknown: Status,
    ) -> Result<v1::DeleteBuildResponse, Status> {
        let build: BuildId = request.build.parse().map_err(bad_request)?;
        let manifest = self.cache.get_stream(&layout::build_manifest(&build)).await;
        let failed = |error| rpc_error::refusal(Code::Unavailable, rpc_error::BUSY, error_chain(&error));
        if manifest.map_err(failed)?.is_none() {
            return Err(unknown);
        }
        if !request.force {
            let message = format!(
                "build `{build}` has a manifest in the cache, and this controller, whose state may come from a backup, does not know who \
                 needs it; with --force it is deleted all the same"
            );
            let reason = Refusal::BuildNeeded { build, why: String::new() }.reason();
            return Err(rpc_error::refusal(Code::FailedPrecondition, reason, message));
        }
        let why = if request.why.is_empty() { format!("deleted by {who}") } else { request.why.clone() };
        self.sweep.delete_unknown(build.clone(), By::Somebody(who.clone()), why).await.map_err(sweep::status)?;
        tracing::info!(%build, by = %who, "a build is deleted that only the cache knew");
        Ok(v1::DeleteBuildResponse { build: build.to_string() })
    }

    async fn tagged(&self, pipeline: &PipelineName, tag: &TagName) -> Result<Option<BuildId>, Status> {
        let (pipeline, tag) = (pipeline.clone(), tag.clone());
        let found = self.farm.read(move |farm, _| farm.tagged(&pipeline, &tag).map(|build| build.id().clone()));
        found.await.map_err(command_status)
    }
}

/// Refuses what names whichever build is the newest.
fn named(build: &str, verb: &str) -> Result<(), Status> {
    if build.contains('/') {
        return Ok(());
    }
    Err(bad_request(format!(
        "build: `{build}` is whichever build of that pipeline is the newest; name the one to {verb}, PIPELINE/VERSION"
    )))
}

/// Refuses what names whichever build succeeded last; a tag names what an operator chose.
fn still(asked: &str, found: &BuildId, verb: &str) -> Result<(), Status> {
    let is_latest = asked.rsplit('/').next() == Some(image_name::LATEST);
    if !is_latest || found.version.as_str() == image_name::LATEST {
        return Ok(());
    }
    Err(bad_request(format!(
        "build: `{asked}` is whichever build succeeded last, {found} just now; name the one to {verb}, PIPELINE/VERSION"
    )))
}

fn promote_status(error: PromoteError) -> Status {
    let message = error_chain(&error);
    match error {
        PromoteError::Farm(error) => command_status(error),
        PromoteError::Denied(denied) => denied_status(&denied),
        PromoteError::Impossible { .. } => {
            rpc_error::refusal(Code::FailedPrecondition, rpc_error::NOT_PROMOTABLE, message)
        }
        PromoteError::Cache(_) => rpc_error::refusal(Code::Unavailable, rpc_error::BUSY, message),
    }
}

/// Whose pins the caller may replace and take back.
fn whose(who: &Identity) -> Whose {
    if table::refuses(table::OTHERS_PINS, Some(who)).is_none() { Whose::Anybodys } else { Whose::Own }
}

/// The name of a pin; by default the caller's.
fn pin_name(who: &Identity, given: &str) -> Result<PinName, Status> {
    if !given.is_empty() {
        return Ok(convert::parsed("name", given)?);
    }
    let own = who.name.parse();
    own.map_err(|error| bad_request(format!("your own name cannot be that of a pin: {error}; give one with --name")))
}

/// When a pin ends, of which one or the other was said.
fn until(now: Millis, until: Option<Millis>, for_secs: u64) -> Result<Option<Millis>, Status> {
    let until = match (until, for_secs) {
        (Some(_), 1..) => return Err(bad_request("until: with `for_secs` as well nobody knows which is meant")),
        (Some(until), 0) => until,
        (None, 0) => return Ok(None),
        (None, secs) => now.plus(secs.saturating_mul(1000)),
    };
    if until.since(now) > PIN_MAX_SECS * 1000 {
        return Err(bad_request("until: that is more than a hundred years ahead; without it a pin has no end"));
    }
    Ok(Some(until))
}
