//! Random plans, and how each attempt of their jobs will go.

use crate::config::{Config, Trouble};
use crate::dice::{Dice, Purpose, mix};
use railyard_common::id::{BuildId, JobName};
use railyard_common::job::{Capacity, Concurrency, ImageSource, InputSpec, JobSpec, OutputSpec, RunSpec};
use railyard_common::plan::Plan;
use railyard_common::platform::Platform;
use std::collections::BTreeMap;
use std::sync::Arc;

/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// The pipeline of builds that are named by the controller.
pub const AUTO: &str = "auto";
/// The one pool there is.
pub const POOL: &str = "big";

/// The most that a job asks for; a worker that has this takes any.
pub const LARGEST: Capacity = Capacity { cpu_millis: 4_000, memory_bytes: 8 * GIB, disk_bytes: 40 * GIB, slots: 1 };

/// The plan of build number `number`, under the name `build`.
pub fn plan(config: &Config, number: usize, build: BuildId) -> Plan {
    let mut dice = Dice::new(config.seed, Purpose::Fate(number as u64));
    let platforms = match dice.below(4) {
        0 => vec![Platform::LinuxArm64],
        1 => Platform::ALL.to_vec(),
        _ => vec![Platform::LinuxAmd64],
    };
    let steps = dice.within(1, config.steps as u64) as usize;
    let mut jobs: Vec<JobSpec> = Vec::new();
    for step in 0..steps {
        let earlier: Vec<usize> = (0..step).filter(|_| dice.chance(350)).collect();
        let needs: Vec<JobName> =
            jobs.iter().filter(|job| earlier.contains(&step_of(&job.name))).map(|job| job.name.clone()).collect();
        let mut template = spec(&mut dice, &needs, &jobs);
        restrict(config, &mut dice, &build, &mut template);
        let variants = if dice.chance(150) { dice.within(2, 3) } else { 1 };
        for platform in &platforms {
            for variant in 0..variants {
                let variant = (variants > 1).then(|| format!("v{variant}").parse().expect("a variant"));
                let name = JobName { step: format!("s{step}").parse().expect("a step"), platform: *platform, variant };
                // By this an attempt finds its fate again.
                let script = format!("{number} {}", jobs.len());
                jobs.push(JobSpec {
                    name,
                    run: Arc::new(RunSpec { script, ..(*template.run).clone() }),
                    ..template.clone()
                });
            }
        }
    }
    for job in &mut jobs {
        job.needs.sort();
    }
    let supersede = dice.chance(150).then(|| "main".parse().expect("a group"));
    Plan {
        build,
        params: BTreeMap::new(),
        platforms,
        untrusted: false,
        channel: None,
        jobs,
        supersede,
        uses: Vec::new(),
    }
}

/// Where and when the job may run, beyond what it reserves.
fn restrict(config: &Config, dice: &mut Dice, build: &BuildId, job: &mut JobSpec) {
    let (grouped, gated, pooled, labelled) = (dice.chance(200), dice.chance(100), dice.chance(250), dice.chance(200));
    let (group, limit) = (dice.below(2), dice.within(1, 2) as u32);
    if grouped {
        let group = format!("g{group}").parse().expect("a group");
        job.concurrency = Some(Concurrency { group, limit });
    }
    // Builds whose name their submitter does not know are looked after by nobody.
    if gated && build.pipeline.as_str() != AUTO {
        job.approval = Some("go on?".to_owned());
    }
    if pooled && config.has_pool() {
        job.pool = POOL.parse().ok();
    }
    if labelled {
        job.labels.insert("kvm".to_owned(), "yes".to_owned());
    }
}

fn step_of(name: &JobName) -> usize {
    name.step.as_str()[1..].parse().unwrap_or(usize::MAX)
}

