//! What goes first when a disk is too full: one policy for everything that a worker keeps there.
//!
//! What nobody needs goes first, then what a running build may still want; of each the least recently used. Things can share parts,
//! as images share layers: a part is free when the last thing that has it is gone.
//!
//! **Invariant:** what a job uses is never chosen.

use railyard_common::digest::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// Who needs a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Nobody now; perhaps somebody who comes.
    Nobody,
    /// A build that is not over. Without it, it has to be brought here again.
    Build,
    /// A job that runs.
    Job,
}

/// How far it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What nobody needs.
    Spare,
    /// All that no job uses, what running builds need last.
    Unused,
}

impl Reach {
    fn covers(self, need: Need) -> bool {
        match self {
            Self::Spare => need == Need::Nobody,
            Self::Unused => need != Need::Job,
        }
    }
}

/// What takes room, by what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A layer in the engine, by its diff id.
    Layer(Digest),
    /// A blob's file, packed or not.
    File(Digest, bool),
}

/// Something that could be removed.
#[derive(Clone, Debug)]
pub struct Thing<K> {
    /// Which.
    pub key: K,
    /// What it is made of, and how big that is. None: nobody knows.
    pub parts: BTreeMap<Part, u64>,
    /// When it was last used.
    pub used_at: u64,
    /// By whom it is needed.
    pub need: Need,
}

/// A thing that is to go.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a, K> {
    /// Which.
    pub thing: &'a Thing<K>,
    /// What will be free when it and all before it are gone, and was not before it went.
    pub frees_bytes: u64,
}

/// Everything that may go, in the order in which it would.
pub fn order<K: Ord>(things: &[Thing<K>], reach: Reach) -> Vec<&Thing<K>> {
    let mut order: Vec<&Thing<K>> = things.iter().filter(|thing| reach.covers(thing.need)).collect();
    order.sort_by(|a, b| (a.need, a.used_at, &a.key).cmp(&(b.need, b.used_at, &b.key)));
    order
}

