//! Fusing rules for steps of one token, where each weight is read once and little else happens: norms move into the
//! prologue of the products that read them, gated activations, weighted sums and residuals into their epilogues.
//!
//! A fused kernel reads its operands for as long as it runs, while others of its CTAs already write results. That is why
//! the activations of such steps never share memory (`activation_plan`). Every rule keeps the bits of the nodes it takes.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Node, Op, RowSet, SwiGluKind, ValueId, WeightId};

use super::linear::{ActivationArgs, format_unit_of, kernel_name};
use super::{DeviceWeight, Lowering, Rule, output};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::{TILE_COLUMNS, WeightArgs, is_plain, plane_bytes};

/// Threads per CTA (`SINGLE_THREADS`), eight warps of one slice each.
pub(super) const SINGLE_THREADS: u32 = 256;
/// Slices, each with a ring of weights (`SLICES`).
const SLICES: usize = 8;
/// Most bytes of one ring (`Chunk::DEPTH`).
const RING_LIMIT: usize = 7700;
/// CTAs that share a multiprocessor, beside which those of the next kernel still fit.
const RESIDENT: u32 = 2;
/// CTAs that share a multiprocessor when that spares any of them a second tile.
const MOST_RESIDENT: u32 = 3;
/// Formats that one layer's products on one input have in files people use: one launch takes both.
const PAIRS: [[DType; 2]; 2] = [[DType::Q5_0, DType::Q8_0], [DType::Q4_K, DType::Q6_K]];
/// Products of one launch (`MAX_PRODUCTS`).
const MAX_PRODUCTS: usize = 3;
/// Bytes of activation records per 32 elements.
const RECORD_BYTES: u32 = 80;
/// `RECORDS_GAP`.
const RECORDS_GAP: u32 = 192;
/// Most dynamic shared memory these kernels ask for; every device has it beside their static part.
pub(super) const MAX_SHARED_BYTES: u32 = 94 << 10;

/// `struct SingleProduct`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct ProductArgs {
    weight: WeightArgs,
    bias: DevicePtr,
    y: DevicePtr,
    outputs: u32,
    end_tile: u32,
}

/// `struct SingleInput`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct InputArgs {
    records: ActivationArgs,
    x: DevicePtr,
    norm: DevicePtr,
}

/// `struct LinearSingleArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearSingleArgs {
    products: [ProductArgs; MAX_PRODUCTS],
    x: InputArgs,
    residual: DevicePtr,
    normed: DevicePtr,
    columns: DevicePtr,
    eps: f32,
    tiles: u32,
}

/// `struct LinearGatedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearGatedArgs {
    gate: WeightArgs,
    up: WeightArgs,
    x: InputArgs,
    gate_bias: DevicePtr,
    up_bias: DevicePtr,
    y: DevicePtr,
    records: ActivationArgs,
    columns: DevicePtr,
    outputs: u32,
    kind: u32,
    alpha: f32,
    limit: f32,
    eps: f32,
    reserved: u32,
}

/// `struct LinearPlainNormedArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct LinearPlainNormedArgs {
    weight: WeightArgs,
    x: DevicePtr,
    norm: DevicePtr,
    bias: DevicePtr,
    normed: DevicePtr,
    y: DevicePtr,
    columns: DevicePtr,
    outputs: u32,
    eps: f32,
}

/// `[norm,] gate, up, swiglu` in one launch.
pub(super) const GATED: Rule = Rule { name: "single.gated", apply: gated };
/// `[norm,] products…` or `product, add`, one launch per format or pair of formats.
pub(super) const PRODUCTS: Rule = Rule { name: "single.products", apply: products };
/// `norm, product` over plain floats in one launch: routers.
pub(super) const PLAIN_NORMED: Rule = Rule { name: "single.plain_normed", apply: plain_normed };
/// A product node over a quantised weight.
struct Product<'a> {
    node: &'a Node,
    x: ValueId,
    weight: &'a DeviceWeight,
    bias: Option<WeightId>,
    y: ValueId,
}

/// Where the activations of products come from: a value, or the norm of one.
#[derive(Clone, Copy)]
struct Source {
    x: ValueId,
    /// Weight, eps, and the norm's own value.
    norm: Option<(WeightId, f32, ValueId)>,
}

impl Source {
    /// What the product nodes read.
    fn read(self) -> ValueId {
        self.norm.map_or(self.x, |(_, _, normed)| normed)
    }
}

