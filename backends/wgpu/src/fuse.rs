//! What a step of one token does in one dispatch: a table of rules over a program's nodes, before anything is lowered.
//!
//! With one token a dispatch has little to do, and the wait between two of them is most of a step. So norms move in front
//! of the products that read them, gated activations, weighted sums and residuals behind them, products of one input
//! side by side, and rotation and cache writes into attention. A value that is an output of the program, or that anyone
//! outside reads, is written as ever; where that is not possible the rule does not apply. Every fused shader has the
//! arithmetic of the operations it joins, in their order: the bits are the same.
//!
//! A fused dispatch reads its operands at the place of its last operation or writes results at that of its first, so the
//! values of such steps never share memory (`plan::places`).

use worker_orcd_core::{DType, Node, Op, Program, ValueId, WeightId, WeightSpec};

use crate::lower::{MAX_HEAD_DIM, ONE_ROWS_PER_WORKGROUP, WIDE_HEAD, is_wide};

/// Most rows of a product in the shape for one row of x, which waits little for the weight but reads x more often, and whose
/// every workgroup finds the norm in front of it for itself. A vocabulary is beyond it.
const MAX_ROWS: usize = 16 << 10;
/// Products of one dispatch.
const MAX_LINEARS: usize = 3;

/// What is done in one go; numbers are indices of the program's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A node by itself.
    Node(usize),
    /// Linears of one row of x: one with or without a residual, or up to three, those of a second format last.
    Linears { norm: Option<usize>, linears: Vec<usize>, residual: Option<usize> },
    /// Two products and the gated activation behind them.
    Gated { norm: Option<usize>, gate: usize, up: usize, act: usize },
    /// The experts' last product, their weighted sum and the residual.
    ExpertsSum { down: usize, combine: usize, residual: Option<usize> },
    /// Rotation of q and k, cache write and attention.
    Attention { ropes: Option<[usize; 2]>, write: usize, attention: usize },
}

impl Work {
    /// The nodes it does, in the program's order.
    pub(crate) fn nodes(&self) -> Vec<usize> {
        let mut nodes = match self {
            Self::Node(index) => vec![*index],
            Self::Linears { norm, linears, residual } => {
                norm.iter().chain(linears).chain(residual).copied().collect()
            }
            Self::Gated { norm, gate, up, act } => norm.iter().chain([gate, up, act]).copied().collect(),
            Self::ExpertsSum { down, combine, residual } => {
                [down, combine].into_iter().chain(residual).copied().collect()
            }
            Self::Attention { ropes, write, attention } => {
                ropes.iter().flatten().chain([write, attention]).copied().collect()
            }
        };
        nodes.sort_unstable();
        nodes
    }

    /// Where in the program it happens: products once their input is there, the rest once everything is.
    fn place(&self) -> usize {
        let nodes = self.nodes();
        let place = match self {
            Self::Linears { linears, residual: None, .. } => linears.iter().min(),
            _ => nodes.last(),
        };
        place.copied().unwrap_or_default()
    }
}

/// A program without any fusion.
pub(crate) fn unfused(program: &Program) -> Vec<Work> {
    (0..program.nodes().len()).map(Work::Node).collect()
}

/// The program's work in order. `whole` gives a weight that lies on the device in one piece.
pub(crate) fn fuse<'w>(program: &Program, whole: &dyn Fn(WeightId) -> Option<&'w WeightSpec>) -> Vec<Work> {
    if program.shape().tokens != 1 || program.shape().rows > 1 {
        return unfused(program);
    }
    let mut fusing = Fusing::start(program, whole);
    fusing.gated();
    fusing.experts_sums();
    fusing.residuals();
    fusing.attentions();
    fusing.groups();
    fusing.singles();
    fusing.norms();
    fusing.finish()
}

struct Fusing<'p, 'w> {
    program: &'p Program,
    whole: &'p dyn Fn(WeightId) -> Option<&'w WeightSpec>,
    /// By value: the node that writes it, the nodes that read it.
    writers: Vec<usize>,
    readers: Vec<Vec<usize>>,
    /// By node: whether some work has it.
    taken: Vec<bool>,
    works: Vec<Work>,
}

