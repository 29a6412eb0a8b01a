//! Names, ids, paths, digests: everything that has a form as text and is written again.

use super::{Target, texts};
use railyard_common::build_ref::BuildRef;
use railyard_common::compress::Compress;
use railyard_common::digest::Digest;
use railyard_common::id::{
    BuildId, ChannelName, GroupName, JobName, JobSelector, LeaseId, PinName, PipelineName, PoolName, SecretName,
    StepName, TagName, Version, WorkerName,
};
use railyard_common::path::{Glob, RelPath};
use railyard_common::platform::Platform;
use railyard_common::priority::Priority;
use railyard_common::rights::Right;
use railyard_controller::reserve::Reserve;
use railyard_service::telemetry::TraceParent;
use railyard_service::tls::Identity;
use std::fmt::{Debug, Display};
use std::str::FromStr;

pub const NAMES: Target = Target {
    name: "names",
    parse,
    examples: || {
        texts(&[
            "flatcar/4799.0.0+nightly-20261121-2100",
            "step@linux/arm64",
            "step.variant@linux/amd64",
            "j12.3",
            "images/amd64/*.{raw,img}",
            "zstd:19",
            "release",
            "sdk:nightly",
            "host-paths:/srv/ccache:rw",
            "publish:images/stable",
            "railyard://worker/rack-3",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ])
    },
    words: &[
        "..",
        "/",
        "//",
        "@",
        ".",
        "**",
        "{a,b}",
        "[!a-z]",
        "\\",
        "\0",
        "%",
        "sha256:",
        "linux/",
        "railyard://",
        "worker",
        "é",
        "\u{202e}",
        "-",
        "+",
    ],
    max_len: 6_000,
    // A glob becomes an automaton.
    memory_factor: 2_000,
    memory_base: 0,
};

/// Whether it is one; and then it is the same when it was written and read again.
fn is<T: FromStr<Err: Display> + Display + PartialEq + Debug>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    match value.to_string().parse::<T>() {
        Ok(again) => assert_eq!(again, value),
        Err(error) => panic!("{text:?} is written as {value}, which is none: {error}"),
    }
    true
}

fn parse(bytes: &[u8]) -> String {
    let text = &*String::from_utf8_lossy(bytes);
    let which = [
        is::<PipelineName>(text),
        is::<WorkerName>(text),
        is::<PoolName>(text),
        is::<Version>(text),
        is::<BuildId>(text),
        is::<JobName>(text),
        is::<LeaseId>(text),
        is::<RelPath>(text),
        is::<Glob>(text),
        is::<Digest>(text),
        is::<Platform>(text),
        is::<Priority>(text),
        is::<Compress>(text),
        text.parse::<Identity>().is_ok_and(|who| who.uri().parse() == Ok(who)),
        is::<TraceParent>(text),
        is::<ChannelName>(text),
        is::<TagName>(text),
        is::<PinName>(text),
        is::<GroupName>(text),
        is::<StepName>(text),
        is::<SecretName>(text),
        is::<BuildRef>(text),
        is::<Right>(text),
        is::<Reserve>(text),
    ];
    if let Ok(glob) = text.parse::<Glob>() {
        let matcher = glob.matcher();
        assert!(!matcher.is_match("../etc/passwd") || text.contains('*') || text.contains('?') || text.contains('['));
    }
    let selects = text.parse::<JobSelector>().is_ok();
    let error = text.parse::<RelPath>().err().map(|error| error.to_string());
    let letters = which.iter().map(|is| if *is { 'x' } else { '.' }).collect::<String>();
    format!("{letters} {selects} {}", error.unwrap_or_default())
}
