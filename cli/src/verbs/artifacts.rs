//! `artifacts` and `fetch`.

mod place;

use crate::args::{BuildArgs, FetchArgs};
use crate::failure::Failure;
use crate::farm::{Farm, chain};
use crate::render::progress::template;
use crate::render::{Console, ansi, human, lists};
use crate::view::{Artifact as Listed, Build};
use futures_util::StreamExt as _;
use indicatif::{MultiProgress, ProgressBar};
use railyard_common::blob::Artifact;
use railyard_common::id::JobName;
use railyard_proto::v1::{SignArtifactsRequest, SignedArtifact};
use railyard_service::channel;
use railyard_service::convert::{parsed, required};
use railyard_transfer::{BlobUrls, Form, MoveError, Settings, Transfer, TransferError, hash_file, silent};
use serde::Serialize;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Files at a time: enough to fill a link with small ones, few enough for bars on a terminal.
const PARALLEL_FILES: usize = 4;

/// Failures that a message names before it only counts.
const NAMED_MAX: usize = 50;

/// Lists what a build left.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn artifacts(args: &BuildArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let build = farm.build(&args.build).await?;
    let artifacts: Vec<&Listed> = build.artifacts().collect();
    if console.is_json() {
        return console.json(&artifacts);
    }
    if artifacts.is_empty() {
        console.note(&format!("{} has no artifacts; its state is {}", build.build, build.state.as_str()));
        return Ok(());
    }
    console.print(&lists::artifacts(artifacts).render(console.out))
}

/// Downloads artifacts.
///
/// # Errors
/// [`Failure::Farm`]; [`Failure::Failed`] if nothing matches or a file cannot be had.
pub async fn fetch(args: &FetchArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.farm).await?;
    let wanted = SignArtifactsRequest { build: args.build.clone(), paths: args.paths.clone() };
    let signed = sign(&farm, &wanted).await?;
    if signed.is_empty() {
        return Err(nothing(&farm.build(&args.build).await?));
    }
    let http = channel::http_client(farm.endpoint()).map_err(|error| Failure::Usage(chain(&error)))?;
    let fetcher = Fetcher {
        farm,
        wanted,
        transfer: Transfer::new(http, Settings::default()),
        console,
        bars: console.err.terminal.then(MultiProgress::new),
    };
    let files = place::place(&args.dir(), signed)?;
    let (fetched, failed) = each(files, |(dest, file)| fetcher.fetch(dest, file)).await;
    if console.is_json() {
        console.json(&fetched)?;
    } else {
        console.print(&fetched.iter().map(|file| format!("{}\n", file.file.display())).collect::<String>())?;
    }
    failed.map_or(Ok(()), Err)
}

/// Fetches one file after the other, some at a time: those that came, and what became of the others. One that cannot be had
/// keeps no other from coming, unless it is for a reason that would keep them all.
async fn each<F, T>(files: Vec<F>, fetch: impl Fn(F) -> T) -> (Vec<Fetched>, Option<Failure>)
where
    T: Future<Output = Result<Fetched, Fault>>,
{
    let (fetch, count, is_over) = (&fetch, files.len(), &Cell::new(false));
    let one = |file| async move {
        if is_over.get() {
            return None;
        }
        let done = fetch(file).await;
        if done.as_ref().is_err_and(|fault| fault.is_of_all) {
            is_over.set(true);
        }
        Some(done)
    };
    let ended: Vec<_> = futures_util::stream::iter(files).map(one).buffered(PARALLEL_FILES).collect().await;
    let (mut fetched, mut faults) = (Vec::new(), Vec::new());
    for done in ended.into_iter().flatten() {
        match done {
            Ok(file) => fetched.push(file),
            Err(fault) => faults.push(fault),
        }
    }
    let untried = count - fetched.len() - faults.len();
    (fetched, all(faults, count, untried))
}

/// One failure that names them all.
fn all(mut faults: Vec<Fault>, count: usize, untried: usize) -> Option<Failure> {
    if faults.len() == 1 && untried == 0 {
        return faults.pop().map(|fault| fault.failure);
    }
    let is_farm = faults.first().map(|fault| matches!(fault.failure, Failure::Farm(_)))?;
    let mut message = format!("{} of {count} files could not be fetched", faults.len());
    if untried > 0 {
        message.push_str(&format!(", and {untried} were not tried"));
    }
    for fault in faults.iter().take(NAMED_MAX) {
        if let Failure::Failed(why) | Failure::Farm(why) | Failure::Usage(why) = &fault.failure {
            message.push_str(&format!("\n  {why}"));
        }
    }
    if let Some(more) = faults.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        message.push_str(&format!("\n  and {more} more"));
    }
    Some(if is_farm { Failure::Farm(message) } else { Failure::Failed(message) })
}

