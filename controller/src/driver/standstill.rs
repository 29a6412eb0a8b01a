//! While the journal cannot be written: everybody is answered from what is durable, nothing changes, and the journal is
//! tried again and again, less and less often.

use super::handle::CommandError;
use super::{BATCH_MAX, Driver};
use crate::journal::JournalError;
use railyard_common::backoff::Backoff;
use railyard_common::time::Millis;
use railyard_core::Input;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Waits between tries of the journal: room may be made at any moment, and a try costs little.
const RETRY: Backoff = Backoff { base_millis: 250, max_millis: 4_000 };

/// Why the loop over a standstill ended.
pub(super) enum End {
    /// The journal can be written again.
    Writable,
    /// The controller stops.
    Stop,
}

impl Driver {
    /// Serves readers and heartbeats until the journal can be written again.
    ///
    /// # Errors
    /// [`JournalError`], if the state on the disk cannot be read any more.
    pub(super) async fn stand_still(
        &mut self,
        error: JournalError,
        shutdown: &CancellationToken,
    ) -> Result<End, JournalError> {
        let mut why = railyard_service::error_chain(&error);
        tracing::error!(%why, "the journal cannot be written: nothing new is taken on, readers and heartbeats are answered");
        let (began, mut tries) = (self.monotonic(), 1);
        let mut next = self.after(RETRY.delay_millis(tries));
        self.stuck.send_replace(Some(why.clone()));
        loop {
            let mut waiting = Vec::new();
            let wait = Duration::from_millis(next.since(self.monotonic()));
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(End::Stop),
                // Before the requests: their crowd must not keep the controller from going on.
                () = tokio::time::sleep(wait) => match self.journal.run(|journal| journal.ready()).await {
                    Ok(()) => break,
                    Err(error) => {
                        why = railyard_service::error_chain(&error);
                        self.stuck.send_replace(Some(why.clone()));
                        tries += 1;
                        next = self.after(RETRY.delay_millis(tries));
                    }
                },
                taken = self.requests.recv_many(&mut waiting, BATCH_MAX) => if taken == 0 { return Ok(End::Stop) },
            }
            let inputs: Vec<Input> = waiting.into_iter().filter_map(|request| self.take(request)).collect();
            let inputs = self.shut_out(inputs).await?;
            let (outputs, refused) = self.dispatcher.answer(self.clock.now(), self.monotonic(), inputs);
            for ticket in refused {
                if let Some(reply) = self.waiting.commands.remove(&ticket) {
                    // A caller that went away does not want its answer any more.
                    drop(reply.send(Err(CommandError::Standstill(why.clone()))));
                }
            }
            outputs.into_iter().for_each(|output| self.carry_out(output));
        }
        self.stuck.send_replace(None);
        let secs = self.monotonic().since(began) / 1000;
        tracing::info!("the journal can be written again, after {secs} s; work goes on");
        // Nothing has expired meanwhile: workers may have found nobody who could take their hello.
        self.dispatcher.begin_leases(self.monotonic());
        self.notices.finalize.notify_one();
        Ok(End::Writable)
    }

    /// Whoever is to be shut out is, as long as there is room for that at least: else who fills the disk could not be stopped.
    /// Gives the other inputs, and all if there is none.
    async fn shut_out(&mut self, inputs: Vec<Input>) -> Result<Vec<Input>, JournalError> {
        let is_urgent = |input: &Input| matches!(input, Input::Command { command, .. } if command.shuts_out());
        if !inputs.iter().any(is_urgent) || self.journal.run(|journal| journal.has_last_room()).await.is_err() {
            return Ok(inputs);
        }
        let (urgent, others): (Vec<Input>, Vec<Input>) = inputs.into_iter().partition(is_urgent);
        let round = self.dispatcher.urgent_round(self.clock.now(), self.monotonic(), urgent);
        // What keeps the next round from being made durable is known already.
        self.commit(round).await?;
        Ok(others)
    }

    fn after(&self, millis: u64) -> Millis {
        self.monotonic().plus(millis)
    }
}
