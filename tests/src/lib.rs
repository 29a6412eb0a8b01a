//! What the cross-crate tests share: farms of real processes, engines, images.
//!
//! **Invariant:** a test leaves nothing behind: processes, containers, images, mounts and directories go with their guards.

pub mod collector;
pub mod engine;
pub mod farm;
pub mod ground;
pub mod image;
pub mod process;
pub mod processes;
pub mod proxy;
pub mod s3;
pub mod scene;
pub mod wait;

/// Eight random hex digits: names that no other test has.
pub fn unique() -> String {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    hex::encode(bytes)
}
