//! The farm's decisions, twice: as golden transcripts that an operator can read, and under random commands.
//!
//! Both go through one [`common::Ledger`], which checks the invariants after every event and lives through each journal a
//! second time. A change of a transcript is a change of behaviour: read the difference, then accept it with
//! `INSTA_UPDATE=always cargo nextest run -p railyard-core`.

mod backlog;
mod chance;
mod common;
mod script;
mod transcripts;
