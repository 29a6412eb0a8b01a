//! A farm whose journal is memory.

use railyard_common::id::BootId;
use railyard_common::job::Capacity;
use railyard_common::platform::PlatformOffer;
use railyard_controller::journal::{Journal, JournalError, Loaded};
use railyard_core::{Event, Snapshot, WorkerOffer};
use std::collections::BTreeMap;

/// Events in memory.
pub struct Memory(pub Vec<Event>);

impl Journal for Memory {
    fn load(&mut self) -> Result<Loaded, JournalError> {
        Ok(Loaded { snapshot: None, events: self.0.clone() })
    }

    fn append(&mut self, events: &[Event]) -> Result<(), JournalError> {
        self.0.extend_from_slice(events);
        Ok(())
    }

    fn wants_snapshot(&self) -> bool {
        false
    }

    fn install(&mut self, _: &Snapshot) -> Result<(), JournalError> {
        Ok(())
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// A worker that can do anything.
pub fn offer() -> WorkerOffer {
    WorkerOffer {
        name: "anvil".parse().unwrap(),
        boot: BootId("boot".to_owned()),
        version: String::new(),
        platforms: vec![PlatformOffer { platform: "linux/amd64".parse().unwrap(), emulated: false }],
        capacity: Capacity { cpu_millis: 64_000, memory_bytes: 1 << 40, disk_bytes: 1 << 44, slots: 8 },
        labels: BTreeMap::new(),
        pool: None,
        allows_privileged: false,
        allows: Vec::new(),
    }
}
