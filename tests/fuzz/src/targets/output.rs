//! A container's output, as the engine's log has it.

use super::{Target, texts};
use railyard_worker::fuzz;

pub const OUTPUT: Target = Target {
    name: "output",
    parse: fuzz::output::output,
    examples: || texts(&["(a line\n", "\u{2}2026-11-21T12:58:11.591925975Z x", "\u{3} \n", "(no space"]),
    words: &["\n", " ", "\u{2}", "\u{3}", "2026-11-21T12:58:11.591925975Z "],
    max_len: 1024,
    // A byte can say that sixteen kilobytes follow.
    memory_factor: 64 * 1024,
    memory_base: 0,
};