/// The node at `index` as a quantised product of one row that fits the kernels.
fn product<'a>(lowering: &Lowering<'a>, index: usize) -> Result<Option<Product<'a>>, BackendError> {
    let Some(node) = lowering.program().nodes().get(index) else { return Ok(None) };
    let Op::Linear { x, weight, bias } = node.op else { return Ok(None) };
    let weight = lowering.weight(node, weight)?;
    let fits = is_single(lowering, lowering.rows(x)) && takes(lowering, weight);
    Ok(fits.then_some(Product { node, x, weight, bias, y: output(node)? }))
}

/// Whether the step has one token and the set one row.
pub(super) fn is_single(lowering: &Lowering<'_>, rows: RowSet) -> bool {
    lowering.program().shape().tokens == 1 && lowering.max_rows(rows) == 1
}

/// Whether a weight is quantised and a row of its activations fits shared memory.
pub(super) fn takes(lowering: &Lowering<'_>, weight: &DeviceWeight) -> bool {
    let limit = MAX_SHARED_BYTES.min(lowering.traits().max_shared_bytes);
    !is_plain(weight.spec.dtype) && shared_bytes(weight.spec.dtype, weight.layout.blocks()) <= limit
}

/// Dynamic shared memory for `records` activation records and the rings of weights.
pub(super) fn shared_bytes(dtype: DType, records: u32) -> u32 {
    records.saturating_mul(RECORD_BYTES).saturating_add(RECORDS_GAP + ring_bytes(dtype))
}

/// Bytes of all rings of a CTA: `Chunk::RING` of each slice.
pub(super) fn ring_bytes(dtype: DType) -> u32 {
    let chunk = chunk_bytes(dtype);
    (SLICES * (RING_LIMIT / chunk) * chunk) as u32
}

/// Bytes of the blocks that are copied at a time, `Chunk::BYTES`.
pub(super) const fn chunk_bytes(dtype: DType) -> usize {
    let per = plane_bytes(dtype);
    let blocks = if matches!(dtype, DType::Q8_0) { 2 } else { 4 };
    let units = if dtype.block_elements() > TILE_COLUMNS { 1 } else { blocks };
    blocks * (per.codes + per.high) + units * (per.scales + per.supers)
}

/// The norm at `index`, if it is one of one row; products then start at the next node.
fn source(lowering: &Lowering<'_>, index: usize) -> Result<Option<(Source, usize)>, BackendError> {
    let nodes = lowering.program().nodes();
    match nodes.get(index).map(|node| &node.op) {
        Some(&Op::RmsNorm { x, weight, eps }) => {
            let normed = nodes.get(index).map(output).transpose()?;
            Ok(normed.map(|normed| (Source { x, norm: Some((weight, eps, normed)) }, index + 1)))
        }
        Some(&Op::Linear { x, .. }) => Ok(Some((Source { x, norm: None }, index))),
        _ => Ok(None),
    }
}

/// The source and the eps of its norm as arguments: records where a launch before has made them.
fn input_args(
    lowering: &Lowering<'_>,
    node: &Node,
    source: Source,
) -> Result<(InputArgs, f32), BackendError> {
    let x = lowering.value(source.x);
    match source.norm {
        Some((weight, eps, _)) => {
            let norm = lowering.vector(node, Some(weight))?;
            Ok((InputArgs { records: ActivationArgs::NONE, x, norm }, eps))
        }
        None => Ok((floats_or_records(lowering, source.x), 0.0)),
    }
}

/// A value that is multiplied as it is.
pub(super) fn floats_or_records(lowering: &Lowering<'_>, x: ValueId) -> InputArgs {
    let records = lowering.codes(x).unwrap_or(ActivationArgs::NONE);
    InputArgs { records, x: lowering.value(x), norm: DevicePtr::NULL }
}

/// Where the result `y` of whole row tiles goes: floats and records, each as somebody reads it.
pub(super) fn result_args(
    lowering: &mut Lowering<'_>,
    y: ValueId,
    outputs: usize,
) -> (DevicePtr, ActivationArgs) {
    let readers = lowering.readers(y);
    if !readers.codes || !outputs.is_multiple_of(32) {
        return (lowering.value(y), ActivationArgs::NONE);
    }
    let records = lowering.make_codes(y);
    (if readers.floats { lowering.value(y) } else { DevicePtr::NULL }, records)
}

