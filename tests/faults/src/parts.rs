//! The processes of a farm under fire, and the hand that starts again what has ended, as a service manager does.

use crate::plan::{Aim, Kill, Part};
use crate::store::Store;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_tests::engine::Engine;
use railyard_tests::farm::Farm;
use railyard_tests::process::Process;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a service manager waits before it starts what ended by itself.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// A part's process.
enum Body {
    /// One of ours.
    Process(Process),
    /// The engine's daemon.
    Engine(Engine),
}

/// A part.
struct Slot {
    body: Body,
    /// When it is started again, if it does not run.
    down_until: Option<Duration>,
}

/// A kill that was done.
#[derive(Clone, Debug)]
pub struct Done {
    /// As it was planned.
    pub kill: Kill,
    /// The wall clock then, in milliseconds.
    pub at_millis: u64,
}

/// All parts.
pub struct Parts {
    slots: BTreeMap<Part, Slot>,
    workers: BTreeMap<Part, String>,
    /// Parts that ended though nobody killed them.
    pub by_themselves: Vec<Part>,
}

impl Parts {
    /// Takes over what runs. `workers` are their parts and names.
    pub fn new(controller: Process, workers: Vec<(Part, String, Process)>, engine: Engine, store: Process) -> Self {
        let up = |body| Slot { body, down_until: None };
        let mut slots = BTreeMap::from([
            (Part::Controller, up(Body::Process(controller))),
            (Part::Engine, up(Body::Engine(engine))),
            (Part::Store, up(Body::Process(store))),
        ]);
        let mut names = BTreeMap::new();
        for (part, name, process) in workers {
            slots.insert(part, up(Body::Process(process)));
            names.insert(part, name);
        }
        Self { slots, workers: names, by_themselves: Vec::new() }
    }

    /// The name of a worker.
    pub fn worker(&self, part: Part) -> Option<&str> {
        self.workers.get(&part).map(String::as_str)
    }

    /// The engine, for looking.
    pub fn engine(&self) -> Option<&Engine> {
        self.slots.values().find_map(|slot| match &slot.body {
            Body::Engine(engine) => Some(engine),
            Body::Process(_) => None,
        })
    }

    /// Whether everything runs.
    pub fn are_up(&self) -> bool {
        self.slots.values().all(|slot| slot.down_until.is_none())
    }

    /// kill -9.
    pub fn kill(&mut self, kill: &Kill) -> Done {
        let at_millis = SystemClock.now().0;
        if let Some(slot) = self.slots.get_mut(&kill.part) {
            match (&mut slot.body, kill.aim) {
                (Body::Engine(engine), Aim::Containerd) => engine.kill_containerd(),
                (Body::Engine(engine), Aim::Process) => engine.kill(),
                (Body::Process(process), _) => process.kill(),
            }
            if kill.aim == Aim::Process {
                slot.down_until = Some(SystemClock.monotonic() + kill.pause);
            }
        }
        Done { kill: kill.clone(), at_millis }
    }

    /// Starts again what is due, and notices what has ended by itself.
    pub fn tend(&mut self, farm: &Farm, store: &Store) {
        let now = SystemClock.monotonic();
        for (part, slot) in &mut self.slots {
            match slot.down_until {
                Some(until) if now >= until => {
                    match (&mut slot.body, part) {
                        (Body::Engine(engine), _) => engine.spawn(),
                        (Body::Process(process), Part::Store) => *process = store.spawn(),
                        (Body::Process(process), Part::Controller) => *process = farm.spawn_controller(),
                        (Body::Process(process), worker) => *process = farm.spawn_worker(&self.workers[worker]),
                    }
                    slot.down_until = None;
                }
                Some(_) => {}
                None => {
                    let ended = match &mut slot.body {
                        Body::Process(process) => process.has_ended(),
                        Body::Engine(engine) => engine.has_ended(),
                    };
                    if ended {
                        self.by_themselves.push(*part);
                        slot.down_until = Some(now + RESTART_AFTER);
                    }
                }
            }
        }
    }
}
