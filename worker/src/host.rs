//! What this host can offer: platforms, processors, memory, disk.

use crate::config::WorkerConfig;
use crate::disk::{Places, Space};
use crate::workshop::Workshop;
use railyard_common::disk::Role;
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
    config.platforms.clone().unwrap_or_else(found_platforms)
}

/// Those that this host runs.
pub fn found_platforms() -> Vec<PlatformOffer> {
    detect_platforms(Path::new(BINFMT_DIR), native())
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

/// What the disks are when no job has anything there: free, or kept only for those who come.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// That of the worker's directory.
    pub data_bytes: u64,
    /// The engine's, if that is another.
    pub engine_bytes: Option<u64>,
}

impl Base {
    /// How much of the disk fetched blobs may keep.
    pub fn blob_cache_bytes(&self, config: &WorkerConfig) -> u64 {
        config.blob_cache.as_u64().min(self.data_bytes / CACHE_PART)
    }

    /// How much of the engine's disk images may keep that no running build needs.
    pub fn image_cache_bytes(&self, config: &WorkerConfig) -> u64 {
        config.image_cache.as_u64().min(self.engine_bytes.unwrap_or(self.data_bytes) / CACHE_PART)
    }

    /// What is left for jobs: on either disk, for a job may write to both.
    fn for_jobs(&self, config: &WorkerConfig) -> u64 {
        let reserve = config.capacity.disk_reserve.as_u64();
        let (blobs, images) = (self.blob_cache_bytes(config), self.image_cache_bytes(config));
        let without = |bytes: u64, kept: u64| bytes.saturating_sub(reserve).saturating_sub(kept);
        match self.engine_bytes {
            None => without(self.data_bytes, blobs.saturating_add(images)),
            Some(engine_bytes) => without(self.data_bytes, blobs).min(without(engine_bytes, images)),
        }
    }
}

/// Measures the disks.
///
/// # Errors
/// If one cannot be measured.
pub fn base(shop: &Workshop) -> io::Result<Base> {
    measure(shop.space, &shop.disks.places, shop.blobs.kept_bytes(), shop.shelf.bytes())
}

/// The same with what blobs and images take, before there is a workshop.
///
/// # Errors
/// If one cannot be measured.
pub fn measure(
    space: fn(&Path) -> io::Result<Space>,
    places: &Places,
    blob_bytes: u64,
    image_bytes: u64,
) -> io::Result<Base> {
    let free = |role: Role| Ok::<_, io::Error>(space(places.dir(role))?.free_bytes);
    let data = free(Role::Data)?.saturating_add(blob_bytes);
    Ok(match places.engine() {
        Role::Data => Base { data_bytes: data.saturating_add(image_bytes), engine_bytes: None },
        Role::Engine => Base { data_bytes: data, engine_bytes: Some(free(Role::Engine)?.saturating_add(image_bytes)) },
    })
}

/// What jobs can use here.
///
/// # Errors
/// If the memory cannot be measured and the settings do not say.
pub fn capacity(config: &WorkerConfig, base: &Base) -> io::Result<Capacity> {
    let cpus = cpu_count();
    let given = &config.capacity;
    let memory_bytes = match given.memory {
        Some(memory) => memory.as_u64(),
        None => memory_total_bytes()? / 100 * MEMORY_PERCENT,
    };
    Ok(Capacity {
        cpu_millis: given.cpu_millis.unwrap_or(cpus.saturating_mul(1000)),
        memory_bytes,
        disk_bytes: given.disk.map_or_else(|| base.for_jobs(config), |disk| disk.as_u64()),
        slots: given.slots.unwrap_or(cpus.saturating_mul(SLOTS_PER_CPU)),
    })
}

/// The same for a worker that goes on with jobs of an earlier process: what these have on the disk is theirs to use, so
/// the disk counts as it was when nobody used it. `path` remembers that.
///
/// # Errors
/// As [`capacity`].
pub fn capacity_again(config: &WorkerConfig, base: &Base, path: &Path, is_idle: bool) -> io::Result<Capacity> {
    let mut capacity = capacity(config, base)?;
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
        let base = Base { data_bytes: 100 << 30, engine_bytes: None };
        let offer = |is_idle| capacity_again(&config, &base, &path, is_idle).unwrap().disk_bytes;
        offer(true);
        std::fs::write(&path, format!("{}", u64::MAX)).unwrap();
        assert_eq!(offer(false), u64::MAX);
        assert!(offer(true) < u64::MAX, "measured again when nothing runs");
        assert!(offer(false) < u64::MAX);
    }

    #[test]
    fn jobs_are_offered_what_neither_the_caches_nor_the_host_keep_on_either_disk() {
        const GIB: u64 = 1 << 30;
        let config = WorkerConfig::new("https://farm", "w1".parse().unwrap(), Path::new(""), "/");
        let offer =
            |data_bytes, engine_bytes| capacity(&config, &Base { data_bytes, engine_bytes }).unwrap().disk_bytes / GIB;
        assert_eq!(offer(200 * GIB, None), 200 - 2 - 10 - 20);
        assert_eq!(offer(20 * GIB, None), 20 - 2 - 5 - 5, "on a small disk each cache has a quarter");
        assert_eq!(offer(200 * GIB, Some(40 * GIB)), 40 - 2 - 10);
        assert_eq!(offer(20 * GIB, Some(400 * GIB)), 20 - 2 - 5);
        assert_eq!(offer(GIB, None), 0);
    }

    #[test]
    fn reads_the_kernel_s_memory_line() {
        assert_eq!(memory_of("MemTotal:       24683888 kB\nMemFree: 1 kB\n"), Some(24_683_888 * 1024));
        assert_eq!(memory_of("MemFree: 1 kB\n"), None);
    }
}