/// A job without its name.
fn spec(dice: &mut Dice, needs: &[JobName], jobs: &[JobSpec]) -> JobSpec {
    let made = |name: &JobName| jobs.iter().find(|job| job.name == *name);
    let mut inputs = Vec::new();
    let mut image = ImageSource::Registry("debian:bookworm".to_owned());
    for need in needs {
        let Some(spec) = made(need) else { continue };
        if !spec.run.outputs.is_empty() && dice.chance(700) {
            let artifacts = vec!["out-*".parse().expect("a glob")];
            inputs.push(InputSpec { build: None, job: need.clone(), artifacts, mount_path: "/in".to_owned() });
        }
        if spec.run.commit && dice.chance(500) {
            image = ImageSource::Job(need.clone());
        }
    }
    let outputs = (0..dice.below(3)).map(|n| OutputSpec {
        glob: format!("out-{n}*").parse().expect("a glob"),
        publish: None,
        publish_by_channel: None,
        optional: false,
        compress: Default::default(),
    });
    JobSpec {
        name: JobName { step: "s".parse().expect("a step"), platform: Platform::LinuxAmd64, variant: None },
        needs: needs.to_vec(),
        image,
        inputs,
        lease_ttl_secs: dice.pick(&[10, 15, 20, 30, 60]),
        retries: dice.pick(&[0, 0, 1, 2]),
        approval: None,
        concurrency: None,
        pool: None,
        labels: BTreeMap::new(),
        run: Arc::new(RunSpec {
            script: String::new(),
            env: BTreeMap::new(),
            outputs: outputs.collect(),
            commit: dice.chance(150),
            resources: Capacity {
                cpu_millis: dice.pick(&[500, 1_000, 2_000, LARGEST.cpu_millis]),
                memory_bytes: dice.pick(&[1, 2, 8]) * GIB,
                disk_bytes: dice.pick(&[1, 10, 40]) * GIB,
                slots: 1,
            },
            timeout_secs: dice.pick(&[40, 90, 200]),
            silence_timeout_secs: dice.pick(&[0, 0, 25]),
            privileged: false,
            devices: Vec::new(),
            capabilities: Vec::new(),
            network_none: false,
            host_paths: Vec::new(),
            secrets: Vec::new(),
        }),
    }
}

/// How an attempt goes if nothing gets in its way.
#[derive(Clone, Debug)]
pub struct Fate {
    /// Getting the image and laying out inputs.
    pub prepare_millis: u64,
    /// How long the container runs.
    pub run_millis: u64,
    /// How it ends.
    pub end: End,
    /// Bytes in its log.
    pub log_bytes: u64,
    /// What its outputs hold; the same number is the same bytes.
    pub content: u64,
}

/// How a container ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Well.
    Good,
    /// With an exit code.
    Code(i32),
    /// Killed for its memory.
    Oom,
    /// Well, but an output is missing.
    OutputMissing,
    /// Not at all, and it keeps writing.
    Never,
    /// Not at all, and it writes nothing.
    Silent,
}

/// How attempt `attempt` of the job goes whose script is `script`.
pub fn fate(config: &Config, script: &str, attempt: u32) -> Fate {
    let mut numbers = script.split(' ').map(|part| part.parse::<u64>().unwrap_or_default());
    let (build, job) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let which = mix(mix(build) ^ (job << 8) ^ u64::from(attempt));
    let mut dice = Dice::new(config.seed, Purpose::Fate(which));
    let failing = if config.off.contains(&Trouble::Steps) { 0 } else { 150 };
    let end = match dice.chance(failing) {
        false => End::Good,
        true => dice.pick(&[
            End::Code(1),
            End::Code(1),
            End::Code(2),
            End::Oom,
            End::OutputMissing,
            End::Never,
            End::Silent,
        ]),
    };
    // Some steps make the same bytes each time, and in each build.
    let content = if dice.chance(500) { job } else { which | 1 << 63 };
    Fate {
        prepare_millis: dice.within(10, 1_500),
        run_millis: dice.pick(&[50, 400, 2_000, 8_000, 20_000, 35_000]) + dice.within(0, 500),
        end,
        log_bytes: dice.pick(&[0, 100, 5_000, 200_000]),
        content,
    }
}
