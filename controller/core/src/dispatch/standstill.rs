//! While nothing can be journaled: who asks is answered from what is durable, and nothing changes.

use super::{Dispatcher, Input, Output, Ticket, Welcome};
use crate::{Command, Refusal};
use railyard_common::id::WorkerName;
use railyard_common::time::Millis;

impl Dispatcher {
    /// Answers `inputs` without a round: the state stays as it is. Heartbeats renew leases, workers that come keep what they
    /// hold, nothing expires, and nothing is placed. What workers' comings and goings mean for the farm is decided in the first
    /// round after the standstill.
    ///
    /// Gives what leaves, and the tickets of commands that would change something: the shell refuses them.
    /// Call [`Dispatcher::begin_leases`] when the standstill ends.
    pub fn answer(
        &mut self,
        now: Millis,
        mono: Millis,
        inputs: impl IntoIterator<Item = Input>,
    ) -> (Vec<Output>, Vec<Ticket>) {
        let (mut out, mut refused) = (Vec::new(), Vec::new());
        for input in inputs {
            match input {
                Input::Command { ticket, command } => match self.farm.decide(now, &command) {
                    Ok(events) if !events.is_empty() => refused.push(ticket),
                    // Done already, or impossible anyway: that can be told.
                    result => out.push(Output::Decided { ticket, result }),
                },
                Input::Attach { ticket, offer, held, builds, said, disk } => {
                    let worker = offer.name.clone();
                    if said.is_some_and(|said| self.live.is_late(&worker, said)) {
                        let refusal = Refusal::LateHello(worker);
                        out.push(Output::TurnedAway { ticket, refusal });
                        continue;
                    }
                    let hello = Command::Hello { offer, held: held.clone() };
                    if let Err(refusal) = self.farm.decide(now, &hello) {
                        out.push(Output::TurnedAway { ticket, refusal });
                        continue;
                    }
                    self.put_off(&worker, hello);
                    self.live.replace(&worker);
                    self.welcome(now, mono, Welcome { ticket, worker, held, builds, disk }, &mut out);
                }
                Input::Detach { worker, session } => {
                    if self.live.detach(&worker, session) {
                        self.put_off(&worker, Command::Goodbye { worker: worker.clone() });
                    }
                }
                Input::Draining { worker, session } => {
                    if self.live.session(&worker) == Some(session) {
                        self.own.push_back(Command::Drain { worker });
                    }
                }
                Input::Beat(beat) => {
                    let held = beat.leases.iter().filter(|(lease, _)| self.farm.holder(*lease) == Some(&beat.worker));
                    for (lease, _) in held {
                        self.live.leases.renew(*lease, mono);
                    }
                    self.answer_beat(now, beat, &mut out);
                }
                Input::FinalizeError { build, why } => {
                    self.live.note_finalize_error(build.clone(), why);
                    out.push(Output::BuildChanged(build));
                }
                Input::Read { ticket } => out.push(Output::Read { ticket }),
            }
        }
        (out, refused)
    }

    /// For the first round after the standstill; of each worker only its last word counts.
    fn put_off(&mut self, worker: &WorkerName, command: Command) {
        self.own.retain(|earlier| match earlier {
            Command::Hello { offer, .. } => offer.name != *worker,
            Command::Goodbye { worker: gone } | Command::Drain { worker: gone } => gone != worker,
            _ => true,
        });
        self.own.push_back(command);
    }
}
