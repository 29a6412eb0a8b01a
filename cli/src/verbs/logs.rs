//! `logs`: what jobs wrote, and what they are writing.

use crate::args::LogsArgs;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::patience::{Patience, Say, Watch};
use crate::render::Console;
use crate::render::log::{Piece, Printer, Shape};
use crate::view::{Build, Job};
use railyard_common::id::{BadId, JobName, JobSelector};
use railyard_proto::v1::{LogChunk, ReadLogRequest};
use std::collections::BTreeSet;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

/// Chunks that wait for a slow terminal, from all jobs together: a reader that is ahead of it stops reading.
const CHUNKS_WAITING: usize = 16;

/// Prints logs.
///
/// # Errors
/// [`Failure::Usage`] for what cannot name a job, [`Failure::Farm`] also if there is no such job.
pub async fn logs(args: &LogsArgs, console: &Console) -> Result<(), Failure> {
    let asked = args.job.as_deref();
    let selector = asked.map(str::parse).transpose().map_err(|error: BadId| Failure::Usage(error.to_string()))?;
    let farm = Farm::open(&args.ask.farm).await?;
    let build = farm.build(&args.build).await?;
    let chosen = choose(&build, selector.as_ref(), asked)?;
    let shape = match (console.is_json(), chosen.as_slice()) {
        (true, _) => Shape::Json,
        (false, [_]) => Shape::Raw,
        (false, many) => Shape::Named { width: many.iter().map(String::len).max().unwrap_or(0) },
    };
    let mut log = Logs {
        farm,
        build: build.build.clone(),
        attempt: args.attempt,
        console,
        printer: Printer::new(shape, console.out),
        shape,
    };
    if args.follow { log.follow(chosen).await } else { log.read(&build, &chosen).await }
}

/// The names of the jobs that were asked for.
fn choose(build: &Build, selector: Option<&JobSelector>, asked: Option<&str>) -> Result<Vec<String>, Failure> {
    let matches = |job: &&Job| match (selector, job.name.parse::<JobName>()) {
        (None, _) => true,
        (Some(selector), Ok(name)) => selector.matches(&name),
        (Some(_), Err(_)) => false,
    };
    let chosen: Vec<String> = build.jobs.iter().filter(matches).map(|job| job.name.clone()).collect();
    if chosen.is_empty() {
        let (build, asked) = (&build.build, asked.unwrap_or_default());
        return Err(Failure::Farm(format!("{build} has no job `{asked}`; `railyard show {build}` lists its jobs")));
    }
    Ok(chosen)
}

struct Logs<'a> {
    farm: Farm,
    build: String,
    attempt: Option<u32>,
    console: &'a Console,
    printer: Printer,
    shape: Shape,
}

impl Logs<'_> {
    /// What there is now, job by job.
    async fn read(&mut self, build: &Build, chosen: &[String]) -> Result<(), Failure> {
        for job in build.jobs.iter().filter(|job| chosen.contains(&job.name)) {
            let Some(last) = job.last() else {
                if chosen.len() == 1 {
                    self.has_not_run(job);
                }
                continue;
            };
            let attempt = self.attempt.unwrap_or(last.attempt);
            if attempt > last.attempt {
                let (name, last) = (&job.name, last.attempt);
                return Err(Failure::Usage(format!("{name} has no attempt {attempt}; its last is {last}")));
            }
            let mut reader = Reader::new(&self.farm, &self.build, &job.name, attempt, false);
            while let Some(chunk) = reader.next(&|line| self.console.note(line)).await? {
                self.print(&job.name, attempt, &chunk)?;
            }
            self.console.write(&self.printer.end(&job.name, attempt))?;
        }
        if chosen.len() > 1 && build.jobs.iter().all(|job| job.attempts.is_empty()) {
            self.console.note(&format!("no job of {} has run yet", build.build));
        }
        Ok(())
    }

    fn has_not_run(&self, job: &Job) {
        let why = job.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        self.console.note(&format!("{} has not run, it is {}{why}", job.name, job.state.as_str()));
    }

    /// What there is and what comes, of all chosen jobs at once, until all of them have ended.
    async fn follow(&mut self, chosen: Vec<String>) -> Result<(), Failure> {
        let (sender, mut chunks) = mpsc::channel(CHUNKS_WAITING);
        let mut readers: JoinSet<Result<(), Failure>> = JoinSet::new();
        let mut begun = BTreeSet::new();
        let mut watch = Some(Watch::new(&self.farm, &self.build));
        let console = self.console;
        loop {
            tokio::select! {
                biased;
                Some(event) = chunks.recv() => self.take(event)?,
                Some(ended) = readers.join_next(), if !readers.is_empty() => {
                    ended.map_err(|error| Failure::local("read the log", error))??;
                }
                build = look(&mut watch, console), if watch.is_some() => {
                    let build = build?;
                    for (job, attempt) in self.news(&build, &chosen, &mut begun) {
                        readers.spawn(forward(Reader::new(&self.farm, &self.build, &job, attempt, true), sender.clone()));
                    }
                    let over = |job: &Job| job.state.is_over() || !chosen.contains(&job.name);
                    if build.state.is_over() || build.jobs.iter().all(over) {
                        watch = None;
                        for job in build.jobs.iter().filter(|job| chosen == [job.name.as_str()] && job.attempts.is_empty()) {
                            self.has_not_run(job);
                        }
                    }
                }
                else => break,
            }
            if watch.is_none() && readers.is_empty() {
                break;
            }
        }
        while let Ok(event) = chunks.try_recv() {
            self.take(event)?;
        }
        Ok(())
    }

    /// Attempts that nobody reads yet. Of what lies in the past only a job's last attempt counts.
    fn news(&self, build: &Build, chosen: &[String], begun: &mut BTreeSet<(String, u32)>) -> Vec<(String, u32)> {
        let mut news = Vec::new();
        for job in build.jobs.iter().filter(|job| chosen.contains(&job.name)) {
            let Some(last) = job.last() else { continue };
            let attempt = self.attempt.unwrap_or(last.attempt);
            let key = (job.name.clone(), attempt);
            if attempt > last.attempt || !begun.insert(key.clone()) {
                continue;
            }
            if self.shape == Shape::Raw && attempt > 1 {
                self.console.note(&format!("-- attempt {attempt} of {} on {}", job.name, last.worker));
            }
            news.push(key);
        }
        news
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        match event {
            Event::Chunk { job, attempt, chunk } => self.print(&job, attempt, &chunk),
            Event::End { job, attempt } => self.console.write(&self.printer.end(&job, attempt)),
        }
    }

    fn print(&mut self, job: &str, attempt: u32, chunk: &LogChunk) -> Result<(), Failure> {
        let piece = Piece { job, attempt, offset: chunk.offset, data: &chunk.data };
        self.console.log(&mut self.printer, &piece)
    }
}

