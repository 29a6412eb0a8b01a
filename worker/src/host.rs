//! What this host can offer: platforms, processors, memory, disk.

use crate::config::WorkerConfig;
use railyard_common::job::Capacity;
use railyard_common::platform::{Platform, PlatformOffer};
use std::io;
use std::path::Path;

/// Where the kernel lists what runs foreign programs.
const BINFMT_DIR: &str = "/proc/sys/fs/binfmt_misc";

/// Share of the memory that jobs get by default: the host, the engine and the worker need the rest.
const MEMORY_PERCENT: u64 = 80;

/// Jobs at a time, for each processor: steps often wait for a disk or a network.
const SLOTS_PER_CPU: u32 = 2;

/// Fetched blobs, and images that no build needs, keep at most this part of the free disk each: on a small host jobs need the
/// room more.
const CACHE_PART: u64 = 4;

/// Where the kernel looks up whom to end first when the host has no memory left: -1000 is never, 1000 at once.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// The worker goes after everything that is not of the system itself: without it nobody ends the steps that took the memory.
const OOM_SCORE_ADJ: i32 = -900;

/// Keeps this process from being ended for what steps do to the host's memory, where it may.
pub fn protect() {
    let now = std::fs::read_to_string(OOM_SCORE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now <= OOM_SCORE_ADJ) {
        return;
    }
    if let Err(error) = std::fs::write(OOM_SCORE, OOM_SCORE_ADJ.to_string()) {
        tracing::warn!(%error, "this worker may be ended when the host runs out of memory: it is not allowed to lower its OOM score");
    }
}

/// The platforms that jobs can have here.
pub fn platforms(config: &WorkerConfig) -> Vec<PlatformOffer> {
    config.platforms.clone().unwrap_or_else(|| detect_platforms(Path::new(BINFMT_DIR), native()))
}

/// The platform of the host's own processor, if the farm knows it.
pub fn native() -> Option<Platform> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Platform::LinuxAmd64),
        "aarch64" => Some(Platform::LinuxArm64),
        _ => None,
    }
}

fn detect_platforms(binfmt: &Path, native: Option<Platform>) -> Vec<PlatformOffer> {
    let own = native.map(|platform| PlatformOffer { platform, emulated: false });
    let foreign = Platform::ALL
        .into_iter()
        .filter(|platform| Some(*platform) != native && is_emulated(binfmt, *platform))
        .map(|platform| PlatformOffer { platform, emulated: true });
    own.into_iter().chain(foreign).collect()
}

/// Whether the kernel hands programs of `platform` to QEMU, in containers too.
fn is_emulated(binfmt: &Path, platform: Platform) -> bool {
    let file = match platform {
        Platform::LinuxAmd64 => "qemu-x86_64",
        Platform::LinuxArm64 => "qemu-aarch64",
    };
    std::fs::read_to_string(binfmt.join(file)).is_ok_and(|text| works_in_containers(&text))
}

/// The entry is enabled and has the flag `F`: the kernel holds the interpreter open, so that it need not be in the
/// container's own root.
fn works_in_containers(entry: &str) -> bool {
    let enabled = entry.lines().next() == Some("enabled");
    let fixed = entry.lines().any(|line| line.strip_prefix("flags:").is_some_and(|flags| flags.contains('F')));
    enabled && fixed
}

/// What jobs can use here.
///
/// # Errors
/// If the disk or the memory cannot be measured and the settings do not say.
pub fn capacity(config: &WorkerConfig, data_dir: &Path) -> io::Result<Capacity> {
    let cpus = cpu_count();
    let given = &config.capacity;
    let memory_bytes = match given.memory {
        Some(memory) => memory.as_u64(),
        None => memory_total_bytes()? / 100 * MEMORY_PERCENT,
    };
    let disk_bytes = match given.disk {
        Some(disk) => disk.as_u64(),
        None => {
            let caches = blob_cache_bytes(config, data_dir)?.saturating_add(image_cache_bytes(config, data_dir)?);
            let kept = given.disk_reserve.as_u64().saturating_add(caches);
            crate::disk::free_bytes(data_dir)?.saturating_sub(kept)
        }
    };
    Ok(Capacity {
        cpu_millis: given.cpu_millis.unwrap_or(cpus.saturating_mul(1000)),
        memory_bytes,
        disk_bytes,
        slots: given.slots.unwrap_or(cpus.saturating_mul(SLOTS_PER_CPU)),
    })
}

