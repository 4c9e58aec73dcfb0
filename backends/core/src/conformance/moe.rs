//! Cases of the expert operations: router, moe_linear, moe_combine.

use super::Case;
use super::recipe::{Data, Recipe};
use crate::backend::BackendError;
use crate::dtype::DType;
use crate::weight::WeightSpec;

/// What varies between expert products.
#[derive(Clone, Copy)]
struct MoeLinear {
    dtype: DType,
    experts: usize,
    top_k: usize,
    cols: usize,
    rows: usize,
    /// (bound, tokens) of each step.
    steps: &'static [(usize, usize)],
}

impl MoeLinear {
    const fn of(dtype: DType) -> Self {
        Self { dtype, experts: 5, top_k: 2, cols: 256, rows: 48, steps: &[(1, 1), (8, 6)] }
    }

    /// The product with a shared row and, on its result's kind of shape, with one row per choice.
    fn case(self) -> Result<Case, BackendError> {
        let Self { dtype, experts, top_k, cols, rows, steps } = self;
        let most = steps.iter().map(|step| step.1).max().unwrap_or(1);
        let name =
            format!("moe_linear({dtype},experts={experts},top_k={top_k},in={cols},out={rows},tokens={most})");
        let mut recipe = Recipe::new(name);
        let vocab = most + 2;
        let shared = recipe.activations("x", vocab, cols, Data::Normal);
        let own = recipe.activations("x.own", vocab, top_k * cols, Data::Normal);
        let logits = recipe.activations("logits", vocab, experts, Data::Normal);
        let spec = WeightSpec::experts("experts", dtype, experts, rows, cols);
        let weight = recipe.random(spec, 1.0 / (cols as f32).sqrt());
        let bias = recipe.vector("bias", experts, rows);
        for &step in steps {
            recipe.token_step(step, vocab, |builder| {
                let (shared, own) = (builder.embed("x", shared)?, builder.embed("x.own", own)?);
                let logits = builder.embed("logits", logits)?;
                let (ids, _) = builder.router("router", logits, top_k)?;
                Ok(vec![
                    builder.moe_linear("shared", shared, ids, weight, Some(bias))?,
                    builder.moe_linear("own", own, ids, weight, None)?,
                ])
            })?;
        }
        Ok(recipe.finish(1e-10, "f32 sums of a few hundred products in any fixed order"))
    }
}

pub(super) fn push_cases(cases: &mut Vec<Case>) -> Result<(), BackendError> {
    for dtype in DType::ALL {
        cases.push(MoeLinear::of(dtype).case()?);
    }
    let mxfp4 = MoeLinear::of(DType::MXFP4);
    cases.push(MoeLinear { experts: 32, top_k: 4, cols: 96, rows: 17, ..mxfp4 }.case()?);
    cases.push(
        MoeLinear { experts: 4, top_k: 4, cols: 160, rows: 65, steps: &[(64, 64), (1, 1)], ..mxfp4 }
            .case()?,
    );
    cases.push(MoeLinear { experts: 3, top_k: 1, cols: 32, rows: 257, steps: &[(40, 33)], ..mxfp4 }.case()?);
    let q8_0 = MoeLinear::of(DType::Q8_0);
    cases.push(
        MoeLinear { experts: 8, top_k: 2, cols: 96, rows: 1, steps: &[(130, 129), (2, 2)], ..q8_0 }.case()?,
    );
    for (experts, top_k) in [(1, 1), (8, 2), (32, 4), (33, 8), (128, 4), (300, 1)] {
        cases.push(router(experts, top_k)?);
    }
    cases.push(router_ties()?);
    for (width, top_k) in [(1, 1), (17, 2), (256, 4), (257, 8)] {
        cases.push(moe_combine(width, top_k)?);
    }
    Ok(())
}

const SOFTMAX: &str = "an f32 exponential and one division";

fn router(experts: usize, top_k: usize) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("router(experts={experts},top_k={top_k})"));
    let logits = recipe.activations("logits", 19, experts, Data::Normal);
    for step in [(1, 1), (20, 17)] {
        recipe.token_step(step, 19, |builder| {
            let logits = builder.embed("logits", logits)?;
            let (ids, weights) = builder.router("router", logits, top_k)?;
            Ok(vec![ids, weights])
        })?;
    }
    Ok(recipe.finish(1e-11, SOFTMAX))
}

/// Few distinct logits, zeros of both signs, all equal, very far apart.
fn router_ties() -> Result<Case, BackendError> {
    let mut recipe = Recipe::new("router(experts=40,top_k=6,ties)".into());
    let few = [-1.0, 0.0, -0.0, 2.0, 2.0, 1e4];
    let mut values: Vec<f32> = (0..40 * 12).map(|_| few[recipe.rng.below(few.len() - 1)]).collect();
    values[..40].fill(-3.5);
    values[45] = 1e4;
    values[83] = -1e30;
    let logits = recipe.values(WeightSpec::matrix("logits", DType::F32, 12, 40), values);
    recipe.token_step((12, 12), 12, |builder| {
        let logits = builder.embed("logits", logits)?;
        let (ids, weights) = builder.router("router", logits, 6)?;
        Ok(vec![ids, weights])
    })?;
    Ok(recipe.finish(1e-11, SOFTMAX))
}

fn moe_combine(width: usize, top_k: usize) -> Result<Case, BackendError> {
    let mut recipe = Recipe::new(format!("moe_combine(n={width},top_k={top_k})"));
    let x = recipe.activations("x", 9, top_k * width, Data::Normal);
    let logits = recipe.activations("logits", 9, top_k + 3, Data::Normal);
    recipe.token_step((8, 7), 9, |builder| {
        let x = builder.embed("x", x)?;
        let logits = builder.embed("logits", logits)?;
        let (_, weights) = builder.router("router", logits, top_k)?;
        Ok(vec![builder.moe_combine("sum", x, weights)?])
    })?;
    Ok(recipe.finish(1e-11, "f32 sums of at most eight products, weights from an f32 softmax"))
}
