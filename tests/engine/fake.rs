//! A backend whose "keys" are hashes of everything a position can see, kept in real slots.
//!
//! Each group stores, per cached position, a value that depends on all the positions the group before it can see. A
//! wrong block table, slot, position or freed block therefore changes the tokens or is refused at once. [`oracle`]
//! computes the same without a cache.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use worker_orcd::engine::Job;
use worker_orcd::model::{KvGroupSpec, Recorder, StepHead};
use worker_orcd_core::sampling::{SampleScratch, sample_row};
use worker_orcd_core::{
    Backend, BackendError, Caps, DType, Element, KvLayout, MemoryReport, NO_BLOCK, NO_SLOT, OutputValue,
    PlanId, PlanProfile, Program, ProgramBuilder, SampleRow, StepInputs, StepOutputs, StepShape, WeightId,
    WeightSpec,
};

pub(crate) const VOCAB: usize = 97;
/// A prompt that holds it gets NaN logits.
pub(crate) const POISON_TOKEN: u32 = 96;

#[derive(Clone, Debug)]
pub(crate) struct FakeModel {
    pub(crate) windows: Vec<Option<usize>>,
    pub(crate) context: usize,
}

impl Recorder for FakeModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn kv_groups(&self) -> Vec<KvGroupSpec> {
        let group = |&window: &Option<usize>| KvGroupSpec { layers: 1, num_kv_heads: 1, head_dim: 2, window };
        self.windows.iter().map(group).collect()
    }

    fn record(&self, shape: StepShape, head: StepHead) -> Result<Program, BackendError> {
        let weights = [WeightSpec::matrix("table", DType::F32, VOCAB, 2)];
        let mut builder = ProgramBuilder::new("fake", shape, &weights);
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

/// What a test does to a running fake, and sees of it.
#[derive(Debug, Default)]
pub(crate) struct Controls {
    closed: Mutex<bool>,
    opened: Condvar,
    pub(crate) step_delay_us: AtomicU64,
    pub(crate) fail_next_step: AtomicBool,
    pub(crate) refuse_next_step: AtomicBool,
    pub(crate) residency_violated: AtomicBool,
    pub(crate) steps: Mutex<Vec<StepRecord>>,
    /// Plans run on nothing but padding, in order.
    pub(crate) warmed: Mutex<Vec<u32>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct StepRecord {
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
    pub(crate) sequences: usize,
    pub(crate) sampled: bool,
    /// Most blocks a sequence of the step holds in the last group.
    pub(crate) held: usize,
}

impl Controls {
    /// Steps wait until `open`.
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.opened.wait_while(closed, |closed| *closed).unwrap());
        std::thread::sleep(Duration::from_micros(self.step_delay_us.load(Ordering::Relaxed)));
    }
}

#[derive(Debug)]
pub(crate) struct FakeBackend {
    caps: Caps,
    windows: Vec<Option<usize>>,
    controls: Arc<Controls>,
    layout: Option<KvLayout>,
    /// Per group, per slot: position and key.
    cache: Vec<Vec<Option<(u32, u64)>>>,
    plans: Vec<(StepShape, Option<usize>)>,
    results: Option<OutputValue>,
}

impl FakeBackend {
    pub(crate) fn for_model(model: &FakeModel) -> (Box<Self>, Arc<Controls>) {
        let controls = Arc::new(Controls::default());
        let backend = Self {
            caps: Caps::default(),
            windows: model.windows.clone(),
            controls: Arc::clone(&controls),
            layout: None,
            cache: vec![],
            plans: vec![],
            results: None,
        };
        (Box::new(backend), controls)
    }

