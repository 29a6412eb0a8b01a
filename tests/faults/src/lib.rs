//! Faults: a farm of real processes whose parts are killed in pairs while it builds.
//!
//! Reading order: [`plan`] (what a round does, from its seed), [`pipeline`] (what it builds, and what must come out),
//! [`parts`] (the processes, killed and started again), [`run`](mod@run) (rounds), [`record`] and [`leftovers`] (what must hold
//! after each).
//!
//! **Invariant:** a kill costs at most time. Every job succeeds exactly once, with the bytes that its step wrote and its whole
//! log, and nothing of it is left on the machine.

pub mod dice;
pub mod leftovers;
pub mod parts;
pub mod pipeline;
pub mod plan;
pub mod record;
pub mod run;
pub mod store;