/// What has to go so that `goal_bytes` more are free; all that may go, if that is not enough. What would free nothing, because
/// others that stay have all of it, stays too.
pub fn choose<K: Ord>(things: &[Thing<K>], reach: Reach, goal_bytes: u64) -> Vec<Choice<'_, K>> {
    let mut held: BTreeMap<Part, (usize, u64)> = BTreeMap::new();
    for (part, bytes) in things.iter().flat_map(|thing| &thing.parts) {
        let (holders, size) = held.entry(*part).or_default();
        (*holders, *size) = (*holders + 1, (*size).max(*bytes));
    }
    let stays = things.iter().filter(|thing| !reach.covers(thing.need));
    let pinned: BTreeSet<&Part> = stays.flat_map(|thing| thing.parts.keys()).collect();
    let (mut freed, mut chosen) = (0_u64, Vec::new());
    for thing in order(things, reach) {
        if freed >= goal_bytes {
            break;
        }
        let is_known = !thing.parts.is_empty();
        if is_known && thing.parts.keys().all(|part| pinned.contains(part)) {
            continue;
        }
        let mut frees_bytes = 0_u64;
        for part in thing.parts.keys() {
            let Some((holders, bytes)) = held.get_mut(part) else { continue };
            *holders -= 1;
            if *holders == 0 {
                frees_bytes = frees_bytes.saturating_add(*bytes);
            }
        }
        freed = freed.saturating_add(frees_bytes);
        chosen.push(Choice { thing, frees_bytes });
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(n: u8) -> Part {
        Part::Layer(Digest::of(&[n]))
    }

    /// Sizes by part, so that a part is as big wherever it is.
    fn thing(key: usize, parts: &[u8], used_at: u64, need: Need) -> Thing<usize> {
        Thing { key, parts: parts.iter().map(|n| (part(*n), u64::from(*n) * 10)).collect(), used_at, need }
    }

    fn keys(chosen: &[Choice<'_, usize>]) -> Vec<usize> {
        chosen.iter().map(|choice| choice.thing.key).collect()
    }

    #[test]
    fn the_least_recently_used_goes_first_whatever_it_is_and_what_a_build_needs_last() {
        let things = [
            thing(0, &[1], 50, Need::Nobody),
            thing(1, &[2], 10, Need::Build),
            thing(2, &[3], 40, Need::Nobody),
            thing(3, &[4], 5, Need::Job),
        ];
        assert_eq!(keys(&choose(&things, Reach::Unused, 1)), [2]);
        assert_eq!(keys(&choose(&things, Reach::Unused, 31)), [2, 0]);
        assert_eq!(keys(&choose(&things, Reach::Unused, 41)), [2, 0, 1]);
        assert_eq!(keys(&choose(&things, Reach::Spare, u64::MAX)), [2, 0]);
        assert!(choose(&things, Reach::Unused, 0).is_empty());
    }

    #[test]
    fn shared_layers_are_free_when_the_last_image_is_gone() {
        let things = [
            thing(0, &[1, 2], 1, Need::Nobody),
            thing(1, &[1, 3], 2, Need::Nobody),
            // All of it belongs to an image that stays.
            thing(2, &[4], 0, Need::Nobody),
            thing(3, &[4, 5], 3, Need::Job),
            // Nobody knows what that takes.
            thing(4, &[], 4, Need::Nobody),
        ];
        let chosen = choose(&things, Reach::Spare, u64::MAX);
        assert_eq!(keys(&chosen), [0, 1, 4]);
        assert_eq!(chosen.iter().map(|choice| choice.frees_bytes).collect::<Vec<_>>(), [20, 40, 0]);
        assert_eq!(order(&things, Reach::Spare).len(), 4, "the order leaves nothing out");
    }

    fn need() -> impl Strategy<Value = Need> {
        prop_oneof![3 => Just(Need::Nobody), 1 => Just(Need::Build), 1 => Just(Need::Job)]
    }

    fn things() -> impl Strategy<Value = Vec<Thing<usize>>> {
        let one = (prop::collection::vec(0_u8..12, 0..4), 0_u64..20, need());
        prop::collection::vec(one, 0..20).prop_map(|all| {
            let made = all.into_iter().enumerate();
            made.map(|(key, (parts, used_at, need))| thing(key, &parts, used_at, need)).collect()
        })
    }

    /// What is free if these go, counted anew.
    fn freed(things: &[Thing<usize>], gone: &[usize]) -> u64 {
        let stay: BTreeSet<Part> = (things.iter().filter(|thing| !gone.contains(&thing.key)))
            .flat_map(|thing| thing.parts.keys().copied())
            .collect();
        let went = things.iter().filter(|thing| gone.contains(&thing.key)).flat_map(|thing| &thing.parts);
        let free: BTreeMap<Part, u64> =
            went.filter(|(part, _)| !stay.contains(part)).map(|(part, bytes)| (*part, *bytes)).collect();
        free.values().sum()
    }

    proptest! {
        #[test]
        fn nothing_in_use_goes_and_as_much_is_freed_as_can_be(
            things in things(),
            reach in prop_oneof![Just(Reach::Spare), Just(Reach::Unused)],
            goal in 0_u64..600,
        ) {
            let chosen = choose(&things, reach, goal);
            let gone = keys(&chosen);
            for choice in &chosen {
                prop_assert_ne!(choice.thing.need, Need::Job);
                prop_assert!(reach == Reach::Unused || choice.thing.need == Need::Nobody);
            }
            let sum: u64 = chosen.iter().map(|choice| choice.frees_bytes).sum();
            prop_assert_eq!(sum, freed(&things, &gone), "what it promises is what is freed");
            // All that may go would free no more than that, if the goal is not reached.
            let all: Vec<usize> = order(&things, reach).iter().map(|thing| thing.key).collect();
            prop_assert!(sum >= goal.min(freed(&things, &all)));
            // Without the last one it would not have been enough.
            if let Some((_, before)) = gone.split_last() {
                prop_assert!(freed(&things, before) < goal);
            }
        }

        #[test]
        fn who_stays_was_used_later_or_is_needed_more_or_frees_nothing(things in things(), goal in 0_u64..600) {
            let gone = keys(&choose(&things, Reach::Unused, goal));
            let Some(last) = gone.last().and_then(|key| things.iter().find(|thing| thing.key == *key)) else { return Ok(()) };
            let pinned: BTreeSet<Part> = (things.iter().filter(|thing| thing.need == Need::Job))
                .flat_map(|thing| thing.parts.keys().copied())
                .collect();
            for stays in things.iter().filter(|thing| thing.need != Need::Job && !gone.contains(&thing.key)) {
                let is_pinned = !stays.parts.is_empty() && stays.parts.keys().all(|part| pinned.contains(part));
                prop_assert!(
                    is_pinned || (stays.need, stays.used_at, stays.key) > (last.need, last.used_at, last.key),
                    "{:?} stays and {:?} goes", stays, last
                );
            }
        }
    }
}
