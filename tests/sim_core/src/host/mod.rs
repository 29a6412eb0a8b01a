//! Hosts: an engine with containers, and a worker's process with the real session.
//!
//! An abstraction of `worker/src/daemon.rs`, `link.rs` and `attempt/`: the same steps in the same order. Images, mounts and
//! the contents of files are left out; what an attempt makes is drawn from the seed.

mod adopt;
mod attempt;
mod daemon;
mod ending;
mod engine;
mod ship;
mod transfers;

pub use attempt::{Attempt, STOP_GRACE};
pub use engine::{Container, Eng};

use crate::config::{Config, Trouble};
use crate::dice::{Dice, Purpose};
use crate::net::ConnId;
use crate::pipelines::{End, GIB, LARGEST, POOL};
use crate::queue::Ms;
use railyard_common::id::{BootId, LeaseId, PoolName, WorkerName};
use railyard_common::job::Capacity;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_core::WorkerOffer;
use railyard_worker::session::Session;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Until when nothing gets through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cut {
    pub up_until: Ms,
    pub down_until: Ms,
}

/// A host.
pub struct Host {
    pub name: WorkerName,
    pub platforms: Vec<PlatformOffer>,
    pub capacity: Capacity,
    pub pool: Option<PoolName>,
    pub labels: BTreeMap<String, String>,
    pub cut: Cut,
    pub paused_until: Ms,
    pub engine_bad_until: Ms,
    pub disk_full_until: Ms,
    ppm: i64,
    /// The host is up since then; its monotonic clock counts from there.
    booted_at: Ms,
    pub boots: u32,
    processes: u32,
    process: Option<Process>,
    pub containers: BTreeMap<LeaseId, Container>,
    /// What a process that died left of its attempts, with when each lease was last confirmed.
    left: BTreeMap<LeaseId, (Attempt, Duration)>,
    /// Whether processes find what was left. Without, its directory goes with each process.
    adopts: bool,
}

/// A worker's process.
pub struct Process {
    number: u32,
    boot_id: BootId,
    session: Session,
    standing: Standing,
    conn: Option<ConnId>,
    /// Whether the controller has answered the hello of `conn`.
    welcomed: bool,
    tries: u32,
    next_beat_at: Duration,
    heard_at: Ms,
    attempts: BTreeMap<LeaseId, Attempt>,
    wake: Option<Ms>,
}

/// Whether new jobs are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// What an earlier process left is being removed.
    Cleaning,
    Working,
    /// Stopping, and started again after so long.
    Leaving(Ms),
}

/// Something in a worker's process.
pub enum Wrk {
    Wake,
    Clean,
    Open,
    WelcomeTimeout(ConnId),
    Silence(ConnId),
    /// The next step of an attempt, unless something else has happened to it since.
    Step(LeaseId, u64),
    LogGrows(LeaseId),
    ShipAgain(LeaseId),
    AckTimeout(LeaseId, ConnId, u64),
    CallAgain(LeaseId, u64),
    StopAll,
}

