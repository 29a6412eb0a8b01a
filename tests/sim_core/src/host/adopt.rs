//! A new process takes up what an earlier one left.

use super::Wrk;
use super::attempt::Step;
use crate::world::World;
use railyard_common::id::LeaseId;
use railyard_common::outcome::Reason;
use railyard_proto::v1::Phase;
use railyard_worker::session;
use std::time::Duration;

impl World {
    /// A new process goes on with what an earlier one left, as far as there is time for that.
    pub(super) fn take_up(&mut self, host: usize) {
        let mono = self.hosts[host].mono(self.now);
        for (lease, (mut attempt, confirmed_at)) in std::mem::take(&mut self.hosts[host].left) {
            let ttl = Duration::from_millis(attempt.order.ttl_millis.into());
            let phase = attempt.step.phase();
            let until = session::fence_at(confirmed_at, ttl);
            if phase != Phase::Upload && until <= mono {
                continue;
            }
            let now = self.now;
            self.trace.say(now, || format!("w{host} takes up {lease} ({:?})", attempt.step));
            attempt.ship.reopen();
            attempt.stop = None;
            let step = attempt.step.clone();
            let Some(process) = self.hosts[host].process.as_mut() else { return };
            process.session.adopt(lease, ttl, confirmed_at, phase);
            process.attempts.insert(lease, attempt);
            // From here on somebody looks after it again.
            if let Some(container) = self.hosts[host].containers.get_mut(&lease) {
                container.excused = false;
            }
            self.go_on(host, lease, step);
        }
    }

    /// The step is done again, or looked after again.
    fn go_on(&mut self, host: usize, lease: LeaseId, step: Step) {
        match step {
            Step::Prepare | Step::AskInputs | Step::Pull | Step::Create => {
                self.next_step(host, lease, Step::Prepare, Some(20));
            }
            Step::Run if self.hosts[host].containers.contains_key(&lease) => {
                // Its timeout goes on from when it was started; here: at most as long again.
                let Some(attempt) = self.hosts[host].attempt(lease) else { return };
                let wall = attempt.order.run.timeout_secs * 1000;
                self.next_step(host, lease, Step::Run, Some(wall));
                self.later(host, 400, Wrk::LogGrows(lease));
                self.container_ended(host, lease);
            }
            Step::Halt(_) | Step::Collect if self.hosts[host].containers.contains_key(&lease) => {
                let wait = self.engine.within(5, 300);
                self.next_step(host, lease, step, None);
                self.remove_container(host, lease, wait);
            }
            Step::Halt(outcome) => self.conclude(host, lease, outcome),
            Step::Run => self.lost(host, lease, Reason::Engine),
            Step::Collect | Step::Hash | Step::AskUpload | Step::Send => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    attempt.uploads.clear();
                    attempt.to_send.clear();
                }
                self.next_step(host, lease, Step::Hash, Some(50));
            }
            Step::Remove | Step::Ship | Step::Report => {
                let Some(attempt) = self.hosts[host].attempt(lease) else { return };
                let outcome = attempt.outcome.clone();
                self.conclude(host, lease, outcome);
            }
        }
        self.ship(host, lease);
    }
}
