//! What really happens in a simulation, seen from nowhere: every container, whoever knows of it, and every broken promise.

use crate::script::Script;
use railyard_common::id::LeaseId;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Broken promises that are written down; more of them say nothing new.
const BROKEN_MAX: usize = 20;

/// One container's process, from its start.
#[derive(Debug)]
pub struct Execution {
    /// For which attempt.
    pub lease: LeaseId,
    /// On which host.
    pub worker: String,
    /// By which life of the host's worker, or which one has taken it over.
    pub life: u64,
    /// What it does.
    pub script: Script,
    /// When it began.
    pub since: Duration,
    /// When something ended it, and its exit code then. Otherwise it ends by itself.
    pub ended: Option<(Duration, i64)>,
}

impl Execution {
    /// When it ends, as far as is known, and with which code.
    pub fn end(&self) -> Option<(Duration, i64)> {
        self.ended.or_else(|| Some((self.since + self.script.ends_after()?, self.script.exit?)))
    }

    /// Whether it runs at that time.
    pub fn runs_at(&self, at: Duration) -> bool {
        self.since <= at && self.end().is_none_or(|(end, _)| at < end)
    }
}

/// A container on an engine; it may not have been started.
#[derive(Debug)]
pub struct Container {
    /// For which attempt.
    pub lease: LeaseId,
    /// What it will do.
    pub script: Script,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its place in [`Known::executions`], once started.
    pub execution: Option<usize>,
    /// Tells of its end.
    pub ended: watch::Sender<bool>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Known {
    /// By host and name.
    pub containers: BTreeMap<(String, String), Container>,
    /// Every container that was ever started.
    pub executions: Vec<Execution>,
    /// Which life of a host's worker runs; none if it is down.
    pub lives: BTreeMap<String, u64>,
    /// Lives that were begun, for numbering.
    lives_begun: u64,
    /// What happened, a line each.
    pub trace: String,
    /// What should not have.
    pub broken: Vec<String>,
}

impl Known {
    /// Writes down that something happened.
    pub fn note(&mut self, what: &str) {
        let at = now();
        // Writing to a string cannot fail.
        let _ = writeln!(self.trace, "{:>9.3} {what}", at.as_secs_f64());
    }

    /// Writes down what must not be.
    pub fn broken(&mut self, what: String) {
        self.note(&format!("BROKEN {what}"));
        if self.broken.len() < BROKEN_MAX {
            self.broken.push(what);
        }
    }

    /// Whether the execution's own worker is up and knows of it. What a worker has left behind that was killed runs on
    /// until its next life.
    pub fn is_minded(&self, execution: &Execution) -> bool {
        self.lives.get(&execution.worker) == Some(&execution.life)
    }

    /// That life of the worker knows of the container.
    pub fn mind(&mut self, execution: usize, life: u64) {
        if let Some(execution) = self.executions.get_mut(execution) {
            execution.life = execution.life.max(life);
        }
    }

    /// A container begins to run at `since`.
    pub fn start(&mut self, execution: Execution) -> usize {
        let (lease, since) = (execution.lease, execution.since);
        let others = self.executions.iter().filter(|other| other.lease.job == lease.job);
        let clashes: Vec<String> = others
            .filter(|other| other.lease == lease || (other.runs_at(since) && self.is_minded(other)))
            .map(|other| {
                format!("{lease} starts on {} while {} was started on {}", execution.worker, other.lease, other.worker)
            })
            .collect();
        clashes.into_iter().for_each(|clash| self.broken(clash));
        self.note(&format!("{} starts {lease}", execution.worker));
        self.executions.push(execution);
        self.executions.len() - 1
    }

    /// Something ends a container at `at`, if nothing has before.
    pub fn end(&mut self, host: &str, name: &str, at: Duration, code: i64) {
        let Some(container) = self.containers.get(&(host.to_owned(), name.to_owned())) else { return };
        let Some(execution) = container.execution.and_then(|index| self.executions.get_mut(index)) else { return };
        if execution.end().is_none_or(|(end, _)| at < end) {
            execution.ended = Some((at, code));
        }
        container.ended.send_replace(true);
    }

    /// The host loses its power: nothing on it runs on.
    pub fn power_off(&mut self, host: &str) {
        let at = now();
        let names: Vec<String> =
            self.containers.keys().filter(|(on, _)| on == host).map(|(_, name)| name.clone()).collect();
        names.iter().for_each(|name| self.end(host, name, at, 137));
    }

    /// The worker's process is gone.
    pub fn worker_down(&mut self, host: &str) {
        self.lives.remove(host);
    }

    /// A new process of the worker.
    pub fn worker_up(&mut self, host: &str) -> u64 {
        self.lives_begun += 1;
        self.lives.insert(host.to_owned(), self.lives_begun);
        self.lives_begun
    }

    /// The controller considers the attempt ended.
    pub fn attempt_ended(&mut self, lease: LeaseId) {
        let at = now();
        let running = self.executions.iter().filter(|execution| execution.lease == lease && execution.runs_at(at));
        let running: Vec<String> = running
            .filter(|execution| self.is_minded(execution))
            .map(|execution| format!("the lease {lease} is over and its container runs on {}", execution.worker))
            .collect();
        running.into_iter().for_each(|what| self.broken(what));
    }
}

/// Shared by everybody in a simulation.
#[derive(Clone, Debug, Default)]
pub struct Truth(Arc<Mutex<Known>>);

impl Truth {
    /// Looks, and writes down. Not across an await.
    pub fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that something happened.
    pub fn note(&self, what: &str) {
        self.lock().note(what);
    }
}

thread_local! {
    static STEPPED_TO: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
}

/// The simulation's time between two steps, for those outside its hosts.
pub fn stepped_to(now: Duration) {
    STEPPED_TO.set(now);
}

/// The simulated time.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_else(|| STEPPED_TO.get())
}
