//! Lowering: a recorded program becomes a flat list of kernel launches with every address filled in.
//!
//! [`lower`] walks the nodes in order. At each it first asks the fusing rules ([`RULES`], an ordered table) whether one
//! of them takes this node and some that follow; if none does, the node's own lowering function emits its launches.
//! Lowering is pure: it knows addresses but touches no device, so it runs twice, first to measure scratch memory and
//! then for good, and is tested without a GPU.

mod attention;
mod elementwise;
mod embed;
mod fuse_attention;
mod fuse_experts;
mod fuse_norm;
mod fuse_position;
mod fuse_router;
mod group;
mod linear;
mod moe;
mod norm;
mod position;
mod sample;
mod single;
mod single_experts;
mod stream;

use std::collections::HashMap;

use worker_orcd_core::arena::{self, ArenaPlan};
use worker_orcd_core::{
    BackendError, KvElement, KvLayer, Node, Op, Program, RowSet, ValueId, WeightId, WeightSpec,
};

use crate::arch::Arch;
use crate::inputs::{Field, InputLayout};
use crate::kernels::Unit;
use crate::kv::KvPools;
use crate::launch::{DevicePtr, Launch};
use crate::layout::{self, WeightLayout};
use linear::ActivationArgs;

/// A weight as kernels see it.
#[derive(Clone, Debug)]
pub(crate) struct DeviceWeight {
    /// Name, format, shape.
    pub(crate) spec: WeightSpec,
    /// Where its first plane begins.
    pub(crate) address: DevicePtr,
    /// How it lies in memory.
    pub(crate) layout: WeightLayout,
}

/// What a lowering may know of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceTraits {
    /// Its architecture.
    pub(crate) arch: Arch,
    /// Streaming multiprocessors.
    pub(crate) multiprocessors: u32,
    /// Most dynamic shared memory a CTA may opt in to.
    pub(crate) max_shared_bytes: u32,
}

/// Arrival counters of a plan, in bytes.
pub(crate) const COUNTER_BYTES: usize = 64 << 10;

/// Base addresses of the memory that belongs to plans.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlanBases {
    /// Activation arena.
    pub(crate) activations: DevicePtr,
    /// Step inputs.
    pub(crate) inputs: DevicePtr,
    /// Scratch, undefined at the start of every launch.
    pub(crate) scratch: DevicePtr,
    /// [`COUNTER_BYTES`] of arrival counters: zero between launches.
    pub(crate) counters: DevicePtr,
}

/// Everything a program is lowered against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// The device.
    pub(crate) traits: DeviceTraits,
    /// Uploaded weights, by id.
    pub(crate) weights: &'a [DeviceWeight],
    /// The cache, once created.
    pub(crate) kv: Option<&'a KvPools>,
}

/// The result.
#[derive(Clone, Debug)]
pub(crate) struct Lowered {
    /// In execution order.
    pub(crate) launches: Vec<Launch>,
    /// Scratch needed.
    pub(crate) scratch_bytes: usize,
}

