//! The reference interpreter: the exact meaning of every operation, on the CPU.
//!
//! Scalar and single-threaded, f32 values with f64 accumulation. Weights stay in their stored format and rows are
//! decoded as they are used. Every other backend is judged against it, so clarity wins over speed; the one concession
//! is that a weight row is decoded once per step, not once per token.

mod attention;
mod bandwidth;
mod linear;
mod pointwise;

use std::time::Instant;

use attention::Cache;
use linear::Weight;

use crate::arena::{self, ArenaPlan};
use crate::backend::{
    Backend, BackendError, Bandwidth, Caps, MemoryReport, PlanId, PlanProfile, ProfileEntry,
};
use crate::kv::KvLayout;
use crate::op::Op;
use crate::program::{Element, Program, RowSet, ValueId};
use crate::sampling::{SampleScratch, sample_row};
use crate::step::{self, OutputValue, StepInputs, StepOutputs};
use crate::weight::{WeightId, WeightSpec};

const NAME: &str = "reference";

/// The interpreter and everything it holds.
#[derive(Debug)]
pub struct ReferenceBackend {
    caps: Caps,
    specs: Vec<WeightSpec>,
    weights: Vec<Weight>,
    cache: Option<Cache>,
    plans: Vec<Plan>,
    /// Values of the step, 32-bit words: activations or ids.
    arena: Vec<u32>,
    scratch: SampleScratch,
    in_flight: Option<Finished>,
}

#[derive(Debug)]
struct Plan {
    program: Program,
    arena: ArenaPlan,
}

/// A step that has run and waits to be read.
#[derive(Clone, Copy, Debug)]
struct Finished {
    plan: usize,
    tokens: usize,
    rows: usize,
}

impl Default for ReferenceBackend {
    fn default() -> Self {
        let caps = Caps {
            device: "CPU".into(),
            driver: "reference interpreter".into(),
            kv_f32: true,
            kernel_set: "scalar".into(),
            ..Caps::default()
        };
        Self {
            caps,
            specs: vec![],
            weights: vec![],
            cache: None,
            plans: vec![],
            arena: vec![],
            scratch: SampleScratch::default(),
            in_flight: None,
        }
    }
}

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        self.weights.push(Weight::upload(spec, chunks)?);
        self.specs.push(spec.clone());
        Ok(WeightId(self.specs.len() as u32 - 1))
    }

    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        if self.cache.is_some() {
            return Err(BackendError::Unsupported { backend: NAME, what: "a second cache".into() });
        }
        self.cache = Some(Cache::create(layout));
        Ok(())
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        let layout = self.cache.as_ref().map(|cache| &cache.layout);
        for program in programs {
            program.check(&self.specs, layout)?;
        }
        let first = self.plans.len();
        for program in programs {
            let arena = arena::plan(program);
            self.arena.resize(self.arena.len().max(arena.bytes / 4), 0);
            self.plans.push(Plan { program: program.clone(), arena });
        }
        Ok((first..self.plans.len()).map(|index| PlanId(index as u32)).collect())
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        self.run(plan, inputs, &mut |_, _| {})
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        let step = self.in_flight.take().ok_or_else(|| execution("wait", "no step is in flight"))?;
        let plan = &self.plans[step.plan];
        let declared = plan.program.outputs();
        outputs.values.resize(declared.len(), OutputValue::F32(vec![]));
        for (value, &id) in outputs.values.iter_mut().zip(declared) {
            let words = &self.arena[step.range(plan, id)];
            match (value, plan.program.value(id).element) {
                (OutputValue::F32(values), Element::F32) => {
                    values.clear();
                    values.extend_from_slice(bytemuck::cast_slice(words));
                }
                (OutputValue::U32(values), Element::U32) => {
                    values.clear();
                    values.extend_from_slice(words);
                }
                (other, Element::F32) => *other = OutputValue::F32(bytemuck::cast_slice(words).to_vec()),
                (other, Element::U32) => *other = OutputValue::U32(words.to_vec()),
            }
        }
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport {
            weights_bytes: self.weights.iter().map(|weight| weight.host_bytes() as u64).sum(),
            kv_cache_bytes: self.cache.as_ref().map_or(0, |cache| cache.layout.bytes() as u64),
            activations_bytes: self.arena.len() as u64 * 4,
            workspace_bytes: 0,
        }
    }

    fn check_residency(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn profile(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        let mut profile = PlanProfile::default();
        self.run(plan, inputs, &mut |label, time_us| {
            profile.entries.push(ProfileEntry { label: label.to_owned(), time_us });
        })?;
        self.in_flight = None;
        Ok(profile)
    }

    fn measure_bandwidth(&mut self) -> Result<Bandwidth, BackendError> {
        Ok(bandwidth::measure())
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        self.arena.fill(f32::NAN.to_bits());
        if let Some(cache) = &mut self.cache {
            cache.poison();
        }
        Ok(())
    }
}

impl Finished {
    fn rows(self, rows: RowSet) -> usize {
        match rows {
            RowSet::Tokens => self.tokens,
            RowSet::Outputs => self.rows,
        }
    }

    /// The words of the arena that hold the rows the step has of a value.
    fn range(self, plan: &Plan, id: ValueId) -> std::ops::Range<usize> {
        let value = plan.program.value(id);
        let start = plan.arena.offset(id) / 4;
        start..start + self.rows(value.rows) * value.width
    }
}

