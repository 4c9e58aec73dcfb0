//! Lowering of `linear`: which product kernel takes a node, and the activations it reads.
//!
//! Quantised weights are multiplied with activations in 12-bit block floating point, made by `linear_quantize` once per
//! input (nodes in a row that share their input share it). Plain floats are multiplied with the f32 activations.
//! Whatever kernel is chosen, an output's bits are the same.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Node, Op, RowSet, ValueId, WeightId};

use super::group::{self, LinearGroupPart};
use super::single::{LinearPlainNormedArgs, MAX_SHARED_BYTES};
use super::{DeviceWeight, Lowering, Rule, output, program_error, stream};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::{WeightArgs, is_plain};

/// Threads per CTA of every kernel here.
pub(super) const THREADS: u32 = 256;
/// Columns of one sweep.
pub(super) const SWEEP_COLUMNS: u32 = 64;
/// Row tiles of one sweep.
pub(super) const SWEEP_TILES: u32 = 8;
/// Bytes of codes per 32 activations.
pub(super) const CODE_BYTES: usize = 64;
/// Bytes of sums per 32 activations.
pub(super) const SUM_BYTES: usize = 16;
/// Blocks one CTA of `linear_quantize` makes.
const QUANTIZE_BLOCKS: u32 = 32;

/// `struct Activations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ActivationArgs {
    pub(crate) codes: DevicePtr,
    pub(crate) sums: DevicePtr,
}

impl ActivationArgs {
    /// No records.
    pub(crate) const NONE: Self = Self { codes: DevicePtr::NULL, sums: DevicePtr::NULL };
}

/// `struct LinearQuantizeArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearQuantizeArgs {
    x: DevicePtr,
    codes: DevicePtr,
    sums: DevicePtr,
    rows: DevicePtr,
    blocks: u32,
    rows_per: u32,
    record_use: u32,
    reserved: u32,
}

/// `struct LinearArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearArgs {
    weight: WeightArgs,
    x: ActivationArgs,
    bias: DevicePtr,
    residual: DevicePtr,
    y: DevicePtr,
    columns: DevicePtr,
    outputs: u32,
    reserved: u32,
}

/// `struct LinearPlainArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct LinearPlainArgs {
    weight: WeightArgs,
    x: DevicePtr,
    bias: DevicePtr,
    residual: DevicePtr,
    y: DevicePtr,
    columns: DevicePtr,
    outputs: u32,
    reserved: u32,
}

/// One product to emit.
struct Product<'a> {
    label: &'a str,
    weight: &'a DeviceWeight,
    x: ValueId,
    bias: DevicePtr,
    residual: DevicePtr,
    y: ValueId,
}

impl Product<'_> {
    /// The same for a launch of several.
    fn part(&self, lowering: &Lowering<'_>) -> LinearGroupPart {
        LinearGroupPart {
            weight: self.weight.layout.args(self.weight.address),
            bias: self.bias,
            residual: self.residual,
            y: lowering.value(self.y),
            outputs: self.weight.spec.rows as u32,
            end: 0,
        }
    }
}

/// Neighbouring products of one input quantise it once.
pub(super) const SHARE_INPUT: Rule = Rule { name: "linear.share_input", apply: share_input };

/// A product whose only reader adds it to something adds it itself.
pub(super) const ADD_RESIDUAL: Rule = Rule { name: "linear.add_residual", apply: add_residual };

/// Emits the launches of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    let (x, weight, bias) = operands(node)?;
    let weight = lowering.weight(node, weight)?;
    let activations = quantized_input(lowering, node, weight, x)?;
    let product = Product {
        label: &node.label,
        weight,
        x,
        bias: lowering.vector(node, bias)?,
        residual: DevicePtr::NULL,
        y: output(node)?,
    };
    emit(lowering, node, &product, activations)
}

