//! A recorded forward pass: a short linear list of labelled operations with fixed shapes.
//!
//! Shapes are checked once, when a node is pushed; after that they are trusted. Every value is written by exactly one
//! node before any node reads it.

use crate::backend::BackendError;
use crate::kv::{KvLayer, KvLayout};
use crate::op::{Op, RopeStyle, SwiGluKind};
use crate::step::StepShape;
use crate::weight::{WeightId, WeightKind, WeightSpec};

/// A value of a program; index into [`Program::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// What bounds a value's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSet {
    /// One row per token of the step.
    Tokens,
    /// One row per output row of the step.
    Outputs,
}

/// Element type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Activations.
    F32,
    /// Expert and token ids.
    U32,
}

/// Shape and name of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Label of the node that writes it, with a suffix where a node writes two.
    pub label: String,
    /// What bounds its rows.
    pub rows: RowSet,
    /// Elements per row.
    pub width: usize,
    /// Element type; 4 bytes either way.
    pub element: Element,
}

impl Value {
    /// Rows the value has room for.
    pub const fn max_rows(&self, shape: StepShape) -> usize {
        match self.rows {
            RowSet::Tokens => shape.tokens,
            RowSet::Outputs => shape.rows,
        }
    }

    /// Bytes the value has room for.
    pub const fn bytes(&self, shape: StepShape) -> usize {
        self.max_rows(shape) * self.width * 4
    }
}

/// One operation in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// e.g. `layers.3.attn.q`; errors, taps and profiles use it.
    pub label: String,
    /// What is done.
    pub op: Op,
    /// Values written: none for `KvWrite`, two for `Router`, else one.
    pub outputs: Vec<ValueId>,
}

/// A finished recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    name: String,
    shape: StepShape,
    values: Vec<Value>,
    nodes: Vec<Node>,
    outputs: Vec<ValueId>,
}

impl Program {
    /// Name for logs and profiles.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bounds it was recorded for.
    pub const fn shape(&self) -> StepShape {
        self.shape
    }

    /// Every value.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// One value. Ids come from the builder of this program, so the index exists.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    /// The operations in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Declared outputs, in declaration order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// What a backend asks before it compiles: every weight exists and every cache access fits `kv`.
    ///
    /// # Errors
    /// [`BackendError::Program`] naming the first node that does not fit.
    pub fn check(&self, weights: &[WeightSpec], kv: Option<&KvLayout>) -> Result<(), BackendError> {
        for Node { label, op, .. } in &self.nodes {
            for id in op.weights() {
                check(label, (id.0 as usize) < weights.len(), || format!("no weight {}", id.0))?;
            }
            let (layer, heads) = match *op {
                Op::KvWrite { k, layer, .. } => (layer, Err(self.value(k).width)),
                Op::Attention { layer, num_kv_heads, head_dim, .. } => (layer, Ok((num_kv_heads, head_dim))),
                _ => continue,
            };
            let group = kv.and_then(|layout| layout.groups.get(layer.group));
            let Some(group) = group.filter(|group| layer.index < group.layers) else {
                return Err(program_error(label, format!("the cache has no {layer:?}")));
            };
            let fits = match heads {
                Ok(heads) => heads == (group.num_kv_heads, group.head_dim),
                Err(width) => width == group.num_kv_heads * group.head_dim,
            };
            check(label, fits, || {
                format!("does not fit {} kv heads of {}", group.num_kv_heads, group.head_dim)
            })?;
        }
        Ok(())
    }

    /// The same program with every value declared an output, which forbids fusing across any of them.
    #[must_use]
    pub fn tapped(&self) -> Self {
        let outputs = (0..self.values.len() as u32).map(ValueId).collect();
        Self { outputs, ..self.clone() }
    }
}

/// Records a program over a table of weights; `WeightId(i)` is `weights[i]`.
#[derive(Debug)]
pub struct ProgramBuilder<'w> {
    weights: &'w [WeightSpec],
    program: Program,
}

type Recorded = Result<ValueId, BackendError>;

