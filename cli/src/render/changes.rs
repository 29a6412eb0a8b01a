//! What happened between two looks at a build, as sentences.

use super::human;
use super::style::Tone;
use crate::view::{Attempt, Build, BuildState, Job, JobState};
use jiff::Timestamp;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// When, if the farm said so.
    pub at: Option<Timestamp>,
    /// A line without time.
    pub text: String,
    /// How it should look.
    pub tone: Tone,
    /// Bars show it already: plain lines only.
    pub routine: bool,
}

impl Change {
    fn new(at: Option<Timestamp>, tone: Tone, text: String) -> Self {
        Self { at, text, tone, routine: false }
    }
}

/// What happened from `before` (nothing, for the first look) to `now`, in order of time.
pub fn changes(before: Option<&Build>, now: &Build) -> Vec<Change> {
    let mut found = Vec::new();
    for job in &now.jobs {
        let earlier = before.and_then(|build| build.jobs.iter().find(|other| other.name == job.name));
        of_job(earlier, job, &mut found);
    }
    // Stable, and what has no time stays behind what has.
    found.sort_by_key(|change| change.at.unwrap_or(Timestamp::MAX));
    of_build(before, now, &mut found);
    found
}

fn of_job(before: Option<&Job>, now: &Job, found: &mut Vec<Change>) {
    let name = &now.name;
    let was = before.map_or(JobState::Blocked, |job| job.state);
    if was.is_over() && !now.state.is_over() {
        found.push(Change::new(None, Tone::Plain, format!("{name} will run again")));
    }
    let approver = |job: &Job| job.approval.as_ref().and_then(|approval| approval.approved_by.clone());
    if let (Some(by), None) = (approver(now), before.and_then(approver)) {
        let at = now.approval.as_ref().and_then(|approval| approval.approved_at);
        found.push(Change::new(at, Tone::Plain, format!("{name} approved by {by}")));
    }
    for attempt in &now.attempts {
        let earlier = before.and_then(|job| job.attempts.iter().find(|other| other.attempt == attempt.attempt));
        of_attempt(now, earlier, attempt, found);
    }
    if now.state != was && now.state.is_over() {
        found.push(ended(now));
    }
    if let (JobState::AwaitsApproval, true, Some(why)) = (now.state, now.state != was, &now.why) {
        found.push(Change::new(None, Tone::Heading, format!("{name} {why}")));
    }
    let waited_for = before.filter(|job| job.state == JobState::Queued).and_then(|job| job.why.as_deref());
    if let (JobState::Queued, Some(why)) = (now.state, &now.why)
        && waited_for.map(without_numbers) != Some(without_numbers(why))
    {
        found.push(Change::new(None, Tone::Plain, format!("{name} waits: {why}")));
    }
}

fn of_attempt(job: &Job, before: Option<&Attempt>, now: &Attempt, found: &mut Vec<Change>) {
    let (name, worker, number) = (&job.name, &now.worker, now.attempt);
    if before.is_none() {
        let text = format!("{name} running on {worker} (attempt {number})");
        found.push(Change { routine: true, ..Change::new(now.leased_at, Tone::Plain, text) });
    }
    let told = before.is_some_and(|attempt| attempt.outcome.is_some());
    // The last attempt's end is the job's end, which is told by itself.
    let is_last = job.state.is_over() && job.last().is_some_and(|last| last.attempt == number);
    if let (Some(outcome), false, false) = (&now.outcome, told, is_last) {
        let message = first_line(&outcome.message).unwrap_or(&outcome.reason);
        let text = format!("{name} {} on {worker} (attempt {number}): {message}", outcome.kind);
        found.push(Change::new(now.ended_at, Tone::Bad, text));
    }
}

fn ended(job: &Job) -> Change {
    let last = job.last();
    let ran = last.and_then(|attempt| human::between(attempt.leased_at, attempt.ended_at.or(job.ended_at)));
    let mut text = format!("{} {}", job.name, job.state.as_str());
    match (job.state, ran) {
        (JobState::Succeeded, Some(ran)) => text.push_str(&format!(" in {ran}")),
        (state, Some(ran)) if state.is_failure() => text.push_str(&format!(" after {ran}")),
        _ => {}
    }
    if let Some(why) = why(job) {
        text.push_str(&format!(": {why}"));
    }
    Change::new(job.ended_at, Tone::from(job.state), text)
}

