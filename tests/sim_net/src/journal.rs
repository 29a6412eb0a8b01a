//! A journal in memory that outlives the controller's crashes, and looks at everything that is written to it.

use crate::net::at;
use crate::truth::Truth;
use railyard_controller::journal::{Journal, JournalError, Loaded};
use railyard_core::{Event, Farm, Next, Snapshot};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Events after which a snapshot is taken: few, so that most seeds take some.
const SNAPSHOT_EVERY: usize = 60;

/// What is durable.
#[derive(Debug, Default)]
pub struct Disk {
    snapshot: Option<Snapshot>,
    events: Vec<Event>,
    /// What the events make of a farm that was never restarted.
    pub farm: Farm,
    /// Every event ever.
    pub history: Vec<Event>,
}

/// The journal: what is appended is durable at once.
#[derive(Clone, Debug)]
pub struct MemoryJournal {
    disk: Arc<Mutex<Disk>>,
    truth: Truth,
}

impl MemoryJournal {
    /// An empty one.
    pub fn new(truth: Truth) -> Self {
        Self { disk: Arc::default(), truth }
    }

    /// What is durable now.
    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the last events: a disk that has lied.
    pub fn lose(&self, events: usize) {
        let mut disk = self.disk();
        let kept = disk.events.len().saturating_sub(events);
        disk.events.truncate(kept);
    }

    /// What a controller that starts now would read.
    pub fn read(&self) -> Loaded {
        let disk = self.disk();
        Loaded { snapshot: disk.snapshot.clone(), events: disk.events.clone() }
    }
}

impl Journal for MemoryJournal {
    fn load(&mut self) -> Result<Loaded, JournalError> {
        Ok(self.read())
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        let mut disk = self.disk();
        let mut known = self.truth.lock();
        for event in events {
            known.note(&told(event));
            if let Event::AttemptEnded { lease, .. } = event {
                known.attempt_ended(*lease);
            }
            disk.farm.apply(event);
            disk.events.push(event.clone());
            disk.history.push(event.clone());
        }
        disk.farm.check().into_iter().for_each(|broken| known.broken(format!("the farm: {broken}")));
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        self.disk().events.len() >= SNAPSHOT_EVERY
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), JournalError> {
        let mut disk = self.disk();
        disk.snapshot = Some(snapshot.clone());
        disk.events.clear();
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// An event in a few words, without what is random.
fn told(event: &Event) -> String {
    match event {
        Event::BuildAccepted { plan, first_job, .. } => format!("build {} accepted from {first_job}", plan.build),
        Event::JobLeased { lease, worker, .. } => format!("{lease} leased to {worker}"),
        Event::AttemptEnded { lease, outcome, next, .. } => {
            let next = match next {
                Next::End => "for good".to_owned(),
                Next::Again { not_before } => format!("again from {:.3}", at(*not_before)),
            };
            format!("{lease} ended: {} ({}), {next}", outcome.kind.as_str(), outcome.reason)
        }
        Event::BuildEnded { build, .. } => format!("build {build} ended"),
        Event::WorkerOnline { offer, .. } => format!("worker {} online", offer.name),
        Event::WorkerOffline { worker, .. } => format!("worker {worker} offline"),
        Event::ControllerStarted { .. } => "controller started".to_owned(),
        other => format!("{other:?}"),
    }
}
