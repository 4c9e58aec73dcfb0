//! Runs one sequence step by step without a scheduler: what `logits`, `perplexity`, `compare` and `bench` need.

use worker_orcd_core::{
    Backend, BackendError, KvElement, KvLayout, OutputValue, PlanId, PlanProfile, Program, SampleRow,
    StepInputs, StepOutputs, StepShape,
};

use crate::model::{Recorder, StepHead};

/// Shape of a direct run.
#[derive(Clone, Copy, Debug)]
pub struct DirectOptions {
    /// Positions the cache holds.
    pub context: usize,
    /// Most tokens per step.
    pub chunk: usize,
    /// Most output rows per step.
    pub rows: usize,
    /// Storage format of the cache.
    pub element: KvElement,
    /// Declare every value an output.
    pub tapped: bool,
}

const BLOCK_SIZE: usize = 16;

/// One sequence on one device.
pub struct DirectRun {
    backend: Box<dyn Backend>,
    /// The smallest first; the last takes a whole chunk.
    steps: Vec<Step>,
    tables: Vec<Vec<u32>>,
}

struct Step {
    program: Program,
    plan: PlanId,
    outputs: StepOutputs,
}

impl std::fmt::Debug for DirectRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectRun").field("backend", &self.backend.name()).finish_non_exhaustive()
    }
}

impl DirectRun {
    /// Creates the cache and compiles the step on a backend that already has the weights.
    ///
    /// # Errors
    /// Whatever the backend says.
    pub fn new(
        mut backend: Box<dyn Backend>,
        recorder: &dyn Recorder,
        options: &DirectOptions,
    ) -> Result<Self, BackendError> {
        let blocks = options.context.div_ceil(BLOCK_SIZE);
        let groups = recorder.kv_groups();
        backend.create_kv(&KvLayout {
            block_size: BLOCK_SIZE,
            element: options.element,
            groups: groups.iter().map(|group| group.layout(blocks, blocks)).collect(),
        })?;
        let whole = StepShape { tokens: options.chunk, rows: options.rows, sequences: 1 };
        let single = StepShape { tokens: 1, rows: 1, sequences: 1 };
        // A single token has its own plan, as it has in the engine, unless every value is wanted of one program.
        let shapes = if options.tapped || whole == single { vec![whole] } else { vec![single, whole] };
        let mut programs = vec![];
        for shape in shapes {
            let program = recorder.record(shape, StepHead::Logits)?;
            programs.push(if options.tapped { program.tapped() } else { program });
        }
        let plans = backend.compile(&programs)?;
        let step = |(program, plan): (Program, PlanId)| {
            let outputs = StepOutputs::for_program(&program);
            Step { program, plan, outputs }
        };
        let steps = programs.into_iter().zip(plans).map(step).collect();
        Ok(Self { backend, steps, tables: vec![(0..blocks as u32).collect(); groups.len()] })
    }

    /// The recorded step of a whole chunk.
    pub fn program(&self) -> &Program {
        &self.steps[self.steps.len() - 1].program
    }

    /// The device.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Runs `tokens` at positions `start..` with a clock around every part of the step. The last token is the one output
    /// row.
    ///
    /// # Errors
    /// Inputs beyond the shape, or a device error.
    pub fn profile(&mut self, tokens: &[u32], start: usize) -> Result<PlanProfile, BackendError> {
        let index = self.step_for(tokens.len(), 1);
        let Self { backend, steps, tables } = self;
        let plan = steps[index].plan;
        let row = [tokens.len().saturating_sub(1) as u32];
        with_inputs(tables, tokens, start, &row, |inputs| backend.profile(plan, inputs))
    }

    /// The smallest step that holds so much. What fits nowhere is refused by the largest plan, by name.
    fn step_for(&self, tokens: usize, rows: usize) -> usize {
        let fits = |step: &Step| {
            let shape = step.program.shape();
            tokens <= shape.tokens && rows <= shape.rows
        };
        self.steps.iter().position(fits).unwrap_or(self.steps.len() - 1)
    }

    /// Runs `tokens` at positions `start..`, handing back the declared outputs; the cache keeps what came before.
    ///
    /// # Errors
    /// Inputs beyond the shape, or a device error.
    pub fn step(
        &mut self,
        tokens: &[u32],
        start: usize,
        out_rows: &[u32],
    ) -> Result<&[OutputValue], BackendError> {
        let index = self.step_for(tokens.len(), out_rows.len());
        let Self { backend, steps, tables } = self;
        let step = &mut steps[index];
        with_inputs(tables, tokens, start, out_rows, |inputs| backend.submit(step.plan, inputs))?;
        backend.wait(&mut step.outputs)?;
        Ok(&step.outputs.values)
    }

    /// Runs a whole prompt from position 0 in chunks and returns the last position's logits.
    ///
    /// # Errors
    /// An empty prompt, or a device error.
    pub fn last_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, BackendError> {
        let chunk = self.program().shape().tokens;
        let logits = self.program().outputs().len() - 1;
        let mut start = 0;
        for part in tokens.chunks(chunk) {
            let last = start + part.len() == tokens.len();
            let row = [part.len() as u32 - 1];
            let values = self.step(part, start, if last { &row } else { &[] })?;
            if let (true, Some(OutputValue::F32(values))) = (last, values.get(logits)) {
                return Ok(values.clone());
            }
            start += part.len();
        }
        Err(BackendError::Input { field: "tokens", reason: "a prompt needs at least one token".into() })
    }
}

/// The inputs of consecutive positions of one sequence whose blocks are held in order, so that a position is its own
/// slot.
fn with_inputs<T>(
    tables: &[Vec<u32>],
    tokens: &[u32],
    start: usize,
    out_rows: &[u32],
    run: impl FnOnce(&StepInputs<'_>) -> T,
) -> T {
    let positions: Vec<u32> = (start as u32..).take(tokens.len()).collect();
    let sequences = vec![0; tokens.len()];
    let slots: Vec<&[u32]> = tables.iter().map(|_| positions.as_slice()).collect();
    let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let sampling = vec![SampleRow::GREEDY; out_rows.len()];
    run(&StepInputs {
        tokens,
        positions: &positions,
        sequences: &sequences,
        slots: &slots,
        block_tables: &tables,
        out_rows,
        sampling: &sampling,
        penalty_tokens: &[],
    })
}
