//! A long backlog costs a pass of placement hardly more than a short one.
//!
//! `cargo bench -p railyard-tests --bench schedule` has the times; here it is counted what a pass looks at.

use crate::common::{GIB, job_spec};
use railyard_common::id::{BootId, JobName};
use railyard_common::job::Capacity;
use railyard_common::plan::Plan;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_core::{Command, Event, Farm, Refusal, Submission, Trace, WorkerOffer};
use std::collections::BTreeMap;
use std::sync::Arc;

const NOW: Millis = Millis(1_790_000_000_000);
const JOBS_PER_BUILD: usize = 200;

#[test]
fn a_pass_looks_at_no_more_jobs_when_more_of_them_wait() {
    let (short, long) = (farm_with(2_000), farm_with(32_000));
    let looked_at = |farm: &Farm| {
        let leases = farm.decide(NOW.plus(1), &Command::Place).expect("a pass is always right");
        assert!(!leases.is_empty());
        farm.looked_at_in_a_pass(NOW.plus(1))
    };
    let (few, many) = (looked_at(&short), looked_at(&long));
    assert!(many <= few, "{few} of 2,000 jobs, {many} of 32,000");
    assert!(few < 100, "{few} of 2,000 jobs");
}

#[test]
fn strangers_do_not_fill_the_farm_up() {
    let submit = |version: &str, jobs: usize, untrusted: bool| {
        let build = format!("p0/{version}").parse().expect("a build's name");
        let plan = Plan { build, untrusted, ..plan(0, jobs) };
        let (key, request, by) = (None, String::new(), "olga".to_owned());
        let submission = Submission { plan, key, request, priority: Priority::Change, by, trace: Trace::default() };
        Farm::default().decide(NOW, &Command::Submit(Box::new(submission))).map(drop)
    };
    assert_eq!(submit("1.untrusted", 200_000, true), Ok(()));
    assert_eq!(submit("1.untrusted", 200_001, true), Err(Refusal::Full(0)));
    assert_eq!(submit("1", 200_001, false), Ok(()));
}

/// Two workers, one of them too small for most jobs, and `jobs` that are all ready.
fn farm_with(jobs: usize) -> Farm {
    let mut farm = Farm::default();
    for (name, cpu_millis) in [("small", 1_000), ("large", 8_000)] {
        farm.apply(&Event::WorkerOnline { at: NOW, offer: offer(name, cpu_millis) });
    }
    for version in 0..jobs / JOBS_PER_BUILD {
        let submission = Submission {
            plan: plan(version, JOBS_PER_BUILD),
            key: None,
            request: String::new(),
            priority: Priority::Manual,
            by: "olga".to_owned(),
            trace: Trace::default(),
        };
        let events = farm.decide(NOW, &Command::Submit(Box::new(submission))).expect("it is accepted");
        events.iter().for_each(|event| farm.apply(event));
    }
    assert_eq!(farm.queued(), jobs);
    farm
}

fn offer(name: &str, cpu_millis: u32) -> WorkerOffer {
    WorkerOffer {
        name: name.parse().expect("a worker's name"),
        boot: BootId("boot".to_owned()),
        version: String::new(),
        platforms: vec![PlatformOffer { platform: Platform::LinuxAmd64, emulated: false }],
        capacity: Capacity { cpu_millis, memory_bytes: 64 * GIB, disk_bytes: 64 * GIB, slots: 4 },
        labels: BTreeMap::new(),
        pool: None,
        allows_privileged: false,
        allows: Vec::new(),
    }
}

/// Every fifth job is small, the others need the large worker; eight pipelines.
fn plan(version: usize, jobs: usize) -> Plan {
    let job = |n: usize| {
        let step = format!("s{n}").parse().expect("a step's name");
        let mut spec = job_spec(JobName { step, variant: None, platform: Platform::LinuxAmd64 });
        Arc::make_mut(&mut spec.run).resources.cpu_millis = if n.is_multiple_of(5) { 1_000 } else { 3_000 };
        spec
    };
    Plan {
        build: format!("p{}/{version}", version % 8).parse().expect("a build's name"),
        params: BTreeMap::new(),
        jobs: (0..jobs).map(job).collect(),
        platforms: Vec::new(),
        untrusted: false,
        channel: None,
        supersede: None,
        uses: Vec::new(),
    }
}
