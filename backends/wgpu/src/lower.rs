//! Operation → dispatches: which shader, which bindings, which parameters, which grid.
//!
//! Every operation is one dispatch, but for those that read a weight in several slices (one dispatch per slice, each
//! writing the outputs its rows give) and `Sample`, which looks at the logits with many workgroups first. What `fuse`
//! joins is lowered in `fused`.

use worker_orcd_core::arena::{ALIGNMENT, ArenaPlan};
use worker_orcd_core::{
    BackendError, DType, KvGroup, KvLayer, Node, Op, Program, RopeStyle, RowSet, ValueId, WeightId,
};

use crate::NAME;
use crate::cache::{Cache, Pools, slot_words};
use crate::fused::swiglu_params;
use crate::inputs::{InputsLayout, ROW_COUNT, TOKEN_COUNT};
use crate::shader::{Form, Kernel, parts};
use crate::weights::{Slice, Weight};

/// Weight rows per workgroup of the matrix shaders for several rows of x.
const ROWS_PER_WORKGROUP: usize = 16;
/// Weight rows per workgroup of those for one row of x (`ONE_SETS`).
pub(crate) const ONE_ROWS_PER_WORKGROUP: usize = 8;
/// Lanes per weight row of those (`ONE_LANES`), and units such a lane asks for at a time.
const ONE_LANES: usize = 32;
const MAX_AHEAD: usize = 4;
/// Lanes of the element-wise shaders.
const ELEMENTS_PER_WORKGROUP: usize = 256;
/// Lanes of the look-up and cache shaders.
const LOOKUPS_PER_WORKGROUP: usize = 64;
/// Logits per workgroup of the first pass of `Sample` (`CHUNK`).
const LOGITS_PER_WORKGROUP: usize = 4096;
/// Bytes of one workgroup's result of that pass.
const MAXIMUM_BYTES: usize = 16;
/// Largest head the attention shaders hold.
pub(crate) const MAX_HEAD_DIM: usize = 512;
/// Heads of a multiple of this are read in whole words of four.
pub(crate) const WIDE_HEAD: usize = 8;
/// Heads of all tokens up to which a GPU has room for more than one strand of each.
const FEW_HEADS: usize = 1024;
/// `Params::window` when every position is visible.
const NO_WINDOW: u32 = u32::MAX;

/// A storage binding: part of a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) writable: bool,
}

/// One dispatch before its pipeline and bind group exist.
#[derive(Debug)]
pub(crate) struct Dispatch<'a> {
    pub(crate) kernel: Kernel,
    /// The shader's `Params`, floats as bits.
    pub(crate) params: Vec<u32>,
    /// Bindings from 2 on.
    pub(crate) bindings: Vec<Binding<'a>>,
    pub(crate) workgroups: [usize; 3],
}

/// Everything operations are lowered against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lowering<'a> {
    pub(crate) program: &'a Program,
    pub(crate) weights: &'a [Weight],
    pub(crate) cache: Option<&'a Cache>,
    pub(crate) arena: &'a wgpu::Buffer,
    pub(crate) places: &'a ArenaPlan,
    pub(crate) scratch: &'a wgpu::Buffer,
    pub(crate) inputs: &'a InputsLayout,
    /// Whether the device is one for which steps are fused.
    pub(crate) fuses: bool,
}

pub(crate) type Lowered<'a> = Result<Vec<Dispatch<'a>>, BackendError>;

fn kernel(stem: &'static str) -> Kernel {
    formed(stem, Form::default())
}

pub(crate) fn formed(stem: &'static str, form: Form) -> Kernel {
    Kernel { parts: parts(stem, form), entry: "main", constants: vec![] }
}

pub(crate) fn whole(buffer: &wgpu::Buffer, writable: bool) -> Binding<'_> {
    Binding { buffer, offset: 0, bytes: buffer.size(), writable }
}

pub(crate) fn missing(node: &Node, what: &str) -> BackendError {
    BackendError::Program { label: node.label.clone(), reason: format!("no {what}") }
}

/// Rows of x a matrix workgroup takes at once: more reuse the decoded weight, fewer waste nothing on padding.
const fn token_tile(rows: usize) -> usize {
    match rows {
        0 | 1 => 1,
        2..=4 => 4,
        _ => 8,
    }
}

