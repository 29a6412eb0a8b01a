//! How fast a step's image gets from one worker to another: `cargo bench -p railyard-tests --bench images -- [--quick] [--only NAME]…`.
//!
//! Two engines on this machine, a big base that both of them have, and on top of it a container that writes 1 GiB which
//! compresses about 2.5 times; then one that writes 10 MiB on top of that. What counts is the time from the end of that container
//! on one engine to the loaded image on the other, as the engines' own events tell it, the same for everybody: the farm (a
//! controller and two workers, each a process of its own), `docker save | zstd | rsync | docker load`, and `docker push` and
//! `docker pull` over a registry of this machine.

mod bridge;
#[path = "../schedule/child.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod child;
mod events;
#[path = "../schedule/machine.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod machine;
mod ours;
mod peers;
mod scene;
#[path = "../schedule/sim.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod sim;
#[path = "../schedule/table.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod table;

use anyhow::Context as _;
use machine::median;
use scene::{Scene, Sizes};
use table::{Bar, Table};

/// The hand-offs of one round, in seconds.
#[derive(Clone, Copy)]
pub struct Round {
    /// With the big layer.
    pub big: f64,
    /// With the small one on top of it.
    pub small: f64,
}

/// A way to hand an image over, measured once.
type Way = fn(&Scene, round: usize) -> anyhow::Result<Round>;

/// Everybody, and the programs that must be on the PATH for it.
const WAYS: [(&str, Way, &[&str]); 3] = [
    ("railyard", ours::round, &[]),
    ("docker save, zstd, rsync, docker load", peers::save_and_load, &["zstd", "rsync"]),
    ("docker push, docker pull", peers::push_and_pull, &["docker-registry", "nsenter", "ip"]),
];

fn main() -> anyhow::Result<()> {
    // Fails only if a provider is installed already, and then it is this one: no other is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if child::is_child()? || bridge::is_child()? {
        return Ok(());
    }
    let (quick, only) = options()?;
    let sizes = if quick { Sizes::QUICK } else { Sizes::FULL };
    let rounds = if quick { 1 } else { 3 };
    let mut table = Table::new();
    let scene = Scene::new(sizes)?;
    let mut measured = Vec::new();
    for (name, way, needs) in WAYS {
        if !only.is_empty() && !only.iter().any(|only| name.contains(only.as_str())) {
            continue;
        }
        if let Some(missing) = needs.iter().find(|program| !is_on_path(program)) {
            println!("  {name}: left out, `{missing}` is not on the PATH");
            continue;
        }
        table.begin(name);
        let mut figures = Vec::new();
        for round in 0..rounds {
            let Round { big, small } = way(&scene, round).with_context(|| format!("{name}, round {round}"))?;
            println!("  round {round}: {big:.2} s, {small:.3} s");
            figures.push((big, small));
        }
        let mut bigs: Vec<f64> = figures.iter().map(|(big, _)| *big).collect();
        let mut smalls: Vec<f64> = figures.iter().map(|(_, small)| *small).collect();
        let (big, small) = (median(&mut bigs), median(&mut smalls));
        table.row(&format!("{} new, median of {rounds}", sizes.big_shown()), big, "s");
        table.row(&format!("{} new on top of it, median of {rounds}", sizes.small_shown()), small, "s");
        measured.push((name, big, small));
    }
    compare(&mut table, &measured, sizes);
    Ok(())
}

fn compare(table: &mut Table, measured: &[(&str, f64, f64)], sizes: Sizes) {
    let Some((_, big, small)) = measured.iter().find(|(name, ..)| *name == WAYS[0].0) else { return };
    table.begin("how many times faster railyard is");
    for (name, peer_big, peer_small) in measured.iter().filter(|(name, ..)| *name != WAYS[0].0) {
        let (big_bar, small_bar) = if *name == WAYS[1].0 { (2.5, 30.0) } else { (1.0, 1.0) };
        table.barred(&format!("{name}, {}", sizes.big_shown()), peer_big / big, "x", Bar::AtLeast(big_bar));
        table.barred(&format!("{name}, {}", sizes.small_shown()), peer_small / small, "x", Bar::AtLeast(small_bar));
    }
}

fn options() -> anyhow::Result<(bool, Vec<String>)> {
    let (mut quick, mut only) = (false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // What cargo itself passes.
            "--bench" => {}
            "--quick" => quick = true,
            "--only" => only.push(args.next().context("--only takes a part of a name")?),
            other => anyhow::bail!("`{other}` is none of --quick, --only NAME"),
        }
    }
    Ok((quick, only))
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}
