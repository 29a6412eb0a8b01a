//! A driver and its farm, without a controller around them.

use railyard_common::id::{BootId, LeaseId, PipelineName};
use railyard_common::job::Capacity;
use railyard_common::platform::PlatformOffer;
use railyard_controller::driver::{Driver, Handle, Notices};
use railyard_controller::journal::{Journal, JournalError, Loaded};
use railyard_core::{Event, Snapshot, WorkerOffer};
use railyard_service::clock::Clock;
use railyard_service::task;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::CancellationToken;

/// A driver at work, and what it tells.
pub struct Driven {
    pub farm: Handle,
    pub ended: mpsc::UnboundedReceiver<LeaseId>,
    pub listed: mpsc::UnboundedReceiver<PipelineName>,
    pub finalize: Arc<Notify>,
    pub stop: CancellationToken,
}

impl Driven {
    pub fn start(journal: impl Journal + 'static, clock: Arc<dyn Clock>) -> Self {
        let ((ended_tx, ended), (listed_tx, listed)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (finalize, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let notices = Notices {
            changed: broadcast::Sender::new(16),
            ended: vec![ended_tx],
            listed: vec![listed_tx],
            finalize: finalize.clone(),
        };
        let (driver, farm) = Driver::open(Box::new(journal), clock, notices).unwrap();
        task::spawn("driver", driver.run(stop.clone()));
        Self { farm, ended, listed, finalize, stop }
    }
}

/// A journal in memory.
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
pub fn offer(name: &str) -> WorkerOffer {
    WorkerOffer {
        name: name.parse().unwrap(),
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