/// Why a file was not fetched.
struct Fault {
    failure: Failure,
    /// What keeps this one keeps all others, too.
    is_of_all: bool,
}

impl Fault {
    fn new(dest: &Path, error: &TransferError) -> Self {
        let failure = Failure::Failed(format!("cannot fetch {}: {}", dest.display(), chain(error)));
        // Of the last two only after a long time of trying.
        let is_of_all = matches!(
            error,
            TransferError::DiskFull { .. } | TransferError::Stalled { .. } | TransferError::Network { .. }
        );
        Self { failure, is_of_all }
    }

    fn of_this(failure: Failure) -> Self {
        Self { failure, is_of_all: false }
    }
}

/// Why there is nothing to fetch.
fn nothing(build: &Build) -> Failure {
    let name = &build.build;
    Failure::Failed(match build.keep.as_deref() {
        Some("manifest") => format!(
            "retention has kept only the manifest and the logs of {name}, and none of its artifacts; `railyard show {name}` tells since when and why"
        ),
        Some("published") => format!(
            "retention has kept only what {name} published, and it published nothing; `railyard show {name}` tells since when and why"
        ),
        _ => format!("{name} has no artifacts; `railyard show {name}` tells how far it is"),
    })
}

/// A file to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    job: JobName,
    artifact: Artifact,
    url: String,
}

/// A file that was.
#[derive(Debug, Serialize)]
struct Fetched {
    job: String,
    path: String,
    file: PathBuf,
    size_bytes: u64,
    digest: String,
    /// False if it was there already.
    transferred: bool,
}

async fn sign(farm: &Farm, wanted: &SignArtifactsRequest) -> Result<Vec<Wanted>, Failure> {
    let answer = farm.client().sign_artifacts(farm.request(wanted.clone())).await;
    let answer = answer.map_err(|status| farm.refused(&status))?.into_inner();
    let read = |signed: SignedArtifact| {
        let (job, artifact) = (parsed("job", &signed.job)?, required("artifact", signed.artifact)?);
        Ok(Wanted { job, artifact, url: signed.url })
    };
    let bad = |error: railyard_service::convert::BadMessage| {
        Failure::Farm(format!("the farm's answer is not usable: {error}"))
    };
    answer.artifacts.into_iter().map(read).collect::<Result<_, _>>().map_err(bad)
}

struct Fetcher<'a> {
    farm: Farm,
    wanted: SignArtifactsRequest,
    transfer: Transfer,
    console: &'a Console,
    bars: Option<MultiProgress>,
}

impl Fetcher<'_> {
    async fn fetch(&self, dest: PathBuf, file: Wanted) -> Result<Fetched, Fault> {
        let there = is_there(&dest, &file.artifact).await;
        if !there {
            if let Some(dir) = dest.parent() {
                let doing = || format!("fetch {}: cannot make the directory {}", dest.display(), dir.display());
                let failed = |error| Fault::of_this(Failure::local(doing(), error));
                tokio::fs::create_dir_all(dir).await.map_err(failed)?;
            }
            self.pull(&dest, &file).await.map_err(|error| match error {
                MoveError::Transfer(error) => Fault::new(&dest, &error),
                MoveError::Urls(fault) => fault,
            })?;
        }
        let blob = file.artifact.blob;
        let size = human::size(blob.size_bytes);
        let word = if there { "is there already" } else { "fetched and verified" };
        self.say(&format!("{} {word} ({size})", dest.display()));
        Ok(Fetched {
            job: file.job.to_string(),
            path: file.artifact.path.to_string(),
            file: dest,
            size_bytes: blob.size_bytes,
            digest: blob.digest.to_string(),
            transferred: !there,
        })
    }

    async fn pull(&self, dest: &Path, file: &Wanted) -> Result<(), MoveError<Fault>> {
        let blob = &file.artifact.blob;
        let urls = Urls { fetcher: self, file, is_first: AtomicBool::new(true) };
        let Some(bars) = &self.bars else {
            return self.transfer.pull_from(&urls, blob, dest, Form::Plain, None, &silent).await;
        };
        let style =
            template("{prefix}  {bar:24.green} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta}");
        let name = ansi::one_line(file.artifact.path.as_str());
        let bar = bars.add(ProgressBar::new(blob.stored_bytes).with_style(style).with_prefix(name));
        let show = |bytes| bar.set_position(bytes);
        let pulled = self.transfer.pull_from(&urls, blob, dest, Form::Plain, None, &show).await;
        bar.finish_and_clear();
        bars.remove(&bar);
        pulled
    }

    async fn sign_again(&self, file: &Wanted) -> Result<String, Fault> {
        let of_all = |failure| Fault { failure, is_of_all: true };
        let signed = sign(&self.farm, &self.wanted).await.map_err(of_all)?;
        let same = signed.into_iter().find(|other| other.job == file.job && other.artifact == file.artifact);
        same.map(|other| other.url).ok_or_else(|| {
            let gone = format!("{} of {} is not in the farm any more", file.artifact.path, file.job);
            Fault::of_this(Failure::Failed(gone))
        })
    }

    fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| self.console.note(line)),
            None => self.console.note(line),
        }
    }
}

