//! Runs worlds: many seeds, or one again.

use anyhow::{Context as _, bail};
use clap::Parser;
use railyard_common::planted::{Bug, plant};
use railyard_sim::shrink::shrink;
use railyard_sim::{Config, Listen, Outcome, crowd, keeping, run};
use std::process::ExitCode;
use std::time::Instant;

/// Simulates farms under faults and judges everything that happens. Without `--seed`, many of them.
#[derive(Parser)]
#[command(name = "railyard-sim")]
struct Args {
    /// How many seeds to run
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Runs only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Sets one thing about the world, in place of what the seed draws (workers, clients, builds, steps, chaos, faults, skip, off)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Makes a failing world as small as it gets (with many seeds this is done anyway)
    #[arg(long)]
    shrink: bool,
    /// Prints everything that happens
    #[arg(long)]
    trace: bool,
    /// Runs worlds about keeping builds in place of whole farms
    #[arg(long)]
    keeping: bool,
    /// Plants a mistake, by name
    #[arg(long, value_name = "NAME")]
    bug: Option<String>,
    /// How many threads; as many as there are processors if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Goes on after a seed has failed, and counts
    #[arg(long)]
    keep_going: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let bug = match &args.bug {
        Some(name) => Some(Bug::named(name).with_context(|| {
            let names: Vec<&str> = Bug::ALL.iter().map(|(_, name, _)| *name).collect();
            format!("no such mistake: {name}; there are {}", names.join(", "))
        })?),
        None => None,
    };
    if args.keeping {
        return Ok(keep(&args, bug));
    }
    match args.seed {
        Some(seed) => one(&args, seed, bug),
        None => many(&args, bug),
    }
}

/// Worlds about keeping, one after the other.
fn keep(args: &Args, bug: Option<Bug>) -> ExitCode {
    plant(bug);
    let seeds = args.seed.map_or(args.from..args.from + args.seeds, |seed| seed..seed + 1);
    let (mut steps, mut failed) = (0, 0u32);
    for seed in seeds.clone() {
        let outcome = keeping::run(seed, args.trace);
        steps += outcome.steps;
        print!("{}", outcome.trace);
        if let Some(why) = outcome.broken {
            failed += 1;
            println!("BROKEN in seed {seed}: {why}");
            if !args.keep_going {
                break;
            }
        }
    }
    println!("{} worlds, {steps} steps, {failed} failed", seeds.end - seeds.start);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn config(args: &Args, seed: u64) -> anyhow::Result<Config> {
    let mut config = Config::of(seed);
    args.set.iter().try_for_each(|set| config.set(set))?;
    Ok(config)
}

fn one(args: &Args, seed: u64, bug: Option<Bug>) -> anyhow::Result<ExitCode> {
    plant(bug);
    let config = config(args, seed)?;
    let listen = if args.trace { Listen::Print } else { Listen::Hash };
    let outcome = run(&config, listen);
    let (hash, lines) = outcome.trace;
    println!(
        "seed {seed}: {} happenings, {} events, {} attempts; trace {hash:016x} of {lines} lines",
        outcome.happenings, outcome.events, outcome.attempts
    );
    Ok(match outcome.broken {
        None => ExitCode::SUCCESS,
        Some(_) => {
            tell(&config, &outcome, bug, args.shrink);
            ExitCode::FAILURE
        }
    })
}

/// Says what is broken, and how to see it again.
fn tell(config: &Config, outcome: &Outcome, bug: Option<Bug>, shrinks: bool) {
    let Some(broken) = &outcome.broken else { return };
    println!("BROKEN {} after {} ms in seed {}: {}", broken.invariant, broken.at, config.seed, broken.why);
    let with = bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
    println!("replay: cargo run -p railyard-sim -- {config}{with} --trace");
    if shrinks {
        let small = shrink(config, broken.invariant);
        println!("small:  cargo run -p railyard-sim -- {small}{with} --trace");
    }
}

#[allow(clippy::disallowed_methods, reason = "how long it took is for people")]
fn many(args: &Args, bug: Option<Bug>) -> anyhow::Result<ExitCode> {
    if args.trace {
        bail!("--trace is for one seed: give --seed as well");
    }
    // What was set is right or wrong for every seed alike.
    config(args, args.from)?;
    let began = Instant::now();
    let threads = args.threads.unwrap_or_else(crowd::threads);
    let configs = (args.from..args.from + args.seeds).filter_map(|seed| config(args, seed).ok());
    let (mut done, mut happenings, mut events, mut attempts) = (0u64, 0u64, 0u64, 0u64);
    let mut failed = Vec::new();
    crowd::crowd(threads, bug, configs, |config, outcome| {
        done += 1;
        happenings += outcome.happenings;
        events += outcome.events;
        attempts += outcome.attempts;
        if done % 10_000 == 0 {
            println!("{done} schedules, {} failed, {:.0} s", failed.len(), began.elapsed().as_secs_f64());
        }
        if outcome.broken.is_some() {
            if args.keep_going {
                tell(&config, &outcome, bug, false);
            }
            failed.push((config, outcome));
        }
        failed.is_empty() || args.keep_going
    });
    let secs = began.elapsed().as_secs_f64();
    println!(
        "{done} schedules in {secs:.1} s on {threads} threads: {:.0} schedules/s; {happenings} happenings, {events} farm events, \
         {attempts} attempts; {} failed",
        done as f64 / secs,
        failed.len()
    );
    plant(bug);
    if let Some((config, outcome)) = failed.first() {
        tell(config, outcome, bug, !args.keep_going || args.shrink);
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
