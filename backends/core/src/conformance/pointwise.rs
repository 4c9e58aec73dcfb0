//! Cases of norms, activations, rotation, sums and row gathering.

use super::recipe::{Data, Recipe};
use super::{Case, StepData};
use crate::backend::BackendError;
use crate::dtype::DType;
use crate::op::{RopeStyle, SwiGluKind};
use crate::program::{ProgramBuilder, ValueId};
use crate::step::StepShape;
use crate::weight::WeightSpec;

const MEAN: &str = "an f32 mean of up to a few thousand squares and one square root";
const EXP: &str = "device exponentials are a few units in the last place off, more where the result is small";
const EXACT: &str = "one correctly rounded operation or a copy";

pub(super) fn push_cases(cases: &mut Vec<Case>) -> Result<(), BackendError> {
    for (width, data) in [
        (1, Data::Normal),
        (17, Data::Normal),
        (255, Data::Spiky),
        (256, Data::Normal),
        (257, Data::Denormal),
        (2880, Data::Spiky),
    ] {
        cases.push(rms_norm(width, data, 1e-5)?);
        cases.push(layer_norm(width, data, 1e-5)?);
    }
    cases.push(rms_norm(64, Data::Normal, 0.5)?);
    cases.push(layer_norm(768, Data::Offset, 1e-5)?);
    for (width, data) in [(1, Data::Normal), (257, Data::Denormal), (1024, Data::Spiky)] {
        cases.push(unary(
            &format!("add(n={width},{})", data.name()),
            width,
            data,
            (0.0, EXACT),
            |builder, x, y| builder.add("sum", x, y),
        )?);
        cases.push(unary(
            &format!("gelu(n={width},{})", data.name()),
            width,
            data,
            (1e-9, EXP),
            |builder, x, _| builder.gelu("gelu", x),
        )?);
        let clamped = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };
        for (name, kind) in [("silu", SwiGluKind::Silu), ("clamped", clamped)] {
            let name = format!("swiglu({name},n={width},{})", data.name());
            cases.push(unary(&name, width, data, (1e-9, EXP), |builder, x, y| {
                builder.swiglu("swiglu", x, y, kind)
            })?);
        }
    }
    let limits = [0.0, -0.0, 0.5, 6.999_999, 7.0, 7.000_001, 7.5, -6.999_999, -7.0, -7.000_001, -7.5];
    cases.push(activation_extremes("limit", &limits)?);
    cases.push(activation_extremes("large", &[20.0, -20.0, 60.0, -60.0, 88.8, -88.8, 104.0, -104.0])?);
    cases.push(activation_extremes("huge", &[1e4, -1e4, 1e9, -1e9])?);
    for (heads, head_dim, rotated) in
        [(4, 64, 64), (3, 80, 80), (2, 96, 32), (8, 128, 128), (5, 8, 6), (1, 48, 2)]
    {
        for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
            cases.push(rope((heads, head_dim), rotated, style)?);
        }
    }
    for width in [1, 100, 257] {
        cases.push(gather_rows(width)?);
    }
    Ok(())
}

fn rms_norm(width: usize, data: Data, eps: f32) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("rms_norm(n={width},{},eps={eps:e})", data.name()));
    let x = recipe.activations("x", 9, width, data);
    let weight = recipe.vector("weight", 1, width);
    for step in [(1, 1), (8, 7)] {
        recipe.token_step(step, 9, |builder| {
            let x = builder.embed("x", x)?;
            let rows = builder.gather_rows("rows", x)?;
            Ok(vec![
                builder.rms_norm("norm", x, weight, eps)?,
                builder.rms_norm("norm.rows", rows, weight, eps)?,
            ])
        })?;
    }
    Ok(recipe.finish(1e-11, MEAN))
}

fn layer_norm(width: usize, data: Data, eps: f32) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("layer_norm(n={width},{},eps={eps:e})", data.name()));
    let x = recipe.activations("x", 9, width, data);
    let (weight, bias) = (recipe.vector("weight", 1, width), recipe.vector("bias", 1, width));
    for step in [(1, 1), (8, 7)] {
        recipe.token_step(step, 9, |builder| {
            let x = builder.embed("x", x)?;
            Ok(vec![builder.layer_norm("norm", x, weight, bias, eps)?])
        })?;
    }
    // With a mean of 100 deviations, x - mean loses seven bits.
    Ok(recipe.finish(if data == Data::Offset { 1e-8 } else { 1e-11 }, MEAN))
}

