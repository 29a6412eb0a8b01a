//! A run: one farm, and rounds on it.

use crate::leftovers::{self, Before, Places};
use crate::parts::{Done, Parts};
use crate::pipeline;
use crate::plan::{Part, Round};
use crate::record::{self, Attempts, Gaps, list};
use crate::store::Store;
use anyhow::{Context as _, bail, ensure};
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_tests::engine::Engine;
use railyard_tests::farm::Farm;
use railyard_tests::{image, process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Rounds for every change: each pair comes up three times in them, and they take some minutes.
pub const CI_ROUNDS: u64 = 30;

/// How long a build may take: far more than two kills cost, so that a busy machine does not fail a round.
const BUILD_LIMIT: Duration = Duration::from_secs(150);
/// How long everything may take to be up again, and clean.
const SETTLE_LIMIT: Duration = Duration::from_secs(90);
/// Between two looks by way of the client.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Between two looks at the plan: kills are done when they are due.
const TEND_EVERY: Duration = Duration::from_millis(10);

/// What a run is.
pub struct Settings {
    /// The seed of all plans.
    pub seed: u64,
    /// Which rounds of it.
    pub rounds: RangeInclusive<u64>,
    /// This crate's binary, which can be the S3 service.
    pub program: PathBuf,
}

/// Any seed.
pub fn random_seed() -> u64 {
    let mut bytes = [0; 4];
    // Without randomness it is merely the same seed every time.
    let _ = getrandom::fill(&mut bytes);
    u32::from_le_bytes(bytes).into()
}

/// Runs the calm round and then the others, and prints a line for each.
///
/// # Errors
/// At the first thing that is not as it should be, with what is needed to look into it.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let seed = settings.seed;
    println!("seed {seed}, rounds {:?}", settings.rounds);
    let mut rig = Rig::start(&settings.program)?;
    let began = SystemClock.monotonic();
    for number in std::iter::once(0).chain(settings.rounds.clone()) {
        let plan = Round::new(seed, number);
        match rig.round(&plan) {
            Ok(report) => println!("round {number:>3} seed {seed}: {report}"),
            Err(error) => {
                let kept = rig.keep_logs(seed, &plan)?;
                return Err(error.context(format!(
                    "round {number} of seed {seed} ({}) failed; replay it with \
                     `cargo run -p railyard-faults -- --seed {seed} --round {number}`; logs of all processes, the plan and the \
                     record are in {}",
                    describe(&plan),
                    kept.display()
                )));
            }
        }
    }
    let secs = (SystemClock.monotonic() - began).as_secs_f32();
    println!("all well after {secs:.0} s");
    Ok(())
}

fn describe(plan: &Round) -> String {
    let kills: Vec<String> = plan.kills.iter().map(ToString::to_string).collect();
    if kills.is_empty() { "nobody is killed".to_owned() } else { kills.join(", ") }
}

/// A farm with its engine and its store.
struct Rig {
    // In the order in which they go: processes before the directories they write to.
    parts: Parts,
    engine: Engine,
    farm: Farm,
    store: Store,
    image: String,
    workers: Vec<PathBuf>,
    engine_dir: PathBuf,
    temp: PathBuf,
    before: Before,
    /// Where the store and the temporary files lie.
    dir: tempfile::TempDir,
}

impl Rig {
    fn start(program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let temp = dir.path().join("tmp");
        std::fs::create_dir(&temp)?;
        let store = Store::new(dir.path(), program)?;
        let store_process = store.spawn();
        let daemon = Engine::private_with_live_restore();
        let engine = Engine::at(daemon.socket());
        let engine_dir = daemon.dir().context("a private engine has a directory")?.to_owned();
        let image = "railyard-faults:1".to_owned();
        image::busybox(&engine, &image);
        let mut farm = Farm::start_with(&store.config(), &[("TMPDIR", &temp.display().to_string())]);
        let capacity =
            "stop_grace_secs = 1\ncapacity = { cpu_millis = 2000, memory = \"1GiB\", disk = \"8GiB\", slots = 4 }";
        let mut workers = Vec::new();
        let mut data = Vec::new();
        for part in [Part::WorkerA, Part::WorkerB] {
            let worker = farm.worker(&part.to_string(), &engine, capacity);
            data.push(worker.data);
            workers.push((part, worker.name, worker.process));
        }
        let controller = farm.take_controller().context("the controller runs")?;
        let before = Before::of(&engine)?;
        let parts = Parts::new(controller, workers, daemon, store_process);
        Ok(Self { parts, engine, farm, store, image, workers: data, engine_dir, temp, before, dir })
    }

