//! Measurements of a real process reach a real OTLP service, where the variables say so.

use railyard_service::telemetry::{self, Attribute, KeyValue, Kind, Metric};
use railyard_tests::collector::Collector;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const COLOUR: Attribute = Attribute { name: "test.colour", values: &["red", "green"], about: "of a thing" };
const THINGS: Metric =
    Metric { name: "test.things", kind: Kind::Counter, unit: "{thing}", attributes: &[], about: "things" };
const HELD: Metric = Metric { name: "test.held", kind: Kind::Gauge, unit: "By", attributes: &[COLOUR], about: "held" };
const TOOK: Metric = Metric { name: "test.took", kind: Kind::Histogram, unit: "s", attributes: &[], about: "took" };

/// Says to this test program that it is the measured process; `waits`: until nobody writes to it any more.
const CHILD: &str = "RAILYARD_TEST_MEASURED";
/// What the measured process is.
const TEST: &str = "what_is_measured_reaches_the_collector_when_the_process_ends";
/// Stands in a variable for the collector's address.
const HERE: &str = "COLLECTOR";
/// Stands before the number of threads that telemetry has.
const THREADS: &str = "threads of telemetry: ";

fn command(collector: &Collector, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.args(["--exact", TEST, "--nocapture"]).env(CHILD, "ends").stdin(Stdio::null());
    command.envs(variables.iter().map(|(name, value)| (name, value.replace(HERE, &collector.endpoint))));
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_measured_reaches_the_collector_when_the_process_ends() {
    if let Ok(how) = std::env::var(CHILD) {
        return measured_process(&how).await;
    }
    let collector = Collector::start();
    let output = command(&collector, &[("OTEL_EXPORTER_OTLP_ENDPOINT", HERE), ("OTEL_SERVICE_NAME", "forge")]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let points = collector.points();
    let told: Vec<_> = points
        .iter()
        .map(|one| (one.metric.as_str(), one.kind, one.unit.as_str(), one.about.as_str(), one.value, one.count))
        .collect();
    let want = [
        ("test.held", "gauge", "By", "held", 7.0, 0),
        ("test.held", "gauge", "By", "held", 2.0, 0),
        ("test.idle", "counter", "{thing}", "things", 0.0, 0),
        ("test.things", "counter", "{thing}", "things", 3.0, 0),
        ("test.took", "histogram", "s", "took", 0.25, 1),
    ];
    assert_eq!(told, want);
    assert_eq!(points[0].attributes["test.colour"], "green");
    assert_eq!(points[1].attributes["test.colour"], "red");
    for point in &points {
        assert_eq!(point.resource["service.name"], "forge");
        assert_eq!(point.resource["service.version"], railyard_common::VERSION);
        assert_eq!(point.resource["service.instance.id"], points[0].resource["service.instance.id"]);
    }
    let spans: Vec<String> = collector.spans().into_iter().map(|(_, span)| span.name).collect();
    assert_eq!(spans, ["call"]);
}

/// The variables, and which signals reach the collector: Metrics, Traces. Each has a thread.
type Case = (&'static [(&'static str, &'static str)], &'static str);

const CASES: [Case; 8] = [
    (&[], ""),
    (&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], ""),
    (&[("OTEL_EXPORTER_OTLP_ENDPOINT", HERE)], "MT"),
    (&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", HERE)], "M"),
    (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", HERE)], "T"),
    (&[("OTEL_EXPORTER_OTLP_ENDPOINT", HERE), ("OTEL_METRICS_EXPORTER", "none")], "T"),
    (&[("OTEL_EXPORTER_OTLP_ENDPOINT", HERE), ("OTEL_TRACES_EXPORTER", "none")], "M"),
    (&[("OTEL_EXPORTER_OTLP_ENDPOINT", HERE), ("OTEL_SDK_DISABLED", "true")], ""),
];

#[test]
fn spans_and_metrics_go_where_the_variables_say_and_cost_no_thread_otherwise() {
    for (variables, signals) in CASES {
        let collector = Collector::start();
        let output = command(&collector, variables).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let came = [("M", !collector.points().is_empty()), ("T", !collector.spans().is_empty())];
        let came: String = came.into_iter().filter(|(_, came)| *came).map(|(letter, _)| letter).collect();
        assert_eq!(came, signals, "{variables:?}");
        let said = text(&output);
        let threads = said.lines().find_map(|line| line.split_once(THREADS)).unwrap_or_else(|| panic!("{said}")).1;
        assert_eq!(threads, signals.len().to_string(), "{variables:?}");
    }
}

#[test]
fn what_is_measured_leaves_a_process_that_goes_on_at_the_interval() {
    let collector = Collector::start();
    let variables =
        [("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", HERE), ("OTEL_METRIC_EXPORT_INTERVAL", "20"), (CHILD, "waits")];
    let mut child = command(&collector, &variables).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let looks = std::iter::repeat_with(|| std::thread::sleep(Duration::from_millis(20))).take(1_500);
    let came = looks.into_iter().any(|()| collector.points().iter().any(|one| one.metric == THINGS.name));
    assert!(child.try_wait().unwrap().is_none(), "the process runs until it is let go");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(came, "within half a minute");
}

#[test]
fn a_bad_interval_is_named_with_its_variable() {
    let collector = Collector::start();
    for bad in ["0", "-1", "1m"] {
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", HERE), ("OTEL_METRIC_EXPORT_INTERVAL", bad)];
        let output = command(&collector, &variables).output().unwrap();
        let why = format!("OTEL_METRIC_EXPORT_INTERVAL=`{bad}` is not a length of time in milliseconds");
        assert!(!output.status.success() && text(&output).contains(&why), "{}", text(&output));
    }
}

async fn measured_process(how: &str) {
    let before = threads();
    let telemetry = telemetry::init("worker", "warn").unwrap_or_else(|error| panic!("{error}"));
    println!("{THREADS}{}", threads() - before);
    drop(tracing::info_span!("call"));
    let meter = telemetry::meter();
    THINGS.counter(&meter).add(3, &[]);
    Metric { name: "test.idle", ..THINGS }.counter(&meter);
    HELD.gauge(&meter).record(1, &[KeyValue::new(COLOUR.name, "red")]);
    HELD.gauge(&meter).record(2, &[KeyValue::new(COLOUR.name, "red")]);
    HELD.gauge(&meter).record(7, &[KeyValue::new(COLOUR.name, "green")]);
    TOOK.durations(&meter).record(0.25, &[]);
    if how == "waits" {
        tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
            .await
            .unwrap()
            .unwrap();
    }
    telemetry.shutdown().await;
}

/// Threads of this process. One is counted from the moment when it was made.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}
