//! Lowering of `moe_linear`: how the pairs of (token, chosen expert) are spread over kernels.
//!
//! Few tokens: CTAs find their expert's pairs themselves. Many: `moe_linear_route` sorts the pairs first. Neighbouring
//! nodes that share input and routing (gate and up) share both steps.

use bytemuck::{Pod, Zeroable};
use worker_orcd_core::{BackendError, DType, Node, Op, RowSet, ValueId, WeightId};

use super::linear::{
    ActivationArgs, SWEEP_COLUMNS, SWEEP_TILES, THREADS, format_unit, kernel_name, quantize,
};
use super::{DeviceWeight, Lowering, Rule, group, output, program_error, stream};
use crate::kernels::{Kernel, Unit};
use crate::launch::{DevicePtr, Launch};
use crate::layout::{WeightArgs, is_plain};

/// Most pairs a CTA looks through by itself (`MAX_SCANNED_PAIRS`).
const MAX_SCANNED_PAIRS: u32 = 512;
/// Most experts there may be.
const MAX_EXPERTS: u32 = 1024;
/// Threads of `moe_linear_route`.
const ROUTE_THREADS: u32 = 256;

/// `struct Routing`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct RoutingArgs {
    experts: DevicePtr,
    tokens: DevicePtr,
    offsets: DevicePtr,
    order: DevicePtr,
    pub(super) top_k: u32,
    pub(super) expert_count: u32,
    shared_x: u32,
    reserved: u32,
}

/// `struct MoeLinearArgs` and `struct MoeLinearStreamArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct MoeLinearArgs {
    pub(super) weight: WeightArgs,
    x: ActivationArgs,
    pub(super) routing: RoutingArgs,
    bias: DevicePtr,
    y: DevicePtr,
    outputs: u32,
    /// Whether the experts were chosen before the launch before.
    early: u32,
}

/// `struct MoeLinearPlainArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MoeLinearPlainArgs {
    weight: WeightArgs,
    x: DevicePtr,
    routing: RoutingArgs,
    bias: DevicePtr,
    y: DevicePtr,
    outputs: u32,
    reserved: u32,
}

/// `struct MoeLinearRouteArgs`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MoeLinearRouteArgs {
    experts: DevicePtr,
    tokens: DevicePtr,
    offsets: DevicePtr,
    order: DevicePtr,
    top_k: u32,
    expert_count: u32,
}

/// Neighbouring expert products of one input quantise and route it once.
pub(super) const SHARE_INPUT: Rule = Rule { name: "moe_linear.share_input", apply: share_input };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operands {
    pub(super) x: ValueId,
    pub(super) experts: ValueId,
    pub(super) weight: WeightId,
    pub(super) bias: Option<WeightId>,
}

/// What the product kernels of one input share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prepared {
    pub(super) activations: Option<ActivationArgs>,
    pub(super) routing: RoutingArgs,
}

/// Emits the launches of a node.
pub(super) fn lower(lowering: &mut Lowering<'_>, node: &Node) -> Result<(), BackendError> {
    let operands = operands(node)?;
    let prepared = prepare(lowering, node, operands)?;
    emit(lowering, node, operands, prepared)
}

fn share_input(lowering: &mut Lowering<'_>, index: usize) -> Result<usize, BackendError> {
    let program = lowering.program();
    let nodes = program.nodes().get(index..).unwrap_or_default();
    let Some(Ok(first)) = nodes.first().map(operands) else { return Ok(0) };
    let stored = |lowering: &Lowering<'_>, node: &Node, id: WeightId| {
        lowering
            .weight(node, id)
            .map(|weight| (is_plain(weight.spec.dtype), weight.spec.experts, weight.spec.cols))
    };
    let mut taken = 0;
    for node in nodes {
        match operands(node) {
            Ok(next)
                if (next.x, next.experts) == (first.x, first.experts)
                    && stored(lowering, node, next.weight)? == stored(lowering, node, first.weight)? =>
            {
                taken += 1;
            }
            _ => break,
        }
    }
    if taken < 2 {
        return Ok(0);
    }
    let mut prepared = None;
    for node in nodes.iter().take(taken) {
        let operands = operands(node)?;
        let shared = match prepared {
            Some(shared) => shared,
            None => prepare(lowering, node, operands)?,
        };
        prepared = Some(shared);
        emit(lowering, node, operands, shared)?;
    }
    Ok(taken)
}

