//! An attempt's calls of the controller, and its way to the store.

use super::Wrk;
use super::attempt::Step;
use crate::net::{CallId, Caller, Refused, Reply, Rpc};
use crate::world::World;
use railyard_common::id::LeaseId;
use railyard_common::outcome::{Outcome, Reason};

/// Tries to send or fetch a blob before the attempt is given up.
const TRANSFER_TRIES: u32 = 6;

impl World {
    /// Calls what the step needs, until it is answered.
    pub(super) fn ask_for(&mut self, host: usize, lease: LeaseId) {
        let Some(process) = self.hosts[host].process.as_ref() else { return };
        let (number, Some(attempt)) = (process.number, process.attempts.get(&lease)) else { return };
        let rpc = match attempt.step {
            Step::AskInputs => Rpc::PrepareDownload { host, lease },
            Step::AskUpload => Rpc::PrepareUpload { host, lease, blobs: attempt.blobs() },
            Step::Report => match attempt.report() {
                Some(report) => Rpc::Report { host, report: Box::new(report) },
                None => return self.over(host, lease),
            },
            _ => return,
        };
        let call = self.call(Caller::Attempt { host, process: number, lease }, rpc);
        if let Some(attempt) = self.hosts[host].attempt(lease) {
            attempt.call = Some(call);
        }
    }

    pub(super) fn call_again(&mut self, host: usize, lease: LeaseId, serial: u64) {
        if self.hosts[host].attempt(lease).is_some_and(|attempt| attempt.serial == serial) {
            self.ask_for(host, lease);
        }
    }

    /// An attempt's call was answered.
    pub fn attempt_answered(&mut self, host: usize, lease: LeaseId, call: CallId, answer: Result<Reply, Refused>) {
        let Some(attempt) = self.hosts[host].attempt(lease).filter(|attempt| attempt.call == Some(call)) else {
            return;
        };
        attempt.call = None;
        attempt.tries += 1;
        let (tries, serial, step) = (attempt.tries, attempt.serial, attempt.step.clone());
        match (answer, step) {
            (Err(Refused::Passing | Refused::Gap), _) => {
                let wait = self.pause(tries);
                self.later(host, wait, Wrk::CallAgain(lease, serial));
            }
            (Ok(reply), Step::Report) => {
                self.check_reported(host, lease, &reply);
                self.over(host, lease);
            }
            (Err(Refused::Stale), Step::Report) => self.over(host, lease),
            (Err(Refused::Final(why)), Step::Report) => self.report_loss(host, lease, why),
            (Err(Refused::Stale), _) => self.conclude(host, lease, None),
            (Err(Refused::Final(_)), _) => self.lost(host, lease, Reason::Transfer),
            (Ok(_), Step::AskInputs) => self.next_step(host, lease, Step::Pull, Some(5)),
            (Ok(Reply::Tickets(tickets)), Step::AskUpload) => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    let blobs = attempt.blobs();
                    attempt.to_send = tickets.into_iter().zip(blobs).filter_map(|(t, blob)| Some((t?, blob))).collect();
                    attempt.tries = 0;
                }
                self.next_step(host, lease, Step::Send, Some(2));
            }
            (Ok(_), _) => {}
        }
    }

    /// A try of a transfer failed. Returns whether that was the last.
    fn transfer_failed(&mut self, host: usize, lease: LeaseId, step: Step) {
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        attempt.tries += 1;
        let tries = attempt.tries;
        if tries >= TRANSFER_TRIES {
            return self.lost(host, lease, Reason::Transfer);
        }
        let wait = self.pause(tries);
        self.next_step(host, lease, step, Some(wait));
    }

    pub(super) fn pull(&mut self, host: usize, lease: LeaseId) {
        let Some(digests) = self.hosts[host].attempt(lease).map(|attempt| attempt.inputs()) else { return };
        if self.store_refuses() {
            return self.transfer_failed(host, lease, Step::Pull);
        }
        if let Some(digest) = digests.iter().find(|digest| !self.store.has(digest)) {
            let why = format!("{lease} was ordered with input {digest}, which is not in the store");
            return self.breaks("inputs-are-there", why);
        }
        self.create(host, lease);
    }

    /// Sends one blob after another.
    pub(super) fn send(&mut self, host: usize, lease: LeaseId) {
        if self.store_refuses() {
            return self.transfer_failed(host, lease, Step::Send);
        }
        let takes = self.store_takes();
        let Some(attempt) = self.hosts[host].attempt(lease) else { return };
        match attempt.to_send.pop() {
            None => self.conclude(host, lease, Some(Outcome::succeeded())),
            Some((upload, blob)) if self.store.send(upload) => {
                if let Some(attempt) = self.hosts[host].attempt(lease) {
                    attempt.uploads.push((upload, blob));
                }
                self.next_step(host, lease, Step::Send, Some(takes));
            }
            // The upload was forgotten: another one is asked for.
            Some(_) => {
                self.next_step(host, lease, Step::AskUpload, None);
                self.ask_for(host, lease);
            }
        }
    }
}
