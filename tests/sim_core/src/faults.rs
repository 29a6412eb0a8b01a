//! Things that break at a certain time, for a while.

use crate::config::{Config, Trouble};
use crate::dice::{Dice, Purpose};
use crate::net::KEEPALIVE;
use crate::queue::Ms;
use crate::world::{Happening, World};

/// Something breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing gets from a host to the controller.
    CutUp(usize, Ms),
    /// Nothing gets from the controller to a host.
    CutDown(usize, Ms),
    /// Neither.
    Cut(usize, Ms),
    /// Neither, and then soon something from the controller again, but nothing to it for long.
    CutLopsided(usize, Ms, Ms),
    /// Nobody reaches the controller.
    CutAll(Ms),
    /// Every connection of a host breaks.
    Reset(usize),
    /// The controller's process dies and comes back.
    ControllerDies(Ms),
    /// The controller's process stands still.
    ControllerPauses(Ms),
    /// A worker's process dies and comes back. Its containers run on.
    WorkerDies(usize, Ms),
    /// A worker's process stands still. Its containers run on.
    WorkerPauses(usize, Ms),
    /// A host loses power.
    HostDies(usize, Ms),
    /// A host's engine does not do what it is told.
    EngineFails(usize, Ms),
    /// A host's disk is full.
    DiskFull(usize, Ms),
    /// The journal cannot be written.
    JournalFails(Ms),
    /// The journal is slow.
    JournalSlow(Ms),
    /// The object store refuses.
    StoreFails(Ms),
    /// The object store is slow.
    StoreSlow(Ms),
    /// Somebody sets the controller's clock.
    ClockJumps(i64),
    /// A worker is told to stop, and started again.
    WorkerStops(usize, Ms),
}

/// The faults of a world, with when.
pub fn schedule(config: &Config) -> Vec<(Ms, Fault)> {
    let mut dice = Dice::new(config.seed, Purpose::Faults);
    let end = (config.chaos_secs * 1000).max(1);
    let one = |_| {
        let at = dice.within(0, end);
        // Numbers are drawn alike for every sort, so that fewer workers do not make other faults.
        let (which, host, long, size) = (dice.below(100), dice.any(), dice.chance(400), dice.any());
        let host = (host % config.workers as u64) as usize;
        let lasts = if long { 10_000 + size % 80_000 } else { 100 + size % 10_000 };
        let fault = match which {
            0..=8 => Fault::CutUp(host, lasts),
            9..=17 => Fault::CutDown(host, lasts),
            18..=23 => Fault::Cut(host, lasts),
            24..=29 => Fault::CutLopsided(host, 3_000 + size % 9_000, 15_000 + lasts),
            30..=33 => Fault::CutAll(lasts),
            34..=37 => Fault::Reset(host),
            38..=47 => Fault::ControllerDies(lasts.min(40_000)),
            48..=50 => Fault::ControllerPauses(lasts.min(40_000)),
            51..=58 => Fault::WorkerDies(host, lasts),
            59..=61 => Fault::WorkerPauses(host, lasts),
            62..=67 => Fault::HostDies(host, lasts),
            68..=72 => Fault::EngineFails(host, lasts),
            73..=76 => Fault::DiskFull(host, lasts),
            77..=80 => Fault::JournalFails(lasts.min(20_000)),
            81..=84 => Fault::JournalSlow(lasts),
            85..=88 => Fault::StoreFails(lasts),
            89..=91 => Fault::StoreSlow(lasts),
            92..=94 => Fault::ClockJumps((size % 7_200_000) as i64 - 3_600_000),
            _ => Fault::WorkerStops(host, lasts.min(20_000)),
        };
        (at, fault)
    };
    let mut faults: Vec<_> = (0..config.faults).map(one).collect();
    let off = |fault: &Fault| match fault {
        Fault::JournalFails(_) | Fault::JournalSlow(_) => config.off.contains(&Trouble::Journal),
        Fault::StoreFails(_) | Fault::StoreSlow(_) => config.off.contains(&Trouble::Store),
        Fault::EngineFails(..) => config.off.contains(&Trouble::Engine),
        _ => false,
    };
    // Kept in its place, so that the numbers of the others stay.
    faults.iter_mut().filter(|(_, fault)| off(fault)).for_each(|(_, fault)| *fault = Fault::ClockJumps(0));
    faults
}

