//! A real OTLP service: it keeps every span and every measurement that the farm's processes send.

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Metric, NumberDataPoint, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

/// The service, on a thread of its own until the process ends.
pub struct Collector {
    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to be.
    pub endpoint: String,
    received: Received,
}

/// Texts by name: attributes, or what a process says of itself.
pub type Attributes = BTreeMap<String, String>;

/// What one metric measured for one set of attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The process that it comes from.
    pub resource: Attributes,
    /// The metric.
    pub metric: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its unit.
    pub unit: String,
    /// Its description.
    pub about: String,
    /// What was measured.
    pub attributes: Attributes,
    /// The last value; of a counter and of a histogram the sum.
    pub value: f64,
    /// Measurements of a histogram.
    pub count: u64,
    /// The upper ends of its buckets.
    pub bounds: Vec<f64>,
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

    /// The spans that have come so far, with the name of the service that sent them.
    pub fn spans(&self) -> Vec<(String, Span)> {
        self.received.lock().spans.clone()
    }

    /// What has been measured, as the last export of each metric and set of attributes told it.
    pub fn points(&self) -> Vec<Point> {
        let mut last = BTreeMap::new();
        for point in &self.received.lock().points {
            let key = (point.resource.clone(), point.metric.clone(), point.attributes.clone());
            last.insert(key, point.clone());
        }
        last.into_values().collect()
    }
}

#[derive(Clone, Default)]
struct Received(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    spans: Vec<(String, Span)>,
    points: Vec<Point>,
}

impl Received {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let service = attributes.iter().find(|one| one.key == "service.name").map(|one| format!("{:?}", one.value));
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.lock().spans.extend(spans.map(|span| (service.clone().unwrap_or_default(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for resource in request.into_inner().resource_metrics {
            let from = resource.resource.unwrap_or_default();
            let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
            self.lock().points.extend(metrics.flat_map(|metric| points(&from, metric)));
        }
        Ok(Response::new(ExportMetricsServiceResponse { partial_success: None }))
    }
}

fn points(from: &Resource, metric: Metric) -> Vec<Point> {
    let empty = Point {
        resource: texts(&from.attributes),
        metric: metric.name,
        kind: "",
        unit: metric.unit,
        about: metric.description,
        attributes: Attributes::new(),
        value: 0.0,
        count: 0,
        bounds: Vec::new(),
    };
    let number = |kind, point: NumberDataPoint| {
        let value = match point.value {
            Some(number_data_point::Value::AsInt(value)) => value as f64,
            Some(number_data_point::Value::AsDouble(value)) => value,
            None => f64::NAN,
        };
        Point { kind, attributes: texts(&point.attributes), value, ..empty.clone() }
    };
    match metric.data {
        Some(Data::Sum(sum)) if sum.is_monotonic => {
            sum.data_points.into_iter().map(|point| number("counter", point)).collect()
        }
        Some(Data::Gauge(gauge)) => gauge.data_points.into_iter().map(|point| number("gauge", point)).collect(),
        Some(Data::Histogram(histogram)) => {
            let points = histogram.data_points.into_iter().map(|point| Point {
                kind: "histogram",
                attributes: texts(&point.attributes),
                value: point.sum.unwrap_or(f64::NAN),
                count: point.count,
                bounds: point.explicit_bounds,
                ..empty.clone()
            });
            points.collect()
        }
        other => panic!("the farm has no such metrics: {other:?}"),
    }
}

fn texts(attributes: &[KeyValue]) -> Attributes {
    let text = |one: &KeyValue| match one.value.as_ref().and_then(|any| any.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|one| (one.key.clone(), text(one))).collect()
}

async fn collect(received: Received) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("a bound socket has an address");
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let spans = TraceServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Zstd);
    let metrics = MetricsServiceServer::new(received).accept_compressed(CompressionEncoding::Zstd);
    let server = tonic::transport::Server::builder().add_service(spans).add_service(metrics);
    tokio::task::spawn_local(server.serve_with_incoming(incoming));
    address
}
