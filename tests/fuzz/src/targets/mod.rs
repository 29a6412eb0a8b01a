//! What is fed. A new target is one small file and a line here.

mod archive;
mod audit;
mod cache;
mod certificate;
mod config;
mod journal;
mod lists;
mod manifest;
mod messages;
mod names;
mod output;
mod pipeline;
mod redact;
mod registry;
mod state;
mod token;

/// One parser, or a few that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name, of its corpus as well.
    pub name: &'static str,
    /// Parses, checks what must hold, and says in a few words how far it came.
    pub parse: fn(&[u8]) -> String,
    /// Inputs to begin with.
    pub examples: fn() -> Vec<Vec<u8>>,
    /// What the format knows.
    pub words: &'static [&'static str],
    /// Longest input.
    pub max_len: usize,
    /// Bytes of memory that a byte of input may take, beside what every target may.
    pub memory_factor: usize,
    /// Bytes that any input may take besides, however short, because the parser itself has such a bound.
    pub memory_base: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    pipeline::PIPELINE,
    names::NAMES,
    messages::MESSAGES,
    token::TOKEN,
    cache::CACHE,
    registry::REGISTRY,
    archive::ARCHIVE,
    archive::TARBALL,
    output::OUTPUT,
    state::PLACE,
    state::STATE,
    journal::JOURNAL,
    config::CONFIG,
    redact::REDACT,
    audit::AUDIT,
    manifest::MANIFEST,
    lists::LISTS,
    certificate::CERTIFICATE,
];

/// Texts as inputs.
fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