/// Bytes `Sample` needs beside its logits, for `logits_bytes` of them in `rows` rows: their copy, and at what offset the
/// results of its first pass start.
pub(crate) const fn sample_scratch(logits_bytes: usize, rows: usize, vocab: usize) -> (usize, usize) {
    let start = logits_bytes.next_multiple_of(ALIGNMENT);
    (start + rows * vocab.div_ceil(LOGITS_PER_WORKGROUP) * MAXIMUM_BYTES, start)
}

impl<'a> Lowering<'a> {
    pub(crate) fn width(&self, id: ValueId) -> usize {
        self.program.value(id).width
    }

    /// Rows the plan has room for.
    pub(crate) fn max_rows(&self, id: ValueId) -> usize {
        self.program.value(id).max_rows(self.program.shape())
    }

    /// Word of the actual number of rows of a value.
    pub(crate) fn rows_at(&self, id: ValueId) -> u32 {
        match self.program.value(id).rows {
            RowSet::Tokens => TOKEN_COUNT as u32,
            RowSet::Outputs => ROW_COUNT as u32,
        }
    }

    /// The place of a value in the arena. Always writable: one dispatch must not see one buffer in two ways.
    pub(crate) fn value(&self, id: ValueId) -> Binding<'a> {
        let bytes = self.program.value(id).bytes(self.program.shape()) as u64;
        Binding { buffer: self.arena, offset: self.places.offset(id) as u64, bytes, writable: true }
    }

    pub(crate) fn weight(&self, node: &Node, id: WeightId) -> Result<&'a Weight, BackendError> {
        self.weights.get(id.0 as usize).ok_or_else(|| missing(node, "such weight"))
    }

    pub(crate) fn vector(&self, node: &Node, id: WeightId) -> Result<Binding<'a>, BackendError> {
        let weight = self.weight(node, id)?;
        let slice = weight.slices.first().ok_or_else(|| missing(node, "vector"))?;
        Ok(whole(&slice.buffer, false))
    }

    /// A vector, or `other` where the shader wants some binding but reads none.
    pub(crate) fn optional(
        &self,
        node: &Node,
        id: Option<WeightId>,
        other: &'a wgpu::Buffer,
    ) -> Result<Binding<'a>, BackendError> {
        id.map_or(Ok(whole(other, false)), |id| self.vector(node, id))
    }

    pub(crate) fn layer(
        &self,
        node: &Node,
        layer: KvLayer,
    ) -> Result<(usize, &'a KvGroup, &'a Pools), BackendError> {
        let cache = self.cache.ok_or_else(|| missing(node, "cache"))?;
        let (group, pools) = cache.layer(layer).ok_or_else(|| missing(node, "such layer in the cache"))?;
        Ok((cache.layout.block_size, group, pools))
    }

    /// The dispatches of one node.
    pub(crate) fn lower(&self, node: &Node) -> Lowered<'a> {
        // `KvWrite` is the only operation without an output.
        let out = node.outputs.first().copied().unwrap_or(ValueId(0));
        match node.op {
            Op::Embed { table } => self.embed(node, table, self.inputs.tokens, out),
            Op::PositionEmbed { table } => self.embed(node, table, self.inputs.positions, out),
            Op::RmsNorm { x, weight, eps } => self.norm(node, x, &[weight], eps, out),
            Op::LayerNorm { x, weight, bias, eps } => self.norm(node, x, &[weight, bias], eps, out),
            Op::Linear { x, weight, bias } => self.linear(node, x, weight, bias, out),
            Op::Add { a, b } => Ok(self.elementwise("add", &[a, b], &[], out)),
            Op::Rope { x, table, head_dim, style, .. } => self.rope(node, x, table, head_dim, style, out),
            Op::KvWrite { k, v, layer } => self.kv_write(node, k, v, layer),
            Op::Attention { .. } => self.attention(node, out),
            Op::SwiGlu { gate, up, kind } => {
                let (clamped, alpha, limit) = swiglu_params(kind);
                let extra = [clamped, alpha, limit];
                Ok(self.elementwise("swiglu", &[gate, up], &extra, out))
            }
            Op::Gelu { x } => Ok(self.elementwise("gelu", &[x], &[], out)),
            Op::Router { logits, top_k } => Ok(self.router(node, logits, top_k)),
            Op::MoeLinear { x, experts, weight, bias } => {
                self.moe_linear(node, x, experts, (weight, bias), out)
            }
            Op::MoeCombine { x, weights } => Ok(self.moe_combine(x, weights, out)),
            Op::GatherRows { x } => Ok(self.gather_rows(x, out)),
            Op::Sample { logits, max_penalty_tokens } => Ok(self.sample(logits, max_penalty_tokens, out)),
        }
    }

    /// `[rows, width]` in, `[rows, width]` out, one invocation per element.
    fn elementwise(
        &self,
        stem: &'static str,
        reads: &[ValueId],
        extra: &[u32],
        out: ValueId,
    ) -> Vec<Dispatch<'a>> {
        let width = self.width(out);
        let mut params = vec![self.rows_at(out), width as u32];
        params.extend_from_slice(extra);
        let bindings = reads.iter().chain([&out]).map(|&id| self.value(id)).collect();
        let workgroups = [width.div_ceil(ELEMENTS_PER_WORKGROUP), self.max_rows(out), 1];
        vec![Dispatch { kernel: kernel(stem), params, bindings, workgroups }]
    }

    fn norm(&self, node: &Node, x: ValueId, vectors: &[WeightId], eps: f32, out: ValueId) -> Lowered<'a> {
        let mut bindings = vec![self.value(x)];
        for &vector in vectors {
            bindings.push(self.vector(node, vector)?);
        }
        bindings.push(self.value(out));
        let params = vec![self.rows_at(x), self.width(x) as u32, eps.to_bits()];
        let workgroups = [self.max_rows(x), 1, 1];
        Ok(vec![Dispatch { kernel: kernel(node.op.stem()), params, bindings, workgroups }])
    }

    fn embed(&self, node: &Node, table: WeightId, ids_at: usize, out: ValueId) -> Lowered<'a> {
        let weight = self.weight(node, table)?;
        let kernel = formed(node.op.stem(), Form { weight: Some(weight.spec.dtype), ..Form::default() });
        let dispatch = |slice: &'a Slice| Dispatch {
            kernel: kernel.clone(),
            params: [&[ids_at as u32, weight.spec.cols as u32][..], &slice_params(weight, slice)].concat(),
            bindings: vec![whole(&slice.buffer, false), self.value(out)],
            workgroups: [weight.units().div_ceil(LOOKUPS_PER_WORKGROUP), self.max_rows(out), 1],
        };
        Ok(weight.slices.iter().map(dispatch).collect())
    }

    fn linear(
        &self,
        node: &Node,
        x: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
        out: ValueId,
    ) -> Lowered<'a> {
        let weight = self.weight(node, weight)?;
        let tile = token_tile(self.max_rows(x));
        let kernel = matrix_kernel("linear", weight.spec.dtype, self.width(x), "main", tile);
        let mut dispatches = vec![];
        for slice in &weight.slices {
            let mut params = vec![self.rows_at(x), weight.spec.cols as u32];
            params.extend(slice_params(weight, slice));
            params.extend([self.width(out) as u32, u32::from(bias.is_some())]);
            dispatches.push(Dispatch {
                kernel: kernel.clone(),
                params,
                bindings: vec![
                    self.value(x),
                    whole(&slice.buffer, false),
                    self.optional(node, bias, &slice.buffer)?,
                    self.value(out),
                ],
                workgroups: [slice.rows.div_ceil(ROWS_PER_WORKGROUP), self.max_rows(x).div_ceil(tile), 1],
            });
        }
        Ok(dispatches)
    }

    fn moe_linear(
        &self,
        node: &Node,
        x: ValueId,
        experts: ValueId,
        (weight, bias): (WeightId, Option<WeightId>),
        out: ValueId,
    ) -> Lowered<'a> {
        let weight = self.weight(node, weight)?;
        let (cols, rows) = (weight.spec.cols, weight.spec.rows);
        let top_k = self.width(experts);
        let pairs = self.max_rows(x) * top_k;
        // Few pairs: each reads its expert's rows. Many: each expert gathers its pairs and reads its rows once.
        let grouped = pairs > weight.spec.experts;
        let (entry, tile, height) =
            if grouped { ("grouped", 8, weight.spec.experts) } else { ("main", 1, pairs) };
        // Either way a row of x starts at a multiple of `cols`.
        let kernel = matrix_kernel("moe_linear", weight.spec.dtype, cols, entry, tile);
        let row_per_pair = self.width(x) != cols;
        let mut dispatches = vec![];
        for slice in &weight.slices {
            let mut params = vec![cols as u32];
            params.extend(slice_params(weight, slice));
            params.extend([rows as u32, top_k as u32, u32::from(row_per_pair), u32::from(bias.is_some())]);
            dispatches.push(Dispatch {
                kernel: kernel.clone(),
                params,
                bindings: vec![
                    self.value(x),
                    whole(&slice.buffer, false),
                    self.optional(node, bias, &slice.buffer)?,
                    self.value(experts),
                    self.value(out),
                ],
                workgroups: [rows.div_ceil(ROWS_PER_WORKGROUP), height, 1],
            });
        }
        Ok(dispatches)
    }

    fn rope(
        &self,
        node: &Node,
        x: ValueId,
        table: WeightId,
        head_dim: usize,
        style: RopeStyle,
        out: ValueId,
    ) -> Lowered<'a> {
        let rotated = self.weight(node, table)?.spec.cols;
        let interleaved = u32::from(style == RopeStyle::Interleaved);
        let width = self.width(x);
        Ok(vec![Dispatch {
            kernel: kernel("rope"),
            params: vec![
                self.inputs.positions as u32,
                width as u32,
                head_dim as u32,
                rotated as u32,
                interleaved,
            ],
            bindings: vec![self.value(x), self.vector(node, table)?, self.value(out)],
            workgroups: [width.div_ceil(ELEMENTS_PER_WORKGROUP), self.max_rows(x), 1],
        }])
    }

    fn kv_write(&self, node: &Node, k: ValueId, v: ValueId, layer: KvLayer) -> Lowered<'a> {
        let (_, group, pools) = self.layer(node, layer)?;
        let words = slot_words(group);
        let slots_at = self.inputs.slots.get(layer.group).copied().unwrap_or_default();
        Ok(vec![Dispatch {
            kernel: kernel("kv_write"),
            params: vec![slots_at as u32, self.width(k) as u32, words as u32],
            bindings: vec![
                self.value(k),
                self.value(v),
                whole(&pools.keys, true),
                whole(&pools.values, true),
            ],
            workgroups: [words.div_ceil(LOOKUPS_PER_WORKGROUP), self.max_rows(k), 1],
        }])
    }

    fn attention(&self, node: &Node, out: ValueId) -> Lowered<'a> {
        let Op::Attention { q, layer, heads, head_dim, sinks, .. } = node.op else {
            return Ok(vec![]);
        };
        if head_dim > MAX_HEAD_DIM {
            return Err(BackendError::Unsupported {
                backend: NAME,
                what: format!("{}: heads of {head_dim} elements, at most {MAX_HEAD_DIM}", node.label),
            });
        }
        let (_, _, pools) = self.layer(node, layer)?;
        let form = Form { wide: head_dim.is_multiple_of(WIDE_HEAD), ..Form::default() };
        // Many heads keep a GPU busy one strand at a time.
        let at_once = if self.fuses && heads * self.max_rows(q) <= FEW_HEADS { 4 } else { 1 };
        let constants = vec![("HEAD_DIM", head_dim as u32), ("AT_ONCE", at_once)];
        Ok(vec![Dispatch {
            kernel: Kernel { constants, ..formed("attention", form) },
            params: self.attention_params(node)?,
            bindings: vec![
                self.value(q),
                whole(&pools.keys, false),
                whole(&pools.values, false),
                self.optional(node, sinks, &pools.keys)?,
                self.value(out),
            ],
            workgroups: [heads, self.max_rows(q), 1],
        }])
    }

    /// The fields the attention shaders' `Params` begin with.
    pub(crate) fn attention_params(&self, node: &Node) -> Result<Vec<u32>, BackendError> {
        let Op::Attention { layer, heads, num_kv_heads, scale, window, sinks, .. } = node.op else {
            return Err(missing(node, "attention"));
        };
        let (block_size, group, _) = self.layer(node, layer)?;
        let tables_at = self.inputs.block_tables.get(layer.group).copied().unwrap_or_default();
        let window = window.and_then(|window| u32::try_from(window).ok()).unwrap_or(NO_WINDOW);
        Ok(vec![
            self.inputs.positions as u32,
            self.inputs.sequences as u32,
            tables_at as u32,
            group.max_blocks_per_sequence as u32,
            block_size as u32,
            heads as u32,
            (heads / num_kv_heads) as u32,
            slot_words(group) as u32,
            window,
            u32::from(sinks.is_some()),
            scale.to_bits(),
        ])
    }

    fn router(&self, node: &Node, logits: ValueId, top_k: usize) -> Vec<Dispatch<'a>> {
        let bindings = [logits].iter().chain(&node.outputs).map(|&id| self.value(id)).collect();
        vec![Dispatch {
            kernel: kernel("router"),
            params: vec![self.width(logits) as u32, top_k as u32],
            bindings,
            workgroups: [self.max_rows(logits), 1, 1],
        }]
    }

    fn moe_combine(&self, x: ValueId, weights: ValueId, out: ValueId) -> Vec<Dispatch<'a>> {
        let width = self.width(out);
        vec![Dispatch {
            kernel: kernel("moe_combine"),
            params: vec![width as u32, self.width(weights) as u32],
            bindings: vec![self.value(x), self.value(weights), self.value(out)],
            workgroups: [width.div_ceil(ELEMENTS_PER_WORKGROUP), self.max_rows(out), 1],
        }]
    }

    fn gather_rows(&self, x: ValueId, out: ValueId) -> Vec<Dispatch<'a>> {
        let width = self.width(x);
        vec![Dispatch {
            kernel: kernel("gather_rows"),
            params: vec![self.inputs.out_rows as u32, width as u32],
            bindings: vec![self.value(x), self.value(out)],
            workgroups: [width.div_ceil(ELEMENTS_PER_WORKGROUP), self.max_rows(out), 1],
        }]
    }

    fn sample(&self, logits: ValueId, penalty_width: usize, out: ValueId) -> Vec<Dispatch<'a>> {
        let (vocab, rows) = (self.width(logits), self.max_rows(logits));
        let chunks = vocab.div_ceil(LOGITS_PER_WORKGROUP);
        let params = vec![
            vocab as u32,
            penalty_width as u32,
            self.inputs.penalty_tokens as u32,
            self.inputs.sampling as u32,
            chunks as u32,
        ];
        let logits = self.value(logits);
        let (end, start) = sample_scratch(logits.bytes as usize, rows, vocab);
        let part = |offset: usize, end: usize| Binding {
            buffer: self.scratch,
            offset: offset as u64,
            bytes: (end - offset) as u64,
            writable: true,
        };
        let (copy, maxima) = (part(0, start), part(start, end));
        vec![
            Dispatch {
                kernel: kernel("sample_scan"),
                params: params.clone(),
                bindings: vec![logits, copy, maxima],
                workgroups: [chunks, rows, 1],
            },
            Dispatch {
                kernel: kernel("sample"),
                params,
                bindings: vec![logits, copy, self.value(out), maxima],
                workgroups: [rows, 1, 1],
            },
        ]
    }
}

