//! An attempt's log: first into a file on this disk, from there to the controller.

mod catchup;
pub mod fuzz;
mod place;
mod ship;
mod spool;

pub use catchup::{Catchup, News, Rotated, Taken};
pub use ship::{Shipped, ship};
pub use spool::{JobLog, Written};

/// How many of something, for people: `1 file`, `2 files`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}
