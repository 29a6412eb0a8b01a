//! What the farm's record of a build must say, and what a job's log must be.

use crate::parts::Done;
use crate::pipeline::Step;
use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a worker says in a log where output may be missing, because the engine was away.
const GAP: &str = "missing here";

/// How often jobs were tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// In all.
    pub all: usize,
    /// The most of one job.
    pub most: usize,
}

/// What became of the jobs that ran when something was killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survival {
    /// Ran.
    pub running: usize,
    /// Succeeded in the same attempt.
    pub kept: usize,
}

/// Every job of the plan, and no other, has succeeded exactly once, after what it needs.
///
/// # Errors
/// That says which has not.
pub fn check(build: &Value, steps: &[Step]) -> anyhow::Result<Attempts> {
    ensure!(build["state"] == "succeeded", "the build is {}: {}", build["state"], build["finalize_error"]);
    let jobs = list(&build["jobs"]);
    let mut names: Vec<&str> = jobs.iter().filter_map(|job| job["name"].as_str()).collect();
    let mut wanted: Vec<String> = steps.iter().map(Step::job).collect();
    names.sort_unstable();
    wanted.sort_unstable();
    ensure!(names == wanted, "the jobs are {names:?} instead of {wanted:?}");
    let mut done_at = BTreeMap::new();
    for job in jobs {
        let ended = attempts(job).with_context(|| format!("job {}: {job}", job["name"]))?;
        done_at.insert(job["name"].as_str().unwrap_or_default(), ended);
    }
    for job in jobs {
        for need in list(&job["needs"]).iter().filter_map(Value::as_str) {
            let done = done_at.get(need).with_context(|| format!("{} needs {need}, which is no job", job["name"]))?;
            for attempt in list(&job["attempts"]) {
                let leased = time(&attempt["leased_at"])?;
                ensure!(
                    leased >= *done,
                    "{} was leased at {leased}, before {need} had succeeded at {done}",
                    job["name"]
                );
            }
        }
    }
    let counts = jobs.iter().map(|job| list(&job["attempts"]).len());
    Ok(Attempts { all: counts.clone().sum(), most: counts.max().unwrap_or(0) })
}

/// The attempts of one job: lost ones, and then a success. Gives when that was.
fn attempts(job: &Value) -> anyhow::Result<Timestamp> {
    ensure!(job["state"] == "succeeded", "it is {}", job["state"]);
    let attempts = list(&job["attempts"]);
    let numbers: Vec<u64> = attempts.iter().filter_map(|attempt| attempt["attempt"].as_u64()).collect();
    ensure!(numbers.len() == attempts.len() && !numbers.is_empty(), "it has no attempts");
    ensure!(numbers.is_sorted_by(|earlier, later| earlier < later), "attempts do not increase: {numbers:?}");
    let (last, earlier) = attempts.split_last().context("it has no attempts")?;
    ensure!(last["outcome"]["kind"] == "succeeded", "its last attempt has not succeeded");
    for attempt in earlier {
        // The steps do nothing wrong: whatever ends an attempt early is the farm's loss, and is told as such.
        ensure!(attempt["outcome"]["kind"] == "lost", "attempt {} ended as {}", attempt["attempt"], attempt["outcome"]);
    }
    time(&last["ended_at"])
}

/// Where a log is not whole, and says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// How often the worker said that some of the output may be missing.
    pub told: usize,
    /// Lines that are missing.
    pub lines: u64,
}

impl std::ops::AddAssign for Gaps {
    fn add_assign(&mut self, other: Self) {
        self.told += other.told;
        self.lines += other.lines;
    }
}

