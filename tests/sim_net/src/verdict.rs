//! What must be true when everything is over.

use crate::farm::Farm;
use crate::people::{Seen, Sights};
use crate::scenario::{Scenario, Step, Submission};
use railyard_common::id::LeaseId;
use railyard_core::{Event, LOST_BUDGET};
use railyard_proto::v1::{self, JobState, OutcomeKind};
use std::collections::BTreeMap;

/// The worker's own lines in a log.
const OWN_LINE: &str = "==> railyard:";

/// Whether nothing is on its way any more: everybody is connected, nothing is leased, no container and no directory is left.
pub fn is_settled(farm: &Farm, scenario: &Scenario) -> bool {
    unsettled(farm, scenario).is_empty()
}

/// What is left, in words.
pub fn unsettled(farm: &Farm, scenario: &Scenario) -> Vec<String> {
    let mut left = Vec::new();
    for (host, name) in farm.truth.lock().containers.keys() {
        left.push(format!("container {name} is left on {host}"));
    }
    for host in &scenario.workers {
        left.extend(farm.job_dirs(host).into_iter().map(|dir| format!("directory {dir} is left on {host}")));
    }
    let disk = farm.journal.disk();
    for worker in disk.farm.workers() {
        if !worker.online {
            left.push(format!("worker {} is not connected", worker.offer.name));
        }
        left.extend(worker.leases.iter().map(|lease| format!("{lease} is still leased to {}", worker.offer.name)));
    }
    left
}

/// Everything that is wrong in the end.
pub fn judge(farm: &Farm, scenario: &Scenario, sights: &Sights) -> Vec<String> {
    let mut broken = unsettled(farm, scenario);
    let replayed = farm.journal.read().farm();
    if replayed.snapshot() != farm.journal.disk().farm.snapshot() {
        broken.push("the journal does not give the state that its events made".to_owned());
    }
    for submission in &scenario.people {
        match sights.of(&submission.person) {
            Some(seen) => judge_build(farm, submission, &seen, &mut broken),
            None => broken.push(format!("{} has not seen the build end", submission.person)),
        }
    }
    broken
}

fn judge_build(farm: &Farm, submission: &Submission, seen: &Seen, broken: &mut Vec<String>) {
    let mut states: BTreeMap<&str, JobState> = BTreeMap::new();
    for (step, job) in submission.steps.iter().zip(&seen.view.jobs) {
        let state = job.state();
        let met = step.needs.iter().all(|need| states.get(need.as_str()) == Some(&JobState::Succeeded));
        let wanted = match step.script.exit {
            _ if !met => JobState::Skipped,
            Some(0) => JobState::Succeeded,
            Some(_) => JobState::Failed,
            None => JobState::TimedOut,
        };
        let lost = job.attempts.iter().filter(|attempt| outcome(attempt) == OutcomeKind::Lost).count();
        // Faults may eat up what the farm grants itself, and then only that.
        let spent = met && state == JobState::Lost && lost == LOST_BUDGET as usize && job.attempts.len() == lost;
        if state != wanted && !spent {
            broken.push(format!("{} is {} instead of {}", job.name, state.as_str_name(), wanted.as_str_name()));
        }
        if job.attempts.len() > lost + 1 {
            broken.push(format!("{} has {} attempts, of which {lost} were lost", job.name, job.attempts.len()));
        }
        for attempt in &job.attempts {
            judge_attempt(farm, step, job, attempt, seen, broken);
        }
        states.insert(&step.name, state);
    }
    if states.len() != submission.steps.len() {
        broken.push(format!("{} has {} jobs", seen.view.build, seen.view.jobs.len()));
    }
}

fn outcome(attempt: &v1::AttemptView) -> OutcomeKind {
    attempt.outcome.as_ref().map(v1::Outcome::kind).unwrap_or_default()
}

/// The attempt's log against what its container wrote.
fn judge_attempt(
    farm: &Farm,
    step: &Step,
    job: &v1::JobView,
    attempt: &v1::AttemptView,
    seen: &Seen,
    broken: &mut Vec<String>,
) {
    let who = format!("attempt {} of {}", attempt.attempt, job.name);
    let Ok(lease) = format!("j{}.{}", job.job, attempt.attempt).parse::<LeaseId>() else {
        return broken.push(format!("{who} has no lease"));
    };
    let log =
        seen.logs.get(&(job.name.clone(), attempt.attempt)).map(|log| String::from_utf8_lossy(log)).unwrap_or_default();
    let (own, said): (Vec<&str>, Vec<&str>) = log.split_inclusive('\n').partition(|line| line.starts_with(OWN_LINE));
    let said = said.concat();
    let known = farm.truth.lock();
    let execution = known.executions.iter().find(|execution| execution.lease == lease);
    let wrote = execution.map_or(String::new(), |execution| {
        let ran = execution.end().map_or(std::time::Duration::MAX, |(end, _)| end.saturating_sub(execution.since));
        execution.script.output(&lease.to_string(), ran)
    });
    let kind = outcome(attempt);
    let own_fault = matches!(kind, OutcomeKind::Succeeded | OutcomeKind::Failed | OutcomeKind::TimedOut);
    if own_fault && (said != wrote || own.len() < 3) {
        broken
            .push(format!("the log of {who} ({kind:?}) is not what its container wrote:\n{log}--- it wrote:\n{wrote}"));
    } else if !wrote.starts_with(&said) {
        broken.push(format!(
            "the log of {who} ({kind:?}) has what its container did not write:\n{log}--- it wrote:\n{wrote}"
        ));
    }
    let reported = farm.journal.disk().history.iter().find_map(|event| match event {
        Event::AttemptEnded { lease: ended, log_bytes, .. } if *ended == lease => Some(*log_bytes),
        _ => None,
    });
    if own_fault && reported != Some(log.len() as u64) {
        broken.push(format!("{who} reported {reported:?} bytes of log, {} are there", log.len()));
    }
    if own_fault && execution.is_some_and(|execution| execution.script != step.script) {
        broken.push(format!("{who} ran another step's script"));
    }
}
