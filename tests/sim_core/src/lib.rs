//! The real core and the real worker session in one deterministic process.
//!
//! A world is made of one seed: a controller (the real [`railyard_core::Dispatcher`]), workers (the real
//! [`railyard_worker::session::Session`]), clients, a journal, an object store, and a network between them that delays, loses,
//! repeats and cuts. Everything happens in one thread, in simulated time, in an order that the seed decides. A ledger
//! outside the farm judges everything that becomes durable, leaves or runs.
//!
//! Reading order: [`config`] (what there is), [`world`] (the loop), [`net`], [`controller`], [`host`], [`client`], [`faults`],
//! and what is judged: [`ledger`]. Worlds about keeping builds, with the real sweep, are smaller ones of their own: [`keeping`].
//!
//! **Invariant:** no thread, no clock, no hash map: the same configuration gives the same trace.

#![allow(missing_docs, reason = "a program of its own: fields and messages say what they are")]

pub mod client;
pub mod config;
pub mod controller;
pub mod crowd;
pub mod dice;
pub mod faults;
pub mod host;
pub mod journal;
pub mod keeping;
pub mod ledger;
pub mod net;
pub mod pipelines;
pub mod queue;
pub mod shrink;
pub mod store;
pub mod trace;
pub mod world;

pub use config::Config;
pub use trace::Listen;
pub use world::{Outcome, run};