/// The same for a worker that goes on with jobs of an earlier process: what these have on the disk is theirs to use, so
/// the disk counts as it was when nobody used it. `path` remembers that.
///
/// # Errors
/// As [`capacity`].
pub fn capacity_again(config: &WorkerConfig, data_dir: &Path, path: &Path, is_idle: bool) -> io::Result<Capacity> {
    let mut capacity = capacity(config, data_dir)?;
    if config.capacity.disk.is_some() {
        return Ok(capacity);
    }
    let known = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    match known {
        Some(known) if !is_idle => capacity.disk_bytes = capacity.disk_bytes.max(known),
        _ => std::fs::write(path, format!("{}\n", capacity.disk_bytes))?,
    }
    Ok(capacity)
}

/// How much of the disk fetched blobs may keep.
///
/// # Errors
/// If the disk cannot be measured.
pub fn blob_cache_bytes(config: &WorkerConfig, data_dir: &Path) -> io::Result<u64> {
    Ok(config.blob_cache.as_u64().min(crate::disk::free_bytes(data_dir)? / CACHE_PART))
}

/// How much of the engine's disk images may keep that no running build needs. `engine_dir` is on that disk.
///
/// # Errors
/// If the disk cannot be measured.
pub fn image_cache_bytes(config: &WorkerConfig, engine_dir: &Path) -> io::Result<u64> {
    Ok(config.image_cache.as_u64().min(crate::disk::free_bytes(engine_dir)? / CACHE_PART))
}

fn cpu_count() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn memory_total_bytes() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    memory_of(&text).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal; set capacity.memory"))
}

fn memory_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_counts_only_if_it_reaches_into_containers() {
        let dir = tempfile::tempdir().unwrap();
        let native = Some(Platform::LinuxAmd64);
        let own = PlatformOffer { platform: Platform::LinuxAmd64, emulated: false };
        let foreign = PlatformOffer { platform: Platform::LinuxArm64, emulated: true };
        assert_eq!(detect_platforms(dir.path(), native), [own]);
        for (entry, want) in [
            ("enabled\ninterpreter /usr/libexec/qemu\nflags: OCF\noffset 0\n", true),
            ("enabled\ninterpreter /usr/libexec/qemu\nflags: OC\noffset 0\n", false),
            ("disabled\ninterpreter /usr/libexec/qemu\nflags: OCF\noffset 0\n", false),
        ] {
            std::fs::write(dir.path().join("qemu-aarch64"), entry).unwrap();
            let offers = detect_platforms(dir.path(), native);
            assert_eq!(offers, if want { vec![own, foreign] } else { vec![own] }, "{entry}");
        }
    }

    #[test]
    fn what_adopted_jobs_have_written_is_not_taken_from_the_offer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk-offer");
        let config = WorkerConfig::new("https://farm", "w1".parse().unwrap(), Path::new(""), dir.path());
        let offer = |is_idle| capacity_again(&config, dir.path(), &path, is_idle).unwrap().disk_bytes;
        offer(true);
        std::fs::write(&path, format!("{}", u64::MAX)).unwrap();
        assert_eq!(offer(false), u64::MAX);
        assert!(offer(true) < u64::MAX, "measured again when nothing runs");
        assert!(offer(false) < u64::MAX);
    }

    #[test]
    fn reads_the_kernel_s_memory_line() {
        assert_eq!(memory_of("MemTotal:       24683888 kB\nMemFree: 1 kB\n"), Some(24_683_888 * 1024));
        assert_eq!(memory_of("MemFree: 1 kB\n"), None);
    }
}