/// A fusing rule: takes the node at `index` and some that follow when that is legal, and emits launches for them.
pub(crate) struct Rule {
    /// What tests call it.
    #[cfg_attr(not(test), allow(dead_code, reason = "read by tests only"))]
    pub(crate) name: &'static str,
    /// Returns how many nodes it took; 0 when it does not apply.
    pub(crate) apply: fn(&mut Lowering<'_>, index: usize) -> Result<usize, BackendError>,
}

/// Fusing rules in order of preference.
pub(crate) const RULES: &[Rule] = &[
    fuse_router::NORM_AND_CHOOSE,
    fuse_router::PRODUCT_AND_CHOOSE,
    single::GATED,
    single::PRODUCTS,
    single::PLAIN_NORMED,
    single_experts::GATED,
    single_experts::COMBINED,
    fuse_experts::GATED,
    stream::GATED,
    group::GATED,
    fuse_norm::QUANTIZE,
    fuse_attention::STEP,
    fuse_position::ROTATE_AND_STORE,
    linear::SHARE_INPUT,
    linear::ADD_RESIDUAL,
    moe::SHARE_INPUT,
    elementwise::COMBINE_AND_ADD,
];

/// Every compilation unit of every operation, and those that repack weights.
pub(crate) fn units() -> Vec<Unit> {
    [
        layout::units(),
        embed::units(),
        norm::units(),
        fuse_attention::units(),
        fuse_experts::units(),
        fuse_norm::units(),
        fuse_position::units(),
        fuse_router::units(),
        linear::units(),
        group::units(),
        single::units(),
        single_experts::units(),
        stream::units(),
        elementwise::units(),
        position::units(),
        attention::units(),
        moe::units(),
        sample::units(),
    ]
    .concat()
}

/// Where the activations of `program` live. Steps of one token, whose fused kernels read and write what several nodes
/// would, give every value a place of its own; it is small. In other steps what fused kernels read throughout stays until the
/// last node they take.
pub(crate) fn activation_plan(program: &Program) -> ArenaPlan {
    if program.shape().tokens > 1 {
        return arena::plan_keeping(program, &|index| elementwise::reads_until(program, index));
    }
    let mut bytes = 0;
    let offsets = program
        .values()
        .iter()
        .map(|value| {
            let offset = bytes;
            bytes += value.bytes(program.shape()).next_multiple_of(arena::ALIGNMENT);
            offset
        })
        .collect();
    ArenaPlan { offsets, bytes }
}

/// Lowers `program` for memory at `bases`.
///
/// # Errors
/// A node outside the kernels' limits, or one that needs a cache that does not exist.
pub(crate) fn lower(
    program: &Program,
    inputs: &InputLayout,
    target: Target<'_>,
    bases: PlanBases,
) -> Result<Lowered, BackendError> {
    let mut lowering = Lowering::start(program, inputs, target, bases);
    let mut index = 0;
    while index < program.nodes().len() {
        index += lowering.step(index)?;
    }
    let Lowering { launches, scratch_bytes, .. } = lowering;
    Ok(Lowered { launches, scratch_bytes })
}

/// The state of one lowering and everything operations ask for.
#[derive(Debug)]
pub(crate) struct Lowering<'a> {
    program: &'a Program,
    inputs: &'a InputLayout,
    target: Target<'a>,
    bases: PlanBases,
    arena: ArenaPlan,
    launches: Vec<Launch>,
    /// First of the nodes being lowered.
    index: usize,
    /// Parts of the scratch that are in use.
    scratch: Vec<ScratchPart>,
    scratch_bytes: usize,
    /// Activation records made so far and still to be read.
    codes: HashMap<ValueId, ActivationArgs>,
    /// Where the pairs of (token, chosen expert) were sorted to, by the value that holds the choices.
    orders: HashMap<ValueId, [DevicePtr; 2]>,
    /// Which launch writes the experts of a step.
    written: HashMap<ValueId, usize>,
}

/// A part of the scratch in use until node `last` has been lowered.
#[derive(Clone, Copy, Debug)]
struct ScratchPart {
    start: usize,
    end: usize,
    last: usize,
}

impl<'a> Lowering<'a> {
    /// A lowering that has emitted nothing yet.
    fn start(program: &'a Program, inputs: &'a InputLayout, target: Target<'a>, bases: PlanBases) -> Self {
        Self {
            program,
            inputs,
            target,
            bases,
            arena: activation_plan(program),
            launches: vec![],
            index: 0,
            scratch: vec![],
            scratch_bytes: 0,
            codes: HashMap::new(),
            orders: HashMap::new(),
            written: HashMap::new(),
        }
    }

    /// Lowers the node at `index`, or several when a rule takes them; returns how many.
    fn step(&mut self, index: usize) -> Result<usize, BackendError> {
        self.index = index;
        self.scratch.retain(|part| part.last >= index);
        for rule in RULES {
            let taken = (rule.apply)(self, index)?;
            if taken > 0 {
                return Ok(taken);
            }
        }
        let program = self.program;
        if let Some(node) = program.nodes().get(index) {
            self.node(node)?;
        }
        Ok(1)
    }

    fn node(&mut self, node: &Node) -> Result<(), BackendError> {
        match node.op {
            Op::Embed { .. } | Op::PositionEmbed { .. } => embed::lower(self, node),
            Op::RmsNorm { .. } | Op::LayerNorm { .. } => norm::lower(self, node),
            Op::Linear { .. } => linear::lower(self, node),
            Op::Add { .. }
            | Op::SwiGlu { .. }
            | Op::Gelu { .. }
            | Op::GatherRows { .. }
            | Op::MoeCombine { .. } => elementwise::lower(self, node),
            Op::Rope { .. } | Op::KvWrite { .. } => position::lower(self, node),
            Op::Attention { .. } => attention::lower(self, node),
            Op::Router { .. } | Op::Sample { .. } => sample::lower(self, node),
            Op::MoeLinear { .. } => moe::lower(self, node),
        }
    }

