//! What transcripts and properties share.

mod audit;
mod ledger;
mod specs;

pub use ledger::{Ledger, Rebirth, event_from_json};
pub use specs::{GIB, artifact, image, job_spec};
