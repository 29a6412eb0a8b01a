//! `cargo run -p railyard-sim-net -- --seeds 1000`: many seeds; with `--seed N`, one, and what happened in it.

use clap::Parser;
use railyard_sim_net::run::{Report, run};
use railyard_sim_net::scenario::Scenario;
use std::process::ExitCode;

/// Runs the farm's real services in a simulated network.
#[derive(Parser)]
struct Args {
    /// Run this one seed, and print what happened.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run so many seeds.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let args = Args::parse();
    if let Some(seed) = args.seed {
        let scenario = Scenario::draw(seed);
        let Report { trace, broken, took, .. } = run(&scenario)?;
        println!("{scenario:#?}\n{trace}\nseed {seed}: {took:?} of simulated time");
        broken.iter().for_each(|what| println!("BROKEN: {what}"));
        return Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut failed = 0;
    for seed in args.from..args.from + args.seeds {
        let report = run(&Scenario::draw(seed))?;
        println!("{seed} {:?} {} attempts {} broken", report.took, report.attempts, report.broken.len());
        failed += usize::from(!report.broken.is_empty());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
