//! One trace from `submit` through build, job and attempt to fetch, run and upload, across processes, as a real OTLP service
//! receives it.

use opentelemetry_proto::tonic::trace::v1::Span;
use railyard_tests::collector::Collector;
use railyard_tests::engine::Engine;
use railyard_tests::farm::{BUILD_LIMIT, Farm};
use railyard_tests::{image, unique, wait};

fn attribute(span: &Span, key: &str) -> String {
    span.attributes.iter().find(|one| one.key == key).map(|one| format!("{:?}", one.value)).unwrap_or_default()
}

#[test]
fn one_trace_crosses_every_process() {
    let collector = Collector::start();
    let engine = Engine::shared();
    let base = format!("railyard-test-{}:1", unique());
    image::busybox(&engine, &base);
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "200")];
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
        let spans: Vec<(String, Span)> = collector.spans();
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
