//! What happens, in words, if somebody wants to read it; and one number for all of it.

use std::hash::{DefaultHasher, Hasher as _};

/// Who listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// Nobody: nothing is put into words.
    #[default]
    No,
    /// Only the number counts.
    Hash,
    /// A person.
    Print,
}

/// The words of one world.
pub struct Trace {
    listen: Listen,
    hash: DefaultHasher,
    lines: u64,
}

impl Trace {
    /// Nothing has happened.
    pub fn new(listen: Listen) -> Self {
        // Its keys are fixed, so that the same words give the same number.
        Self { listen, hash: DefaultHasher::new(), lines: 0 }
    }

    /// Something has happened.
    pub fn say(&mut self, now: u64, what: impl FnOnce() -> String) {
        if self.listen == Listen::No {
            return;
        }
        let line = format!("{:>9}.{:03} {}", now / 1000, now % 1000, what());
        self.hash.write(line.as_bytes());
        self.lines += 1;
        if self.listen == Listen::Print {
            println!("{line}");
        }
    }

    /// The number of everything said, and how much that was.
    pub fn hash(&self) -> (u64, u64) {
        (self.hash.finish(), self.lines)
    }
}
