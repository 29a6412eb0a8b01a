//! What will happen when. Things of the same moment happen in the order in which they were put in.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Milliseconds of true time since the world began.
pub type Ms = u64;

struct Entry<T> {
    at: Ms,
    number: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest: the earliest.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The future.
pub struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    number: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), number: 0 }
    }
}

impl<T> Queue<T> {
    /// `what` happens at `at`.
    pub fn put(&mut self, at: Ms, what: T) {
        self.number += 1;
        self.heap.push(Entry { at, number: self.number, what });
    }

    /// What happens next.
    pub fn take(&mut self) -> Option<(Ms, T)> {
        self.heap.pop().map(|entry| (entry.at, entry.what))
    }
}
