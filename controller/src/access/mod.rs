//! Who comes in, and as whom: certificates, tokens, revocations, and the table of who may call what.
//!
//! ```text
//! TLS ─► listener: certificate ─► gate: bearer token? ─► table: may this role call that? ─► the service
//!                    └ revoked: the connection ends, with all that runs on it
//! ```

pub mod fuzz;
mod gate;
mod guesses;
mod repeats;
mod revoked;
pub mod table;

pub use gate::{CHALLENGE, Gate, forbidden, gate, nobody, note_failure, revoked, too_often};
pub use guesses::Guesses;
pub use repeats::Repeats;
pub use revoked::{is_revoked, shut_out};