fn share_input(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let nodes = program.nodes().get(index..).unwrap_or_default();
    let Some(Ok((shared, ..))) = nodes.first().map(operands) else { return Ok(0) };
    let mut taken = 0;
    for node in nodes {
        match operands(node) {
            Ok((x, weight, _)) if x == shared && !is_plain(lowering.weight(node, weight)?.spec.dtype) => {
                taken += 1;
            }
            _ => break,
        }
    }
    if taken < 2 {
        return Ok(0);
    }
    let mut activations = None;
    let mut products = vec![];
    for node in nodes.iter().take(taken) {
        let (x, weight, bias) = operands(node)?;
        let weight = lowering.weight(node, weight)?;
        if activations.is_none() {
            activations = quantized_input(lowering, node, weight, x)?;
        }
        let bias = lowering.vector(node, bias)?;
        let product =
            Product { label: &node.label, weight, x, bias, residual: DevicePtr::NULL, y: output(node)? };
        products.push((node, product));
    }
    let rows = lowering.rows(shared);
    let apart = lowering.codes_of_groups(shared);
    let dtype = |product: &Product<'_>| product.weight.spec.dtype;
    let alike = |left: &(&Node, Product<'_>), right: &(&Node, Product<'_>)| dtype(&left.1) == dtype(&right.1);
    // Those of one format that follow each other in one launch, where there is a kernel for that.
    for run in products.chunk_by(alike).flat_map(|run| run.chunks(group::PARTS)) {
        let launch = activations.zip(run.first()).and_then(|(x, (_, first))| {
            let labels: Vec<&str> = run.iter().map(|(_, product)| product.label).collect();
            let parts: Vec<LinearGroupPart> = run.iter().map(|(_, product)| product.part(lowering)).collect();
            let name = (&*labels.join("+"), dtype(first));
            if apart {
                return Some(group::linear(lowering, name, (x, rows), &parts));
            }
            stream::linear(lowering, name, (x, rows), &parts)
        });
        if let Some(launch) = launch {
            lowering.launch(launch);
            continue;
        }
        for (node, product) in run {
            emit(lowering, node, product, activations)?;
        }
    }
    Ok(taken)
}
fn add_residual(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let Some([node, next]) = program.nodes().get(index..index + 2) else { return Ok(0) };
    let (Ok((x, weight, bias)), Op::Add { a, b }) = (operands(node), &next.op) else { return Ok(0) };
    let product = output(node)?;
    let other = match (*a == product, *b == product) {
        (true, false) => *b,
        (false, true) => *a,
        _ => return Ok(0),
    };
    let weight = lowering.weight(node, weight)?;
    // The sum's memory may be the input's: legal only where the input was copied into codes first.
    if !lowering.is_private(product) || is_plain(weight.spec.dtype) {
        return Ok(0);
    }
    let label = format!("{}+{}", node.label, next.label);
    let activations = quantized_input(lowering, node, weight, x)?;
    let product = Product {
        label: &label,
        weight,
        x,
        bias: lowering.vector(node, bias)?,
        residual: lowering.value(other),
        y: output(next)?,
    };
    emit(lowering, node, &product, activations)?;
    Ok(2)
}

fn operands(node: &Node) -> Result<(ValueId, WeightId, Option<WeightId>), BackendError> {
    match node.op {
        Op::Linear { x, weight, bias } => Ok((x, weight, bias)),
        _ => Err(program_error(node, "is no product".to_owned())),
    }
}

fn quantized_input(
    lowering: &mut Lowering<'_>,
    node: &Node,
    weight: &DeviceWeight,
    x: ValueId,
) -> Result<Option<ActivationArgs>, BackendError> {
    if is_plain(weight.spec.dtype) {
        return Ok(None);
    }
    let rows = lowering.rows(x);
    quantize(lowering, node, x, (rows, 1), weight.layout.blocks()).map(Some)
}

