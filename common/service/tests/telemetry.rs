//! Spans of a real process reach a real OTLP service with the right parents, ids and times.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use railyard_common::time::Millis;
use railyard_service::task;
use railyard_service::telemetry::{
    self, KeyValue, SpanKind, SpanRecord, TraceParent, adopt, inject, record_span, set_parent, traceparent_of,
};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;

const BUILD: TraceParent = TraceParent { trace_id: [7; 16], span_id: [1; 8], sampled: true };
const JOB_SPAN_ID: [u8; 8] = [2; 8];

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(&self) -> String {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", tcp.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(self.clone()));
        task::spawn("collector", server.serve_with_incoming(TcpListenerStream::new(tcp)));
        url
    }

    fn spans(&self) -> BTreeMap<String, Span> {
        let requests = self.0.lock().unwrap();
        let scopes = requests.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| &scope.spans).map(|span| (span.name.clone(), span.clone())).collect()
    }

    fn resource(&self) -> BTreeMap<String, String> {
        let requests = self.0.lock().unwrap();
        let resource: Resource = requests[0].resource_spans[0].resource.clone().unwrap();
        let text = |value: Option<Value>| match value {
            Some(Value::StringValue(text)) => text,
            other => format!("{other:?}"),
        };
        resource.attributes.into_iter().map(|pair| (pair.key, text(pair.value.and_then(|any| any.value)))).collect()
    }
}

/// Says to this test program that it is the traced process, not the test.
const CHILD: &str = "RAILYARD_TEST_TRACED";
const TEST: &str = "one_trace_reaches_the_collector_across_processes_and_records";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_reaches_the_collector_across_processes_and_records() {
    if std::env::var_os(CHILD).is_some() {
        return traced_process().await;
    }
    let collector = Collector::default();
    // The variables are read when telemetry is set up, so it is set up in a process that has them from the start.
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(CHILD, "1")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.start().await)
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab")
        .env("RAILYARD_LOG_FORMAT", "json")
        .env("RAILYARD_LOG", "info")
        .env_remove("OTEL_SERVICE_NAME")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .await
        .unwrap();
    let log = String::from_utf8(child.stderr).unwrap();
    assert!(child.status.success(), "{log}");

    let resource = collector.resource();
    assert_eq!(resource["service.name"], "railyard-worker");
    assert_eq!(resource["service.version"], railyard_common::VERSION);
    assert_eq!(resource["deployment.environment.name"], "lab");
    assert_eq!(resource["service.instance.id"].len(), 32);

    let spans = collector.spans();
    assert_eq!(spans.keys().collect::<Vec<_>>(), ["attempt", "build mini/1", "call", "job image", "run", "serve"]);
    check_parents(&spans);
    check_records(&spans);
    check_log(&log);
}

fn check_parents(spans: &BTreeMap<String, Span>) {
    assert_eq!(spans["call"].parent_span_id, [0; 0]);
    assert_eq!(spans["serve"].parent_span_id, spans["call"].span_id, "inject and adopt carry the parent over");
    assert_eq!(spans["serve"].trace_id, spans["call"].trace_id);
    assert_eq!(spans["attempt"].parent_span_id, JOB_SPAN_ID, "an attempt hangs on a job that is recorded later");
    assert_eq!(spans["run"].parent_span_id, spans["attempt"].span_id);
    for name in ["attempt", "run", "job image", "build mini/1"] {
        assert_eq!(spans[name].trace_id, BUILD.trace_id, "{name}");
    }
}

fn check_records(spans: &BTreeMap<String, Span>) {
    let (build, job) = (&spans["build mini/1"], &spans["job image"]);
    assert_eq!((build.span_id.as_slice(), build.parent_span_id.len()), (BUILD.span_id.as_slice(), 0));
    assert_eq!((job.span_id.as_slice(), job.parent_span_id.as_slice()), (&JOB_SPAN_ID[..], &BUILD.span_id[..]));
    assert_eq!((build.start_time_unix_nano, build.end_time_unix_nano), (1_000_000_000, 9_000_000_000));
    assert_eq!((job.start_time_unix_nano, job.end_time_unix_nano), (2_000_000_000, 3_500_000_000));
    let status = job.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "exit code 1"));
    assert_eq!(build.status.as_ref().map_or(0, |status| status.code), 0);
    assert_eq!(job.attributes[0].key, "cicd.pipeline.task.name");
}

fn check_log(log: &str) {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let line = lines.into_iter().find(|line| line["message"] == "container started").expect(log);
    assert_eq!((&line["level"], &line["container"]), (&"INFO".into(), &"c1".into()));
    assert!(!log.contains("too quiet to be logged"));
}

/// What a controller and a worker would do, in one process.
async fn traced_process() {
    let telemetry = telemetry::init("worker", "warn").unwrap();

    let call = tracing::info_span!("call");
    let mut metadata = MetadataMap::new();
    inject(&call, &mut metadata);
    let serve = tracing::info_span!("serve");
    adopt(&serve, &metadata);
    serve.in_scope(|| drop(tracing::info_span!(target: "hyper::proto", "frames")));
    drop((serve, call));

    let attempt = tracing::info_span!("attempt");
    set_parent(&attempt, &BUILD.sibling(JOB_SPAN_ID).to_string());
    assert_eq!(traceparent_of(&attempt).parse::<TraceParent>().unwrap().trace_id, BUILD.trace_id);
    attempt.in_scope(|| {
        let run = tracing::info_span!("run");
        run.in_scope(|| tracing::info!(container = "c1", "container started"));
        tracing::debug!("too quiet to be logged");
    });
    drop(attempt);

    record_span(SpanRecord {
        name: "job image".to_owned(),
        kind: SpanKind::Internal,
        context: BUILD.sibling(JOB_SPAN_ID),
        parent_span_id: Some(BUILD.span_id),
        start: Millis(2_000),
        end: Millis(3_500),
        attributes: vec![KeyValue::new("cicd.pipeline.task.name", "image")],
        error: Some("exit code 1".to_owned()),
    });
    let build = SpanRecord {
        name: "build mini/1".to_owned(),
        kind: SpanKind::Internal,
        context: BUILD,
        parent_span_id: None,
        start: Millis(1_000),
        end: Millis(9_000),
        attributes: Vec::new(),
        error: None,
    };
    record_span(build.clone());
    record_span(SpanRecord {
        name: "not sampled".to_owned(),
        context: TraceParent { sampled: false, ..BUILD },
        ..build
    });
    telemetry.shutdown().await;
}
