//! The packed inputs of a step: one buffer of words, at offsets fixed when the plan is compiled.
//!
//! Words 0 and 1 are the actual counts of tokens and output rows. What lies beyond the actual counts is stale and never
//! read.

use worker_orcd_core::sampling::PreparedRow;
use worker_orcd_core::{KvLayout, Op, Program, StepInputs};

/// Word of the actual number of tokens.
pub(crate) const TOKEN_COUNT: usize = 0;
/// Word of the actual number of output rows.
pub(crate) const ROW_COUNT: usize = 1;
const HEADER_WORDS: usize = 4;
/// Words of one output row's sampling parameters.
const ROW_WORDS: usize = size_of::<PreparedRow>() / 4;

/// Where each input starts, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InputsLayout {
    pub(crate) tokens: usize,
    pub(crate) positions: usize,
    pub(crate) sequences: usize,
    /// By group.
    pub(crate) slots: Vec<usize>,
    /// By group.
    pub(crate) block_tables: Vec<usize>,
    pub(crate) out_rows: usize,
    pub(crate) sampling: usize,
    pub(crate) penalty_tokens: usize,
    /// Size of the whole.
    pub(crate) words: usize,
}

impl InputsLayout {
    /// Room for the largest step of `program`.
    pub(crate) fn of(program: &Program, kv: Option<&KvLayout>) -> Self {
        let shape = program.shape();
        let mut words = HEADER_WORDS;
        let mut take = |count: usize| {
            let at = words;
            words += count;
            at
        };
        let groups = kv.map_or(&[][..], |layout| &layout.groups);
        let penalty_width = program.nodes().iter().map(|node| match node.op {
            Op::Sample { max_penalty_tokens, .. } => max_penalty_tokens,
            _ => 0,
        });
        let mut layout = Self {
            tokens: take(shape.tokens),
            positions: take(shape.tokens),
            sequences: take(shape.tokens),
            slots: groups.iter().map(|_| take(shape.tokens)).collect(),
            block_tables: groups
                .iter()
                .map(|group| take(shape.sequences * group.max_blocks_per_sequence))
                .collect(),
            out_rows: take(shape.rows),
            sampling: take(shape.rows * ROW_WORDS),
            penalty_tokens: take(shape.rows * penalty_width.max().unwrap_or(0)),
            words: 0,
        };
        layout.words = words;
        layout
    }

    /// Writes the inputs of one step, checked before by `step::validate`, into `words`.
    pub(crate) fn pack(&self, inputs: &StepInputs<'_>, words: &mut [u32]) {
        words[TOKEN_COUNT] = inputs.tokens.len() as u32;
        words[ROW_COUNT] = inputs.out_rows.len() as u32;
        put(words, self.tokens, inputs.tokens);
        put(words, self.positions, inputs.positions);
        put(words, self.sequences, inputs.sequences);
        for (&at, slots) in self.slots.iter().zip(inputs.slots) {
            put(words, at, slots);
        }
        for (&at, table) in self.block_tables.iter().zip(inputs.block_tables) {
            put(words, at, table);
        }
        put(words, self.out_rows, inputs.out_rows);
        for (index, row) in inputs.sampling.iter().take(inputs.out_rows.len()).enumerate() {
            put(words, self.sampling + index * ROW_WORDS, bytemuck::cast_slice(&[PreparedRow::from(row)]));
        }
        if self.penalty_tokens < self.words {
            put(words, self.penalty_tokens, inputs.penalty_tokens);
        }
    }
}

/// Copies `values` to word `at`, as far as there is room.
fn put(words: &mut [u32], at: usize, values: &[u32]) {
    for (word, &value) in words.iter_mut().skip(at).zip(values) {
        *word = value;
    }
}
