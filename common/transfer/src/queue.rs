//! What is left to move of one file.

use std::sync::{Mutex, PoisonError};

/// Parts that the streams of a transfer take one after the other: a file of a terabyte has many thousand of them, and a stream works
/// on one.
pub(crate) struct Queue<T>(Mutex<std::vec::IntoIter<T>>);

impl<T> Queue<T> {
    /// All of them, the first one first.
    pub(crate) fn new(left: Vec<T>) -> Self {
        Self(Mutex::new(left.into_iter()))
    }

    /// The next one, which is the caller's now.
    pub(crate) fn next(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}