/// The log has every line once and in order. Where some are missing the worker has said so just before: once for each place, and
/// only if the engine was restarted, which takes along what it has heard and told nobody.
///
/// # Errors
/// That says which line is not as it should be.
pub fn check_log(log: &str, step: &Step, engine_restarted: bool) -> anyhow::Result<Gaps> {
    let (mut gaps, mut excuses, mut next) = (Gaps::default(), 0, 1);
    let miss = |next: u64, number: u64, excuses: &mut usize, gaps: &mut Gaps| {
        ensure!(number >= next, "line {number} comes again after line {}", next - 1);
        if number > next {
            ensure!(*excuses > 0, "line {number} where line {next} should be, and nothing says that some are missing");
            (*excuses, gaps.lines) = (*excuses - 1, gaps.lines + (number - next));
        }
        Ok(number + 1)
    };
    for text in log.lines() {
        if text.contains(GAP) {
            ensure!(engine_restarted, "the log has a gap though the engine was always there: {text}");
            (gaps.told, excuses) = (gaps.told + 1, excuses + 1);
        }
        let Some(line) = text.strip_prefix("line ") else { continue };
        let (number, token) = line.split_once(' ').with_context(|| format!("a broken line: {line:?}"))?;
        let number: u64 = number.parse().with_context(|| format!("a broken line: {line:?}"))?;
        ensure!(token == step.token, "line {number} is of another round or job: {token:?}");
        ensure!(number <= step.lines, "line {number} of {}", step.lines);
        next = miss(next, number, &mut excuses, &mut gaps)?;
    }
    miss(next, step.lines + 1, &mut excuses, &mut gaps).context("the end is missing")?;
    Ok(gaps)
}

/// What became of the attempts on `worker` (any, if `None`) that ran when `kill` was done.
///
/// # Errors
/// If the record cannot be read.
pub fn survival(build: &Value, kill: &Done, worker: Option<&str>) -> anyhow::Result<Survival> {
    let mut survival = Survival::default();
    for attempt in list(&build["jobs"]).iter().flat_map(|job| list(&job["attempts"])) {
        let of_worker = worker.is_none_or(|worker| attempt["worker"] == worker);
        let (begun, ended) = (millis(&attempt["leased_at"])?, millis(&attempt["ended_at"])?);
        if of_worker && (begun..ended).contains(&kill.at_millis) {
            survival.running += 1;
            survival.kept += usize::from(attempt["outcome"]["kind"] == "succeeded");
        }
    }
    Ok(survival)
}

/// Why attempts were lost, and how many: ` (2 engine, 3 worker-gone)`.
pub fn losses(build: &Value) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let attempts = list(&build["jobs"]).iter().flat_map(|job| list(&job["attempts"]));
    for lost in attempts.filter(|attempt| attempt["outcome"]["kind"] == "lost") {
        *counts.entry(lost["outcome"]["reason"].as_str().unwrap_or("unknown")).or_default() += 1;
    }
    let told: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
}

fn time(value: &Value) -> anyhow::Result<Timestamp> {
    let Some(text) = value.as_str() else { bail!("{value} is no time") };
    text.parse().with_context(|| format!("{text:?} is no time"))
}

fn millis(value: &Value) -> anyhow::Result<u64> {
    Ok(u64::try_from(time(value)?.as_millisecond())?)
}

