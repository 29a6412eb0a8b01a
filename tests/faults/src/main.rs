//! `cargo run -p railyard-faults -- --rounds N`: a farm under kill -9, round after round.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use railyard_faults::{run as rounds, store};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Kills the parts of a farm in random pairs while it builds, and checks that nothing was lost and nothing is left.
#[derive(Parser)]
struct Args {
    /// How many rounds.
    #[arg(long, default_value_t = rounds::CI_ROUNDS)]
    rounds: u64,
    /// The seed of all plans [default: a random one, which is printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Only this round of the seed.
    #[arg(long)]
    round: Option<u64>,
    /// What to do instead.
    #[command(subcommand)]
    instead: Option<Instead>,
}

#[derive(Subcommand)]
enum Instead {
    /// Be the S3 service.
    #[command(hide = true)]
    ServeS3 {
        /// Where objects lie.
        root: PathBuf,
        /// The address.
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(Instead::ServeS3 { root, listen }) = &args.instead {
        return store::serve(root, *listen);
    }
    let program = std::env::current_exe().context("this program's own path")?;
    let which = args.round.map_or(1..=args.rounds, |round| round..=round);
    rounds::run(&rounds::Settings { seed: args.seed.unwrap_or_else(rounds::random_seed), rounds: which, program })
}
