//! What goes into and comes out of one step.
//!
//! A step packs tokens of any number of sequences: prefill chunks and single decode tokens look alike. Everything that
//! varies from step to step is data in here; a plan's launches never vary.

mod validate;

pub use validate::validate;

use bytemuck::{Pod, Zeroable};

use crate::program::{Element, Program};

/// Slot of a padding token: `KvWrite` leaves the cache alone.
pub const NO_SLOT: u32 = u32::MAX;
/// Block-table entry of a block that is not held (freed behind a window, or not reached yet). It is never read.
pub const NO_BLOCK: u32 = u32::MAX;
/// `Sample` writes this when a row's logits hold a NaN, +inf, or nothing above -inf.
pub const NO_TOKEN: u32 = u32::MAX;

/// Upper bounds a program is recorded for. Actual counts are data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StepShape {
    /// Most tokens in the step.
    pub tokens: usize,
    /// Most output rows (positions whose logits are wanted).
    pub rows: usize,
    /// Most sequences.
    pub sequences: usize,
}

/// Sampling parameters of one output row; plain data for the device.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SampleRow {
    /// 0 = greedy.
    pub temperature: f32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off; acts on the ids in the row's penalty list.
    pub repetition_penalty: f32,
    /// 0 = off.
    pub top_k: u32,
    /// Philox key, low word.
    pub seed_low: u32,
    /// Philox key, high word.
    pub seed_high: u32,
    /// Philox counter: index of the generated token in its sequence.
    pub draw: u32,
}

impl SampleRow {
    /// Arg-max.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        top_k: 0,
        seed_low: 0,
        seed_high: 0,
        draw: 0,
    };
}

/// Inputs of one step. Lengths may be below the plan's bounds; the backend treats the rest as padding.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    /// Token ids, `[n]`.
    pub tokens: &'a [u32],
    /// Position of each token in its sequence, `[n]`.
    pub positions: &'a [u32],
    /// Row of `block_tables` each token's sequence has, `[n]`.
    pub sequences: &'a [u32],
    /// Per group: cache slot (`block * block_size + offset`) each token's key and value go to, `[groups][n]`.
    pub slots: &'a [&'a [u32]],
    /// Per group: `[s, max_blocks_per_sequence]` physical block of each logical block, or [`NO_BLOCK`].
    pub block_tables: &'a [&'a [u32]],
    /// Token index of each output row, `[r]`.
    pub out_rows: &'a [u32],
    /// Sampling parameters, `[r]`; may be empty when the program has no `Sample`.
    pub sampling: &'a [SampleRow],
    /// `[r, max_penalty_tokens]` distinct ids the repetition penalty acts on, padded with [`NO_TOKEN`]; empty when the
    /// program's `Sample` has `max_penalty_tokens` 0.
    pub penalty_tokens: &'a [u32],
}

/// One declared output of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputValue {
    /// Activations, `[rows, width]`.
    F32(Vec<f32>),
    /// Expert or token ids, `[rows, width]`.
    U32(Vec<u32>),
}

/// Buffers `wait` fills: one per declared output, in declaration order, truncated to the rows the step really had.
#[derive(Clone, Debug, Default)]
pub struct StepOutputs {
    /// The values.
    pub values: Vec<OutputValue>,
}

impl StepOutputs {
    /// Buffers with room for every declared output of `program`, so that `wait` allocates nothing.
    pub fn for_program(program: &Program) -> Self {
        let buffer = |id: &crate::program::ValueId| {
            let value = program.value(*id);
            let capacity = value.max_rows(program.shape()) * value.width;
            match value.element {
                Element::F32 => OutputValue::F32(Vec::with_capacity(capacity)),
                Element::U32 => OutputValue::U32(Vec::with_capacity(capacity)),
            }
        };
        Self { values: program.outputs().iter().map(buffer).collect() }
    }

    /// The `index`-th output as activations; empty when it is not one.
    pub fn f32(&self, index: usize) -> &[f32] {
        match self.values.get(index) {
            Some(OutputValue::F32(values)) => values,
            _ => &[],
        }
    }

    /// The `index`-th output as ids; empty when it is not one.
    pub fn u32(&self, index: usize) -> &[u32] {
        match self.values.get(index) {
            Some(OutputValue::U32(values)) => values,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests;
