//! One line of a script as a value.

use crate::common::{GIB, Rebirth, artifact};
use crate::script::{keep, plan};
use railyard_common::blob::Artifact;
use railyard_common::id::{BootId, BuildId, JobSelector, LeaseId, PinName, WorkerName};
use railyard_common::job::Capacity;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::plan::Plan;
use railyard_common::platform::PlatformOffer;
use railyard_common::priority::Priority;
use railyard_common::retention::Pin;
use railyard_core::{Command, HoldKind, Pressure, Scarce, Whose, WorkerOffer};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// What a line asks for.
pub enum Line {
    /// `plan mini/1: sdk; image needs sdk cpu=2`: a plan to submit later.
    Plan(Plan),
    /// `worker w1 linux/amd64,linux/arm64:emulated cpu=2 mem=8GiB disk=100GiB slots=2 privileged`: an offer for its next hello.
    Worker(WorkerOffer),
    /// `hello w1 boot=2 held=j0.1,j1.1`: the boot stays unless it is given.
    Hello { worker: WorkerName, boot: Option<BootId>, held: Vec<LeaseId> },
    /// `goodbye w1`
    Goodbye(WorkerName),
    /// `drain w1`
    Drain(WorkerName),
    /// `heartbeat w1`: for every lease that it holds.
    Heartbeat(WorkerName),
    /// `submit mini/1 key=nightly priority=release request=DIGEST`
    Submit { build: BuildId, options: SubmitOptions },
    /// `place`
    Place,
    /// `report j0.1 j1.1 failed exit-code by=w1 exit=2 artifacts=a,b image: the message`
    Report(Box<ReportLine>),
    /// `expire j0.1`: without waiting for its deadline.
    Expire(LeaseId),
    /// `cancel mini/1: why`
    Cancel { build: BuildId, reason: String },
    /// `cancel-jobs mini/1 vms: why`
    CancelJobs { build: BuildId, jobs: JobSelector, reason: String },
    /// `approve mini/1 publish`
    Approve { build: BuildId, jobs: Option<JobSelector> },
    /// `hold w1 drain until=2h stop=1h: why`
    Hold { worker: WorkerName, kind: HoldKind, until: Option<u64>, stop: Option<u64>, why: String },
    /// `release w1`
    Release(WorkerName),
    /// `uploading j0.1`
    Uploading(LeaseId),
    /// `measured w1 12GiB`: its free disk.
    Measured { worker: WorkerName, disk_bytes: u64 },
    /// `pressure w1 memory 34`, `pressure w1 none`
    Pressure { worker: WorkerName, pressure: Option<Pressure> },
    /// `tick`
    Tick,
    /// `retry mini/1 vms.qcow2`
    Retry { build: BuildId, step: Option<JobSelector> },
    /// `finalized mini/1: what went wrong`
    Finalized { build: BuildId, error: Option<String> },
    /// `restart journal`, `restart snapshot`: the controller dies and comes back.
    Restart(Rebirth),
    /// `advance 5s`: leases expire on the way.
    Advance(u64),
    /// `why mini/1`: what each job that has not started waits for.
    Why(BuildId),
    /// `order j0.1`: what its worker is told to run.
    Order(LeaseId),
    /// Somebody wants a build kept, for `span` milliseconds from now or for ever; [`keep::read`] has the form.
    Pin { build: BuildId, name: PinName, pin: Pin, whose: Whose, span: Option<u64> },
    /// `claim w1 j0.1 a.deb b.deb`
    Claim { worker: WorkerName, lease: LeaseId, blobs: Vec<String> },
    /// `must-stay 1h`
    MustStay(u64),
    /// What [`keep::read`] says besides.
    Command(Command),
    /// `show`
    Show,
}

/// How a build is asked for.
#[derive(Default)]
pub struct SubmitOptions {
    pub key: Option<String>,
    pub priority: Priority,
    pub request: String,
}

/// An attempt's end for one or more leases.
pub struct ReportLine {
    pub leases: Vec<LeaseId>,
    /// Otherwise the worker that the farm gave the lease to.
    pub by: Option<WorkerName>,
    pub outcome: Outcome,
    pub artifacts: Vec<Artifact>,
    pub image: bool,
}

