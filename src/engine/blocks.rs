//! Cache blocks: which physical block of each group's pool belongs to which sequence.
//!
//! Only accounting; the bytes live on the device. A block is counted by reference, so that sequences can share the
//! blocks of a common prefix.

use worker_orcd_core::{KvLayout, NO_BLOCK};

use super::config::blocks_held;

/// The blocks of one group.
#[derive(Clone, Debug)]
pub struct BlockPool {
    free: Vec<u32>,
    references: Vec<u32>,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        Self { free: (0..num_blocks as u32).rev().collect(), references: vec![0; num_blocks] }
    }

    /// Takes a free block with one reference, the most recently freed first; `None` when there is none.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.references[block as usize] = 1;
        Some(block)
    }

    /// Adds a reference to a held block.
    pub fn retain(&mut self, block: u32) {
        debug_assert!(self.references[block as usize] > 0, "block {block} is free");
        self.references[block as usize] += 1;
    }

    /// Drops a reference; the last one frees the block.
    pub fn release(&mut self, block: u32) {
        let references = &mut self.references[block as usize];
        debug_assert!(*references > 0, "block {block} is free already");
        *references = references.saturating_sub(1);
        if *references == 0 {
            self.free.push(block);
        }
    }

    /// Blocks nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Blocks in the pool.
    pub fn total_blocks(&self) -> usize {
        self.references.len()
    }

    /// Blocks somebody holds.
    pub fn used_blocks(&self) -> usize {
        self.total_blocks() - self.free_blocks()
    }

    /// Whether every reference belongs to one of the `held` blocks and every other block is free exactly once.
    pub fn matches(&self, held: impl Iterator<Item = u32>) -> bool {
        let mut left = self.references.clone();
        for block in held {
            match left.get_mut(block as usize) {
                Some(references) if *references > 0 => *references -= 1,
                _ => return false,
            }
        }
        let mut free = vec![false; self.total_blocks()];
        for &block in &self.free {
            if std::mem::replace(&mut free[block as usize], true) {
                return false;
            }
        }
        left.iter().all(|&references| references == 0)
            && free.iter().zip(&self.references).all(|(&free, &references)| free == (references == 0))
    }
}

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

/// The pools of every group.
#[derive(Clone, Debug)]
pub struct CacheBlocks {
    block_size: usize,
    chunk: usize,
    groups: Vec<Group>,
}

impl CacheBlocks {
    /// Pools for `layout`, whose groups see `windows`, when a step adds at most `chunk` positions to a sequence.
    pub fn new(layout: &KvLayout, windows: &[Option<usize>], chunk: usize) -> Self {
        let group = |(group, &window): (&worker_orcd_core::KvGroup, &Option<usize>)| Group {
            pool: BlockPool::new(group.num_blocks),
            window,
        };
        let groups = layout.groups.iter().zip(windows).map(group).collect();
        Self { block_size: layout.block_size, chunk, groups }
    }

    /// Positions per block.
    pub const fn block_size(&self) -> usize {
        self.block_size
    }

    /// Number of groups.
    pub const fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// Blocks held in all groups.
    pub fn used_blocks(&self) -> usize {
        self.groups.iter().map(|group| group.pool.used_blocks()).sum()
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
            let visible = group.window.map_or(0, |window| (start + 1).saturating_sub(window));
            let behind = (visible / self.block_size).min(table.entries.len());
            for entry in table.entries.iter_mut().take(behind).skip(table.passed) {
                group.pool.release(std::mem::replace(entry, NO_BLOCK));
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

    /// Gives back everything a sequence holds.
    pub fn release(&mut self, blocks: &mut SequenceBlocks) {
        for (group, table) in self.groups.iter_mut().zip(&mut blocks.tables) {
            for block in table.entries.drain(..).skip(table.passed) {
                group.pool.release(block);
            }
            table.passed = 0;
        }
    }

    /// Whether a sequence of `tokens` positions fits an otherwise empty cache.
    pub fn can_ever_hold(&self, tokens: usize) -> bool {
        let fits = |group: &Group| {
            blocks_held(group.window, tokens, self.block_size, self.chunk) <= group.pool.total_blocks()
        };
        self.groups.iter().all(fits)
    }

    /// Whether a sequence of `tokens` positions fits what is free, once each of `running` (its blocks and its
    /// positions known so far) has taken what it still needs.
    pub fn can_hold_beside<'a>(
        &self,
        tokens: usize,
        running: &(impl Iterator<Item = (&'a SequenceBlocks, usize)> + Clone),
    ) -> bool {
        self.groups.iter().enumerate().all(|(index, group)| {
            let need = |tokens| blocks_held(group.window, tokens, self.block_size, self.chunk);
            let outstanding: usize =
                running.clone().map(|(blocks, tokens)| need(tokens).saturating_sub(blocks.held(index))).sum();
            need(tokens) + outstanding <= group.pool.free_blocks()
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
    fn a_shared_block_is_freed_by_its_last_holder() {
        let mut pool = BlockPool::new(2);
        let block = pool.allocate().unwrap();
        pool.retain(block);
        pool.release(block);
        assert_eq!(pool.used_blocks(), 1);
        assert!(pool.matches([block].into_iter()));
        assert!(!pool.matches(std::iter::empty()));
        pool.release(block);
        assert_eq!(pool.used_blocks(), 0);
        assert!(pool.matches(std::iter::empty()));
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
        assert!(cache.can_hold_beside(20, &std::iter::empty()));
        assert!(!cache.can_hold_beside(20, &[(&running, 8)].into_iter()));
        assert!(cache.can_hold_beside(16, &[(&running, 8)].into_iter()));
        assert!(cache.can_ever_hold(24) && !cache.can_ever_hold(25));
    }
}
