//! Metrics. What is measured is described once, as data: the instruments are made of it, and the manual lists it.
//!
//! **Invariant:** the values of an attribute are a short list that is known when the program is built. A name that somebody
//! chooses (a build's, a pipeline's, a worker's) is no attribute: every new one would be a time series for ever.

use super::{TelemetryError, export};
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use opentelemetry::{InstrumentationScope, global};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use std::time::Duration;

/// Upper ends of the buckets of durations: from a look at an empty cache to a night of deletes.
const SECONDS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0];

/// The variable that says how often metrics are exported, in milliseconds.
const INTERVAL_VARIABLE: &str = "OTEL_METRIC_EXPORT_INTERVAL";
/// OpenTelemetry's default of it.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(60);

/// Something that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// As OpenTelemetry's conventions have it: `railyard.sweep.duration`.
    pub name: &'static str,
    /// What is made of the measurements.
    pub kind: Kind,
    /// In UCUM: `s`, `By`, `{object}`.
    pub unit: &'static str,
    /// What measurements are told apart by.
    pub attributes: &'static [Attribute],
    /// What it tells.
    pub about: &'static str,
}

/// What is made of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Their sum since the start of the process.
    Counter,
    /// The last one.
    Gauge,
    /// How many there were of which size. Of durations, in seconds.
    Histogram,
}

impl Kind {
    /// The word in the manual.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What measurements of one metric are told apart by.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    /// As OpenTelemetry's conventions have it: `railyard.sweep.result`.
    pub name: &'static str,
    /// All that it can be.
    pub values: &'static [&'static str],
    /// What it tells.
    pub about: &'static str,
}

impl Metric {
    /// Counts. What has no attributes begins at zero, so that whoever reads it sees the first increase as one.
    ///
    /// # Panics
    /// If it is no counter.
    pub fn counter(&self, meter: &Meter) -> Counter<u64> {
        assert_eq!(self.kind, Kind::Counter, "{self:?}");
        let counter = meter.u64_counter(self.name).with_unit(self.unit).with_description(self.about).build();
        if self.attributes.is_empty() {
            counter.add(0, &[]);
        }
        counter
    }

    /// Tells how much there is.
    ///
    /// # Panics
    /// If it is no gauge.
    pub fn gauge(&self, meter: &Meter) -> Gauge<u64> {
        assert_eq!(self.kind, Kind::Gauge, "{self:?}");
        meter.u64_gauge(self.name).with_unit(self.unit).with_description(self.about).build()
    }

    /// Takes durations, in seconds.
    ///
    /// # Panics
    /// If it is no histogram of seconds.
    pub fn durations(&self, meter: &Meter) -> Histogram<f64> {
        assert!(self.kind == Kind::Histogram && self.unit == "s", "{self:?} takes no durations");
        let histogram = meter.f64_histogram(self.name).with_unit(self.unit).with_description(self.about);
        histogram.with_boundaries(SECONDS.to_vec()).build()
    }
}

/// What instruments are made with. They do nothing where metrics are not exported, and where telemetry was not set up yet.
pub fn meter() -> Meter {
    let scope = InstrumentationScope::builder("railyard").with_version(railyard_common::VERSION);
    global::meter_with_scope(scope.build())
}

/// Exports what is measured, every now and then.
pub(super) fn provider(exporter: MetricExporter, resource: Resource) -> Result<SdkMeterProvider, TelemetryError> {
    let reader = PeriodicReader::builder(exporter).with_interval(interval()?).build();
    Ok(SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build())
}

/// The SDK takes a zero, and then does nothing but export.
fn interval() -> Result<Duration, TelemetryError> {
    let Some(text) = export::setting(INTERVAL_VARIABLE) else { return Ok(INTERVAL_DEFAULT) };
    match text.trim().parse() {
        Ok(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
        _ => Err(TelemetryError::BadInterval { variable: INTERVAL_VARIABLE, text }),
    }
}
