//! How fast the farm schedules: `cargo bench -p railyard-tests --bench schedule -- [--quick] [--only NAME]… [--json FILE]`.
//!
//! Each measurement prints its rows as soon as it has them; a row with a bar says whether it is met. Everything is real: the
//! journal on disk with its fdatasync, a controller in a process of its own, gRPC over mutual TLS. Only workers are simulated,
//! where the name says so: they speak the protocol, and report what they are given at once.

mod backlog;
mod child;
mod container;
mod cycles;
mod idle;
mod latency;
mod machine;
mod plans;
mod restart;
mod rpc;
mod sim;
mod table;

use anyhow::Context as _;
use std::path::PathBuf;
use table::Table;

/// What the command line says.
struct Options {
    /// Less of everything: to see that it works, and for a first impression.
    quick: bool,
    only: Vec<String>,
    json: Option<PathBuf>,
}

/// A measurement.
type Measure = fn(quick: bool, table: &mut Table) -> anyhow::Result<()>;

/// Every measurement, in the order in which they run: the quiet ones first.
const MEASURES: [(&str, Measure); 7] = [
    ("backlog", backlog::measure),
    ("cycles", cycles::measure),
    ("restart", restart::measure),
    ("rpc", rpc::measure),
    ("latency", latency::measure),
    ("container", container::measure),
    ("idle", idle::measure),
];

fn main() -> anyhow::Result<()> {
    // Fails only if a provider is installed already, and then it is this one: no other is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if child::is_child()? {
        return Ok(());
    }
    let options = options()?;
    let mut table = Table::new();
    for (name, measure) in MEASURES {
        if options.only.is_empty() || options.only.iter().any(|only| only == name) {
            table.begin(name);
            measure(options.quick, &mut table).with_context(|| format!("the measurement {name}"))?;
        }
    }
    if let Some(path) = options.json {
        let text = serde_json::to_string_pretty(&table.json())?;
        std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let names = MEASURES.map(|(name, _)| name);
    let mut options = Options { quick: false, only: Vec::new(), json: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // What cargo itself passes.
            "--bench" => {}
            "--quick" => options.quick = true,
            "--only" => {
                let name = args.next().unwrap_or_default();
                anyhow::ensure!(names.contains(&name.as_str()), "--only takes one of {}", names.join(", "));
                options.only.push(name);
            }
            "--json" => options.json = Some(args.next().context("--json takes a file")?.into()),
            other => anyhow::bail!("`{other}` is none of --quick, --only NAME, --json FILE"),
        }
    }
    Ok(options)
}
