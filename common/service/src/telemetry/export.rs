//! Where spans go: the OTLP exporter and what it says about this process.

use super::{TelemetryError, new_trace_id};
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, ResourceDetector as _};
use rustls::RootCertStore;
use tonic::transport::{Certificate, ClientTlsConfig};

/// The environment variable's value, unless it is empty: OpenTelemetry treats the two alike.
pub(super) fn setting(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|text| !text.trim().is_empty())
}

/// The exporter that the `OTEL_*` variables ask for; `None` if they ask for none. Headers, timeout, compression and
/// sampling are read from them by the OpenTelemetry crates themselves.
pub(super) fn exporter() -> Result<Option<SpanExporter>, TelemetryError> {
    let endpoint = setting("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| setting("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let disabled = setting("OTEL_SDK_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"))
        || setting("OTEL_TRACES_EXPORTER").is_some_and(|text| text.trim() == "none");
    let Some(endpoint) = endpoint.filter(|_| !disabled) else { return Ok(None) };
    let mut builder = SpanExporter::builder().with_tonic();
    if endpoint.trim().to_ascii_lowercase().starts_with("https:") {
        builder = builder.with_tls_config(tls()?);
    }
    builder.build().map(Some).map_err(TelemetryError::Exporter)
}

/// A collector elsewhere has a certificate of its own CA (`OTEL_EXPORTER_OTLP_CERTIFICATE`) or of a public one.
fn tls() -> Result<ClientTlsConfig, TelemetryError> {
    let named = setting("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE").or_else(|| setting("OTEL_EXPORTER_OTLP_CERTIFICATE"));
    if let Some(path) = named {
        return match std::fs::read(&path) {
            Ok(pem) => Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))),
            Err(source) => Err(TelemetryError::Certificate { path, source }),
        };
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Ok(ClientTlsConfig::new().trust_anchors(roots.roots))
}

/// What the spans say about the process that they come from. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win.
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
