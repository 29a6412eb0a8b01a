//! The farm's real gRPC services in a simulated network.
//!
//! One process, one thread, simulated time: the real controller (rpc, driver, logs, listener, TLS), the real worker daemon,
//! and people who speak the real client service, on hosts of [turmoil](https://docs.rs/turmoil). What is not real: the
//! network, the clocks, the journal's disk and the container engines. A seed draws a scenario and its faults; when the
//! faults are over, everything that was promised must be there.
//!
//! Reading order: [`scenario`] (what a seed draws), [`farm`] (the hosts), [`truth`] (what really happened, and what must
//! never happen), [`engine`], [`journal`], [`net`], [`people`], [`verdict`] (what must be true at the end), [`run`].

pub mod dice;
pub mod engine;
pub mod farm;
pub mod journal;
pub mod net;
pub mod people;
pub mod run;
pub mod scenario;
pub mod script;
pub mod truth;
pub mod verdict;
