//! Every parser of outside bytes, fed with what it does not expect.
//!
//! ```text
//! targets     one small file each: what is parsed, examples, words
//! corpus/T/   more examples: inputs that found something, now or once
//! mutate      changes an example a little
//! run         parse ─► panic? memory? time? ─► something new is kept and changed further
//! ```
//!
//! There is no coverage to guide the search on a stable compiler. What guides it is what the parsers say: each target tells in a
//! few words how far an input came, and an input with which it says something new is kept.
//!
//! **Invariant:** a run is its seed: the same inputs come in the same order.

mod alloc;
mod mutate;
mod run;
pub mod targets;

pub use run::{Budget, Finding, Report, corpus_dir, replay, run};
pub use targets::{TARGETS, Target};
