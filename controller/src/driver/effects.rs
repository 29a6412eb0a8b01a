//! What leaves the driver when a round is durable.

use super::Driver;
use crate::trace;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_core::{BuildState, Command, Event, Next, Report};
use railyard_proto::v1;
use railyard_service::convert::ToProto as _;

impl Driver {
    pub(super) fn cancel_reason(&self, lease: LeaseId) -> Option<String> {
        let build = self.farm.job(lease.job).and_then(|job| self.farm.build(&job.build))?;
        match &build.state {
            BuildState::Cancelling { reason } => Some(reason.clone()),
            _ => None,
        }
    }

    pub(super) fn send_cancel(&mut self, lease: LeaseId, reason: String) {
        let Some(worker) = self.farm.holder(lease).cloned() else { return };
        let cancel = v1::CancelLease { lease: Some(lease.to_proto()), reason };
        self.live.send_to(&worker, None, v1::controller_message::Kind::Cancel(cancel));
    }

    /// What a durable event lets out.
    pub(super) fn effect(&mut self, event: &Event) {
        match event {
            Event::BuildAccepted { plan, .. } => self.build_changed(&plan.build),
            Event::JobLeased { lease, worker, .. } => {
                let ttl = self.farm.ttl_millis(*lease).unwrap_or_default();
                self.live.leases.begin(*lease, self.monotonic(), ttl);
                self.send_order(*lease, worker);
                self.changed(*lease);
            }
            Event::AttemptEnded { lease, next, .. } => {
                self.live.end(*lease);
                let _ = self.notices.ended.send(*lease);
                if *next == Next::End {
                    trace::record_job(&self.farm, lease.job);
                }
                self.changed(*lease);
                self.notices.finalize.notify_one();
            }
            Event::BuildCancelled { build, reason, .. } => {
                let jobs: Vec<_> = self.farm.build(build).map(|build| build.jobs().collect()).unwrap_or_default();
                let leases: Vec<LeaseId> =
                    jobs.into_iter().filter_map(|id| self.farm.job(id).and_then(|job| job.live_lease(id))).collect();
                leases.into_iter().for_each(|lease| self.send_cancel(lease, reason.clone()));
                self.build_changed(build);
                self.notices.finalize.notify_one();
            }
            Event::BuildResumed { build, .. } => {
                self.build_changed(build);
                // With no job to run again, only the writing out is left.
                self.notices.finalize.notify_one();
            }
            Event::BuildEnded { build, .. } => {
                self.live.forget_finalize_error(build);
                trace::record_build(&self.farm, build);
                let over = v1::BuildOver { build: build.to_string() };
                self.live.send_to_all(v1::controller_message::Kind::BuildOver(over));
                self.build_changed(build);
            }
            Event::WorkerOnline { .. }
            | Event::WorkerOffline { .. }
            | Event::WorkerDraining { .. }
            | Event::ControllerStarted { .. } => {}
        }
    }

    /// Events that may or may not have reached the disk: whoever acts on such sees for himself.
    pub(super) fn look_again(&self, events: &[Event]) {
        for event in events {
            match event {
                Event::BuildAccepted { plan, .. } => self.build_changed(&plan.build),
                Event::BuildCancelled { build, .. }
                | Event::BuildResumed { build, .. }
                | Event::BuildEnded { build, .. } => self.build_changed(build),
                Event::JobLeased { lease, .. } => self.changed(*lease),
                Event::AttemptEnded { lease, .. } => {
                    let _ = self.notices.ended.send(*lease);
                    self.changed(*lease);
                }
                Event::WorkerOnline { .. }
                | Event::WorkerOffline { .. }
                | Event::WorkerDraining { .. }
                | Event::ControllerStarted { .. } => {}
            }
        }
        self.notices.finalize.notify_one();
    }

    pub(super) fn build_changed(&self, build: &BuildId) {
        // Nobody may be listening: that is fine.
        let _ = self.notices.changed.send(build.clone());
    }

    fn send_order(&mut self, lease: LeaseId, worker: &WorkerName) {
        match self.farm.order(lease) {
            Ok(mut order) => {
                order.traceparent = trace::job_traceparent(&self.farm, lease.job);
                self.live.send_to(worker, None, v1::controller_message::Kind::Lease(order.to_proto()));
            }
            Err(why) => {
                // Found only now, because artifacts are known only when their job has ended. It is the pipeline's fault.
                let outcome = Outcome::new(OutcomeKind::Failed, Reason::InputMissing, why);
                let report =
                    Report { lease, worker: worker.clone(), outcome, artifacts: Vec::new(), image: None, log_bytes: 0 };
                self.own.push_back(Command::Report(Box::new(report)));
            }
        }
    }

    pub(super) fn changed(&self, lease: LeaseId) {
        if let Some(job) = self.farm.job(lease.job) {
            self.build_changed(&job.build);
        }
    }
}