    /// One round. The client's side has a thread of its own, so that kills do not wait for it.
    fn round(&mut self, plan: &Round) -> anyhow::Result<String> {
        let (farm, store) = (&self.farm, &self.store);
        let parts = &mut self.parts;
        let places = Places {
            engine: &self.engine,
            engine_dir: &self.engine_dir,
            workers: &self.workers,
            controller: &farm.dir.path().join("controller"),
            temp: &self.temp,
            store,
        };
        let client =
            Client { farm, plan, image: &self.image, places: &places, before: &self.before, dir: self.dir.path() };
        let began = SystemClock.monotonic();
        let (tell, over) = mpsc::channel();
        let (done, seen) = thread::scope(|scope| {
            let client = scope.spawn(move || client.run(&over));
            let mut done: Vec<Done> = Vec::new();
            let mut tell = Some(tell);
            while !client.is_finished() {
                let due = plan.kills.get(done.len()).filter(|kill| SystemClock.monotonic() >= began + kill.at);
                if let Some(kill) = due {
                    done.push(parts.kill(kill));
                }
                parts.tend(farm, store);
                if done.len() == plan.kills.len() && parts.are_up() {
                    // Dropped: the client hears that the faults are over.
                    tell = None;
                }
                thread::sleep(TEND_EVERY);
            }
            drop(tell);
            (done, client.join())
        });
        let seen = seen.map_err(|panic| anyhow::anyhow!("the client panicked: {}", said(&*panic)))?;
        let mut by_themselves = std::mem::take(&mut parts.by_themselves);
        if plan.kills_any(&[Part::Engine]) {
            // A worker does not start without an engine; its service manager tries again.
            by_themselves.retain(|part| !matches!(part, Part::WorkerA | Part::WorkerB));
        }
        ensure!(by_themselves.is_empty(), "these ended though nobody killed them: {by_themselves:?}");
        let seen = seen?;
        let secs = (SystemClock.monotonic() - began).as_secs_f32();
        self.report(plan, &done, &seen, secs)
    }

    fn report(&self, plan: &Round, done: &[Done], seen: &Seen, secs: f32) -> anyhow::Result<String> {
        let mut told = describe(plan);
        for kill in done {
            let survival = record::survival(&seen.build, kill, self.parts.worker(kill.kill.part))?;
            told += &format!(
                "; {} of {} jobs there kept their attempt over {}",
                survival.kept, survival.running, kill.kill.part
            );
        }
        let Attempts { all, most } = seen.attempts;
        let (jobs, aborted) = (plan.steps.len(), self.store.abort_open_uploads()?);
        told += &format!("; {jobs} jobs in {all} attempts, {most} at most{}; ", record::losses(&seen.build));
        if seen.gaps.told > 0 {
            told += &format!("gaps told of {} times, {} lines missing; ", seen.gaps.told, seen.gaps.lines);
        }
        ensure!(aborted == 0 || !plan.kills.is_empty(), "a calm build left {aborted} uploads open");
        ensure!(all == jobs || !plan.kills.is_empty(), "a calm build took {all} attempts for {jobs} jobs");
        told += &format!("{aborted} uploads left open; built in {:.1} s, clean after {secs:.1} s", seen.build_secs);
        Ok(told)
    }

