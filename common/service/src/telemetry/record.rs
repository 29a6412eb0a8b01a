//! Spans that outlive a process: recorded when they end, with ids that were decided when they began.
//!
//! The SDK invents the ids of a span when it starts one. [`Ids`] stands in for its generator and, while a record is
//! being made, hands out the record's ids instead; sampling, limits and batching stay the SDK's.

use super::TraceParent;
use crate::clock::system_time;
use opentelemetry::trace::{Span as _, SpanId, SpanKind, Status, TraceId, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer};
use railyard_common::time::Millis;
use std::cell::Cell;
use std::sync::OnceLock;

/// A span that is over.
#[derive(Clone, Debug)]
pub struct SpanRecord {
    /// What it is a span of: `build mini/1`.
    pub name: String,
    /// [`SpanKind::Internal`] for most.
    pub kind: SpanKind,
    /// Its own ids. Nothing is exported if it is not sampled.
    pub context: TraceParent,
    /// Its parent's span id, in the same trace; `None` makes it the root.
    pub parent_span_id: Option<[u8; 8]>,
    /// When it began.
    pub start: Millis,
    /// When it ended.
    pub end: Millis,
    /// What there is to know about it.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it failed.
    pub error: Option<String>,
}

/// Set once by `init`, if spans are exported.
pub(super) static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether spans are exported at all: otherwise nobody needs to put one together.
pub fn records_spans() -> bool {
    TRACER.get().is_some()
}

/// Exports the span, where spans are exported at all.
pub fn record_span(record: SpanRecord) {
    let Some(tracer) = TRACER.get().filter(|_| record.context.sampled) else { return };
    let parent = match record.parent_span_id {
        Some(span_id) => TraceParent { span_id, ..record.context }.context(),
        None => Context::new(),
    };
    let builder = tracer
        .span_builder(record.name)
        .with_kind(record.kind)
        .with_start_time(system_time(record.start))
        .with_attributes(record.attributes);
    let mut span = with_ids(&record.context, || tracer.build_with_context(builder, &parent));
    if let Some(error) = record.error {
        span.set_status(Status::error(error));
    }
    span.end_with_timestamp(system_time(record.end));
}

thread_local! {
    /// The ids of the span that this thread is recording.
    static PRESCRIBED: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

fn with_ids<T>(ids: &TraceParent, start: impl FnOnce() -> T) -> T {
    PRESCRIBED.set(Some((TraceId::from_bytes(ids.trace_id), SpanId::from_bytes(ids.span_id))));
    let started = start();
    PRESCRIBED.set(None);
    started
}

/// Random ids, but for spans that are being recorded.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        PRESCRIBED.get().map_or_else(|| self.0.new_trace_id(), |(trace_id, _)| trace_id)
    }

    fn new_span_id(&self) -> SpanId {
        PRESCRIBED.get().map_or_else(|| self.0.new_span_id(), |(_, span_id)| span_id)
    }
}
