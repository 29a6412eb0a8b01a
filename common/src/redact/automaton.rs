//! Many words found at once: a trie with failure links, after Aho and Corasick.
//!
//! It is written for what secrets are: few words, some of them long, that part early and then go on alone. The nodes of a word
//! that shares no more of its way with another lie one behind the other (a run), so that a node needs six bytes: the byte that
//! leads to it and what is known of it, and its failure link.
//!
//! **Invariant:** after any text, the node is that of the text's longest end that is a beginning of a word; its failure link is
//! the next longest.

use std::collections::BTreeMap;

/// The beginning of every word.
pub(super) const ROOT: u32 = 0;

/// It does not follow on the node before it.
const STARTS_RUN: u16 = 1 << 8;
/// It has children that do not follow on it.
const BRANCHES: u16 = 1 << 9;
/// A word ends here.
const WORD: u16 = 1 << 10;
/// A shorter word ends here, and none that is as long as the way to the node.
const SHORTER_WORD: u16 = 1 << 11;
/// How deep it is, up to [`DEEP`].
const DEPTH_SHIFT: u32 = 12;
/// This deep, or deeper.
pub(super) const DEEP: usize = 7;

/// The words and their failure links.
pub(super) struct Trie {
    /// The byte that leads to each node, and its flags.
    nodes: Vec<u16>,
    fails: Vec<u32>,
    /// The children of the root; 0 if there is none.
    first: Box<[u32; 256]>,
    /// Other children that do not follow on their parent.
    branches: BTreeMap<(u32, u8), u32>,
    /// The first node of each run, ascending, and its depth.
    runs: Vec<(u32, u32)>,
    /// The longest word that ends at a node where only shorter ones end.
    shorter: BTreeMap<u32, u32>,
}

impl Default for Trie {
    fn default() -> Self {
        Self {
            nodes: vec![STARTS_RUN],
            fails: Vec::new(),
            first: Box::new([0; 256]),
            branches: BTreeMap::new(),
            runs: vec![(ROOT, 0)],
            shorter: BTreeMap::new(),
        }
    }
}

impl Trie {
    /// Whether there are no words.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Adds a word; it may be there already.
    pub(super) fn insert(&mut self, word: &[u8]) {
        let mut node = ROOT;
        for (at, &byte) in word.iter().enumerate() {
            node = self.child(node, byte).unwrap_or_else(|| self.grow(node, byte, at + 1));
        }
        self.nodes[node as usize] |= WORD;
    }

    fn grow(&mut self, parent: u32, byte: u8, depth: usize) -> u32 {
        let node = u32::try_from(self.nodes.len()).expect("secrets have fewer than 4 GiB of forms");
        let mut flags = u16::try_from(depth.min(DEEP)).unwrap_or_default() << DEPTH_SHIFT;
        if parent == ROOT || parent + 1 != node {
            flags |= STARTS_RUN;
            self.runs.push((node, u32::try_from(depth).expect("a form has fewer than 4 GiB")));
            if parent == ROOT {
                self.first[usize::from(byte)] = node;
            } else {
                self.nodes[parent as usize] |= BRANCHES;
                self.branches.insert((parent, byte), node);
            }
        }
        self.nodes.push(u16::from(byte) | flags);
        node
    }

    /// Sets the failure links, when all words are there.
    pub(super) fn finish(&mut self) {
        self.nodes.shrink_to_fit();
        self.fails = vec![ROOT; self.nodes.len()];
        // All nodes of one depth, then those of the next: a failure link leads to a lesser depth.
        let mut level: Vec<u32> = self.first.iter().copied().filter(|node| *node != ROOT).collect();
        while !level.is_empty() {
            let mut next = Vec::with_capacity(level.len());
            for parent in level {
                let follows = self.follows(parent).then_some(parent + 1);
                for child in follows.into_iter().chain(self.branches.range((parent, 0)..=(parent, 255)).map(|it| *it.1))
                {
                    let byte = self.nodes[child as usize].to_le_bytes()[0];
                    self.fails[child as usize] = self.step(self.fails[parent as usize], byte);
                    next.push(child);
                }
            }
            for &node in &next {
                let shorter = self.word_len(self.fails[node as usize]);
                if shorter > 0 && self.nodes[node as usize] & WORD == 0 {
                    self.nodes[node as usize] |= SHORTER_WORD;
                    self.shorter.insert(node, u32::try_from(shorter).unwrap_or(u32::MAX));
                }
            }
            level = next;
        }
    }

