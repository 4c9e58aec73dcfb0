//! The blocks of one group: which are held, and what those that nobody holds still contain.
//!
//! A block that nobody holds keeps its content until it is needed for something else. Blocks without a name are taken
//! first. Of the named ones, those a sequence left behind its window on its way are many and seldom resumed from; those
//! it ended with, or that were found once, are few and worth more. Each kind gives way when it has more idle blocks than
//! the other, the longest unused first: so one long prompt does not push out what every other sequence could resume from.

use std::collections::HashMap;

use super::prefix::BlockKey;

/// Why a block is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Idle {
    /// It holds nothing anybody could find.
    Nameless,
    /// It fell behind its sequence's window.
    Passed,
    /// Its sequence ended, or it was found before.
    Kept,
}

/// Blocks nobody holds: a doubly linked ring for each [`Idle`], through arrays, so that a block in the middle is taken
/// out without a search.
#[derive(Clone, Debug)]
struct IdleBlocks {
    next: Vec<u32>,
    previous: Vec<u32>,
    kinds: Vec<Idle>,
    lengths: [usize; 3],
}

impl IdleBlocks {
    /// Every block below `count`, nameless, ascending. The last three places are the seams of the rings.
    fn full(count: usize) -> Self {
        let seams = count as u32..count as u32 + 3;
        let (next, previous) = ((0..count as u32).chain(seams.clone()).collect(), (0..seams.end).collect());
        let kinds = vec![Idle::Nameless; count];
        let mut idle = Self { next, previous, kinds, lengths: [0; 3] };
        (0..count as u32).for_each(|block| idle.push_last(Idle::Nameless, block));
        idle
    }

    fn seam(&self, kind: Idle) -> u32 {
        (self.kinds.len() + kind as usize) as u32
    }

    fn length(&self, kind: Idle) -> usize {
        self.lengths[kind as usize]
    }

    fn first(&self, kind: Idle) -> Option<u32> {
        let first = self.next[self.seam(kind) as usize];
        (first != self.seam(kind)).then_some(first)
    }

    fn insert_between(&mut self, kind: Idle, before: u32, block: u32, after: u32) {
        self.next[before as usize] = block;
        self.previous[block as usize] = before;
        self.next[block as usize] = after;
        self.previous[after as usize] = block;
        self.kinds[block as usize] = kind;
        self.lengths[kind as usize] += 1;
    }

    fn push_first(&mut self, kind: Idle, block: u32) {
        let seam = self.seam(kind);
        self.insert_between(kind, seam, block, self.next[seam as usize]);
    }

    fn push_last(&mut self, kind: Idle, block: u32) {
        let seam = self.seam(kind);
        self.insert_between(kind, self.previous[seam as usize], block, seam);
    }

    fn remove(&mut self, block: u32) {
        let (before, after) = (self.previous[block as usize], self.next[block as usize]);
        self.next[before as usize] = after;
        self.previous[after as usize] = before;
        self.lengths[self.kinds[block as usize] as usize] -= 1;
    }

    /// The block to give away next.
    fn cheapest(&self) -> Option<u32> {
        let (passed, kept) = (Idle::Passed, Idle::Kept);
        let longer = if self.length(passed) >= self.length(kept) { passed } else { kept };
        self.first(Idle::Nameless).or_else(|| self.first(longer))
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        [Idle::Nameless, Idle::Passed, Idle::Kept].into_iter().flat_map(move |kind| {
            std::iter::successors(self.first(kind), move |&block| {
                let next = self.next[block as usize];
                (next != self.seam(kind)).then_some(next)
            })
        })
    }
}