/// Where a file is in the cache: the URL of the list, and others when that is too old, as it may be at the end of a long queue.
struct Urls<'a> {
    fetcher: &'a Fetcher<'a>,
    file: &'a Wanted,
    is_first: AtomicBool,
}

impl BlobUrls for Urls<'_> {
    type Error = Fault;

    async fn sign(&self) -> Result<String, Fault> {
        match self.is_first.swap(false, Ordering::Relaxed) {
            true => Ok(self.file.url.clone()),
            false => self.fetcher.sign_again(self.file).await,
        }
    }
}

/// Whether the very file lies there.
async fn is_there(dest: &Path, artifact: &Artifact) -> bool {
    let same_size =
        tokio::fs::metadata(dest).await.is_ok_and(|meta| meta.is_file() && meta.len() == artifact.blob.size_bytes);
    same_size && hash_file(dest).await.is_ok_and(|hashed| hashed.digest == artifact.blob.digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::blob::Blob;
    use railyard_common::digest::Digest;

    pub(super) fn wanted(job: &str, path: &str) -> Wanted {
        let artifact = Artifact {
            path: path.parse().unwrap(),
            blob: Blob::plain(Digest::of(b"x"), 1),
            media_type: String::new(),
            published: None,
        };
        Wanted { job: job.parse().unwrap(), artifact, url: String::new() }
    }

    fn fetched(name: &str) -> Fetched {
        let (job, path, digest) = (String::new(), name.to_owned(), String::new());
        Fetched { job, path, file: name.into(), size_bytes: 1, digest, transferred: true }
    }

    fn message(failure: Option<Failure>) -> String {
        match failure {
            Some(Failure::Failed(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_had_keeps_no_other_from_coming() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b"), "").unwrap();
        let fetch = |name: &'static str| {
            let path = dir.path().join(name);
            async move {
                let gone = |source| TransferError::Io { what: "write", path: path.clone(), source };
                std::fs::write(&path, "x").map_err(|error| Fault::new(Path::new(name), &gone(error)))?;
                Ok(fetched(name))
            }
        };
        let (came, failed) = each(vec!["a", "b/1", "b/2", "c", "d", "e", "f"], fetch).await;
        assert_eq!(came.iter().map(|file| file.path.as_str()).collect::<String>(), "acdef");
        let message = message(failed);
        assert!(
            message.starts_with("2 of 7 files could not be fetched\n  cannot fetch b/1: cannot write "),
            "{message}"
        );
        assert!(message.contains("\n  cannot fetch b/2: "), "{message}");
        let (came, failed) = each(vec!["a", "c"], fetch).await;
        assert!(came.len() == 2 && failed.is_none());
    }

    #[tokio::test]
    async fn a_full_disk_ends_them_all() {
        let full = TransferError::DiskFull { path: "x".into() };
        let names: Vec<usize> = (0..100).collect();
        let (came, failed) = each(names, |n| {
            let done = if n < 10 { Ok(fetched("x")) } else { Err(Fault::new(Path::new("x"), &full)) };
            async move { done }
        })
        .await;
        assert_eq!(came.len(), 10);
        assert!(message(failed).starts_with(
            "1 of 100 files could not be fetched, and 89 were not tried\n  cannot fetch x: the disk is full"
        ));
    }

    #[tokio::test]
    async fn only_the_very_file_counts_as_there() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("f");
        let artifact = wanted("a@linux/amd64", "f").artifact;
        assert!(!is_there(&dest, &artifact).await);
        std::fs::write(&dest, "y").unwrap();
        assert!(!is_there(&dest, &artifact).await);
        std::fs::write(&dest, "x").unwrap();
        assert!(is_there(&dest, &artifact).await);
    }
}