/// Units per row, rows and start of a slice, and its planes: the middle of the matrix shaders' `Params`.
fn slice_params(weight: &Weight, slice: &Slice) -> [u32; 6] {
    [
        weight.units() as u32,
        slice.rows as u32,
        slice.start as u32,
        weight.layout.row_words as u32,
        slice.tail_at as u32,
        weight.layout.tail_words as u32,
    ]
}

/// Whether rows of this width are read four columns at a time.
pub(crate) const fn is_wide(cols: usize) -> bool {
    cols.is_multiple_of(4)
}

/// A kernel for one row of x; `others` are the format of the matrices of a second one, and the first of them.
pub(crate) fn one_row_kernel(
    stem: &'static str,
    weight: &Weight,
    normed: bool,
    others: Option<(DType, usize)>,
) -> Kernel {
    let form = Form {
        weight: Some(weight.spec.dtype),
        second: others.map(|(dtype, _)| dtype),
        wide: is_wide(weight.spec.cols),
        normed,
    };
    let ahead = weight.units().div_ceil(ONE_LANES).clamp(1, MAX_AHEAD);
    let mut constants = vec![("AHEAD", ahead as u32)];
    constants.extend(others.map(|(_, first)| ("OTHERS", first as u32)));
    Kernel { constants, ..formed(stem, form) }
}

fn matrix_kernel(
    stem: &'static str,
    dtype: DType,
    x_width: usize,
    entry: &'static str,
    tile: usize,
) -> Kernel {
    let form = Form { weight: Some(dtype), wide: is_wide(x_width), ..Form::default() };
    Kernel { entry, constants: vec![("TOKENS", tile as u32)], ..formed(stem, form) }
}
