//! Whatever the text: no panic, no endless work. And what is valid stays valid however it is written.

use proptest::prelude::*;
use railyard_common::path::Glob;
use railyard_common::pipeline::limits::{DIAGNOSTICS_MAX, FILE_MAX_BYTES};
use railyard_common::pipeline::{Diagnostic, Pipeline, Request, Source, script_files};
use railyard_common::plan::Plan;
use railyard_common::platform::Platform;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const EVERYTHING: &str = include_str!("pipelines/good/everything.yaml");

/// All that can be done with a text.
fn run(text: &str, params: &[(&str, &str)]) -> Result<Plan, Vec<Diagnostic>> {
    let names = script_files(text, "p.yaml").unwrap_or_default();
    let files: BTreeMap<String, String> = names.into_iter().map(|path| (path, "true\n".to_owned())).collect();
    let pipeline = Pipeline::parse(&Source { file_name: "p.yaml", text, files: &files })?;
    pipeline.summary();
    pipeline.plan(&Request {
        params: params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Request::of("1.0".parse().unwrap())
    })
}

/// What holds for every refusal.
fn check_problems(problems: &[Diagnostic], text: &str) {
    assert!(!problems.is_empty(), "refused without a reason");
    assert!(problems.len() <= DIAGNOSTICS_MAX + 1);
    assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
    let lines = text.split(['\n', '\r']).count().max(1);
    for problem in problems {
        assert!(problem.line >= 1 && problem.column >= 1 && problem.line as usize <= lines + 1, "{problem}");
        assert!(!problem.to_string().chars().any(char::is_control), "{problem:?}");
    }
}

/// What holds for every plan.
fn check_plan(plan: &Plan) {
    let mut seen = BTreeSet::new();
    for job in &plan.jobs {
        assert!(job.needs.iter().all(|need| seen.contains(need)), "{} stands before what it needs", job.name);
        assert!(job.needs.is_sorted(), "{}", job.name);
        assert!(plan.platforms.contains(&job.name.platform));
        assert!(seen.insert(job.name.clone()), "{} stands twice", job.name);
    }
}

fn check(text: &str, params: &[(&str, &str)]) {
    match run(text, params) {
        Ok(plan) => check_plan(&plan),
        Err(problems) => check_problems(&problems, text),
    }
}

/// Pieces of YAML and of the format, so that random texts get far.
fn fragment() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "name: ",
        "steps:\n",
        "  - ",
        "platforms: [linux/amd64]\n",
        "image: x\n",
        "script: |\n    ",
        "{{ ",
        " }}",
        "\\{{",
        "matrix: { a: [1, 2] }\n",
        "needs: [",
        "a",
        "b.1@linux/arm64",
        "]",
        "{",
        "}",
        "&x ",
        "*x",
        "<<: ",
        "? ",
        ": ",
        "\n",
        "    ",
        "\t",
        "'",
        "\"",
        "outputs:\n",
        "- path: ",
        "inputs: ",
        "publish: ",
        "../",
        "**",
        "[",
        "#",
        "---\n",
        "!t ",
        "params: { p: { default: ",
        "version",
        "matrix.a",
        ">-\n",
        "~",
        "\u{0}",
        "\u{feff}",
        "\r\n",
        "é",
        "env: ",
        "timeout: 1h\n",
        "approval: ",
        "concurrency: { group: ",
        "pool: ",
        "labels: { kvm: ",
        "supersede: ",
    ]);
    prop_oneof![4 => words.prop_map(str::to_owned), 1 => any::<String>()]
}

/// One change of a text: what is at a place is removed, repeated or replaced.
fn mutate(text: &str, at: usize, length: usize, with: &str, repeat: bool) -> String {
    let start = text.floor_char_boundary(at % (text.len() + 1));
    let end = text.ceil_char_boundary((start + length).min(text.len()));
    let kept = if repeat { &text[start..end] } else { "" };
    format!("{}{kept}{with}{kept}{}", &text[..start], &text[end..])
}

fn name(n: usize) -> String {
    format!("step-{n}")
}