fn of_build(before: Option<&Build>, now: &Build, found: &mut Vec<Change>) {
    let error_before = before.and_then(|build| build.finalize_error.as_ref());
    if let Some(error) = now.finalize_error.as_ref().filter(|error| error_before != Some(*error)) {
        found.push(Change::new(None, Tone::Bad, format!("{} {}", now.build, finalize_trouble(now, error))));
    }
    let was = before.map_or(BuildState::Running, |build| build.state);
    if now.state != was && now.state.is_over() {
        found.push(Change::new(now.ended_at, Tone::from(now.state), result(now)));
    }
}

/// What is wrong with a build that could not be written out.
pub fn finalize_trouble(build: &Build, error: &str) -> String {
    match build.state.is_over() {
        true => format!("could not be written out: {error}"),
        false => format!("cannot be written out yet, the farm goes on trying: {error}"),
    }
}

/// `mini/1.2 succeeded in 4m 10s`
pub fn result(build: &Build) -> String {
    let took = human::between(build.submitted_at, build.ended_at);
    let word = if build.state == BuildState::Succeeded { "in" } else { "after" };
    match took {
        Some(took) => format!("{} {} {word} {took}", build.build, build.state.as_str()),
        None => format!("{} {}", build.build, build.state.as_str()),
    }
}