pub(super) fn operands(node: &Node) -> Result<Operands, BackendError> {
    match node.op {
        Op::MoeLinear { x, experts, weight, bias } => Ok(Operands { x, experts, weight, bias }),
        _ => Err(program_error(node, "is no expert product".to_owned())),
    }
}

/// How the pairs of a step of at most `tokens` tokens are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// One CTA row per pair.
    Pair,
    /// One CTA row per expert, eight pairs at a time.
    Split8,
    /// One CTA row per expert, sixteen pairs at a time.
    Split16,
    /// Sorted pairs, 64 at a time.
    Sweep,
}

pub(super) fn spread(tokens: u32, top_k: u32) -> Spread {
    match tokens {
        0..=1 => Spread::Pair,
        _ if tokens * top_k > MAX_SCANNED_PAIRS => Spread::Sweep,
        2..=16 => Spread::Split8,
        17.. => Spread::Split16,
    }
}

pub(super) fn prepare(
    lowering: &mut Lowering<'_>,
    node: &Node,
    operands: Operands,
) -> Result<Prepared, BackendError> {
    let weight = lowering.weight(node, operands.weight)?;
    let top_k = lowering.width(operands.experts);
    let shared = lowering.width(operands.x) as usize == weight.spec.cols;
    let tokens = lowering.max_rows(RowSet::Tokens);
    let expert_count = weight.spec.experts as u32;
    if expert_count > MAX_EXPERTS {
        return Err(program_error(node, format!("{expert_count} experts, the kernels take {MAX_EXPERTS}")));
    }
    let mut routing = RoutingArgs {
        experts: lowering.value(operands.experts),
        tokens: lowering.row_count(RowSet::Tokens),
        offsets: DevicePtr::NULL,
        order: DevicePtr::NULL,
        top_k,
        expert_count,
        shared_x: u32::from(shared),
        reserved: 0,
    };
    if is_plain(weight.spec.dtype) {
        return Ok(Prepared { activations: None, routing });
    }
    let rows_per = if shared { 1 } else { top_k };
    let rows = (RowSet::Tokens, rows_per);
    let activations = Some(quantize(lowering, node, operands.x, rows, weight.layout.blocks())?);
    if lowering.codes_of_groups(operands.x) || spread(tokens, top_k) == Spread::Sweep {
        let words = [expert_count + 1, tokens * top_k].map(|count| count as usize * size_of::<u32>());
        let ([offsets, order], made) = lowering.make_order(operands.experts, words);
        (routing.offsets, routing.order) = (offsets, order);
        if !made {
            let RoutingArgs { experts, tokens, .. } = routing;
            let args = MoeLinearRouteArgs { experts, tokens, offsets, order, top_k, expert_count };
            let launch = Launch::linear(&node.label, "moe_linear_route", expert_count, ROUTE_THREADS, &args);
            lowering.launch(launch);
        }
    }
    Ok(Prepared { activations, routing })
}

/// Pairs that grids have room for per expert: twice the average. Fuller experts loop.
pub(super) fn often(tokens: u32, routing: &RoutingArgs) -> u32 {
    (2 * (tokens * routing.top_k).div_ceil(routing.expert_count)).min(tokens)
}

