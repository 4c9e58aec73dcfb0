//! Which tokens of which sequences go into the next step. Pure: no device, no clock, no channel to wait on.
//!
//! Sequences run in the order they arrived. A step takes one token of every sequence that decodes, then prompt tokens
//! of the others, oldest first, until the token budget is spent. When blocks run out, the youngest sequence gives all
//! of its own back and goes to the head of the queue; it is computed again later, from its tokens, with the same
//! result. A sequence fails for lack of blocks only when it does not even fit alone.
//!
//! Whatever a sequence gives back stays in the cache until its place is needed, and a sequence that comes in begins
//! behind the longest prefix still there.

use std::collections::VecDeque;
use std::time::Instant;

use super::blocks::{CacheBlocks, SequenceBlocks};
use super::job::EngineError;
use super::sequence::{Admission, Sequence};

/// Tokens of one running sequence in a step: the next `count` of those not cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Index among the running sequences.
    pub(super) running: usize,
    /// Tokens.
    pub(super) count: usize,
}

/// Every sequence in the engine, and the blocks they share.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) waiting: VecDeque<Sequence>,
    /// Oldest first.
    pub(super) running: Vec<Sequence>,
    pub(super) blocks: CacheBlocks,
    /// What the last `schedule` chose; `running` keeps its order until the next sweep.
    pub(super) step: Vec<Slice>,
    /// Preemptions so far.
    pub(super) preemptions: u64,
    /// First admissions since somebody took note of them.
    pub(super) admissions: Vec<Admission>,
    /// Releases seen when the head of the queue was last found too large; it is not measured again before the next.
    refused_at: Option<u64>,
    max_batch: usize,
    token_budget: usize,
}

impl Scheduler {
    /// An empty scheduler. `token_budget` is at least `max_batch`.
    pub(super) fn new(blocks: CacheBlocks, max_batch: usize, token_budget: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::with_capacity(max_batch),
            blocks,
            step: Vec::with_capacity(max_batch),
            preemptions: 0,
            admissions: Vec::with_capacity(max_batch),
            refused_at: None,
            max_batch,
            token_budget: token_budget.max(max_batch),
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Every sequence.
    pub(super) fn sequences_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.running.iter_mut().chain(&mut self.waiting)
    }

    /// Chooses the next step into `self.step` and takes its blocks. Sequences that can never have theirs end with
    /// [`EngineError::KvExhausted`].
    pub(super) fn schedule(&mut self, now: Instant) {
        self.step.clear();
        let decoding = self.running.iter().filter(|sequence| sequence.remaining() == 1).count();
        let mut prefill_budget = self.token_budget.saturating_sub(decoding);
        let mut index = 0;
        while index < self.running.len() {
            let remaining = self.running[index].remaining();
            let count = if remaining == 1 { 1 } else { remaining.min(prefill_budget) };
            if count > 0 && self.reserve(index, count) {
                self.step.push(Slice { running: index, count });
                prefill_budget -= if remaining == 1 { 0 } else { count };
            }
            index += 1;
        }
        // A sequence preempted just now asks for more than the blocks it gave, of which some are taken: it stays out.
        self.admit(prefill_budget, now);
    }

    /// Takes blocks for the next `count` tokens of a running sequence, at the cost of younger ones.
    fn reserve(&mut self, index: usize, count: usize) -> bool {
        loop {
            let alone = self.running.len() == 1;
            let Some(sequence) = self.running.get_mut(index) else { return false };
            if sequence.has_ended() {
                return false;
            }
            let start = sequence.cached;
            if self.blocks.reserve(&mut sequence.blocks, start, count) {
                return true;
            }
            if alone {
                sequence.end(Err(EngineError::KvExhausted));
                self.blocks.release(&mut sequence.blocks);
                return false;
            }
            self.preempt_youngest();
        }
    }

