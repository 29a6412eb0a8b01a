//! What leaves when a round is durable.

use super::{Beat, Dispatcher, Output, Welcome};
use crate::command::{Command, Report};
use crate::event::{Event, Next};
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::planted::{self, Bug};
use railyard_common::time::Millis;

impl Dispatcher {
    /// The worker's session begins: first the welcome, then orders.
    pub(super) fn welcome(&mut self, now: Millis, mono: Millis, welcome: Welcome, out: &mut Vec<Output>) {
        let Welcome { ticket, worker, mut held, mut builds, disk } = welcome;
        held.retain(|lease| self.farm.holder(*lease) == Some(&worker) || planted::is(Bug::WelcomeNamesAll));
        builds.retain(|build| self.farm.build(build).is_none_or(|build| build.is_ended()));
        let session = self.live.attach(worker.clone());
        self.live.seen(&worker, now, None, disk);
        out.push(Output::Welcome { ticket, worker, session, held: held.clone(), builds_over: builds });
        for lease in &held {
            self.live.leases.renew(*lease, mono);
        }
        for lease in held {
            if let Some(reason) = self.farm.cancel_reason(lease) {
                self.cancel(lease, reason.to_owned(), out);
            }
        }
    }

    /// The answer to a heartbeat: what the worker has lost, by the state that is durable.
    pub(super) fn answer_beat(&mut self, now: Millis, beat: Beat, out: &mut Vec<Output>) {
        let Beat { worker, session, sequence, leases, free_disk_bytes, disk, .. } = beat;
        let mut lost = Vec::new();
        for (lease, phase) in leases {
            if self.farm.holder(lease) != Some(&worker) {
                if !planted::is(Bug::AckForgetsLost) {
                    lost.push(lease);
                }
            } else if phase.is_some_and(|phase| self.live.set_phase(lease, phase)) {
                self.changed(lease, out);
            }
        }
        self.live.seen(&worker, now, free_disk_bytes, disk);
        if self.live.session(&worker) == Some(session) {
            out.push(Output::Ack { worker, session, sequence, lost });
        }
    }

    /// What a durable event lets out.
    pub(super) fn effect(&mut self, mono: Millis, event: &Event, out: &mut Vec<Output>) {
        match event {
            Event::BuildAccepted { plan, .. } => out.push(Output::BuildChanged(plan.build.clone())),
            Event::JobLeased { lease, worker, .. } => {
                let ttl = self.farm.ttl_millis(*lease).unwrap_or_default();
                self.live.leases.begin(*lease, mono, ttl);
                self.order(*lease, worker, out);
                self.changed(*lease, out);
            }
            Event::AttemptEnded { lease, next, .. } => {
                self.live.end(*lease);
                out.push(Output::LeaseEnded(*lease));
                if *next == Next::End {
                    out.push(Output::JobEnded(lease.job));
                }
                self.changed(*lease, out);
                if self.farm.finalizing().next().is_some() {
                    out.push(Output::Finalize);
                }
                let attempts = self.farm.job(lease.job).map_or(&[][..], |job| job.attempts.as_slice());
                if let Some(attempt) = attempts.iter().find(|attempt| attempt.number == lease.attempt) {
                    self.cut_if_retired(&attempt.worker, out);
                }
            }
            Event::JobUploading { lease, .. } => self.changed(*lease, out),
            Event::JobsApproved { build, .. } => out.push(Output::BuildChanged(build.clone())),
            Event::JobsCancelled { build, jobs, reason, .. } => {
                let running = jobs.iter().filter_map(|id| self.farm.job(*id)?.live_lease(*id));
                running.for_each(|lease| self.cancel(lease, reason.clone(), out));
                out.extend([Output::BuildChanged(build.clone()), Output::Finalize]);
            }
            Event::WorkerHeld { worker, .. } => {
                self.cut_if_retired(worker, out);
                out.push(Output::WorkersChanged);
            }
            Event::WorkerForgotten { worker, .. } => self.live.forget(worker),
            Event::BuildCancelled { build, reason, .. } => {
                for lease in self.live_leases_of(build) {
                    self.cancel(lease, reason.clone(), out);
                }
                out.extend([Output::BuildChanged(build.clone()), Output::Finalize]);
            }
            // With no job to run again, only the writing out is left.
            Event::BuildResumed { build, .. } => {
                out.extend([Output::BuildChanged(build.clone()), Output::Finalize]);
            }
            Event::BuildEnded { build, .. } => {
                self.live.forget_finalize_error(build);
                out.push(Output::BuildEnded(build.clone()));
                out.extend(self.live.sessions().map(|(worker, session)| Output::BuildOver {
                    worker: worker.clone(),
                    session,
                    build: build.clone(),
                }));
                listed(build, out);
            }
            Event::WorkerOnline { .. }
            | Event::WorkerOffline { .. }
            | Event::WorkerDraining { .. }
            | Event::WorkerReleased { .. } => out.push(Output::WorkersChanged),
            Event::IdentityRevoked { who, .. } => {
                let worker: Option<WorkerName> = who.strip_prefix("worker/").and_then(|name| name.parse().ok());
                let session = worker.as_ref().and_then(|name| self.live.session(name));
                out.extend(worker.zip(session).map(|(worker, session)| Output::Cut { worker, session }));
            }
            Event::BuildPinned { build, .. } | Event::BuildUnpinned { build, .. } => {
                out.push(Output::BuildChanged(build.clone()))
            }
            Event::PromotionBegun { build, .. } => out.push(Output::BuildChanged(build.clone())),
            // What it had published is to be taken back.
            Event::PromotionFailed { build, .. } => {
                out.extend([Output::BuildChanged(build.clone()), Output::Finalize]);
            }
            Event::PromotionForgotten { build, .. } => {
                self.live.forget_finalize_error(build);
                out.push(Output::BuildChanged(build.clone()));
            }
            Event::BuildPromoted { build, .. } => {
                self.live.forget_finalize_error(build);
                listed(build, out);
            }
            Event::BuildTagged { build, .. } | Event::BuildUntagged { build, .. } => listed(build, out),
            Event::BuildsReduced { builds, .. } => builds.iter().for_each(|one| listed(&one.build, out)),
            Event::BuildsForgotten { builds, .. } => out.extend(builds.iter().cloned().map(Output::BuildChanged)),
            // The sweep looks at the state itself, and so does whoever lets people in.
            Event::BlobsClaimed { .. }
            | Event::BuildsSwept { .. }
            | Event::SweepResumed { .. }
            | Event::TokenMade { .. }
            | Event::TokenUsed { .. }
            | Event::TokenDropped { .. }
            | Event::ControllerRestored { .. }
            | Event::ControllerStarted { .. } => {}
        }
    }

