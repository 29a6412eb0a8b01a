//! What every process of the farm shares: clock and task seams, configuration, telemetry, TLS, the client channel,
//! the listener, and the conversions between protocol and domain.
//!
//! **Invariant:** what comes over the wire becomes a checked domain type in [`convert`] and nowhere else; wall-clock
//! time is read in [`clock`] and nowhere else; tasks are spawned in [`task`] and nowhere else.

pub mod channel;
pub mod clock;
pub mod config;
pub mod convert;
pub mod enrol;
mod errors;
pub mod listener;
pub mod process;
pub mod rpc_error;
pub mod task;
pub mod telemetry;
pub mod tls;

pub use errors::error_chain;

/// Largest gRPC message that either side decodes. The biggest is a submit with its scripts; log batches stay at 1 MiB.
pub const MESSAGE_MAX_BYTES: usize = 16 * 1024 * 1024;