/// Reads one line.
pub fn read(command: &str) -> Result<Line, String> {
    let (head, text) = match command.split_once(": ").or_else(|| command.split_once(":\n")) {
        Some((head, text)) => (head, Some(text.trim().to_owned())),
        None => (command.strip_suffix(':').unwrap_or(command), None),
    };
    let words: Vec<&str> = head.split_whitespace().collect();
    match words.as_slice() {
        ["plan", build] => plan::read(parsed(build)?, None, &text.unwrap_or_default()).map(Line::Plan),
        ["plan", build, group] => {
            let group = group.strip_prefix("supersede=").ok_or("after the build: supersede=GROUP")?;
            plan::read(parsed(build)?, Some(parsed(group)?), &text.unwrap_or_default()).map(Line::Plan)
        }
        ["worker", name, platforms, options @ ..] => read_worker(name, platforms, options).map(Line::Worker),
        ["hello", worker, options @ ..] => read_hello(worker, options),
        ["goodbye", worker] => Ok(Line::Goodbye(parsed(worker)?)),
        ["drain", worker] => Ok(Line::Drain(parsed(worker)?)),
        ["heartbeat", worker] => Ok(Line::Heartbeat(parsed(worker)?)),
        ["submit", build, options @ ..] => {
            Ok(Line::Submit { build: parsed(build)?, options: submit_options(options)? })
        }
        ["cancel-jobs", build, jobs] => {
            Ok(Line::CancelJobs { build: parsed(build)?, jobs: parsed(jobs)?, reason: text.unwrap_or_default() })
        }
        ["approve", build] => Ok(Line::Approve { build: parsed(build)?, jobs: None }),
        ["approve", build, jobs] => Ok(Line::Approve { build: parsed(build)?, jobs: Some(parsed(jobs)?) }),
        ["hold", worker, kind, options @ ..] => read_hold(worker, kind, options, text.unwrap_or_default()),
        ["release", worker] => Ok(Line::Release(parsed(worker)?)),
        ["uploading", lease] => Ok(Line::Uploading(parsed(lease)?)),
        ["measured", worker, size] => {
            let mut capacity = Capacity::default();
            set_resource(&mut capacity, ("disk", size))?;
            Ok(Line::Measured { worker: parsed(worker)?, disk_bytes: capacity.disk_bytes })
        }
        ["pressure", worker, "none"] => Ok(Line::Pressure { worker: parsed(worker)?, pressure: None }),
        ["pressure", worker, scarce @ ("memory" | "io"), percent] => {
            let scarce = if *scarce == "memory" { Scarce::Memory } else { Scarce::Io };
            let pressure = Some(Pressure { scarce, percent: parsed(percent)? });
            Ok(Line::Pressure { worker: parsed(worker)?, pressure })
        }
        ["tick"] => Ok(Line::Tick),
        ["place"] => Ok(Line::Place),
        ["report", rest @ ..] => {
            read_report(rest, text.unwrap_or_default()).map(|report| Line::Report(Box::new(report)))
        }
        ["expire", lease] => Ok(Line::Expire(parsed(lease)?)),
        ["cancel", build] => Ok(Line::Cancel { build: parsed(build)?, reason: text.unwrap_or_default() }),
        ["retry", build] => Ok(Line::Retry { build: parsed(build)?, step: None }),
        ["retry", build, step] => Ok(Line::Retry { build: parsed(build)?, step: Some(parsed(step)?) }),
        ["finalized", build] => Ok(Line::Finalized { build: parsed(build)?, error: text }),
        ["restart", "journal"] => Ok(Line::Restart(Rebirth::Journal)),
        ["restart", "snapshot"] => Ok(Line::Restart(Rebirth::Snapshot)),
        ["advance", span] => Ok(Line::Advance(millis(span)?)),
        ["why", build] => Ok(Line::Why(parsed(build)?)),
        ["order", lease] => Ok(Line::Order(parsed(lease)?)),
        ["show"] => Ok(Line::Show),
        words => keep::read(words, text.unwrap_or_default()),
    }
}

fn read_worker(name: &str, platforms: &str, options: &[&str]) -> Result<WorkerOffer, String> {
    let platforms = platforms.split(',').map(|platform| match platform.strip_suffix(":emulated") {
        Some(platform) => Ok(PlatformOffer { platform: parsed(platform)?, emulated: true }),
        None => Ok(PlatformOffer { platform: parsed(platform)?, emulated: false }),
    });
    let mut offer = WorkerOffer {
        name: parsed(name)?,
        boot: BootId("1".to_owned()),
        version: "0.1.0".to_owned(),
        platforms: platforms.collect::<Result<_, String>>()?,
        capacity: Capacity { cpu_millis: 4000, memory_bytes: 16 * GIB, disk_bytes: 100 * GIB, slots: 4 },
        labels: BTreeMap::new(),
        pool: None,
        allows_privileged: false,
        allows: Vec::new(),
    };
    for option in options {
        match option.split_once('=') {
            Some(("pool", pool)) => offer.pool = Some(parsed(pool)?),
            Some(("label", label)) => {
                let (label, value) = label.split_once('=').ok_or("label=NAME=VALUE")?;
                offer.labels.insert(label.to_owned(), value.to_owned());
            }
            Some(("slots", slots)) => offer.capacity.slots = parsed(slots)?,
            Some(resource) => set_resource(&mut offer.capacity, resource)?,
            None if *option == "privileged" => offer.allows_privileged = true,
            None => return Err(format!("a worker has no option `{option}`")),
        }
    }
    Ok(offer)
}

