//! The end of a build: its manifest is written, then the farm is told. All of it can be done again.

use super::{Ctl, Waiter};
use crate::queue::Ms;
use crate::world::World;
use railyard_common::backoff::Backoff;
use railyard_common::id::BuildId;
use railyard_core::{BuildState, Command, Input};
use std::collections::BTreeMap;

/// How long the cache gets before the next try.
const RETRY: Backoff = Backoff { base_millis: 500, max_millis: 30_000 };

/// Builds on their way out.
#[derive(Default)]
pub struct Finalizer {
    looking: bool,
    writing: Option<BuildId>,
    tries: BTreeMap<BuildId, (u32, Ms)>,
}

impl World {
    pub(super) fn notify_finalizer(&mut self) {
        let Some(process) = self.process_mut() else { return };
        if !process.finalizer.looking && process.finalizer.writing.is_none() {
            process.finalizer.looking = true;
            self.ask(Waiter::LookFinalizing, |ticket| Input::Read { ticket });
        }
    }

    pub(super) fn look_finalizing(&mut self) {
        let now = self.now;
        let Some(process) = self.process_mut() else { return };
        process.finalizer.looking = false;
        let tries = &process.finalizer.tries;
        let due = |build: &BuildId| tries.get(build).is_none_or(|(_, due)| *due <= now);
        let next = process.core.farm().finalizing().map(|build| build.id()).find(|build| due(build)).cloned();
        if let Some(build) = next {
            process.finalizer.writing = Some(build.clone());
            let wait = self.store_takes();
            self.after(wait, Ctl::Written(build));
        }
    }

    pub(super) fn manifest_written(&mut self, build: BuildId) {
        if self.store_refuses() {
            self.tell(Input::FinalizeError { build: build.clone(), why: "the store refuses".to_owned() });
            return self.finalize_again(build);
        }
        let Some(process) = self.process_mut() else { return };
        let state = process.core.farm().build(&build).map(|build| build.state.clone());
        match state {
            Some(BuildState::Finalizing { verdict }) => {
                self.store.manifests.insert(build.clone(), verdict);
                let command = Command::Finalized { build: build.clone(), error: None };
                self.ask(Waiter::Finalized(build), |ticket| Input::Command { ticket, command });
            }
            // Somebody has ended it.
            _ => self.finalized(build),
        }
    }

    pub(super) fn finalized(&mut self, build: BuildId) {
        if let Some(process) = self.process_mut() {
            process.finalizer.tries.remove(&build);
            process.finalizer.writing = None;
        }
        self.notify_finalizer();
    }

    pub(super) fn finalize_again(&mut self, build: BuildId) {
        let now = self.now;
        let Some(process) = self.process_mut() else { return };
        process.finalizer.writing = None;
        let tries = process.finalizer.tries.get(&build).map_or(1, |(tries, _)| tries + 1);
        let wait = RETRY.delay_millis(tries);
        process.finalizer.tries.insert(build, (tries, now + wait));
        self.after(wait, Ctl::Finalize);
        self.notify_finalizer();
    }
}
