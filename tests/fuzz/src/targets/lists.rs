//! Lists of builds as they stand in the cache, where others may have written.

use super::{Target, texts};
use railyard_controller::fuzz;

pub const LISTS: Target = Target {
    name: "lists",
    parse: fuzz::lists::list,
    examples: || {
        texts(&[
            "{\"schema_version\":1,\"revision\":7,\"builds\":[{\"version\":\"2\",\"channel\":\"beta\",\"verdict\":\"succeeded\",\"submitted_at\":\"2026-11-22T14:06:08Z\",\"platforms\":[\"linux/amd64\"],\"tags\":[\"golden\"]},{\"version\":\"1\",\"channel\":\"alpha\",\"verdict\":\"failed\",\"submitted_at\":\"x\",\"platforms\":[],\"keep\":\"manifest\"}],\"tombstones\":[{\"version\":\"0\",\"channel\":\"alpha\",\"number\":7,\"at\":\"x\",\"why\":\"too old\"}]}",
            "{\"schema_version\":1,\"revision\":0,\"builds\":[],\"tombstones\":[]}",
        ])
    },
    words: &[
        "\"schema_version\":2",
        "\"revision\":18446744073709551615",
        "\"revision\":-1",
        "\"builds\":[",
        "\"tombstones\":[",
        "\"channel\":\"channels\"",
        "\"version\":\"\"",
        "\"verdict\":\"cancelled\"",
        "\"keep\":\"nothing\"",
        "\"tags\":[\"a\",\"a\"]",
        "\"number\":null",
        "\"submitted_at\":\"0\"",
        "null",
        "[[[[",
        "\\u0000",
        ",",
    ],
    max_len: 16 * 1024,
    memory_factor: 200,
    memory_base: 0,
};