    /// Copies everything that helps to understand a failure to where it stays.
    fn keep_logs(&self, seed: u64, plan: &Round) -> anyhow::Result<PathBuf> {
        let target = process::railyard().ancestors().nth(2).context("the binary lies in target/PROFILE")?;
        let kept = target.join(format!("faults/seed-{seed}-round-{}", plan.number));
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(self.farm.dir.path())?.flatten() {
            let path = entry.path();
            if path.is_file() {
                std::fs::copy(&path, kept.join(entry.file_name()))?;
            }
        }
        std::fs::copy(self.store.log(), kept.join("s3.log"))?;
        std::fs::copy(self.engine_dir.join("dockerd.log"), kept.join("dockerd.log"))?;
        std::fs::write(kept.join("plan.txt"), format!("{plan:#?}\n"))?;
        let shown = self.farm.cli(&["show", pipeline::NAME, "-o", "json"]);
        std::fs::write(kept.join("show.json"), shown.stdout)?;
        let containers = self.engine.docker(&["ps", "--all", "--no-trunc"]);
        std::fs::write(kept.join("containers.txt"), containers.stdout)?;
        Ok(kept)
    }
}

/// What the client's side of a round has seen.
struct Seen {
    build: Value,
    build_secs: f32,
    attempts: Attempts,
    gaps: Gaps,
}

/// The client's side of a round.
struct Client<'a> {
    farm: &'a Farm,
    plan: &'a Round,
    image: &'a str,
    places: &'a Places<'a>,
    before: &'a Before,
    dir: &'a Path,
}