/// `cpu=2`, `mem=2GiB` or `disk=2GiB`.
pub fn set_resource(capacity: &mut Capacity, (name, value): (&str, &str)) -> Result<(), String> {
    let gib = || {
        let number = value.strip_suffix("GiB").ok_or(format!("`{value}` is not a size: expected 2GiB"))?;
        Ok::<u64, String>(parsed::<u64>(number)? * GIB)
    };
    match name {
        "cpu" => capacity.cpu_millis = parsed::<u32>(value)? * 1000,
        "mem" => capacity.memory_bytes = gib()?,
        "disk" => capacity.disk_bytes = gib()?,
        _ => return Err(format!("no option `{name}={value}` here")),
    }
    Ok(())
}

fn submit_options(words: &[&str]) -> Result<SubmitOptions, String> {
    let mut options = SubmitOptions::default();
    for word in words {
        match word.split_once('=') {
            Some(("key", key)) => options.key = Some(key.to_owned()),
            Some(("priority", priority)) => options.priority = parsed(priority)?,
            Some(("request", request)) => options.request = request.to_owned(),
            _ => return Err(format!("a submit has no option `{word}`")),
        }
    }
    Ok(options)
}

fn read_hold(worker: &str, kind: &str, options: &[&str], why: String) -> Result<Line, String> {
    let kind = match kind {
        "cordon" => HoldKind::Cordon,
        "drain" => HoldKind::Drain,
        "retire" => HoldKind::Retire,
        _ => return Err(format!("`{kind}` is no hold: cordon, drain or retire")),
    };
    let (mut until, mut stop) = (None, None);
    for option in options {
        match option.split_once('=') {
            Some(("until", span)) => until = Some(millis(span)?),
            Some(("stop", span)) => stop = Some(millis(span)?),
            _ => return Err(format!("a hold has no option `{option}`")),
        }
    }
    Ok(Line::Hold { worker: parsed(worker)?, kind, until, stop, why })
}

fn read_hello(worker: &str, options: &[&str]) -> Result<Line, String> {
    let (mut boot, mut held) = (None, Vec::new());
    for option in options {
        match option.split_once('=') {
            Some(("boot", id)) => boot = Some(BootId(id.to_owned())),
            Some(("held", leases)) => held = leases.split(',').map(parsed).collect::<Result<_, _>>()?,
            _ => return Err(format!("a hello has no option `{option}`")),
        }
    }
    Ok(Line::Hello { worker: parsed(worker)?, boot, held })
}

fn read_report(words: &[&str], message: String) -> Result<ReportLine, String> {
    let leases: Vec<LeaseId> = words.iter().map_while(|word| word.parse().ok()).collect();
    let Some((kind, options)) = words[leases.len()..].split_first() else {
        return Err("a report names leases, then how they ended".to_owned());
    };
    let kind = kind_of(kind)?;
    let mut report = ReportLine {
        leases,
        by: None,
        outcome: Outcome::new(kind, usual_reason(kind), message),
        artifacts: Vec::new(),
        image: false,
    };
    for option in options {
        match option.split_once('=') {
            Some(("by", worker)) => report.by = Some(parsed(worker)?),
            Some(("exit", code)) => report.outcome.exit_code = Some(parsed(code)?),
            Some(("artifacts", paths)) => {
                report.artifacts = paths.split(',').map(artifact).collect::<Result<_, _>>()?;
            }
            None if *option == "image" => report.image = true,
            _ => report.outcome.reason = Reason::from_word(option).ok_or(format!("`{option}` is no reason"))?,
        }
    }
    Ok(report)
}

fn kind_of(word: &str) -> Result<OutcomeKind, String> {
    use OutcomeKind::{Cancelled, Failed, Lost, Refused, Succeeded, TimedOut};
    let kinds = [Succeeded, Failed, TimedOut, Cancelled, Lost, Refused];
    kinds.into_iter().find(|kind| kind.as_str() == word).ok_or(format!("`{word}` is no outcome"))
}

fn usual_reason(kind: OutcomeKind) -> Reason {
    match kind {
        OutcomeKind::Succeeded => Reason::Done,
        OutcomeKind::Failed => Reason::ExitCode,
        OutcomeKind::TimedOut => Reason::WallClock,
        OutcomeKind::Cancelled => Reason::Cancelled,
        OutcomeKind::Lost => Reason::Engine,
        OutcomeKind::Refused => Reason::Unsupported,
    }
}

/// `250ms`, `5s`, `2m`, `1h`.
pub fn millis(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{text}` is not a span of time: expected 250ms, 5s, 2m or 1h")),
    };
    Ok(parsed::<u64>(number)? * scale)
}

/// The text as a value, or what is wrong with it.
pub fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("`{text}`: {error}"))
}
