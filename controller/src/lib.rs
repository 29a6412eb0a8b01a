//! The controller: the shell around the farm.
//!
//! ```text
//! rpc ──► driver (owns the Farm) ──► journal
//!  │         │ orders, cancels         after the flush:
//!  │         └──► sessions, watchers, finalizer, log filing
//!  └──► cache (signed URLs), logs
//! ```
//!
//! **Invariant:** one task holds the farm; everyone else sends it commands and gets answers when they are durable.

pub mod access;
pub mod audit;
pub mod backup;
pub mod cache;
pub mod config;
mod document;
pub mod driver;
pub mod finalize;
pub mod fuzz;
pub mod index;
pub mod journal;
pub mod logs;
pub mod metrics;
pub mod policy;
mod policy_change;
mod private;
mod registry;
mod reload;
pub mod reserve;
mod rpc;
pub mod secrets;
mod server;
pub mod setup;
pub mod sweep;
mod trace;
mod uploads;

pub use config::ControllerConfig;
pub use server::{Outside, Ready, run, run_in};
pub use setup::issue;
