//! Plans and workers of the sizes that farms have.

use railyard_common::blob::{Artifact, Blob};
use railyard_common::digest::Digest;
use railyard_common::id::{BootId, JobId, JobName, LeaseId, WorkerName};
use railyard_common::job::{Capacity, Concurrency, ImageSource, JobSpec, OutputSpec, RunSpec};
use railyard_common::outcome::Outcome;
use railyard_common::plan::Plan;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::priority::Priority;
use railyard_core::{Command, Report, Submission, Trace, WorkerOffer};
use std::collections::BTreeMap;
use std::sync::Arc;

const GIB: u64 = 1 << 30;

/// A script as long as those of steps that call a real one.
const SCRIPT: &str = "#!/bin/sh -e\n./build --arch \"$ARCH\" --jobs \"$(nproc)\" --output out/image.raw\n\
                      sha256sum out/image.raw > out/image.raw.sha256\n";

/// What a job wants of a worker.
#[derive(Clone, Copy)]
pub struct Shape {
    pub cpu_millis: u32,
    pub gib: u64,
    pub arm64: bool,
}

/// A small job for amd64.
pub const SMALL: Shape = Shape { cpu_millis: 1000, gib: 1, arm64: false };

/// Shapes as a farm has them side by side.
pub const SHAPES: [Shape; 6] = [
    SMALL,
    Shape { cpu_millis: 2000, gib: 2, arm64: false },
    Shape { cpu_millis: 4000, gib: 8, arm64: false },
    Shape { cpu_millis: 1000, gib: 1, arm64: true },
    Shape { cpu_millis: 2000, gib: 4, arm64: true },
    Shape { cpu_millis: 500, gib: 1, arm64: false },
];

fn platform(arm64: bool) -> Platform {
    if arm64 { Platform::LinuxArm64 } else { Platform::LinuxAmd64 }
}

/// A job that needs nothing.
pub fn job(name: &str, shape: Shape) -> JobSpec {
    let platform = platform(shape.arm64);
    let name: JobName = format!("{name}@{platform}").parse().expect("a job's name");
    let env = [("ARCH", "x86-64-v3"), ("CHANNEL", "nightly"), ("LANG", "C.UTF-8")];
    JobSpec {
        name,
        needs: Vec::new(),
        image: ImageSource::Registry("registry.example/flatcar/sdk:4799.0.0".to_owned()),
        inputs: Vec::new(),
        lease_ttl_secs: 120,
        retries: 1,
        approval: None,
        concurrency: None,
        pool: None,
        labels: BTreeMap::new(),
        run: Arc::new(RunSpec {
            script: SCRIPT.to_owned(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            outputs: Vec::new(),
            commit: false,
            resources: Capacity {
                cpu_millis: shape.cpu_millis,
                memory_bytes: shape.gib * GIB,
                disk_bytes: shape.gib * GIB,
                slots: 1,
            },
            timeout_secs: 3600,
            silence_timeout_secs: 0,
            privileged: false,
            devices: Vec::new(),
            capabilities: vec!["default".to_owned()],
            network_none: false,
            host_paths: Vec::new(),
            secrets: Vec::new(),
        }),
    }
}

/// A plan of these jobs.
pub fn plan(pipeline: &str, version: &str, jobs: Vec<JobSpec>) -> Plan {
    Plan {
        build: format!("{pipeline}/{version}").parse().expect("a build's name"),
        params: BTreeMap::from([("channel".to_owned(), "nightly".to_owned())]),
        platforms: Platform::ALL.to_vec(),
        untrusted: false,
        channel: None,
        supersede: None,
        uses: Vec::new(),
        jobs,
    }
}

/// Half of the jobs need nothing, and each of the other half needs one of them.
pub fn pairs(pipeline: &str, version: &str, jobs: usize, shape: Shape) -> Plan {
    let mut specs: Vec<JobSpec> = (0..jobs).map(|n| job(&format!("step-{n}"), shape)).collect();
    for n in jobs.div_ceil(2)..jobs {
        specs[n].needs = vec![specs[n - jobs.div_ceil(2)].name.clone()];
    }
    plan(pipeline, version, specs)
}

/// All jobs in one group, one at a time.
pub fn in_group(mut plan: Plan, group: &str) -> Plan {
    let group = Concurrency { group: group.parse().expect("a group's name"), limit: 1 };
    plan.jobs.iter_mut().for_each(|job| job.concurrency = Some(group.clone()));
    plan
}

/// The output that each job of a build promises.
pub fn with_outputs(mut plan: Plan) -> Plan {
    for job in &mut plan.jobs {
        let glob = "out/*".parse().expect("a glob");
        Arc::make_mut(&mut job.run).outputs = vec![OutputSpec {
            glob,
            publish: None,
            publish_by_channel: None,
            optional: false,
            compress: Default::default(),
        }];
    }
    plan
}

/// The submit of a plan.
pub fn submit(plan: Plan, priority: Priority) -> Command {
    let trace = Trace {
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
        parent_span_id: "00f067aa0ba902b7".to_owned(),
        span_id: "53995c3f42cd8ad8".to_owned(),
    };
    let key = Some(format!("bench/{}", plan.build));
    Command::Submit(Box::new(Submission { plan, key, request: String::new(), priority, by: "bench".to_owned(), trace }))
}

/// A worker's name.
pub fn worker_name(number: usize) -> WorkerName {
    format!("w-{number}").parse().expect("a worker's name")
}

/// A worker of both platforms.
pub fn offer(number: usize, capacity: Capacity) -> WorkerOffer {
    WorkerOffer {
        name: worker_name(number),
        boot: BootId("b1".to_owned()),
        version: railyard_common::VERSION.to_owned(),
        platforms: Platform::ALL.map(|platform| PlatformOffer { platform, emulated: false }).to_vec(),
        capacity,
        labels: BTreeMap::from([("rack".to_owned(), format!("r{}", number % 8))]),
        pool: None,
        allows_privileged: false,
        allows: Vec::new(),
    }
}

/// What a worker of so many small jobs has.
pub fn slots(slots: u32) -> Capacity {
    let bytes = u64::from(slots) * GIB;
    Capacity { cpu_millis: 1000 * slots, memory_bytes: bytes, disk_bytes: bytes, slots }
}

/// A worker's word that an attempt went well.
pub fn success(lease: LeaseId, worker: WorkerName) -> Report {
    Report { lease, worker, outcome: Outcome::succeeded(), artifacts: Vec::new(), image: None, log_bytes: 1234 }
}

/// What a job left: an image and its checksum.
pub fn artifacts(job: JobId) -> Vec<Artifact> {
    let file = |name: &str, bytes: u64| Artifact {
        path: format!("out/{name}").parse().expect("a path"),
        blob: Blob::plain(Digest::of(format!("{job} {name}").as_bytes()), bytes),
        media_type: "application/octet-stream".to_owned(),
        published: None,
    };
    vec![file("image.raw", 512 << 20), file("image.raw.sha256", 77)]
}