    /// The program.
    pub(crate) const fn program(&self) -> &'a Program {
        self.program
    }

    /// The device.
    pub(crate) const fn traits(&self) -> DeviceTraits {
        self.target.traits
    }

    /// Where a value lives: `[max_rows, width]`, 4 bytes an element, rows packed, 256-byte aligned.
    pub(crate) fn value(&self, id: ValueId) -> DevicePtr {
        self.bases.activations.offset(self.arena.offset(id))
    }

    /// Elements per row of a value.
    pub(crate) fn width(&self, id: ValueId) -> u32 {
        self.program.value(id).width as u32
    }

    /// What bounds a value's rows.
    pub(crate) fn rows(&self, id: ValueId) -> RowSet {
        self.program.value(id).rows
    }

    /// Most rows a set has: what a grid is sized for.
    pub(crate) const fn max_rows(&self, rows: RowSet) -> u32 {
        match rows {
            RowSet::Tokens => self.program.shape().tokens as u32,
            RowSet::Outputs => self.program.shape().rows as u32,
        }
    }

    /// Most rows a set has, for a grid's second dimension.
    ///
    /// # Errors
    /// More than that dimension takes.
    pub(crate) fn grid_rows(&self, node: &Node, rows: RowSet) -> Result<u32, BackendError> {
        let rows = self.max_rows(rows);
        if rows == 0 || rows > 65_535 {
            return Err(program_error(node, format!("{rows} rows, the kernel takes 1 to 65535")));
        }
        Ok(rows)
    }

    /// Address of the `u32` that holds how many rows of a set this step has; kernels read it and leave the rest alone.
    pub(crate) const fn row_count(&self, rows: RowSet) -> DevicePtr {
        match rows {
            RowSet::Tokens => self.bases.inputs,
            RowSet::Outputs => self.bases.inputs.offset(size_of::<u32>()),
        }
    }

    /// Address of a field of the input buffer.
    ///
    /// # Errors
    /// The field belongs to a cache group that does not exist.
    pub(crate) fn input(&self, node: &Node, field: Field) -> Result<DevicePtr, BackendError> {
        let missing = || program_error(node, format!("no such input: {field:?}"));
        Ok(self.bases.inputs.offset(self.inputs.offset(field).ok_or_else(missing)?))
    }

    /// Width of a group's block table.
    pub(crate) fn table_width(&self, group: usize) -> u32 {
        self.inputs.table_width(group) as u32
    }

    /// An uploaded weight.
    ///
    /// # Errors
    /// It was never uploaded.
    pub(crate) fn weight(&self, node: &Node, id: WeightId) -> Result<&'a DeviceWeight, BackendError> {
        let missing = || program_error(node, format!("weight {} was not uploaded", id.0));
        self.target.weights.get(id.0 as usize).ok_or_else(missing)
    }

    /// Address of a vector's f32 elements; [`DevicePtr::NULL`] when there is none.
    ///
    /// # Errors
    /// It was never uploaded.
    pub(crate) fn vector(&self, node: &Node, id: Option<WeightId>) -> Result<DevicePtr, BackendError> {
        id.map_or(Ok(DevicePtr::NULL), |id| Ok(self.weight(node, id)?.address))
    }

    /// Addresses of a layer's pools of keys and values, `[num_blocks, block_size, num_kv_heads, head_dim]` f16 each.
    ///
    /// # Errors
    /// The cache has no such layer.
    pub(crate) fn kv_layer(&self, node: &Node, layer: KvLayer) -> Result<KvAddresses, BackendError> {
        let pools = self.target.kv.ok_or_else(|| program_error(node, "the cache does not exist".into()))?;
        let missing = || program_error(node, format!("the cache has no {layer:?}"));
        let (keys, values) = pools.addresses(layer).ok_or_else(missing)?;
        let group = pools.layout.groups.get(layer.group).ok_or_else(missing)?;
        debug_assert_eq!(pools.layout.element, KvElement::F16, "create_kv takes no other element");
        Ok(KvAddresses {
            keys,
            values,
            block_size: pools.layout.block_size as u32,
            num_blocks: group.num_blocks as u32,
            num_kv_heads: group.num_kv_heads as u32,
            head_dim: group.head_dim as u32,
        })
    }

    /// Scratch for the launches of this node, 256-byte aligned, contents undefined.
    pub(crate) fn scratch(&mut self, bytes: usize) -> DevicePtr {
        self.scratch_until(bytes, self.index)
    }

    /// Scratch whose contents stay until node `last` has been lowered, at the lowest place that is free.
    fn scratch_until(&mut self, bytes: usize, last: usize) -> DevicePtr {
        let bytes = bytes.next_multiple_of(arena::ALIGNMENT);
        self.scratch.sort_unstable_by_key(|part| part.start);
        let mut start = 0;
        for part in &self.scratch {
            if start + bytes <= part.start {
                break;
            }
            start = start.max(part.end);
        }
        let end = start + bytes;
        self.scratch.push(ScratchPart { start, end, last });
        self.scratch_bytes = self.scratch_bytes.max(end);
        self.bases.scratch.offset(start)
    }

    /// Activation records of `x`, if some launch has made them.
    pub(crate) fn codes(&self, x: ValueId) -> Option<ActivationArgs> {
        self.codes.get(&x).copied()
    }

    /// Whom the activation records of `x` are for (`RecordUse`).
    pub(crate) fn record_use(&self, x: ValueId) -> u32 {
        let least = |node: &Node| match node.op {
            Op::Linear { weight, .. } | Op::MoeLinear { weight, .. } => self
                .target
                .weights
                .get(weight.0 as usize)
                .is_some_and(|weight| layout::has_minimum(weight.spec.dtype)),
            _ => false,
        };
        let mut readers = self.program.nodes().iter().filter(|node| node.op.reads().contains(&x));
        if self.codes_of_groups(x) { 1 + u32::from(readers.any(least)) } else { 0 }
    }

    /// Whether the activation records of `x` are laid out as the kernels of warpgroups take them: they do all its products.
    pub(crate) fn codes_of_groups(&self, x: ValueId) -> bool {
        self.target.traits.arch.has_warpgroup_products() && self.max_rows(self.rows(x)) > group::LEAST_COLUMNS
    }

    /// Blocks of a row of `x` as the products that read it take it: one row may hold several of theirs.
    fn blocks_of_readers(&self, x: ValueId) -> Option<usize> {
        let weight = |node: &Node| match node.op {
            Op::Linear { x: read, weight, .. } | Op::MoeLinear { x: read, weight, .. } if read == x => {
                Some(weight)
            }
            _ => None,
        };
        let weight = self.program.nodes().iter().find_map(weight)?;
        self.target.weights.get(weight.0 as usize).map(|weight| weight.spec.cols.div_ceil(32))
    }

    /// Room for the activation records of `x`, kept until its last reader. Whoever asks must emit the launch that fills
    /// it.
    pub(crate) fn make_codes(&mut self, x: ValueId) -> ActivationArgs {
        let last = self.last_reader(x);
        let records = self.max_rows(self.rows(x)) as usize * self.width(x).div_ceil(32) as usize;
        let mut sums = records;
        if let (true, Some(blocks)) = (self.codes_of_groups(x), self.blocks_of_readers(x)) {
            sums = records / blocks * blocks.next_multiple_of(group::SUMS_ALIGNMENT);
        }
        let codes = self.scratch_until(records * linear::CODE_BYTES, last);
        let sums = self.scratch_until(sums * linear::SUM_BYTES, last);
        let activations = ActivationArgs { codes, sums };
        self.codes.insert(x, activations);
        activations
    }

    /// Room of `bytes` for the sorted pairs of `experts`, kept until its last reader, and whether they are there already.
    /// Whoever asks must emit the launch that sorts them if they are not.
    pub(crate) fn make_order(&mut self, experts: ValueId, bytes: [usize; 2]) -> ([DevicePtr; 2], bool) {
        if let Some(made) = self.orders.get(&experts) {
            return (*made, true);
        }
        let last = self.last_reader(experts);
        let order = bytes.map(|bytes| self.scratch_until(bytes, last));
        self.orders.insert(experts, order);
        (order, false)
    }

    /// The last node that reads `x`; the present one when none does.
    fn last_reader(&self, x: ValueId) -> usize {
        self.program.nodes().iter().rposition(|node| node.op.reads().contains(&x)).unwrap_or(self.index)
    }

    /// Notes that the next launch writes `value`.
    pub(crate) fn writes(&mut self, value: ValueId) {
        self.written.insert(value, self.launches.len());
    }

    /// Whether the next launch may read `value` before it waits for the launch before it. That one runs only once all
    /// earlier ones have ended, so a value is settled when it was noted as written before that one.
    pub(crate) fn is_settled(&self, value: ValueId) -> bool {
        self.written.get(&value).is_some_and(|launch| launch + 1 < self.launches.len())
    }

    /// Who reads `x` in which form.
    pub(crate) fn readers(&self, x: ValueId) -> Readers {
        self.readers_but(x, usize::MAX)
    }

    /// Who reads `x` in which form, leaving out node `index`.
    pub(crate) fn readers_but(&self, x: ValueId, index: usize) -> Readers {
        let mut readers = Readers { codes: false, floats: self.program.outputs().contains(&x) };
        let others = self.program.nodes().iter().enumerate().filter(|(other, _)| *other != index);
        for (_, node) in others.filter(|(_, node)| node.op.reads().contains(&x)) {
            let weight = match node.op {
                Op::Linear { weight, .. } | Op::MoeLinear { weight, .. } => {
                    self.target.weights.get(weight.0 as usize)
                }
                _ => None,
            };
            match weight {
                Some(weight) if !layout::is_plain(weight.spec.dtype) => readers.codes = true,
                _ => readers.floats = true,
            }
        }
        readers
    }

    /// `count` arrival counters (`u32`), zero when the node's launch begins; the kernel must leave them zero.
    ///
    /// # Errors
    /// More than there are.
    pub(crate) fn counters(&self, node: &Node, count: usize) -> Result<DevicePtr, BackendError> {
        let most = COUNTER_BYTES / size_of::<u32>();
        if count > most {
            return Err(program_error(node, format!("{count} arrival counters, there are {most}")));
        }
        Ok(self.bases.counters)
    }

    /// Appends a launch.
    pub(crate) fn launch(&mut self, launch: Launch) {
        self.launches.push(launch);
    }

    /// Whether `value` is still needed when node `index` and those after it run, so that nothing before takes its place.
    pub(crate) fn is_read_from(&self, value: ValueId, index: usize) -> bool {
        let later = self.program.nodes().get(index..).unwrap_or_default();
        self.program.outputs().contains(&value) || later.iter().any(|node| node.op.reads().contains(&value))
    }

    /// Whether nothing but the next reader sees `value`: it is no declared output and is read once. A rule may then
    /// leave it unwritten.
    pub(crate) fn is_private(&self, value: ValueId) -> bool {
        is_private(self.program, value)
    }
}

