//! Cases of the operations that read a plain matrix: linear, embed, position_embed.

use super::Case;
use super::recipe::{Data, Recipe};
use crate::backend::BackendError;
use crate::dtype::DType;
use crate::step::StepShape;
use crate::weight::{WeightId, WeightSpec};

const DECODED: &str = "the decoded weight may differ in the last bit where a multiply-add is fused";
const SUMMED: &str = "f32 sums of a few hundred products in any fixed order";

/// What of the shape varies between linear cases.
#[derive(Clone, Copy)]
struct Linear {
    dtype: DType,
    cols: usize,
    rows: usize,
    bias: bool,
    data: Data,
    /// (bound, tokens) of each step.
    steps: &'static [(usize, usize)],
}

impl Linear {
    const fn of(dtype: DType, cols: usize, rows: usize) -> Self {
        Self { dtype, cols, rows, bias: false, data: Data::Normal, steps: &[(1, 1), (8, 5)] }
    }

    fn case(self) -> Result<Case, BackendError> {
        let Self { dtype, cols, rows, bias, data, steps } = self;
        let most = steps.iter().map(|step| step.1).max().unwrap_or(1);
        let name = format!(
            "linear({dtype},in={cols},out={rows},tokens={most},{}{})",
            data.name(),
            if bias { ",bias" } else { "" }
        );
        let mut recipe = Recipe::new(name);
        let x = recipe.activations("x", most + 3, cols, data);
        let weight = recipe.matrix("weight", dtype, rows, cols);
        let bias = bias.then(|| recipe.vector("bias", 1, rows));
        for &step in steps {
            recipe.token_step(step, most + 3, |builder| {
                let x = builder.embed("x", x)?;
                Ok(vec![builder.linear("y", x, weight, bias)?])
            })?;
        }
        Ok(recipe.finish(1e-10, SUMMED))
    }
}

/// The narrowest interesting width that is no multiple of a tile: three quant blocks, or a prime.
fn ragged_cols(dtype: DType) -> usize {
    match dtype.block_elements() {
        1 => 57,
        32 => 160,
        elements => 3 * elements,
    }
}

pub(super) fn push_cases(cases: &mut Vec<Case>) -> Result<(), BackendError> {
    for dtype in DType::ALL {
        let steps = &[(1, 1), (8, 5), (17, 17)];
        cases.push(Linear { bias: true, steps, ..Linear::of(dtype, 512, 96) }.case()?);
        cases.push(Linear { ..Linear::of(dtype, ragged_cols(dtype), 257) }.case()?);
    }
    for dtype in [DType::F32, DType::F16, DType::Q4_K, DType::MXFP4] {
        for rows in [1, 17, 255, 256] {
            cases.push(Linear { bias: rows == 17, ..Linear::of(dtype, 256, rows) }.case()?);
        }
        for data in [Data::Spiky, Data::Denormal] {
            cases.push(Linear { data, ..Linear::of(dtype, 256, 40) }.case()?);
        }
    }
    for dtype in [DType::BF16, DType::Q8_0, DType::Q6_K, DType::MXFP4] {
        let steps = &[(257, 257), (1, 1), (64, 33)];
        cases.push(Linear { steps, bias: true, ..Linear::of(dtype, 256, 65) }.case()?);
    }
    for (dtype, std) in [(DType::Q4_0, 1e-5), (DType::Q6_K, 0.002), (DType::F16, 1e-6)] {
        cases.push(small_scales(dtype, std)?);
    }
    for dtype in [DType::F16, DType::Q6_K, DType::Q8_0] {
        cases.push(lm_head(dtype)?);
    }
    for dtype in DType::ALL {
        cases.push(embed(dtype, 512)?);
    }
    for dtype in [DType::F32, DType::BF16] {
        cases.push(embed(dtype, 57)?);
    }
    for dtype in [DType::F32, DType::F16, DType::Q8_0] {
        cases.push(position_embed(dtype)?);
    }
    Ok(())
}

/// Half-precision scales that are subnormal.
fn small_scales(dtype: DType, std: f32) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("linear({dtype},in=256,out=24,std={std:e})"));
    let x = recipe.activations("x", 8, 256, Data::Normal);
    let weight = recipe.random(WeightSpec::matrix("weight", dtype, 24, 256), std);
    recipe.token_step((4, 3), 8, |builder| {
        let x = builder.embed("x", x)?;
        Ok(vec![builder.linear("y", x, weight, None)?])
    })?;
    Ok(recipe.finish(1e-10, SUMMED))
}

/// A product over output rows only.
fn lm_head(dtype: DType) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("linear({dtype},in=256,out=300,output rows)"));
    let x = recipe.activations("x", 20, 256, Data::Normal);
    let weight = recipe.matrix("lm_head", dtype, 300, 256);
    for step in [(16, 13), (1, 1)] {
        recipe.token_step(step, 20, |builder| {
            let x = builder.embed("x", x)?;
            let rows = builder.gather_rows("rows", x)?;
            Ok(vec![builder.linear("logits", rows, weight, None)?])
        })?;
    }
    Ok(recipe.finish(1e-10, SUMMED))
}

fn embed(dtype: DType, cols: usize) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("embed({dtype},cols={cols})"));
    let table = recipe.random(WeightSpec::matrix("table", dtype, 19, cols), 0.5);
    for step in [(1, 1), (20, 17)] {
        recipe.token_step(step, 19, |builder| Ok(vec![builder.embed("x", table)?]))?;
    }
    Ok(recipe.finish(1e-13, DECODED))
}

fn position_embed(dtype: DType) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("position_embed({dtype},cols=64)"));
    let table: WeightId = recipe.random(WeightSpec::matrix("positions", dtype, 40, 64), 0.5);
    let mut inputs = super::StepData::of_tokens(vec![0; 6]);
    inputs.positions = vec![39, 0, 7, 7, 1, 38];
    let row_keys = inputs.positions.iter().map(|&position| u64::from(position)).collect();
    let shape = StepShape { tokens: 7, rows: 1, sequences: 1 };
    recipe.step(shape, inputs, row_keys, |builder| Ok(vec![builder.position_embed("positions", table)?]))?;
    Ok(recipe.finish(1e-13, DECODED))
}
