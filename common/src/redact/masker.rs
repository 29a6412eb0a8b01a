//! A stream, masked as it comes.

use super::Patterns;
use super::automaton::{ROOT, Trie};
use super::forms::{MIN_SECRET_BYTES, WRAPPED_MIN};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// What stands in place of a byte of a secret.
const MASK: u8 = b'*';
/// Line ends in a row that are passed over within a form: `\r\n`.
const BREAKS_MAX: u8 = 2;

/// Bytes that the filter looks at together.
const GRAM: usize = 3;
const GRAM_BITS: u32 = 16;

fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// Where no form can begin. For each three bytes within the first [`MIN_SECRET_BYTES`] of a form, a bit is set.
pub(super) struct Filter(Box<[u64; 1 << (GRAM_BITS - 6)]>);

impl Default for Filter {
    fn default() -> Self {
        Self(Box::new([0; 1 << (GRAM_BITS - 6)]))
    }
}

impl Filter {
    /// Places that are passed over at once.
    const STRIDE: usize = MIN_SECRET_BYTES - GRAM + 1;

    fn bit(gram: &[u8]) -> (usize, u64) {
        let number = u32::from_le_bytes([gram[0], gram[1], gram[2], 0]);
        let hash = number.wrapping_mul(0x9e37_79b1) >> (32 - GRAM_BITS);
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    pub(super) fn add(&mut self, form: &[u8]) {
        for gram in form[..MIN_SECRET_BYTES].windows(GRAM) {
            let (word, bit) = Self::bit(gram);
            self.0[word] |= bit;
        }
    }

    /// Whether no form begins at any of the next [`Self::STRIDE`] places. A form that began at one of them would have the last
    /// three of the next [`MIN_SECRET_BYTES`] bytes among its first ones; or a line end among those three, if it is wrapped.
    fn passes(&self, next: &[u8]) -> bool {
        next.get(MIN_SECRET_BYTES - GRAM..MIN_SECRET_BYTES).is_some_and(|gram| {
            let (word, bit) = Self::bit(gram);
            self.0[word] & bit == 0 && !gram.iter().any(|byte| is_break(*byte))
        })
    }
}

/// Where a form that may be wrapped stands.
struct Wrapped {
    node: u32,
    /// Characters that were read, line ends not counted.
    chars: u64,
    /// How many there were when a line end was passed over, for each within the way to the node.
    breaks: VecDeque<u64>,
    /// Line ends in a row.
    in_row: u8,
}

impl Wrapped {
    fn reset(&mut self) {
        self.node = ROOT;
        self.breaks.clear();
        self.in_row = 0;
    }

    /// Reads a byte and returns the length of the longest form that ends with it, line ends counted.
    fn step(&mut self, trie: &Trie, byte: u8) -> usize {
        if is_break(byte) {
            if trie.depth_at_least(self.node) >= WRAPPED_MIN && self.in_row < BREAKS_MAX {
                self.in_row += 1;
                self.breaks.push_back(self.chars);
            } else {
                self.reset();
            }
            return 0;
        }
        self.in_row = 0;
        self.chars += 1;
        self.node = trie.step(self.node, byte);
        let found = match trie.word_len(self.node) {
            0 => 0,
            chars => self.bytes(chars),
        };
        if found > 0 {
            self.node = trie.that_goes_on(self.node);
        }
        if !self.breaks.is_empty() {
            let begun = self.chars - trie.depth(self.node) as u64;
            self.breaks.drain(..self.breaks.partition_point(|at| *at <= begun));
        }
        found
    }

    /// How many bytes the last so many characters have with the line ends between them.
    fn bytes(&self, chars: usize) -> usize {
        let begun = self.chars - chars as u64;
        chars + self.breaks.len() - self.breaks.partition_point(|at| *at <= begun)
    }

    fn held(&self, trie: &Trie) -> usize {
        self.bytes(trie.depth(self.node))
    }
}

/// A stream in which secrets are masked. What it has read and not yet told may be the beginning of a secret.
pub struct Masker {
    patterns: Option<Arc<Patterns>>,
    plain: u32,
    wrapped: Wrapped,
    /// What was read; the part before `told` is told already.
    bytes: Vec<u8>,
    told: usize,
    /// What of it is to be masked: ascending, apart from each other, none of it told.
    found: VecDeque<Range<usize>>,
}

impl Masker {
    pub(super) fn new(patterns: Option<Arc<Patterns>>) -> Self {
        Self {
            patterns,
            plain: ROOT,
            wrapped: Wrapped { node: ROOT, chars: 0, breaks: VecDeque::new(), in_row: 0 },
            bytes: Vec::new(),
            told: 0,
            found: VecDeque::new(),
        }
    }

