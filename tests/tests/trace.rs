//! One trace from `submit` through build, job and attempt to fetch, run and upload, across processes, as a real OTLP service
//! receives it.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm};
use railyard_tests::{image, unique, wait};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tonic::{Request, Response, Status};

/// Spans with the name of the service that sent them.
type Received = Arc<Mutex<Vec<(String, Span)>>>;

struct Collector(Received);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes.iter().find(|one| one.key == "service.name").map(|one| format!("{:?}", one.value));
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            received.extend(spans.map(|span| (service.clone().unwrap_or_default(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

async fn collect(received: Received) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service =
        TraceServiceServer::new(Collector(received)).accept_compressed(tonic::codec::CompressionEncoding::Zstd);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    tokio::task::spawn_local(server);
    address
}

fn attribute(span: &Span, key: &str) -> String {
    span.attributes.iter().find(|one| one.key == key).map(|one| format!("{:?}", one.value)).unwrap_or_default()
}

#[test]
fn one_trace_crosses_every_process() {
    let received = Received::default();
    let sink = received.clone();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            tell.send(collect(sink).await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let endpoint = format!("http://{}", told.recv().unwrap());

    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "200")];
    let farm = Farm::start_with("", &env);
    let _worker = farm.worker("w", &engine, "");
    let path = farm.pipeline(
        "traced",
        &format!(
            "name: traced\nsteps:\n  - name: only\n    image: {base}\n    script: echo x > x\n    outputs: [x]\n    \
             resources: {{ cpu: 0.5, memory: 64MiB, disk: 64MiB }}\n"
        ),
    );
    let build = farm.submit(&path, &["--wait"]);
    let trace_id = farm.show(&build)["trace_id"].as_str().unwrap().to_owned();

    // From the leaf to the root: each one's parent is the next.
    let chain = ["submit", "BUILD traced", "only@linux/", "attempt"];
    let leaves = ["fetch", "run", "upload"];
    wait::until("a whole trace", BUILD_LIMIT, || {
        let spans: Vec<(String, Span)> = received.lock().unwrap().clone();
        let names: Vec<&str> = spans.iter().map(|(_, span)| span.name.as_str()).collect();
        let find = |name: &str| {
            let found = spans.iter().find(|(_, span)| span.name.starts_with(name) && hex(&span.trace_id) == trace_id);
            found.ok_or_else(|| format!("no span {name} of trace {trace_id} among {names:?}"))
        };
        for pair in chain.windows(2) {
            let (parent, child) = (find(pair[0])?, find(pair[1])?);
            is_child(child, parent)?;
        }
        let attempt = find("attempt")?;
        for leaf in leaves {
            is_child(find(leaf)?, attempt)?;
        }
        if !find("submit")?.1.parent_span_id.is_empty() {
            return Err("submit is not the root".to_owned());
        }
        let services: Vec<&str> = ["submit", "BUILD traced", "attempt"]
            .iter()
            .filter_map(|name| find(name).ok().map(|one| one.0.as_str()))
            .collect();
        if services[0] == services[1] || services[1] == services[2] || services[0] == services[2] {
            return Err(format!("the spans come from one process: {services:?}"));
        }
        let result = attribute(&find("BUILD traced")?.1, "cicd.pipeline.result");
        if result.contains("success") { Ok(()) } else { Err(format!("the result is {result}")) }
    });
    engine.query(&["image", "rm", &base]);
}

fn is_child((_, child): &(String, Span), (_, parent): &(String, Span)) -> Result<(), String> {
    if child.parent_span_id != parent.span_id {
        return Err(format!("{} is not the child of {}", child.name, parent.name));
    }
    let within = child.start_time_unix_nano + 5_000_000 >= parent.start_time_unix_nano;
    if within { Ok(()) } else { Err(format!("{} begins before {}", child.name, parent.name)) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
