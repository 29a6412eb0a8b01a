//! A submit request becomes a plan.

use super::auth;
use super::client::Client;
use super::{bad_request, command_status};
use crate::access::table;
use crate::driver::{CommandError, Handle};
use railyard_common::build_ref::{BuildRef, UsedBuild, UsedBuilds, WantedBuilds};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName, PipelineName, StepName, Version};
use railyard_common::layout;
use railyard_common::pipeline::{Diagnostic, Pipeline, Request, Source};
use railyard_common::plan::Plan;
use railyard_common::platform::Platform;
use railyard_common::priority::Priority;
use railyard_common::tier;
use railyard_common::time::Millis;
use railyard_core::{Build, Command, Event, Farm, Refusal, Submission, Trace};
use railyard_proto::v1;
use railyard_service::tls::Identity;
use railyard_service::{error_chain, rpc_error};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tonic::{Code, Status};

/// Versions that are tried when the submitter names none: as many builds in one second.
const VERSION_TRIES: u32 = 1_000;

/// How often a submit looks for another free version because somebody took the one that it found.
const VERSION_RACES_MAX: u32 = 100;
/// How long a submit waits for the cache to say whether it has a build of that name.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// Longest idempotency key.
const KEY_MAX_LEN: usize = 256;

impl Client {
    /// Refuses a build that the farm does not know and the cache does, as after a restore: what it left would be taken for that of
    /// the new one. A cache that does not say cannot keep a farm from taking builds on.
    async fn is_of_nobody(&self, build: &BuildId) -> Result<(), Status> {
        let id = build.clone();
        if self.farm.read(move |farm, _| farm.build(&id).is_some()).await.map_err(command_status)? {
            return Ok(());
        }
        let manifest = layout::build_manifest(build);
        match tokio::time::timeout(LOOK_DEADLINE, self.cache.get_stream(&manifest)).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(_))) => {
                let message = format!(
                    "build `{build}` is in the cache ({manifest}), though this controller does not know it, as after a restore from a \
                     backup; choose another version, or `railyard delete {build} --force`"
                );
                Err(rpc_error::refusal(Code::AlreadyExists, rpc_error::BUILD_EXISTS, message))
            }
            Ok(Err(error)) => {
                tracing::warn!(%build, error = error_chain(&error), "cannot look whether the cache has a build of that name");
                Ok(())
            }
            Err(_) => {
                tracing::warn!(%build, "the cache does not say in time whether it has a build of that name");
                Ok(())
            }
        }
    }

    /// Takes a build on; a repeated request gives the build that it gave before.
    pub(super) async fn take_submit(
        &self,
        by: &Identity,
        trace: Trace,
        request: v1::SubmitRequest,
    ) -> Result<v1::SubmitResponse, Status> {
        let key = Some(request.idempotency_key.clone()).filter(|key| !key.is_empty());
        if key.as_ref().is_some_and(|key| key.len() > KEY_MAX_LEN) {
            return Err(bad_request(format!("the idempotency key is longer than {KEY_MAX_LEN} bytes")));
        }
        let untrusted = is_untrusted(by, &request);
        let priority = priority(by, &request, untrusted)?;
        let digest = if key.is_some() { digest(&request, priority, untrusted) } else { String::new() };
        let checked = Checked::new(by, request)?;
        auth::in_scope(by, checked.pipeline())?;
        // The key is its submitter's, its tier's and its pipeline's: others may happen to use the same one. No name has a colon.
        let tier = if untrusted { "untrusted:" } else { "" };
        let key = key.map(|key| format!("{tier}{}/{}/{key}", by.name, checked.pipeline()));
        if let Some(known) = self.known_submit(key.as_deref(), &digest).await? {
            return Ok(known);
        }
        let mut races = 0;
        let (events, plan, left_out) = loop {
            let (plan, left_out) = self.freeze(&checked).await?;
            if checked.names_version() {
                self.is_of_nobody(&plan.build).await?;
            }
            let (key, request, by, trace) = (key.clone(), digest.clone(), by.name.clone(), trace.clone());
            let submission = Submission { plan: plan.clone(), key, request, priority, by, trace };
            match self.farm.decide(Command::Submit(Box::new(submission))).await {
                // Another submit, or a tag, was given the same free version a moment ago.
                Err(CommandError::Refused(Refusal::BuildExists(_) | Refusal::VersionIsTag { .. }))
                    if !checked.names_version() && races < VERSION_RACES_MAX =>
                {
                    races += 1;
                }
                Err(error) => return Err(self.not_taken(error).await),
                Ok(events) => break (events, plan, left_out),
            }
        };
        let mut build = plan.build.clone();
        let existing = !events.iter().any(|event| matches!(event, Event::BuildAccepted { .. }));
        if let (true, Some(key)) = (existing, key) {
            let found = self.farm.read(move |farm, _| farm.by_key(&key).cloned()).await.map_err(command_status)?;
            build = found.unwrap_or(build);
        }
        let superseded = events.iter().filter_map(|event| match event {
            Event::BuildCancelled { build, .. } => Some(build.to_string()),
            _ => None,
        });
        let superseded = superseded.collect();
        let waiting = self.farm.read(move |farm, _| warnings(farm, &plan)).await.map_err(command_status)?;
        let warnings = left_out.into_iter().chain(waiting).collect();
        Ok(v1::SubmitResponse { build: build.to_string(), existing, warnings, superseded })
    }
}

