//! Golden pipelines: what a file gives, or what is said about it. Each case is `pipelines/{good,bad}/NAME.yaml`, its
//! golden text `NAME.snap` beside it. Comments at the top of a case set the rest of the stage:
//!
//! ```text
//! # file: steps/a.sh        a script file that exists
//! # version: 1.0            the build's version; 1.0.0 if none is named
//! # param: name=value       a parameter's value
//! # platform: linux/arm64   a requested platform
//! # channel: beta           the channel that is asked for
//! # build: sdk is sdk/1: sdk@linux/amd64 image; docs@linux/amd64 a.txt b/c.txt     a build that exists
//! # build: sdk/2 has failed                                                        one that cannot be used
//! ```

use railyard_common::build_ref::{BuildRef, UsedBuild, UsedJob};
use railyard_common::id::{JobName, StepName};
use railyard_common::job::{ImageSource, JobSpec};
use railyard_common::pipeline::{Diagnostic, Pipeline, Request, Source, script_files};
use railyard_common::plan::Plan;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn cases(directory: &str) -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pipelines").join(directory);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    assert!(!paths.is_empty(), "no cases in {}", directory.display());
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

fn header<'t>(text: &'t str, key: &str) -> impl Iterator<Item = &'t str> {
    let start = format!("# {key}: ");
    text.lines()
        .take_while(|line| line.starts_with('#'))
        .filter_map(move |line| Some(line.strip_prefix(&start)?.trim()))
}

fn run(name: &str, text: &str) -> Result<(Pipeline, Plan), Vec<Diagnostic>> {
    let files: BTreeMap<String, String> =
        header(text, "file").map(|path| (path.to_owned(), format!("# this is {path}\n"))).collect();
    let file_name = format!("{name}.yaml");
    let pipeline = Pipeline::parse(&Source { file_name: &file_name, text, files: &files })?;
    let request = Request {
        version: header(text, "version").next().unwrap_or("1.0.0").parse().unwrap(),
        params: header(text, "param")
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        platforms: header(text, "platform").map(|platform| platform.parse().unwrap()).collect(),
        channel: header(text, "channel").next().map(|channel| channel.parse().unwrap()),
        ..Request::of("1.0.0".parse().unwrap())
    };
    let builds = pipeline.wanted_builds(&request);
    let builds = builds.into_iter().map(|(reference, steps)| (reference.clone(), used(text, &reference, &steps)));
    let plan = pipeline.plan(&Request { builds: builds.collect(), ..request.clone() })?;
    Ok((pipeline, plan))
}

/// What the farm would say of another build: what the case says of it.
fn used(text: &str, reference: &BuildRef, steps: &BTreeSet<StepName>) -> Result<UsedBuild, String> {
    let known =
        header(text, "build").find_map(|line| line.split_once(' ').filter(|(name, _)| *name == reference.to_string()));
    let Some((_, rest)) = known else { return Err(format!("there is no build `{reference}`")) };
    let rest = rest.trim();
    let Some((build, jobs)) = rest.strip_prefix("is ").and_then(|rest| rest.split_once(": ")) else {
        return Err(format!("build `{reference}` {rest}"));
    };
    let job = |job: &str| {
        let (name, left) = job.trim().split_once(' ').unwrap_or((job.trim(), ""));
        let image = left.split(' ').any(|word| word == "image");
        let artifacts = left.split(' ').filter(|word| !matches!(*word, "" | "image"));
        (
            name.parse::<JobName>().unwrap(),
            UsedJob { image, artifacts: artifacts.map(|path| path.parse().unwrap()).collect() },
        )
    };
    let jobs = jobs.split(';').map(job).filter(|(name, _)| steps.contains(&name.step));
    Ok(UsedBuild { build: build.parse().unwrap(), jobs: jobs.collect() })
}

fn golden(directory: &str, name: &str, text: &str) {
    insta::with_settings!({
        snapshot_path => format!("pipelines/{directory}"),
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_snapshot!(name, text) });
}

/// Each problem with the line that it points at and its help.
fn show_problems(text: &str, problems: &[Diagnostic]) -> String {
    let mut out = String::new();
    for problem in problems {
        let line = text.lines().nth(problem.line as usize - 1).unwrap_or_default();
        let caret = " ".repeat(problem.column as usize - 1);
        writeln!(out, "{problem}\n    | {line}\n    | {caret}^").unwrap();
        if let Some(help) = &problem.help {
            writeln!(out, "    = help: {help}").unwrap();
        }
    }
    out
}

