//! Builds from their submit to their end, and the steps of their uploads.

use super::World;
use railyard_common::blob::{Artifact, Blob};
use railyard_common::digest::Digest;
use railyard_common::id::{BootId, BuildId, LeaseId, WorkerName};
use railyard_common::job::{Capacity, ImageSource, JobSpec, RunSpec};
use railyard_common::layout;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::path::RelPath;
use railyard_common::plan::Plan;
use railyard_common::platform::{Platform, PlatformOffer};
use railyard_common::priority::Priority;
use railyard_common::retention::Keep;
use railyard_core::{BuildState, Command, Report, Submission, Trace, Verdict, WorkerOffer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Different blobs that there are: few, so that what one build lets go another wants.
const BLOBS: usize = 25;
/// Builds that have not ended, at most.
const OPEN_MAX: usize = 4;

/// An attempt on its worker.
#[derive(Clone, Debug)]
pub(super) struct Work {
    artifacts: Vec<Artifact>,
    fails: bool,
    stage: Stage,
}

/// Where it is. Two calls of the controller, each in the steps between which something else may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    /// A call of the controller, begun.
    Claiming(Call),
    /// Its claim is durable; a delete may be on its way.
    Claimed(Call),
    /// It was told what the cache has, and sends the rest.
    Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Prepare,
    Report,
}

impl Work {
    /// The controller died: whoever was asking asks again.
    pub(super) fn call_broke(&mut self) {
        self.stage = match self.stage {
            Stage::Claiming(Call::Prepare) | Stage::Claimed(Call::Prepare) => Stage::Running,
            Stage::Claiming(Call::Report) | Stage::Claimed(Call::Report) => Stage::Told,
            stage => stage,
        };
    }

    fn digests(&self) -> Vec<Digest> {
        self.artifacts.iter().map(|artifact| artifact.blob.digest).collect()
    }
}

/// One of the few blobs.
fn blob(which: usize) -> Blob {
    Blob::plain(Digest::of(&[which as u8]), which as u64 % 60 + 1)
}

fn worker() -> WorkerName {
    "anvil".parse().expect("a name")
}

impl World {
    /// The one worker is here, and holds what is being worked on.
    pub(super) fn hello(&mut self) {
        let platforms = Platform::ALL.map(|platform| PlatformOffer { platform, emulated: false }).to_vec();
        let offer = WorkerOffer {
            name: worker(),
            boot: BootId("boot".to_owned()),
            version: String::new(),
            platforms,
            capacity: Capacity { cpu_millis: 64_000, memory_bytes: 1 << 40, disk_bytes: 1 << 44, slots: 6 },
            labels: BTreeMap::new(),
            pool: None,
            allows_privileged: false,
            allows: Vec::new(),
        };
        let held = self.works.keys().copied().collect();
        let welcome = self.decide(&Command::Hello { offer: Box::new(offer), held });
        debug_assert!(welcome.is_ok());
        let farm = &self.farm;
        self.works.retain(|lease, _| farm.holder(*lease).is_some());
        self.model.leases_are(&self.works.keys().copied().collect());
    }

    pub(super) fn submit(&mut self) {
        if self.farm.builds().filter(|build| !build.is_ended()).count() >= OPEN_MAX {
            return;
        }
        self.next += 1;
        let (pipeline, untrusted) = (self.dice.pick(&["os", "sdk"]), self.dice.chance(120));
        // Versions of which one begins like another, and some that were given before: what was forgotten has left its name.
        let number = if self.dice.chance(200) { self.dice.within(1, self.next) } else { self.next };
        let version = format!("1.{number}{}", if untrusted { ".untrusted" } else { "" });
        let build: BuildId = format!("{pipeline}/{version}").parse().expect("a build");
        // What only the cache knows of, after a restore, has its name too: whoever takes submissions asks the cache.
        if self.farm.build(&build).is_none() && self.store.objects.contains_key(&layout::build_manifest(&build)) {
            return;
        }
        let platforms = self.dice.pick(&[&Platform::ALL[..1], &Platform::ALL[1..], &Platform::ALL[..]]).to_vec();
        let jobs = self.dice.within(1, 2);
        let jobs = (0..jobs).map(|n| job(&format!("s{n}@{}", platforms[0]))).collect();
        let uses = if self.dice.chance(300) { self.something_to_use(untrusted) } else { Vec::new() };
        let channel = self.dice.pick(&["alpha", "beta"]).parse().ok();
        let params = BTreeMap::new();
        let plan = Plan { build, params, platforms, untrusted, channel, supersede: None, uses, jobs };
        let urgent = !untrusted && self.dice.chance(80);
        let priority = if urgent { Priority::Release } else { Priority::Change };
        let (by, request, trace) = ("olga".to_owned(), String::new(), Trace::default());
        let submission = Submission { plan, key: None, request, priority, by, trace };
        // Refused if what it uses is no longer there, or if the name is taken.
        let _ = self.decide(&Command::Submit(Box::new(submission)));
    }

