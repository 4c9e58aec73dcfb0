//! Fusing of the norm before a router, its product and the choice of experts: three launches of hardly any work. In steps of
//! more tokens than fill the device, only of product and choice.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Node, Op, RowSet, ValueId, WeightId};

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
/// Most tokens of `router_norm`: the matrix is read once for each.
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
/// `FEW` behind a norm, whose whole rows lie in shared memory.
const NORMED_KERNEL: &str = "router_normed4_f32";

/// Shared memory of `NORMED_KERNEL`: rows, padded slices, logits.
const fn normed_shared_bytes(width: u32) -> u32 {
    FEW.tokens * width * 4 + 32 * (FEW.tokens * 8 + 8) * 4 + FEW.tokens * MAX_EXPERTS * 4
}

impl ProductShape {
    fn for_step(row_tiles: u32, tokens: u32, multiprocessors: u32) -> Self {
        let [x, y] = FEW.grid(row_tiles, tokens);
        if x * y <= multiprocessors { FEW } else { MANY }
    }

    const fn grid(self, row_tiles: u32, tokens: u32) -> [u32; 2] {
        [row_tiles.div_ceil(self.row_tiles), tokens.div_ceil(self.tokens)]
    }
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

/// `struct RouterNormArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RouterNormArgs {
    product: RouterProductArgs,
    norm: DevicePtr,
    normed: DevicePtr,
    activations: ActivationArgs,
    eps: f32,
    record_use: u32,
}

/// A router's product and its choice.
struct Choice<'a> {
    product: &'a Node,
    router: &'a Node,
    x: ValueId,
    matrix: WeightArgs,
    bias: Option<WeightId>,
    logits: ValueId,
    ids: ValueId,
    weights: ValueId,
    top_k: u32,
}

impl<'a> Choice<'a> {
    /// The nodes at `index` and behind it, if they are an F32 product and a choice that the kernels take.
    fn at(lowering: &Lowering<'a>, index: usize) -> Result<Option<Self>, BackendError> {
        let program = lowering.program();
        let Some([product, router]) = program.nodes().get(index..index + 2) else { return Ok(None) };
        let (&Op::Linear { x, weight, bias }, &Op::Router { logits, top_k }) = (&product.op, &router.op)
        else {
            return Ok(None);
        };
        let &[ids, weights] = router.outputs.as_slice() else { return Ok(None) };
        let weight = lowering.weight(product, weight)?;
        let (experts, top_k) = (lowering.width(logits), top_k as u32);
        let fits = logits == output(product)?
            && lowering.rows(x) == RowSet::Tokens
            && weight.spec.dtype == DType::F32
            && experts <= MAX_EXPERTS
            && top_k <= experts;
        let matrix = weight.layout.args(weight.address);
        Ok(fits.then_some(Self { product, router, x, matrix, bias, logits, ids, weights, top_k }))
    }

    /// Arguments of a launch that multiplies `x` and counts arrivals of so many groups of tokens.
    fn args(
        &self,
        lowering: &Lowering<'_>,
        x: ValueId,
        groups: u32,
    ) -> Result<RouterProductArgs, BackendError> {
        Ok(RouterProductArgs {
            x: lowering.value(x),
            weight: self.matrix,
            bias: lowering.vector(self.product, self.bias)?,
            logits: lowering.value(self.logits),
            ids: lowering.value(self.ids),
            weights: lowering.value(self.weights),
            rows: lowering.row_count(RowSet::Tokens),
            arrivals: lowering.counters(self.router, groups as usize)?,
            experts: lowering.width(self.logits),
            top_k: self.top_k,
        })
    }

    /// How a step of so many tokens multiplies.
    fn shape(&self, lowering: &Lowering<'_>, tokens: u32) -> ProductShape {
        ProductShape::for_step(self.matrix.row_tiles, tokens, lowering.traits().multiprocessors)
    }
}

/// A norm, an F32 product of it and a choice by that, for tokens whose CTAs are on the device at once; the same bits as apart.
pub(super) const NORM_AND_CHOOSE: Rule = Rule { name: "router.norm", apply: norm_and_choose };

fn norm_and_choose(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some(norm) = lowering.program().nodes().get(index) else { return Ok(0) };
    let Op::RmsNorm { x, weight, eps } = norm.op else { return Ok(0) };
    let Some(choice) = Choice::at(lowering, index + 1)? else { return Ok(0) };
    let normed = output(norm)?;
    let width = lowering.width(x);
    let tokens = lowering.max_rows(RowSet::Tokens);
    let single = tokens <= MAX_TOKENS;
    let fits = choice.x == normed
        && width.is_multiple_of(32)
        && width <= MAX_WIDTH
        && (single || choice.shape(lowering, tokens) == FEW);
    // What is read throughout must not make room for what is written.
    if !fits || !lowering.is_read_from(x, index + 3) {
        return Ok(0);
    }
    let [tiles, groups] = FEW.grid(choice.matrix.row_tiles, tokens);
    // The product is one reader as floats; whether there are more decides if the floats are written.
    let readers = lowering.readers_but(normed, index + 1);
    let args = RouterNormArgs {
        product: choice.args(lowering, x, if single { 1 } else { groups })?,
        norm: lowering.vector(norm, Some(weight))?,
        normed: if readers.floats { lowering.value(normed) } else { DevicePtr::NULL },
        activations: if readers.codes { lowering.make_codes(normed) } else { ActivationArgs::NONE },
        eps,
        record_use: lowering.record_use(normed),
    };
    lowering.writes(choice.ids);
    let label = format!("{}+{}+{}", norm.label, choice.product.label, choice.router.label);
    let (kernel, grid, shared_bytes) = if single {
        ("router_norm_f32", [args.product.experts, tokens, 1], 0)
    } else {
        (NORMED_KERNEL, [tiles, groups, 1], normed_shared_bytes(width))
    };
    lowering.launch(Launch::grid(&label, kernel, grid, [THREADS, 1, 1], shared_bytes, &args));
    Ok(3)
}

/// An F32 product and a choice by it, for more than one token; the same bits as apart.
pub(super) const PRODUCT_AND_CHOOSE: Rule = Rule { name: "router.product", apply: product_and_choose };

fn product_and_choose(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some(choice) = Choice::at(lowering, index)? else { return Ok(0) };
    let tokens = lowering.max_rows(RowSet::Tokens);
    let fits = tokens > 1 && lowering.width(choice.x).is_multiple_of(4);
    // What is read throughout must not make room for what is written.
    if !fits || !lowering.is_read_from(choice.x, index + 2) {
        return Ok(0);
    }
    let shape = choice.shape(lowering, tokens);
    let [tiles, groups] = shape.grid(choice.matrix.row_tiles, tokens);
    let args = choice.args(lowering, choice.x, groups)?;
    lowering.writes(choice.ids);
    let label = format!("{}+{}", choice.product.label, choice.router.label);
    let (grid, block) = ([tiles, groups, 1], [THREADS, 1, 1]);
    lowering.launch(Launch::grid(&label, shape.kernel, grid, block, shape.shared_bytes, &args));
    Ok(2)
}

/// The units they need.
pub(super) fn units() -> Vec<Unit> {
    let product = |shape: ProductShape| {
        Kernel::of::<RouterProductArgs>(shape.kernel, THREADS).with_shared(shape.shared_bytes)
    };
    let normed = Kernel::of::<RouterNormArgs>(NORMED_KERNEL, THREADS);
    let normed = normed.with_shared(normed_shared_bytes(MAX_WIDTH));
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
            vec![product(FEW), product(MANY), normed],
        ),
    ]
}
