//! How long retention takes: `cargo bench -p railyard-tests --bench retention -- [--quick]`.
//!
//! A controller in a process of its own with 500 builds in its journal and 100,000 objects in its embedded cache, of which fifty builds
//! are to stay. Timed over gRPC: the plan (every build with its reasons, a listing of the whole cache), the sweep that only sets
//! tombstones, and the one that deletes what lay under them.

#[path = "../schedule/machine.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod machine;
#[path = "../schedule/table.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod table;

use anyhow::Context as _;
use machine::{median, timed};
use railyard_common::blob::{Artifact, Blob};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, JobId, LeaseId};
use railyard_common::job::{Capacity, ImageSource, JobSpec, RunSpec};
use railyard_common::layout;
use railyard_common::outcome::Outcome;
use railyard_common::plan::Plan;
use railyard_common::platform::Platform;
use railyard_common::priority::Priority;
use railyard_common::retention::{Age, Rule};
use railyard_common::time::Millis;
use railyard_controller::ControllerConfig;
use railyard_controller::journal::{Journal, SledJournal};
use railyard_core::{Event, Farm, Next, Trace};
use railyard_proto::v1;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_service::channel::{self, Endpoint};
use railyard_service::task;
use railyard_service::tls::{Authority, CLIENT_VALIDITY_SECS, Identity, Role};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use table::{Bar, Table};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// An argument that only this bench gives to itself.
const AS_CONTROLLER: &str = "--as-controller";
/// Builds that are kept.
const KEPT: usize = 50;
/// Objects of each build: its blobs, three logs and its manifest.
const OBJECTS: usize = 200;
const LOGS: usize = 3;
const BLOBS: usize = OBJECTS - LOGS - 1;
const START: Millis = Millis(1_780_000_000_000);

