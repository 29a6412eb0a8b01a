//! A report of an attempt's end: what it says is there must be there, complete and checked, before the farm hears of it.

use super::worker::{Workers, lease_of};
use super::{bad_request, cache_status, command_status};
use crate::cache::Uploader;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_common::job::{JobSpec, Placement};
use railyard_common::layout;
use railyard_common::outcome::OutcomeKind;
use railyard_common::path::RelPath;
use railyard_common::plan::Plan;
use railyard_core::{Command, Farm, Refusal, Report};
use railyard_proto::v1;
use railyard_service::convert::{self, FromProto as _, LIST_MAX_LEN};
use railyard_service::rpc_error;
use std::collections::BTreeSet;
use std::sync::Arc;
use tonic::{Code, Status};

/// Uploads of one report that are completed at a time: each is checked and flushed, or waits for the store.
const COMPLETIONS_AT_A_TIME: usize = 8;

impl Workers {
    /// What the report says is there must be there, complete and checked.
    async fn settle(&self, by: Uploader, report: &v1::ReportRequest) -> Result<(), Status> {
        convert::at_most("uploads", report.uploads.len(), LIST_MAX_LEN, "entries")?;
        // Futures, not a stream that makes them: the borrows of a closure would keep this from being spawned.
        let completing: Vec<_> = report.uploads.iter().map(|upload| self.complete(by, upload)).collect();
        stream::iter(completing).buffer_unordered(COMPLETIONS_AT_A_TIME).try_collect().await
    }

    async fn complete(&self, by: Uploader, upload: &v1::FinishedUpload) -> Result<(), Status> {
        convert::at_most("uploads.etags", upload.etags.len(), LIST_MAX_LEN, "entries")?;
        let blob: Blob = convert::required("uploads.blob", upload.blob.clone())?;
        let completed = self.cache.complete_upload(by, &blob, &upload.upload_id, &upload.etags).await;
        completed.map_err(|error| cache_status(&error))
    }

    /// Checks the report and hands it to the farm.
    pub(super) async fn take_report(&self, worker: WorkerName, mut request: v1::ReportRequest) -> Result<(), Status> {
        let lease = lease_of(request.lease)?;
        let mut report = Report {
            lease,
            worker: worker.clone(),
            outcome: convert::required("outcome", request.outcome.take())?,
            artifacts: Vec::new(),
            image: None,
            log_bytes: request.log_bytes,
        };
        // Its lease was durable before the worker had it.
        let look = move |farm: &Farm| match farm.is_anothers(lease, &worker) {
            true => Err(Refusal::ForeignLease(lease)),
            false => Ok(held_by(farm, lease, &worker)),
        };
        let held = self.farm.look(move |farm, _| look(farm)).await.map_err(command_status)?;
        let held = held.map_err(|foreign| command_status(foreign.into()))?;
        let found = held.as_ref().and_then(|(plan, index)| Some((plan.untrusted, plan.jobs.get(*index)?)));
        if let (Some((untrusted, spec)), OutcomeKind::Succeeded) = (found, report.outcome.kind) {
            // Whatever the farm forgot of it, none of this goes before the build has it.
            self.claim(lease, &report.worker, blobs_of(&request)?).await?;
            self.settle(Uploader { lease, untrusted }, &request).await?;
            report.artifacts = self.artifacts(spec, std::mem::take(&mut request.artifacts)).await?;
            report.image = self.image(spec, request.image.take()).await?;
        }
        // Decides once more whether the lease is live: it may have ended while the uploads were checked.
        self.farm.decide(Command::Report(Box::new(report))).await.map_err(command_status)?;
        Ok(())
    }

