//! Without a collector nothing is exported, and trace context still travels.

use railyard_service::telemetry::{self, TraceParent, adopt, inject, traceparent_of};
use tonic::metadata::MetadataMap;

#[tokio::test]
async fn context_travels_without_a_collector() {
    let before = tracing::info_span!("before");
    assert_eq!(traceparent_of(&before), "", "no context before telemetry is set up");

    let telemetry = telemetry::init("cli", "warn").unwrap();
    let call = tracing::info_span!("call");
    let parent: TraceParent = traceparent_of(&call).parse().unwrap();
    assert!(parent.sampled, "the next process may have a collector");
    let mut metadata = MetadataMap::new();
    inject(&call, &mut metadata);
    let serve = tracing::info_span!("serve");
    adopt(&serve, &metadata);
    let child: TraceParent = traceparent_of(&serve).parse().unwrap();
    assert_eq!(child.trace_id, parent.trace_id);
    assert_ne!(child.span_id, parent.span_id);

    assert!(telemetry::init("cli", "warn").is_err(), "once per process");
    drop((call, serve));
    telemetry.shutdown().await;
}
