//! A build for people: its header, its jobs, what failed.

use super::changes::{finalize_trouble, first_line, why};
use super::style::{Style, Tone};
use super::table::{Cell, Table};
use super::{Console, ansi, human, keep};
use crate::view::{Attempt, Build, Job, JobState};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Everything that `show` shows, but for the graph.
pub fn show(build: &Build, console: &Console) -> String {
    let now = console.now();
    let style = console.out;
    let mut text = header(build, console, now);
    text.push('\n');
    text.push_str(&jobs(build, now).render(style));
    for part in [images(build), approvals(build, now), earlier_attempts(build), failures(build, style)] {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    text
}

/// What the images can be pulled by: one line for each step, whatever its platforms. Empty if there are none.
fn images(build: &Build) -> String {
    let references: BTreeSet<&str> = build.jobs.iter().filter_map(|job| job.image_reference.as_deref()).collect();
    references.into_iter().map(|reference| format!("image: {}\n", ansi::one_line(reference))).collect()
}

/// Attempts that were followed by another: what they died of, told once for neighbours that died alike. Empty if every
/// job had one at most.
fn earlier_attempts(build: &Build) -> String {
    let alike = |one: &Attempt, other: &Attempt| one.worker == other.worker && death(one) == death(other);
    let mut text = String::new();
    for job in &build.jobs {
        let earlier = &job.attempts[..job.attempts.len().saturating_sub(1)];
        for group in earlier.chunk_by(alike) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let numbers = match group.len() {
                1 => format!("attempt {}", first.attempt),
                _ => format!("attempts {} to {}", first.attempt, last.attempt),
            };
            let (kind, why) = death(first);
            let line = format!("{} {numbers} {kind} on {}: {why}", job.name, first.worker);
            let _ = writeln!(text, "{}", ansi::one_line(&line));
        }
    }
    text
}

/// Who approved what. Empty if nothing was.
fn approvals(build: &Build, now: Timestamp) -> String {
    let mut text = String::new();
    for job in &build.jobs {
        let Some((approval, by)) = job.approval.as_ref().and_then(|it| Some((it, it.approved_by.as_ref()?))) else {
            continue;
        };
        let age = approval.approved_at.map(|at| format!(" {}", human::age(at, now))).unwrap_or_default();
        let what = approval.what.as_ref().map(|what| format!(" ({what})")).unwrap_or_default();
        let _ = writeln!(text, "{}", ansi::one_line(&format!("{} approved by {by}{age}{what}", job.name)));
    }
    text
}

/// How an attempt ended, and why.
fn death(attempt: &Attempt) -> (&str, &str) {
    match &attempt.outcome {
        Some(outcome) => (outcome.kind, first_line(&outcome.message).unwrap_or(&outcome.reason)),
        None => ("unfinished", ""),
    }
}

fn header(build: &Build, console: &Console, now: Timestamp) -> String {
    let style = console.out;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let name = format!("{name:<11}");
        let _ = writeln!(text, "{}{value}", style.paint(Tone::Faint, &name));
    };
    line("build", &build.build);
    line("state", &style.paint(Tone::from(build.state), build.state.as_str()));
    if let Some(at) = build.submitted_at {
        let by = build.submitted_by.as_ref().map(|by| format!(" by {}", ansi::one_line(by))).unwrap_or_default();
        line("submitted", &format!("{} ({}){by}", console.date(at), human::age(at, now)));
    }
    if let Some(at) = build.ended_at {
        let took = human::between(build.submitted_at, Some(at)).map(|took| format!(", after {took}"));
        line("ended", &format!("{}{}", console.date(at), took.unwrap_or_default()));
    }
    if let Some(channel) = &build.channel {
        line("channel", &ansi::one_line(channel));
    }
    for one in &build.promotions {
        line("promoted", &keep::promotion(one, now));
    }
    if let Some(channel) = &build.promoting {
        line("promoting", &format!("to {}, which is not ended yet", ansi::one_line(channel)));
    }
    if !build.tags.is_empty() {
        line("tags", &ansi::one_line(&build.tags.join(", ")));
    }
    for one in &build.pins {
        line("pin", &keep::pin(one, now));
    }
    if let Some(left) = keep::left(build, now) {
        line("kept", &left);
    }
    if let Some(tier) = build.tier() {
        line("tier", &format!("{tier}: nothing of it is published or listed for releases"));
    }
    if let Some(priority) = build.unusual_priority() {
        line("priority", &ansi::one_line(priority));
    }
    if !build.uses.is_empty() {
        line("uses", &ansi::one_line(&build.uses.join(", ")));
    }
    if !build.params.is_empty() {
        line("params", &ansi::one_line(&human::pairs(&build.params)));
    }
    if let Some(trace) = &build.trace_id {
        line("trace", trace);
    }
    if let Some(reason) = &build.cancel_reason {
        line("cancelled", &ansi::one_line(reason));
    }
    if let Some(error) = &build.finalize_error {
        line("problem", &ansi::one_line(&finalize_trouble(build, error)));
    }
    text
}

/// The jobs of a build, dependencies first as the farm lists them.
pub fn jobs(build: &Build, now: Timestamp) -> Table {
    let mut table = Table::new(&["JOB", "STATE", "WORKER", ">ATTEMPTS", ">WAITED", ">RAN", "WHY"]);
    for job in &build.jobs {
        let worker = job.last().map_or("", |attempt| attempt.worker.as_str());
        let attempts = if job.attempts.is_empty() { String::new() } else { job.attempts.len().to_string() };
        table.row(vec![
            Cell::from(&job.name),
            Cell::toned(state_word(job), Tone::from(job.state)),
            Cell::from(worker),
            Cell::from(attempts),
            Cell::from(waited(build, job, now).unwrap_or_default()),
            Cell::from(ran(job, now).unwrap_or_default()),
            Cell::from(short_why(job).unwrap_or_default()),
        ]);
    }
    table
}