/// A valid pipeline: each step may take image and artifacts of the ones before it.
fn valid_pipeline() -> impl Strategy<Value = Value> {
    let step = (any::<u16>(), any::<u16>(), 0usize..4, any::<bool>(), prop::option::of(1u32..1000), 0u32..=10);
    (prop::collection::vec(step, 1..8), any::<bool>()).prop_map(|(seeds, both)| {
        let mut steps = Vec::new();
        for (n, (one, two, variants, commit, secs, retries)) in seeds.iter().enumerate() {
            let before = |seed: &u16| (n > 0 && !seed.is_multiple_of(4)).then(|| *seed as usize % n.max(1));
            let mut step = json!({
                "name": name(n),
                "script": "echo {{ step }} \\{{ {{ p }}\nexit 0\n",
                "image": "debian:{{ p }}",
                "env": { "A": "{{ version }} # not a comment" },
                "outputs": [{ "path": "out/a b.txt", "publish": "x/{{ step }}/{{ platform }}" }, { "path": "**/*.raw" }],
                "retries": retries,
            });
            if *variants > 0 {
                step["matrix"] = json!({ "v": (0..*variants).map(|v| format!("v{v}")).collect::<Vec<_>>() });
                step["outputs"][0]["publish"] = json!("x/{{ step }}/{{ platform }}/{{ matrix.v }}");
            }
            if let Some(from) = before(one) {
                step["inputs"] = json!([{ "step": name(from), "artifacts": ["out/a b.txt", "*/x.raw"] }]);
            }
            if let Some(from) = before(two).filter(|from| seeds[*from].2 == 0) {
                step["image"] = match seeds[from].3 {
                    true => json!({ "step": name(from) }),
                    false => json!({ "import": name(from), "artifact": "out/a b.txt" }),
                };
            }
            if let Some(secs) = secs {
                step["timeout"] = json!(format!("{secs}s"));
            }
            match variants {
                0 => step["approval"] = json!(["true", "goes out as {{ version }}"][n % 2]),
                1 => step["concurrency"] = json!({ "group": "{{ pipeline }}/{{ platform }}", "limit": n + 1 }),
                2 => step["labels"] = json!({ "kvm": "yes", "a.b/c-d_e": "{{ matrix.v }}" }),
                _ => step["pool"] = json!("pool-{{ arch }}"),
            }
            step["commit"] = json!(commit);
            steps.push(step);
        }
        let platforms: &[&str] = if both { &["linux/amd64", "linux/arm64"] } else { &["linux/arm64"] };
        let params = json!({ "p": { "default": "1" } });
        json!({ "name": "p", "platforms": platforms, "params": params, "supersede": "{{ p }}", "steps": steps })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        check(&text, &[]);
    }

    #[test]
    fn no_mixture_of_yaml_makes_it_panic(pieces in prop::collection::vec(fragment(), 0..60)) {
        check(&pieces.concat(), &[("p", "{{ version }}")]);
    }

    #[test]
    fn no_change_of_a_valid_file_makes_it_panic(
        changes in prop::collection::vec((any::<usize>(), 0usize..40, fragment(), any::<bool>()), 1..4),
    ) {
        let text = changes.iter().fold(EVERYTHING.to_owned(), |text, (at, length, with, repeat)| {
            mutate(&text, *at, *length, with, *repeat)
        });
        check(&text, &[("apt_mirror", "x")]);
    }

    #[test]
    fn no_parameter_makes_it_panic(value in prop_oneof![any::<String>(), prop::collection::vec(fragment(), 0..6).prop_map(|p| p.concat())]) {
        let text = "name: p\nplatforms: [linux/amd64]\nparams: { p: }\nsupersede: \"{{ p }}\"\nsteps:\n  - name: a\n    image: \"{{ p }}\"\n    \
            script: \"{{ p }}\"\n    env: { A: \"{{ p }}\" }\n    approval: \"{{ p }}\"\n    concurrency: \"{{ p }}\"\n    pool: \"{{ p }}\"\n    labels: { a: \"{{ p }}\" }\n    outputs: [{ path: \"{{ p }}\", publish: \"{{ p }}\" }, { path: \"{{ p }}/x\" }]\n  \
            - name: b\n    image: { import: a, artifact: \"{{ p }}\" }\n    script: x\n    inputs: [{ step: a, artifacts: [\"{{ p }}\"], path: \"/{{ p }}\" }]\n";
        check(text, &[("p", &value)]);
    }

    /// A glob that is accepted can be matched with.
    #[test]
    fn no_glob_makes_it_panic(text in "[a\\[\\]{},*?!^/é\\-]{1,40}") {
        if let Ok(glob) = text.parse::<Glob>() {
            glob.matcher().is_match("a/é");
        }
    }

    /// The same pipeline as JSON, as block YAML, with CRLF and read again from what was written: the same plan.
    #[test]
    fn a_valid_file_stays_valid_however_it_is_written(pipeline in valid_pipeline()) {
        let as_json = serde_json::to_string_pretty(&pipeline).unwrap();
        let as_yaml = serde_saphyr::to_string(&pipeline).unwrap();
        let again: Value = serde_saphyr::from_str(&as_yaml).unwrap();
        let plan = run(&as_yaml, &[]).map_err(|problems| TestCaseError::fail(format!("{problems:#?}\n{as_yaml}")))?;
        check_plan(&plan);
        let variants: usize = pipeline["steps"].as_array().unwrap().iter()
            .map(|step| step["matrix"]["v"].as_array().map_or(1, Vec::len)).sum();
        prop_assert_eq!(plan.jobs.len(), variants * pipeline["platforms"].as_array().unwrap().len());
        for text in [as_json, as_yaml.replace('\n', "\r\n"), serde_saphyr::to_string(&again).unwrap()] {
            let again = run(&text, &[]);
            prop_assert_eq!(again.as_ref(), Ok(&plan), "{}", text);
        }
    }
}

fn refused(text: &str) -> Vec<Diagnostic> {
    let problems = run(text, &[]).expect_err("too large, but accepted");
    check_problems(&problems, text);
    problems
}

const HEAD: &str = "name: p\nplatforms: [linux/amd64, linux/arm64]\n";

#[test]
fn files_have_a_limit() {
    let text = format!("{HEAD}# {}\n", "x".repeat(FILE_MAX_BYTES));
    assert!(refused(&text)[0].message.contains("bytes"), "{text}");
}

#[test]
fn steps_jobs_and_matrices_have_limits() {
    let step =
        |n: usize, matrix: &str| format!("  - {{ name: s{n}, image: x, script: x, matrix: {{ a: [{matrix}] }} }}\n");
    let values = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let pipeline = |count: usize, matrix: &str| {
        format!("{HEAD}steps:\n{}", (0..count).map(|n| step(n, matrix)).collect::<String>())
    };
    assert_eq!(run(&pipeline(500, "1, 2"), &[]).map(|plan| plan.jobs.len()), Ok(2000));
    assert_eq!(run(&pipeline(5, &values(200)), &[]).map(|plan| plan.jobs.len()), Ok(2000));
    for (text, what) in [
        (pipeline(501, "1"), "at most 500"),
        (pipeline(500, "1, 2, 3"), "at most 2000"),
        (pipeline(1, &values(201)), "at most 200"),
    ] {
        assert!(refused(&text)[0].message.contains(what), "{what}");
    }
}

#[test]
fn what_substitution_makes_has_limits() {
    let text = format!(
        "{HEAD}params: {{ p: {{ default: \"{}\" }} }}\nsteps:\n  - name: a\n    image: x\n    script: \"{}\"\n",
        "x".repeat(60_000),
        "{{ p }}".repeat(30_000)
    );
    assert!(refused(&text)[0].message.contains("bytes"));
    let step = "  - { name: a, image: x, script: \"{{ p }}{{ p }}{{ p }}{{ p }}\", matrix: { a: [VALUES] } }\n";
    let values = (0..100).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let text = format!(
        "{HEAD}params: {{ p: {{ default: \"{}\" }} }}\nsteps:\n{}",
        "x".repeat(60_000),
        step.replace("VALUES", &values)
    );
    assert!(refused(&text)[0].message.contains("together"));
}

#[test]
fn dependencies_of_all_jobs_together_have_a_limit() {
    let values = (0..200).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let step = |name: &str, more: &str| {
        format!(
            "  - {{ name: {name}, image: x, script: x, matrix: {{ a: [{values}] }}, outputs: [{{ path: \"*\" }}]{more} }}\n"
        )
    };
    let text = format!("{HEAD}steps:\n{}{}", step("a", ""), step("b", ", inputs: [{ step: a }]"));
    assert!(refused(&text)[0].message.contains("dependencies"));
}

/// Texts that would take a careless reader minutes or all memory. They end in time or the test run does not.
#[test]
fn hostile_texts_are_refused_in_time() {
    let fill = |piece: &str| piece.repeat((FILE_MAX_BYTES - 200) / piece.len());
    let aliases = (1..2000).map(|n| format!("k{n}: &a{n} [*a{0}, *a{0}]\n", n - 1)).collect::<String>();
    let names = (0..400).map(|n| format!("  - name: step-number-{n}\n")).collect::<String>();
    let merged = (0..30_000).map(|n| format!("{{k{n}: 1}}, ")).collect::<String>();
    let wide = (0..100).map(|n| format!("      - {{ step: step-number-0, path: /{n} }}\n")).collect::<String>();
    let matrix = (0..200).map(|n| format!("{n}, ")).collect::<String>();
    let chain = (1..2000).map(|n| format!("k{n}: &a{n} [*a{}]\n", n - 1)).collect::<String>();
    let scripts = "- *s\n".repeat(100_000);
    for text in [
        format!("name: \"{}\"\n", fill("{{")),
        format!("{HEAD}steps:\n  - {{ name: a, image: x, script: \"{}\" }}\n", "{{ a }}".repeat(30_000)),
        fill("["),
        fill("{a: "),
        fill("- "),
        fill("&a "),
        fill("a\n"),
        fill("? "),
        format!("[{}]", fill("a,")),
        format!("{{{}}}", fill("a: 1, ")),
        format!("{HEAD}steps: [{}]", fill("{},")),
        format!("k0: &a0 [x]\n{aliases}"),
        format!("k0: &a0 [x]\n{chain}"),
        format!("<<: [{merged}]\n"),
        fill("longer-than-needed-é: x\n"),
        (0..40_000).map(|n| format!("scrip-{n}: x\n")).collect::<String>(),
        format!("{HEAD}steps:\n{names}  - name: a\n    needs: [{}]\n", "step-numbr-x, ".repeat(100)),
        format!("{HEAD}steps:\n{}", format!("  - needs: [{}]\n", "step-numbr, ".repeat(100)).repeat(400) + &names),
        format!(
            "{HEAD}steps:\n{names}    matrix: {{ a: [{matrix}] }}\n  - &big\n    inputs:\n{wide}{}",
            "  - *big\n".repeat(90)
        ),
        format!("s: &s \"{}\"\nl:\n{scripts}", "{{ x }}".repeat(70_000)),
        format!("{HEAD}steps:\n  - name: a\n    image: x\n    script: x\n    env: {{ {} }}\n", fill("<<: {a: b}, ")),
        format!("{HEAD}steps:\n  - name: {}\n  - name: b\n    needs: [{}]\n", "a".repeat(400_000), "b".repeat(400_000)),
    ] {
        refused(&text);
    }
}

#[test]
fn dense_graphs_of_the_largest_size_are_planned() {
    let needs = |n: usize| (n.saturating_sub(20)..n).map(name).collect::<Vec<_>>().join(", ");
    let steps: String = (0..500)
        .map(|n| format!("  - {{ name: {}, image: x, script: x, needs: [{}] }}\n", name(n), needs(n)))
        .collect();
    let plan = run(&format!("{HEAD}steps:\n{steps}"), &[]).unwrap();
    check_plan(&plan);
    assert_eq!(plan.jobs.len(), 500 * Platform::ALL.len());
    // And the same with every step in one cycle.
    let back = format!("  - {{ name: last, image: x, script: x, needs: [{}] }}\n", name(498));
    let cycle = format!(
        "{HEAD}steps:\n{}",
        steps.replacen("needs: []", "needs: [last]", 1).replace(&steps[steps.rfind("  - ").unwrap()..], &back)
    );
    assert!(refused(&cycle)[0].message.contains("cycle"));
}