/// A case of one element-wise operation on one or two values.
fn unary(
    name: &str,
    width: usize,
    data: Data,
    (nmse, why): (f64, &'static str),
    record: impl Fn(&mut ProgramBuilder<'_>, ValueId, ValueId) -> Result<ValueId, BackendError>,
) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(name.to_owned());
    let x = recipe.activations("x", 9, width, data);
    let y = recipe.activations("y", 9, width, Data::Normal);
    for step in [(1, 1), (8, 7)] {
        recipe.token_step(step, 9, |builder| {
            let (x, y) = (builder.embed("x", x)?, builder.embed("y", y)?);
            Ok(vec![record(builder, x, y)?])
        })?;
    }
    Ok(recipe.finish(nmse, why))
}

/// Arguments at which a careless exponential or hyperbolic tangent overflows to NaN, and the clamp limits; one row each.
fn activation_extremes(name: &str, values: &[f32]) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("swiglu({name} arguments, with gelu)"));
    let spec = WeightSpec::matrix("x", DType::F32, values.len(), 1);
    let x = recipe.values(spec, values.to_vec());
    let inputs = StepData::of_tokens((0..values.len() as u32).collect());
    let shape = StepShape { tokens: values.len(), rows: 1, sequences: 1 };
    recipe.step(shape, inputs, vec![], |builder| {
        let x = builder.embed("x", x)?;
        let clamped = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };
        Ok(vec![
            builder.swiglu("silu", x, x, SwiGluKind::Silu)?,
            builder.swiglu("clamped", x, x, clamped)?,
            builder.gelu("gelu", x)?,
        ])
    })?;
    Ok(recipe.finish(1e-9, EXP))
}

fn rope((heads, head_dim): (usize, usize), rotated: usize, style: RopeStyle) -> Result<Case, BackendError> {
    let mut recipe =
        Recipe::new(format!("rope({style:?},heads={heads},head_dim={head_dim},rotated={rotated})"));
    let x = recipe.activations("x", 9, heads * head_dim, Data::Normal);
    let table = rope_table(rotated, 50, 1.25);
    let table = recipe.values(WeightSpec::vector("table", 50, rotated), table);
    for positions in [vec![49], vec![3, 0, 17, 4, 5, 6, 49]] {
        let tokens = recipe.tokens(positions.len(), 9);
        let mut inputs = StepData::of_tokens(tokens);
        inputs.positions = positions;
        let keys =
            inputs.tokens.iter().zip(&inputs.positions).map(|(&id, &at)| u64::from(id) << 32 | u64::from(at));
        let row_keys = keys.collect();
        let shape = StepShape { tokens: inputs.tokens.len().next_power_of_two(), rows: 1, sequences: 1 };
        recipe.step(shape, inputs, row_keys, |builder| {
            let x = builder.embed("x", x)?;
            Ok(vec![builder.rope("rope", x, table, (heads, head_dim), style)?])
        })?;
    }
    Ok(recipe.finish(1e-12, "two products and a sum in f32"))
}

/// `[positions, rotated]`: cosines then sines of `position / 100^(2i/n)`, times `factor`.
pub(super) fn rope_table(rotated: usize, positions: usize, factor: f32) -> Vec<f32> {
    let half = rotated / 2;
    let angle = |position: usize, i: usize| position as f32 / 100_f32.powf(i as f32 / half as f32);
    let row = |position: usize| {
        let cosines = (0..half).map(move |i| angle(position, i).cos() * factor);
        cosines.chain((0..half).map(move |i| angle(position, i).sin() * factor))
    };
    (0..positions).flat_map(row).collect()
}

fn gather_rows(width: usize) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("gather_rows(n={width})"));
    let x = recipe.activations("x", 9, width, Data::Normal);
    for out_rows in [vec![4], vec![], vec![6, 0, 0, 3]] {
        let mut inputs = StepData::of_tokens(recipe.tokens(7, 9));
        inputs.out_rows = out_rows;
        let row_keys = inputs.tokens.iter().map(|&id| u64::from(id)).collect();
        recipe.step(StepShape { tokens: 8, rows: 5, sequences: 1 }, inputs, row_keys, |builder| {
            let x = builder.embed("x", x)?;
            Ok(vec![builder.gather_rows("rows", x)?])
        })?;
    }
    Ok(recipe.finish(0.0, EXACT))
}
