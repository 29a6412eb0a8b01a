//! Requests to the cache: paths, signed queries, ranges, conditions, listings.

use super::{Target, texts};
use railyard_controller::fuzz;

pub const CACHE: Target = Target {
    name: "cache",
    parse: fuzz::cache::request,
    examples: || {
        texts(&[
            "/cache/images/amd64/4799.0.0/a%20b.raw?format=json&sort=size&order=desc",
            "/cache/blobs/sha256/ab/abc?expires=1790000000001&signature=00ff",
            "/cache/uploads/1-2?part=3&length=1000&expires=1790000000001&signature=00ff",
            "/cache/a\nRange: bytes=0-9\nIf-Range: \"5-6-7\"\nIf-None-Match: W/\"5-6-7\", *",
            "/cache/a\nIf-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\nIf-Unmodified-Since: Sunday, 06-Nov-94 08:49:37 GMT",
            "/cache/a\nIf-Match: \"x\"\nx-amz-checksum-crc32: AAAAAA==\ncontent-length: 1000",
        ])
    },
    words: &[
        "/cache/",
        "%2e",
        "%2f",
        "..",
        "%00",
        "%5c",
        "//",
        "?",
        "&",
        "=",
        "expires=",
        "signature=",
        "part=",
        "length=",
        "format=json",
        "uploads/",
        "\nRange: bytes=",
        "-",
        ",",
        "\nIf-Range: ",
        "\nIf-Match: ",
        "\nIf-None-Match: ",
        "\nIf-Modified-Since: ",
        "Sun Nov  6 08:49:37 1994",
        "W/",
        "*",
        "\ncontent-length: ",
        "\nx-amz-checksum-crc32: ",
        "+",
        "18446744073709551615",
    ],
    max_len: 8 * 1024,
    memory_factor: 64,
    memory_base: 0,
};
