//! A sweep, without its I/O: what it asks of the cache, one thing after another, and what is to go.
//!
//! A [`Planner`] starts from a [`Look`] at the farm, asks for pages of listings and for manifests, and ends with a [`SweepPlan`],
//! or with the reason why nothing may be deleted. Whoever drives it brings the answers: the controller, or a simulation.
//!
//! **Invariant:** an object is in a plan only if it was listed, is old enough, and neither the farm nor any manifest in the cache needs it;
//! and only if everything that must be in the cache was listed, too.

mod claims;
mod look;
mod plan;
mod planner;

pub use claims::Claims;
pub use look::{Decided, Look};
pub use plan::{Gone, GoneKind, SweepPlan, Unpublished};
pub use planner::{Ask, Listed, Planner, Stop};

/// Objects of one page of a listing, which is what S3 gives at once.
pub const PAGE_LEN: usize = 1_000;