/// Whether every reader of `value` is among the `taken` nodes from `begin` on, and the step does not hand it out.
fn is_internal(lowering: &Lowering<'_>, value: ValueId, begin: usize, taken: usize) -> bool {
    let program = lowering.program();
    let outside = |(index, node): (usize, &Node)| {
        !(begin..begin + taken).contains(&index) && node.op.reads().contains(&value)
    };
    !program.outputs().contains(&value) && !program.nodes().iter().enumerate().any(outside)
}

/// CTAs of a launch over `tiles` tiles: one each, or as many as stay resident.
fn ctas(lowering: &Lowering<'_>, tiles: u32) -> u32 {
    let multiprocessors = lowering.traits().multiprocessors;
    if tiles <= multiprocessors.saturating_mul(MOST_RESIDENT) {
        return tiles.max(1);
    }
    multiprocessors * RESIDENT
}

/// The pair of formats that all of `products` have between them, when one launch takes them with a CTA for each tile.
fn pair_of(lowering: &Lowering<'_>, products: &[Product<'_>]) -> Option<[DType; 2]> {
    let tiles: u32 = products.iter().map(|product| product.weight.layout.row_tiles()).sum();
    if products.len() > MAX_PRODUCTS || ctas(lowering, tiles) != tiles {
        return None;
    }
    let has = |format: DType| products.iter().any(|product| product.weight.spec.dtype == format);
    PAIRS.into_iter().find(|pair| {
        pair.iter().all(|format| has(*format))
            && products.iter().all(|product| pair.contains(&product.weight.spec.dtype))
    })
}

/// Name of the kernel for a pair of formats.
fn pair_name([first, second]: [DType; 2]) -> String {
    format!("{}_{}", kernel_name("linear", "single", first), second.name().to_ascii_lowercase())
}

pub(super) fn labels(nodes: &[Node]) -> String {
    nodes.iter().map(|node| node.label.as_str()).collect::<Vec<_>>().join("+")
}

fn products(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some((source, begin)) = source(lowering, index)? else { return Ok(0) };
    let mut taken = vec![];
    while let Some(next) = product(lowering, begin + taken.len())? {
        if next.x != source.read() {
            break;
        }
        taken.push(next);
    }
    if taken.is_empty() {
        return Ok(0);
    }
    if let ([only], Some(next)) = (taken.as_slice(), lowering.program().nodes().get(begin + 1))
        && let Some(residual) = residual_of(lowering, only.y, next)
    {
        let label = labels(lowering.program().nodes().get(index..begin + 2).unwrap_or_default());
        let y = output(next)?;
        emit(
            lowering,
            &label,
            source,
            &[only],
            Emitted { residual: Some((residual, y)), ..Emitted::default() },
        )?;
        return Ok(begin + 2 - index);
    }
    let mut wants_normed =
        source.norm.is_some() && !is_internal(lowering, source.read(), index, begin - index + taken.len());
    if let Some(pair) = pair_of(lowering, &taken) {
        let all: Vec<&Product<'_>> = taken.iter().collect();
        let label = products_label(&all);
        emit(lowering, &label, source, &all, Emitted { wants_normed, pair: Some(pair), residual: None })?;
        return Ok(begin + taken.len() - index);
    }
    let mut formats: Vec<DType> = vec![];
    for product in &taken {
        if !formats.contains(&product.weight.spec.dtype) {
            formats.push(product.weight.spec.dtype);
        }
    }
    for format in formats {
        let same: Vec<&Product<'_>> =
            taken.iter().filter(|product| product.weight.spec.dtype == format).collect();
        for some in same.chunks(MAX_PRODUCTS) {
            emit(
                lowering,
                &products_label(some),
                source,
                some,
                Emitted { wants_normed, ..Emitted::default() },
            )?;
            wants_normed = false;
        }
    }
    Ok(begin + taken.len() - index)
}

/// What an `Add` node adds to `product`, when nothing else reads that.
pub(super) fn residual_of(lowering: &Lowering<'_>, product: ValueId, next: &Node) -> Option<ValueId> {
    let Op::Add { a, b } = next.op else { return None };
    let other = match (a == product, b == product) {
        (true, false) => b,
        (false, true) => a,
        _ => return None,
    };
    lowering.is_private(product).then_some(other)
}