    /// State after token `t`: what every output of its position follows from.
    fn run_token(&mut self, inputs: &StepInputs<'_>, t: usize) -> Result<u64, BackendError> {
        let layout = self.layout.as_ref().ok_or_else(|| refuse("cache", "none"))?;
        let (position, row) = (inputs.positions[t], inputs.sequences[t] as usize);
        let mut state = u64::from(inputs.tokens[t]);
        for (group, window) in self.windows.iter().enumerate() {
            let width = layout.groups[group].max_blocks_per_sequence;
            let table = &inputs.block_tables[group][row * width..(row + 1) * width];
            let slot_of = |position: u32| -> Result<usize, BackendError> {
                let block = table[position as usize / layout.block_size];
                if block == NO_BLOCK {
                    return Err(refuse(
                        "block_tables",
                        &format!("position {position} is visible but not held"),
                    ));
                }
                Ok(block as usize * layout.block_size + position as usize % layout.block_size)
            };
            let slot = inputs.slots[group][t] as usize;
            if inputs.slots[group][t] != NO_SLOT && slot != slot_of(position)? {
                return Err(refuse("slots", "slot and block table disagree"));
            }
            if inputs.slots[group][t] == NO_SLOT {
                continue;
            }
            self.cache[group][slot] = Some((position, mix(state, group as u64)));
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window as u32));
            let mut seen = 0;
            for visible in first..=position {
                match self.cache[group][slot_of(visible)?] {
                    Some((stored, key)) if stored == visible => seen = mix(seen, key),
                    other => return Err(refuse("block_tables", &format!("{other:?} cached for {visible}"))),
                }
            }
            state = seen;
        }
        Ok(state)
    }

    fn check(&self, shape: StepShape, inputs: &StepInputs<'_>) -> Result<StepRecord, BackendError> {
        let layout = self.layout.as_ref().ok_or_else(|| refuse("cache", "none"))?;
        let tokens = inputs.tokens.len();
        let sequences = inputs.sequences.iter().max().map_or(0, |&row| row as usize + 1);
        let rows = inputs.out_rows.len();
        let lengths = inputs.positions.len() == tokens
            && inputs.sequences.len() == tokens
            && inputs.slots.len() == layout.groups.len()
            && inputs.slots.iter().all(|slots| slots.len() == tokens)
            && inputs.sampling.len() == rows;
        if !lengths
            || tokens == 0
            || tokens > shape.tokens
            || rows > shape.rows
            || sequences > shape.sequences
        {
            return Err(refuse(
                "lengths",
                &format!("{tokens} tokens, {rows} rows, {sequences} sequences in {shape:?}"),
            ));
        }
        let mut held = 0;
        for (index, (group, table)) in layout.groups.iter().zip(inputs.block_tables).enumerate() {
            let width = group.max_blocks_per_sequence;
            if table.len() != sequences * width {
                return Err(refuse("block_tables", "wrong length"));
            }
            for row in table.chunks(width) {
                let blocks: Vec<u32> = row.iter().copied().filter(|&block| block != NO_BLOCK).collect();
                let distinct: HashSet<u32> = blocks.iter().copied().collect();
                if distinct.len() != blocks.len()
                    || blocks.iter().any(|&block| block as usize >= group.num_blocks)
                {
                    return Err(refuse("block_tables", "a block is held twice or does not exist"));
                }
            }
            check_writes(layout.block_size, table, width, inputs.slots[index], inputs)?;
            let count = |row: &[u32]| row.iter().filter(|&&block| block != NO_BLOCK).count();
            held = table.chunks(width).map(count).max().unwrap_or(0);
        }
        Ok(StepRecord { tokens, rows, sequences, sampled: false, held })
    }
}

impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
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

    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.cache =
            layout.groups.iter().map(|group| vec![None; group.num_blocks * layout.block_size]).collect();
        self.layout = Some(layout.clone());
        Ok(())
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        for program in programs {
            let sampled = program.value(program.outputs()[0]).element == Element::U32;
            let width = program.nodes().iter().find_map(|node| match node.op {
                worker_orcd_core::Op::Sample { max_penalty_tokens, .. } => Some(max_penalty_tokens),
                _ => None,
            });
            self.plans.push((program.shape(), width.filter(|_| sampled)));
        }
        Ok((0..programs.len() as u32).map(PlanId).collect())
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        let (shape, penalties) = self.plans[plan.0 as usize];
        if self.controls.refuse_next_step.swap(false, Ordering::Relaxed) {
            return Err(refuse("sampling", "out of range"));
        }
        let mut record = self.check(shape, inputs)?;
        record.sampled = penalties.is_some();
        if inputs.slots.iter().all(|slots| slots.iter().all(|&slot| slot == NO_SLOT)) {
            self.controls.warmed.lock().unwrap().push(plan.0);
        } else {
            self.controls.steps.lock().unwrap().push(record);
        }
        let states =
            (0..inputs.tokens.len()).map(|t| self.run_token(inputs, t)).collect::<Result<Vec<_>, _>>()?;
        let poisoned = |row: u32| {
            let sequence = inputs.sequences[row as usize];
            inputs.tokens.iter().zip(inputs.sequences).any(|(&id, &of)| of == sequence && id == POISON_TOKEN)
        };
        let logits_of = |&row: &u32| {
            if poisoned(row) { vec![f32::NAN; VOCAB] } else { logits(states[row as usize]) }
        };
        self.results = Some(match penalties {
            None => OutputValue::F32(inputs.out_rows.iter().flat_map(logits_of).collect()),
            Some(width) => {
                if inputs.penalty_tokens.len() != width * inputs.out_rows.len() {
                    return Err(refuse("penalty_tokens", "wrong length"));
                }
                let mut scratch = SampleScratch::default();
                let choose = |(r, row): (usize, &u32)| {
                    let ids = &inputs.penalty_tokens[r * width..(r + 1) * width];
                    sample_row(&logits_of(row), &inputs.sampling[r], ids, &mut scratch)
                };
                OutputValue::U32(inputs.out_rows.iter().enumerate().map(choose).collect())
            }
        });
        Ok(())
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        self.controls.pass();
        if self.controls.fail_next_step.swap(false, Ordering::Relaxed) {
            return Err(BackendError::DeviceLost { reason: "fell off the bus".into() });
        }
        match (outputs.values.first_mut(), self.results.take()) {
            (Some(OutputValue::F32(to)), Some(OutputValue::F32(from))) => {
                assert!(to.capacity() >= from.len(), "outputs have no room");
                to.clone_from(&from);
            }
            (Some(OutputValue::U32(to)), Some(OutputValue::U32(from))) => {
                assert!(to.capacity() >= from.len(), "outputs have no room");
                to.clone_from(&from);
            }
            other => panic!("outputs do not match the plan: {other:?}"),
        }
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        let kv_cache_bytes = self.layout.as_ref().map_or(0, KvLayout::bytes) as u64;
        MemoryReport { kv_cache_bytes, ..MemoryReport::default() }
    }

    fn check_residency(&self) -> Result<(), BackendError> {
        if self.controls.residency_violated.load(Ordering::Relaxed) {
            return Err(BackendError::Residency { reason: "kv_cache is host memory".into() });
        }
        Ok(())
    }

    fn profile(&mut self, _: PlanId, _: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        Ok(PlanProfile::default())
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}