impl World {
    /// A fault begins.
    pub fn fault(&mut self, index: usize) {
        let (_, fault) = self.faults[index];
        let now = self.now;
        self.trace.say(now, || format!("fault {index}: {fault:?}"));
        match fault {
            Fault::CutUp(host, lasts) => self.cut(host, lasts, true, false),
            Fault::CutDown(host, lasts) => self.cut(host, lasts, false, true),
            Fault::Cut(host, lasts) => self.cut(host, lasts, true, true),
            Fault::CutLopsided(host, short, long) => {
                self.cut(host, long, true, false);
                self.cut(host, short, false, true);
            }
            Fault::CutAll(lasts) => (0..self.hosts.len()).for_each(|host| self.cut(host, lasts, true, true)),
            Fault::Reset(host) => self.reset_all(Some(host)),
            Fault::ControllerDies(lasts) => self.controller_dies(lasts),
            Fault::ControllerPauses(lasts) => {
                self.controller.paused_until = self.controller.paused_until.max(now + lasts);
            }
            Fault::WorkerDies(host, lasts) => self.worker_dies(host, lasts, false),
            Fault::HostDies(host, lasts) => self.worker_dies(host, lasts, true),
            Fault::WorkerPauses(host, lasts) => {
                // What is not there cannot stand still.
                if self.hosts[host].has_process() {
                    self.hosts[host].paused_until = self.hosts[host].paused_until.max(now + lasts);
                    self.excuse(host);
                }
            }
            Fault::EngineFails(host, lasts) => self.hosts[host].engine_bad_until = now + lasts,
            Fault::DiskFull(host, lasts) => self.hosts[host].disk_full_until = now + lasts,
            Fault::JournalFails(lasts) => self.controller.journal.broken_until = now + lasts,
            Fault::JournalSlow(lasts) => self.controller.journal.slow_until = now + lasts,
            Fault::StoreFails(lasts) => self.store.down_until = now + lasts,
            Fault::StoreSlow(lasts) => self.store.slow_until = now + lasts,
            Fault::ClockJumps(by) => self.controller.wall_offset += by,
            Fault::WorkerStops(host, lasts) => self.worker_stops(host, lasts),
        }
    }

    fn cut(&mut self, host: usize, lasts: Ms, up: bool, down: bool) {
        let until = self.now + lasts;
        let cut = &mut self.hosts[host].cut;
        if up {
            cut.up_until = cut.up_until.max(until);
        }
        if down {
            cut.down_until = cut.down_until.max(until);
        }
        if lasts > KEEPALIVE {
            let at = self.now + KEEPALIVE;
            let ids: Vec<_> = self.conns.iter().filter(|(_, conn)| conn.host == host).map(|(id, _)| *id).collect();
            for id in ids {
                let (near, far) = (self.net.within(0, 9_000), self.net.within(0, 9_000));
                self.queue.put(at + near, Happening::Broken(id, crate::net::Way::Up));
                self.queue.put(at + far, Happening::Broken(id, crate::net::Way::Down));
            }
        }
    }

    /// Connections of one host, or of all, break.
    pub fn reset_all(&mut self, host: Option<usize>) {
        let wanted = |conn: &crate::net::Conn| host.is_none_or(|host| conn.host == host);
        let ids: Vec<_> = self.conns.iter().filter(|(_, conn)| wanted(conn)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.reset(id));
    }

    /// From now on nothing breaks, and what is broken is mended.
    pub fn calm(&mut self) {
        let now = self.now;
        self.trace.say(now, || "calm".to_owned());
        for host in &mut self.hosts {
            host.cut.up_until = host.cut.up_until.min(now);
            host.cut.down_until = host.cut.down_until.min(now);
            host.engine_bad_until = host.engine_bad_until.min(now);
            host.disk_full_until = host.disk_full_until.min(now);
        }
        self.controller.journal.broken_until = now;
        self.controller.journal.slow_until = now;
        self.store.down_until = now;
        self.store.slow_until = now;
    }
}