fn emit(
    lowering: &mut Lowering<'_>,
    node: &Node,
    operands: Operands,
    prepared: Prepared,
) -> Result<(), BackendError> {
    let device_weight: &DeviceWeight = lowering.weight(node, operands.weight)?;
    let weight = device_weight.layout.args(device_weight.address);
    let bias = lowering.vector(node, operands.bias)?;
    let y = lowering.value(output(node)?);
    let outputs = device_weight.spec.rows as u32;
    let dtype = device_weight.spec.dtype;
    let routing = prepared.routing;
    let tokens = lowering.max_rows(RowSet::Tokens);
    let pairs = tokens * routing.top_k;
    if pairs == 0 || pairs > 65_535 {
        return Err(program_error(node, format!("{pairs} pairs, the kernels take 1 to 65535")));
    }
    let launch = if let (Some(x), true) = (prepared.activations, lowering.codes_of_groups(operands.x)) {
        let args = MoeLinearArgs { weight, x, routing, bias, y, outputs, early: 0 };
        group::moe_linear(&node.label, dtype, often(tokens, &routing), &args)
    } else if let (Some(x), Some(shape)) =
        (prepared.activations, stream::experts(lowering, device_weight, routing.top_k))
    {
        let early = u32::from(lowering.is_settled(operands.experts));
        let args = MoeLinearArgs { weight, x, routing, bias, y, outputs, early };
        let grid = stream::expert_grid(&shape, weight.row_tiles, pairs, routing.expert_count);
        shape.launch(&node.label, ["moe_linear", "stream"], dtype, grid, &args)
    } else if let Some(x) = prepared.activations {
        let (shape, grid) = match spread(tokens, routing.top_k) {
            Spread::Pair => ("pair", [weight.row_tiles, pairs, 1]),
            Spread::Split8 => ("split8", [weight.row_tiles, routing.expert_count, 1]),
            Spread::Split16 => ("split16", [weight.row_tiles, routing.expert_count, 1]),
            Spread::Sweep => {
                let groups = often(tokens, &routing).div_ceil(SWEEP_COLUMNS);
                ("sweep", [weight.row_tiles.div_ceil(SWEEP_TILES), routing.expert_count, groups])
            }
        };
        let args = MoeLinearArgs { weight, x, routing, bias, y, outputs, early: 0 };
        Launch::grid(&node.label, kernel_name("moe_linear", shape, dtype), grid, [THREADS, 1, 1], 0, &args)
    } else {
        let x = lowering.value(operands.x);
        let args = MoeLinearPlainArgs { weight, x, routing, bias, y, outputs, reserved: 0 };
        let grid = [weight.row_tiles, pairs, 1];
        Launch::grid(&node.label, kernel_name("moe_linear", "plain", dtype), grid, [THREADS, 1, 1], 0, &args)
    };
    lowering.launch(launch);
    Ok(())
}

/// The units it needs.
pub(super) fn units() -> Vec<Unit> {
    let route = Unit::new(
        "moe_linear_route",
        "moe_linear_route.cu",
        include_str!("../../../../cuda/moe_linear_route.cu"),
        vec![Kernel::of::<MoeLinearRouteArgs>("moe_linear_route", ROUTE_THREADS)],
    );
    let of = |dtype: DType| {
        if is_plain(dtype) {
            let source = include_str!("../../../../cuda/moe_linear_plain.cu");
            let entries = [("MOE_LINEAR_PLAIN", "plain")];
            return format_unit::<MoeLinearPlainArgs>(
                "moe_linear",
                "moe_linear_plain.cu",
                source,
                dtype,
                &entries,
            );
        }
        let source = include_str!("../../../../cuda/moe_linear.cu");
        let entries = [
            ("MOE_LINEAR_PAIR", "pair"),
            ("MOE_LINEAR_SPLIT_8", "split8"),
            ("MOE_LINEAR_SPLIT_16", "split16"),
            ("MOE_LINEAR_SWEEP", "sweep"),
        ];
        format_unit::<MoeLinearArgs>("moe_linear", "moe_linear.cu", source, dtype, &entries)
    };
    std::iter::once(route).chain(DType::ALL.into_iter().map(of)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_sorted_only_where_scanning_ends() {
        assert_eq!(spread(1, 4), Spread::Pair);
        assert_eq!(spread(2, 4), Spread::Split8);
        assert_eq!(spread(16, 4), Spread::Split8);
        assert_eq!(spread(128, 4), Spread::Split16);
        assert_eq!(spread(129, 4), Spread::Sweep);
        assert_eq!(spread(100, 8), Spread::Sweep);
    }
}
