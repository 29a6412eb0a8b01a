//! Writes the journal of a small farm in which every kind of event has happened, and the state that it comes to.
//!
//! `cargo run -p railyard-controller --example journal_fixture -- DIR` makes `DIR/journal`, `DIR/events.jsonl` and
//! `DIR/farm.json`. Each journal format keeps what its own version wrote: see `controller/tests/fixtures/README.md`.

use anyhow::Context as _;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::{BootId, LeaseId};
use railyard_common::job::Capacity;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::pipeline::{Pipeline, Request, Source};
use railyard_common::plan::Plan;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_controller::journal::{Journal as _, SledJournal};
use railyard_core::{Command, Event, Farm, Hold, HoldKind, Report, Submission, Trace, WorkerOffer};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Two steps that hand on an image and files; one that may fail once; one without needs.
const PIPELINE: &str = "
name: os
platforms: [linux/amd64]
params:
  suite: { default: bookworm }
steps:
  - name: sdk
    image: 'debian:{{ suite }}'
    script: make sdk
    commit: true
    outputs:
      - path: pkg/*.deb
        publish: 'images/{{ arch }}/{{ version }}'
  - name: image
    image: { step: sdk }
    script: make image
    retries: 1
    lease_ttl: 30s
    inputs:
      - step: sdk
        artifacts: ['pkg/*.deb']
    outputs:
      - path: out/disk.raw
  - name: docs
    image: debian:bookworm
    script: make docs
    concurrency: { group: paper, limit: 2 }
    labels: { zone: a }
";

/// After so many rounds the journal gets a snapshot: what follows lies in the tail.
const SNAPSHOT_AFTER_ROUNDS: usize = 6;

struct Story {
    farm: Farm,
    journal: SledJournal,
    now: u64,
    rounds: usize,
    told: std::fs::File,
}

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("say where: journal_fixture DIR")?);
    std::fs::create_dir_all(&dir)?;
    let mut journal = SledJournal::open(&dir.join("journal"))?;
    anyhow::ensure!(journal.load()?.events.is_empty(), "{} has a journal already", dir.display());
    let told = std::fs::File::create(dir.join("events.jsonl"))?;
    let mut story = Story { farm: Farm::default(), journal, now: 1_000_000, rounds: 0, told };
    story.tell()?;
    finish(&dir, &story)
}

fn finish(dir: &Path, story: &Story) -> anyhow::Result<()> {
    let broken = story.farm.check();
    anyhow::ensure!(broken.is_empty(), "the story breaks invariants: {broken:?}");
    std::fs::write(dir.join("farm.json"), serde_json::to_vec_pretty(&story.farm.snapshot())?)?;
    Ok(())
}

impl Story {
    fn tell(&mut self) -> anyhow::Result<()> {
        self.round(&[Command::Started, hello("anvil", "boot-1", &[])?])?;
        self.round(&[submit("1.0", Some("once"))?, Command::Place])?;
        let (sdk, docs) = (lease(1, 1), lease(3, 1));
        let success = Outcome { exit_code: Some(0), ..Outcome::new(OutcomeKind::Succeeded, Reason::Done, "") };
        let failure = Outcome { exit_code: Some(1), ..Outcome::new(OutcomeKind::Failed, Reason::ExitCode, "exit 1") };
        let mut made = report("anvil", sdk, success.clone())?;
        made.artifacts = vec![Artifact {
            path: "pkg/a.deb".parse()?,
            blob: blob("a package"),
            media_type: "application/vnd.debian.binary-package".to_owned(),
            published: Some("images/amd64/1.0/a.deb".parse()?),
        }];
        made.image = Some(Image { config: blob("{}"), layers: vec![blob("layer")] });
        self.round(&[Command::Report(Box::new(made)), Command::Place])?;
        // The image fails, is lost, and fails again: both budgets, and a build that ends badly.
        self.round(&[Command::Report(Box::new(report("anvil", lease(2, 1), failure.clone())?))])?;
        self.now += 400_000;
        self.round(&[Command::Place, Command::Expire { lease: lease(2, 2) }])?;
        self.round(&[Command::Report(Box::new(report("anvil", docs, success.clone())?))])?;
        self.now += 400_000;
        self.round(&[Command::Place, Command::Report(Box::new(report("anvil", lease(2, 3), failure)?))])?;
        let first = "os/1.0".parse()?;
        self.round(&[Command::Finalized { build: first, error: None }])?;
        // It is retried, and its worker comes back without the lease.
        self.round(&[Command::Retry { build: "os/1.0".parse()?, step: None }, Command::Place])?;
        self.round(&[hello("anvil", "boot-2", &[])?, Command::Goodbye { worker: "anvil".parse()? }])?;
        self.round(&[hello("hammer", "boot-3", &[])?, submit("2.0", None)?])?;
        self.now += 400_000;
        self.round(&[Command::Place, Command::Drain { worker: "hammer".parse()? }])?;
        let cancel =
            Command::Cancel { build: "os/2.0".parse()?, by: "olga".to_owned(), reason: "wrong branch".to_owned() };
        self.round(&[cancel])?;
        self.round(&[submit("3.0", Some("third"))?])?;
        // A gate, and steps that are cancelled; a worker that is held back, let go, and sent away.
        self.round(&[gated("4.0")?])?;
        let (build, by) = ("os/4.0".parse()?, "olga".to_owned());
        self.round(&[Command::Approve { build, jobs: None, by: by.clone() }])?;
        let hold =
            Hold { kind: HoldKind::Cordon, by: by.clone(), why: "new disk".to_owned(), until: None, stop_at: None };
        let until = Some(Millis(self.now + 7_200_000));
        let drain = Hold { kind: HoldKind::Drain, until, stop_at: until, ..hold.clone() };
        self.round(&[Command::Hold { worker: "hammer".parse()?, hold }])?;
        self.round(&[Command::Hold { worker: "hammer".parse()?, hold: drain }])?;
        self.round(&[Command::Release { worker: "hammer".parse()?, by: by.clone() }])?;
        self.round(&[hello("anvil", "boot-4", &[])?, Command::Place])?;
        let leased = self.farm.worker(&"anvil".parse()?).and_then(|worker| worker.leases.first().copied());
        self.round(&[Command::Uploading { lease: leased.context("anvil got no job")? }])?;
        let (build, jobs, reason) = ("os/4.0".parse()?, "image".parse()?, "not needed".to_owned());
        self.round(&[Command::CancelJobs { build, jobs, by, reason }])?;
        self.round(&[hello("tongs", "boot-5", &[])?])?;
        let at = Millis(self.now);
        self.happened(vec![
            Event::WorkerForgotten { at, worker: "tongs".parse()? },
            Event::ControllerRestored { at: Millis(self.now + 1_800_000_000_000) },
        ])
    }

    /// What the driver does in a round: decide and apply each command, then append.
    fn round(&mut self, commands: &[Command]) -> anyhow::Result<()> {
        let mut events: Vec<Event> = Vec::new();
        for command in commands {
            self.now += 1_000;
            let decided = self.farm.decide(Millis(self.now), command)?;
            decided.iter().for_each(|event| self.farm.apply(event));
            events.extend(decided);
        }
        self.keep(&events)
    }

    /// What no command alone comes to.
    fn happened(&mut self, events: Vec<Event>) -> anyhow::Result<()> {
        events.iter().for_each(|event| self.farm.apply(event));
        self.keep(&events)
    }

    fn keep(&mut self, events: &[Event]) -> anyhow::Result<()> {
        self.journal.append(events)?;
        for event in events {
            writeln!(self.told, "{}", serde_json::to_string(event)?)?;
        }
        self.rounds += 1;
        if self.rounds == SNAPSHOT_AFTER_ROUNDS {
            self.journal.install(&self.farm.snapshot())?;
        }
        Ok(())
    }
}

fn lease(job: u64, attempt: u32) -> LeaseId {
    LeaseId { job: railyard_common::id::JobId(job - 1), attempt }
}

fn blob(text: &str) -> Blob {
    Blob::plain(Digest::of(text.as_bytes()), text.len() as u64)
}

fn report(worker: &str, lease: LeaseId, outcome: Outcome) -> anyhow::Result<Report> {
    Ok(Report { lease, worker: worker.parse()?, outcome, artifacts: Vec::new(), image: None, log_bytes: 42 })
}

fn hello(name: &str, boot: &str, held: &[LeaseId]) -> anyhow::Result<Command> {
    let offer = WorkerOffer {
        name: name.parse()?,
        boot: BootId(boot.to_owned()),
        version: "0.1.0".to_owned(),
        platforms: vec![PlatformOffer { platform: Platform::LinuxAmd64, emulated: false }],
        capacity: Capacity { cpu_millis: 8_000, memory_bytes: 1 << 36, disk_bytes: 1 << 40, slots: 4 },
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
        allows_privileged: true,
        allows: Vec::new(),
        pool: None,
    };
    Ok(Command::Hello { offer: Box::new(offer), held: held.to_vec() })
}

fn submit(version: &str, key: Option<&str>) -> anyhow::Result<Command> {
    let trace = Trace { trace_id: "a".repeat(32), parent_span_id: String::new(), span_id: "b".repeat(16) };
    Ok(Command::Submit(Box::new(Submission {
        plan: plan(version)?,
        key: key.map(str::to_owned),
        request: key.map(|key| Digest::of(key.as_bytes()).to_string()).unwrap_or_default(),
        priority: if key.is_some() { Priority::Release } else { Priority::default() },
        by: "olga".to_owned(),
        trace,
    })))
}

/// Its first step waits for somebody's approval.
fn gated(version: &str) -> anyhow::Result<Command> {
    let mut command = submit(version, None)?;
    if let Command::Submit(submission) = &mut command
        && let Some(first) = submission.plan.jobs.first_mut()
    {
        first.approval = Some("release managers".to_owned());
        submission.plan.supersede = Some("main".parse()?);
    }
    Ok(command)
}

fn plan(version: &str) -> anyhow::Result<Plan> {
    let source = Source { file_name: "os.yaml", text: PIPELINE, files: &BTreeMap::new() };
    let pipeline = Pipeline::parse(&source).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let request = Request::of(version.parse()?);
    pipeline.plan(&request).map_err(|problems| anyhow::anyhow!("{problems:?}"))
}
