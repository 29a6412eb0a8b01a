//! What a worker finds on its disk after a crash.

use super::{Target, texts};
use railyard_worker::fuzz;

pub const PLACE: Target = Target {
    name: "place",
    parse: fuzz::place::place,
    examples: || {
        let place = |author: u8| [&[0; 8], b"RYLOG1\n".as_slice(), &[author], &[0; 88]].concat();
        vec![place(0), place(1), place(2), place(3)]
    },
    words: &["RYLOG1\n"],
    max_len: 1024,
    memory_factor: 64,
    memory_base: 0,
};

pub const STATE: Target = Target {
    name: "state",
    parse: fuzz::state,
    examples: || {
        texts(&[
            r#"{"version":1,"worker":"w","kernel_boot":"b","at":"fetch"}"#,
            r#"{"version":2,"worker":"w","kernel_boot":"b","at":{"run":{"image":"i","started_millis":1,"ending":null}}}"#,
        ])
    },
    words: &[
        "\"version\":",
        "\"worker\":",
        "\"at\":",
        "{",
        "}",
        "[",
        "]",
        "null",
        "true",
        "1e999",
        "\"run\":",
        "\"image\":",
        "\"ending\":",
        "\\ud800",
        ",",
    ],
    max_len: 16 * 1024,
    memory_factor: 64,
    memory_base: 0,
};
