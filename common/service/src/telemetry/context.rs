//! Trace context across processes: W3C `traceparent` in gRPC metadata, in orders and in the journal.

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use std::fmt;
use std::str::FromStr;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A span as others refer to it, written `00-TRACE_ID-SPAN_ID-FLAGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span in it.
    pub span_id: [u8; 8],
    /// Whether the trace is recorded; its children follow suit.
    pub sampled: bool,
}

/// The text is not a W3C traceparent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a W3C traceparent")]
pub struct BadTraceParent(pub String);

impl TraceParent {
    /// Another span of the same trace.
    #[must_use]
    pub fn sibling(self, span_id: [u8; 8]) -> Self {
        Self { span_id, ..self }
    }

    /// The trace id as hex, as people and trace viewers write it.
    pub fn trace_id_hex(&self) -> String {
        hex::encode(self.trace_id)
    }

    /// As the parent of spans to come.
    pub fn context(&self) -> Context {
        Context::new().with_remote_span_context(self.span_context())
    }

    pub(super) fn span_context(&self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        let (trace, span) = (TraceId::from_bytes(self.trace_id), SpanId::from_bytes(self.span_id));
        SpanContext::new(trace, span, flags, true, TraceState::NONE)
    }

    /// The span that `context` holds, if it holds a valid one.
    pub fn of(context: &Context) -> Option<Self> {
        let span = context.span();
        let span = span.span_context();
        span.is_valid().then(|| Self {
            trace_id: span.trace_id().to_bytes(),
            span_id: span.span_id().to_bytes(),
            sampled: span.is_sampled(),
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", hex::encode(self.trace_id), hex::encode(self.span_id))
    }
}

impl FromStr for TraceParent {
    type Err = BadTraceParent;

    fn from_str(text: &str) -> Result<Self, BadTraceParent> {
        let carrier = std::collections::HashMap::from([("traceparent".to_owned(), text.to_owned())]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        Self::of(&context).ok_or_else(|| BadTraceParent(text.to_owned()))
    }
}

/// A sampled [`TraceParent`], written out.
pub fn traceparent(trace_id: [u8; 16], span_id: [u8; 8]) -> String {
    TraceParent { trace_id, span_id, sampled: true }.to_string()
}

/// A fresh span id.
pub fn new_span_id() -> [u8; 8] {
    random()
}

/// A fresh trace id.
pub fn new_trace_id() -> [u8; 16] {
    random()
}

/// Random bytes, not all zero: an all-zero id is invalid.
fn random<const N: usize>() -> [u8; N] {
    let mut id = [0; N];
    getrandom::fill(&mut id).expect("the kernel gives random bytes once it has booted");
    id[N - 1] |= u8::from(id.iter().all(|byte| *byte == 0));
    id
}

/// Puts the span's context into gRPC metadata.
pub fn inject(span: &Span, metadata: &mut MetadataMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut IntoMetadata(metadata));
}

/// The caller's context out of gRPC metadata; an empty one if there is none.
pub fn extract(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &FromMetadata(metadata))
}

/// Makes the span a child of the caller's, as [`extract`] finds it. Must come before the span is first entered.
pub fn adopt(span: &Span, metadata: &MetadataMap) {
    let caller = extract(metadata);
    if TraceParent::of(&caller).is_some() {
        // Fails where telemetry is not set up or the span is filtered out: then there is no trace to keep whole.
        let _ = span.set_parent(caller);
    }
}

/// The span's context as a `traceparent`; empty if it has none, because telemetry is not set up or the span is filtered out.
pub fn traceparent_of(span: &Span) -> String {
    TraceParent::of(&span.context()).map(|parent| parent.to_string()).unwrap_or_default()
}

/// Makes the span a child of `traceparent`. Must come before the span is first entered. Anything else than a traceparent,
/// the empty text for instance, changes nothing.
pub fn set_parent(span: &Span, traceparent: &str) {
    if let Ok(parent) = traceparent.parse::<TraceParent>() {
        // Fails where telemetry is not set up or the span is filtered out: then there is no trace to keep whole.
        let _ = span.set_parent(parent.context());
    }
}

struct IntoMetadata<'a>(&'a mut MetadataMap);

impl Injector for IntoMetadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}

struct FromMetadata<'a>(&'a MetadataMap);

impl Extractor for FromMetadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let names = self.0.keys().filter_map(|key| match key {
            tonic::metadata::KeyRef::Ascii(key) => Some(key.as_str()),
            tonic::metadata::KeyRef::Binary(_) => None,
        });
        names.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back_what_it_writes() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent: TraceParent = text.parse().unwrap();
        assert_eq!((parent.to_string().as_str(), parent.sampled), (text, true));
        assert_eq!(parent.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(traceparent(parent.trace_id, parent.span_id), text);
        let child = parent.sibling(new_span_id());
        assert_eq!(child.to_string().parse(), Ok(child));
        assert!(!text.replace("-01", "-00").parse::<TraceParent>().unwrap().sampled);
    }

    #[test]
    fn refuses_what_is_not_a_traceparent() {
        let zero_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        for bad in ["", "00", "00-xyz-b7ad6b7169203331-01", &zero_trace, &zero_span] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn metadata_carries_the_context() {
        let mut metadata = MetadataMap::new();
        assert_eq!(TraceParent::of(&extract(&metadata)), None);
        let parent = TraceParent { trace_id: new_trace_id(), span_id: new_span_id(), sampled: true };
        TraceContextPropagator::new().inject_context(&parent.context(), &mut IntoMetadata(&mut metadata));
        assert_eq!(TraceParent::of(&extract(&metadata)), Some(parent));
    }
}
