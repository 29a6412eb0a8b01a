//! `railyard-fuzz [TARGET]… --secs N`: feeds the parsers of outside bytes for a time.

use anyhow::Context as _;
use clap::Parser;
use railyard_fuzz::{Budget, Finding, TARGETS, Target, corpus_dir, replay, run};
use std::path::PathBuf;
use std::time::Duration;

/// Feeds parsers with what they do not expect.
#[derive(Parser)]
struct Args {
    /// The targets; all, one after the other, if none is named.
    targets: Vec<String>,
    /// How long each is fed.
    #[arg(long, default_value_t = 60)]
    secs: u64,
    /// What the inputs depend on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only parse this file.
    #[arg(long)]
    replay: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // A panic that is found is told once, by whoever found it.
    std::panic::set_hook(Box::new(|_| ()));
    let wanted = |target: &&Target| args.targets.is_empty() || args.targets.iter().any(|name| name == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    anyhow::ensure!(
        !targets.is_empty(),
        "there are {:?}",
        TARGETS.iter().map(|target| target.name).collect::<Vec<_>>()
    );
    for target in targets {
        if let Some(file) = &args.replay {
            let input = std::fs::read(file).with_context(|| file.display().to_string())?;
            replay(target, &input)?;
            continue;
        }
        let report = run(target, args.seed, Budget::Time(Duration::from_secs(args.secs)))
            .map_err(|found| keep(target, found))?;
        let rate = report.inputs as f64 / report.time.as_secs_f64();
        println!(
            "{:12} {:>10} inputs in {:>5.0} s, {rate:>7.0}/s, {:>5} kept, at most {:>7} KiB and {:>5} ms",
            target.name,
            report.inputs,
            report.time.as_secs_f64(),
            report.kept,
            report.memory_bytes >> 10,
            report.slowest.as_millis(),
        );
    }
    Ok(())
}

/// Leaves the input in the corpus, where it is tried first from now on.
fn keep(target: &Target, found: Finding) -> Finding {
    let name =
        format!("found-{}", railyard_common::digest::Digest::of(&found.input).hex().get(..12).unwrap_or_default());
    let dir = corpus_dir(target);
    let written = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(dir.join(&name), &found.input));
    if let Err(error) = written {
        eprintln!("cannot keep {name}: {error}");
    }
    found
}