fn products_label(products: &[&Product<'_>]) -> String {
    products.iter().map(|product| product.node.label.as_str()).collect::<Vec<_>>().join("+")
}

/// What a launch of products does besides.
#[derive(Clone, Copy, Default)]
struct Emitted {
    /// A value added to the only product, and where the sum goes.
    residual: Option<(ValueId, ValueId)>,
    /// Whether it leaves the normalised row.
    wants_normed: bool,
    /// The formats, when there are two.
    pair: Option<[DType; 2]>,
}

fn emit(
    lowering: &mut Lowering<'_>,
    label: &str,
    source: Source,
    products: &[&Product<'_>],
    Emitted { residual, wants_normed, pair }: Emitted,
) -> Result<(), BackendError> {
    let Some(first) = products.first() else { return Ok(()) };
    let mut args = LinearSingleArgs::zeroed();
    (args.x, args.eps) = input_args(lowering, first.node, source)?;
    for (slot, index) in args.products.iter_mut().zip(0..MAX_PRODUCTS) {
        // Unused slots end where the last product does.
        let Some(product) = products.get(index) else {
            slot.end_tile = args.tiles;
            continue;
        };
        args.tiles += product.weight.layout.row_tiles();
        *slot = ProductArgs {
            weight: product.weight.layout.args(product.weight.address),
            bias: lowering.vector(product.node, product.bias)?,
            y: lowering.value(residual.map_or(product.y, |(_, sum)| sum)),
            outputs: product.weight.spec.rows as u32,
            end_tile: args.tiles,
        };
    }
    args.residual = residual.map_or(DevicePtr::NULL, |(other, _)| lowering.value(other));
    args.normed = if wants_normed { lowering.value(source.read()) } else { DevicePtr::NULL };
    args.columns = lowering.row_count(lowering.rows(first.x));
    let grid = [ctas(lowering, args.tiles), 1, 1];
    let format = first.weight.spec.dtype;
    let shared = pair
        .unwrap_or([format; 2])
        .map(|format| shared_bytes(format, first.weight.layout.blocks()))
        .into_iter()
        .fold(0, u32::max);
    let kernel = pair.map_or_else(|| kernel_name("linear", "single", format), pair_name);
    lowering.launch(Launch::grid(label, kernel, grid, [SINGLE_THREADS, 1, 1], shared, &args));
    Ok(())
}

/// Kind, alpha and limit as `swiglu` takes them.
pub(super) const fn gate_args(kind: SwiGluKind) -> (u32, f32, f32) {
    match kind {
        SwiGluKind::Silu => (0, 0.0, 0.0),
        SwiGluKind::Clamped { alpha, limit } => (1, alpha, limit),
    }
}

/// The activation at `index` when it gates exactly these two values, which nothing else reads.
pub(super) fn gate_of(
    lowering: &Lowering<'_>,
    index: usize,
    (gate, up): (ValueId, ValueId),
) -> Result<Option<(SwiGluKind, ValueId)>, BackendError> {
    let Some(node) = lowering.program().nodes().get(index) else { return Ok(None) };
    match node.op {
        Op::SwiGlu { gate: a, up: b, kind }
            if (a, b) == (gate, up) && gate != up && lowering.is_private(gate) && lowering.is_private(up) =>
        {
            Ok(Some((kind, output(node)?)))
        }
        _ => Ok(None),
    }
}

fn gated(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some((source, begin)) = source(lowering, index)? else { return Ok(0) };
    let (Some(gate), Some(up)) = (product(lowering, begin)?, product(lowering, begin + 1)?) else {
        return Ok(0);
    };
    let same = (gate.weight.spec.dtype, gate.weight.spec.rows) == (up.weight.spec.dtype, up.weight.spec.rows);
    let Some((kind, y)) = gate_of(lowering, begin + 2, (gate.y, up.y))? else { return Ok(0) };
    let taken = begin + 3 - index;
    let reads = gate.x == source.read() && up.x == source.read();
    if !same || !reads || (source.norm.is_some() && !is_internal(lowering, source.read(), index, taken)) {
        return Ok(0);
    }
    let (x, eps) = input_args(lowering, gate.node, source)?;
    let (kind, alpha, limit) = gate_args(kind);
    let (y, records) = result_args(lowering, y, gate.weight.spec.rows);
    let args = LinearGatedArgs {
        gate: gate.weight.layout.args(gate.weight.address),
        up: up.weight.layout.args(up.weight.address),
        x,
        gate_bias: lowering.vector(gate.node, gate.bias)?,
        up_bias: lowering.vector(up.node, up.bias)?,
        y,
        records,
        columns: lowering.row_count(lowering.rows(gate.x)),
        outputs: gate.weight.spec.rows as u32,
        kind,
        alpha,
        limit,
        eps,
        reserved: 0,
    };
    let label = labels(lowering.program().nodes().get(index..index + taken).unwrap_or_default());
    let grid = [ctas(lowering, args.gate.row_tiles), 1, 1];
    let kernel = kernel_name("linear", "gated", gate.weight.spec.dtype);
    let shared = shared_bytes(gate.weight.spec.dtype, args.gate.blocks);
    lowering.launch(Launch::grid(&label, kernel, grid, [SINGLE_THREADS, 1, 1], shared, &args));
    Ok(taken)
}

fn plain_normed(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let Some((source, begin)) = source(lowering, index)? else { return Ok(0) };
    let (Some((norm, eps, normed)), Some(node)) = (source.norm, lowering.program().nodes().get(begin)) else {
        return Ok(0);
    };
    let Op::Linear { x, weight, bias } = node.op else { return Ok(0) };
    let weight = lowering.weight(node, weight)?;
    let shared = weight.spec.cols.saturating_mul(size_of::<f32>());
    let limit = MAX_SHARED_BYTES.min(lowering.traits().max_shared_bytes);
    let fits =
        is_plain(weight.spec.dtype) && is_single(lowering, lowering.rows(x)) && shared <= limit as usize;
    if x != normed || !fits {
        return Ok(0);
    }
    let internal = is_internal(lowering, normed, index, 2);
    let args = LinearPlainNormedArgs {
        weight: weight.layout.args(weight.address),
        x: lowering.value(source.x),
        norm: lowering.vector(node, Some(norm))?,
        bias: lowering.vector(node, bias)?,
        normed: if internal { DevicePtr::NULL } else { lowering.value(normed) },
        y: lowering.value(output(node)?),
        columns: lowering.row_count(lowering.rows(x)),
        outputs: weight.spec.rows as u32,
        eps,
    };
    let label = labels(lowering.program().nodes().get(index..index + 2).unwrap_or_default());
    let kernel = kernel_name("linear", "plain_normed", weight.spec.dtype);
    let grid = [args.weight.row_tiles, 1, 1];
    lowering.launch(Launch::grid(&label, kernel, grid, [SINGLE_THREADS, 1, 1], shared as u32, &args));
    Ok(2)
}

/// The units these rules need.
pub(super) fn units() -> Vec<Unit> {
    let of = |dtype: DType| {
        format_unit_of(
            "linear_single",
            "linear_single.cu",
            include_str!("../../../../cuda/linear_single.cu"),
            dtype,
            &[
                ("LINEAR_SINGLE", kernel::<LinearSingleArgs>("linear", "single", dtype, SINGLE_THREADS)),
                ("LINEAR_GATED", kernel::<LinearGatedArgs>("linear", "gated", dtype, SINGLE_THREADS)),
            ],
        )
        .define("RING_BYTES", ring_bytes(dtype))
    };
    let pair = |[first, second]: [DType; 2]| {
        let kernel = Kernel::of::<LinearSingleArgs>(pair_name([first, second]), SINGLE_THREADS)
            .with_shared(MAX_SHARED_BYTES);
        format_unit_of(
            &format!("linear_single_{}", second.name().to_ascii_lowercase()),
            "linear_single.cu",
            include_str!("../../../../cuda/linear_single.cu"),
            first,
            &[("LINEAR_PAIR", kernel)],
        )
        .define("RING_BYTES", ring_bytes(first))
        .define("SECOND_FORMAT", second.gguf_id())
        .define("SECOND_RING_BYTES", ring_bytes(second))
    };
    let formats = DType::ALL.into_iter().filter(|dtype| !is_plain(*dtype)).map(of);
    formats.chain(PAIRS.into_iter().map(pair)).collect()
}

pub(super) fn kernel<A>(op: &str, shape: &str, dtype: DType, threads: u32) -> Kernel {
    Kernel::of::<A>(kernel_name(op, shape, dtype), threads).with_shared(MAX_SHARED_BYTES)
}

#[cfg(test)]
mod tests;