impl ReferenceBackend {
    /// Runs every node; `done` hears each label and its time in microseconds.
    fn run(
        &mut self,
        id: PlanId,
        inputs: &StepInputs<'_>,
        done: &mut dyn FnMut(&str, f64),
    ) -> Result<(), BackendError> {
        if self.in_flight.is_some() {
            return Err(execution("submit", "a step is in flight already"));
        }
        let plan = self.plans.get(id.0 as usize).ok_or_else(|| execution("submit", "no such plan"))?;
        let layout = self.cache.as_ref().map(|cache| &cache.layout);
        step::validate(&plan.program, layout, &self.specs, inputs)?;
        let step = Finished { plan: id.0 as usize, tokens: inputs.tokens.len(), rows: inputs.out_rows.len() };
        for node in plan.program.nodes() {
            let start = Instant::now();
            let mut frame = Frame {
                plan,
                step,
                inputs,
                arena: &self.arena,
                weights: &self.weights,
                cache: self.cache.as_mut(),
                scratch: &mut self.scratch,
            };
            let values = frame.evaluate(&node.op);
            for (&output, value) in node.outputs.iter().zip(&values) {
                let words = match value {
                    OutputValue::F32(values) => bytemuck::cast_slice(values),
                    OutputValue::U32(values) => values.as_slice(),
                };
                self.arena[step.range(plan, output)].copy_from_slice(words);
            }
            done(&node.label, start.elapsed().as_secs_f64() * 1e6);
        }
        self.in_flight = Some(step);
        Ok(())
    }
}

/// What one node may read.
struct Frame<'a> {
    plan: &'a Plan,
    step: Finished,
    inputs: &'a StepInputs<'a>,
    arena: &'a [u32],
    weights: &'a [Weight],
    cache: Option<&'a mut Cache>,
    scratch: &'a mut SampleScratch,
}

impl<'a> Frame<'a> {
    fn ids(&self, id: ValueId) -> &'a [u32] {
        &self.arena[self.step.range(self.plan, id)]
    }

    fn f32(&self, id: ValueId) -> &'a [f32] {
        bytemuck::cast_slice(self.ids(id))
    }

    fn width(&self, id: ValueId) -> usize {
        self.plan.program.value(id).width
    }

    fn weight(&self, id: WeightId) -> &'a Weight {
        &self.weights[id.0 as usize]
    }

    fn vector(&self, id: WeightId) -> &'a [f32] {
        &self.weight(id).vector
    }

    /// The values a node writes, in the order of `Node::outputs`.
    fn evaluate(&mut self, op: &Op) -> Vec<OutputValue> {
        let inputs = self.inputs;
        let one = |values| vec![OutputValue::F32(values)];
        match *op {
            Op::Embed { table } => one(linear::embed(inputs.tokens, self.weight(table))),
            Op::PositionEmbed { table } => one(linear::embed(inputs.positions, self.weight(table))),
            Op::RmsNorm { x, weight, eps } => one(pointwise::rms_norm(self.f32(x), self.vector(weight), eps)),
            Op::LayerNorm { x, weight, bias, eps } => {
                one(pointwise::layer_norm(self.f32(x), self.vector(weight), self.vector(bias), eps))
            }
            Op::Linear { x, weight, bias } => {
                one(linear::linear(self.f32(x), self.weight(weight), bias.map(|bias| self.vector(bias))))
            }
            Op::Add { a, b } => one(pointwise::add(self.f32(a), self.f32(b))),
            Op::Rope { x, table, head_dim, style, .. } => {
                one(pointwise::rope(self.f32(x), self.weight(table), inputs.positions, head_dim, style))
            }
            Op::KvWrite { k, v, layer } => {
                let (k, v) = (self.f32(k), self.f32(v));
                if let Some(cache) = &mut self.cache {
                    cache.kv_write(layer, inputs.slots[layer.group], k, v);
                }
                vec![]
            }
            Op::Attention { q, sinks, .. } => {
                let (q, sinks) = (self.f32(q), sinks.map(|sinks| self.vector(sinks)));
                one(self.cache.as_ref().map_or_else(Vec::new, |cache| cache.attention(op, q, sinks, inputs)))
            }
            Op::SwiGlu { gate, up, kind } => one(pointwise::swiglu(self.f32(gate), self.f32(up), kind)),
            Op::Gelu { x } => one(pointwise::gelu(self.f32(x))),
            Op::Router { logits, top_k } => {
                let (ids, weights) = pointwise::router(self.f32(logits), self.width(logits), top_k);
                vec![OutputValue::U32(ids), OutputValue::F32(weights)]
            }
            Op::MoeLinear { x, experts, weight, bias } => {
                let bias = bias.map(|bias| self.vector(bias));
                one(linear::moe_linear(
                    self.f32(x),
                    self.ids(experts),
                    self.width(experts),
                    self.weight(weight),
                    bias,
                ))
            }
            Op::MoeCombine { x, weights } => {
                let top_k = self.width(weights);
                one(pointwise::moe_combine(self.f32(x), self.f32(weights), self.width(x) / top_k, top_k))
            }
            Op::GatherRows { x } => one(pointwise::gather_rows(self.f32(x), self.width(x), inputs.out_rows)),
            Op::Sample { logits, max_penalty_tokens } => {
                vec![OutputValue::U32(self.sample(logits, max_penalty_tokens))]
            }
        }
    }

    fn sample(&mut self, logits: ValueId, max_penalty_tokens: usize) -> Vec<u32> {
        let (rows, width) = (self.f32(logits), self.width(logits));
        let token = |(index, (row, logits))| {
            let penalty = &self.inputs.penalty_tokens[index * max_penalty_tokens..][..max_penalty_tokens];
            sample_row(logits, row, penalty, self.scratch)
        };
        self.inputs.sampling.iter().zip(rows.chunks_exact(width)).enumerate().map(token).collect()
    }
}

fn execution(label: &str, reason: &str) -> BackendError {
    BackendError::Execution { label: label.into(), reason: reason.into() }
}

#[cfg(test)]
mod tests;