/// A block somebody writes in this step is in nobody else's table.
fn check_writes(
    block_size: usize,
    table: &[u32],
    width: usize,
    slots: &[u32],
    inputs: &StepInputs<'_>,
) -> Result<(), BackendError> {
    let written = slots.iter().zip(inputs.sequences).filter(|&(&slot, _)| slot != NO_SLOT);
    let mut writers = std::collections::HashMap::new();
    for (&slot, &sequence) in written {
        if *writers.entry(slot / block_size as u32).or_insert(sequence) != sequence {
            return Err(refuse("slots", "two sequences write one block"));
        }
    }
    for (row, blocks) in table.chunks(width).enumerate() {
        if blocks.iter().any(|block| writers.get(block).is_some_and(|&writer| writer as usize != row)) {
            return Err(refuse("slots", "a shared block is written"));
        }
    }
    let distinct: HashSet<u32> = slots.iter().copied().filter(|&slot| slot != NO_SLOT).collect();
    if distinct.len() != slots.iter().filter(|&&slot| slot != NO_SLOT).count() {
        return Err(refuse("slots", "two tokens share a slot"));
    }
    Ok(())
}

fn refuse(field: &'static str, reason: &str) -> BackendError {
    BackendError::Input { field, reason: reason.into() }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.rotate_left(23) ^ b.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn logits(state: u64) -> Vec<f32> {
    // The poison token is never chosen.
    (0..VOCAB as u64)
        .map(|id| if id == u64::from(POISON_TOKEN) { -100.0 } else { (mix(state, id) >> 40) as f32 / 2e6 })
        .collect()
}

/// The tokens `job` generates, computed without a cache; stops at a stop id, `max_tokens` or the context's end.
pub(crate) fn oracle(model: &FakeModel, job: &Job) -> Vec<u32> {
    let mut tokens = job.prompt.clone();
    let mut scratch = SampleScratch::default();
    let mut keys: Vec<Vec<u64>> = vec![vec![]; model.windows.len()];
    loop {
        let mut state = 0;
        for (position, &id) in tokens.iter().enumerate().skip(keys[0].len()) {
            state = u64::from(id);
            for (group, window) in model.windows.iter().enumerate() {
                keys[group].push(mix(state, group as u64));
                let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                state = keys[group][first..].iter().fold(0, |seen, &key| mix(seen, key));
            }
        }
        let generated = tokens.len() - job.prompt.len();
        let mut distinct: Vec<u32> = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let sampling = &job.sampling;
        let row = SampleRow {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            top_k: sampling.top_k,
            seed_low: sampling.seed as u32,
            seed_high: (sampling.seed >> 32) as u32,
            draw: generated as u32,
        };
        let id = sample_row(&logits(state), &row, &distinct, &mut scratch);
        if job.stop_ids.contains(&id) {
            break;
        }
        tokens.push(id);
        if generated + 1 == job.max_tokens || tokens.len() == model.context {
            break;
        }
    }
    tokens.split_off(job.prompt.len())
}
