//! One table of conformance cases and the runner that judges any backend by it.
//!
//! A case is data: weights, programs, step inputs, a tolerance with its reason. The runner poisons the backend, runs
//! the steps on it and on a fresh [`crate::ReferenceBackend`] and compares every declared output. Names begin with the
//! stem of the operation they are about (`block` for whole layers).

mod attention;
mod block;
mod matrix;
mod moe;
mod pointwise;
mod recipe;
mod run;
mod sampling;

pub use run::{CaseError, Outcome, run_case, run_case_within};

use crate::backend::BackendError;
use crate::kv::KvLayout;
use crate::program::Program;
use crate::quant::random_row;
use crate::rng::Rng;
use crate::step::{SampleRow, StepInputs};
use crate::weight::WeightSpec;

/// What a weight of a case holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// [`random_row`] with this seed and standard deviation.
    Random {
        /// Of the generator.
        seed: u64,
        /// Of the decoded values.
        std: f32,
    },
    /// These f32 values.
    Values(Vec<f32>),
}

/// One weight of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseWeight {
    /// What `upload` is told.
    pub spec: WeightSpec,
    /// What it holds.
    pub fill: Fill,
}

impl CaseWeight {
    /// The bytes `upload` is given.
    pub fn bytes(&self) -> Vec<u8> {
        match &self.fill {
            Fill::Random { seed, std } => {
                let mut bytes = vec![];
                random_row(self.spec.dtype, self.spec.elements(), *std, &mut Rng::seeded(*seed), &mut bytes);
                bytes
            }
            Fill::Values(values) => bytemuck::cast_slice(values).to_vec(),
        }
    }
}

/// Owned inputs of one step; see [`StepInputs`] for the fields.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of StepInputs")]
pub struct StepData {
    pub tokens: Vec<u32>,
    pub positions: Vec<u32>,
    pub sequences: Vec<u32>,
    pub slots: Vec<Vec<u32>>,
    pub block_tables: Vec<Vec<u32>>,
    pub out_rows: Vec<u32>,
    pub sampling: Vec<SampleRow>,
    pub penalty_tokens: Vec<u32>,
}

impl StepData {
    /// Tokens of one sequence without a cache, positions 0, 1, ….
    pub fn of_tokens(tokens: Vec<u32>) -> Self {
        let positions = (0..tokens.len() as u32).collect();
        let sequences = vec![0; tokens.len()];
        Self { tokens, positions, sequences, ..Self::default() }
    }

    /// Lends the data in the form a backend takes it.
    pub fn lend<T>(&self, take: impl FnOnce(&StepInputs<'_>) -> T) -> T {
        let slots: Vec<&[u32]> = self.slots.iter().map(Vec::as_slice).collect();
        let block_tables: Vec<&[u32]> = self.block_tables.iter().map(Vec::as_slice).collect();
        take(&StepInputs {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.sequences,
            slots: &slots,
            block_tables: &block_tables,
            out_rows: &self.out_rows,
            sampling: &self.sampling,
            penalty_tokens: &self.penalty_tokens,
        })
    }
}

/// One step of a case.
#[derive(Clone, Debug)]
pub struct CaseStep {
    /// What runs.
    pub program: Program,
    /// On what.
    pub inputs: StepData,
    /// One key per token. Rows of equal keys (of the token itself or of the token an output row gathers) must have
    /// equal bits in every step: results do not depend on the batch. Empty: not checked.
    pub row_keys: Vec<u64>,
}

/// How far a backend may be from the reference. Ids must always be equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Largest squared error of a row over the square of the row itself, for arithmetic in f32; 0 = bit for bit.
    pub nmse: f64,
    /// Where the error comes from.
    pub why: &'static str,
}

/// One entry of the table.
#[derive(Clone, Debug)]
pub struct Case {
    /// e.g. `linear(Q4_K,in=512,out=96,bias)`.
    pub name: String,
    /// Weights in upload order.
    pub weights: Vec<CaseWeight>,
    /// The cache, if the programs use one.
    pub kv: Option<KvLayout>,
    /// Steps in order; all programs are compiled before the first.
    pub steps: Vec<CaseStep>,
    /// How close outputs must be.
    pub tolerance: Tolerance,
}

/// The whole table.
///
/// # Errors
/// A case breaks a rule of its own recording; the test of this module shows that none does.
pub fn cases() -> Result<Vec<Case>, BackendError> {
    let mut cases = vec![];
    matrix::push_cases(&mut cases)?;
    moe::push_cases(&mut cases)?;
    pointwise::push_cases(&mut cases)?;
    attention::push_cases(&mut cases)?;
    sampling::push_cases(&mut cases)?;
    block::push_cases(&mut cases)?;
    Ok(cases)
}

#[cfg(test)]
mod tests;
