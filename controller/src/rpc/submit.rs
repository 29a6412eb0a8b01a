//! A submit request becomes a plan.

use super::bad_request;
use crate::driver::Handle;
use railyard_common::id::{BuildId, PipelineName, Version};
use railyard_common::pipeline::{Diagnostic, Pipeline, Request, Source};
use railyard_common::plan::Plan;
use railyard_common::platform::Platform;
use railyard_common::time::Millis;
use railyard_core::Farm;
use railyard_proto::v1;
use railyard_service::rpc_error;
use std::collections::{BTreeMap, BTreeSet};
use tonic::{Code, Status};

/// Versions that are tried when the submitter names none: as many builds in one second.
const VERSION_TRIES: u32 = 1_000;

/// A request whose pipeline is valid.
pub(super) struct Checked {
    pipeline: Pipeline,
    version: Option<Version>,
    params: BTreeMap<String, String>,
    platforms: Vec<Platform>,
}

impl Checked {
    /// Parses and checks the request.
    ///
    /// # Errors
    /// INVALID_ARGUMENT with every diagnostic.
    pub(super) fn new(request: v1::SubmitRequest) -> Result<Self, Status> {
        let files: BTreeMap<String, String> = request.files.into_iter().collect();
        let file_name = if request.file_name.is_empty() { "railyard.yaml" } else { &request.file_name };
        let source = Source { file_name, text: &request.pipeline, files: &files };
        let pipeline = Pipeline::parse(&source).map_err(|problems| bad_pipeline(&problems))?;
        let version = Some(request.version).filter(|text| !text.is_empty());
        let platforms = request.platforms.iter().map(|text| text.parse()).collect::<Result<_, _>>();
        Ok(Self {
            pipeline,
            version: version.map(|text| text.parse()).transpose().map_err(bad_request)?,
            params: request.params.into_iter().collect(),
            platforms: platforms.map_err(bad_request)?,
        })
    }

    /// The pipeline's name.
    pub(super) fn pipeline(&self) -> &PipelineName {
        self.pipeline.name()
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
            None => free_version(farm, self.pipeline.name().clone(), now).await?,
        };
        let request = Request { version, params: self.params.clone(), platforms: self.platforms.clone() };
        self.pipeline.plan(&request).map_err(|problems| bad_pipeline(&problems))
    }
}

fn bad_pipeline(problems: &[Diagnostic]) -> Status {
    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    rpc_error::refusal(Code::InvalidArgument, rpc_error::BAD_PIPELINE, text)
}

/// `20261121.093015`, and `.1`, `.2`… behind it if that is taken.
async fn free_version(farm: &Handle, pipeline: PipelineName, now: Millis) -> Result<Version, Status> {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or_default();
    let time = jiff::Timestamp::from_second(seconds).map_err(bad_request)?;
    let base = time.strftime("%Y%m%d.%H%M%S").to_string();
    let free = farm.read(move |farm, _| {
        let candidates = (0..VERSION_TRIES).map(|n| if n == 0 { base.clone() } else { format!("{base}.{n}") });
        candidates.filter_map(|text| text.parse::<Version>().ok()).find(|version| {
            let build = BuildId { pipeline: pipeline.clone(), version: version.clone() };
            farm.build(&build).is_none()
        })
    });
    let free = free.await.map_err(super::command_status)?;
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
