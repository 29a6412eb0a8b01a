//! Four big files at once: what the worker and the controller need for it.

use super::client;
use super::files::{Files, Input};
use super::sample::{Rows, Sample};
use super::store::{Kind, Service};
use std::path::Path;

/// What the worker may use.
const CLIENT_MAX_MIB: f64 = 256.0;
/// What the controller may.
const SERVER_MAX_MIB: f64 = 150.0;

/// Pushes and pulls four files at once.
pub fn measure(files: &Files, space: &Path, rows: &mut Rows) -> anyhow::Result<()> {
    let four: Vec<_> = (1..5).map(|seed| files.another(seed)).collect::<Result<_, _>>()?;
    for kind in Kind::ALL {
        let service = Service::start(kind, space)?;
        service.empty()?;
        let pushed = client::push_all(&service, &four)?;
        let server = peak_bytes(service.pid)?;
        tell(kind, "push", pushed, server);
        let pulled = client::pull_all(&service, &four, space)?;
        tell(kind, "pull", pulled, peak_bytes(service.pid)?);
        service.empty()?;
        for (way, sample) in [("push", pushed), ("pull", pulled)] {
            rows.note(kind.name(), Input::Noise, way, "railyard, 4 files", files.bytes * 4, sample);
        }
    }
    Ok(())
}

fn tell(kind: Kind, way: &str, client: Sample, server_bytes: u64) {
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    let met = |value: f64, most: f64| if value <= most { "met" } else { "MISSED" };
    let (client, server) = (mib(client.peak_bytes), mib(server_bytes));
    println!(
        "  {:<13} four files at once, {way}: worker {client:.0} MiB (≤ {CLIENT_MAX_MIB:.0} {}), controller {server:.0} MiB (≤ {SERVER_MAX_MIB:.0} {})",
        kind.name(),
        met(client, CLIENT_MAX_MIB),
        met(server, SERVER_MAX_MIB),
    );
}

/// The most memory that a process ever had.
fn peak_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}