impl Client {
    /// Why a build is not taken on. The version of a deleted one is not for ever in the way, and `show` does not know it.
    async fn not_taken(&self, error: CommandError) -> Status {
        let CommandError::Refused(Refusal::BuildExists(build)) = &error else { return command_status(error) };
        let id = build.clone();
        let is_deleted = self.farm.read(move |farm, _| farm.build(&id).is_some_and(Build::is_deleted)).await;
        if !is_deleted.unwrap_or(false) {
            return command_status(error);
        }
        let message = format!(
            "build `{build}` was deleted and is not swept yet; choose another version, or wait: with the first sweep after the grace it is free again (`railyard builds --deleted` lists such builds)"
        );
        rpc_error::refusal(Code::AlreadyExists, rpc_error::BUILD_EXISTS, message)
    }

    /// The answer to a submit that was taken before: what it needs may have changed since, and is asked no more.
    async fn known_submit(&self, key: Option<&str>, request: &str) -> Result<Option<v1::SubmitResponse>, Status> {
        let Some(key) = key.map(str::to_owned) else { return Ok(None) };
        let request = request.to_owned();
        let known = self.farm.read(move |farm, _| {
            let build = farm.submitted(&key, &request)?;
            let (id, warnings) = (build.id().to_string(), warnings(farm, &build.plan));
            Some(v1::SubmitResponse { build: id, existing: true, warnings, superseded: Vec::new() })
        });
        known.await.map_err(command_status)
    }
}

/// Whether the build is to be untrusted: because it was asked for so, or because its submitter submits no others.
pub(super) fn is_untrusted(by: &Identity, request: &v1::SubmitRequest) -> bool {
    request.untrusted || by.limits.untrusted
}

/// How urgent the build is to be, if its submitter may say so.
fn priority(by: &Identity, request: &v1::SubmitRequest, untrusted: bool) -> Result<Priority, Status> {
    let priority = match (request.priority.as_str(), untrusted) {
        ("", false) => Priority::default(),
        ("", true) => Priority::Change,
        (text, _) => text.parse().map_err(bad_request)?,
    };
    if untrusted && priority > Priority::Change {
        return Err(command_status(Refusal::TooUrgent(priority).into()));
    }
    if priority == Priority::Release {
        auth::require(by, table::SUBMIT_RELEASE)?;
    }
    Ok(priority)
}

/// What the request asks for, in a form that does not depend on the order in which maps travel. What only messages use is
/// left out, and so is what is not given: a field that is added later does not change the digests of requests without it.
fn digest(request: &v1::SubmitRequest, priority: Priority, untrusted: bool) -> String {
    let v1::SubmitRequest {
        pipeline,
        file_name: _,
        files,
        version,
        params,
        platforms,
        idempotency_key: _,
        priority: _,
        untrusted: _,
        channel,
    } = request;
    let mut text = Vec::new();
    let mut put = |field: &str, parts: &[&str]| {
        for part in std::iter::once(&field).chain(parts) {
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part.as_bytes());
        }
    };
    put("pipeline", &[pipeline]);
    files.iter().collect::<BTreeMap<_, _>>().into_iter().for_each(|(path, file)| put("file", &[path, file]));
    if !version.is_empty() {
        put("version", &[version]);
    }
    params.iter().collect::<BTreeMap<_, _>>().into_iter().for_each(|(name, value)| put("param", &[name, value]));
    platforms.iter().collect::<BTreeSet<_>>().into_iter().for_each(|platform| put("platform", &[platform]));
    if priority != Priority::default() {
        put("priority", &[priority.as_str()]);
    }
    if untrusted {
        put("untrusted", &[]);
    }
    if !channel.is_empty() {
        put("channel", &[channel]);
    }
    Digest::of(&text).to_string()
}

