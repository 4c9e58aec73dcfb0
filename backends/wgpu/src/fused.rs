//! Dispatches of fused work.

use worker_orcd_core::{BackendError, DType, Node, Op, RopeStyle, SwiGluKind, ValueId, WeightId};

use crate::fuse::Work;
use crate::lower::{
    Binding, Dispatch, Lowered, Lowering, ONE_ROWS_PER_WORKGROUP, formed, missing, one_row_kernel, whole,
};
use crate::shader::{Form, Kernel};
use crate::weights::{Slice, Weight};

/// First workgroup of a matrix that is not there.
const NO_MATRIX: u32 = u32::MAX;

/// A norm in front of products: its input, weight and epsilon.
#[derive(Clone, Copy)]
struct Front {
    x: ValueId,
    norm: Option<(WeightId, f32)>,
}

impl Front {
    fn eps(&self) -> u32 {
        self.norm.map_or(0, |(_, eps)| eps.to_bits())
    }
}

fn output(node: &Node) -> Result<ValueId, BackendError> {
    node.outputs.first().copied().ok_or_else(|| missing(node, "output"))
}

fn only_slice<'a>(node: &Node, weight: &'a Weight) -> Result<&'a Slice, BackendError> {
    weight.slices.first().ok_or_else(|| missing(node, "slice"))
}