    fn preempt_youngest(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.blocks.release(&mut sequence.blocks);
            sequence.cached = 0;
            self.preemptions += 1;
            self.waiting.push_front(sequence);
        }
    }

    /// Takes waiting sequences in, first come first served, while their whole prompt will find blocks.
    fn admit(&mut self, mut budget: usize, now: Instant) {
        while budget > 0 && self.running.len() < self.max_batch {
            let Some(sequence) = self.waiting.front_mut() else { return };
            let tokens = sequence.tokens.len();
            if !self.blocks.can_ever_hold(tokens) {
                sequence.end(Err(EngineError::KvExhausted));
            }
            if sequence.has_ended() {
                // Swept out before the next step; nobody overtakes it for that long.
                return;
            }
            if !self.running.is_empty() && self.refused_at == Some(self.blocks.releases()) {
                return;
            }
            let running = self.running.iter().map(|sequence| (&sequence.blocks, sequence.tokens.len()));
            let alone = self.running.is_empty();
            let prefix = self.blocks.longest_prefix(sequence.reusable());
            if !alone && !self.blocks.can_hold_beside(tokens + 1, prefix, &running) {
                self.refused_at = Some(self.blocks.releases());
                return;
            }
            let mut blocks = SequenceBlocks::default();
            self.blocks.make_tables(&mut blocks, sequence.max_length());
            let cached = self.blocks.attach(&mut blocks, prefix);
            (sequence.cached, sequence.blocks) = (cached, blocks);
            let count = sequence.remaining().min(budget);
            if !self.blocks.reserve(&mut sequence.blocks, sequence.cached, count) {
                self.blocks.release(&mut sequence.blocks);
                sequence.cached = 0;
                return;
            }
            self.admissions.extend(sequence.admit(now));
            budget -= count;
            self.step.push(Slice { running: self.running.len(), count });
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Sequences of the step that only take their latest token further.
    pub(super) fn decoding_in_step(&self) -> usize {
        let decodes = |slice: &&Slice| {
            let sequence = self.running.get(slice.running);
            sequence.is_some_and(|sequence| sequence.generated() > 0 && sequence.remaining() == 1)
        };
        self.step.iter().filter(decodes).count()
    }

    /// Counts the step's tokens as cached, and lets others find the blocks that are full now.
    pub(super) fn complete_step(&mut self) {
        let block_size = self.blocks.block_size();
        for slice in &self.step {
            let Some(sequence) = self.running.get_mut(slice.running) else { continue };
            let from = sequence.cached / block_size;
            sequence.cached += slice.count;
            if sequence.cached / block_size > from {
                let blocks = std::mem::take(&mut sequence.blocks);
                self.blocks.name(&blocks, from, sequence.filled());
                sequence.blocks = blocks;
            }
        }
    }

    /// Takes every ended sequence out, frees its blocks and hands it over.
    pub(super) fn sweep(&mut self, ended: &mut Vec<Sequence>) {
        let first = ended.len();
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].has_ended() {
                ended.push(self.running.remove(index));
            } else {
                index += 1;
            }
        }
        index = 0;
        while index < self.waiting.len() {
            if self.waiting[index].has_ended() {
                ended.extend(self.waiting.remove(index));
            } else {
                index += 1;
            }
        }
        for sequence in ended.iter_mut().skip(first) {
            self.blocks.release(&mut sequence.blocks);
        }
        // Looks at every block there is: only where blocks change hands.
        debug_assert!(ended.len() == first || self.is_consistent(), "cache blocks and their holders differ");
    }

    /// Whether the held blocks are exactly those of the running sequences.
    pub(super) fn is_consistent(&self) -> bool {
        self.blocks.matches(&self.running.iter().map(|sequence| &sequence.blocks))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use worker_orcd_core::{KvElement, KvGroup, KvLayout};

    use super::super::job::{Job, Sampling, TokenEvent};
    use super::*;

    struct Bench {
        scheduler: Scheduler,
        listeners: Vec<mpsc::Receiver<TokenEvent>>,
        ended: Vec<Sequence>,
        now: Instant,
    }

    impl Bench {
        fn with(num_blocks: usize, max_batch: usize, token_budget: usize) -> Self {
            let group =
                KvGroup { layers: 1, num_kv_heads: 1, head_dim: 2, num_blocks, max_blocks_per_sequence: 64 };
            let layout = KvLayout { block_size: 4, element: KvElement::F32, groups: vec![group] };
            let blocks = CacheBlocks::new(&layout, &[None], token_budget);
            let scheduler = Scheduler::new(blocks, max_batch, token_budget);
            Self { scheduler, listeners: vec![], ended: vec![], now: Instant::now() }
        }

        fn submit(&mut self, prompt: usize, max_tokens: usize) {
            let job = Job {
                id: self.listeners.len().to_string(),
                prompt: vec![7; prompt],
                max_tokens,
                stop_ids: vec![],
                sampling: Sampling::greedy(),
                deadline: None,
                cache_salt: None,
            };
            let (events, listener) = mpsc::channel(Sequence::events_needed(&job, 256));
            self.listeners.push(listener);
            self.scheduler.waiting.push_back(Sequence::new(job, 256, events, self.now));
        }

        /// Runs one step with a model that always says 3; the step as (job, tokens).
        fn step(&mut self) -> Vec<(String, usize)> {
            self.scheduler.schedule(self.now);
            let running = &self.scheduler.running;
            let step: Vec<(String, usize)> = self
                .scheduler
                .step
                .iter()
                .map(|slice| (running[slice.running].id.clone(), slice.count))
                .collect();
            self.scheduler.complete_step();
            for index in 0..self.scheduler.step.len() {
                let sequence = &mut self.scheduler.running[self.scheduler.step[index].running];
                if sequence.remaining() == 0 {
                    sequence.accept(3, None, self.now);
                }
            }
            self.scheduler.sweep(&mut self.ended);
            assert!(self.scheduler.is_consistent());
            step
        }

        fn outcome(&self, id: &str) -> Option<bool> {
            let ended = self.ended.iter().find(|sequence| sequence.id == id)?;
            ended.outcome().map(Result::is_ok)
        }
    }

    fn slices(step: &[(&str, usize)]) -> Vec<(String, usize)> {
        step.iter().map(|&(id, count)| (id.to_owned(), count)).collect()
    }

    #[test]
    fn prompts_are_chunked_and_never_stall_decodes() {
        let mut bench = Bench::with(64, 3, 8);
        bench.submit(3, 10);
        bench.submit(20, 10);
        assert_eq!(bench.step(), slices(&[("0", 3), ("1", 5)]));
        assert_eq!(bench.step(), slices(&[("0", 1), ("1", 7)]));
        bench.submit(2, 10);
        assert_eq!(bench.step(), slices(&[("0", 1), ("1", 7)]));
        assert_eq!(bench.step(), slices(&[("0", 1), ("1", 1), ("2", 2)]));
        assert_eq!(bench.step(), slices(&[("0", 1), ("1", 1), ("2", 1)]));
    }

    #[test]
    fn the_batch_is_bounded_and_places_are_taken_at_once() {
        let mut bench = Bench::with(64, 2, 8);
        for _ in 0..3 {
            bench.submit(1, 2);
        }
        assert_eq!(bench.step(), slices(&[("0", 1), ("1", 1)]));
        assert_eq!(bench.step(), slices(&[("0", 1), ("1", 1)]));
        assert_eq!(bench.step(), slices(&[("2", 1)]));
    }

    #[test]
    fn the_youngest_gives_way_and_comes_back() {
        let mut bench = Bench::with(4, 2, 16);
        bench.submit(7, 8);
        bench.submit(6, 5);
        bench.submit(1, 1);
        assert_eq!(bench.step(), slices(&[("0", 7), ("1", 6)]));
        while bench.scheduler.preemptions == 0 {
            bench.step();
        }
        assert_eq!(bench.scheduler.running.len(), 1, "nobody overtakes the preempted sequence");
        assert_eq!(bench.scheduler.waiting[0].id, "1");
        assert_eq!(bench.scheduler.waiting[0].cached, 0);
        let mut steps = 0;
        while !bench.scheduler.is_idle() {
            bench.step();
            steps += 1;
            assert!(steps < 100, "no progress");
        }
        for id in ["0", "1", "2"] {
            assert_eq!(bench.outcome(id), Some(true), "job {id}");
        }
        assert_eq!(bench.scheduler.blocks.used_blocks(), 0);
    }

    #[test]
    fn only_what_does_not_fit_alone_fails() {
        let mut bench = Bench::with(3, 2, 16);
        bench.submit(13, 4);
        bench.submit(4, 20);
        bench.submit(2, 3);
        let mut steps = 0;
        while !bench.scheduler.is_idle() {
            bench.step();
            steps += 1;
            assert!(steps < 100, "no progress");
        }
        assert_eq!(bench.outcome("0"), Some(false), "13 tokens never fit 3 blocks of 4");
        assert_eq!(bench.outcome("1"), Some(false), "it outgrows the cache");
        assert_eq!(bench.outcome("2"), Some(true));
        assert_eq!(bench.scheduler.blocks.used_blocks(), 0);
    }

    #[test]
    fn no_stream_waits_for_a_prompt_and_nobody_overtakes() {
        for (num_blocks, max_batch, token_budget) in [(200, 4, 4), (200, 4, 9), (60, 5, 16), (45, 3, 64)] {
            let mut bench = Bench::with(num_blocks, max_batch, token_budget);
            let mut first_seen: Vec<String> = vec![];
            let mut steps = 0;
            while steps < 40 || !bench.scheduler.is_idle() {
                if steps < 40 {
                    bench.submit(1 + steps * 37 % 90, 1 + steps * 13 % 40);
                }
                let ready = |sequence: &&Sequence| sequence.remaining() == 1 && sequence.generated() > 0;
                let streams: Vec<String> = bench
                    .scheduler
                    .running
                    .iter()
                    .filter(ready)
                    .map(|sequence| sequence.id.clone())
                    .collect();
                let step = bench.step();
                let preempted =
                    |id: &String| bench.scheduler.waiting.iter().any(|sequence| sequence.id == *id);
                for id in streams {
                    assert!(step.contains(&(id.clone(), 1)) || preempted(&id), "{id} waits in step {steps}");
                }
                let tokens: usize = step.iter().map(|&(_, count)| count).sum();
                assert!((1..=token_budget).contains(&tokens), "{tokens} tokens in a step");
                for (id, _) in step {
                    if !first_seen.contains(&id) {
                        first_seen.push(id);
                    }
                }
                steps += 1;
                assert!(steps < 10_000, "no progress");
            }
            let arrival: Vec<String> = (0..40).map(|id| id.to_string()).collect();
            assert_eq!(first_seen, arrival);
            assert!(bench.ended.iter().all(|sequence| sequence.outcome().is_some_and(Result::is_ok)));
        }
    }
}
