//! Byte-pair merging: the ranked pairs, and the loop that applies them. Source: Sennrich et al., arXiv 1508.07909; the order of
//! merging (lowest rank first, leftmost among equals) is that of huggingface/tokenizers.
//!
//! A word of n symbols takes O(n log n): a heap of candidates over a linked list of symbols.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

use crate::text::TextError;

/// Marks an empty slot; ids stay far below.
const EMPTY: u64 = u64::MAX;

/// What a pair becomes.
#[derive(Clone, Copy)]
struct Merge {
    pair: u64,
    rank: u32,
    merged: u32,
}

/// Ranked pairs, by pair.
pub(super) struct Merges {
    /// Open addressing; a power of two, at most three quarters full.
    table: Vec<Merge>,
    seed: u64,
    len: u32,
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// Room for `n_merges` pairs.
    pub(super) fn with_capacity(n_merges: usize) -> Self {
        let n_slots = (n_merges * 4 / 3 + 2).next_power_of_two();
        // The seed keeps a file from being built to collide.
        let seed = RandomState::new().hash_one(n_merges);
        Self { table: vec![Merge { pair: EMPTY, rank: 0, merged: 0 }; n_slots], seed, len: 0 }
    }

    /// Adds a pair after all that came before. A pair that is there already gets the new, worse rank, as in the reference.
    pub(super) fn push(&mut self, left: u32, right: u32, merged: u32) -> Result<(), TextError> {
        if self.len as usize + 1 >= self.table.len() {
            return Err(TextError::malformed("model.merges", "more merges than announced"));
        }
        let pair = pair_key(left, right);
        let slot = self.slot(pair);
        self.table[slot] = Merge { pair, rank: self.len, merged };
        self.len += 1;
        Ok(())
    }

    fn slot(&self, pair: u64) -> usize {
        let mask = self.table.len() - 1;
        let product = u128::from(pair ^ self.seed) * 0x9E37_79B9_7F4A_7C15;
        let mut slot = ((product >> 64) as usize ^ product as usize) & mask;
        while self.table[slot].pair != EMPTY && self.table[slot].pair != pair {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let merge = self.table[self.slot(pair_key(left, right))];
        (merge.pair != EMPTY).then_some(merge)
    }

    /// Merges `symbols` in place until no pair is left.
    pub(super) fn apply(&self, symbols: &mut Vec<u32>, scratch: &mut MergeScratch) {
        if symbols.len() <= SHORT_WORD {
            self.apply_by_scanning(symbols);
        } else {
            self.apply_by_heap(symbols, scratch);
        }
    }

    /// The best pair is looked for anew each time: fastest for the words of real text.
    fn apply_by_scanning(&self, symbols: &mut Vec<u32>) {
        loop {
            let candidates = symbols.windows(2).enumerate().filter_map(|(position, pair)| Some((self.get(pair[0], pair[1])?, position)));
            let Some((best, position)) = candidates.min_by_key(|(merge, position)| (merge.rank, *position)) else { return };
            symbols[position] = best.merged;
            symbols.remove(position + 1);
        }
    }

    fn apply_by_heap(&self, symbols: &mut Vec<u32>, scratch: &mut MergeScratch) {
        let n_symbols = symbols.len() as u32;
        scratch.start(n_symbols);
        for position in 1..n_symbols {
            self.offer(symbols, position - 1, position, &mut scratch.candidates);
        }
        while let Some(Reverse((_, position, merged))) = scratch.candidates.pop() {
            let right = scratch.next[position as usize];
            if scratch.removed[position as usize] || right == n_symbols {
                continue;
            }
            // A candidate is stale when either of its symbols has since merged with another.
            let current = self.get(symbols[position as usize], symbols[right as usize]);
            if current.is_none_or(|merge| merge.merged != merged) {
                continue;
            }
            symbols[position as usize] = merged;
            scratch.unlink(position, right);
            let (left, right) = (scratch.previous[position as usize], scratch.next[position as usize]);
            if left != n_symbols {
                self.offer(symbols, left, position, &mut scratch.candidates);
            }
            if right != n_symbols {
                self.offer(symbols, position, right, &mut scratch.candidates);
            }
        }
        let mut removed = scratch.removed.iter();
        symbols.retain(|_| !removed.next().copied().unwrap_or(false));
    }

    fn offer(&self, symbols: &[u32], left: u32, right: u32, candidates: &mut BinaryHeap<Reverse<(u32, u32, u32)>>) {
        if let Some(merge) = self.get(symbols[left as usize], symbols[right as usize]) {
            candidates.push(Reverse((merge.rank, left, merge.merged)));
        }
    }
}

/// Words up to this many symbols are merged by scanning, which is quadratic but has the smaller constant.
const SHORT_WORD: usize = 24;

/// Buffers of the merge loop, kept from word to word.
#[derive(Default)]
pub(super) struct MergeScratch {
    /// (rank, position of the left symbol, merged token), best first.
    candidates: BinaryHeap<Reverse<(u32, u32, u32)>>,
    next: Vec<u32>,
    previous: Vec<u32>,
    removed: Vec<bool>,
}

impl MergeScratch {
    /// Links `n_symbols` symbols in a row; `n_symbols` stands for "none".
    fn start(&mut self, n_symbols: u32) {
        self.candidates.clear();
        self.next.clear();
        self.next.extend(1..=n_symbols);
        self.previous.clear();
        self.previous.push(n_symbols);
        self.previous.extend(0..n_symbols - 1);
        self.removed.clear();
        self.removed.resize(n_symbols as usize, false);
    }

    fn unlink(&mut self, position: u32, right: u32) {
        self.removed[right as usize] = true;
        let after = self.next[right as usize];
        self.next[position as usize] = after;
        if let Some(previous) = self.previous.get_mut(after as usize) {
            *previous = position;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens 0..4 are symbols; each merge makes the next id.
    fn merges_of(pairs: &[(u32, u32)]) -> Merges {
        let mut merges = Merges::with_capacity(pairs.len());
        for (index, &(left, right)) in pairs.iter().enumerate() {
            let merged = 4 + index as u32;
            merges.push(left % merged, right % merged, merged).unwrap();
        }
        merges
    }

    #[test]
    fn merges_apply_lowest_rank_first() {
        // ab, bc: "abc" → (ab)c, since ab was learnt first.
        let merges = merges_of(&[(0, 1), (1, 2)]);
        let mut symbols = vec![0, 1, 2];
        merges.apply(&mut symbols, &mut MergeScratch::default());
        assert_eq!(symbols, [4, 2]);
    }

    proptest! {
        #[test]
        fn merges_by_heap_equal_merges_by_scanning(
            pairs in prop::collection::btree_set((0u32..12, 0u32..12), 0..12),
            symbols in prop::collection::vec(0u32..4, 1..200),
        ) {
            let merges = merges_of(&pairs.into_iter().collect::<Vec<_>>());
            let (mut scanned, mut heaped) = (symbols.clone(), symbols);
            merges.apply_by_scanning(&mut scanned);
            merges.apply_by_heap(&mut heaped, &mut MergeScratch::default());
            prop_assert_eq!(scanned, heaped);
        }
    }
}
