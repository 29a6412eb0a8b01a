//! The farm's words as types: ids, platforms, pipelines, plans, digests, outcomes and the layout of the cache.
//!
//! **Invariant:** nothing here performs I/O, reads a clock or draws a random number. Time is an argument
//! ([`time::Millis`]); what comes from outside is parsed here once and is valid from then on.

pub mod backoff;
pub mod blob;
pub mod build_ref;
pub mod by_channel;
pub mod compress;
pub mod digest;
pub mod disk;
pub mod id;
pub mod identity;
pub mod image_name;
pub mod job;
pub mod layout;
pub mod manifest;
pub mod object;
pub mod order;
pub mod outcome;
pub mod path;
pub mod pipeline;
pub mod plan;
pub mod planted;
pub mod platform;
pub mod priority;
pub mod redact;
pub mod retention;
pub mod rights;
pub mod secret;
pub mod tier;
pub mod time;
pub mod token;

/// The protocol that this source tree speaks.
///
/// 3: untrusted builds, secrets of steps. 4: the URL of a part is bound to its checksum.
pub const PROTOCOL: u32 = 4;

/// The oldest protocol that a controller accepts from clients: the one before its own.
pub const OLDEST_CLIENT_PROTOCOL: u32 = 3;

/// The oldest protocol that a controller accepts from workers: the one before its own, unless that cannot be had safely. Workers
/// of protocol 3 ask for URLs that any bytes can be sent to.
pub const OLDEST_WORKER_PROTOCOL: u32 = 4;

/// The version of this source tree.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