impl<'a> Lowering<'a> {
    fn node(&self, index: usize) -> &'a Node {
        &self.program.nodes()[index]
    }

    /// The dispatches of one work.
    pub(crate) fn lower_work(&self, work: &Work) -> Lowered<'a> {
        match work {
            Work::Node(index) => self.lower(self.node(*index)),
            Work::Linears { norm, linears, residual } => match linears[..] {
                [linear] => self.linear_one(*norm, linear, *residual),
                _ => self.linear_group(*norm, linears),
            },
            Work::Gated { norm, gate, up, act } => self.gated(*norm, [*gate, *up], *act),
            Work::ExpertsSum { down, combine, residual } => self.experts_sum(*down, *combine, *residual),
            Work::Attention { ropes, write, attention } => self.attention_one(*ropes, *write, *attention),
        }
    }

    /// The input of products that read `x`, which is what `norm` writes if there is one.
    fn front(&self, x: ValueId, norm: Option<usize>) -> Front {
        match norm.map(|index| &self.node(index).op) {
            Some(&Op::RmsNorm { x, weight, eps }) => Front { x, norm: Some((weight, eps)) },
            _ => Front { x, norm: None },
        }
    }

    /// The norm's weight, or `other` where the shader reads none.
    fn norm_binding(
        &self,
        node: &Node,
        norm: Option<(WeightId, f32)>,
        other: &'a wgpu::Buffer,
    ) -> Result<Binding<'a>, BackendError> {
        self.optional(node, norm.map(|(weight, _)| weight), other)
    }

    fn linear_one(&self, norm: Option<usize>, linear: usize, residual: Option<usize>) -> Lowered<'a> {
        let node = self.node(linear);
        let Op::Linear { x, weight, bias } = node.op else { return Err(missing(node, "product")) };
        let front = self.front(x, norm);
        let (residual, out) = self.sum_with(output(node)?, residual)?;
        let weight = self.weight(node, weight)?;
        let slice = only_slice(node, weight)?;
        let params = vec![
            self.rows_at(front.x),
            weight.spec.cols as u32,
            weight.units() as u32,
            weight.spec.rows as u32,
            weight.layout.row_words as u32,
            slice.tail_at as u32,
            weight.layout.tail_words as u32,
            u32::from(bias.is_some()),
            u32::from(residual.is_some()),
            front.eps(),
        ];
        let bindings = vec![
            self.value(front.x),
            self.norm_binding(node, front.norm, &slice.buffer)?,
            whole(&slice.buffer, false),
            self.optional(node, bias, &slice.buffer)?,
            self.value(out),
            self.value(residual.unwrap_or(out)),
        ];
        Ok(vec![Dispatch {
            kernel: one_row_kernel("linear_one", weight, front.norm.is_some(), None),
            params,
            bindings,
            workgroups: [weight.spec.rows.div_ceil(ONE_ROWS_PER_WORKGROUP), 1, 1],
        }])
    }

    /// What is added to `own` by the node `add`, if there is one, and where the result goes.
    fn sum_with(&self, own: ValueId, add: Option<usize>) -> Result<(Option<ValueId>, ValueId), BackendError> {
        let Some(add) = add.map(|index| self.node(index)) else { return Ok((None, own)) };
        match add.op {
            Op::Add { a, b } => Ok((Some(if a == own { b } else { a }), output(add)?)),
            _ => Err(missing(add, "sum")),
        }
    }

    fn linear_group(&self, norm: Option<usize>, linears: &[usize]) -> Lowered<'a> {
        let (mut weights, mut planes, mut outs) = (vec![], vec![], vec![]);
        let (mut biases, mut has_bias, mut groups) = (vec![], 0, 0);
        let [mut rows, mut starts] = [[0; 4], [NO_MATRIX; 4]];
        let mut front = None;
        for (matrix, &linear) in linears.iter().enumerate() {
            let node = self.node(linear);
            let Op::Linear { x, weight, bias } = node.op else { return Err(missing(node, "product")) };
            let weight = self.weight(node, weight)?;
            let slice = only_slice(node, weight)?;
            rows[matrix] = slice.rows as u32;
            starts[matrix] = groups as u32;
            groups += slice.rows.div_ceil(ONE_ROWS_PER_WORKGROUP);
            has_bias |= u32::from(bias.is_some()) << matrix;
            biases.push(self.optional(node, bias, &slice.buffer)?);
            outs.push(self.value(output(node)?));
            planes.push((weight, slice));
            weights.push(whole(&slice.buffer, false));
            front = Some((node, self.front(x, norm)));
        }
        let (Some((node, front)), Some(&(weight, slice))) = (front, planes.first()) else {
            return Ok(vec![]);
        };
        for bindings in [&mut weights, &mut biases, &mut outs] {
            let last = bindings[bindings.len() - 1];
            bindings.resize(3, last);
        }
        let mut params = [rows.to_vec(), starts.to_vec(), plane_params(&planes)].concat();
        params.extend([
            has_bias,
            self.rows_at(front.x),
            weight.spec.cols as u32,
            weight.units() as u32,
            front.eps(),
        ]);
        let mut bindings = vec![self.value(front.x), self.norm_binding(node, front.norm, &slice.buffer)?];
        bindings.extend([weights, biases, outs].concat());
        let kernel = one_row_kernel("linear_group", weight, front.norm.is_some(), others(&planes));
        Ok(vec![Dispatch { kernel, params, bindings, workgroups: [groups, 1, 1] }])
    }

    fn gated(&self, norm: Option<usize>, products: [usize; 2], act: usize) -> Lowered<'a> {
        let act = self.node(act);
        let Op::SwiGlu { kind, .. } = act.op else { return Err(missing(act, "activation")) };
        let part = |index: usize| {
            let node = self.node(index);
            let (x, weight, bias, experts) = match node.op {
                Op::Linear { x, weight, bias } => (x, weight, bias, None),
                Op::MoeLinear { x, weight, bias, experts } => (x, weight, bias, Some(experts)),
                _ => return Err(missing(node, "product")),
            };
            let weight = self.weight(node, weight)?;
            let slice = only_slice(node, weight)?;
            let bias_binding = self.optional(node, bias, &slice.buffer)?;
            Ok((x, weight, slice, bias.is_some(), bias_binding, experts))
        };
        let (x, weight, gate, gate_biased, gate_bias, experts) = part(products[0])?;
        let (_, up_weight, up, up_biased, up_bias, _) = part(products[1])?;
        let planes = [(weight, gate), (up_weight, up)];
        let front = self.front(x, norm);
        let (clamped, alpha, limit) = swiglu_params(kind);
        let mut params = plane_params(&planes);
        params.extend([
            weight.spec.cols as u32,
            weight.units() as u32,
            weight.spec.rows as u32,
            u32::from(experts.is_some()),
            u32::from(gate_biased) | u32::from(up_biased) << 1,
            clamped,
            alpha,
            limit,
            self.rows_at(front.x),
            front.eps(),
        ]);
        let out = self.value(output(act)?);
        let bindings = vec![
            self.value(front.x),
            self.norm_binding(act, front.norm, &gate.buffer)?,
            whole(&gate.buffer, false),
            whole(&up.buffer, false),
            whole(&up.buffer, false),
            gate_bias,
            up_bias,
            experts.map_or(out, |experts| self.value(experts)),
            out,
        ];
        let choices = experts.map_or(1, |experts| self.width(experts));
        Ok(vec![Dispatch {
            kernel: one_row_kernel("gated_one", weight, front.norm.is_some(), others(&planes)),
            params,
            bindings,
            workgroups: [weight.spec.rows.div_ceil(ONE_ROWS_PER_WORKGROUP), choices, 1],
        }])
    }

    fn experts_sum(&self, down: usize, combine: usize, residual: Option<usize>) -> Lowered<'a> {
        let (node, sum) = (self.node(down), self.node(combine));
        let (Op::MoeLinear { x, experts, weight, bias }, &Op::MoeCombine { weights, .. }) =
            (&node.op, &sum.op)
        else {
            return Err(missing(node, "weighted sum"));
        };
        let weight = self.weight(node, *weight)?;
        let slice = only_slice(node, weight)?;
        let (residual, out) = self.sum_with(output(sum)?, residual)?;
        let top_k = self.width(weights);
        let params = vec![
            weight.spec.cols as u32,
            weight.units() as u32,
            weight.layout.row_words as u32,
            slice.tail_at as u32,
            weight.layout.tail_words as u32,
            weight.spec.rows as u32,
            top_k as u32,
            u32::from(bias.is_some()),
            u32::from(residual.is_some()),
        ];
        let bindings = vec![
            self.value(*x),
            // Where a norm would be.
            whole(&slice.buffer, false),
            whole(&slice.buffer, false),
            self.optional(node, *bias, &slice.buffer)?,
            self.value(*experts),
            self.value(weights),
            self.value(out),
            self.value(residual.unwrap_or(out)),
        ];
        let rows_per_workgroup = (ONE_ROWS_PER_WORKGROUP / top_k).max(1);
        Ok(vec![Dispatch {
            kernel: one_row_kernel("experts_sum_one", weight, false, None),
            params,
            bindings,
            workgroups: [weight.spec.rows.div_ceil(rows_per_workgroup), 1, 1],
        }])
    }

    fn attention_one(&self, ropes: Option<[usize; 2]>, write: usize, attention: usize) -> Lowered<'a> {
        let (node, store) = (self.node(attention), self.node(write));
        let (&Op::Attention { q, layer, heads, head_dim, sinks, .. }, &Op::KvWrite { k, v, .. }) =
            (&node.op, &store.op)
        else {
            return Err(missing(node, "cache write"));
        };
        let (_, _, pools) = self.layer(node, layer)?;
        let slots_at = self.inputs.slots.get(layer.group).copied().unwrap_or_default();
        let mut params = self.attention_params(node)?;
        params.push(slots_at as u32);
        let turns = ropes.map(|[q, k]| (&self.node(q).op, &self.node(k).op));
        let (mut sources, mut angles, mut rotation) = ([q, k], None, [0, 0]);
        if let Some((&Op::Rope { x: q, table, style, .. }, &Op::Rope { x: k, .. })) = turns {
            let rotated = self.weight(node, table)?.spec.cols;
            rotation = [rotated as u32, u32::from(style == RopeStyle::Interleaved)];
            (sources, angles) = ([q, k], Some(table));
        }
        params.extend(rotation);
        // What stands for sinks and angles nobody reads must not be a buffer that is written.
        let other = self.unread(node)?;
        let kernel = formed("attention_one", Form::default());
        Ok(vec![Dispatch {
            kernel: Kernel { constants: vec![("HEAD_DIM", head_dim as u32), ("AT_ONCE", 4)], ..kernel },
            params,
            bindings: vec![
                self.value(sources[0]),
                whole(&pools.keys, true),
                whole(&pools.values, true),
                self.optional(node, sinks, other)?,
                self.value(output(node)?),
                self.value(sources[1]),
                self.value(v),
                self.optional(node, angles, other)?,
            ],
            workgroups: [heads, 1, 1],
        }])
    }

    /// Some weight's buffer.
    fn unread(&self, node: &Node) -> Result<&'a wgpu::Buffer, BackendError> {
        let first = self.weights.iter().flat_map(|weight| &weight.slices).next();
        first.map(|slice| &slice.buffer).ok_or_else(|| missing(node, "weight"))
    }
}

/// `row_words`, `tail_at` and `tail_words` of the shaders' `Params`, by matrix.
fn plane_params(planes: &[(&Weight, &Slice)]) -> Vec<u32> {
    let mut params = [[0; 4]; 3];
    for (matrix, (weight, slice)) in planes.iter().enumerate() {
        params[0][matrix] = weight.layout.row_words as u32;
        params[1][matrix] = slice.tail_at as u32;
        params[2][matrix] = weight.layout.tail_words as u32;
    }
    params.concat()
}

/// The second format of some matrices, and the first of those that have it and come last.
fn others(planes: &[(&Weight, &Slice)]) -> Option<(DType, usize)> {
    let dtype = |index: usize| planes[index].0.spec.dtype;
    (1..planes.len()).find(|&index| dtype(index) != dtype(0)).map(|index| (dtype(index), index))
}

/// `clamped`, `alpha` and `limit` of the shaders' `Params`.
pub(crate) fn swiglu_params(kind: SwiGluKind) -> (u32, u32, u32) {
    match kind {
        SwiGluKind::Silu => (0, 1.0_f32.to_bits(), 0),
        SwiGluKind::Clamped { alpha, limit } => (1, alpha.to_bits(), limit.to_bits()),
    }
}
