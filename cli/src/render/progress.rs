//! How a build is going, while somebody waits: bars on a terminal, lines in a pipe. All of it on stderr.

use super::changes::{Change, changes};
use super::style::Tone;
use super::{Console, ansi, human};
use crate::view::{Build, Job, JobState};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a spinner turns: often enough to look alive, seldom enough to cost nothing over ssh.
const TICK: Duration = Duration::from_millis(120);
/// The summary shows whole seconds.
const SUMMARY_TICK: Duration = Duration::from_secs(1);

/// Follows one build.
pub struct Progress {
    console: Console,
    before: Option<Build>,
    bars: Option<Bars>,
}

impl Progress {
    /// Bars if stderr is a terminal, lines if not.
    pub fn new(console: &Console) -> Self {
        Self { console: console.clone(), before: None, bars: console.err.terminal.then(Bars::new) }
    }

    /// Shows what changed.
    pub fn update(&mut self, build: &Build) {
        for change in changes(self.before.as_ref(), build) {
            if self.bars.is_none() || !change.routine {
                let line = self.line(&change);
                self.say(&line);
            }
        }
        if let Some(bars) = &mut self.bars {
            bars.update(build, self.console.now());
        }
        self.before = Some(build.clone());
    }

    /// Tells something in between, without tearing the bars.
    pub fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => bars.all.suspend(|| self.console.note(line)),
            None => self.console.note(line),
        }
    }

    /// Takes the bars away.
    pub fn finish(&mut self) {
        if let Some(bars) = self.bars.take() {
            bars.clear();
        }
    }

    fn line(&self, change: &Change) -> String {
        let at = self.console.time(change.at.unwrap_or_else(|| self.console.now()));
        let style = self.console.err;
        format!("{} {}", style.paint(Tone::Faint, &at), style.paint(change.tone, &ansi::one_line(&change.text)))
    }
}

/// One spinner for each running job, and a bar for the build below them.
struct Bars {
    all: MultiProgress,
    summary: ProgressBar,
    running: BTreeMap<String, (u32, ProgressBar)>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let summary =
            all.add(ProgressBar::new(0).with_style(template("{bar:24.green} {pos}/{len} jobs  {elapsed}  {msg}")));
        Self { all, summary, running: BTreeMap::new() }
    }

    fn update(&mut self, build: &Build, now: Timestamp) {
        let is_running = |name: &str, attempt: u32| {
            let job = build.jobs.iter().find(|job| job.name == name && job.state == JobState::Running);
            job.and_then(Job::last).is_some_and(|last| last.attempt == attempt)
        };
        self.running.retain(|name, (attempt, bar)| {
            let stays = is_running(name, *attempt);
            if !stays {
                bar.finish_and_clear();
                self.all.remove(bar);
            }
            stays
        });
        for job in build.jobs.iter().filter(|job| job.state == JobState::Running) {
            self.show(job, now);
        }
        let over = build.jobs.iter().filter(|job| job.state.is_over()).count();
        self.summary.set_length(build.jobs.len() as u64);
        self.summary.set_position(over as u64);
        self.summary.set_elapsed(since(build.submitted_at, now));
        self.summary.set_message(summary(build));
        self.summary.enable_steady_tick(SUMMARY_TICK);
    }

    fn show(&mut self, job: &Job, now: Timestamp) {
        let Some(last) = job.last() else { return };
        let doing = match last.phase {
            Some("fetch") => "fetching inputs",
            Some("upload") => "sending outputs",
            _ => "running",
        };
        let (all, summary) = (&self.all, &self.summary);
        let (_, bar) = self.running.entry(job.name.clone()).or_insert_with(|| {
            let spinner = ProgressBar::new_spinner()
                .with_style(template("{spinner:.cyan} {prefix}  {msg}  {elapsed}"))
                .with_prefix(ansi::one_line(&job.name))
                .with_elapsed(since(last.leased_at, now));
            let bar = all.insert_before(summary, spinner);
            bar.enable_steady_tick(TICK);
            (last.attempt, bar)
        });
        let again = if last.attempt > 1 { format!(" (attempt {})", last.attempt) } else { String::new() };
        bar.set_message(format!("{doing} on {}{again}", ansi::one_line(&last.worker)));
    }

    fn clear(self) {
        for (_, bar) in self.running.values() {
            bar.finish_and_clear();
        }
        self.summary.finish_and_clear();
        let _ = self.all.clear();
    }
}

fn since(at: Option<Timestamp>, now: Timestamp) -> Duration {
    Duration::from_millis(at.map_or(0, |at| human::millis_between(at, now)))
}

/// `2 running, 1 queued`
fn summary(build: &Build) -> String {
    let states = [JobState::Running, JobState::Queued, JobState::AwaitsApproval, JobState::Failed, JobState::TimedOut];
    let word = |state| if state == JobState::AwaitsApproval { "to approve" } else { JobState::as_str(state) };
    let counted = states.into_iter().chain([JobState::Lost]).map(|state| (build.count(state), word(state)));
    let parts: Vec<String> =
        counted.filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    parts.join(", ")
}

/// A style from a template of this program.
pub fn template(text: &'static str) -> ProgressStyle {
    let style = ProgressStyle::with_template(text).expect("the templates of this program are valid");
    style.progress_chars("━━╌")
}
