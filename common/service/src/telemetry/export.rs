//! Where spans and metrics go: the OTLP exporters and what they say about this process.

use super::{TelemetryError, new_trace_id};
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector as _};
use rustls::RootCertStore;
use tonic::transport::{Certificate, ClientTlsConfig};

/// The environment variable's value, unless it is empty: OpenTelemetry treats the two alike.
pub(super) fn setting(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|text| !text.trim().is_empty())
}

/// The exporter of spans that the `OTEL_*` variables ask for; `None` if they ask for none. Headers, timeout, compression and
/// sampling are read from them by the OpenTelemetry crates themselves.
pub(super) fn spans() -> Result<Option<SpanExporter>, TelemetryError> {
    let exporter = to_collector(Signal::Traces, SpanExporter::builder().with_tonic())?;
    exporter.map(|builder| builder.build()).transpose().map_err(TelemetryError::Exporter)
}

/// The same for metrics.
pub(super) fn metrics() -> Result<Option<MetricExporter>, TelemetryError> {
    let exporter = to_collector(Signal::Metrics, MetricExporter::builder().with_tonic())?;
    exporter.map(|builder| builder.build()).transpose().map_err(TelemetryError::Exporter)
}

/// What leaves the process. Each has variables of its own, which win over those for all.
#[derive(Clone, Copy)]
enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    /// The word in its variables.
    fn word(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    /// Its `OTEL_EXPORTER_OTLP_…` setting.
    fn setting(self, what: &str) -> Option<String> {
        let own = setting(&format!("OTEL_EXPORTER_OTLP_{}_{what}", self.word()));
        own.or_else(|| setting(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }

    /// Whether somebody wants none of it, wherever it would go.
    fn is_off(self) -> bool {
        setting("OTEL_SDK_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
            || setting(&format!("OTEL_{}_EXPORTER", self.word())).is_some_and(|text| text.trim() == "none")
    }
}

/// The exporter with what the way to the collector needs; `None` without a collector.
fn to_collector<B: WithTonicConfig>(signal: Signal, builder: B) -> Result<Option<B>, TelemetryError> {
    let endpoint = signal.setting("ENDPOINT").filter(|_| !signal.is_off());
    let Some(endpoint) = endpoint else { return Ok(None) };
    if endpoint.trim().to_ascii_lowercase().starts_with("https:") {
        return Ok(Some(builder.with_tls_config(tls(signal)?)));
    }
    Ok(Some(builder))
}

/// A collector elsewhere has a certificate of its own CA (`OTEL_EXPORTER_OTLP_CERTIFICATE`) or of a public one.
fn tls(signal: Signal) -> Result<ClientTlsConfig, TelemetryError> {
    if let Some(path) = signal.setting("CERTIFICATE") {
        return match std::fs::read(&path) {
            Ok(pem) => Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))),
            Err(source) => Err(TelemetryError::Certificate { path, source }),
        };
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(ClientTlsConfig::new().trust_anchors(roots.roots))
}

/// What spans and metrics say about the process that they come from. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win.
pub(super) fn resource(component: &str) -> Resource {
    let given = EnvResourceDetector::new().detect();
    let defaults = [
        ("service.name", setting("OTEL_SERVICE_NAME").unwrap_or_else(|| format!("railyard-{component}"))),
        ("service.version", railyard_common::VERSION.to_owned()),
        ("service.instance.id", hex::encode(new_trace_id())),
    ];
    let wanted = defaults.into_iter().filter(|(key, _)| {
        let by_variable = *key == "service.name" && setting("OTEL_SERVICE_NAME").is_some();
        by_variable || given.get(&Key::from_static_str(key)).is_none()
    });
    Resource::builder().with_attributes(wanted.map(|(key, value)| KeyValue::new(key, value))).build()
}
