//! Cache blocks: which physical block of each group's pool belongs to which sequence.
//!
//! Only accounting; the bytes live on the device. A block is counted by reference, so that sequences can share the
//! blocks of a common prefix. Only full blocks are shared, and a sequence resumes behind them: what is shared is never
//! written again.

use worker_orcd_core::{KvLayout, NO_BLOCK};

use super::config::{MAX_KV_GROUPS, blocks_held};
pub use super::pool::BlockPool;
pub use super::prefix::{BlockKey, KeyChain};

/// A sequence's blocks in one group.
#[derive(Clone, Debug, Default)]
struct BlockTable {
    /// Physical block of each logical block reached so far; [`NO_BLOCK`] behind the window.
    entries: Vec<u32>,
    /// Logical blocks given back because they lie behind the window.
    passed: usize,
}

/// A sequence's blocks in every group.
#[derive(Clone, Debug, Default)]
pub struct SequenceBlocks {
    tables: Vec<BlockTable>,
}

impl SequenceBlocks {
    /// The block table of a group: physical block of each logical block reached so far.
    pub fn table(&self, group: usize) -> &[u32] {
        self.tables.get(group).map_or(&[], |table| &table.entries)
    }

    /// Blocks held in a group.
    pub fn held(&self, group: usize) -> usize {
        self.tables.get(group).map_or(0, |table| table.entries.len() - table.passed)
    }
}

#[derive(Clone, Debug)]
struct Group {
    pool: BlockPool,
    window: Option<usize>,
}

impl Group {
    /// The first logical block that queries from position `start` on can see.
    fn first_visible(&self, start: usize, block_size: usize) -> usize {
        self.window.map_or(0, |window| (start + 1).saturating_sub(window)) / block_size
    }
}

/// The pools of every group.
#[derive(Clone, Debug)]
pub struct CacheBlocks {
    block_size: usize,
    chunk: usize,
    groups: Vec<Group>,
    releases: u64,
}

impl CacheBlocks {
    /// Pools for `layout`, whose groups see `windows`, when a step adds at most `chunk` positions to a sequence.
    pub fn new(layout: &KvLayout, windows: &[Option<usize>], chunk: usize) -> Self {
        let group = |(group, &window): (&worker_orcd_core::KvGroup, &Option<usize>)| Group {
            pool: BlockPool::new(group.num_blocks),
            window,
        };
        let groups = layout.groups.iter().zip(windows).map(group).collect();
        Self { block_size: layout.block_size, chunk, groups, releases: 0 }
    }

    /// Positions per block.
    pub const fn block_size(&self) -> usize {
        self.block_size
    }

    /// How often a sequence gave everything back. While this stands still, what did not fit does not fit.
    pub const fn releases(&self) -> u64 {
        self.releases
    }

    /// Number of groups.
    pub const fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// Blocks held in all groups.
    pub fn used_blocks(&self) -> usize {
        self.groups.iter().map(|group| group.pool.used_blocks()).sum()
    }

    /// Blocks of all groups whose content can be found again, held or not.
    pub fn named_blocks(&self) -> usize {
        self.groups.iter().map(|group| group.pool.named_blocks()).sum()
    }

    /// Blocks of all groups.
    pub fn total_blocks(&self) -> usize {
        self.groups.iter().map(|group| group.pool.total_blocks()).sum()
    }

