//! A backend without arithmetic: every step takes a set time, and every sequence says the same script.
//!
//! All above it is real (queue, scheduler, cache blocks, step loop, decoding, HTTP), so what a step costs beyond its
//! time is what the worker itself costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use worker_orcd::model::{KvGroupSpec, Recorder, StepHead};
use worker_orcd_core::{
    Backend, BackendError, Caps, DType, Element, KvLayout, MemoryReport, OutputValue, PlanId, PlanProfile,
    Program, ProgramBuilder, StepInputs, StepOutputs, StepShape, WeightId, WeightSpec,
};

/// The shape of the model that is not there.
#[derive(Clone, Debug)]
pub(crate) struct PacedModel {
    pub(crate) vocab: usize,
    pub(crate) context: usize,
}

impl Recorder for PacedModel {
    fn vocab_size(&self) -> usize {
        self.vocab
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn kv_groups(&self) -> Vec<KvGroupSpec> {
        vec![KvGroupSpec { layers: 1, num_kv_heads: 1, head_dim: 2, window: None }]
    }

    fn record(&self, shape: StepShape, head: StepHead) -> Result<Program, BackendError> {
        let weights = [WeightSpec::matrix("table", DType::F32, self.vocab, 2)];
        let mut builder = ProgramBuilder::new("paced", shape, &weights);
        let x = builder.embed("embed", WeightId(0))?;
        let x = builder.gather_rows("rows", x)?;
        let logits = builder.linear("lm_head", x, WeightId(0), None)?;
        let output = match head {
            StepHead::Logits => logits,
            StepHead::Sample { max_penalty_tokens } => {
                builder.sample("sample", logits, max_penalty_tokens)?
            }
        };
        builder.output(output);
        Ok(builder.finish())
    }
}

/// The backend.
#[derive(Debug)]
pub(crate) struct PacedBackend {
    caps: Caps,
    vocab: usize,
    /// Begins every answer.
    opening: Vec<u32>,
    /// Goes on from there, again and again.
    script: Vec<u32>,
    step_us: Arc<AtomicU64>,
    submitted: Instant,
    /// Whether each plan hands back ids.
    samples: Vec<bool>,
    /// The next token of each output row of the step.
    next: Vec<u32>,
}

impl PacedBackend {
    /// Says `opening`, then `script` for ever. A step takes as many microseconds as the returned cell holds.
    pub(crate) fn saying(model: &PacedModel, opening: &[u32], script: &[u32]) -> (Box<Self>, Arc<AtomicU64>) {
        let step_us = Arc::new(AtomicU64::new(0));
        let backend = Self {
            caps: Caps::default(),
            vocab: model.vocab,
            opening: opening.to_vec(),
            script: script.to_vec(),
            step_us: Arc::clone(&step_us),
            submitted: Instant::now(),
            samples: vec![],
            next: vec![],
        };
        (Box::new(backend), step_us)
    }

    /// The token that is generated as number `draw`.
    fn token(&self, draw: usize) -> u32 {
        let in_script = draw.wrapping_sub(self.opening.len()) % self.script.len();
        self.opening.get(draw).copied().unwrap_or(self.script[in_script])
    }
}

impl Backend for PacedBackend {
    fn name(&self) -> &'static str {
        "paced"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn upload(
        &mut self,
        _: &WeightSpec,
        _: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        Ok(WeightId(0))
    }

    fn create_kv(&mut self, _: &KvLayout) -> Result<(), BackendError> {
        Ok(())
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        let samples = |program: &Program| program.value(program.outputs()[0]).element == Element::U32;
        self.samples = programs.iter().map(samples).collect();
        Ok((0..programs.len() as u32).map(PlanId).collect())
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        if !self.samples[plan.0 as usize] && inputs.sampling.len() > 1 {
            let reason = "the load chooses on the device".into();
            return Err(BackendError::Input { field: "plan", reason });
        }
        self.submitted = Instant::now();
        self.next.clear();
        for row in inputs.sampling {
            self.next.push(self.token(row.draw as usize));
        }
        Ok(())
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        let step = Duration::from_micros(self.step_us.load(Ordering::Relaxed));
        std::thread::sleep(step.saturating_sub(self.submitted.elapsed()));
        match outputs.values.first_mut() {
            Some(OutputValue::U32(ids)) => ids.clone_from(&self.next),
            Some(OutputValue::F32(logits)) => {
                logits.clear();
                logits.resize(self.next.len() * self.vocab, 0.0);
                for (row, &id) in self.next.iter().enumerate() {
                    logits[row * self.vocab + id as usize] = 1.0;
                }
            }
            None => {}
        }
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport::default()
    }

    fn check_residency(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn profile(&mut self, _: PlanId, _: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        Ok(PlanProfile::default())
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}
