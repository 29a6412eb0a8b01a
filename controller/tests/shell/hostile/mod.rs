//! Clients that mean harm. In each case the attacker is cut off or told off, the farm goes on answering others, and its memory
//! does not grow with the attack.

mod attacker;
mod bodies;
mod bystander;
mod connections;
mod heads;
mod messages;
mod rates;
mod streams;

use crate::common::Controller;
use railyard_service::listener::Limits;

/// A farm that loses its patience soon, so that tests need not wait.
async fn farm(change: impl FnOnce(&mut Limits)) -> Controller {
    let mut limits = Limits { handshake_secs: 2, head_secs: 1, body_secs: 1, answer_secs: 1, ..Limits::default() };
    change(&mut limits);
    Controller::start_with(|config| config.limits = limits).await
}

/// What this process, the controller in it, has in memory.
fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

const MIB: usize = 1024 * 1024;
