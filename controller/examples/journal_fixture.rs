//! Writes the journal of a small farm in which every kind of event has happened, and the state that it comes to.
//!
//! `cargo run -p railyard-controller --example journal_fixture -- DIR` makes `DIR/journal`, `DIR/events.jsonl` and
//! `DIR/farm.json`. Each journal format keeps what its own version wrote: see `controller/tests/fixtures/README.md`.

use anyhow::Context as _;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::{BootId, BuildId, LeaseId};
use railyard_common::job::{Capacity, ImageSource};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::path::RelPath;
use railyard_common::pipeline::{Pipeline, Request, Source};
use railyard_common::plan::Plan;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::priority::Priority;
use railyard_common::retention::{Keep, Pin};
use railyard_common::time::Millis;
use railyard_common::token::TokenKind;
use railyard_controller::journal::{Journal as _, SledJournal};
use railyard_core::{
    Command, Event, Farm, Force, Hold, HoldKind, Reduction, Report, Submission, TokenRecord, Trace, Whose, WorkerOffer,
};
use std::collections::{BTreeMap, BTreeSet};
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

/// One step, on workers of its own.
const TOOL: &str = "
name: tool
channel: beta
platforms: [linux/amd64]
steps:
  - name: make
    image: debian:bookworm
    script: make
    commit: true
    pool: tools
    outputs:
      - path: out/*
        publish: 'tools/{{ version }}'
";

struct Story {
    farm: Farm,
    journal: SledJournal,
    now: u64,
    told: std::fs::File,
}

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("say where: journal_fixture DIR")?);
    std::fs::create_dir_all(&dir)?;
    let mut journal = SledJournal::open(&dir.join("journal"))?;
    anyhow::ensure!(journal.load()?.events.is_empty(), "{} has a journal already", dir.display());
    let told = std::fs::File::create(dir.join("events.jsonl"))?;
    let mut story = Story { farm: Farm::default(), journal, now: 1_000_000, told };
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
        self.happened(vec![Event::WorkerForgotten { at, worker: "tongs".parse()? }])?;
        self.access()?;
        self.keeping()?;
        // Restored twice; after the first time somebody has looked.
        let restored = |days: u64| Event::ControllerRestored { at: Millis((20_000 + days) * 86_400_000) };
        self.happened(vec![restored(0)])?;
        self.round(&[Command::ResumeSweep { by: "olga".to_owned() }])?;
        self.happened(vec![restored(1)])
    }

    /// Tokens that are used, taken back and good, and somebody who is shut out.
    fn access(&mut self) -> anyhow::Result<()> {
        let by = || "operator/olga".to_owned();
        let token = |n: u8, kind: TokenKind, identity: &str| -> anyhow::Result<TokenRecord> {
            let (id, hash) = (hex::encode([n; 8]).parse()?, Digest::of(&[n]));
            let (made_at, expires_at) = (Millis(self.now), Millis(self.now + 900_000));
            Ok(TokenRecord { id, kind, hash, identity: identity.parse()?, made_at, by: by(), expires_at, used: None })
        };
        let join = token(1, TokenKind::Join, "railyard://worker/rack-1?platform=linux/amd64")?;
        let dropped = token(2, TokenKind::Bearer, "railyard://viewer/dash")?;
        let good = token(3, TokenKind::Bearer, "railyard://submitter/ci?tier=untrusted")?;
        let used = Command::UseToken { id: join.id, hash: join.hash, key: Digest::of(b"a public key") };
        let drop = Command::DropToken { id: dropped.id, by: by() };
        let made = [join, dropped, good].map(|token| Command::MakeToken(Box::new(token)));
        self.round(&made)?;
        let (identity, why) = ("railyard://submitter/mallory".parse()?, "left the team".to_owned());
        self.round(&[used, drop, Command::Revoke { identity, by: by(), why }])
    }

    /// Builds with pins, tags and promotions; some are reduced, one is forgotten, and another one is made from one of them. Half of
    /// it lies in the snapshot.
    fn keeping(&mut self) -> anyhow::Result<()> {
        let mut bellows = hello("bellows", "boot-6", &[])?;
        if let Command::Hello { offer, .. } = &mut bellows {
            offer.pool = Some("tools".parse()?);
        }
        self.round(&[bellows])?;
        for version in ["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"] {
            self.built(version)?;
        }
        let (at, by) = (Millis(self.now), || "olga".to_owned());
        let tool = |version: &str| -> anyhow::Result<BuildId> { Ok(format!("tool/{version}").parse()?) };
        let pin = |build: BuildId, name: &str, until: Option<Millis>| -> anyhow::Result<Command> {
            let pin = Pin { at, by: by(), why: "runs in the lab".to_owned(), until };
            Ok(Command::Pin { build, name: name.parse()?, pin, whose: Whose::Anybodys })
        };
        let tag = |build: BuildId, tag: &str| -> anyhow::Result<Command> {
            Ok(Command::Tag { build, tag: tag.parse()?, by: by() })
        };
        let unpin =
            Command::Unpin { build: tool("1.0")?, name: Some("case".parse()?), by: by(), whose: Whose::Anybodys };
        self.round(&[
            pin(tool("1.0")?, "lab", None)?,
            pin(tool("1.0")?, "case", None)?,
            pin(tool("1.1")?, "bisect", Some(Millis(self.now + 86_400_000)))?,
            unpin,
        ])?;
        let untag = Command::Untag { pipeline: "tool".parse()?, tag: "old".parse()?, by: by() };
        self.round(&[tag(tool("1.0")?, "golden")?, tag(tool("1.1")?, "golden")?, tag(tool("1.0")?, "old")?, untag])?;
        // One promotion that ends well, one that does not, and one that is on its way.
        let promote = |version: &str, channel: &str| -> anyhow::Result<Command> {
            let path: RelPath = format!("tools/{channel}/saw-{version}").parse()?;
            let (fresh, paths) =
                (BTreeSet::from([path.clone()]), BTreeMap::from([(path, blob(&format!("saw {version}")))]));
            Ok(Command::Promote { build: tool(version)?, channel: channel.parse()?, paths, fresh, by: by() })
        };
        let ends = |version: &str, error: Option<String>| -> anyhow::Result<Command> {
            Ok(Command::EndPromotion { build: tool(version)?, error })
        };
        self.round(&[
            promote("1.2", "stable")?,
            ends("1.2", None)?,
            promote("1.1", "lts")?,
            ends("1.1", Some("the store is full".to_owned()))?,
            Command::ForgetPromotion { build: tool("1.1")? },
            promote("1.0", "lts")?,
        ])?;
        let reduce = |version: &str, keep: Keep| -> anyhow::Result<Command> {
            let builds = vec![Reduction { build: tool(version)?, keep, why: "older than 60 days".to_owned() }];
            Ok(Command::Reduce { builds, by: "controller".to_owned(), force: Force::Asked })
        };
        self.round(&[reduce("1.3", Keep::Published)?, reduce("1.4", Keep::Nothing)?])?;
        self.journal.install(&self.farm.snapshot())?;
        let swept = vec![(tool("1.3")?, Keep::Published), (tool("1.4")?, Keep::Nothing)];
        self.round(&[Command::Swept { builds: swept }, reduce("1.3", Keep::Manifest)?, reduce("1.5", Keep::Nothing)?])?;
        // Its lease lives on, and with it what it claims.
        let lease = self.leased("2.0", made_from(tool("1.0")?)?)?;
        let blobs = vec![Digest::of(b"saw 1.0"), Digest::of(b"saw 2.0")];
        self.round(&[Command::Claim { lease, worker: "bellows".parse()?, blobs }])
    }

    /// A build of the tool to its end.
    fn built(&mut self, version: &str) -> anyhow::Result<()> {
        let plan = plan_of(TOOL, version)?;
        let build = plan.build.clone();
        let lease = self.leased(version, plan)?;
        let saw = blob(&format!("saw {version}"));
        self.round(&[Command::Claim { lease, worker: "bellows".parse()?, blobs: vec![saw.digest] }])?;
        let mut made = report("bellows", lease, Outcome::new(OutcomeKind::Succeeded, Reason::Done, ""))?;
        made.artifacts = vec![Artifact {
            path: "out/saw".parse()?,
            blob: saw,
            media_type: "application/octet-stream".to_owned(),
            published: Some(format!("tools/{version}/saw").parse()?),
        }];
        made.image = Some(Image { config: blob(version), layers: vec![blob("layer")] });
        self.round(&[Command::Report(Box::new(made)), Command::Finalized { build, error: None }])
    }

    /// Submits and places; gives the lease of the first job.
    fn leased(&mut self, version: &str, plan: Plan) -> anyhow::Result<LeaseId> {
        let build = plan.build.clone();
        self.round(&[submission(plan, None), Command::Place])?;
        let job = self.farm.build(&build).and_then(|build| build.jobs().next());
        let job = job.with_context(|| format!("{version} has no job"))?;
        let lease = LeaseId { job, attempt: 1 };
        anyhow::ensure!(self.farm.holder(lease).is_some(), "{build} was not placed");
        Ok(lease)
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
    Ok(submission(plan_of(PIPELINE, version)?, key))
}

fn submission(plan: Plan, key: Option<&str>) -> Command {
    let trace = Trace { trace_id: "a".repeat(32), parent_span_id: String::new(), span_id: "b".repeat(16) };
    Command::Submit(Box::new(Submission {
        plan,
        key: key.map(str::to_owned),
        request: key.map(|key| Digest::of(key.as_bytes()).to_string()).unwrap_or_default(),
        priority: if key.is_some() { Priority::Release } else { Priority::default() },
        by: "olga".to_owned(),
        trace,
    }))
}

/// The tool once more, in the image of another build.
fn made_from(build: BuildId) -> anyhow::Result<Plan> {
    let mut plan = plan_of(TOOL, "2.0")?;
    for spec in &mut plan.jobs {
        spec.image = ImageSource::Build { build: build.clone(), job: "make@linux/amd64".parse()? };
    }
    plan.uses = vec![build];
    Ok(plan)
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

fn plan_of(text: &str, version: &str) -> anyhow::Result<Plan> {
    let source = Source { file_name: "railyard.yaml", text, files: &BTreeMap::new() };
    let pipeline = Pipeline::parse(&source).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let request = Request::of(version.parse()?);
    pipeline.plan(&request).map_err(|problems| anyhow::anyhow!("{problems:?}"))
}