/// The next look at the build; never, where nobody looks any more.
async fn look(watch: &mut Option<Watch>, console: &Console) -> Result<Build, Failure> {
    match watch {
        Some(watch) => watch.next(&|line| console.note(line)).await,
        None => std::future::pending().await,
    }
}

/// From one job's reader to the one printer.
enum Event {
    Chunk { job: String, attempt: u32, chunk: LogChunk },
    End { job: String, attempt: u32 },
}

async fn forward(mut reader: Reader, sender: mpsc::Sender<Event>) -> Result<(), Failure> {
    let (job, attempt) = (reader.request.job.clone(), reader.request.attempt);
    // The watch tells about lost connections, once for all readers.
    while let Some(chunk) = reader.next(&|_| {}).await? {
        let event = Event::Chunk { job: job.clone(), attempt, chunk };
        if sender.send(event).await.is_err() {
            return Ok(());
        }
    }
    let _ = sender.send(Event::End { job, attempt }).await;
    Ok(())
}

/// One attempt's log from its beginning, across lost connections.
struct Reader {
    farm: Farm,
    /// Its offset is the next byte that is wanted.
    request: ReadLogRequest,
    stream: Option<Streaming<LogChunk>>,
    patience: Patience,
}

impl Reader {
    fn new(farm: &Farm, build: &str, job: &str, attempt: u32, follow: bool) -> Self {
        let request = ReadLogRequest { build: build.to_owned(), job: job.to_owned(), attempt, offset: 0, follow };
        Self { farm: farm.clone(), request, stream: None, patience: Patience::default() }
    }

    /// The next bytes; none at the end.
    async fn next(&mut self, say: Say<'_>) -> Result<Option<LogChunk>, Failure> {
        loop {
            match self.try_next().await {
                Ok(None) => return Ok(None),
                Ok(Some(chunk)) => {
                    self.patience.restored(say);
                    if let Some(fresh) = fresh_part(chunk, &mut self.request.offset) {
                        return Ok(Some(fresh));
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.patience.lost(&self.farm, &status, say).await?;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<LogChunk>, Status> {
        if self.stream.is_none() {
            let request = self.farm.stream_request(self.request.clone());
            self.stream = Some(self.farm.client().read_log(request).await?.into_inner());
        }
        match &mut self.stream {
            Some(stream) => stream.message().await,
            None => Ok(None),
        }
    }
}

/// What of the chunk was not seen before; moves `wanted` behind it.
fn fresh_part(mut chunk: LogChunk, wanted: &mut u64) -> Option<LogChunk> {
    let end = chunk.offset + chunk.data.len() as u64;
    if end <= *wanted {
        return None;
    }
    let seen = usize::try_from(wanted.saturating_sub(chunk.offset)).unwrap_or(usize::MAX).min(chunk.data.len());
    chunk.offset += seen as u64;
    chunk.data = chunk.data.slice(seen..);
    *wanted = end;
    Some(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::changes::tests::{build, job};

    #[test]
    fn nothing_is_printed_twice_after_a_reconnect() {
        let chunk = |offset, data: &'static str| LogChunk { offset, data: data.as_bytes().to_vec().into() };
        let mut wanted = 0;
        assert_eq!(fresh_part(chunk(0, "abc"), &mut wanted), Some(chunk(0, "abc")));
        assert_eq!(fresh_part(chunk(0, "abc"), &mut wanted), None);
        assert_eq!(fresh_part(chunk(1, "bcde"), &mut wanted), Some(chunk(3, "de")));
        // What the farm cut out is skipped, as the farm says.
        assert_eq!(fresh_part(chunk(100, "z"), &mut wanted), Some(chunk(100, "z")));
        assert_eq!(wanted, 101);
    }

    #[test]
    fn jobs_are_chosen_by_what_is_named() {
        let sample = build(vec![
            job("vms.vhd@linux/amd64", &[]),
            job("vms.vhd@linux/arm64", &[]),
            job("image@linux/amd64", &[]),
        ]);
        let chosen = |text: &str| choose(&sample, Some(&text.parse().unwrap()), Some(text));
        assert_eq!(chosen("vms").unwrap().len(), 2);
        assert_eq!(chosen("vms@linux/arm64").unwrap(), ["vms.vhd@linux/arm64"]);
        assert_eq!(choose(&sample, None, None).unwrap().len(), 3);
        assert!(
            matches!(chosen("tests"), Err(Failure::Farm(message)) if message.contains("`tests`") && message.contains("railyard show mini/1"))
        );
    }
}