/// The first `max` of the lines, and how many there are besides.
pub(super) fn at_most(max: usize, mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(max);
    lines.truncate(max);
    lines.extend((more > 0).then(|| format!("and {more} more of these")));
    lines
}

/// A request whose pipeline is valid.
pub(super) struct Checked {
    pipeline: Pipeline,
    untrusted: bool,
    /// Who submits untrusted builds only, if that was not said in the request.
    forced: Option<String>,
    /// As builds of its tier have it.
    version: Option<Version>,
    params: BTreeMap<String, String>,
    platforms: Vec<Platform>,
    channel: Option<ChannelName>,
    /// Who asks: not every build is for everybody.
    by: Identity,
}

impl Checked {
    /// Parses and checks what somebody asks for.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with every diagnostic.
    pub(super) fn new(by: &Identity, request: v1::SubmitRequest) -> Result<Self, Status> {
        let untrusted = is_untrusted(by, &request);
        let forced = (untrusted && !request.untrusted).then(|| format!("{} {}", by.role, by.name));
        let files: BTreeMap<String, String> = request.files.into_iter().collect();
        let file_name = if request.file_name.is_empty() { "railyard.yaml" } else { &request.file_name };
        let source = Source { file_name, text: &request.pipeline, files: &files };
        let pipeline = Pipeline::parse(&source).map_err(|problems| bad_pipeline(&problems))?;
        let version = Some(request.version).filter(|text| !text.is_empty());
        let version = version.map(|text| text.parse()).transpose().map_err(bad_request)?;
        let version = version.map(|version| tier::version_of(version, untrusted)).transpose().map_err(bad_request)?;
        let channel = Some(request.channel).filter(|text| !text.is_empty());
        let channel = channel.map(|text| text.parse()).transpose().map_err(bad_request)?;
        let platforms = request.platforms.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        Ok(Self {
            pipeline,
            untrusted,
            forced,
            version,
            params: request.params.into_iter().collect(),
            platforms: platforms.map_err(bad_request)?,
            channel,
            by: by.clone(),
        })
    }

    /// The plan under any version, of a request that may be anything.
    pub(super) fn plan_for_fuzz(&self) -> Result<(), Status> {
        let version = self.version.clone().map_or_else(|| "1".parse().map_err(bad_request), Ok)?;
        self.pipeline.plan(&self.request(version)).map(drop).map_err(|problems| bad_pipeline(&problems))
    }

    fn request(&self, version: Version) -> Request {
        let (params, platforms, channel) = (self.params.clone(), self.platforms.clone(), self.channel.clone());
        Request { version, params, platforms, channel, builds: UsedBuilds::new() }
    }

    /// The pipeline's name.
    pub(super) fn pipeline(&self) -> &PipelineName {
        self.pipeline.name()
    }

    /// Whether the build is untrusted.
    pub(super) fn is_untrusted(&self) -> bool {
        self.untrusted
    }

    /// A line for whoever did not say that the build is untrusted.
    pub(super) fn forced(&self) -> Vec<String> {
        let line = |who: &String| format!("{who} is limited to untrusted builds: this one is untrusted");
        self.forced.iter().map(line).collect()
    }

    /// Whether the submitter wants one version and no other.
    pub(super) fn names_version(&self) -> bool {
        self.version.is_some()
    }

    /// The plan, under the version that was asked for or else the next free one of this second.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with every diagnostic.
    pub(super) async fn plan(&self, farm: &Handle, now: Millis) -> Result<Plan, Status> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => free_version(farm, self.pipeline.name().clone(), now, self.untrusted).await?,
        };
        let mut request = self.request(version);
        request.builds = self.used_builds(farm, self.pipeline.wanted_builds(&request)).await?;
        self.pipeline.plan(&request).map_err(|problems| bad_pipeline(&problems))
    }
}

impl Checked {
    /// Finds the builds that the pipeline names.
    async fn used_builds(&self, farm: &Handle, wanted: WantedBuilds) -> Result<UsedBuilds, Status> {
        for reference in wanted.keys() {
            auth::in_scope(&self.by, &reference.pipeline)?;
        }
        if wanted.is_empty() {
            return Ok(UsedBuilds::new());
        }
        let untrusted = self.untrusted;
        let found = farm.read(move |farm, _| {
            let look = |(reference, steps): (BuildRef, BTreeSet<StepName>)| {
                let used = farm
                    .usable_build(&reference, untrusted)
                    .map(|build| UsedBuild { build: build.id().clone(), jobs: farm.used_jobs(build, &steps) });
                (reference, used)
            };
            wanted.into_iter().map(look).collect()
        });
        found.await.map_err(command_status)
    }
}