    /// A success that a new build could be made from.
    fn something_to_use(&mut self, untrusted: bool) -> Vec<BuildId> {
        let fits = |build: &&railyard_core::Build| {
            build.is_success() && build.keep() == Keep::All && (untrusted || !build.is_untrusted())
        };
        let known: Vec<BuildId> = self.farm.builds().filter(fits).map(|build| build.id().clone()).collect();
        if known.is_empty() { known } else { vec![known[self.dice.below(known.len())].clone()] }
    }

    pub(super) fn place(&mut self) {
        let placed = self.decide(&Command::Place).unwrap_or_default();
        for event in placed {
            if let railyard_core::Event::JobLeased { lease, .. } = event {
                let work = self.new_work(lease);
                self.works.insert(lease, work);
            }
        }
    }

    fn new_work(&mut self, lease: LeaseId) -> Work {
        let count = self.dice.within(0, 4) as usize;
        let artifacts = (0..count).map(|n| {
            let which = self.dice.below(BLOBS);
            // The same bytes may be published at the same path by several builds.
            let untrusted = self.farm.is_untrusted(lease).unwrap_or(true);
            let directory = self.dice.pick(&["", "", "beta-"]);
            let path = format!("images/{directory}{which}");
            let published = (self.dice.chance(500) && !untrusted).then(|| path.parse().expect("a path"));
            let path: RelPath = format!("out/{n}").parse().expect("a path");
            Artifact { path, blob: blob(which), media_type: String::new(), published }
        });
        Work { artifacts: artifacts.collect(), fails: self.dice.chance(150), stage: Stage::Running }
    }

    /// One step of one attempt.
    pub(super) fn work_on(&mut self) {
        if self.works.is_empty() {
            return;
        }
        let place = self.dice.below(self.works.len());
        let Some((lease, work)) = self.works.iter().nth(place).map(|(lease, work)| (*lease, work.clone())) else {
            return;
        };
        if self.trouble && self.dice.chance(20) {
            // Its worker was not heard of for too long.
            let _ = self.decide(&Command::Expire { lease });
            self.works.remove(&lease);
            if let Stage::Claiming(_) = work.stage {
                self.claims.end(&work.digests());
            }
            return;
        }
        let blobs = work.digests();
        let stage = match work.stage {
            Stage::Running if work.fails => return self.report(lease, &work, false),
            Stage::Running => {
                self.claims.begin(&blobs);
                Stage::Claiming(Call::Prepare)
            }
            Stage::Told => {
                self.claims.begin(&blobs);
                Stage::Claiming(Call::Report)
            }
            Stage::Claiming(call) => {
                let claimed = self.decide(&Command::Claim { lease, worker: worker(), blobs: blobs.clone() });
                self.claims.end(&blobs);
                match claimed {
                    Ok(_) => Stage::Claimed(call),
                    Err(_) => return drop(self.works.remove(&lease)),
                }
            }
            Stage::Claimed(_) if self.claims.must_wait(&blobs) => work.stage,
            Stage::Claimed(Call::Prepare) => {
                let there = work.artifacts.iter().map(|one| one.blob).filter(|blob| self.store.has(blob));
                let there: BTreeSet<Digest> = there.map(|blob| blob.digest).collect();
                self.say(|| format!("{lease} is told that {} blobs are there", there.len()));
                self.model.told(lease, there);
                Stage::Told
            }
            Stage::Claimed(Call::Report) => {
                let missing = self.model.promised(lease).find(|digest| {
                    work.artifacts.iter().any(|one| one.blob.digest == **digest && !self.store.has(&one.blob))
                });
                if let Some(digest) = missing.copied() {
                    return self.breaks(format!("{lease} was told that the cache has {digest}, and it has not"));
                }
                work.artifacts.iter().for_each(|one| self.store.complete(&one.blob, self.now));
                return self.report(lease, &work, true);
            }
        };
        if let Some(work) = self.works.get_mut(&lease) {
            work.stage = stage;
        }
    }

