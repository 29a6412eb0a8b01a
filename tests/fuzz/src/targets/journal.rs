//! Records of the journal, and snapshots.

use super::Target;
use railyard_controller::fuzz;

pub const JOURNAL: Target = Target {
    name: "journal",
    parse: fuzz::journal::record,
    examples: fuzz::journal::examples,
    words: &[
        "\"event\":",
        "build-accepted",
        "job-queued",
        "job-leased",
        "worker-seen",
        "{",
        "}",
        "[",
        "]",
        "null",
        ",",
        "\"at\":",
        "\"job\":",
        "1e999",
        "\\ud800",
    ],
    max_len: 32 * 1024,
    // zstd packs JSON well.
    memory_factor: 4_096,
    memory_base: 0,
};
