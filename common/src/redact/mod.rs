//! Secrets do not appear in logs: what is said goes through a [`Masker`], which puts `*` in place of them.
//!
//! ```text
//! forms      a value ─► every way in which it may be written: as it is, JSON, URL, shell, base64, hexadecimal
//! automaton  all forms in one trie with failure links (Aho and Corasick): one step a byte finds them all
//! masker     the stream: what may be the beginning of a form waits, everything else is told at once
//! ```
//!
//! **Invariant:** what is told has as many bytes as what was said, line ends stay where they are, and it depends on nothing but
//! the whole of what was said: not on the pieces in which it came.
//!
//! What this cannot do: a step that means to show a secret finds a way to write it that nobody thought of (reversed, letter by
//! letter, compressed). Masking is for accidents; whoever may change a step that is given a secret has that secret.

mod automaton;
mod forms;
mod masker;

pub use forms::{MIN_SECRET_BYTES, is_maskable};
pub use masker::Masker;

use automaton::Trie;
use masker::Filter;
use std::fmt;
use std::sync::Arc;

/// What must not be seen. Cheap to clone.
#[derive(Clone, Default)]
pub struct Masks(Option<Arc<Patterns>>);

/// The forms of all values.
struct Patterns {
    /// Forms that stand as they are.
    plain: Trie,
    /// Forms in an alphabet without line ends, which may be wrapped into lines.
    wrapped: Trie,
    filter: Filter,
}

impl Masks {
    /// The masks of these values. One that is too short to be told from other text is passed over: see [`is_maskable`].
    pub fn new<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Self {
        let (mut plain, mut wrapped, mut filter) = (Trie::default(), Trie::default(), Filter::default());
        for value in values.into_iter().filter(|value| is_maskable(value)) {
            forms::plain(value, &mut |form| {
                filter.add(form);
                plain.insert(form);
            });
            forms::wrapped(value, &mut |form| {
                filter.add(form);
                wrapped.insert(form);
            });
        }
        if plain.is_empty() {
            return Self(None);
        }
        plain.finish();
        wrapped.finish();
        Self(Some(Arc::new(Patterns { plain, wrapped, filter })))
    }

    /// Whether nothing is masked.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Masks a stream from its beginning.
    pub fn stream(&self) -> Masker {
        Masker::new(self.0.clone())
    }

    /// Masks something that is there as a whole.
    pub fn mask(&self, bytes: &[u8]) -> Vec<u8> {
        let mut masker = self.stream();
        let mut told = masker.push(bytes);
        told.append(&mut masker.finish());
        told
    }

    /// Masks a text, such as an error's.
    pub fn mask_text(&self, text: &str) -> String {
        String::from_utf8(self.mask(text.as_bytes()))
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// Bytes that the forms take in memory.
    pub fn memory_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |patterns| patterns.plain.memory_bytes() + patterns.wrapped.memory_bytes())
    }
}

/// The values are not shown, nor how many or how long they are.
impl fmt::Debug for Masks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masks").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