impl<'w> ProgramBuilder<'w> {
    /// An empty recording for steps of at most `shape`.
    pub fn new(name: impl Into<String>, shape: StepShape, weights: &'w [WeightSpec]) -> Self {
        let program = Program { name: name.into(), shape, values: vec![], nodes: vec![], outputs: vec![] };
        Self { weights, program }
    }

    /// Ends the recording.
    pub fn finish(self) -> Program {
        self.program
    }

    /// Declares `value` an output of the step.
    pub fn output(&mut self, value: ValueId) {
        self.program.outputs.push(value);
    }

    /// See [`Op::Embed`].
    ///
    /// # Errors
    /// Every recording method fails when a shape does not fit, naming the node.
    pub fn embed(&mut self, label: impl Into<String>, table: WeightId) -> Recorded {
        let label = label.into();
        let width = self.weight(&label, table, WeightKind::Matrix)?.cols;
        Ok(self.push(label, Op::Embed { table }, RowSet::Tokens, width))
    }

    /// See [`Op::PositionEmbed`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn position_embed(&mut self, label: impl Into<String>, table: WeightId) -> Recorded {
        let label = label.into();
        let width = self.weight(&label, table, WeightKind::Matrix)?.cols;
        Ok(self.push(label, Op::PositionEmbed { table }, RowSet::Tokens, width))
    }

    /// See [`Op::RmsNorm`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn rms_norm(&mut self, label: impl Into<String>, x: ValueId, weight: WeightId, eps: f32) -> Recorded {
        let label = label.into();
        let (rows, width) = self.f32_value(&label, x)?;
        self.vector(&label, weight, 1, width)?;
        Ok(self.push(label, Op::RmsNorm { x, weight, eps }, rows, width))
    }

    /// See [`Op::LayerNorm`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn layer_norm(
        &mut self,
        label: impl Into<String>,
        x: ValueId,
        weight: WeightId,
        bias: WeightId,
        eps: f32,
    ) -> Recorded {
        let label = label.into();
        let (rows, width) = self.f32_value(&label, x)?;
        self.vector(&label, weight, 1, width)?;
        self.vector(&label, bias, 1, width)?;
        Ok(self.push(label, Op::LayerNorm { x, weight, bias, eps }, rows, width))
    }

    /// See [`Op::Linear`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn linear(
        &mut self,
        label: impl Into<String>,
        x: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
    ) -> Recorded {
        let label = label.into();
        let (rows, width) = self.f32_value(&label, x)?;
        let spec = self.weight(&label, weight, WeightKind::Matrix)?;
        let out = spec.rows;
        check(&label, spec.cols == width, || format!("weight has {} columns, x {width}", spec.cols))?;
        if let Some(bias) = bias {
            self.vector(&label, bias, 1, out)?;
        }
        Ok(self.push(label, Op::Linear { x, weight, bias }, rows, out))
    }

    /// See [`Op::Add`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn add(&mut self, label: impl Into<String>, a: ValueId, b: ValueId) -> Recorded {
        let label = label.into();
        let (rows, width) = self.same_shape(&label, a, b)?;
        Ok(self.push(label, Op::Add { a, b }, rows, width))
    }

    /// See [`Op::Rope`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn rope(
        &mut self,
        label: impl Into<String>,
        x: ValueId,
        table: WeightId,
        (heads, head_dim): (usize, usize),
        style: RopeStyle,
    ) -> Recorded {
        let label = label.into();
        let width = self.token_value(&label, x)?;
        let rotated = self.weight(&label, table, WeightKind::Vector)?.cols;
        check(&label, heads * head_dim == width, || {
            format!("{heads} heads of {head_dim} are not {width} wide")
        })?;
        check(&label, rotated % 2 == 0 && rotated <= head_dim, || {
            format!("{rotated} rotated elements in a head of {head_dim}")
        })?;
        Ok(self.push(label, Op::Rope { x, table, heads, head_dim, style }, RowSet::Tokens, width))
    }

    /// See [`Op::KvWrite`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn kv_write(
        &mut self,
        label: impl Into<String>,
        k: ValueId,
        v: ValueId,
        layer: KvLayer,
    ) -> Result<(), BackendError> {
        let label = label.into();
        self.token_value(&label, k)?;
        self.same_shape(&label, k, v)?;
        self.program.nodes.push(Node { label, op: Op::KvWrite { k, v, layer }, outputs: vec![] });
        Ok(())
    }

    /// See [`Op::Attention`]; `op` must be one, its fields are checked against `q`.
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn attention(&mut self, label: impl Into<String>, op: Op) -> Recorded {
        let label = label.into();
        let Op::Attention { q, heads, num_kv_heads, head_dim, scale, window, sinks, .. } = op else {
            return Err(program_error(&label, "not an attention".into()));
        };
        let width = self.token_value(&label, q)?;
        check(&label, heads * head_dim == width, || {
            format!("{heads} heads of {head_dim} are not {width} wide")
        })?;
        check(&label, num_kv_heads > 0 && heads.is_multiple_of(num_kv_heads), || {
            format!("{heads} heads do not share {num_kv_heads} kv heads evenly")
        })?;
        check(&label, scale.is_finite() && window != Some(0), || "scale or window out of range".into())?;
        if let Some(sinks) = sinks {
            self.vector(&label, sinks, 1, heads)?;
        }
        Ok(self.push(label, op, RowSet::Tokens, width))
    }

    /// See [`Op::SwiGlu`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn swiglu(
        &mut self,
        label: impl Into<String>,
        gate: ValueId,
        up: ValueId,
        kind: SwiGluKind,
    ) -> Recorded {
        let label = label.into();
        let (rows, width) = self.same_shape(&label, gate, up)?;
        Ok(self.push(label, Op::SwiGlu { gate, up, kind }, rows, width))
    }

    /// See [`Op::Gelu`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn gelu(&mut self, label: impl Into<String>, x: ValueId) -> Recorded {
        let label = label.into();
        let (rows, width) = self.f32_value(&label, x)?;
        Ok(self.push(label, Op::Gelu { x }, rows, width))
    }

    /// See [`Op::Router`]; returns (expert ids, weights).
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn router(
        &mut self,
        label: impl Into<String>,
        logits: ValueId,
        top_k: usize,
    ) -> Result<(ValueId, ValueId), BackendError> {
        let label = label.into();
        let width = self.token_value(&label, logits)?;
        check(&label, top_k >= 1 && top_k <= width, || format!("top {top_k} of {width} experts"))?;
        let ids = self.value(format!("{label}.experts"), RowSet::Tokens, top_k, Element::U32);
        let weights = self.value(format!("{label}.weights"), RowSet::Tokens, top_k, Element::F32);
        self.program.nodes.push(Node {
            label,
            op: Op::Router { logits, top_k },
            outputs: vec![ids, weights],
        });
        Ok((ids, weights))
    }

    /// See [`Op::MoeLinear`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn moe_linear(
        &mut self,
        label: impl Into<String>,
        x: ValueId,
        experts: ValueId,
        weight: WeightId,
        bias: Option<WeightId>,
    ) -> Recorded {
        let label = label.into();
        let width = self.token_value(&label, x)?;
        let top_k = self.ids_width(&label, experts)?;
        let spec = self.weight(&label, weight, WeightKind::Experts)?;
        let (out, cols, count) = (spec.rows, spec.cols, spec.experts);
        check(&label, width == cols || width == top_k * cols, || {
            format!("x is {width} wide, weight has {cols} columns and {top_k} experts act")
        })?;
        if let Some(bias) = bias {
            self.vector(&label, bias, count, out)?;
        }
        Ok(self.push(label, Op::MoeLinear { x, experts, weight, bias }, RowSet::Tokens, top_k * out))
    }

    /// See [`Op::MoeCombine`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn moe_combine(&mut self, label: impl Into<String>, x: ValueId, weights: ValueId) -> Recorded {
        let label = label.into();
        let width = self.token_value(&label, x)?;
        let top_k = self.token_value(&label, weights)?;
        check(&label, width.is_multiple_of(top_k), || format!("{width} is not {top_k} rows"))?;
        Ok(self.push(label, Op::MoeCombine { x, weights }, RowSet::Tokens, width / top_k))
    }

    /// See [`Op::GatherRows`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn gather_rows(&mut self, label: impl Into<String>, x: ValueId) -> Recorded {
        let label = label.into();
        let width = self.token_value(&label, x)?;
        Ok(self.push(label, Op::GatherRows { x }, RowSet::Outputs, width))
    }

    /// See [`Op::Sample`].
    ///
    /// # Errors
    /// A shape does not fit.
    pub fn sample(
        &mut self,
        label: impl Into<String>,
        logits: ValueId,
        max_penalty_tokens: usize,
    ) -> Recorded {
        let label = label.into();
        let (rows, _) = self.f32_value(&label, logits)?;
        check(&label, rows == RowSet::Outputs, || "samples output rows only".into())?;
        let token = self.value(label.clone(), RowSet::Outputs, 1, Element::U32);
        let op = Op::Sample { logits, max_penalty_tokens };
        self.program.nodes.push(Node { label, op, outputs: vec![token] });
        Ok(token)
    }

    fn push(&mut self, label: String, op: Op, rows: RowSet, width: usize) -> ValueId {
        let value = self.value(label.clone(), rows, width, Element::F32);
        self.program.nodes.push(Node { label, op, outputs: vec![value] });
        value
    }

    fn value(&mut self, label: String, rows: RowSet, width: usize, element: Element) -> ValueId {
        self.program.values.push(Value { label, rows, width, element });
        ValueId(self.program.values.len() as u32 - 1)
    }

    fn lookup(&self, label: &str, id: ValueId) -> Result<&Value, BackendError> {
        let missing = || program_error(label, format!("reads value {} before it is written", id.0));
        self.program.values.get(id.0 as usize).ok_or_else(missing)
    }

    fn f32_value(&self, label: &str, id: ValueId) -> Result<(RowSet, usize), BackendError> {
        let value = self.lookup(label, id)?;
        check(label, value.element == Element::F32, || format!("{} holds ids", value.label))?;
        Ok((value.rows, value.width))
    }

    fn token_value(&self, label: &str, id: ValueId) -> Result<usize, BackendError> {
        let (rows, width) = self.f32_value(label, id)?;
        check(label, rows == RowSet::Tokens, || "works on token rows only".into())?;
        Ok(width)
    }

    fn ids_width(&self, label: &str, id: ValueId) -> Result<usize, BackendError> {
        let value = self.lookup(label, id)?;
        check(label, value.element == Element::U32 && value.rows == RowSet::Tokens, || {
            format!("{} holds no expert ids", value.label)
        })?;
        Ok(value.width)
    }

    fn same_shape(&self, label: &str, a: ValueId, b: ValueId) -> Result<(RowSet, usize), BackendError> {
        let left = self.f32_value(label, a)?;
        let right = self.f32_value(label, b)?;
        check(label, left == right, || format!("shapes differ: {left:?} and {right:?}"))?;
        Ok(left)
    }

    fn weight(&self, label: &str, id: WeightId, kind: WeightKind) -> Result<&'w WeightSpec, BackendError> {
        let spec = self
            .weights
            .get(id.0 as usize)
            .ok_or_else(|| program_error(label, format!("no weight {}", id.0)))?;
        check(label, spec.kind == kind, || {
            format!("weight {} is a {:?}, not a {kind:?}", spec.label, spec.kind)
        })?;
        Ok(spec)
    }

    fn vector(&self, label: &str, id: WeightId, rows: usize, cols: usize) -> Result<(), BackendError> {
        let spec = self.weight(label, id, WeightKind::Vector)?;
        check(label, (spec.rows, spec.cols) == (rows, cols), || {
            format!("vector {} is [{}, {}], not [{rows}, {cols}]", spec.label, spec.rows, spec.cols)
        })
    }
}

fn check(label: &str, holds: bool, reason: impl FnOnce() -> String) -> Result<(), BackendError> {
    if holds { Ok(()) } else { Err(program_error(label, reason())) }
}

fn program_error(label: &str, reason: String) -> BackendError {
    BackendError::Program { label: label.to_owned(), reason }
}

#[cfg(test)]
mod tests;
