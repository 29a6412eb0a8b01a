//! An attempt's log: first into a file on this disk, from there to the controller.

mod ship;
mod spool;

pub use ship::{Shipped, ship};
pub use spool::{JobLog, Written};
