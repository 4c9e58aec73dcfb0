//! How cases are put together: weights, data kinds and steps.

use super::{Case, CaseStep, CaseWeight, Fill, StepData, Tolerance};
use crate::backend::BackendError;
use crate::dtype::DType;
use crate::kv::KvLayout;
use crate::program::{ProgramBuilder, ValueId};
use crate::rng::Rng;
use crate::step::StepShape;
use crate::weight::{WeightId, WeightSpec};

/// What activations look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Data {
    /// Normal, standard deviation 1.
    Normal,
    /// Normal with one value in 16 a thousand times larger.
    Spiky,
    /// Normal with every third value subnormal and every fifth a zero of either sign.
    Denormal,
    /// Normal around 100: catches a variance computed from a difference of large sums.
    Offset,
}

impl Data {
    pub(super) fn values(self, count: usize, rng: &mut Rng) -> Vec<f32> {
        let value = |index: usize| {
            let x = rng.normal();
            match self {
                Self::Spiky if index % 16 == 5 => x * 1000.0,
                Self::Denormal if index % 3 == 1 => x * 1e-39,
                Self::Denormal if index % 5 == 2 => x.signum() * 0.0,
                Self::Offset => x + 100.0,
                _ => x,
            }
        };
        (0..count).map(value).collect()
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Spiky => "spiky",
            Self::Denormal => "denormal",
            Self::Offset => "offset",
        }
    }
}

/// A case in the making.
#[derive(Debug)]
pub(super) struct Recipe {
    name: String,
    /// Seeded by the name: data never changes when cases are added.
    pub(super) rng: Rng,
    specs: Vec<WeightSpec>,
    weights: Vec<CaseWeight>,
    pub(super) kv: Option<KvLayout>,
    steps: Vec<CaseStep>,
}

impl Recipe {
    pub(super) fn new(name: String) -> Self {
        let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { name, rng: Rng::seeded(seed), specs: vec![], weights: vec![], kv: None, steps: vec![] }
    }

    fn push(&mut self, spec: WeightSpec, fill: Fill) -> WeightId {
        self.specs.push(spec.clone());
        self.weights.push(CaseWeight { spec, fill });
        WeightId(self.specs.len() as u32 - 1)
    }

    /// A weight of random rows.
    pub(super) fn random(&mut self, spec: WeightSpec, std: f32) -> WeightId {
        let seed = self.rng.next_u64();
        self.push(spec, Fill::Random { seed, std })
    }

    /// An f32 weight of given values.
    pub(super) fn values(&mut self, spec: WeightSpec, values: Vec<f32>) -> WeightId {
        self.push(spec, Fill::Values(values))
    }

    /// A matrix with standard deviation `1 / sqrt(cols)`, so that products keep their magnitude.
    pub(super) fn matrix(&mut self, label: &str, dtype: DType, rows: usize, cols: usize) -> WeightId {
        self.random(WeightSpec::matrix(label, dtype, rows, cols), 1.0 / (cols as f32).sqrt())
    }

    /// A normal f32 vector of `rows` rows.
    pub(super) fn vector(&mut self, label: &str, rows: usize, cols: usize) -> WeightId {
        let values = Data::Normal.values(rows * cols, &mut self.rng);
        self.values(WeightSpec::vector(label, rows, cols), values)
    }

    /// A table whose rows are the activations of a case: `Embed` with it makes `x`.
    pub(super) fn activations(&mut self, label: &str, rows: usize, cols: usize, data: Data) -> WeightId {
        let values = data.values(rows * cols, &mut self.rng);
        self.values(WeightSpec::matrix(label, DType::F32, rows, cols), values)
    }

    /// `count` ids below `vocab`; the first is 0 in every step, so that steps share a row.
    pub(super) fn tokens(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|index| if index == 0 { 0 } else { self.rng.below(vocab) as u32 }).collect()
    }

    /// Records a program and the step it runs; `record` returns the outputs to compare.
    pub(super) fn step(
        &mut self,
        shape: StepShape,
        inputs: StepData,
        row_keys: Vec<u64>,
        record: impl FnOnce(&mut ProgramBuilder<'_>) -> Result<Vec<ValueId>, BackendError>,
    ) -> Result<(), BackendError> {
        let name = format!("{}.{}", self.name, self.steps.len());
        let mut builder = ProgramBuilder::new(name, shape, &self.specs);
        for output in record(&mut builder)? {
            builder.output(output);
        }
        self.steps.push(CaseStep { program: builder.finish(), inputs, row_keys });
        Ok(())
    }

    /// For operations whose rows depend on their token alone: one step of `count` random tokens of `vocab` under a
    /// bound of `tokens`, every third an output row.
    pub(super) fn token_step(
        &mut self,
        (tokens, count): (usize, usize),
        vocab: usize,
        record: impl FnOnce(&mut ProgramBuilder<'_>) -> Result<Vec<ValueId>, BackendError>,
    ) -> Result<(), BackendError> {
        let mut inputs = StepData::of_tokens(self.tokens(count, vocab));
        inputs.out_rows = (0..count as u32).rev().step_by(3).collect();
        let row_keys = inputs.tokens.iter().map(|&id| u64::from(id)).collect();
        let shape = StepShape { tokens, rows: tokens.div_ceil(3), sequences: 1 };
        self.step(shape, inputs, row_keys, record)
    }

    pub(super) fn finish(self, nmse: f64, why: &'static str) -> Case {
        let Self { name, weights, kv, steps, .. } = self;
        Case { name, weights, kv, steps, tolerance: Tolerance { nmse, why } }
    }
}
