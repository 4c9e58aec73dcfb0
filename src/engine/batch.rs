//! The inputs of one step, gathered into buffers that live as long as the engine.

use worker_orcd_core::{KvLayout, NO_BLOCK, NO_TOKEN, SampleRow, StepInputs};

use super::config::MAX_KV_GROUPS;
use super::plans::Chooser;
use super::scheduler::Scheduler;

/// One group's block tables, `[rows, width]`.
#[derive(Debug)]
struct Tables {
    width: usize,
    entries: Vec<u32>,
    /// Entries of each row that may differ from [`NO_BLOCK`].
    written: Vec<usize>,
}

impl Tables {
    fn write(&mut self, row: usize, table: &[u32]) {
        let Some(entries) = self.entries.get_mut(row * self.width..(row + 1) * self.width) else { return };
        let length = table.len().min(self.width);
        entries[..length].copy_from_slice(&table[..length]);
        if let Some(stale) = entries.get_mut(length..self.written[row]) {
            stale.fill(NO_BLOCK);
        }
        self.written[row] = length;
    }
}

/// Input buffers of a step.
#[derive(Debug)]
pub(super) struct Batch {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    slots: Vec<Vec<u32>>,
    tables: Vec<Tables>,
    /// Sequences in the step.
    rows: usize,
    out_rows: Vec<u32>,
    /// Index among the running sequences of each output row.
    pub(super) chosen_for: Vec<usize>,
    sampling: Vec<SampleRow>,
    penalty_tokens: Vec<u32>,
    /// Who chooses the tokens of the step.
    pub(super) chooser: Chooser,
}

impl Batch {
    /// Buffers for steps of at most `tokens` tokens of `sequences` sequences.
    pub(super) fn new(layout: &KvLayout, tokens: usize, sequences: usize) -> Self {
        let tables = |group: &worker_orcd_core::KvGroup| Tables {
            width: group.max_blocks_per_sequence,
            entries: vec![NO_BLOCK; sequences * group.max_blocks_per_sequence],
            written: vec![0; sequences],
        };
        Self {
            tokens: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            sequences: Vec::with_capacity(tokens),
            slots: layout.groups.iter().map(|_| Vec::with_capacity(tokens)).collect(),
            tables: layout.groups.iter().map(tables).collect(),
            rows: 0,
            out_rows: Vec::with_capacity(sequences),
            chosen_for: Vec::with_capacity(sequences),
            sampling: Vec::with_capacity(sequences),
            penalty_tokens: Vec::new(),
            chooser: Chooser::Host,
        }
    }

    /// Gathers what the scheduler chose. The device chooses when it can (`max_penalty_tokens` is its limit, `None` =
    /// it never can) for every output row of the step.
    pub(super) fn gather(&mut self, scheduler: &Scheduler, max_penalty_tokens: Option<usize>) {
        self.clear();
        let block_size = scheduler.blocks.block_size();
        let mut device_can = max_penalty_tokens.is_some();
        for (row, slice) in scheduler.step.iter().enumerate() {
            let Some(sequence) = scheduler.running.get(slice.running) else { continue };
            let range = sequence.cached..sequence.cached + slice.count;
            self.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
            self.positions.extend(range.clone().map(|position| position as u32));
            self.sequences.extend(std::iter::repeat_n(row as u32, slice.count));
            for (group, (slots, tables)) in self.slots.iter_mut().zip(&mut self.tables).enumerate() {
                let table = sequence.blocks.table(group);
                let slot = |position: usize| {
                    let block = table[position / block_size] as usize;
                    (block * block_size + position % block_size) as u32
                };
                slots.extend(range.clone().map(slot));
                tables.write(row, table);
            }
            if slice.count == sequence.remaining() {
                self.out_rows.push(self.tokens.len() as u32 - 1);
                self.chosen_for.push(slice.running);
                self.sampling.push(sequence.sample_row());
                device_can &= max_penalty_tokens.is_some_and(|most| sequence.device_can_sample(most));
            }
        }
        self.rows = scheduler.step.len();
        self.chooser = if device_can { Chooser::Device } else { Chooser::Host };
        if let (Chooser::Device, Some(width)) = (self.chooser, max_penalty_tokens) {
            self.gather_penalties(scheduler, width);
        }
    }

    fn gather_penalties(&mut self, scheduler: &Scheduler, width: usize) {
        for &index in &self.chosen_for {
            let distinct =
                scheduler.running.get(index).map_or(&[][..], |sequence| &sequence.history.distinct);
            self.penalty_tokens.extend_from_slice(distinct);
            self.penalty_tokens.extend(std::iter::repeat_n(NO_TOKEN, width.saturating_sub(distinct.len())));
        }
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.slots.iter_mut().for_each(Vec::clear);
        self.out_rows.clear();
        self.chosen_for.clear();
        self.sampling.clear();
        self.penalty_tokens.clear();
    }

    /// Tokens in the step.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Calls `run` with the step's inputs.
    pub(super) fn with_inputs<T>(&self, run: impl FnOnce(&StepInputs<'_>) -> T) -> T {
        let mut slots: [&[u32]; MAX_KV_GROUPS] = [&[]; MAX_KV_GROUPS];
        let mut tables: [&[u32]; MAX_KV_GROUPS] = [&[]; MAX_KV_GROUPS];
        let groups = self.slots.len().min(MAX_KV_GROUPS);
        for (slice, group) in slots.iter_mut().zip(&self.slots) {
            *slice = group;
        }
        for (slice, group) in tables.iter_mut().zip(&self.tables) {
            *slice = &group.entries[..self.rows * group.width];
        }
        run(&StepInputs {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            slots: &slots[..groups],
            block_tables: &tables[..groups],
            out_rows: &self.out_rows,
            sampling: &self.sampling,
            penalty_tokens: &self.penalty_tokens,
        })
    }
}