/// Whether `value` is no declared output and read once.
fn is_private(program: &Program, value: ValueId) -> bool {
    let readers = program.nodes().iter().flat_map(|node| node.op.reads()).filter(|read| *read == value);
    readers.count() == 1 && !program.outputs().contains(&value)
}

/// The forms in which a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readers {
    /// As activation records, by products with quantised weights.
    pub(crate) codes: bool,
    /// As floats, by everything else and as an output.
    pub(crate) floats: bool,
}

/// One layer's pools, as kernels need them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvAddresses {
    /// Pool of keys.
    pub(crate) keys: DevicePtr,
    /// Pool of values.
    pub(crate) values: DevicePtr,
    /// Positions per block.
    pub(crate) block_size: u32,
    /// Blocks of each pool.
    pub(crate) num_blocks: u32,
    /// Heads.
    pub(crate) num_kv_heads: u32,
    /// Elements per head.
    pub(crate) head_dim: u32,
}

/// An error that names the node.
pub(crate) fn program_error(node: &Node, reason: String) -> BackendError {
    BackendError::Program { label: node.label.clone(), reason }
}

/// The value a node with one output writes.
///
/// # Errors
/// It writes none.
pub(crate) fn output(node: &Node) -> Result<ValueId, BackendError> {
    node.outputs.first().copied().ok_or_else(|| program_error(node, "writes nothing".into()))
}

#[cfg(test)]
mod tests;
