//! A real OTLP service: it keeps every span that the farm's processes send.

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::{Request, Response, Status};

/// Spans with the name of the service that sent them.
type Received = Arc<Mutex<Vec<(String, Span)>>>;

/// The service, on a thread of its own until the process ends.
pub struct Collector {
    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to be.
    pub endpoint: String,
    received: Received,
}

impl Collector {
    /// Starts it.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start() -> Self {
        let received = Received::default();
        let sink = received.clone();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            tokio::task::LocalSet::new().block_on(&runtime, async {
                tell.send(collect(sink).await).expect("the test waits for it");
                std::future::pending::<()>().await;
            });
        });
        let address = told.recv().expect("the service listens");
        Self { endpoint: format!("http://{address}"), received }
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<(String, Span)> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Sink(Received);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = TraceServiceServer::new(Sink(received)).accept_compressed(tonic::codec::CompressionEncoding::Zstd);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
    tokio::task::spawn_local(server);
    address
}