impl Client<'_> {
    fn run(&self, faults_over: &mpsc::Receiver<()>) -> anyhow::Result<Seen> {
        let began = SystemClock.monotonic();
        let build = self.submit()?;
        let ended = eventually("the end of the build", BUILD_LIMIT, || {
            let shown = self.json(&["show", &build, "-o", "json"])?;
            match shown["state"].as_str() {
                Some("succeeded" | "failed" | "cancelled") => Ok(shown),
                _ => bail!("it is {}; {}", shown["state"], unfinished_jobs(&shown)),
            }
        })?;
        let build_secs = (SystemClock.monotonic() - began).as_secs_f32();
        let attempts = record::check(&ended, &self.plan.steps)?;
        // An error is the hang-up at the end of the faults.
        ensure!(
            faults_over.recv_timeout(BUILD_LIMIT) == Err(mpsc::RecvTimeoutError::Disconnected),
            "the faults do not end"
        );
        eventually("everything up again", SETTLE_LIMIT, || {
            let workers = self.json(&["workers", "-o", "json"])?;
            let connected = list(&workers).iter().filter(|worker| worker["connected"] == true).count();
            ensure!(connected == self.places.workers.len(), "the workers are {workers}");
            Ok(())
        })?;
        let gaps = self.check_logs(&build)?;
        self.check_files(&build)?;
        self.check_doubts(&ended)?;
        eventually("a clean machine", SETTLE_LIMIT, || leftovers::check(self.places, self.before))?;
        let again = self.json(&["show", &build, "-o", "json"])?;
        ensure!(again["jobs"] == ended["jobs"], "the record of an ended build has changed: {ended} became {again}");
        Ok(Seen { build: ended, build_secs, attempts, gaps })
    }

    /// Submits until it is accepted. The key makes it one build, however often the answer was lost.
    fn submit(&self) -> anyhow::Result<String> {
        let path = self.farm.pipeline(pipeline::NAME, &pipeline::file(&self.plan.steps, self.image));
        let version = self.plan.version();
        eventually("an accepted submit", SETTLE_LIMIT, || {
            let submitted =
                self.json(&["submit", &path, "--version", &version, "--idempotency-key", &version, "-o", "json"])?;
            Ok(submitted["build"].as_str().context("a build's name")?.to_owned())
        })
    }

    fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let answer = self.farm.cli(args);
        ensure!(answer.code == 0, "railyard {args:?} exits with {}: {}", answer.code, answer.stderr.trim());
        Ok(serde_json::from_str(&answer.stdout)?)
    }

    fn check_logs(&self, build: &str) -> anyhow::Result<Gaps> {
        let answer = self.farm.cli(&["logs", build, "-o", "json"]);
        ensure!(answer.code == 0, "railyard logs {build}: {}", answer.stderr);
        let mut logs: BTreeMap<String, String> = BTreeMap::new();
        for line in answer.stdout.lines() {
            let line: Value = serde_json::from_str(line)?;
            let (job, text) = (line["job"].as_str().context("a job")?, line["text"].as_str().context("a text")?);
            let log = logs.entry(job.to_owned()).or_default();
            log.push_str(text);
            log.push('\n');
        }
        let mut gaps = Gaps::default();
        for step in &self.plan.steps {
            let log = logs.get(&step.job()).map(String::as_str).unwrap_or_default();
            let checked = record::check_log(log, step, self.plan.restarts_engine());
            gaps += checked.with_context(|| format!("the log of {}:\n{log}", step.name))?;
        }
        Ok(gaps)
    }

    /// Artifacts as the client fetches them, and as they are published.
    fn check_files(&self, build: &str) -> anyhow::Result<()> {
        let out = self.dir.join(format!("fetched-{}", self.plan.number));
        let fetched = self.farm.cli(&["fetch", build, "-o", &out.display().to_string()]);
        ensure!(fetched.code == 0, "railyard fetch {build}: {}", fetched.stderr);
        let expected = pipeline::expected(&self.plan.steps);
        for (name, bytes) in &expected {
            let found = std::fs::read(out.join(name)).with_context(|| format!("artifact {name} was not fetched"))?;
            ensure!(found == *bytes, "artifact {name} is not what its step wrote");
        }
        let published = self.places.store.bucket().join("images").join(self.plan.version());
        let sums = std::fs::read_to_string(published.join("SHA256SUMS")).context("SHA256SUMS")?;
        let names = pipeline::published(&self.plan.steps);
        ensure!(sums.lines().count() == names.len(), "SHA256SUMS has other files than {names:?}: {sums}");
        for name in names {
            let bytes = std::fs::read(published.join(&name)).with_context(|| format!("{name} was not published"))?;
            ensure!(bytes == expected[&name], "{name} was published with other bytes");
            let line = format!("{}  {name}", pipeline::sha256(&bytes));
            ensure!(sums.lines().any(|found| found == line), "SHA256SUMS lacks {line:?}: {sums}");
        }
        std::fs::remove_dir_all(out)?;
        Ok(())
    }

    /// What the build refers to is verified: none of it is in doubt any more.
    fn check_doubts(&self, build: &Value) -> anyhow::Result<()> {
        let marks = self.places.store.bucket().join("uploads/unverified");
        let artifacts = list(&build["jobs"]).iter().flat_map(|job| list(&job["artifacts"]));
        for digest in artifacts.filter_map(|artifact| artifact["digest"].as_str()) {
            let hex = digest.trim_start_matches("sha256:");
            ensure!(!marks.join(hex).exists(), "{digest} belongs to a succeeded job and was never verified");
        }
        Ok(())
    }
}

fn unfinished_jobs(build: &Value) -> String {
    let open = list(&build["jobs"]).iter().filter(|job| job["state"] != "succeeded" && job["state"] != "blocked");
    let told: Vec<String> = open
        .map(|job| format!("{} is {} ({}), attempts {}", job["name"], job["state"], job["why"], job["attempts"]))
        .collect();
    told.join("; ")
}

/// Looks until `look` gives something. What stood in the way last is the error.
fn eventually<T>(what: &str, limit: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let until = SystemClock.monotonic() + limit;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if SystemClock.monotonic() >= until => {
                return Err(error.context(format!("{what} did not come within {limit:?}")));
            }
            Err(_) => thread::sleep(LOOK_EVERY),
        }
    }
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}