    /// Whether the next node is a child of this one.
    fn follows(&self, node: u32) -> bool {
        self.nodes.get(node as usize + 1).is_some_and(|next| next & STARTS_RUN == 0)
    }

    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        if node == ROOT {
            return Some(self.first[usize::from(byte)]).filter(|node| *node != ROOT);
        }
        match self.nodes.get(node as usize + 1) {
            Some(next) if next & (STARTS_RUN | 0xff) == u16::from(byte) => Some(node + 1),
            _ if self.nodes[node as usize] & BRANCHES != 0 => self.branches.get(&(node, byte)).copied(),
            _ => None,
        }
    }

    /// The node after one more byte.
    pub(super) fn step(&self, mut node: u32, byte: u8) -> u32 {
        loop {
            match self.child(node, byte) {
                Some(child) => return child,
                None if node == ROOT => return ROOT,
                None => node = self.fails[node as usize],
            }
        }
    }

    /// How long the longest word is that ends here; 0 if none does.
    pub(super) fn word_len(&self, node: u32) -> usize {
        match self.nodes[node as usize] & (WORD | SHORTER_WORD) {
            0 => 0,
            SHORTER_WORD => self.shorter[&node] as usize,
            _ => self.depth(node),
        }
    }

    /// The same place, known by no more than may go on: the end of a word that no other goes on from is left.
    pub(super) fn that_goes_on(&self, mut node: u32) -> u32 {
        while node != ROOT && self.nodes[node as usize] & (WORD | BRANCHES) == WORD && !self.follows(node) {
            node = self.fails[node as usize];
        }
        node
    }

    /// How many bytes lead to it.
    pub(super) fn depth(&self, node: u32) -> usize {
        let run = self.runs[self.runs.partition_point(|(first, _)| *first <= node) - 1];
        (run.1 + (node - run.0)) as usize
    }

    /// The same up to [`DEEP`], and quickly.
    pub(super) fn depth_at_least(&self, node: u32) -> usize {
        usize::from(self.nodes[node as usize] >> DEPTH_SHIFT)
    }

    /// Bytes in memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.nodes.len() * 6 + self.runs.len() * 8 + (self.branches.len() + self.shorter.len()) * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(word: &[u8], text: &[u8]) -> bool {
        text.ends_with(word)
    }

    proptest! {
        #[test]
        fn the_longest_beginning_and_the_longest_word_are_known(
            words in prop::collection::vec("[ab]{1,9}|[a-c]{3,20}", 1..12),
            text in "[a-c]{0,200}",
        ) {
            let mut trie = Trie::default();
            words.iter().for_each(|word| trie.insert(word.as_bytes()));
            trie.finish();
            let (mut node, mut short) = (ROOT, ROOT);
            for at in 1..=text.len() {
                let so_far = &text.as_bytes()[..at];
                node = trie.step(node, so_far[at - 1]);
                short = trie.step(short, so_far[at - 1]);
                let depth = words.iter().flat_map(|word| (0..=word.len()).map(move |len| &word.as_bytes()[..len]))
                    .filter(|begin| ends(begin, so_far)).map(<[u8]>::len).max();
                prop_assert_eq!(Some(trie.depth(node)), depth);
                prop_assert_eq!(trie.depth_at_least(node), trie.depth(node).min(DEEP));
                let longest = words.iter().map(String::as_bytes).filter(|word| ends(word, so_far)).map(<[u8]>::len).max();
                prop_assert_eq!(trie.word_len(node), longest.unwrap_or(0));
                prop_assert_eq!(trie.word_len(short), longest.unwrap_or(0));
                short = trie.that_goes_on(short);
                // What may still become a word: a beginning of one that is longer.
                let open = words.iter().flat_map(|word| (0..word.len()).map(move |len| &word.as_bytes()[..len]))
                    .filter(|begin| ends(begin, so_far)).map(<[u8]>::len).max();
                prop_assert_eq!(Some(trie.depth(short)), open);
            }
        }
    }
}
