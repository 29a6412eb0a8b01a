//! Pipeline files, as anybody may submit them.

use super::{Target, texts};
use railyard_common::pipeline::limits::DIAGNOSTICS_MAX;
use railyard_common::pipeline::{Diagnostic, Pipeline, Request, Source, script_files};
use railyard_common::plan::Plan;
use std::collections::{BTreeMap, BTreeSet};

pub const PIPELINE: Target = Target {
    name: "pipeline",
    parse,
    examples: || {
        texts(&[
            include_str!("../../../../common/tests/pipelines/good/everything.yaml"),
            "name: a\nplatforms: [linux/amd64]\nsteps:\n  - name: b\n    image: i\n    script: s\n",
        ])
    },
    words: &[
        "name: ",
        "platforms: ",
        "steps:\n",
        "  - ",
        "image: ",
        "script: ",
        "script: { file: a.sh }",
        "outputs:\n",
        "inputs:\n",
        "needs: ",
        "matrix: ",
        "{{ matrix.n }}",
        "{{ p }}",
        "{{ q }}",
        "params: {p: {default: \"{{ q }}\"}}\n",
        "{{ version }}",
        "params:\n",
        "default: ",
        "resources: ",
        "cpu: 1",
        "memory: 1GiB",
        "linux/amd64",
        "linux/arm64",
        "&a ",
        "*a",
        "<<: *a",
        "!!binary ",
        "? ",
        ": ",
        "|\n",
        ">-\n",
        "'",
        "\"\\u0000\"",
        "[",
        "]",
        "{",
        "}",
        "\n---\n",
        "\t",
        "#",
        "%YAML 1.2\n",
        "timeout: 1h",
        "publish: ",
        "glob: ",
        "retry: ",
        "commit: true",
        "privileged: true",
        "- *a\n",
    ],
    max_len: 64 * 1024,
    // A short file may make many jobs; how many is limited, and so is what they have.
    memory_factor: 4_000,
    // Aliases multiply: the 100,000 values and 8 MiB of text that a file may have, all told, may come from a few lines.
    memory_base: 32 << 20,
};

fn parse(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let names = script_files(&text, "p.yaml").unwrap_or_default();
    let files: BTreeMap<String, String> = names.into_iter().map(|path| (path, "true\n".to_owned())).collect();
    let pipeline = match Pipeline::parse(&Source { file_name: "p.yaml", text: &text, files: &files }) {
        Ok(pipeline) => pipeline,
        Err(problems) => return refused(&problems, &text),
    };
    let summary = pipeline.summary();
    let request = Request::of("1".parse().expect("a version"));
    match pipeline.plan(&request) {
        Ok(plan) => planned(&plan, format!("{summary:?}").len().ilog2()),
        Err(problems) => refused(&problems, &text),
    }
}

fn planned(plan: &Plan, size: u32) -> String {
    let mut seen = BTreeSet::new();
    for job in &plan.jobs {
        assert!(job.needs.iter().all(|need| seen.contains(need)), "{} stands before what it needs", job.name);
        assert!(seen.insert(job.name.clone()), "{} stands twice", job.name);
    }
    "planned ".repeat(usize::try_from(size).unwrap_or_default().min(12))
}

fn refused(problems: &[Diagnostic], text: &str) -> String {
    assert!(!problems.is_empty() && problems.len() <= DIAGNOSTICS_MAX + 1);
    let lines = text.split(['\n', '\r']).count().max(1);
    for problem in problems {
        assert!(problem.line >= 1 && problem.column >= 1 && problem.line as usize <= lines + 1, "{problem}");
        assert!(!problem.to_string().chars().any(char::is_control), "{problem:?}");
    }
    problems.first().map(ToString::to_string).unwrap_or_default()
}