/// Why it waits or did not run; for a failure one word, because what it means stands below the table.
fn short_why(job: &Job) -> Option<&str> {
    match job.outcome() {
        Some(outcome) if job.state.is_failure() => Some(&outcome.reason),
        _ => why(job),
    }
}

/// `running` with its phase, every other state as it is.
fn state_word(job: &Job) -> String {
    match (job.state, job.last().and_then(|attempt| attempt.phase)) {
        (JobState::Running, Some("fetch")) => "running (fetch)".to_owned(),
        (JobState::Running, Some("upload")) => "running (upload)".to_owned(),
        (state, _) => state.as_str().to_owned(),
    }
}

/// From ready to its first lease, or until now.
fn waited(build: &Build, job: &Job, now: Timestamp) -> Option<String> {
    let leased = job.attempts.first().and_then(|attempt| attempt.leased_at);
    match (job.state, leased) {
        (_, Some(leased)) => human::between(ready_at(build, job), Some(leased)),
        (JobState::Queued, None) => human::between(job.queued_at, Some(now)),
        _ => None,
    }
}

/// When the last job that this one needs ended; for one that needs none, when the build was submitted.
fn ready_at(build: &Build, job: &Job) -> Option<Timestamp> {
    let needs = build.jobs.iter().filter(|other| job.needs.contains(&other.name));
    needs.filter_map(|need| need.ended_at).max().or(build.submitted_at)
}

/// How long the newest attempt took, or takes until now.
pub fn ran(job: &Job, now: Timestamp) -> Option<String> {
    let last = job.last()?;
    let end = last.ended_at.or(job.ended_at).unwrap_or(now);
    human::between(last.leased_at, Some(end))
}

/// What failed, with the last lines of the log and how to see the rest. Empty if nothing did.
pub fn failures(build: &Build, style: Style) -> String {
    let failed: Vec<&Job> = build.jobs.iter().filter(|job| job.state.is_failure()).collect();
    let parts: Vec<String> = failed.iter().map(|job| failure(&build.build, job, style)).collect();
    parts.join("\n")
}

fn failure(build: &str, job: &Job, style: Style) -> String {
    let mut text = String::new();
    let name = ansi::one_line(&job.name);
    let place = job.last().map(|last| format!(" on {} (attempt {})", ansi::one_line(&last.worker), last.attempt));
    let head = format!("{name} {}{}", job.state.as_str(), place.unwrap_or_default());
    let reason = job.outcome().map(|outcome| format!(": {}", ansi::one_line(&outcome.reason))).unwrap_or_default();
    let _ = writeln!(text, "{}{reason}", style.paint(Tone::Bad, &head));
    if let Some(outcome) = job.outcome() {
        for line in ansi::plain(&outcome.message).lines() {
            let _ = writeln!(text, "  {line}");
        }
        if !outcome.log_tail.is_empty() {
            let _ = writeln!(text, "  the last lines of its log:");
        }
        for line in &outcome.log_tail {
            let _ = writeln!(text, "  {} {}", style.paint(Tone::Faint, "|"), ansi::one_line(line));
        }
        // The worker may have said so already.
        if !outcome.message.contains("railyard logs") {
            let _ = writeln!(text, "  see all of it: railyard logs {build} {name}");
        }
    } else if let Some(why) = &job.why {
        let _ = writeln!(text, "  {}", ansi::one_line(why));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::changes::tests::{at, attempt, build, ended_attempt, job};

    #[test]
    fn jobs_and_failures_read_well() {
        let mut sample = build(vec![
            job("packages@linux/amd64", &[]),
            job("image@linux/amd64", &[]),
            job("vms.vhd@linux/amd64", &[]),
        ]);
        sample.jobs[0].state = JobState::Failed;
        sample.jobs[0].ended_at = at(70);
        sample.jobs[0].attempts = vec![
            ended_attempt(1, "w1", [2, 3], "lost", "no word"),
            ended_attempt(2, "w1", [3, 5], "lost", "no word"),
            ended_attempt(3, "w2", [5, 6], "lost", "no word"),
            ended_attempt(4, "w2", [7, 70], "failed", "the script ended with code 2"),
        ];
        sample.jobs[1].state = JobState::Running;
        sample.jobs[1].needs = vec!["packages@linux/amd64".to_owned()];
        sample.jobs[1].attempts = vec![attempt(1, "w1", 90)];
        sample.jobs[2].why = Some("waits for image@linux/amd64".to_owned());

        let table = jobs(&sample, at(100).unwrap()).render(Style::PLAIN);
        assert_eq!(
            table,
            "\
JOB                   STATE    WORKER  ATTEMPTS  WAITED    RAN  WHY
packages@linux/amd64  failed   w2             4    2.0s  1m 3s  exit-code
image@linux/amd64     running  w1             1     20s    10s
vms.vhd@linux/amd64   blocked                                   waits for image@linux/amd64
"
        );
        assert_eq!(
            earlier_attempts(&sample),
            "packages@linux/amd64 attempts 1 to 2 lost on w1: no word\npackages@linux/amd64 attempt 3 lost on w2: no word\n"
        );
        assert_eq!(
            failures(&sample, Style::PLAIN),
            "\
packages@linux/amd64 failed on w2 (attempt 4): exit-code
  the script ended with code 2
  the last lines of its log:
  | cc: error: no input
  see all of it: railyard logs mini/1 packages@linux/amd64
"
        );
    }
}
