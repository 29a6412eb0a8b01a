//! What a build must not leave on the machine.

use crate::store::Store;
use anyhow::ensure;
use railyard_tests::engine::Engine;
use railyard_tests::farm::files_below;
use railyard_tests::processes;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where to look.
pub struct Places<'a> {
    /// A client of the engine.
    pub engine: &'a Engine,
    /// The engine's own directory.
    pub engine_dir: &'a Path,
    /// The workers' data directories.
    pub workers: &'a [PathBuf],
    /// The controller's data directory.
    pub controller: &'a Path,
    /// What every process of the farm takes for the directory of temporary files.
    pub temp: &'a Path,
    /// The S3 service.
    pub store: &'a Store,
}

/// What the engine had before the first build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Before {
    images: BTreeSet<String>,
    networks: BTreeSet<String>,
    volumes: BTreeSet<String>,
}

impl Before {
    /// What is there now.
    ///
    /// # Errors
    /// If the engine does not answer.
    pub fn of(engine: &Engine) -> anyhow::Result<Self> {
        Ok(Self {
            images: lines(engine, &["images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"])?,
            // By name: the engine makes its own networks anew when it starts.
            networks: lines(engine, &["network", "ls", "--format", "{{.Name}} {{.Driver}}"])?,
            volumes: lines(engine, &["volume", "ls", "--quiet"])?,
        })
    }
}

/// Looks everywhere once.
///
/// # Errors
/// With what lies around, where.
pub fn check(places: &Places<'_>, before: &Before) -> anyhow::Result<()> {
    let containers = lines(places.engine, &["ps", "--all", "--format", "{{.ID}} {{.Names}} {{.Status}}"])?;
    ensure!(containers.is_empty(), "containers: {containers:?}");
    let now = Before::of(places.engine)?;
    ensure!(now == *before, "the engine had {before:?} and has {now:?}");
    let steps = processes_of_steps(places.engine_dir);
    ensure!(steps.is_empty(), "processes of steps: {steps:?}");
    for data in places.workers {
        let jobs = files_below(&data.join("jobs"));
        ensure!(jobs.is_empty(), "files of jobs: {jobs:?}");
        let unfinished: Vec<PathBuf> = unfinished(data).into_iter().filter(|path| !is_broken_off(path, data)).collect();
        ensure!(unfinished.is_empty(), "unfinished files: {unfinished:?}");
        let record = std::fs::read_to_string(data.join("images.json")).unwrap_or_default();
        ensure!(!record.contains("\"build\""), "{} has images of a build on record: {record}", data.display());
    }
    let unfinished_here = unfinished(places.controller);
    ensure!(unfinished_here.is_empty(), "unfinished files: {unfinished_here:?}");
    let logs: Vec<PathBuf> =
        files_below(&places.controller.join("logs")).into_iter().filter(|path| path.is_file()).collect();
    ensure!(logs.is_empty(), "logs that were not filed: {logs:?}");
    let temp = files_below(places.temp);
    ensure!(temp.is_empty(), "temporary files: {temp:?}");
    let half_written: Vec<PathBuf> =
        files_below(&places.store.bucket()).into_iter().filter(|path| is_part(path)).collect();
    ensure!(half_written.is_empty(), "half-written objects: {half_written:?}");
    Ok(())
}

/// Files that are named like something on its way.
fn unfinished(dir: &Path) -> Vec<PathBuf> {
    files_below(dir).into_iter().filter(|path| is_part(path)).collect()
}

/// A blob whose fetch was broken off, by a kill that outlasted the lease for instance: the next fetch goes on with it. Until then
/// it counts as one of the worker's blobs, whose sizes are limited in all, and goes like them.
fn is_broken_off(path: &Path, data: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let blob = name.strip_prefix(".railyard-").and_then(|name| name.strip_suffix(".part")?.rsplit_once('-'));
    let digest = blob.map(|(name, _)| name.strip_suffix(".zst").unwrap_or(name));
    let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    path.parent() == Some(data.join("blobs").as_path()) && digest.is_some_and(is_hex)
}

fn is_part(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    [".part", ".tmp", ".new", ".staging"].iter().any(|ending| name.ends_with(ending)) || name.starts_with(".tmp")
}

/// Command lines of what runs in containers of the engine in `dir`, whether the engine knows of them or not: the children of
/// shims. A shim without a child may stay: an engine that is killed while it starts a container forgets about it.
fn processes_of_steps(dir: &Path) -> Vec<String> {
    let running = processes::all();
    let shims: BTreeSet<u32> = processes::shims_of(dir).into_iter().collect();
    running.into_iter().filter(|process| shims.contains(&process.parent)).map(|process| process.command).collect()
}

fn lines(engine: &Engine, args: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let output = engine.docker(args);
    ensure!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