impl<'p, 'w> Fusing<'p, 'w> {
    fn start(program: &'p Program, whole: &'p dyn Fn(WeightId) -> Option<&'w WeightSpec>) -> Self {
        let mut writers = vec![usize::MAX; program.values().len()];
        let mut readers = vec![vec![]; program.values().len()];
        for (index, node) in program.nodes().iter().enumerate() {
            for output in &node.outputs {
                writers[output.0 as usize] = index;
            }
            for read in node.op.reads() {
                readers[read.0 as usize].push(index);
            }
        }
        let taken = vec![false; program.nodes().len()];
        Self { program, whole, writers, readers, taken, works: vec![] }
    }

    fn node(&self, index: usize) -> &'p Node {
        &self.program.nodes()[index]
    }

    fn count(&self) -> usize {
        self.program.nodes().len()
    }

    fn width(&self, id: ValueId) -> usize {
        self.program.value(id).width
    }

    /// The node that writes a value nobody but `reader` sees, unless some work has it already.
    fn private(&self, id: ValueId, reader: usize) -> Option<usize> {
        let alone = self.readers[id.0 as usize] == [reader] && !self.program.outputs().contains(&id);
        let writer = self.writers[id.0 as usize];
        (alone && !self.taken[writer]).then_some(writer)
    }

    fn take(&mut self, work: Work) {
        for node in work.nodes() {
            self.taken[node] = true;
        }
        self.works.push(work);
    }

    /// x and the matrix of a product that is not too large.
    fn linear(&self, index: usize) -> Option<(ValueId, &'w WeightSpec)> {
        match self.node(index).op {
            Op::Linear { x, weight, .. } => {
                let spec = (self.whole)(weight).filter(|spec| spec.rows <= MAX_ROWS);
                spec.map(|spec| (x, spec))
            }
            _ => None,
        }
    }

    /// x, experts and the matrix of a product with experts.
    fn expert_product(&self, index: usize) -> Option<(ValueId, ValueId, &'w WeightSpec)> {
        match self.node(index).op {
            Op::MoeLinear { x, experts, weight, .. } => (self.whole)(weight).map(|spec| (x, experts, spec)),
            _ => None,
        }
    }

    /// Format and input of either product, where the input is shared by all its rows.
    fn product(&self, index: usize) -> Option<(ValueId, Option<ValueId>, &'w WeightSpec)> {
        if let Some((x, spec)) = self.linear(index) {
            return Some((x, None, spec));
        }
        let (x, experts, spec) = self.expert_product(index)?;
        (self.width(x) == spec.cols).then_some((x, Some(experts), spec))
    }

    fn gated(&mut self) {
        for act in 0..self.count() {
            let Op::SwiGlu { gate, up, .. } = self.node(act).op else { continue };
            let (Some(gate), Some(up)) = (self.private(gate, act), self.private(up, act)) else { continue };
            let (Some(a), Some(b)) = (self.product(gate), self.product(up)) else { continue };
            if gate != up && (a.0, a.1) == (b.0, b.1) {
                self.take(Work::Gated { norm: None, gate, up, act });
            }
        }
    }

    fn experts_sums(&mut self) {
        for combine in 0..self.count() {
            let Op::MoeCombine { x, weights } = self.node(combine).op else { continue };
            let Some(down) = self.private(x, combine) else { continue };
            let Some((x, _, spec)) = self.expert_product(down) else { continue };
            let top_k = self.width(weights);
            if top_k > ONE_ROWS_PER_WORKGROUP || self.width(x) != top_k * spec.cols {
                continue;
            }
            let sum = self.node(combine).outputs[0];
            let residual = self.readers[sum.0 as usize].first().copied().filter(|&next| {
                let add = matches!(self.node(next).op, Op::Add { .. }) && !self.taken[next];
                add && self.private(sum, next) == Some(combine)
            });
            self.take(Work::ExpertsSum { down, combine, residual });
        }
    }

    fn residuals(&mut self) {
        for add in 0..self.count() {
            let Op::Add { a, b } = self.node(add).op else { continue };
            let change = [b, a]
                .into_iter()
                .find_map(|value| self.private(value, add).filter(|&writer| self.linear(writer).is_some()));
            if let Some(linear) = change.filter(|_| !self.taken[add]) {
                self.take(Work::Linears { norm: None, linears: vec![linear], residual: Some(add) });
            }
        }
    }

    fn attentions(&mut self) {
        for attention in 0..self.count() {
            let Op::Attention { q, layer, head_dim, .. } = self.node(attention).op else { continue };
            // The last that touches the layer's cache before: a write nobody has read yet.
            let touches = |index: &usize| match self.node(*index).op {
                Op::KvWrite { layer: at, .. } | Op::Attention { layer: at, .. } => at == layer,
                _ => false,
            };
            let Some(write) = (0..attention).rfind(touches) else { continue };
            let writes = matches!(self.node(write).op, Op::KvWrite { .. });
            if writes && head_dim.is_multiple_of(WIDE_HEAD) && head_dim <= MAX_HEAD_DIM {
                let ropes = self.ropes(q, write, attention);
                self.take(Work::Attention { ropes, write, attention });
            }
        }
    }

    /// The rotations of q and k, when both are nobody else's and alike.
    fn ropes(&self, q: ValueId, write: usize, attention: usize) -> Option<[usize; 2]> {
        let Op::KvWrite { k, .. } = self.node(write).op else { return None };
        let (of_q, of_k) = (self.private(q, attention)?, self.private(k, write)?);
        match (&self.node(of_q).op, &self.node(of_k).op) {
            (
                Op::Rope { table: a, style: left, head_dim: m, .. },
                Op::Rope { table: b, style: right, head_dim: n, .. },
            ) if (a, left, m) == (b, right, n) => Some([of_q, of_k]),
            _ => None,
        }
    }

    fn groups(&mut self) {
        for first in 0..self.count() {
            if self.taken[first] {
                continue;
            }
            let Some((x, spec)) = self.linear(first) else { continue };
            let beside = |index: usize| {
                let other = self.linear(index).filter(|_| !self.taken[index]);
                other.filter(|(from, _)| *from == x).map(|(_, spec)| (index, spec.dtype))
            };
            let found: Vec<(usize, DType)> = (first..self.count()).filter_map(beside).collect();
            let (mut linears, others): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(_, dtype)| *dtype == spec.dtype);
            let second = others.first().map(|(_, dtype)| *dtype);
            linears.extend(others.into_iter().filter(|(_, dtype)| Some(*dtype) == second));
            let linears: Vec<usize> = linears.into_iter().map(|(index, _)| index).take(MAX_LINEARS).collect();
            if linears.len() > 1 {
                self.take(Work::Linears { norm: None, linears, residual: None });
            }
        }
    }

    /// Gives what is left of the products of one row the shape for those; the largest fill a GPU as they are.
    fn singles(&mut self) {
        for index in 0..self.count() {
            if self.linear(index).is_some() && !self.taken[index] {
                self.take(Work::Linears { norm: None, linears: vec![index], residual: None });
            }
        }
    }

    /// Moves a norm in front of the products that read it, when nobody else does.
    fn norms(&mut self) {
        for norm in 0..self.count() {
            let Op::RmsNorm { .. } = self.node(norm).op else { continue };
            let normed = self.node(norm).outputs[0];
            let readers = self.readers[normed.0 as usize].clone();
            let fits = is_wide(self.width(normed)) && !self.program.outputs().contains(&normed);
            if !fits || readers.is_empty() || !readers.iter().all(|&reader| self.takes_norm(reader)) {
                continue;
            }
            for reader in readers {
                self.put_in_front(norm, reader);
            }
            self.taken[norm] = true;
        }
    }

    fn takes_norm(&self, reader: usize) -> bool {
        self.works.iter().any(|work| match work {
            Work::Gated { gate, up, .. } => [gate, up].contains(&&reader),
            Work::Linears { linears, .. } => linears.contains(&reader),
            _ => false,
        })
    }

    fn put_in_front(&mut self, front: usize, reader: usize) {
        for work in &mut self.works {
            match work {
                Work::Gated { norm, gate, up, .. } if [*gate, *up].contains(&reader) => *norm = Some(front),
                Work::Linears { norm, linears, .. } if linears.contains(&reader) => *norm = Some(front),
                _ => {}
            }
        }
    }

    fn finish(self) -> Vec<Work> {
        let alone = (0..self.count()).filter(|&index| !self.taken[index]).map(Work::Node);
        let mut works: Vec<Work> = alone.chain(self.works.iter().cloned()).collect();
        works.sort_by_key(Work::place);
        works
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::{BackendError, KvLayer, ProgramBuilder, RopeStyle, StepShape, SwiGluKind};

    use super::*;

    const HIDDEN: usize = 64;
    const HEADS: usize = 4;
    const FFN: usize = 96;

    fn specs(value_format: DType) -> Vec<WeightSpec> {
        let matrix = |label: &str, dtype, rows| WeightSpec::matrix(label, dtype, rows, HIDDEN);
        vec![
            matrix("embed", DType::Q8_0, 300),
            WeightSpec::vector("norm", 1, HIDDEN),
            matrix("q", DType::Q4_0, HIDDEN),
            matrix("k", DType::Q4_0, HIDDEN),
            matrix("v", value_format, HIDDEN),
            WeightSpec::vector("rope", 64, HIDDEN / HEADS),
            matrix("o", DType::Q8_0, HIDDEN),
            matrix("router", DType::F32, 6),
            WeightSpec::experts("gate", DType::MXFP4, 6, FFN, HIDDEN),
            WeightSpec::experts("up", DType::MXFP4, 6, FFN, HIDDEN),
            WeightSpec::experts("down", DType::MXFP4, 6, HIDDEN, FFN),
        ]
    }

    /// A layer of attention and experts, then logits; `output` names a value to declare an output besides.
    fn layer(specs: &[WeightSpec], tokens: usize, output: &str) -> Result<Program, BackendError> {
        let shape = StepShape { tokens, rows: 1, sequences: 1 };
        let mut b = ProgramBuilder::new("layer", shape, specs);
        let id = WeightId;
        let x = b.embed("embed", id(0))?;
        let first_normed = b.rms_norm("norm", x, id(1), 1e-5)?;
        let unturned = b.linear("q", first_normed, id(2), None)?;
        let k = b.linear("k", first_normed, id(3), None)?;
        let v = b.linear("v", first_normed, id(4), None)?;
        let heads = (HEADS, HIDDEN / HEADS);
        let q = b.rope("q.rope", unturned, id(5), heads, RopeStyle::HalfSplit)?;
        let k = b.rope("k.rope", k, id(5), heads, RopeStyle::HalfSplit)?;
        let layer = KvLayer { group: 0, index: 0 };
        b.kv_write("write", k, v, layer)?;
        let (num_kv_heads, head_dim, scale, window, sinks) = (HEADS, HIDDEN / HEADS, 0.25, None, None);
        let op = Op::Attention { q, layer, heads: HEADS, num_kv_heads, head_dim, scale, window, sinks };
        let mixed = b.attention("mix", op)?;
        let o = b.linear("o", mixed, id(6), None)?;
        let x = b.add("residual", x, o)?;
        let normed = b.rms_norm("ffn.norm", x, id(1), 1e-5)?;
        let logits = b.linear("router", normed, id(7), None)?;
        let (experts, weights) = b.router("route", logits, 2)?;
        let gate = b.moe_linear("gate", normed, experts, id(8), None)?;
        let up = b.moe_linear("up", normed, experts, id(9), None)?;
        let act = b.swiglu("act", gate, up, SwiGluKind::Silu)?;
        let down = b.moe_linear("down", act, experts, id(10), None)?;
        let combined = b.moe_combine("combine", down, weights)?;
        let x = b.add("ffn.residual", x, combined)?;
        let logits = b.linear("lm_head", x, id(0), None)?;
        b.output(logits);
        let named = [
            ("norm", first_normed),
            ("q", unturned),
            ("q.rope", q),
            ("o", o),
            ("gate", gate),
            ("combine", combined),
        ];
        for (_, value) in named.into_iter().filter(|(label, _)| *label == output) {
            b.output(value);
        }
        Ok(b.finish())
    }

    fn labels(program: &Program, works: &[Work]) -> Vec<String> {
        let label = |work: &Work| {
            let nodes = work.nodes().into_iter().map(|index| program.nodes()[index].label.as_str());
            nodes.collect::<Vec<_>>().join("+")
        };
        works.iter().map(label).collect()
    }

    /// The fused program, checked: every node is done, and nothing is read before it is written.
    fn fused(specs: &[WeightSpec], tokens: usize, output: &str, split: Option<u32>) -> Vec<String> {
        let program = layer(specs, tokens, output).unwrap();
        let whole = |id: WeightId| specs.get(id.0 as usize).filter(|_| split != Some(id.0));
        let works = fuse(&program, &whole);
        let mut done: Vec<usize> = vec![];
        for work in &works {
            let mut nodes = work.nodes();
            let written = |id: &ValueId| {
                let mut before = done.iter().chain(&nodes).map(|&index| &program.nodes()[index]);
                before.any(|node| node.outputs.contains(id))
            };
            for read in nodes.iter().flat_map(|&index| program.nodes()[index].op.reads()) {
                assert!(written(&read), "{work:?} reads {read:?} too early");
            }
            done.append(&mut nodes);
        }
        done.sort_unstable();
        done.dedup();
        assert_eq!(done.len(), program.nodes().len(), "{works:?}");
        labels(&program, &works)
    }

    #[test]
    fn a_layer_of_one_token_is_seven_works() {
        let expected = [
            "embed",
            "norm+q+k+v",
            "q.rope+k.rope+write+mix",
            "o+residual",
            "ffn.norm+router",
            "route",
            "ffn.norm+gate+up+act",
            "down+combine+ffn.residual",
            "lm_head",
        ];
        assert_eq!(fused(&specs(DType::Q4_0), 1, "", None), expected);
    }

    #[test]
    fn several_tokens_are_not_fused() {
        assert!(fused(&specs(DType::Q4_0), 2, "", None).iter().all(|label| !label.contains('+')));
    }

    #[test]
    fn what_someone_else_sees_is_written() {
        let works = |output| fused(&specs(DType::Q4_0), 1, output, None);
        assert!(works("norm").contains(&"norm".into()));
        assert!(works("q.rope").contains(&"q.rope".into()));
        assert!(works("q.rope").contains(&"write+mix".into()));
        assert!(works("o").contains(&"o".into()));
        assert!(works("gate").contains(&"act".into()));
        assert!(works("combine").contains(&"down+combine".into()));
        // The result of a fused work may be anyone's.
        assert!(works("q").contains(&"norm+q+k+v".into()));
        let tapped = layer(&specs(DType::Q4_0), 1, "").unwrap().tapped();
        let specs = specs(DType::Q4_0);
        let works = labels(&tapped, &fuse(&tapped, &|id| specs.get(id.0 as usize)));
        assert_eq!(
            works.iter().filter(|label| label.contains('+')).collect::<Vec<_>>(),
            ["q+k+v", "write+mix"]
        );
    }

    #[test]
    fn third_formats_and_weights_in_slices_go_by_themselves() {
        assert!(
            fused(&specs(DType::Q8_0), 1, "", None).contains(&"norm+q+k+v".into()),
            "two formats are one work"
        );
        let mut three = specs(DType::Q8_0);
        three[3] = WeightSpec::matrix("k", DType::Q5_0, HIDDEN, HIDDEN);
        let works = fused(&three, 1, "", None);
        assert!(works.contains(&"norm+q+k".into()) && works.contains(&"norm+v".into()), "{works:?}");
        let works = fused(&specs(DType::Q4_0), 1, "", Some(4));
        assert!(works.contains(&"norm".into()) && works.contains(&"q+k".into()), "{works:?}");
        assert!(works.contains(&"v".into()), "{works:?}");
        let works = fused(&specs(DType::Q4_0), 1, "", Some(8));
        assert!(works.contains(&"gate".into()) && works.contains(&"act".into()), "{works:?}");
        assert!(works.contains(&"ffn.norm".into()), "{works:?}");
    }
}