    fn report(&mut self, lease: LeaseId, work: &Work, good: bool) {
        let outcome = match good {
            true => Outcome::succeeded(),
            false => Outcome::new(OutcomeKind::Failed, Reason::ExitCode, "no".to_owned()),
        };
        let artifacts = if good { work.artifacts.clone() } else { Vec::new() };
        let report = Report { lease, worker: worker(), outcome, artifacts, image: None, log_bytes: 0 };
        let _ = self.decide(&Command::Report(Box::new(report)));
        self.works.remove(&lease);
    }

    /// A build whose jobs have ended is written out: its logs, what it publishes, its manifest.
    pub(super) fn finalize(&mut self) {
        if self.promotion.is_some() {
            return self.promote_on();
        }
        let Some(build) = self.farm.finalizing().next() else { return };
        let (id, verdict) = (build.id().clone(), build.state.clone());
        let success =
            matches!(verdict, BuildState::Finalizing { verdict: Verdict::Succeeded }) && !build.is_untrusted();
        let artifacts: Vec<Artifact> = self.farm.artifacts(build).cloned().collect();
        for spec in &build.plan.jobs {
            self.store.put(layout::log(&id, &spec.name, 1), b"log".to_vec(), None, self.now);
        }
        for artifact in artifacts.iter().filter(|_| success) {
            if let Some(path) = &artifact.published {
                self.store.put(path.clone(), Vec::new(), Some(artifact.blob.digest), self.now);
            }
        }
        let word = if success { "succeeded" } else { "failed" };
        let manifest = serde_json::json!({ "schema_version": 1, "build": id, "verdict": word, "jobs": [{ "artifacts": artifacts }] });
        self.store.put(layout::build_manifest(&id), manifest.to_string().into_bytes(), None, self.now);
        self.model.written(&id);
        let done = self.decide(&Command::Finalized { build: id, error: None });
        debug_assert!(done.is_ok());
    }

    /// What runs comes to its end.
    pub(super) fn finish_works(&mut self) {
        for _ in 0..2_000 {
            if self.out.broken.is_some() || self.farm.builds().all(railyard_core::Build::is_ended) {
                return;
            }
            self.now = self.now.plus(100);
            self.place();
            self.work_on();
            self.finalize();
            // A delete that is on its way is waited for.
            self.sweep_on();
            let waiting: Vec<LeaseId> =
                self.farm.live_leases().filter(|lease| !self.works.contains_key(lease)).collect();
            for lease in waiting {
                let _ = self.decide(&Command::Expire { lease });
            }
        }
        self.breaks("builds do not end".to_owned());
    }
}

fn job(name: &str) -> JobSpec {
    JobSpec {
        name: name.parse().expect("a job"),
        needs: Vec::new(),
        image: ImageSource::Registry("debian".to_owned()),
        inputs: Vec::new(),
        lease_ttl_secs: 60,
        retries: 0,
        approval: None,
        concurrency: None,
        pool: None,
        labels: BTreeMap::new(),
        run: Arc::new(RunSpec {
            script: String::new(),
            env: BTreeMap::new(),
            outputs: Vec::new(),
            commit: false,
            resources: Capacity { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, slots: 1 },
            timeout_secs: 60,
            silence_timeout_secs: 0,
            privileged: false,
            devices: Vec::new(),
            capabilities: Vec::new(),
            network_none: false,
            host_paths: Vec::new(),
            secrets: Vec::new(),
        }),
    }
}