/// The hosts of a world. The first ones together take every job.
pub fn hosts(config: &Config) -> Vec<Host> {
    let mut dice = Dice::new(config.seed, Purpose::Hosts);
    let skewed = config.rate(Trouble::Skew, 2) > 0;
    let mut hosts: Vec<Host> = Vec::new();
    for index in 0..config.workers {
        // The first takes every job; the second, if there is a pool, every job of that.
        let able = index == 0 || (index == 1 && config.has_pool());
        let (native, both, labelled, pooled) =
            (dice.pick(&Platform::ALL), dice.chance(300), dice.chance(500), dice.chance(200));
        let pooled = config.has_pool() && (index == 1 || (index > 1 && pooled));
        let mut platforms = vec![PlatformOffer { platform: native, emulated: false }];
        if both || able {
            let others = Platform::ALL.into_iter().filter(|platform| *platform != native);
            platforms.extend(others.map(|platform| PlatformOffer { platform, emulated: true }));
        }
        let slots: u32 = dice.pick(&[1, 1, 2, 3, 4]);
        let times = if able { slots.max(1) } else { slots.saturating_sub(1).max(1) };
        let small = dice.chance(300) && !able;
        let capacity = Capacity {
            cpu_millis: if small { 1_000 } else { LARGEST.cpu_millis * times },
            memory_bytes: if small { 2 * GIB } else { LARGEST.memory_bytes * u64::from(times) },
            disk_bytes: LARGEST.disk_bytes * u64::from(times),
            slots,
        };
        let drift = dice.within(0, 4_000) as i64 - 2_000;
        hosts.push(Host {
            name: format!("w{index}").parse().expect("a name"),
            platforms,
            capacity,
            pool: if pooled { POOL.parse().ok() } else { None },
            labels: (labelled || able).then(|| ("kvm".to_owned(), "yes".to_owned())).into_iter().collect(),
            cut: Cut::default(),
            paused_until: 0,
            engine_bad_until: 0,
            disk_full_until: 0,
            ppm: if skewed { drift } else { 0 },
            booted_at: 0,
            boots: 0,
            processes: 0,
            process: None,
            containers: BTreeMap::new(),
            left: BTreeMap::new(),
            adopts: dice.chance(700),
        });
    }
    hosts
}

impl Host {
    /// Whether nothing runs and nothing is to be told.
    pub fn is_quiet(&self) -> bool {
        let idle = |process: &Process| process.attempts.is_empty() && process.session.is_idle() && process.welcomed;
        self.containers.is_empty() && self.process.as_ref().is_some_and(idle)
    }

    /// Whether a worker's process runs.
    pub fn has_process(&self) -> bool {
        self.process.is_some()
    }

    /// Whether it takes jobs, as far as it is concerned.
    pub fn is_working(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.standing == Standing::Working)
    }

    /// Its session, if the controller has welcomed it.
    pub fn session_conn(&self) -> Option<ConnId> {
        self.process.as_ref().filter(|process| process.welcomed)?.conn
    }

    /// Its monotonic clock, which may run fast or slow.
    fn mono(&self, now: Ms) -> Duration {
        Duration::from_micros((now - self.booted_at) * (1_000_000 + self.ppm) as u64 / 1_000)
    }

    /// When its monotonic clock shows `mono`.
    fn when(&self, mono: Duration) -> Ms {
        let micros = u64::try_from(mono.as_micros()).unwrap_or(u64::MAX / 2_000);
        self.booted_at + (micros * 1_000).div_ceil((1_000_000 + self.ppm) as u64)
    }

    fn offer(&self, boot: &BootId) -> Box<WorkerOffer> {
        Box::new(WorkerOffer {
            name: self.name.clone(),
            boot: boot.clone(),
            version: String::new(),
            platforms: self.platforms.clone(),
            capacity: self.capacity,
            labels: self.labels.clone(),
            pool: self.pool.clone(),
            allows_privileged: false,
            allows: Vec::new(),
        })
    }

    /// How the container of a lease would end by itself.
    pub fn fate_of(&self, lease: LeaseId) -> Option<End> {
        self.process.as_ref()?.attempts.get(&lease).map(|attempt| attempt.fate.end)
    }

    fn attempt(&mut self, lease: LeaseId) -> Option<&mut Attempt> {
        self.process.as_mut()?.attempts.get_mut(&lease)
    }
}

/// For people: what is not quiet about it.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has containers {:?}", self.name, self.containers.keys().collect::<Vec<_>>())?;
        match &self.process {
            None => f.write_str(", no process"),
            Some(process) => {
                write!(f, ", welcomed {}, attempts", process.welcomed)?;
                process.attempts.iter().try_for_each(|(lease, attempt)| write!(f, " {lease} {attempt}"))
            }
        }
    }
}