fn show_plan(plan: &Plan) -> String {
    let mut out = format!("{} for {:?}\n", plan.build, plan.platforms);
    plan.params.iter().for_each(|(name, value)| writeln!(out, "param {name} = {value}").unwrap());
    plan.channel.iter().for_each(|channel| writeln!(out, "channel {channel}").unwrap());
    plan.uses.iter().for_each(|build| writeln!(out, "uses {build}").unwrap());
    plan.supersede.iter().for_each(|group| writeln!(out, "supersedes {group}").unwrap());
    plan.jobs.iter().for_each(|job| show_job(&mut out, job));
    out
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

fn show_job(out: &mut String, job: &JobSpec) {
    let run = &job.run;
    writeln!(out, "\n{}", job.name).unwrap();
    if !job.needs.is_empty() {
        writeln!(out, "  needs   {}", list(&job.needs)).unwrap();
    }
    match &job.image {
        ImageSource::Registry(reference) => writeln!(out, "  image   {reference}").unwrap(),
        ImageSource::Job(from) => writeln!(out, "  image   of {from}").unwrap(),
        ImageSource::Build { build, job } => writeln!(out, "  image   of {job} of {build}").unwrap(),
        ImageSource::Import { build, job, artifact } => {
            let of = build.as_ref().map(|build| format!(" of {build}")).unwrap_or_default();
            writeln!(out, "  image   import {artifact} of {job}{of}").unwrap();
        }
    }
    for input in &job.inputs {
        let of = input.build.as_ref().map(|build| format!(" of {build}")).unwrap_or_default();
        writeln!(out, "  input   {} <- {}{of}: {}", input.mount_path, input.job, list(&input.artifacts)).unwrap();
    }
    run.script.lines().for_each(|line| writeln!(out, "  script  {line}").unwrap());
    run.env.iter().for_each(|(name, value)| writeln!(out, "  env     {name}={value:?}").unwrap());
    for output in &run.outputs {
        let publish = output.publish.as_ref().map(|path| format!(" -> {path}/")).unwrap_or_default();
        let elsewhere = output.publish_by_channel.iter();
        let elsewhere: String =
            elsewhere.map(|dir| format!(" (promoted -> {}/)", dir.of(&"other".parse().unwrap()).unwrap())).collect();
        let optional = if output.optional { " (optional)" } else { "" };
        let compress = if output.compress.is_auto() { String::new() } else { format!(" ({})", output.compress) };
        writeln!(out, "  output  {}{publish}{elsewhere}{optional}{compress}", output.glob).unwrap();
    }
    let resources = run.resources;
    writeln!(
        out,
        "  limits  cpu {}m, memory {}, disk {}, slots {}; timeout {}s, silence {}s, lease {}s, retries {}",
        resources.cpu_millis,
        resources.memory_bytes,
        resources.disk_bytes,
        resources.slots,
        run.timeout_secs,
        run.silence_timeout_secs,
        job.lease_ttl_secs,
        job.retries
    )
    .unwrap();
    let devices: Vec<String> =
        run.devices.iter().map(|device| format!("{}{}", device.path, if device.optional { "?" } else { "" })).collect();
    let paths = run.host_paths.iter();
    let paths: Vec<String> = paths
        .map(|path| format!("{}:{}{}", path.source, path.target, if path.writable { ":rw" } else { "" }))
        .collect();
    job.approval.iter().for_each(|what| writeln!(out, "  awaits  approval {what:?}").unwrap());
    if let Some(concurrency) = &job.concurrency {
        writeln!(out, "  group   {}, {} at a time", concurrency.group, concurrency.limit).unwrap();
    }
    job.pool.iter().for_each(|pool| writeln!(out, "  pool    {pool}").unwrap());
    job.labels.iter().for_each(|(name, value)| writeln!(out, "  label   {name}={value:?}").unwrap());
    for (name, value) in [
        ("commit", run.commit.then(String::new)),
        ("privileged", run.privileged.then(String::new)),
        ("no network", run.network_none.then(String::new)),
        ("devices", Some(devices.join(" ")).filter(|text| !text.is_empty())),
        ("host paths", Some(paths.join(" ")).filter(|text| !text.is_empty())),
        ("capabilities", Some(run.capabilities.join(" ")).filter(|text| !text.is_empty())),
    ] {
        if let Some(value) = value {
            writeln!(out, "  {}", format!("{name} {value}").trim_end()).unwrap();
        }
    }
}

#[test]
fn bad_pipelines_say_what_is_wrong_and_where() {
    for (name, text) in cases("bad") {
        match run(&name, &text) {
            Ok(_) => panic!("{name}.yaml should be refused"),
            Err(problems) => golden("bad", &name, &show_problems(&text, &problems)),
        }
    }
}

#[test]
fn good_pipelines_become_plans() {
    for (name, text) in cases("good") {
        match run(&name, &text) {
            Ok((_, plan)) => golden("good", &name, &show_plan(&plan)),
            Err(problems) => panic!("{name}.yaml should be fine, but\n{}", show_problems(&text, &problems)),
        }
    }
}

#[test]
fn a_summary_is_json() {
    let (_, text) = cases("good").into_iter().find(|(name, _)| name == "everything").unwrap();
    let (pipeline, _) = run("everything", &text).unwrap();
    insta::with_settings!({
        snapshot_path => "pipelines",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, { insta::assert_json_snapshot!("summary", pipeline.summary()) });
}

/// The pipelines that come with the farm, read as the command line reads them.
#[test]
fn shipped_pipelines_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/pipelines");
    let mut found = 0;
    for directory in std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()) {
        let path = directory.join("railyard.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let names = script_files(&text, "railyard.yaml").unwrap();
        let read = |name: &String| (name.clone(), std::fs::read_to_string(directory.join(name)).unwrap());
        let files: BTreeMap<String, String> = names.iter().map(read).collect();
        let source = Source { file_name: "railyard.yaml", text: &text, files: &files };
        let pipeline =
            Pipeline::parse(&source).unwrap_or_else(|problems| panic!("{}", show_problems(&text, &problems)));
        let platforms = pipeline.platforms().to_vec();
        let request = Request { platforms, ..Request::of("1.0.0".parse().unwrap()) };
        if pipeline.params().iter().all(|param| param.default.is_some()) {
            let plan = pipeline.plan(&request);
            plan.unwrap_or_else(|problems| panic!("{}", show_problems(&text, &problems)));
        }
        found += 1;
    }
    assert!(found > 0, "no pipelines in {}", root.display());
}

#[test]
fn script_files_are_listed_once_and_only_those_that_may_be_read() {
    let text = "steps:\n  - script: { file: a/b.sh }\n  - script: { file: ../secret }\n  - script: { file: /etc/passwd }\n  \
        - script: { file: a/b.sh }\n  - script: echo\n  - text\n  - script: { file: c.sh }\nother: 1\n";
    assert_eq!(script_files(text, "p.yaml").unwrap(), ["a/b.sh", "c.sh"]);
    let problems = script_files("steps: [", "p.yaml").unwrap_err();
    assert!(problems[0].to_string().starts_with("p.yaml:"), "{}", problems[0]);
}

/// The first example of the reference is one that works.
#[test]
fn the_documented_example_is_valid() {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/pipeline.md")).unwrap();
    let example = reference.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (_, plan) = run("example", example).unwrap_or_else(|problems| panic!("{}", show_problems(example, &problems)));
    golden("good", "documented-example", &show_plan(&plan));
}

/// 2,000 jobs with the longest script that there may be.
fn wide(params: &str, script: &str) -> String {
    let variants = (0..200).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let step = |n: usize| {
        let script = if n == 0 { format!("&s \"{script}\"") } else { "*s".to_owned() };
        format!("  - {{name: s{n}, image: i, matrix: {{n: [{variants}]}}, script: {script}}}\n")
    };
    format!("name: wide\nparams: {{{params}}}\nsteps:\n{}", (0..10).map(step).collect::<String>())
}

#[test]
fn what_takes_long_to_fill_in_and_gives_nothing_is_refused() {
    let nothing = wide("p: {default: ''}", &format!("true{}", "{{p}}".repeat(50_000)));
    let value = "{{arch}}".repeat(8_000);
    let too_long = wide(&format!("p: {{default: '{value}'}}"), &"{{p}}".repeat(1_000));
    let files = BTreeMap::new();
    for text in [nothing, too_long] {
        let problems = Pipeline::parse(&Source { file_name: "wide.yaml", text: &text, files: &files }).unwrap_err();
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|what| what.contains("too many places to fill in")), "{told:?}");
    }
    let text = wide("p: {default: x}", &"true {{p}} ".repeat(50));
    Pipeline::parse(&Source { file_name: "wide.yaml", text: &text, files: &files }).unwrap();
}
