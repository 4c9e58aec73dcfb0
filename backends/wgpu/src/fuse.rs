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

use worker_orcd_core::{DType, KvLayer, Node, Op, Program, ValueId, WeightId, WeightSpec};

use crate::lower::{MAX_HEAD_DIM, ONE_ROWS_PER_WORKGROUP, WIDE_HEAD, is_wide};

/// Most rows of a product in the shape for one row of x, which waits little for the weight but reads x more often, and whose
/// every workgroup finds the norm in front of it for itself. A vocabulary is beyond it.
const MAX_ROWS: usize = 32 << 10;
/// Products of one dispatch.
const MAX_LINEARS: usize = 3;

/// What is done in one go; numbers are indices of the program's nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A node by itself.
    Node(usize),
    /// Linears of one row of x: one with or without a residual, or up to three of one format.
    Linears { norm: Option<usize>, linears: Vec<usize>, residual: Option<usize> },
    /// Two products of one format and the gated activation behind them.
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
            if gate != up && (a.0, a.1, a.2.dtype) == (b.0, b.1, b.2.dtype) {
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
            let writes =
                |index: &usize| matches!(self.node(*index).op, Op::KvWrite { layer: at, .. } if at == layer);
            let Some(write) = (0..attention).rfind(writes) else { continue };
            let fits = head_dim.is_multiple_of(WIDE_HEAD) && head_dim <= MAX_HEAD_DIM;
            if fits && !self.taken[write] && !self.read_between(layer, write, attention) {
                let ropes = self.ropes(q, write, attention);
                self.take(Work::Attention { ropes, write, attention });
            }
        }
    }

    /// Whether another attention reads the layer between two nodes, or a second one would need the write.
    fn read_between(&self, layer: KvLayer, write: usize, attention: usize) -> bool {
        let reads =
            |index: &usize| matches!(self.node(*index).op, Op::Attention { layer: at, .. } if at == layer);
        (write..attention).any(|index| reads(&index))
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
            let dtype: DType = spec.dtype;
            let beside = |&index: &usize| {
                let other = self.linear(index).filter(|_| !self.taken[index]);
                other.is_some_and(|(from, spec)| from == x && spec.dtype == dtype)
            };
            let linears: Vec<usize> = (first..self.count()).filter(beside).take(MAX_LINEARS).collect();
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