    /// Events that may or may not have reached the disk: whoever acts on such sees for himself.
    pub(super) fn look_again(&self, events: &[Event], out: &mut Vec<Output>) {
        for event in events {
            match event {
                Event::BuildAccepted { plan, .. } => out.push(Output::BuildChanged(plan.build.clone())),
                Event::BuildCancelled { build, .. }
                | Event::JobsApproved { build, .. }
                | Event::JobsCancelled { build, .. }
                | Event::BuildResumed { build, .. }
                | Event::PromotionBegun { build, .. }
                | Event::PromotionFailed { build, .. }
                | Event::PromotionForgotten { build, .. }
                | Event::BuildPinned { build, .. }
                | Event::BuildUnpinned { build, .. } => out.push(Output::BuildChanged(build.clone())),
                Event::BuildEnded { build, .. }
                | Event::BuildTagged { build, .. }
                | Event::BuildUntagged { build, .. }
                | Event::BuildPromoted { build, .. } => listed(build, out),
                Event::JobLeased { lease, .. } | Event::JobUploading { lease, .. } => self.changed(*lease, out),
                Event::AttemptEnded { lease, .. } => {
                    out.push(Output::LeaseEnded(*lease));
                    self.changed(*lease, out);
                }
                Event::BuildsReduced { builds, .. } => builds.iter().for_each(|one| listed(&one.build, out)),
                Event::BuildsForgotten { builds, .. } => out.extend(builds.iter().cloned().map(Output::BuildChanged)),
                Event::BlobsClaimed { .. }
                | Event::BuildsSwept { .. }
                | Event::SweepResumed { .. }
                | Event::WorkerOnline { .. }
                | Event::WorkerOffline { .. }
                | Event::WorkerDraining { .. }
                | Event::WorkerHeld { .. }
                | Event::WorkerReleased { .. }
                | Event::WorkerForgotten { .. }
                | Event::TokenMade { .. }
                | Event::TokenUsed { .. }
                | Event::TokenDropped { .. }
                | Event::IdentityRevoked { .. }
                | Event::ControllerRestored { .. }
                | Event::ControllerStarted { .. } => {}
            }
        }
        // The sessions are over: all workers are away.
        out.extend([Output::WorkersChanged, Output::Finalize]);
    }

    fn order(&mut self, lease: LeaseId, worker: &WorkerName, out: &mut Vec<Output>) {
        match self.farm.order(lease) {
            Ok(order) => {
                // Without a session it is not sent: the worker comes back without the lease, and that frees the job.
                if let Some(session) = self.live.session(worker) {
                    out.push(Output::Order { worker: worker.clone(), session, order: Box::new(order) });
                }
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

    pub(super) fn cancel(&self, lease: LeaseId, reason: String, out: &mut Vec<Output>) {
        let Some(worker) = self.farm.holder(lease) else { return };
        if let Some(session) = self.live.session(worker) {
            out.push(Output::Cancel { worker: worker.clone(), session, lease, reason });
        }
    }

    /// A worker that was sent away, and has nothing left to do, is told by the end of its stream; its next hello is refused.
    fn cut_if_retired(&self, name: &WorkerName, out: &mut Vec<Output>) {
        let retired = self.farm.worker(name).is_some_and(|worker| worker.is_retired());
        if let Some(session) = self.live.session(name).filter(|_| retired) {
            out.push(Output::Cut { worker: name.clone(), session });
        }
    }

    fn live_leases_of(&self, build: &BuildId) -> Vec<LeaseId> {
        let jobs = self.farm.build(build).into_iter().flat_map(|build| build.jobs());
        jobs.filter_map(|id| self.farm.job(id).and_then(|job| job.live_lease(id))).collect()
    }

    fn changed(&self, lease: LeaseId, out: &mut Vec<Output>) {
        out.extend(self.farm.job(lease.job).map(|job| Output::BuildChanged(job.build.clone())));
    }
}

/// What the lists say of a build has changed.
fn listed(build: &BuildId, out: &mut Vec<Output>) {
    out.extend([Output::BuildChanged(build.clone()), Output::IndexChanged(build.pipeline.clone())]);
}