/// The activation records of `x`; emits the launch that makes them unless one has. A live row of `rows` is `rows_per`
/// rows of `blocks` blocks.
pub(super) fn quantize(
    lowering: &mut Lowering<'_>,
    node: &Node,
    x: ValueId,
    (rows, rows_per): (RowSet, u32),
    blocks: u32,
) -> Result<ActivationArgs, BackendError> {
    if let Some(made) = lowering.codes(x) {
        return Ok(made);
    }
    let most = lowering.max_rows(rows) * rows_per;
    if most == 0 || most > 65_535 {
        return Err(program_error(node, format!("{most} activation rows, the kernel takes 1 to 65535")));
    }
    let ActivationArgs { codes, sums } = lowering.make_codes(x);
    let args = LinearQuantizeArgs {
        x: lowering.value(x),
        codes,
        sums,
        rows: lowering.row_count(rows),
        blocks,
        rows_per,
        record_use: lowering.record_use(x),
        reserved: 0,
    };
    let grid = [blocks.div_ceil(QUANTIZE_BLOCKS), most, 1];
    lowering.launch(Launch::grid(&node.label, "linear_quantize_f32", grid, [THREADS, 1, 1], 0, &args));
    Ok(ActivationArgs { codes, sums })
}

fn emit(
    lowering: &mut Lowering<'_>,
    node: &Node,
    product: &Product<'_>,
    activations: Option<ActivationArgs>,
) -> Result<(), BackendError> {
    let rows = lowering.rows(product.x);
    let most = lowering.grid_rows(node, rows)?;
    let weight = product.weight.layout.args(product.weight.address);
    let (bias, residual) = (product.bias, product.residual);
    let (y, columns) = (lowering.value(product.y), lowering.row_count(rows));
    let outputs = product.weight.spec.rows as u32;
    let dtype = product.weight.spec.dtype;
    let launch = if let Some(x) = activations {
        if lowering.codes_of_groups(product.x) {
            group::linear(lowering, (product.label, dtype), (x, rows), &[product.part(lowering)])
        } else if let Some(launch) =
            stream::linear(lowering, (product.label, dtype), (x, rows), &[product.part(lowering)])
        {
            launch
        } else {
            let args = LinearArgs { weight, x, bias, residual, y, columns, outputs, reserved: 0 };
            let (shape, grid) = product_shape(weight.row_tiles, most, lowering.traits().multiprocessors);
            Launch::grid(product.label, kernel_name("linear", shape, dtype), grid, [THREADS, 1, 1], 0, &args)
        }
    } else {
        let x = lowering.value(product.x);
        let args = LinearPlainArgs { weight, x, bias, residual, y, columns, outputs, reserved: 0 };
        let (shape, tiles, per) = match most {
            1 => ("plain1", 1, 1),
            2..=64 => ("plain8", 1, 8),
            _ => ("plain_wide", 4, 8),
        };
        let grid = [weight.row_tiles.div_ceil(tiles), most.div_ceil(per), 1];
        Launch::grid(product.label, kernel_name("linear", shape, dtype), grid, [THREADS, 1, 1], 0, &args)
    };
    lowering.launch(launch);
    Ok(())
}

/// Kernel shape and grid for `row_tiles` tiles and `most` columns. Sweeps move the fewest bytes per operation, but only
/// pay once they fill the device.
pub(super) fn product_shape(row_tiles: u32, most: u32, multiprocessors: u32) -> (&'static str, [u32; 3]) {
    let sweep = [row_tiles.div_ceil(SWEEP_TILES), most.div_ceil(SWEEP_COLUMNS), 1];
    if most > SWEEP_COLUMNS && sweep[0] * sweep[1] >= multiprocessors {
        return ("sweep", sweep);
    }
    let (shape, per) = match most {
        0..=8 => ("split8", 8),
        9..=16 => ("split16", 16),
        17.. => ("split32", 32),
    };
    (shape, [row_tiles, most.div_ceil(per), 1])
}

