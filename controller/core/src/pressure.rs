//! Pressure: a host whose processes stand still for want of something takes nothing new, whatever it has free on paper.

use std::fmt;

/// What a host is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scarce {
    /// Memory: pages are fetched back as soon as they have been thrown out.
    Memory,
    /// The disk's time.
    Io,
}

/// A worker's word that its host is under pressure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Of what.
    pub scarce: Scarce,
    /// Of the last ten seconds, in which nothing got on for want of it.
    pub percent: u32,
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.scarce {
            Scarce::Memory => "memory",
            Scarce::Io => "the disk",
        };
        write!(f, "its processes wait for {what} {} % of the time", self.percent)
    }
}
