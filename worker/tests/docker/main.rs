//! The worker with a real Docker engine, against a controller and a cache that live in the test.
//!
//! Needs root, an engine that answers on its default socket, and `busybox` (statically linked) on the PATH.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod compress;
mod disks;
mod engine;
mod farm;
mod faults;
mod faulty;
mod hostile;
mod hostile_disk;
mod hostile_network;
mod images;
mod jobs;
mod kept;
mod limits;
mod order;
mod packing;
mod pull;
mod secrets;
mod service;