/// What stays of a reason while its numbers count down: one that only counts is told once.
fn without_numbers(why: &str) -> String {
    why.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Why a job waits, failed, or never ran.
pub fn why(job: &Job) -> Option<&str> {
    match job.state {
        JobState::Succeeded => None,
        // Only while it is being stopped is there something to say.
        JobState::Running | JobState::Cancelled => job.cancel_reason.as_deref().or(job.why.as_deref()),
        state if state.is_failure() => {
            let message = job.outcome().and_then(|outcome| first_line(&outcome.message));
            message.or(job.why.as_deref())
        }
        _ => job.why.as_deref(),
    }
}

/// The first line of a message, if there is one.
pub fn first_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::view::{Approval, Outcome};

    /// Seconds after the epoch.
    pub fn at(secs: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(secs).unwrap())
    }

    /// A job that waits for others.
    pub fn job(name: &str, needs: &[&str]) -> Job {
        Job {
            job_id: 1,
            name: name.to_owned(),
            state: JobState::Blocked,
            why: None,
            cancel_reason: None,
            approval: None,
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            queued_at: None,
            ended_at: None,
            attempts: Vec::new(),
            artifacts: Vec::new(),
            image: None,
            image_reference: None,
        }
    }

    /// A build of those jobs.
    pub fn build(jobs: Vec<Job>) -> Build {
        Build {
            build: "mini/1".to_owned(),
            state: BuildState::Running,
            priority: None,
            untrusted: false,
            channel: None,
            uses: Vec::new(),
            tags: Vec::new(),
            pins: Vec::new(),
            promotions: Vec::new(),
            promoting: None,
            keep: None,
            reduced: None,
            submitted_at: at(0),
            ended_at: None,
            submitted_by: None,
            params: [].into(),
            cache_url: None,
            trace_id: None,
            finalize_error: None,
            cancel_reason: None,
            jobs,
        }
    }

    /// An attempt that runs.
    pub fn attempt(number: u32, worker: &str, leased: i64) -> Attempt {
        Attempt {
            attempt: number,
            worker: worker.to_owned(),
            leased_at: at(leased),
            ended_at: None,
            phase: Some("run"),
            outcome: None,
        }
    }

    /// The same, ended.
    pub fn ended_attempt(number: u32, worker: &str, times: [i64; 2], kind: &'static str, message: &str) -> Attempt {
        let reason = if kind == "lost" { "worker-gone" } else { "exit-code" };
        let outcome = Outcome {
            kind,
            reason: reason.to_owned(),
            message: message.to_owned(),
            exit_code: None,
            log_tail: vec!["cc: error: no input".to_owned()],
        };
        let running = attempt(number, worker, times[0]);
        Attempt { ended_at: at(times[1]), phase: None, outcome: Some(outcome), ..running }
    }

    fn texts(before: Option<&Build>, now: &Build) -> Vec<String> {
        changes(before, now).into_iter().map(|change| change.text).collect()
    }

    #[test]
    fn tells_a_build_as_it_goes() {
        let first = build(vec![job("a", &[]), job("b", &["a"])]);
        assert!(texts(None, &first).is_empty());

        let mut waiting = first.clone();
        waiting.jobs[0].state = JobState::Queued;
        waiting.jobs[0].why = Some("no worker offers linux/arm64".to_owned());
        assert_eq!(texts(Some(&first), &waiting), ["a waits: no worker offers linux/arm64"]);
        assert!(texts(Some(&waiting), &waiting).is_empty());

        let mut counting = waiting.clone();
        counting.jobs[0].why = Some("tries again in 9 s".to_owned());
        let mut counted = counting.clone();
        counted.jobs[0].why = Some("tries again in 8 s".to_owned());
        assert_eq!(texts(Some(&waiting), &counting), ["a waits: tries again in 9 s"]);
        assert!(texts(Some(&counting), &counted).is_empty());

        let mut running = waiting.clone();
        running.jobs[0].state = JobState::Running;
        running.jobs[0].attempts.push(attempt(1, "w1", 10));
        assert_eq!(texts(Some(&waiting), &running), ["a running on w1 (attempt 1)"]);

        let mut lost = running.clone();
        lost.jobs[0].state = JobState::Running;
        lost.jobs[0].attempts = vec![ended_attempt(1, "w1", [10, 20], "lost", "no word from w1"), attempt(2, "w2", 21)];
        assert_eq!(
            texts(Some(&running), &lost),
            ["a lost on w1 (attempt 1): no word from w1", "a running on w2 (attempt 2)"]
        );

        let mut done = lost.clone();
        done.jobs[0].state = JobState::Succeeded;
        done.jobs[0].ended_at = at(84);
        done.jobs[0].attempts[1] = ended_attempt(2, "w2", [21, 84], "succeeded", "");
        assert_eq!(texts(Some(&lost), &done), ["a succeeded in 1m 3s"]);

        let mut failed = done.clone();
        failed.jobs[1].state = JobState::Failed;
        failed.jobs[1].ended_at = at(100);
        failed.jobs[1].attempts.push(ended_attempt(1, "w1", [90, 100], "failed", "the script ended with code 2\nmore"));
        failed.state = BuildState::Failed;
        failed.ended_at = at(101);
        assert_eq!(
            texts(Some(&done), &failed),
            [
                "b running on w1 (attempt 1)",
                "b failed after 10s: the script ended with code 2",
                "mini/1 failed after 1m 41s"
            ]
        );
    }

    #[test]
    fn tells_that_a_job_waits_for_approval_and_who_gave_it() {
        let first = build(vec![job("sign", &[])]);
        let mut waits = first.clone();
        waits.jobs[0].state = JobState::AwaitsApproval;
        waits.jobs[0].why = Some("waits for approval (1.0 goes out): railyard approve mini/1 sign".to_owned());
        let approval = Approval { what: None, approved_by: None, approved_at: None };
        waits.jobs[0].approval = Some(approval.clone());
        assert_eq!(
            texts(Some(&first), &waits),
            ["sign waits for approval (1.0 goes out): railyard approve mini/1 sign"]
        );
        assert!(texts(Some(&waits), &waits).is_empty());

        let mut approved = waits.clone();
        approved.jobs[0].state = JobState::Running;
        approved.jobs[0].why = None;
        approved.jobs[0].attempts.push(attempt(1, "w1", 10));
        approved.jobs[0].approval =
            Some(Approval { approved_by: Some("olga".to_owned()), approved_at: at(9), ..approval });
        assert_eq!(texts(Some(&waits), &approved), ["sign approved by olga", "sign running on w1 (attempt 1)"]);

        let mut cancelled = waits.clone();
        cancelled.jobs[0].state = JobState::Cancelled;
        cancelled.jobs[0].why = None;
        cancelled.jobs[0].cancel_reason = Some("wrong key (cancelled by olga)".to_owned());
        assert_eq!(texts(Some(&waits), &cancelled), ["sign cancelled: wrong key (cancelled by olga)"]);
    }

    #[test]
    fn a_first_look_tells_the_past_in_order() {
        let mut build = build(vec![job("late", &[]), job("early", &[])]);
        for (index, from) in [(0, 50), (1, 10)] {
            build.jobs[index].state = JobState::Succeeded;
            build.jobs[index].ended_at = at(from + 5);
            build.jobs[index].attempts.push(ended_attempt(1, "w", [from, from + 5], "succeeded", ""));
        }
        assert_eq!(
            texts(None, &build),
            [
                "early running on w (attempt 1)",
                "early succeeded in 5.0s",
                "late running on w (attempt 1)",
                "late succeeded in 5.0s"
            ]
        );
    }
}