fn main() -> anyhow::Result<()> {
    // Fails only if a provider is installed already, and then it is this one: no other is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, config] = args.as_slice()
        && first == AS_CONTROLLER
    {
        return tokio::runtime::Runtime::new()?.block_on(serve(Path::new(config)));
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let builds = if quick { 100 } else { 500 };
    let mut table = Table::new();
    table.begin("retention");
    tokio::runtime::Runtime::new()?.block_on(measure(builds, &mut table))
}

async fn measure(builds: usize, table: &mut Table) -> anyhow::Result<()> {
    let dir = machine::workspace()?;
    let data = dir.path().join("controller");
    std::fs::create_dir_all(&data)?;
    let mut config = ControllerConfig { listen: ([127, 0, 0, 1], 0).into(), ..ControllerConfig::new(data.clone()) };
    config.retention = vec![Rule { keep_last: KEPT as u32, ..Rule::default() }];
    (config.sweep.every, config.sweep.grace, config.sweep.deletes_per_sec) = (Age::default(), Age::default(), 0);
    fill(&data, builds)?;
    let path = dir.path().join("config.json");
    std::fs::write(&path, serde_json::to_vec(&config)?)?;
    let controller = Controller::start(&path)?;
    let rpc = controller.admin(&data)?;
    let objects = builds * OBJECTS;
    let before = controller.peak_bytes()? as f64 / f64::from(1 << 20);
    let mut plans = Vec::new();
    for _ in 0..5 {
        let begun = machine::now();
        let plan = rpc.clone().plan_sweep(v1::PlanSweepRequest::default()).await?.into_inner();
        plans.push((machine::now() - begun).as_secs_f64());
        anyhow::ensure!(plan.listed_objects >= objects as u64 && plan.stopped.is_empty(), "{}", plan.stopped);
        let kept = plan.builds.iter().filter(|one| one.keep == "all").count();
        anyhow::ensure!(kept == KEPT, "{kept} builds are kept");
    }
    let what = format!("a plan: {KEPT} of {builds} builds stay, {objects} objects, median of 5");
    table.barred(&what, median(&mut plans), "s", Bar::AtMost(1.0));
    let peak = controller.peak_bytes()? as f64 / f64::from(1 << 20);
    table.barred("  the controller's peak memory, its state included", peak, "MiB", Bar::AtMost(200.0));
    table.row("  of that, before the first plan", before, "MiB");
    let (secs, report) = sweep(&rpc).await?;
    anyhow::ensure!(report.reduced == (builds - KEPT) as u64, "{report:?}");
    table.row(&format!("a sweep that sets {} tombstones", builds - KEPT), secs, "s");
    let (secs, report) = sweep(&rpc).await?;
    let wanted = ((builds - KEPT) * OBJECTS) as u64;
    anyhow::ensure!(report.deleted_objects == wanted && report.failures == 0, "{report:?}");
    table.row(&format!("a sweep that deletes {wanted} objects, its plan included"), secs, "s");
    table.barred("  deletes", wanted as f64 / secs, "/s", Bar::AtLeast(2_000.0));
    let peak = controller.peak_bytes()? as f64 / f64::from(1 << 20);
    table.row("  the controller's peak memory", peak, "MiB");
    Ok(())
}

async fn sweep(rpc: &AdminServiceClient<Channel>) -> anyhow::Result<(f64, v1::SweepReport)> {
    let begun = machine::now();
    let mut steps = rpc.clone().run_sweep(v1::RunSweepRequest::default()).await?.into_inner();
    let mut last = None;
    while let Some(step) = steps.message().await? {
        last = step.report.or(last);
    }
    Ok(((machine::now() - begun).as_secs_f64(), last.context("a sweep ends with a report")?))
}

/// The journal of that many builds, and everything that they left in the cache.
fn fill(data: &Path, builds: usize) -> anyhow::Result<()> {
    let cache = data.join("cache");
    let mut farm = Farm::default();
    let (secs, filled) = timed(|| {
        for number in 0..builds {
            for event in history(number, &cache)? {
                farm.apply(&event);
            }
        }
        anyhow::Ok(())
    });
    filled?;
    eprintln!("{} objects are written ({secs:.1} s)", builds * OBJECTS);
    let mut journal = SledJournal::open(&data.join("journal"))?;
    journal.load()?;
    Ok(journal.install(&farm.snapshot())?)
}

/// All that happens to a build that succeeds, with its objects written.
fn history(number: usize, cache: &Path) -> anyhow::Result<Vec<Event>> {
    let build: BuildId = format!("os/4799.{number}.0").parse()?;
    let job = JobId(number as u64);
    let lease = LeaseId { job, attempt: 1 };
    let at = START.plus(number as u64 * 3_600_000);
    let mut artifacts = Vec::with_capacity(BLOBS);
    for n in 0..BLOBS {
        let text = format!("{number} {n}");
        let blob = Blob::plain(Digest::of(text.as_bytes()), text.len() as u64);
        write(cache, layout::blob(&blob).as_str(), text.as_bytes())?;
        let path = format!("out/{n}").parse()?;
        artifacts.push(Artifact { path, blob, media_type: "application/octet-stream".to_owned(), published: None });
    }
    let spec = spec()?;
    for attempt in 0..LOGS {
        write(cache, layout::log(&build, &spec.name, attempt as u32 + 1).as_str(), b"log")?;
    }
    let manifest = serde_json::json!({
        "schema_version": 1, "build": build, "verdict": "succeeded", "jobs": [{ "name": spec.name, "artifacts": artifacts }],
    });
    write(cache, layout::build_manifest(&build).as_str(), &serde_json::to_vec(&manifest)?)?;
    let plan = Plan {
        build: build.clone(),
        params: BTreeMap::new(),
        platforms: vec![Platform::LinuxAmd64],
        untrusted: false,
        channel: None,
        supersede: None,
        uses: Vec::new(),
        jobs: vec![spec],
    };
    Ok(vec![
        Event::BuildAccepted {
            at,
            plan: Arc::new(plan),
            first_job: job,
            by: "bench".to_owned(),
            key: None,
            trace: Trace::default(),
            priority: Priority::Schedule,
            request: String::new(),
        },
        Event::JobLeased { at, lease, worker: "anvil".parse()? },
        Event::AttemptEnded {
            at,
            lease,
            outcome: Outcome::succeeded(),
            artifacts,
            image: None,
            log_bytes: 3,
            next: Next::End,
        },
        Event::BuildEnded { at, build, error: None },
    ])
}

fn write(cache: &Path, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let file = cache.join(path);
    std::fs::create_dir_all(file.parent().context("a directory")?)?;
    Ok(std::fs::write(file, bytes)?)
}

fn spec() -> anyhow::Result<JobSpec> {
    Ok(JobSpec {
        name: "make@linux/amd64".parse()?,
        needs: Vec::new(),
        image: ImageSource::Registry("debian".to_owned()),
        inputs: Vec::new(),
        lease_ttl_secs: 120,
        retries: 0,
        approval: None,
        concurrency: None,
        pool: None,
        labels: BTreeMap::new(),
        run: Arc::new(RunSpec {
            script: "make".to_owned(),
            env: BTreeMap::new(),
            outputs: Vec::new(),
            commit: false,
            resources: Capacity { cpu_millis: 1_000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, slots: 1 },
            timeout_secs: 3_600,
            silence_timeout_secs: 0,
            privileged: false,
            devices: Vec::new(),
            capabilities: Vec::new(),
            network_none: false,
            host_paths: Vec::new(),
            secrets: Vec::new(),
        }),
    })
}

async fn serve(config: &Path) -> anyhow::Result<()> {
    let config: ControllerConfig = serde_json::from_slice(&std::fs::read(config)?)?;
    let (tell, ready) = oneshot::channel();
    task::spawn("ready", async move {
        // The controller that does not start says why itself.
        if let Ok(railyard_controller::Ready { url, .. }) = ready.await {
            println!("{url}");
        }
    });
    railyard_controller::run(config, CancellationToken::new(), tell).await
}

/// A controller in a process of its own.
struct Controller {
    child: Child,
    url: String,
}

impl Controller {
    fn start(config: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(AS_CONTROLLER).arg(config).stdout(Stdio::piped()).spawn()?;
        let mut url = String::new();
        BufReader::new(child.stdout.take().context("the controller's output")?).read_line(&mut url)?;
        anyhow::ensure!(!url.is_empty(), "the controller does not start; see its words above");
        Ok(Self { child, url: url.trim().to_owned() })
    }

    fn admin(&self, data: &Path) -> anyhow::Result<AdminServiceClient<Channel>> {
        let authority = Authority::open_or_create(&data.join("pki"), "railyard")?;
        let identity = authority.issue_client(&Identity::new(Role::Operator, "bench")?, CLIENT_VALIDITY_SECS)?;
        let (url, ca_pem) = (self.url.clone(), authority.ca_pem().to_owned());
        Ok(AdminServiceClient::new(channel::connect(&Endpoint { url, ca_pem, identity: Some(identity) })?))
    }

    fn peak_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
