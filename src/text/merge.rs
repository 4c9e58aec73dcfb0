//! Byte-pair merging: repeatedly join the adjacent pair of lowest rank, leftmost first, until none can be joined.
//!
//! Short pieces (almost all) use a plain scan. Long pieces use one queue of positions per rank, so that a piece of a
//! million characters costs about as much per character as a short one: no step is quadratic, nothing recurses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Marks "no position", "no pair" and the rank of pairs that do not merge.
const NONE: u32 = u32::MAX;

/// Pieces up to this many symbols are merged by scanning; measured to be where the queues begin to win.
const SCAN_LIMIT: usize = 48;

/// A pair's merge: its rank (lower joins first) and the token it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Merge {
    /// Order of joining; pairs of equal rank join from left to right.
    pub(super) rank: u32,
    /// The token that replaces the pair.
    pub(super) id: u32,
}

/// All merges of a vocabulary: a compact open-addressed table from (left id, right id).
#[derive(Debug)]
pub(super) struct MergeTable {
    keys: Vec<u64>,
    merges: Vec<Merge>,
    shift: u32,
    len: usize,
}

impl MergeTable {
    /// Id pairs never reach this value: ids stay below `u32::MAX`.
    const EMPTY: u64 = u64::MAX;

    /// A table that will hold at most `count` merges.
    pub(super) fn with_capacity(count: usize) -> Self {
        let slots = (count * 2).next_power_of_two().max(16);
        Self {
            keys: vec![Self::EMPTY; slots],
            merges: vec![Merge { rank: NONE, id: NONE }; slots],
            shift: u64::BITS - slots.trailing_zeros(),
            len: 0,
        }
    }

    /// The slot that holds `key`, or the free one where it belongs.
    fn slot(&self, key: u64) -> usize {
        let mut slot = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> self.shift) as usize;
        while self.keys[slot] != key && self.keys[slot] != Self::EMPTY {
            slot = (slot + 1) & (self.keys.len() - 1);
        }
        slot
    }

    /// Adds a merge unless the pair already has one: the first listed wins. A table that is full ignores it.
    pub(super) fn insert_first(&mut self, left: u32, right: u32, merge: Merge) {
        let slot = self.slot(pair_key(left, right));
        if self.keys[slot] == Self::EMPTY && self.len * 2 < self.keys.len() {
            self.keys[slot] = pair_key(left, right);
            self.merges[slot] = merge;
            self.len += 1;
        }
    }

    /// The merge of two adjacent symbols.
    pub(super) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        let slot = self.slot(pair_key(left, right));
        (self.keys[slot] != Self::EMPTY).then(|| self.merges[slot])
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Merges the symbols of one piece in place.
pub(super) fn merge_symbols(table: &MergeTable, symbols: &mut Vec<u32>) {
    if symbols.len() <= SCAN_LIMIT {
        merge_by_scan(table, symbols);
    } else {
        let merged = Chain::build(table, symbols).merge();
        *symbols = merged;
    }
}

fn merge_by_scan(table: &MergeTable, symbols: &mut Vec<u32>) {
    let mut pairs: Vec<Option<Merge>> = symbols.windows(2).map(|w| table.get(w[0], w[1])).collect();
    while let Some((at, merge)) = pairs
        .iter()
        .enumerate()
        .filter_map(|(at, pair)| pair.map(|merge| (at, merge)))
        .min_by_key(|(at, merge)| (merge.rank, *at))
    {
        symbols[at] = merge.id;
        symbols.remove(at + 1);
        pairs.remove(at);
        if at < pairs.len() {
            pairs[at] = table.get(symbols[at], symbols[at + 1]);
        }
        if at > 0 {
            pairs[at - 1] = table.get(symbols[at - 1], symbols[at]);
        }
    }
}

/// The positions where pairs of one rank begin, handed out from left to right.
#[derive(Default)]
struct RankQueue {
    /// Positions that arrived in increasing order: nearly all of them.
    ordered: Vec<u32>,
    taken: usize,
    /// Positions that arrived out of order.
    stragglers: BinaryHeap<Reverse<u32>>,
}

impl RankQueue {
    fn push(&mut self, position: u32) {
        if self.ordered.last().is_none_or(|&last| last <= position) {
            self.ordered.push(position);
        } else {
            self.stragglers.push(Reverse(position));
        }
    }

