//! Lines of an audit: whoever has the disk may have written them.

use super::Target;
use railyard_controller::audit::fuzz;

pub const AUDIT: Target = Target {
    name: "audit",
    parse: fuzz::feed,
    examples: fuzz::examples,
    words: &[
        "!{",
        "\"seq\":",
        "18446744073709551615",
        "\"prev\":\"",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "\"hash\":\"",
        "\"details\":{",
        "\"outcome\":\"refused\"",
        "\\u0000",
        "\\ud800",
        "[[[[",
        ":",
        "}",
        ",",
    ],
    max_len: 16 * 1024,
    memory_factor: 200,
    memory_base: 0,
};
