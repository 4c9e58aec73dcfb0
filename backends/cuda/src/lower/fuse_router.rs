//! Fusing of the norm before a router, its product and the choice of experts: three launches of hardly any work; in larger
//! steps of product and choice.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Op, RowSet};

use super::linear::ActivationArgs;
use super::{Lowering, Rule, output};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::WeightArgs;

/// Threads per CTA.
const THREADS: u32 = 256;
/// Widest row (`MAX_QUADS`).
const MAX_WIDTH: u32 = 4096;
/// Most experts (`MAX_EXPERTS`).
const MAX_EXPERTS: u32 = 256;
/// Most tokens: the matrix is read once for each.
const MAX_TOKENS: u32 = 16;

/// A shape of `router_product`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProductShape {
    kernel: &'static str,
    /// Row tiles of a CTA.
    row_tiles: u32,
    /// Tokens of a CTA.
    tokens: u32,
    /// Batches of x on their way, in all warps.
    shared_bytes: u32,
}

/// For steps whose CTAs are on the device at once.
const FEW: ProductShape =
    ProductShape { kernel: "router_product4_f32", row_tiles: 1, tokens: 4, shared_bytes: 48 << 10 };
const MANY: ProductShape =
    ProductShape { kernel: "router_product16_f32", row_tiles: 4, tokens: 16, shared_bytes: 96 << 10 };

impl ProductShape {
    fn for_step(row_tiles: u32, tokens: u32, multiprocessors: u32) -> Self {
        let [x, y] = FEW.grid(row_tiles, tokens);
        if x * y <= multiprocessors { FEW } else { MANY }
    }

    const fn grid(self, row_tiles: u32, tokens: u32) -> [u32; 2] {
        [row_tiles.div_ceil(self.row_tiles), tokens.div_ceil(self.tokens)]
    }
}

/// `struct RouterNormArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RouterNormArgs {
    x: DevicePtr,
    norm: DevicePtr,
    normed: DevicePtr,
    activations: ActivationArgs,
    weight: WeightArgs,
    bias: DevicePtr,
    logits: DevicePtr,
    ids: DevicePtr,
    weights: DevicePtr,
    rows: DevicePtr,
    arrivals: DevicePtr,
    width: u32,
    experts: u32,
    top_k: u32,
    eps: f32,
}

/// `struct RouterProductArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RouterProductArgs {
    x: DevicePtr,
    weight: WeightArgs,
    bias: DevicePtr,
    logits: DevicePtr,
    ids: DevicePtr,
    weights: DevicePtr,
    rows: DevicePtr,
    arrivals: DevicePtr,
    experts: u32,
    top_k: u32,
}

/// A norm, an F32 product of it and a choice by that, for few tokens; the same bits as apart.
pub(super) const NORM_AND_CHOOSE: Rule = Rule { name: "router.norm", apply: norm_and_choose };