    fn pop(&mut self) -> Option<u32> {
        let next = self.ordered.get(self.taken).copied();
        match (next, self.stragglers.peek()) {
            (Some(a), Some(&Reverse(b))) if b < a => self.stragglers.pop().map(|Reverse(b)| b),
            (None, _) => self.stragglers.pop().map(|Reverse(b)| b),
            (Some(a), _) => {
                self.taken += 1;
                Some(a)
            }
        }
    }
}

/// The symbols of a long piece as a doubly linked list, with the merge each would make with its successor.
struct Chain<'a> {
    table: &'a MergeTable,
    id: Vec<u32>,
    prev: Vec<u32>,
    next: Vec<u32>,
    /// The merge of the pair that begins here; rank `NONE` if it has none or the symbol is gone.
    pair: Vec<Merge>,
    queues: BTreeMap<u32, RankQueue>,
}

impl<'a> Chain<'a> {
    fn build(table: &'a MergeTable, symbols: &[u32]) -> Self {
        let count = symbols.len() as u32;
        let mut chain = Self {
            table,
            id: symbols.to_vec(),
            prev: (0..count).map(|at| at.wrapping_sub(1)).collect(),
            next: (1..=count).map(|at| if at == count { NONE } else { at }).collect(),
            pair: vec![Merge { rank: NONE, id: NONE }; symbols.len()],
            queues: BTreeMap::new(),
        };
        for at in 0..count {
            chain.look_up(at);
        }
        chain
    }

    /// Recomputes the pair that begins at `at` and queues it.
    fn look_up(&mut self, at: u32) {
        let here = at as usize;
        let next = self.next[here];
        let found = if next == NONE { None } else { self.table.get(self.id[here], self.id[next as usize]) };
        self.pair[here] = found.unwrap_or(Merge { rank: NONE, id: NONE });
        if let Some(merge) = found {
            self.queues.entry(merge.rank).or_default().push(at);
        }
    }

    fn merge(mut self) -> Vec<u32> {
        while let Some(mut entry) = self.queues.first_entry() {
            let rank = *entry.key();
            let Some(at) = entry.get_mut().pop() else {
                entry.remove();
                continue;
            };
            // A queued pair is stale when its symbols have since become part of others.
            if self.pair[at as usize].rank == rank {
                self.join(at);
            }
        }
        self.id.iter().zip(&self.prev).filter(|&(_, &prev)| prev != Self::GONE).map(|(&id, _)| id).collect()
    }

    /// In `prev`: this symbol was joined into its predecessor. `NONE` itself marks the first symbol.
    const GONE: u32 = NONE - 1;

    fn join(&mut self, at: u32) {
        let here = at as usize;
        let gone = self.next[here] as usize;
        let after = self.next[gone];
        self.id[here] = self.pair[here].id;
        self.next[here] = after;
        self.prev[gone] = Self::GONE;
        self.pair[gone].rank = NONE;
        if after != NONE {
            self.prev[after as usize] = at;
        }
        self.look_up(at);
        if self.prev[here] != NONE {
            self.look_up(self.prev[here]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Merges over a handful of ids, with ties in rank as score-ranked vocabularies have.
    fn table(entries: &[(u32, u32, u32, u32)]) -> MergeTable {
        let mut table = MergeTable::with_capacity(entries.len());
        for &(left, right, rank, id) in entries {
            table.insert_first(left, right, Merge { rank, id });
        }
        table
    }

    proptest! {
        #[test]
        fn queues_agree_with_the_plain_scan(
            entries in prop::collection::vec((0u32..6, 0u32..6, 0u32..12, 0u32..6), 0..24),
            symbols in prop::collection::vec(0u32..6, 0..200),
        ) {
            let table = table(&entries);
            let mut scanned = symbols.clone();
            merge_by_scan(&table, &mut scanned);
            prop_assert_eq!(Chain::build(&table, &symbols).merge(), scanned);
        }
    }

    #[test]
    fn the_first_of_two_equal_pairs_wins() {
        let table = table(&[(1, 2, 0, 9), (1, 2, 5, 8)]);
        assert_eq!(table.get(1, 2), Some(Merge { rank: 0, id: 9 }));
        assert_eq!(table.get(2, 1), None);
    }

    #[test]
    fn equal_ranks_join_from_the_left() {
        let mut symbols = vec![1, 1, 1];
        merge_symbols(&table(&[(1, 1, 0, 2)]), &mut symbols);
        assert_eq!(symbols, [2, 1]);
    }
}
