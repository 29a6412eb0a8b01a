//! The spans of builds and jobs. They outlive any process, so their ids are fixed at submit and they are exported when they end.
//!
//! ```text
//! submit (cli) → build → job → attempt (worker) → fetch, run, upload
//! ```

use railyard_common::id::{BuildId, JobId};
use railyard_common::outcome::OutcomeKind;
use railyard_common::time::Millis;
use railyard_core::{BuildState, Farm, JobState, Trace, Verdict};
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

/// A job's span: derived, so that it needs no place in the journal.
fn job_span_id(trace: &Trace, job: JobId) -> [u8; 8] {
    let digest: [u8; 32] = Sha256::digest(format!("{}/{}/{job}", trace.trace_id, trace.span_id)).into();
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    id
}

/// The W3C traceparent of a job's span, for the worker; empty if there is no trace.
pub fn job_traceparent(farm: &Farm, job: JobId) -> String {
    let build = farm.job(job).and_then(|known| farm.build(&known.build));
    let Some(trace) = build.map(|build| &build.trace) else { return String::new() };
    bytes(&trace.trace_id).map_or_else(String::new, |id| telemetry::traceparent(id, job_span_id(trace, job)))
}

fn record(trace: &Trace, span: [u8; 8], parent: Option<[u8; 8]>, make: impl FnOnce(TraceParent) -> SpanRecord) {
    if let Some(trace_id) = bytes(&trace.trace_id) {
        let context = TraceParent { trace_id, span_id: span, sampled: true };
        telemetry::record_span(SpanRecord { parent_span_id: parent, ..make(context) });
    }
}

/// Exports the span of a job that has ended.
pub fn record_job(farm: &Farm, id: JobId) {
    let Some((job, spec)) = farm.job(id).zip(farm.spec(id)) else { return };
    let Some(build) = farm.build(&job.build) else { return };
    let start = job.attempts.first().map_or(build.submitted_at, |attempt| attempt.leased_at);
    let end = job.attempts.last().and_then(|attempt| attempt.end.as_ref()).map_or(start, |end| end.at);
    let (result, error) = match &job.state {
        JobState::Succeeded(_) => ("success", None),
        JobState::Ended { kind, .. } => (result_word(*kind), Some(kind.to_string())),
        _ => ("skip", None),
    };
    record(&build.trace, job_span_id(&build.trace, id), bytes(&build.trace.span_id), |context| SpanRecord {
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

/// Exports the span of a build that has ended.
pub fn record_build(farm: &Farm, id: &BuildId) {
    let Some(build) = farm.build(id) else { return };
    let (verdict, end): (Verdict, Millis) = match build.state {
        BuildState::Ended { verdict, at, .. } => (verdict, at),
        _ => return,
    };
    let Some(span) = bytes(&build.trace.span_id) else { return };
    let result = match verdict {
        Verdict::Succeeded => "success",
        Verdict::Failed => "failure",
        Verdict::Cancelled => "cancellation",
    };
    record(&build.trace, span, bytes(&build.trace.parent_span_id), |context| SpanRecord {
        name: format!("BUILD {}", id.pipeline),
        kind: SpanKind::Server,
        context,
        parent_span_id: None,
        start: build.submitted_at,
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
