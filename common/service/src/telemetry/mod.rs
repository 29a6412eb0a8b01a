//! Logs to stderr, traces and metrics to an OpenTelemetry collector.
//!
//! A tracer is always there, so that every build has a trace id and context travels between processes; spans and metrics leave
//! the process only when the standard `OTEL_*` variables name a collector, and without one nothing is measured.

mod context;
mod export;
mod metric;
mod record;

pub use context::{
    BadTraceParent, TraceParent, adopt, extract, inject, new_span_id, new_trace_id, set_parent, traceparent,
    traceparent_of,
};
pub use metric::{Attribute, Kind, Metric, meter};
pub use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
pub use opentelemetry::trace::SpanKind;
pub use opentelemetry::{Context, KeyValue};
pub use record::{SpanRecord, record_span, records_spans};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::io::IsTerminal as _;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// Telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A filter is not one.
    #[error(
        "{variable}=`{text}` is not a log filter: {why}; expected for instance `info` or `info,railyard_worker=debug`"
    )]
    BadFilter {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A log format is not one.
    #[error("{FORMAT_VARIABLE}=`{0}` is not a log format: expected `text` or `json`")]
    BadFormat(String),
    /// An interval is not one.
    #[error("{variable}=`{text}` is not a length of time in milliseconds: expected for instance `60000`")]
    BadInterval {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        text: String,
    },
    /// The exporter cannot be made.
    #[error("cannot set up the OTLP exporter; check OTEL_EXPORTER_OTLP_ENDPOINT and its like")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// The collector's CA cannot be read.
    #[error("cannot read {path}, which OTEL_EXPORTER_OTLP_CERTIFICATE names")]
    Certificate {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody has set up telemetry in this process already.
    #[error("telemetry is set up already in this process")]
    Twice,
}

/// `text` or `json`.
const FORMAT_VARIABLE: &str = "RAILYARD_LOG_FORMAT";

/// Crates that carry the spans: tracing them would make spans about sending spans.
const TRANSPORT_CRATES: [&str; 8] = ["hyper", "tonic", "h2", "tower", "reqwest", "rustls", "tokio", "opentelemetry"];

/// What must be shut down before the process ends, so that the last spans and measurements get out.
#[derive(Debug)]
#[must_use = "the last spans and measurements are lost unless it is shut down"]
pub struct Telemetry {
    spans: SdkTracerProvider,
    /// Of a process that exports metrics.
    metrics: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Exports what is left. Takes at most a few seconds, also if the collector is gone.
    pub async fn shutdown(self) {
        let Self { spans, metrics } = self;
        let metrics = async {
            if let Some(provider) = metrics {
                last("measurements", move || provider.shutdown()).await;
            }
        };
        // Both at once: a collector that is gone is waited for once.
        tokio::join!(last("spans", move || spans.shutdown()), metrics);
    }
}

async fn last(what: &'static str, shutdown: impl FnOnce() -> OTelSdkResult + Send + 'static) {
    // The SDK blocks its thread while the exporter needs the runtime's.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(shutdown).await {
        tracing::warn!(%error, "the last {what} may not have reached the collector");
    }
}

/// Sets up logs, traces and metrics for the process, `controller`, `worker`, `dev` or `cli`; inside the tokio runtime, once.
///
/// Logs go to stderr, filtered by `RAILYARD_LOG`, else `RUST_LOG`, else `default_filter`, as text or, with
/// `RAILYARD_LOG_FORMAT=json`, as JSON lines.
///
/// # Errors
/// [`TelemetryError`] names the variable that is wrong.
pub fn init(component: &'static str, default_filter: &str) -> Result<Telemetry, TelemetryError> {
    let filter = log_filter(default_filter)?;
    let json = log_as_json()?;
    // One for both: they come from the same instance.
    let resource = export::resource(component);
    let metrics = export::metrics()?.map(|exporter| metric::provider(exporter, resource.clone())).transpose()?;
    let mut builder = SdkTracerProvider::builder().with_id_generator(record::Ids::default()).with_resource(resource);
    let exporter = export::spans()?;
    let exports = exporter.is_some();
    if let Some(exporter) = exporter {
        builder = builder.with_batch_exporter(exporter);
    }
    let provider = builder.build();
    let tracer = provider.tracer("railyard");
    let spans = tracing_opentelemetry::layer().with_tracer(tracer.clone()).with_location(false).with_threads(false);
    let subscriber =
        tracing_subscriber::registry().with(spans.with_filter(span_filter())).with(log_layer(json, filter));
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    if exports {
        record::TRACER.set(tracer).map_err(|_| TelemetryError::Twice)?;
    }
    if let Some(metrics) = &metrics {
        opentelemetry::global::set_meter_provider(metrics.clone());
    }
    Ok(Telemetry { spans: provider, metrics })
}

fn log_filter(default_filter: &str) -> Result<EnvFilter, TelemetryError> {
    let given = ["RAILYARD_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, export::setting(name)?)));
    let (variable, text) = given.unwrap_or(("the default", default_filter.to_owned()));
    parse_filter(variable, text)
}

fn parse_filter(variable: &'static str, text: String) -> Result<EnvFilter, TelemetryError> {
    let parsed = EnvFilter::builder().parse(&text);
    parsed.map_err(|error| TelemetryError::BadFilter { variable, why: error.to_string(), text })
}

fn log_as_json() -> Result<bool, TelemetryError> {
    match export::setting(FORMAT_VARIABLE).as_deref() {
        None | Some("text") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(TelemetryError::BadFormat(other.to_owned())),
    }
}

fn log_layer<S>(json: bool, filter: EnvFilter) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    if json {
        return lines.json().flatten_event(true).with_filter(filter).boxed();
    }
    lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed()
}

/// Spans and their events from `info` up, none of the transport's. What goes to stderr is filtered apart.
fn span_filter() -> Targets {
    let all = Targets::new().with_default(LevelFilter::INFO);
    all.with_targets(TRANSPORT_CRATES.map(|name| (name, LevelFilter::OFF)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named_with_its_variable() {
        let error = parse_filter("RAILYARD_LOG", "info,railyard=loud".to_owned()).unwrap_err().to_string();
        assert!(error.starts_with("RAILYARD_LOG=`info,railyard=loud` is not a log filter: "), "{error}");
        assert!(parse_filter("RAILYARD_LOG", "info,railyard_worker=debug".to_owned()).is_ok());
    }
}
