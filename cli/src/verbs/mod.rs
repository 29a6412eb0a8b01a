//! What the verbs do, one file for each group.

pub mod access;
pub mod artifacts;
pub mod audit;
pub mod backup;
pub mod builds;
pub mod change;
pub mod dev;
pub mod gc;
pub mod help;
pub mod holds;
pub mod keep;
pub mod login;
pub mod logs;
pub mod pipeline;
pub mod secrets;
pub mod serve;
pub mod submit;
pub mod watch;
pub mod workers;