/// Name of a kernel: operation, algorithm, activation, weight.
pub(super) fn kernel_name(op: &str, shape: &str, dtype: DType) -> String {
    format!("{op}_{shape}_f32_{}", dtype.name().to_ascii_lowercase())
}

/// A unit of one format: `entries` are (macro that names the kernel, the kernel).
pub(super) fn format_unit_of(
    name: &str,
    file: &'static str,
    source: &'static str,
    dtype: DType,
    entries: &[(&str, Kernel)],
) -> Unit {
    let kernels = entries.iter().map(|(_, kernel)| kernel.clone()).collect();
    let name = format!("{name}_{}", dtype.name().to_ascii_lowercase());
    entries.iter().fold(
        Unit::new(name, file, source, kernels).define("WEIGHT_FORMAT", dtype.gguf_id()),
        |unit, (entry, kernel)| unit.define(entry, &kernel.name),
    )
}

/// The same for kernels of one operation and argument structure: `entries` are (macro, kernel shape).
pub(super) fn format_unit<A>(
    op: &str,
    file: &'static str,
    source: &'static str,
    dtype: DType,
    entries: &[(&str, &str)],
) -> Unit {
    let suffix = if is_plain(dtype) { "_plain" } else { "" };
    let entries: Vec<(&str, Kernel)> = entries
        .iter()
        .map(|(entry, shape)| (*entry, Kernel::of::<A>(kernel_name(op, shape, dtype), THREADS)))
        .collect();
    format_unit_of(&format!("{op}{suffix}"), file, source, dtype, &entries)
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let quantize = Unit::new(
        "linear_quantize",
        "linear_quantize.cu",
        include_str!("../../../../cuda/linear_quantize.cu"),
        vec![Kernel::of::<LinearQuantizeArgs>("linear_quantize_f32", THREADS)],
    );
    let of = |dtype: DType| {
        if is_plain(dtype) {
            let source = include_str!("../../../../cuda/linear_plain.cu");
            let name = |shape: &str| kernel_name("linear", shape, dtype);
            let normed = Kernel::of::<LinearPlainNormedArgs>(name("plain_normed"), THREADS);
            let entries = [
                ("LINEAR_PLAIN_1", Kernel::of::<LinearPlainArgs>(name("plain1"), THREADS)),
                ("LINEAR_PLAIN_8", Kernel::of::<LinearPlainArgs>(name("plain8"), THREADS)),
                ("LINEAR_PLAIN_WIDE", Kernel::of::<LinearPlainArgs>(name("plain_wide"), THREADS)),
                ("LINEAR_PLAIN_NORMED", normed.with_shared(MAX_SHARED_BYTES)),
            ];
            return format_unit_of("linear_plain", "linear_plain.cu", source, dtype, &entries);
        }
        let source = include_str!("../../../../cuda/linear.cu");
        let entries = [
            ("LINEAR_SPLIT_8", "split8"),
            ("LINEAR_SPLIT_16", "split16"),
            ("LINEAR_SPLIT_32", "split32"),
            ("LINEAR_SWEEP", "sweep"),
        ];
        format_unit::<LinearArgs>("linear", "linear.cu", source, dtype, &entries)
    };
    std::iter::once(quantize).chain(DType::ALL.into_iter().map(of)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_cover_every_column_and_prefer_sweeps_that_fill_the_device() {
        assert_eq!(product_shape(90, 1, 132), ("split8", [90, 1, 1]));
        assert_eq!(product_shape(90, 8, 132), ("split8", [90, 1, 1]));
        assert_eq!(product_shape(90, 9, 132), ("split16", [90, 1, 1]));
        assert_eq!(product_shape(90, 33, 132), ("split32", [90, 2, 1]));
        assert_eq!(product_shape(16, 2048, 132), ("split32", [16, 64, 1]));
        assert_eq!(product_shape(128, 2048, 132), ("sweep", [16, 32, 1]));
        assert_eq!(product_shape(91, 2049, 132), ("sweep", [12, 33, 1]));
    }
}
