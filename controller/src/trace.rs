//! The spans of builds and jobs. They outlive any process, so their ids are fixed at submit and they are exported when they end.
//!
//! ```text
//! submit (cli) → build → job → attempt (worker) → fetch, run, upload
//! ```
//!
//! A retry makes new spans: a job's id has the first attempt of the round in it, and the span of a build that was resumed
//! lies below the one of its first round.

use railyard_common::id::{BuildId, JobId};
use railyard_common::outcome::OutcomeKind;
use railyard_common::time::Millis;
use railyard_core::{Build, BuildState, Farm, Job, JobState, Trace, Verdict};
use railyard_service::telemetry::{self, KeyValue, SpanKind, SpanRecord, TraceParent};
use sha2::{Digest as _, Sha256};

/// The trace of a new build: the submitter's, or a fresh one.
pub fn begin(parent: &telemetry::Context) -> Trace {
    let parent = TraceParent::of(parent);
    let trace_id = parent.map_or_else(telemetry::new_trace_id, |parent| parent.trace_id);
    Trace {
        trace_id: hex::encode(trace_id),
        parent_span_id: parent.map(|parent| hex::encode(parent.span_id)).unwrap_or_default(),
        span_id: hex::encode(telemetry::new_span_id()),
    }
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// A span id that is derived, so that it needs no place in the journal.
fn derived_span_id(trace: &Trace, what: &str) -> [u8; 8] {
    let digest: [u8; 32] = Sha256::digest(format!("{}/{}/{what}", trace.trace_id, trace.span_id)).into();
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    id
}

/// A job's span in the round that began with its attempt `first`.
fn job_span_id(trace: &Trace, job: JobId, first: u32) -> [u8; 8] {
    derived_span_id(trace, &format!("{job}.{first}"))
}

/// The first attempt since the last submit or retry: before the last one are only those that were lost or failed.
fn first_of_round(job: &Job) -> u32 {
    let Some(last) = job.attempts.last() else { return 1 };
    let counted = last.end.as_ref().is_some_and(|end| match end.outcome.kind {
        OutcomeKind::Failed | OutcomeKind::TimedOut | OutcomeKind::Lost | OutcomeKind::Refused => true,
        OutcomeKind::Succeeded | OutcomeKind::Cancelled => false,
    });
    (last.number + u32::from(counted)).saturating_sub(job.lost + job.failed)
}

/// The W3C traceparent of a job's span, for the worker; empty if there is no trace.
pub fn job_traceparent(farm: &Farm, id: JobId) -> String {
    let Some(job) = farm.job(id) else { return String::new() };
    let Some(trace) = farm.build(&job.build).map(|build| &build.trace) else { return String::new() };
    let span = job_span_id(trace, id, first_of_round(job));
    bytes(&trace.trace_id).map_or_else(String::new, |trace_id| telemetry::traceparent(trace_id, span))
}

fn record(trace: &Trace, span: [u8; 8], parent: Option<[u8; 8]>, make: impl FnOnce(TraceParent) -> SpanRecord) {
    if let Some(trace_id) = bytes(&trace.trace_id) {
        let context = TraceParent { trace_id, span_id: span, sampled: true };
        telemetry::record_span(SpanRecord { parent_span_id: parent, ..make(context) });
    }
}

/// Exports the span of a job whose last attempt has ended.
pub fn record_job(farm: &Farm, id: JobId) {
    if !telemetry::records_spans() {
        return;
    }
    let Some(job) = farm.job(id) else { return };
    let Some(build) = farm.build(&job.build) else { return };
    let first = first_of_round(job);
    let begun = job.attempts.iter().find(|attempt| attempt.number >= first);
    let start = begun.map_or(build.submitted_at, |attempt| attempt.leased_at);
    let end = job.attempts.last().and_then(|attempt| attempt.end.as_ref()).map_or(start, |end| end.at);
    record_job_span(farm, build, id, job_span_id(&build.trace, id, first), (start, end));
}

fn record_job_span(farm: &Farm, build: &Build, id: JobId, span: [u8; 8], (start, end): (Millis, Millis)) {
    let Some((job, spec)) = farm.job(id).zip(farm.spec(id)) else { return };
    let (result, error) = match &job.state {
        JobState::Succeeded(_) => ("success", None),
        JobState::Ended { kind, .. } => (result_word(*kind), Some(kind.to_string())),
        _ => ("skip", None),
    };
    record(&build.trace, span, bytes(&build.trace.span_id), |context| SpanRecord {
        name: spec.name.to_string(),
        kind: SpanKind::Internal,
        context,
        parent_span_id: None,
        start,
        end,
        attributes: vec![
            KeyValue::new("cicd.pipeline.task.name", spec.name.to_string()),
            KeyValue::new("cicd.pipeline.task.run.id", id.to_string()),
            KeyValue::new("cicd.pipeline.task.run.result", result),
            KeyValue::new("cicd.pipeline.run.id", job.build.to_string()),
        ],
        error,
    });
}

/// Whether the job came to its end by itself, not by an attempt's: skipped, or cancelled while it waited.
fn ended_unrun(job: &Job) -> bool {
    let last = job.attempts.last().and_then(|last| last.end.as_ref());
    match &job.state {
        JobState::Skipped { .. } => true,
        JobState::Ended { kind, at } => last.is_none_or(|end| (end.outcome.kind, end.at) != (*kind, *at)),
        _ => false,
    }
}

/// Exports the span of a build that has ended, and those of its jobs that no attempt ended.
pub fn record_build(farm: &Farm, id: &BuildId) {
    if !telemetry::records_spans() {
        return;
    }
    let Some(build) = farm.build(id) else { return };
    let (verdict, end): (Verdict, Millis) = match build.state {
        BuildState::Ended { verdict, at, .. } => (verdict, at),
        _ => return,
    };
    for (id, job) in build.jobs().filter_map(|id| Some((id, farm.job(id)?))) {
        if ended_unrun(job) {
            let span = derived_span_id(&build.trace, &format!("{id} unrun at {}", end.0));
            record_job_span(farm, build, id, span, (end, end));
        }
    }
    let Some(own) = bytes(&build.trace.span_id) else { return };
    let result = match verdict {
        Verdict::Succeeded => "success",
        Verdict::Failed => "failure",
        Verdict::Cancelled => "cancellation",
    };
    let (span, parent, start) = match resumed_at(farm, build) {
        None => (own, bytes(&build.trace.parent_span_id), build.submitted_at),
        Some(at) => (derived_span_id(&build.trace, &format!("until {}", end.0)), Some(own), at),
    };
    record(&build.trace, span, parent, |context| SpanRecord {
        name: format!("BUILD {}", id.pipeline),
        kind: SpanKind::Server,
        context,
        parent_span_id: None,
        start,
        end,
        attributes: vec![
            KeyValue::new("cicd.pipeline.name", id.pipeline.to_string()),
            KeyValue::new("cicd.pipeline.action.name", "BUILD"),
            KeyValue::new("cicd.pipeline.run.id", id.to_string()),
            KeyValue::new("cicd.pipeline.result", result),
        ],
        error: (verdict != Verdict::Succeeded).then(|| verdict.to_string()),
    });
}

/// When the first attempt of a retry began, if the build was retried. A retry of nothing but the writing out has none.
fn resumed_at(farm: &Farm, build: &Build) -> Option<Millis> {
    let begun = build.jobs().filter_map(|id| farm.job(id)).filter_map(|job| {
        let first = first_of_round(job);
        job.attempts.iter().find(|attempt| first > 1 && attempt.number >= first).map(|attempt| attempt.leased_at)
    });
    begun.min()
}

/// The word of the semantic conventions.
fn result_word(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Succeeded => "success",
        OutcomeKind::Failed => "failure",
        OutcomeKind::TimedOut => "timeout",
        OutcomeKind::Cancelled => "cancellation",
        OutcomeKind::Lost | OutcomeKind::Refused => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::outcome::{Outcome, Reason};
    use railyard_core::Attempt;

    /// A job after attempts that ended so; `None` is one that runs.
    fn job(ends: &[Option<OutcomeKind>], lost: u32, failed: u32) -> Job {
        let attempt = |(number, kind): (u32, &Option<OutcomeKind>)| Attempt {
            number,
            worker: "anvil".parse().unwrap(),
            leased_at: Millis(u64::from(number)),
            uploading: false,
            end: kind.map(|kind| {
                let outcome = Outcome::new(kind, Reason::Done, String::new());
                let end = serde_json::json!({ "at": number, "outcome": outcome, "log_bytes": 0 });
                serde_json::from_value(end).unwrap()
            }),
        };
        let state = JobState::Blocked { needs: 1 };
        let attempts: Vec<Attempt> = (1..).zip(ends).map(attempt).collect();
        let job = serde_json::json!({
            "build": "mini/1", "index": 0, "state": state, "attempts": attempts, "lost": lost, "failed": failed, "path_len": 1,
        });
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_round_begins_with_its_first_attempt() {
        use OutcomeKind::{Cancelled, Failed, Lost, Succeeded};
        for (ends, lost, failed, want) in [
            (&[][..], 0, 0, 1),
            (&[None], 0, 0, 1),
            (&[Some(Lost), None], 1, 0, 1),
            (&[Some(Lost), Some(Succeeded)], 1, 0, 1),
            (&[Some(Lost), Some(Failed)], 1, 1, 1),
            // After a retry.
            (&[Some(Failed), None], 0, 0, 2),
            (&[Some(Failed), Some(Lost), None], 1, 0, 2),
            (&[Some(Failed), Some(Lost), Some(Failed)], 1, 1, 2),
            (&[Some(Cancelled), Some(Lost), Some(Succeeded)], 1, 0, 2),
        ] {
            assert_eq!(first_of_round(&job(ends, lost, failed)), want, "{ends:?}");
        }
    }

    #[test]
    fn a_job_s_span_is_the_same_in_a_round_and_another_in_the_next() {
        let trace = Trace { trace_id: "ab".repeat(16), parent_span_id: String::new(), span_id: "cd".repeat(8) };
        assert_eq!(job_span_id(&trace, JobId(1), 1), job_span_id(&trace, JobId(1), 1));
        assert_ne!(job_span_id(&trace, JobId(1), 1), job_span_id(&trace, JobId(1), 2));
        assert_ne!(job_span_id(&trace, JobId(1), 1), job_span_id(&trace, JobId(2), 1));
    }
}