    /// Reads more of the stream and returns what can be told now.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut told = Vec::with_capacity(self.held() + bytes.len());
        self.push_into(bytes, &mut told);
        told
    }

    /// Reads more of the stream and appends what can be told now.
    pub fn push_into(&mut self, bytes: &[u8], told: &mut Vec<u8>) {
        let Some(patterns) = self.patterns.clone() else {
            told.extend_from_slice(bytes);
            return;
        };
        self.forget_told();
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.read(&patterns, from);
        // The beginning of what is masked anyway may be told and forgotten.
        self.tell(self.bytes.len().saturating_sub(self.open()), told);
    }

    /// How many of the last bytes may be the beginning of a form.
    fn open(&self) -> usize {
        let open =
            |patterns: &Arc<Patterns>| patterns.plain.depth(self.plain).max(self.wrapped.held(&patterns.wrapped));
        self.patterns.as_ref().map_or(0, open)
    }

    /// The stream has ended: returns the rest of it. What is pushed after this is another stream. The beginning of a form that is as
    /// long as a secret is masked as well: a step may have been killed while it wrote one.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut told = Vec::with_capacity(self.held());
        if self.open() >= MIN_SECRET_BYTES {
            self.find(self.told..self.bytes.len());
        }
        self.tell(self.bytes.len(), &mut told);
        self.forget_told();
        self.plain = ROOT;
        self.wrapped.reset();
        told
    }

    /// How many bytes were read and not told.
    pub fn held(&self) -> usize {
        self.bytes.len() - self.told
    }

    /// Whether something was read that was not told.
    pub fn is_holding(&self) -> bool {
        self.held() > 0
    }

    /// Reads what is new, from `at`.
    fn read(&mut self, patterns: &Patterns, mut at: usize) {
        while at < self.bytes.len() {
            // The first place where something may have begun that is not yet decided.
            let open =
                patterns.plain.depth_at_least(self.plain).max(patterns.wrapped.depth_at_least(self.wrapped.node));
            if open < Filter::STRIDE
                && self.wrapped.breaks.is_empty()
                && at - self.told >= open
                && patterns.filter.passes(&self.bytes[at - open..])
            {
                self.plain = ROOT;
                self.wrapped.reset();
                at += Filter::STRIDE - open;
                continue;
            }
            let byte = self.bytes[at];
            at += 1;
            self.plain = patterns.plain.step(self.plain, byte);
            let plain = patterns.plain.word_len(self.plain);
            let wrapped = self.wrapped.step(&patterns.wrapped, byte);
            if plain > 0 {
                self.plain = patterns.plain.that_goes_on(self.plain);
            }
            if plain.max(wrapped) > 0 {
                self.find(at.saturating_sub(plain.max(wrapped))..at);
            }
        }
    }

    /// Something ends here, behind everything that was found before.
    fn find(&mut self, mut found: Range<usize>) {
        while let Some(before) = self.found.pop_back_if(|before| before.end >= found.start) {
            found.start = found.start.min(before.start);
        }
        found.start = found.start.max(self.told);
        self.found.push_back(found);
    }

    /// Tells up to `end`, and further as long as it is masked anyway.
    fn tell(&mut self, end: usize, told: &mut Vec<u8>) {
        let mut end = end.max(self.told);
        while let Some(found) = self.found.pop_front_if(|found| found.start <= end) {
            end = end.max(found.end);
            for byte in &mut self.bytes[found] {
                if !is_break(*byte) {
                    *byte = MASK;
                }
            }
        }
        told.extend_from_slice(&self.bytes[self.told..end]);
        self.told = end;
    }

    /// Forgets what is told, once it is more than the rest: so no byte is moved often.
    fn forget_told(&mut self) {
        if self.told < self.held() || self.told == 0 {
            return;
        }
        self.bytes.drain(..self.told);
        for found in &mut self.found {
            *found = found.start - self.told..found.end - self.told;
        }
        self.told = 0;
    }
}

/// What is held is not shown.
impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masker").field("held", &self.held()).finish_non_exhaustive()
    }
}
