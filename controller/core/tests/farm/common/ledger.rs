//! One farm with its journal, its clock and its auditor.

use crate::common::audit::Audit;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_common::time::Millis;
use railyard_core::{Command, Event, Farm, Leases, Pressure, Refusal, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// What a controller comes back from after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebirth {
    /// A snapshot of the state.
    Snapshot,
    /// Every event since the beginning.
    Journal,
}

/// A farm that is lived twice: `farm` from the events as they were decided, `twin` from what the journal would give back.
///
/// **Invariant:** after every command both decide alike, hold the same state, and agree with the lease deadlines.
#[derive(Default)]
pub struct Ledger {
    now: Millis,
    farm: Farm,
    twin: Farm,
    journal: Vec<String>,
    leases: Leases,
    audit: Audit,
    /// Free disk as measured: told to both farms, for no journal has it.
    measured: BTreeMap<WorkerName, u64>,
}

impl Ledger {
    /// The state.
    pub fn farm(&self) -> &Farm {
        &self.farm
    }

    /// The time.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Decides, journals and applies; `told` hears of each event when it has been applied.
    pub fn run(&mut self, command: &Command, mut told: impl FnMut(&Event, &Farm)) -> Result<Vec<Event>, Refusal> {
        let decided = self.farm.decide(self.now, command);
        self.invariant_twins_decide_alike(command, &decided);
        let events = decided?;
        for event in &events {
            self.audit.before(&self.farm, self.now, event);
            let record = to_json(event);
            self.farm.apply(event);
            self.twin.apply(&event_from_json(&record));
            self.journal.push(record);
            self.follow_leases(event);
            let broken = self.farm.check();
            assert!(broken.is_empty(), "after {event:?}: {broken:#?}");
            self.audit.after(&self.farm);
            told(event, &self.farm);
        }
        Ok(events)
    }

    /// Lets time pass; leases that expire on the way end at their deadline.
    pub fn advance(&mut self, millis: u64, mut told: impl FnMut(&Event, &Farm)) {
        let until = self.now.plus(millis);
        while let Some(deadline) = self.leases.next_deadline().filter(|deadline| *deadline <= until) {
            self.now = deadline;
            for lease in self.leases.expired(deadline) {
                let ended = self.run(&Command::Expire { lease }, &mut told);
                assert_eq!(ended.map(|events| events.len()).ok(), Some(1), "{lease} expired and lives on");
            }
        }
        self.now = until;
    }

    /// A worker has measured its free disk.
    pub fn note_free_disk(&mut self, worker: &WorkerName, bytes: u64) {
        self.measured.insert(worker.clone(), bytes);
        self.tell_measured();
    }

    /// A worker says whether it is under pressure.
    pub fn note_pressure(&mut self, worker: &WorkerName, pressure: Option<Pressure>) {
        self.farm.note_pressure(worker, pressure);
        self.twin.note_pressure(worker, pressure);
    }

    fn tell_measured(&mut self) {
        for (worker, bytes) in &self.measured {
            self.farm.note_free_disk(worker, *bytes);
            self.twin.note_free_disk(worker, *bytes);
        }
    }

    /// A heartbeat for one lease. Returns whether it is live.
    pub fn renew(&mut self, lease: LeaseId) -> bool {
        self.leases.renew(lease, self.now)
    }

    /// The controller dies and comes back.
    pub fn restart(&mut self, from: Rebirth, told: impl FnMut(&Event, &Farm)) {
        self.farm = match from {
            Rebirth::Snapshot => Farm::restore(self.stored_snapshot()),
            Rebirth::Journal => self.twin.clone(),
        };
        self.tell_measured();
        self.run(&Command::Started, told).expect("a start is never refused");
    }

    /// Replaying the journal, and restoring a snapshot, give the state.
    pub fn verify(&self) {
        let state = self.farm.snapshot();
        assert_eq!(self.twin.snapshot(), state, "a replay of the journal differs");
        let restored = Farm::restore(self.stored_snapshot());
        assert_eq!(restored.snapshot(), state, "a restored snapshot differs");
        assert_eq!(restored.check(), Vec::<String>::new(), "a restored snapshot is broken");
    }

    /// The journal's records, oldest first.
    pub fn journal(&self) -> &[String] {
        &self.journal
    }

    fn stored_snapshot(&self) -> Snapshot {
        let text = to_json(&self.farm.snapshot());
        let parts =
            || Ok::<_, serde_json::Error>(Snapshot::join(serde_json::from_str(&text)?, serde_json::from_str(&text)?));
        parts().unwrap_or_else(|error| panic!("a snapshot does not read back: {error}\n{text}"))
    }

    fn invariant_twins_decide_alike(&self, command: &Command, decided: &Result<Vec<Event>, Refusal>) {
        assert_eq!(self.twin.decide(self.now, command), *decided, "{command:?} after a replay");
    }

    /// Keeps the deadlines as the controller does, and compares them with the farm.
    fn follow_leases(&mut self, event: &Event) {
        match event {
            Event::JobLeased { lease, .. } => {
                let ttl_millis = self.farm.ttl_millis(*lease).expect("a leased job has a plan");
                self.leases.begin(*lease, self.now, ttl_millis);
            }
            Event::AttemptEnded { lease, .. } => self.leases.end(*lease),
            Event::ControllerStarted { .. } => {
                self.leases = Leases::default();
                for lease in self.farm.live_leases() {
                    let ttl_millis = self.farm.ttl_millis(lease).expect("a leased job has a plan");
                    self.leases.begin(lease, self.now, ttl_millis);
                }
            }
            _ => {}
        }
        let dated: BTreeSet<LeaseId> = self.leases.expired(Millis(u64::MAX)).into_iter().collect();
        let live: BTreeSet<LeaseId> = self.farm.live_leases().collect();
        assert_eq!(dated, live, "deadlines and live leases differ after {event:?}");
    }
}

/// An event as the journal keeps it.
pub fn event_from_json(record: &str) -> Event {
    serde_json::from_str(record).unwrap_or_else(|error| panic!("an event does not read back: {error}\n{record}"))
}

fn to_json(what: &impl serde::Serialize) -> String {
    serde_json::to_string(what).expect("what is kept can be written")
}
