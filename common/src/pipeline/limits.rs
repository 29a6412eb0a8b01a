//! Every limit of a pipeline file, and why it is that number.

/// Largest pipeline file: hand-written ones are a few KiB; the rest of a gRPC message (4 MiB) is left to its scripts.
pub const FILE_MAX_BYTES: usize = 1024 * 1024;
/// Largest script, inline or in a file: it travels in every order of its step. Bigger things belong into an artifact.
pub const SCRIPT_MAX_BYTES: usize = 256 * 1024;
/// All scripts and environments of one plan together: a plan is kept in memory and journaled whole.
pub const PLAN_MAX_TEXT_BYTES: usize = 16 * 1024 * 1024;
/// Bytes written while the texts of all jobs are filled in, each place counted as [`PLACE_BYTES`]: bounds the time that takes where
/// nothing comes of it, because the places are filled with nothing or the texts get too long.
pub const PLAN_MAX_FILLED_BYTES: usize = 128 * 1024 * 1024;
/// What filling in a place costs, in bytes that could be copied meanwhile.
pub const PLACE_BYTES: usize = 16;
/// Longest value of a parameter or of any substituted field but the script: half of what Linux takes as one argument.
pub const VALUE_MAX_BYTES: usize = 64 * 1024;
/// Most steps: ten times the largest pipeline known.
pub const STEPS_MAX: usize = 500;
/// Most jobs of one plan: what a farm of a hundred workers runs in a night.
pub const JOBS_MAX: usize = 2000;
/// Most variants of one step: Flatcar has about forty image formats.
pub const VARIANTS_MAX: usize = 200;
/// Most needs, inputs, outputs, environment variables or list entries of one step: more is a glob or a directory.
pub const STEP_LIST_MAX: usize = 100;
/// Most dependencies, input globs and outputs of all jobs together: bounds the time that expanding takes.
pub const PLAN_MAX_PARTS: usize = 50_000;
/// Most other builds that one takes images and artifacts from: an SDK and the parts of a distribution.
pub const BUILDS_USED_MAX: usize = 100;
/// Most artifacts of other builds that are held against globs, each pair counted once: bounds the time that expanding takes.
pub const MATCHES_MAX: usize = 20_000_000;
/// Most YAML nodes, aliases expanded: twenty times what [`STEPS_MAX`] ordinary steps have.
pub const NODES_MAX: usize = 100_000;
/// Most bytes of YAML text, aliases expanded: an alias may repeat a script, but not without end.
pub const EXPANDED_MAX_BYTES: usize = 8 * FILE_MAX_BYTES;
/// Deepest nesting of YAML: the format needs 7.
pub const DEPTH_MAX: usize = 32;
/// Most problems that are reported at once: more scroll away unread.
pub const DIAGNOSTICS_MAX: usize = 100;

/// Longest text of an `approval`: a few lines that say what is about to happen.
pub const APPROVAL_MAX_BYTES: usize = 1024;
/// Longest value of a label: what workers may offer.
pub const LABEL_MAX_BYTES: usize = 256;
/// Highest `limit` of a concurrency group: as many jobs as a large farm runs at a time.
pub const GROUP_LIMIT_MAX: u64 = 1000;
/// Longest `timeout` and `silence_timeout`, 7 days: what runs longer is stuck.
pub const TIMEOUT_MAX_SECS: u64 = 7 * 24 * 3600;
/// `timeout` where the step says nothing: the longest known step, a bootstrap of an SDK under emulation, fits.
pub const TIMEOUT_DEFAULT_SECS: u64 = 6 * 3600;
/// Shortest `lease_ttl`: a lease must outlive a few lost heartbeats.
pub const LEASE_TTL_MIN_SECS: u64 = 10;
/// Longest `lease_ttl`: as long a dead worker's job waits.
pub const LEASE_TTL_MAX_SECS: u64 = 3600;
/// `lease_ttl` where the step says nothing: outlives a restart of the controller.
pub const LEASE_TTL_DEFAULT_SECS: u64 = 120;
/// Most `retries` of a step's own failures.
pub const RETRIES_MAX: u64 = 10;

/// Least cpu, in thousandths: the engine's own least.
pub const CPU_MIN_MILLIS: u64 = 10;
/// Most cpu, in thousandths: more than any host has.
pub const CPU_MAX_MILLIS: u64 = 1024 * 1000;
/// cpu where the step says nothing.
pub const CPU_DEFAULT_MILLIS: u32 = 1000;
/// Least memory: the engine refuses less than 6 MiB.
pub const MEMORY_MIN_BYTES: u64 = 6 * 1024 * 1024;
/// Most memory: more than any host has.
pub const MEMORY_MAX_BYTES: u64 = 64 << 40;
/// Memory where the step says nothing.
pub const MEMORY_DEFAULT_BYTES: u64 = 1 << 30;
/// Most disk: more than any host has.
pub const DISK_MAX_BYTES: u64 = 1 << 50;
/// Disk where the step says nothing.
pub const DISK_DEFAULT_BYTES: u64 = 1 << 30;