    /// Makes room for positions `start..start + count` of a sequence whose positions before `start` are cached, and
    /// gives back what no query from `start` on can see. Takes every block needed or none; whether it did.
    pub fn reserve(&mut self, blocks: &mut SequenceBlocks, start: usize, count: usize) -> bool {
        blocks.tables.resize_with(self.groups.len(), BlockTable::default);
        let reached = (start + count).div_ceil(self.block_size);
        for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
            let behind = group.first_visible(start, self.block_size).min(table.entries.len());
            for entry in table.entries.iter_mut().take(behind).skip(table.passed) {
                let block = std::mem::replace(entry, NO_BLOCK);
                if block != NO_BLOCK {
                    group.pool.pass(block);
                }
            }
            table.passed = table.passed.max(behind);
        }
        let fits = |(group, table): (&Group, &BlockTable)| {
            reached.saturating_sub(table.entries.len()) <= group.pool.free_blocks()
        };
        if !self.groups.iter().zip(&blocks.tables).all(fits) {
            return false;
        }
        for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
            while table.entries.len() < reached {
                let Some(block) = group.pool.allocate() else { return false };
                table.entries.push(block);
            }
        }
        true
    }

    /// Gives back everything a sequence holds, the last block first: of what stays cached, beginnings live longest.
    pub fn release(&mut self, blocks: &mut SequenceBlocks) {
        self.releases += 1;
        for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
            for block in table.entries.drain(..).skip(table.passed).rev().filter(|&block| block != NO_BLOCK) {
                group.pool.release(block);
            }
            table.passed = 0;
        }
    }

    /// Makes room in the tables of a sequence that will reach `tokens` positions.
    pub fn make_tables(&self, blocks: &mut SequenceBlocks, tokens: usize) {
        blocks.tables.resize_with(self.groups.len(), BlockTable::default);
        let reached = tokens.div_ceil(self.block_size);
        for table in &mut blocks.tables {
            table.entries.reserve_exact(reached.saturating_sub(table.entries.len()));
        }
    }

    /// The longest beginning of `keys` a sequence can resume behind: every group has the blocks that the next position
    /// sees.
    pub fn longest_prefix<'k>(&self, keys: &'k [BlockKey]) -> &'k [BlockKey] {
        // Per group, how many blocks in a row before the resume point are cached.
        let mut runs = [0_usize; MAX_KV_GROUPS];
        let mut longest = 0;
        for (index, key) in keys.iter().enumerate() {
            let blocks = index + 1;
            let mut complete = true;
            for (group, run) in self.groups.iter().zip(&mut runs) {
                *run = if group.pool.find(key).is_some() { *run + 1 } else { 0 };
                let first = group.first_visible(blocks * self.block_size, self.block_size);
                complete &= *run + first >= blocks;
                if *run == 0 && group.window.is_none() {
                    return &keys[..longest];
                }
            }
            if complete {
                longest = blocks;
            }
        }
        &keys[..longest]
    }

    /// Gives a sequence that holds nothing the cached blocks of `prefix`, which [`Self::longest_prefix`] returned; the
    /// positions cached by that.
    pub fn attach(&mut self, blocks: &mut SequenceBlocks, prefix: &[BlockKey]) -> usize {
        let resume = prefix.len() * self.block_size;
        blocks.tables.resize_with(self.groups.len(), BlockTable::default);
        for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
            table.passed = group.first_visible(resume, self.block_size).min(prefix.len());
            table.entries.clear();
            table.entries.resize(table.passed, NO_BLOCK);
            for key in &prefix[table.passed..] {
                let block = group.pool.find(key);
                debug_assert!(block.is_some(), "a block of the prefix is gone");
                if let Some(block) = block {
                    group.pool.retain(block);
                }
                // A hole would be refused by the device, not read.
                table.entries.push(block.unwrap_or(NO_BLOCK));
            }
        }
        resume
    }

    /// Names the full blocks of a sequence from logical block `from` on, whose keys are `keys` (from block 0), so that
    /// others find them.
    pub fn name(&mut self, blocks: &SequenceBlocks, from: usize, keys: &[BlockKey]) {
        for (group, table) in self.groups.iter_mut().zip(&blocks.tables) {
            for (&block, &key) in table.entries.iter().zip(keys).skip(from) {
                if block != NO_BLOCK {
                    group.pool.name(block, key);
                }
            }
        }
    }

    /// Whether a sequence of `tokens` positions fits an otherwise empty cache.
    pub fn can_ever_hold(&self, tokens: usize) -> bool {
        let fits = |group: &Group| {
            blocks_held(group.window, tokens, self.block_size, self.chunk) <= group.pool.total_blocks()
        };
        self.groups.iter().all(fits)
    }

    /// Whether a sequence of `tokens` positions that takes `prefix` from the cache fits what is free, once each of
    /// `running` (its blocks and its positions known so far) has taken what it still needs.
    pub fn can_hold_beside<'a>(
        &self,
        tokens: usize,
        prefix: &[BlockKey],
        running: &(impl Iterator<Item = (&'a SequenceBlocks, usize)> + Clone),
    ) -> bool {
        self.groups.iter().enumerate().all(|(index, group)| {
            let need = |tokens| blocks_held(group.window, tokens, self.block_size, self.chunk);
            let outstanding: usize =
                running.clone().map(|(blocks, tokens)| need(tokens).saturating_sub(blocks.held(index))).sum();
            // Blocks others hold too cost nothing.
            let resume = prefix.len() * self.block_size;
            let seen = prefix.iter().skip(group.first_visible(resume, self.block_size));
            let shared =
                seen.filter_map(|key| group.pool.find(key)).filter(|&block| group.pool.is_held(block));
            need(tokens).saturating_sub(shared.count()) + outstanding <= group.pool.free_blocks()
        })
    }

    /// Whether the blocks `holders` hold are exactly the ones that are not free.
    pub fn matches<'a>(&self, holders: &(impl Iterator<Item = &'a SequenceBlocks> + Clone)) -> bool {
        self.groups.iter().enumerate().all(|(index, group)| {
            let held = holders.clone().flat_map(|blocks| blocks.table(index)).copied();
            group.pool.matches(held.filter(|&block| block != NO_BLOCK))
        })
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::{KvElement, KvGroup};

    use super::*;

    fn cache(num_blocks: usize, windows: &[Option<usize>], chunk: usize) -> CacheBlocks {
        let group =
            KvGroup { layers: 1, num_kv_heads: 1, head_dim: 2, num_blocks, max_blocks_per_sequence: 64 };
        let layout = KvLayout { block_size: 4, element: KvElement::F32, groups: vec![group; windows.len()] };
        CacheBlocks::new(&layout, windows, chunk)
    }

    #[test]
    fn reserving_takes_all_or_nothing() {
        let mut cache = cache(3, &[None, None], 64);
        let (mut a, mut b) = (SequenceBlocks::default(), SequenceBlocks::default());
        assert!(cache.reserve(&mut a, 0, 5));
        assert_eq!((a.held(0), a.held(1)), (2, 2));
        assert!(!cache.reserve(&mut b, 0, 5));
        assert_eq!(b.held(0), 0);
        assert!(cache.reserve(&mut b, 0, 4));
        assert!(cache.matches(&[&a, &b].into_iter()));
        assert!(cache.reserve(&mut a, 5, 3), "positions 5 to 7 are in the second block already");
        cache.release(&mut a);
        assert!(cache.reserve(&mut b, 4, 5));
        assert!(cache.matches(&[&a, &b].into_iter()));
        cache.release(&mut b);
        assert_eq!(cache.used_blocks(), 0);
    }

    #[test]
    fn window_groups_hold_their_window_only() {
        let window = 6;
        let mut cache = cache(64, &[None, Some(window)], 3);
        let mut blocks = SequenceBlocks::default();
        let mut position = 0;
        for count in std::iter::repeat_n([3, 1, 1, 2], 12).flatten() {
            assert!(cache.reserve(&mut blocks, position, count));
            let oldest_visible = (position + 1).saturating_sub(window);
            let table = blocks.table(1);
            assert_eq!(table.len(), (position + count).div_ceil(4));
            for (logical, &block) in table.iter().enumerate() {
                assert_eq!(
                    block == NO_BLOCK,
                    (logical + 1) * 4 <= oldest_visible,
                    "block {logical} at {position}"
                );
            }
            assert!(blocks.held(1) <= blocks_held(Some(window), usize::MAX / 2, 4, 3));
            position += count;
        }
        assert_eq!(blocks.held(0), position.div_ceil(4));
        assert!(cache.matches(&[&blocks].into_iter()));
        cache.release(&mut blocks);
        assert_eq!(cache.used_blocks(), 0);
    }

    #[test]
    fn admission_counts_what_running_sequences_still_need() {
        let mut cache = cache(6, &[None], 4);
        let mut running = SequenceBlocks::default();
        assert!(cache.reserve(&mut running, 0, 4));
        assert!(cache.can_hold_beside(20, &[], &std::iter::empty()));
        assert!(!cache.can_hold_beside(20, &[], &[(&running, 8)].into_iter()));
        assert!(cache.can_hold_beside(16, &[], &[(&running, 8)].into_iter()));
        assert!(cache.can_ever_hold(24) && !cache.can_ever_hold(25));
    }
    fn chain(tokens: std::ops::Range<u32>) -> KeyChain {
        let mut chain = KeyChain::new(4, None);
        chain.extend(&tokens.collect::<Vec<_>>());
        chain
    }

    /// Runs `tokens` positions in steps of at most 3 and names every full block.
    fn compute(cache: &mut CacheBlocks, keys: &KeyChain, tokens: usize) -> SequenceBlocks {
        let mut blocks = SequenceBlocks::default();
        for start in (0..tokens).step_by(3) {
            let count = (tokens - start).min(3);
            assert!(cache.reserve(&mut blocks, start, count));
            cache.name(&blocks, start / 4, &keys.keys()[..(start + count) / 4]);
        }
        blocks
    }

    #[test]
    fn a_prefix_is_found_held_and_left() {
        let mut cache = cache(32, &[None, Some(6)], 3);
        let keys = chain(0..22);
        let mut first = compute(&mut cache, &keys, 22);
        assert_eq!(cache.longest_prefix(keys.reusable(22)).len(), 5);
        let held = cache.used_blocks();
        let mut second = SequenceBlocks::default();
        assert_eq!(
            cache.attach(&mut second, cache.longest_prefix(&keys.keys()[..3]).to_vec().as_slice()),
            12
        );
        assert_eq!(second.table(0), &first.table(0)[..3]);
        assert_eq!(second.table(1)[0], NO_BLOCK, "position 12 sees 7 to 12");
        assert_eq!((second.held(0), second.held(1)), (3, 2));
        assert!(cache.matches(&[&first, &second].into_iter()));
        cache.release(&mut first);
        assert!(cache.reserve(&mut second, 12, 3));
        assert!(cache.matches(&[&second].into_iter()));
        cache.release(&mut second);
        assert_eq!((cache.used_blocks(), held > 0), (0, true));
        assert!(cache.matches(&std::iter::empty::<&SequenceBlocks>()));
        assert_eq!(
            cache.longest_prefix(keys.reusable(22)).len(),
            5,
            "nobody holds it, nobody needed its place"
        );
    }

    #[test]
    fn a_hit_ends_where_every_group_has_what_it_sees() {
        let mut cache = cache(8, &[None, Some(6)], 3);
        let keys = chain(0..32);
        let mut first = compute(&mut cache, &keys, 32);
        cache.release(&mut first);
        assert_eq!(cache.longest_prefix(keys.keys()).len(), 8);
        // Three other blocks push out the longest unused: in the window group those behind the window went first.
        let mut other = SequenceBlocks::default();
        assert!(
            cache.reserve(&mut other, 0, 3)
                && cache.reserve(&mut other, 3, 3)
                && cache.reserve(&mut other, 6, 3)
        );
        assert_eq!(cache.groups[0].pool.named_blocks(), 5, "the end of the sequence went first");
        let windowed: Vec<bool> =
            keys.keys().iter().map(|key| cache.groups[1].pool.find(key).is_some()).collect();
        assert_eq!(windowed, [false, false, false, true, true, true, true, true]);
        // Behind block 5 the full group has all, and the window group blocks 3 and 4.
        assert_eq!(cache.longest_prefix(keys.keys()).len(), 5);
        assert_eq!(cache.longest_prefix(&keys.keys()[..4]).len(), 0, "position 16 sees 11, which is gone");
        assert_eq!(cache.longest_prefix(chain(1..33).keys()).len(), 0);
    }

    #[test]
    fn shared_blocks_are_not_needed_twice() {
        let mut cache = cache(6, &[None], 64);
        let keys = chain(0..16);
        let running = compute(&mut cache, &keys, 16);
        let prefix = keys.keys();
        assert!(!cache.can_hold_beside(24, &[], &[(&running, 16)].into_iter()));
        assert!(cache.can_hold_beside(24, prefix, &[(&running, 16)].into_iter()));
        assert!(!cache.can_hold_beside(25, prefix, &[(&running, 16)].into_iter()));
        assert!(!cache.can_hold_beside(24, prefix, &[(&running, 17)].into_iter()));
    }
}