fn bad_pipeline(problems: &[Diagnostic]) -> Status {
    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    rpc_error::refusal(Code::InvalidArgument, rpc_error::BAD_PIPELINE, text)
}

/// `20261121.093015`, and `.1`, `.2`… behind it if that is taken; then what tells the tier.
async fn free_version(farm: &Handle, pipeline: PipelineName, now: Millis, untrusted: bool) -> Result<Version, Status> {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or_default();
    let time = jiff::Timestamp::from_second(seconds).map_err(bad_request)?;
    let base = time.strftime("%Y%m%d.%H%M%S").to_string();
    let free = farm.read(move |farm, _| {
        let candidates = (0..VERSION_TRIES).map(|n| if n == 0 { base.clone() } else { format!("{base}.{n}") });
        let versions = candidates.filter_map(|text| tier::version_of(text.parse().ok()?, untrusted).ok());
        versions.into_iter().find(|version| {
            let build = BuildId { pipeline: pipeline.clone(), version: version.clone() };
            // What is a tag is no version.
            let tag = build.version.as_str().parse().ok();
            farm.build(&build).is_none() && tag.is_none_or(|tag| farm.tagged(&pipeline, &tag).is_none())
        })
    });
    let free = free.await.map_err(command_status)?;
    free.ok_or_else(|| {
        rpc_error::refusal(Code::ResourceExhausted, rpc_error::BUSY, "too many submits in this second; name a version")
    })
}

/// What will keep jobs waiting, as far as it can be seen now: one line per reason.
pub(super) fn warnings(farm: &Farm, plan: &Plan) -> Vec<String> {
    let mut reasons: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for spec in &plan.jobs {
        if let Some(why) = farm.why_never(spec) {
            reasons.entry(why).or_default().insert(spec.name.to_string());
        }
    }
    let line = |(why, jobs): (String, BTreeSet<String>)| {
        let named: Vec<&str> = jobs.iter().take(3).map(String::as_str).collect();
        let more = jobs.len().saturating_sub(named.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{why}: {}{more} will wait", named.join(", "))
    };
    reasons.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> v1::SubmitRequest {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        v1::SubmitRequest {
            pipeline: "name: x".to_owned(),
            file_name: "x.yaml".to_owned(),
            files: map(&[("a.sh", "a"), ("b.sh", "b")]),
            version: "1".to_owned(),
            params: map(&[("p", "1"), ("q", "2")]),
            platforms: vec!["linux/amd64".to_owned(), "linux/arm64".to_owned()],
            idempotency_key: "k".to_owned(),
            priority: String::new(),
            untrusted: false,
            channel: String::new(),
        }
    }

    #[test]
    fn a_digest_is_of_what_was_asked_for_and_of_nothing_else() {
        let same = |request: &v1::SubmitRequest| digest(request, Priority::default(), false);
        let first = same(&request());
        let mut alike = request();
        alike.idempotency_key = "another".to_owned();
        alike.file_name = "./x.yaml".to_owned();
        alike.platforms.reverse();
        for _ in 0..20 {
            // Every map has an order of its own.
            alike.params = request().params.into_iter().collect();
            assert_eq!(same(&alike), first);
        }
        type Change = fn(&mut v1::SubmitRequest);
        let changes: [Change; 10] = [
            |request| request.pipeline.push(' '),
            |request| drop(request.files.insert("a.sh".to_owned(), "c".to_owned())),
            |request| drop(request.files.remove("b.sh")),
            |request| request.version = String::new(),
            |request| drop(request.params.insert("p".to_owned(), "2".to_owned())),
            |request| request.params = [("p".to_owned(), "12".to_owned()), ("q".to_owned(), String::new())].into(),
            |request| drop(request.platforms.pop()),
            |request| request.platforms.clear(),
            |request| request.channel = "beta".to_owned(),
            |request| request.channel = "stable".to_owned(),
        ];
        let changed = [false, true].map(|untrusted| digest(&request(), Priority::Change, untrusted));
        let mut seen: BTreeSet<String> = changed.into_iter().chain([first]).collect();
        assert_eq!(seen.len(), 3);
        for (n, change) in changes.iter().enumerate() {
            let mut other = request();
            change(&mut other);
            assert!(seen.insert(same(&other)), "change {n}");
        }
    }
}
