//! Cases of the sampler: every option, ids must be equal.

use super::recipe::{Data, Recipe};
use super::{Case, StepData};
use crate::backend::BackendError;
use crate::dtype::DType;
use crate::step::{NO_TOKEN, SampleRow, StepShape};
use crate::weight::WeightSpec;

const INTEGER: &str = "sampling is exact: integers after one subtraction and one product";

/// Rows of a case.
const ROWS: usize = 16;

pub(super) fn push_cases(cases: &mut Vec<Case>) -> Result<(), BackendError> {
    let plain = SampleRow { temperature: 0.8, ..SampleRow::GREEDY };
    let options = [
        ("greedy", SampleRow::GREEDY),
        ("temperature=0.8", plain),
        ("temperature=2", SampleRow { temperature: 2.0, ..plain }),
        ("temperature=1e-4", SampleRow { temperature: 1e-4, ..plain }),
        ("top_k=1", SampleRow { top_k: 1, ..plain }),
        ("top_k=40", SampleRow { top_k: 40, ..plain }),
        ("top_p=0.9", SampleRow { top_p: 0.9, ..plain }),
        ("top_p=1e-6", SampleRow { top_p: 1e-6, ..plain }),
        ("min_p=0.05", SampleRow { min_p: 0.05, ..plain }),
        ("everything", SampleRow { temperature: 1.3, top_k: 50, top_p: 0.8, min_p: 0.02, ..plain }),
    ];
    for (name, row) in options {
        cases.push(Logits::of(name, row).case()?);
    }
    for vocab in [1, 2, 255, 257, 20_011] {
        let row = SampleRow { top_p: 0.95, top_k: 64, ..plain };
        cases.push(Logits { vocab, ..Logits::of("top_k=64,top_p=0.95", row) }.case()?);
    }
    let penalised = SampleRow { repetition_penalty: 1.5, ..plain };
    cases.push(Logits { penalties: 9, ..Logits::of("repetition_penalty=1.5", penalised) }.case()?);
    let greedy = SampleRow { repetition_penalty: 3.0, ..SampleRow::GREEDY };
    cases.push(Logits { penalties: 300, ..Logits::of("greedy,repetition_penalty=3", greedy) }.case()?);
    for (name, row) in [("greedy", SampleRow::GREEDY), ("top_k=5", SampleRow { top_k: 5, ..plain })] {
        cases.push(Logits { ties: true, ..Logits::of(name, row) }.case()?);
    }
    let top_p = SampleRow { top_p: 0.5, temperature: 1.0, ..plain };
    cases.push(Logits { ties: true, ..Logits::of("top_p=0.5", top_p) }.case()?);
    cases.push(unusable()?);
    Ok(())
}

/// What varies between sampler cases.
struct Logits {
    name: &'static str,
    row: SampleRow,
    vocab: usize,
    /// Width of the penalty lists.
    penalties: usize,
    /// Only five distinct logits.
    ties: bool,
}

impl Logits {
    const fn of(name: &'static str, row: SampleRow) -> Self {
        Self { name, row, vocab: 1000, penalties: 0, ties: false }
    }

    fn case(self) -> Result<Case, BackendError> {
        let Self { name, row, vocab, penalties, ties } = self;
        let mut recipe =
            Recipe::new(format!("sample({name},vocab={vocab}{})", if ties { ",ties" } else { "" }));
        let mut values = Data::Normal.values(ROWS * vocab, &mut recipe.rng);
        for value in &mut values {
            *value = if ties { value.round() + 0.0 } else { *value * 3.0 };
        }
        let logits = recipe.values(WeightSpec::matrix("logits", DType::F32, ROWS, vocab), values);
        for rows in [ROWS, 1] {
            let mut inputs = StepData::of_tokens((0..rows as u32).collect());
            inputs.out_rows = (0..rows as u32).rev().collect();
            for draw in 0..rows as u32 {
                let (seed_low, seed_high) = (recipe.rng.next_u32(), recipe.rng.next_u32());
                inputs.sampling.push(SampleRow { seed_low, seed_high, draw: draw * draw, ..row });
                let mut ids: Vec<u32> = (0..vocab as u32).collect();
                recipe.rng.shuffle(&mut ids);
                let used = recipe.rng.below(penalties + 1);
                ids.truncate(used);
                ids.resize(penalties, NO_TOKEN);
                inputs.penalty_tokens.extend(ids);
            }
            let shape = StepShape { tokens: rows + 1, rows: rows + 1, sequences: 1 };
            recipe.step(shape, inputs, vec![], |builder| {
                let logits = builder.embed("x", logits)?;
                let logits = builder.gather_rows("logits", logits)?;
                Ok(vec![builder.sample("token", logits, penalties)?])
            })?;
        }
        Ok(recipe.finish(0.0, INTEGER))
    }
}

/// Rows that hold no distribution give no token; rows beside them are not disturbed.
fn unusable() -> Result<Case, BackendError> {
    let mut recipe = Recipe::new("sample(unusable logits,vocab=300)".into());
    let mut values = Data::Normal.values(6 * 300, &mut recipe.rng);
    values[299] = f32::NAN;
    values[300] = f32::INFINITY;
    values[600..900].fill(f32::NEG_INFINITY);
    values[900..1199].fill(f32::NEG_INFINITY);
    values[1200] = f32::NEG_INFINITY;
    values[1210] = f32::MAX;
    values[1211] = f32::MIN;
    let logits = recipe.values(WeightSpec::matrix("logits", DType::F32, 6, 300), values);
    let sampled = SampleRow { temperature: 1.0, seed_low: 5, ..SampleRow::GREEDY };
    for row in [SampleRow::GREEDY, sampled, SampleRow { top_p: 0.9, top_k: 20, ..sampled }] {
        let mut inputs = StepData::of_tokens((0..6).collect());
        inputs.out_rows = (0..6).collect();
        inputs.sampling = vec![row; 6];
        recipe.step(StepShape { tokens: 6, rows: 6, sequences: 1 }, inputs, vec![], |builder| {
            let logits = builder.embed("x", logits)?;
            let logits = builder.gather_rows("logits", logits)?;
            Ok(vec![builder.sample("token", logits, 0)?])
        })?;
    }
    Ok(recipe.finish(0.0, INTEGER))
}
