//! The machine and its processes, as the kernel tells of them; and time.

use anyhow::Context as _;
use railyard_service::clock::{Clock as _, SystemClock};
use std::path::Path;
use std::time::Duration;

/// Ticks of the kernel's accounts in a second: the same on every Linux.
const TICKS_PER_SEC: f64 = 100.0;

/// How many processors there are.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load average of the last minute: who else is working here.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// The kernel's version.
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Resident memory of a process.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// Processor time that a process has used.
pub fn cpu_secs(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may contain anything: state is field 3, user and system time are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_PER_SEC)
}

/// Time since the process started.
pub fn now() -> Duration {
    SystemClock.monotonic()
}

/// Processor time that this thread has used: where nothing is waited for, what else runs on the machine does not count.
pub fn busy() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How much processor time `work` takes, in seconds, and what it gives.
pub fn worked<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begun = busy();
    let result = work();
    ((busy() - begun).as_secs_f64(), result)
}

/// How long `work` takes, in seconds, and what it gives.
pub fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let begun = now();
    let result = work();
    ((now() - begun).as_secs_f64(), result)
}

/// The middle of some figures.
pub fn median(figures: &mut [f64]) -> f64 {
    percentile(figures, 50.0)
}

/// The figure that so many percent do not exceed.
pub fn percentile(figures: &mut [f64], percent: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let rank = (figures.len() as f64 * percent / 100.0).ceil() as usize;
    figures.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// Writing so many bytes at the end of a file and syncing its data, in seconds: the disk's part of an append.
pub fn fdatasync_secs(dir: &Path, bytes: usize, times: usize) -> anyhow::Result<f64> {
    use std::io::Write as _;
    let path = dir.join("fdatasync");
    let mut file = std::fs::File::create(&path)?;
    let data = vec![7; bytes];
    let mut figures = Vec::new();
    for _ in 0..times {
        let (secs, done) = timed(|| file.write_all(&data).and_then(|()| file.sync_data()));
        done?;
        figures.push(secs);
    }
    std::fs::remove_file(&path)?;
    Ok(median(&mut figures))
}

/// A directory for a measurement, on the disk of the build's own: a temporary directory may lie in memory, and syncs nothing.
pub fn workspace() -> anyhow::Result<tempfile::TempDir> {
    let exe = std::env::current_exe()?;
    let target = exe.parent().context("the bench has no directory")?;
    Ok(tempfile::Builder::new().prefix("bench-").tempdir_in(target)?)
}
