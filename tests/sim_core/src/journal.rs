//! The controller's disk: what is durable there, and how an append can go wrong.

use crate::queue::Ms;
use railyard_core::{Event, Farm, Snapshot};

/// How an append comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Append {
    /// The events are durable.
    Good,
    /// An error, and nothing is there.
    Failed,
    /// An error, and the events are there all the same.
    Doubtful,
}

/// Snapshot and tail.
#[derive(Default)]
pub struct Journal {
    snapshot: Option<Vec<u8>>,
    tail: Vec<Event>,
    /// Appends fail until then.
    pub broken_until: Ms,
    /// Appends take long until then.
    pub slow_until: Ms,
}

impl Journal {
    /// Keeps events.
    pub fn keep(&mut self, events: &[Event]) {
        self.tail.extend_from_slice(events);
    }

    /// Whether a snapshot pays.
    pub fn wants_snapshot(&self) -> bool {
        self.tail.len() > 60
    }

    /// Puts a snapshot in place of everything so far, as bytes.
    pub fn install(&mut self, snapshot: &Snapshot) {
        self.snapshot = Some(serde_json::to_vec(snapshot).expect("a snapshot can be written"));
        self.tail.clear();
    }

    /// What a controller that starts reads. Through bytes, as the real one: what does not read back as it was is lost.
    pub fn load(&self) -> Farm {
        let snapshot = self.snapshot.as_ref();
        let parts = |bytes: &[u8]| {
            Ok::<_, serde_json::Error>(Snapshot::join(serde_json::from_slice(bytes)?, serde_json::from_slice(bytes)?))
        };
        let snapshot = snapshot.map(|bytes| parts(bytes).expect("a snapshot can be read"));
        let mut farm = snapshot.map(Farm::restore).unwrap_or_default();
        for event in &self.tail {
            let bytes = serde_json::to_vec(event).expect("an event can be written");
            farm.apply(&serde_json::from_slice(&bytes).expect("an event can be read"));
        }
        farm
    }
}