    /// The blob as the cache holds it.
    async fn stored(&self, claimed: &Blob, what: &str) -> Result<Blob, Status> {
        let found = self.cache.find(&claimed.digest).await.map_err(|error| cache_status(&error))?;
        match found {
            Some(found) if found.size_bytes == claimed.size_bytes => Ok(found),
            Some(found) => {
                let message =
                    format!("{what} has {} bytes in the cache, {} were reported", found.size_bytes, claimed.size_bytes);
                Err(rpc_error::refusal(Code::DataLoss, rpc_error::BAD_UPLOAD, message))
            }
            None => {
                let message = format!("{what} ({}) is not in the cache; upload it before the report", claimed.digest);
                Err(rpc_error::refusal(Code::FailedPrecondition, rpc_error::BAD_UPLOAD, message))
            }
        }
    }

    async fn artifacts(&self, spec: &JobSpec, claimed: Vec<v1::Artifact>) -> Result<Vec<Artifact>, Status> {
        let mut artifacts: Vec<Artifact> = Vec::new();
        let mut seen = BTreeSet::new();
        let placement = Placement::new(&spec.run.outputs);
        for mut artifact in convert::list::<_, Artifact>("artifacts", claimed)? {
            if !seen.insert(artifact.path.clone()) {
                return Err(bad_request(format!("the report names {} twice", artifact.path)));
            }
            artifact.blob = self.stored(&artifact.blob, artifact.path.as_str()).await?;
            artifact.published = published(spec, &placement, &artifact)?;
            artifacts.push(artifact);
        }
        all_outputs_there(spec, &artifacts)?;
        Ok(artifacts)
    }

    async fn image(&self, spec: &JobSpec, claimed: Option<v1::Image>) -> Result<Option<Image>, Status> {
        let Some(claimed) = claimed else {
            return if spec.run.commit {
                Err(bad_request("the step commits its image, and the report has none"))
            } else {
                Ok(None)
            };
        };
        let mut image = Image::from_proto(claimed)?;
        image.config = self.stored(&image.config, "the image's configuration").await?;
        for (index, layer) in image.layers.iter_mut().enumerate() {
            *layer = self.stored(layer, &format!("layer {index} of the image")).await?;
        }
        Ok(Some(image))
    }
}

/// Every blob that a report names.
fn blobs_of(request: &v1::ReportRequest) -> Result<Vec<Digest>, Status> {
    let artifacts = request.artifacts.iter().filter_map(|artifact| artifact.blob.as_ref());
    let image = request.image.iter().flat_map(|image| image.config.iter().chain(&image.layers));
    let blobs = artifacts.chain(image).map(|blob| blob.digest.parse().map_err(bad_request));
    blobs.collect()
}

/// The plan of a lease's build and the job's place in it, if that worker holds the lease.
fn held_by(farm: &Farm, lease: LeaseId, worker: &WorkerName) -> Option<(Arc<Plan>, usize)> {
    farm.holder(lease).filter(|holder| *holder == worker)?;
    let job = farm.job(lease.job)?;
    Some((farm.build(&job.build)?.plan.clone(), job.index))
}

/// A success leaves every output that the step promises.
fn all_outputs_there(spec: &JobSpec, artifacts: &[Artifact]) -> Result<(), Status> {
    let missing = spec.run.outputs.iter().filter(|output| !output.optional).find(|output| {
        let matcher = output.matcher();
        !artifacts.iter().any(|artifact| matcher.is_match(artifact.path.as_str()))
    });
    missing.map_or(Ok(()), |output| {
        Err(bad_request(format!(
            "the report of {}'s success has no artifact for its output {}",
            spec.name, output.glob
        )))
    })
}

/// Where an artifact is published: the plan says, not the worker.
fn published(spec: &JobSpec, placement: &Placement<'_>, artifact: &Artifact) -> Result<Option<RelPath>, Status> {
    let Some(path) = placement.of(&artifact.path) else {
        return Err(bad_request(format!("{} is not an output of {}", artifact.path, spec.name)));
    };
    match path.map_err(bad_request)? {
        Some(path) if !layout::is_publishable(&path) => Err(bad_request(format!("nothing can be published at {path}"))),
        path => Ok(path),
    }
}
