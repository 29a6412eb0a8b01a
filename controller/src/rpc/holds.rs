//! What operators want of workers: hold them back, and take that back.

use super::client::Client;
use super::{bad_request, command_status, view};
use railyard_common::id::WorkerName;
use railyard_common::identity::Limits;
use railyard_core::{Command, Hold, HoldKind, Refusal};
use railyard_proto::v1;
use railyard_service::convert::{self, TEXT_MAX_BYTES};
use tonic::Status;

/// Longest time of a hold, and longest patience with what runs: ten years; beyond that it is no time but a mistake.
const HOLD_MAX_SECS: u64 = 10 * 365 * 24 * 3600;

impl Client {
    /// Holds a worker back, because `by` wants it.
    pub(super) async fn hold(&self, by: String, request: v1::HoldWorkerRequest) -> Result<v1::WorkerView, Status> {
        let worker: WorkerName = convert::parsed("worker", &request.worker)?;
        // It is journaled, and told to everyone who looks.
        convert::at_most("why", request.why.len(), TEXT_MAX_BYTES, "bytes")?;
        let kind = match request.kind() {
            v1::HoldKind::Cordon => HoldKind::Cordon,
            v1::HoldKind::Drain => HoldKind::Drain,
            v1::HoldKind::Retire => HoldKind::Retire,
            v1::HoldKind::Unspecified => return Err(bad_request("kind: it is none of cordon, drain and retire")),
        };
        if kind == HoldKind::Retire && request.for_secs > 0 {
            return Err(bad_request("for_secs: a worker is retired for good; drain it to have it back by itself"));
        }
        if kind == HoldKind::Cordon && request.stop_after_secs.is_some() {
            return Err(bad_request("stop_after_secs: what runs on a cordoned worker goes on; drain it to stop that"));
        }
        let longest = request.for_secs.max(request.stop_after_secs.unwrap_or_default());
        if longest > HOLD_MAX_SECS {
            return Err(bad_request(format!(
                "a time of {longest} s is too long; at most {HOLD_MAX_SECS} s are allowed"
            )));
        }
        let now = self.clock.now();
        let after = |secs: u64| now.plus(secs.saturating_mul(1000));
        let until = (request.for_secs > 0).then(|| after(request.for_secs));
        let hold = Hold { kind, by, why: request.why, until, stop_at: request.stop_after_secs.map(after) };
        self.farm.decide(Command::Hold { worker: worker.clone(), hold }).await.map_err(command_status)?;
        self.worker(worker).await
    }

    /// Takes a hold back.
    pub(super) async fn release(
        &self,
        by: String,
        request: v1::ReleaseWorkerRequest,
    ) -> Result<v1::WorkerView, Status> {
        let worker: WorkerName = convert::parsed("worker", &request.worker)?;
        self.farm.decide(Command::Release { worker: worker.clone(), by }).await.map_err(command_status)?;
        self.worker(worker).await
    }

    async fn worker(&self, name: WorkerName) -> Result<v1::WorkerView, Status> {
        let wanted = name.clone();
        let found = self.farm.read(move |farm, live| {
            farm.worker(&wanted).map(|worker| view::worker(farm, live, worker, &Limits::default()))
        });
        let found = found.await.map_err(command_status)?;
        found.ok_or_else(|| command_status(Refusal::UnknownWorker(name).into()))
    }
}