fn norm_and_choose(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([norm, product, router]) = program.nodes().get(index..index + 3) else { return Ok(0) };
    let (
        &Op::RmsNorm { x, weight: norm_weight, eps },
        &Op::Linear { x: normed, weight, bias },
        &Op::Router { logits, top_k },
    ) = (&norm.op, &product.op, &router.op)
    else {
        return Ok(0);
    };
    let &[ids, weights] = router.outputs.as_slice() else { return Ok(0) };
    let matrix = lowering.weight(product, weight)?;
    let width = lowering.width(x);
    let experts = lowering.width(logits);
    let tokens = lowering.max_rows(RowSet::Tokens);
    let chained = normed == output(norm)? && logits == output(product)?;
    let fits =
        width.is_multiple_of(32) && width <= MAX_WIDTH && experts <= MAX_EXPERTS && tokens <= MAX_TOKENS;
    let rows = lowering.rows(x);
    // What is read throughout must not make room for what is written.
    let fits = fits && lowering.is_read_from(x, index + 3);
    if !chained
        || !fits
        || matrix.spec.dtype != DType::F32
        || rows != RowSet::Tokens
        || top_k as u32 > experts
    {
        return Ok(0);
    }
    // The product is one reader as floats; whether there are more decides if the floats are written.
    let readers = lowering.readers_but(normed, index + 1);
    let activations = if readers.codes { lowering.make_codes(normed) } else { ActivationArgs::NONE };
    let args = RouterNormArgs {
        x: lowering.value(x),
        norm: lowering.vector(norm, Some(norm_weight))?,
        normed: if readers.floats { lowering.value(normed) } else { DevicePtr::NULL },
        activations,
        weight: matrix.layout.args(matrix.address),
        bias: lowering.vector(product, bias)?,
        logits: lowering.value(logits),
        ids: lowering.value(ids),
        weights: lowering.value(weights),
        rows: lowering.row_count(RowSet::Tokens),
        arrivals: lowering.counters(router, 1)?,
        width,
        experts,
        top_k: top_k as u32,
        eps,
    };
    lowering.writes(ids);
    let label = format!("{}+{}+{}", norm.label, product.label, router.label);
    lowering.launch(Launch::grid(&label, "router_norm_f32", [experts, tokens, 1], [THREADS, 1, 1], 0, &args));
    Ok(3)
}

/// An F32 product and a choice by it, for more than one token; the same bits as apart.
pub(super) const PRODUCT_AND_CHOOSE: Rule = Rule { name: "router.product", apply: product_and_choose };

fn product_and_choose(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([product, router]) = program.nodes().get(index..index + 2) else { return Ok(0) };
    let (&Op::Linear { x, weight, bias }, &Op::Router { logits, top_k }) = (&product.op, &router.op) else {
        return Ok(0);
    };
    let &[ids, weights] = router.outputs.as_slice() else { return Ok(0) };
    let matrix = lowering.weight(product, weight)?;
    let experts = lowering.width(logits);
    let tokens = lowering.max_rows(RowSet::Tokens);
    let chained = logits == output(product)? && lowering.rows(x) == RowSet::Tokens;
    let fits = lowering.width(x).is_multiple_of(4)
        && experts <= MAX_EXPERTS
        && top_k as u32 <= experts
        && tokens > 1
        && matrix.spec.dtype == DType::F32;
    // What is read throughout must not make room for what is written.
    if !chained || !fits || !lowering.is_read_from(x, index + 2) {
        return Ok(0);
    }
    let weight = matrix.layout.args(matrix.address);
    let shape = ProductShape::for_step(weight.row_tiles, tokens, lowering.traits().multiprocessors);
    let [tiles, groups] = shape.grid(weight.row_tiles, tokens);
    let args = RouterProductArgs {
        x: lowering.value(x),
        weight,
        bias: lowering.vector(product, bias)?,
        logits: lowering.value(logits),
        ids: lowering.value(ids),
        weights: lowering.value(weights),
        rows: lowering.row_count(RowSet::Tokens),
        arrivals: lowering.counters(router, groups as usize)?,
        experts,
        top_k: top_k as u32,
    };
    lowering.writes(ids);
    let label = format!("{}+{}", product.label, router.label);
    let (grid, block) = ([tiles, groups, 1], [THREADS, 1, 1]);
    lowering.launch(Launch::grid(&label, shape.kernel, grid, block, shape.shared_bytes, &args));
    Ok(2)
}

/// The units they need.
pub(super) fn units() -> Vec<Unit> {
    let product = |shape: ProductShape| {
        Kernel::of::<RouterProductArgs>(shape.kernel, THREADS).with_shared(shape.shared_bytes)
    };
    vec![
        Unit::new(
            "router_norm",
            "router_norm.cu",
            include_str!("../../../../cuda/router_norm.cu"),
            vec![Kernel::of::<RouterNormArgs>("router_norm_f32", THREADS)],
        ),
        Unit::new(
            "router_product",
            "router_product.cu",
            include_str!("../../../../cuda/router_product.cu"),
            vec![product(FEW), product(MANY)],
        ),
    ]
}