/// The blocks of one group.
#[derive(Clone, Debug)]
pub struct BlockPool {
    references: Vec<u32>,
    /// Name of each block's content; unnamed blocks are still being filled, or hold what another block holds too.
    keys: Vec<Option<BlockKey>>,
    named: HashMap<BlockKey, u32>,
    /// Blocks whose content was found since it was named.
    proven: Vec<bool>,
    idle: IdleBlocks,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        Self {
            references: vec![0; num_blocks],
            keys: vec![None; num_blocks],
            named: HashMap::with_capacity(num_blocks),
            proven: vec![false; num_blocks],
            idle: IdleBlocks::full(num_blocks),
        }
    }

    /// Takes a block with one reference and forgets its content; `None` when every block is held.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = self.idle.cheapest()?;
        self.idle.remove(block);
        if let Some(key) = self.keys[block as usize].take() {
            self.named.remove(&key);
        }
        self.proven[block as usize] = false;
        self.references[block as usize] = 1;
        Some(block)
    }

    /// Adds a reference to a block that is held or named.
    pub fn retain(&mut self, block: u32) {
        let references = &mut self.references[block as usize];
        debug_assert!(*references > 0 || self.keys[block as usize].is_some(), "block {block} is free");
        if *references == 0 {
            self.idle.remove(block);
        }
        *references += 1;
        self.proven[block as usize] = true;
    }

    /// Drops a reference. When it was the last, the block may be taken for something else; until then it keeps what
    /// it is named for.
    pub fn release(&mut self, block: u32) {
        self.drop_reference(block, Idle::Kept);
    }

    /// As [`Self::release`], for a block that its sequence goes on without.
    pub fn pass(&mut self, block: u32) {
        self.drop_reference(block, if self.proven[block as usize] { Idle::Kept } else { Idle::Passed });
    }

    fn drop_reference(&mut self, block: u32, kind: Idle) {
        let references = &mut self.references[block as usize];
        debug_assert!(*references > 0, "block {block} is free already");
        if *references == 0 {
            return;
        }
        *references -= 1;
        if *references > 0 {
            return;
        }
        if self.keys[block as usize].is_some() {
            self.idle.push_last(kind, block);
        } else {
            self.idle.push_first(Idle::Nameless, block);
        }
    }

    /// Names what a held block contains. Content another block is named for already stays nameless.
    pub fn name(&mut self, block: u32, key: BlockKey) {
        let place = &mut self.keys[block as usize];
        if place.is_none() && !self.named.contains_key(&key) {
            *place = Some(key);
            self.named.insert(key, block);
        }
    }

    /// The block of this content.
    pub fn find(&self, key: &BlockKey) -> Option<u32> {
        self.named.get(key).copied()
    }

    /// Whether somebody holds the block.
    pub fn is_held(&self, block: u32) -> bool {
        self.references[block as usize] > 0
    }

    /// Blocks nobody holds.
    pub fn free_blocks(&self) -> usize {
        self.idle.lengths.iter().sum()
    }

    /// Blocks whose content has a name, held or not.
    pub fn named_blocks(&self) -> usize {
        self.named.len()
    }

    /// Blocks in the pool.
    pub fn total_blocks(&self) -> usize {
        self.references.len()
    }

    /// Blocks somebody holds.
    pub fn used_blocks(&self) -> usize {
        self.total_blocks() - self.free_blocks()
    }

    /// Whether every reference belongs to one of the `held` blocks, every other block is free exactly once, and names
    /// and blocks agree.
    pub fn matches(&self, held: impl Iterator<Item = u32>) -> bool {
        let mut left = self.references.clone();
        for block in held {
            match left.get_mut(block as usize) {
                Some(references) if *references > 0 => *references -= 1,
                _ => return false,
            }
        }
        let mut free = vec![false; self.total_blocks()];
        for block in self.idle.iter() {
            if std::mem::replace(&mut free[block as usize], true) {
                return false;
            }
        }
        let named =
            self.keys.iter().enumerate().filter_map(|(block, key)| Some((block as u32, key.as_ref()?)));
        left.iter().all(|&references| references == 0)
            && free.iter().zip(&self.references).all(|(&free, &references)| free == (references == 0))
            && free.iter().filter(|&&free| free).count() == self.free_blocks()
            && named.clone().count() == self.named.len()
            && named.clone().all(|(block, key)| self.find(key) == Some(block))
    }
}

#[cfg(test)]
mod tests {
    use super::super::prefix::KeyChain;
    use super::*;

    fn keys(count: usize) -> Vec<BlockKey> {
        let mut chain = KeyChain::new(1, None);
        chain.extend(&(0..count as u32).collect::<Vec<_>>());
        chain.keys().to_vec()
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
    fn named_content_outlives_its_holders_until_the_block_is_needed() {
        let (mut pool, keys) = (BlockPool::new(3), keys(3));
        let blocks: Vec<u32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
        pool.name(blocks[0], keys[0]);
        pool.name(blocks[1], keys[1]);
        for block in [1, 2, 0] {
            pool.release(blocks[block]);
        }
        assert_eq!((pool.free_blocks(), pool.named_blocks()), (3, 2));
        assert_eq!(pool.allocate(), Some(blocks[2]), "the nameless one first");
        assert_eq!(pool.find(&keys[1]), Some(blocks[1]));
        assert_eq!(pool.allocate(), Some(blocks[1]), "then the longest unused");
        assert_eq!((pool.find(&keys[1]), pool.find(&keys[0])), (None, Some(blocks[0])));
        pool.retain(blocks[0]);
        assert_eq!(pool.allocate(), None);
        assert!(pool.matches(blocks.into_iter()));
    }

    #[test]
    fn the_first_of_two_equal_blocks_is_named() {
        let (mut pool, keys) = (BlockPool::new(2), keys(2));
        let blocks = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        pool.name(blocks[0], keys[0]);
        pool.name(blocks[1], keys[0]);
        pool.name(blocks[0], keys[1]);
        assert_eq!((pool.find(&keys[0]), pool.find(&keys[1])), (Some(blocks[0]), None));
        assert!(pool.matches(blocks.into_iter()));
    }

    #[test]
    fn a_long_passage_spares_what_others_ended_with() {
        let (mut pool, keys) = (BlockPool::new(8), keys(40));
        let ended: Vec<u32> = (0..3).map(|_| pool.allocate().unwrap()).collect();
        for (&block, &key) in ended.iter().zip(&keys) {
            pool.name(block, key);
            pool.release(block);
        }
        for &key in &keys[3..40] {
            let block = pool.allocate().unwrap();
            pool.name(block, key);
            pool.pass(block);
        }
        assert!(keys[..3].iter().all(|key| pool.find(key).is_some()));
        // What was found once is worth as much.
        let found = pool.find(&keys[39]).unwrap();
        pool.retain(found);
        pool.pass(found);
        assert_eq!((pool.idle.length(Idle::Passed), pool.idle.length(Idle::Kept)), (4, 4));
        let taken: Vec<u32> = (0..8).map(|_| pool.allocate().unwrap()).collect();
        assert_eq!(taken.iter().position(|&block| block == found), Some(7));
        assert!(pool.matches(taken.into_iter()));
    }
}
