//! What chance can do to a farm: symbolic actions, made concrete by the world in which they happen.
//!
//! An action picks among what is there, so that shrinking one does not make the others meaningless.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use railyard_common::outcome::OutcomeKind;

/// The workers of every world.
pub const WORKERS: usize = 3;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Action {
    Submit {
        version: u8,
        key: Option<u8>,
        steps: Vec<Step>,
        priority: u8,
        supersede: bool,
    },
    Hello {
        worker: usize,
        offer: Offer,
        reboot: bool,
        forgets: u8,
    },
    Goodbye {
        worker: usize,
    },
    Revoke {
        worker: usize,
    },
    Drain {
        worker: usize,
    },
    Heartbeat {
        worker: usize,
    },
    Place,
    Tick,
    Hold {
        worker: usize,
        kind: u8,
        secs: Option<u64>,
        stop_secs: Option<u64>,
    },
    Release {
        worker: usize,
    },
    Uploading {
        lease: Index,
    },
    Approve {
        build: Index,
        step: Option<Index>,
    },
    CancelJobs {
        build: Index,
        step: Index,
    },
    Measured {
        worker: usize,
        gib: u64,
    },
    /// Of a live lease, by its holder.
    Report {
        lease: Index,
        kind: OutcomeKind,
    },
    /// Of any lease that ever was, by anybody.
    ReportAny {
        lease: Index,
        worker: usize,
        kind: OutcomeKind,
    },
    /// Of a report that was accepted: the answer got lost.
    ReportAgain {
        report: Index,
    },
    Expire {
        lease: Index,
    },
    Advance {
        secs: u64,
    },
    Cancel {
        build: Index,
    },
    Retry {
        build: Index,
        step: Option<Index>,
    },
    /// Of a build that waits for it.
    Finalize {
        build: Index,
        fails: bool,
    },
    /// Of any build.
    FinalizeAny {
        build: Index,
    },
    Restart {
        from_snapshot: bool,
    },
}

/// A step of a plan; `needs` has a bit for each step before it.
#[derive(Clone, Debug)]
pub struct Step {
    pub arm: bool,
    pub needs: u8,
    pub cpu: u32,
    pub gib: u64,
    pub retries: u32,
    pub ttl_secs: u64,
    pub privileged: bool,
    pub approval: bool,
    /// Of two groups, with its limit.
    pub group: Option<(bool, u32)>,
    pub pool: bool,
    pub label: bool,
}

/// What a worker offers; of the platforms, at least one.
#[derive(Clone, Debug)]
pub struct Offer {
    pub amd: bool,
    pub arm: bool,
    pub emulated: bool,
    pub privileged: bool,
    pub cpu: u32,
    pub gib: u64,
    pub slots: u32,
    pub pool: bool,
    pub label: bool,
}

/// A life of a farm.
pub fn actions() -> impl Strategy<Value = Vec<Action>> {
    vec(action(), 1..60)
}

/// How attempts end when the faults are over; used again from the start when it runs out.
pub fn moods() -> impl Strategy<Value = Vec<OutcomeKind>> {
    vec(outcome(), 1..8)
}

fn action() -> impl Strategy<Value = Action> {
    let index = any::<Index>;
    let worker = || 0..WORKERS;
    prop_oneof![
        4 => (0..5u8, proptest::option::of(0..4u8), vec(step(), 1..5), 0..4u8, proptest::bool::weighted(0.3))
            .prop_map(|(version, key, steps, priority, supersede)| {
                Action::Submit { version, key, steps, priority, supersede }
            }),
        2 => Just(Action::Tick),
        1 => (worker(), 0..3u8, proptest::option::of(0..300u64), proptest::option::of(0..100u64))
            .prop_map(|(worker, kind, secs, stop_secs)| Action::Hold { worker, kind, secs, stop_secs }),
        1 => worker().prop_map(|worker| Action::Release { worker }),
        3 => index().prop_map(|lease| Action::Uploading { lease }),
        2 => (index(), proptest::option::of(index())).prop_map(|(build, step)| Action::Approve { build, step }),
        1 => (index(), index()).prop_map(|(build, step)| Action::CancelJobs { build, step }),
        1 => (worker(), 0..6u64).prop_map(|(worker, gib)| Action::Measured { worker, gib }),
        6 => (worker(), offer(), proptest::bool::weighted(0.3), prop_oneof![3 => Just(0u8), 1 => any::<u8>()])
            .prop_map(|(worker, offer, reboot, forgets)| Action::Hello { worker, offer, reboot, forgets }),
        1 => worker().prop_map(|worker| Action::Goodbye { worker }),
        1 => worker().prop_map(|worker| Action::Revoke { worker }),
        1 => worker().prop_map(|worker| Action::Drain { worker }),
        2 => worker().prop_map(|worker| Action::Heartbeat { worker }),
        10 => Just(Action::Place),
        10 => (index(), outcome()).prop_map(|(lease, kind)| Action::Report { lease, kind }),
        2 => (index(), worker(), outcome()).prop_map(|(lease, worker, kind)| Action::ReportAny { lease, worker, kind }),
        1 => index().prop_map(|report| Action::ReportAgain { report }),
        1 => index().prop_map(|lease| Action::Expire { lease }),
        5 => prop_oneof![0..10u64, 10..200u64].prop_map(|secs| Action::Advance { secs }),
        2 => index().prop_map(|build| Action::Cancel { build }),
        3 => (index(), proptest::option::of(index())).prop_map(|(build, step)| Action::Retry { build, step }),
        4 => (index(), proptest::bool::weighted(0.3)).prop_map(|(build, fails)| Action::Finalize { build, fails }),
        1 => index().prop_map(|build| Action::FinalizeAny { build }),
        1 => any::<bool>().prop_map(|from_snapshot| Action::Restart { from_snapshot }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let size = (1..4u32, 1..4u64);
    let rare = || proptest::bool::weighted(0.1);
    let group = proptest::option::weighted(0.25, (any::<bool>(), 1..3u32));
    let terms = (rare(), rare(), group, rare(), rare());
    (proptest::bool::weighted(0.3), any::<u8>(), size, 0..3u32, 10..130u64, terms).prop_map(
        |(arm, needs, (cpu, gib), retries, ttl_secs, (privileged, approval, group, pool, label))| Step {
            arm,
            needs,
            cpu,
            gib,
            retries,
            ttl_secs,
            privileged,
            approval,
            group,
            pool,
            label,
        },
    )
}

fn offer() -> impl Strategy<Value = Offer> {
    let platforms = prop_oneof![Just((true, false)), Just((false, true)), Just((true, true))];
    let terms = (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.2), any::<bool>());
    (platforms, terms, 1..6u32, 1..6u64, 0..4u32).prop_map(
        |((amd, arm), (emulated, privileged, pool, label), cpu, gib, slots)| Offer {
            amd,
            arm,
            emulated,
            privileged,
            cpu,
            gib,
            slots,
            pool,
            label,
        },
    )
}

fn outcome() -> impl Strategy<Value = OutcomeKind> {
    prop_oneof![
        12 => Just(OutcomeKind::Succeeded),
        2 => Just(OutcomeKind::Failed),
        1 => Just(OutcomeKind::TimedOut),
        1 => Just(OutcomeKind::Cancelled),
        2 => Just(OutcomeKind::Lost),
        1 => Just(OutcomeKind::Refused),
    ]
}
