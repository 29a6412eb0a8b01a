//! How an attempt ends: its container ends, it is stopped, or something fails; then whatever is left goes, and it is told.

use super::attempt::{STOP_GRACE, Step, Stop};
use crate::pipelines::End;
use crate::queue::Ms;
use crate::world::World;
use railyard_common::id::LeaseId;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_proto::v1::Phase;

impl World {
    /// A container has ended by itself.
    pub(super) fn container_ended(&mut self, host: usize, lease: LeaseId) {
        let full = self.disk_is_full(host);
        let end = self.hosts[host].containers.get(&lease).and_then(|container| container.ended);
        let Some(attempt) = self.hosts[host].attempt(lease).filter(|attempt| attempt.step == Step::Run) else { return };
        attempt.ship.written = attempt.ship.written.max(100 + attempt.fate.log_bytes);
        let failed = |reason| Some(Outcome::new(OutcomeKind::Failed, reason, "it failed"));
        match end {
            Some(End::Good | End::OutputMissing) => {
                let wait = self.engine.within(5, 200);
                self.next_step(host, lease, Step::Collect, None);
                self.remove_container(host, lease, wait);
            }
            Some(End::Code(_)) if full => self.lost(host, lease, Reason::DiskFull),
            Some(End::Code(_)) => self.conclude(host, lease, failed(Reason::ExitCode)),
            Some(End::Oom) => self.conclude(host, lease, failed(Reason::Oom)),
            Some(End::Never | End::Silent) | None => {}
        }
        self.ship(host, lease);
        self.settle(host);
    }

    /// A container has been removed.
    pub(super) fn container_gone(&mut self, host: usize, lease: LeaseId) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        match attempt.step.clone() {
            Step::Halt(outcome) => self.conclude(host, lease, outcome),
            Step::Collect if attempt.stop.is_some() => {
                let outcome = attempt.stop.as_ref().and_then(stopped);
                self.conclude(host, lease, outcome);
            }
            Step::Collect => {
                self.enter(host, lease, Phase::Upload);
                let wait = self.engine.within(5, 400);
                self.next_step(host, lease, Step::Hash, Some(wait));
            }
            Step::Remove => self.removed(host, lease),
            // Somebody outside has removed it: it has ended.
            Step::Run => {
                self.conclude(host, lease, Some(Outcome::new(OutcomeKind::Lost, Reason::Engine, "it is gone")))
            }
            _ => {}
        }
        self.settle(host);
    }

    pub(super) fn halt(&mut self, host: usize, lease: LeaseId, outcome: Option<Outcome>, grace: Ms) {
        let wait = self.engine.within(5, grace.max(300));
        self.next_step(host, lease, Step::Halt(outcome), None);
        self.remove_container(host, lease, wait);
    }

    pub(super) fn lost(&mut self, host: usize, lease: LeaseId, reason: Reason) {
        self.conclude(host, lease, Some(Outcome::new(OutcomeKind::Lost, reason, "the farm's fault")));
    }

    /// The attempt must stop. It may be told again, more urgently.
    pub(super) fn stop_attempt(&mut self, host: usize, lease: LeaseId, why: Stop) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        attempt.stop = Some(why.clone());
        let urgent = matches!(why, Stop::Fenced { .. } | Stop::Abandoned);
        let outcome = stopped(&why);
        match attempt.step.clone() {
            Step::Run => self.halt(host, lease, outcome, if urgent { 0 } else { STOP_GRACE }),
            Step::Halt(_) | Step::Collect if urgent => {
                // A kill overtakes the stop that waits for the grace. Why it is stopped does not change.
                let wait = self.engine.within(5, 300);
                self.remove_container(host, lease, wait);
            }
            Step::Halt(_) | Step::Collect | Step::Remove => {}
            Step::Ship | Step::Report if why == Stop::Abandoned => self.over(host, lease),
            Step::Ship | Step::Report => {}
            _ => self.conclude(host, lease, outcome),
        }
    }

    /// The worker is leaving: what was told to stop already stays so.
    pub(super) fn stop_attempt_softly(&mut self, host: usize, lease: LeaseId) {
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.stop.is_none()) {
            self.stop_attempt(host, lease, Stop::Drained);
        }
    }

    /// How it ended is known: what is left goes, then it is told; `None` if nobody wants to hear.
    pub(super) fn conclude(&mut self, host: usize, lease: LeaseId, outcome: Option<Outcome>) {
        if let Some(attempt) = self.hosts[host].attempt(lease) {
            attempt.outcome = outcome;
        }
        self.next_step(host, lease, Step::Remove, None);
        if !self.hosts[host].containers.contains_key(&lease) {
            return self.removed(host, lease);
        }
        let wait = self.engine.within(5, 300);
        self.remove_container(host, lease, wait);
        if self.hosts[host].engine_bad_until > self.now {
            // The engine does not obey: removal is tried on, and the end is told all the same.
            if let Some(container) = self.hosts[host].containers.get_mut(&lease) {
                container.excused = true;
            }
            self.removed(host, lease);
        }
    }

    pub(super) fn removed(&mut self, host: usize, lease: LeaseId) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        // Meanwhile it may have been given up.
        let nobody = attempt.outcome.is_none() || attempt.stop == Some(Stop::Abandoned);
        attempt.ship.closed = true;
        if nobody {
            return self.over(host, lease);
        }
        self.next_step(host, lease, Step::Ship, None);
        self.ship(host, lease);
    }

    /// The log is there, as far as it will ever be.
    pub(super) fn shipped(&mut self, host: usize, lease: LeaseId) {
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.step == Step::Ship) {
            self.next_step(host, lease, Step::Report, None);
            self.ask_for(host, lease);
        }
    }

    pub(super) fn over(&mut self, host: usize, lease: LeaseId) {
        let now = self.now;
        self.trace.say(now, || format!("w{host} is done with {lease}"));
        let Some(process) = self.hosts[host].process.as_mut() else { return };
        process.session.handle_done(lease);
        if let Some(conn) = process.attempts.remove(&lease).and_then(|attempt| attempt.ship.conn()) {
            self.close_at_worker(conn);
        }
    }

    /// A success that is refused for good becomes a loss: the job must not hang on it.
    pub(super) fn report_loss(&mut self, host: usize, lease: LeaseId, why: String) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        if attempt.outcome.as_ref().is_some_and(|outcome| outcome.reason == Reason::Transfer) {
            return self.over(host, lease);
        }
        attempt.outcome = Some(Outcome::new(OutcomeKind::Lost, Reason::Transfer, why));
        self.next_step(host, lease, Step::Report, None);
        self.ask_for(host, lease);
    }
}

/// What is reported of an attempt that was stopped.
fn stopped(why: &Stop) -> Option<Outcome> {
    match why {
        Stop::Cancelled(why) => Some(Outcome::new(OutcomeKind::Cancelled, Reason::Cancelled, why.clone())),
        Stop::Fenced { .. } => Some(Outcome::new(OutcomeKind::Lost, Reason::WorkerGone, "fenced")),
        Stop::Drained => Some(Outcome::new(OutcomeKind::Lost, Reason::WorkerRestarted, "stopped")),
        Stop::Abandoned => None,
    }
}