/// The elements of a JSON list.
pub fn list(value: &Value) -> &[Value] {
    railyard_tests::farm::list(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::plan::{Aim, Kill, Part};
    use serde_json::json;
    use std::time::Duration;

    fn steps() -> Vec<Step> {
        Step::draw(&mut Dice::new(1)).into_iter().take(2).collect()
    }

    fn attempt(number: u64, kind: &str, from: u32, to: u32) -> Value {
        json!({
            "attempt": number, "worker": "w", "outcome": {"kind": kind},
            "leased_at": format!("2026-01-01T00:00:{from:02}Z"), "ended_at": format!("2026-01-01T00:00:{to:02}Z"),
        })
    }

    fn build(first: &[Value], second: &[Value]) -> Value {
        json!({"state": "succeeded", "jobs": [
            {"name": "s00@linux/amd64", "state": "succeeded", "needs": [], "attempts": first},
            {"name": "s01@linux/amd64", "state": "succeeded", "needs": ["s00@linux/amd64"], "attempts": second},
        ]})
    }

    #[test]
    fn a_success_after_losses_is_well() {
        let build = build(&[attempt(1, "lost", 1, 2), attempt(3, "succeeded", 3, 5)], &[attempt(1, "succeeded", 5, 6)]);
        assert_eq!(check(&build, &steps()).unwrap(), Attempts { all: 3, most: 2 });
    }

    #[test]
    fn what_breaks_the_promise_is_found() {
        let good = || vec![attempt(1, "succeeded", 5, 6)];
        let bad: [(&str, Vec<Value>); 5] = [
            ("twice to success", vec![attempt(1, "succeeded", 1, 2), attempt(2, "succeeded", 3, 4)]),
            ("a loss told as a failure", vec![attempt(1, "failed", 1, 2), attempt(2, "succeeded", 3, 4)]),
            ("an attempt after the success", vec![attempt(1, "succeeded", 1, 2), attempt(2, "lost", 3, 4)]),
            ("a number used again", vec![attempt(2, "lost", 1, 2), attempt(2, "succeeded", 3, 4)]),
            ("none", vec![]),
        ];
        for (what, attempts) in bad {
            assert!(check(&build(&attempts, &good()), &steps()).is_err(), "{what}");
        }
        let early = build(&[attempt(1, "succeeded", 1, 7)], &good());
        assert!(check(&early, &steps()).unwrap_err().to_string().contains("before"));
        let mut failed = build(&good(), &good());
        failed["state"] = "failed".into();
        assert!(check(&failed, &steps()).is_err());
        assert!(check(&build(&good(), &[attempt(1, "succeeded", 7, 8)]), &steps()[..1]).is_err(), "one job too many");
    }

    #[test]
    fn a_log_has_every_line_once_or_says_where_not() {
        let mut step = steps().remove(0);
        step.lines = 5;
        // 0 is the worker's word.
        let log = |numbers: &[u64]| {
            let line = |n: &u64| match n {
                0 => format!("==> railyard: what it wrote may be {GAP}\n"),
                n => format!("line {n} {}\n", step.token),
            };
            format!("a note\n{}", numbers.iter().map(line).collect::<String>())
        };
        let check = |numbers: &[u64], restarted| check_log(&log(numbers), &step, restarted);
        assert_eq!(check(&[1, 2, 3, 4, 5], false).unwrap(), Gaps::default());
        for bad in [&[1, 2, 3, 4][..], &[1, 3, 4, 5], &[1, 2, 2, 3, 4, 5], &[1, 3, 2, 4, 5], &[1, 2, 3, 4, 5, 6], &[]] {
            assert!(check(bad, true).is_err(), "{bad:?}");
        }
        let told = |told, lines| Gaps { told, lines };
        assert_eq!(check(&[1, 0, 2, 3, 4, 5], true).unwrap(), told(1, 0), "it may be missing, and is not");
        assert_eq!(
            check(&[1, 0, 2, 4, 5], true).unwrap(),
            told(1, 1),
            "what the old engine had written down comes first"
        );
        assert_eq!(check(&[1, 0, 3, 0], true).unwrap(), told(2, 3));
        assert_eq!(check(&[0], true).unwrap(), told(1, 5));
        for bad in [&[1, 3, 0, 4, 5][..], &[1, 0, 3, 5], &[1, 0, 3, 4], &[1, 0, 3, 3, 4, 5]] {
            assert!(check(bad, true).is_err(), "{bad:?}");
        }
        assert!(check(&[1, 0, 2, 3, 4, 5], false).is_err(), "the engine was never away");
        let other = log(&[1, 2, 3, 4, 5]).replace(&step.token, "other");
        assert!(check_log(&other, &step, true).is_err());
    }

    #[test]
    fn a_job_that_ran_at_a_kill_was_kept_or_not() {
        let build = build(&[attempt(1, "lost", 1, 3), attempt(2, "succeeded", 3, 5)], &[attempt(1, "succeeded", 5, 6)]);
        let at = |text: &str| Done {
            kill: Kill { part: Part::WorkerA, aim: Aim::Process, at: Duration::ZERO, pause: Duration::ZERO },
            at_millis: u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap(),
        };
        let told = |text, worker| survival(&build, &at(text), worker).unwrap();
        assert_eq!(told("2026-01-01T00:00:02Z", Some("w")), Survival { running: 1, kept: 0 });
        assert_eq!(told("2026-01-01T00:00:04Z", None), Survival { running: 1, kept: 1 });
        assert_eq!(told("2026-01-01T00:00:04Z", Some("other")), Survival::default());
    }
}
