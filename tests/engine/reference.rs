//! The metamorphic tests again, on real attention: a tiny random transformer on the reference interpreter, bitwise.
//!
//! Two layers with shared key/value heads: the first sees everything, the second a window. The truth is the same
//! program driven by hand, one sequence at a time, whole prompts, blocks in order.

use std::sync::{Arc, Mutex};

use worker_orcd::engine::{
    Engine, EngineConfig, FinishReason, Job, KvBudget, Sampling, TokenEvent, TokenLogprobs,
};
use worker_orcd::model::{KvGroupSpec, Recorder, StepHead};
use worker_orcd_core::rng::Rng;
use worker_orcd_core::sampling::{SampleScratch, logprob, sample_row};
use worker_orcd_core::{
    Backend, BackendError, Caps, DType, KvElement, KvLayer, KvLayout, MemoryReport, Op, PlanId, PlanProfile,
    Program, ProgramBuilder, ReferenceBackend, RopeStyle, SampleRow, StepInputs, StepOutputs, StepShape,
    SwiGluKind, ValueId, WeightId, WeightSpec,
};

use super::{assert_nothing_held, job, next_event, prompt};

const VOCAB: usize = 97;
const CONTEXT: usize = 80;
const HIDDEN: usize = 32;
const FFN: usize = 48;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const WINDOWS: [Option<usize>; 2] = [None, Some(9)];
/// Weights of a layer: norm, q, k, v, o, norm, gate, up, down.
const PER_LAYER: u32 = 9;

struct Tiny {
    weights: Vec<WeightSpec>,
}

impl Tiny {
    fn declared() -> Self {
        let matrix = |label: String, rows, cols| WeightSpec::matrix(label, DType::F32, rows, cols);
        let mut weights =
            vec![matrix("embed".into(), VOCAB, HIDDEN), WeightSpec::vector("rope", CONTEXT, HEAD_DIM)];
        for layer in 0..WINDOWS.len() {
            let kv = KV_HEADS * HEAD_DIM;
            weights.push(WeightSpec::vector(format!("{layer}.attn_norm"), 1, HIDDEN));
            for (name, rows, cols) in [
                ("q", HEADS * HEAD_DIM, HIDDEN),
                ("k", kv, HIDDEN),
                ("v", kv, HIDDEN),
                ("o", HIDDEN, HEADS * HEAD_DIM),
            ] {
                weights.push(matrix(format!("{layer}.{name}"), rows, cols));
            }
            weights.push(WeightSpec::vector(format!("{layer}.ffn_norm"), 1, HIDDEN));
            for (name, rows, cols) in [("gate", FFN, HIDDEN), ("up", FFN, HIDDEN), ("down", HIDDEN, FFN)] {
                weights.push(matrix(format!("{layer}.{name}"), rows, cols));
            }
        }
        Self { weights }
    }

    /// The interpreter with random weights; every activation and the cache are poisoned after the last compile.
    fn backend(&self) -> Poisoned {
        let mut rng = Rng::seeded(17);
        let mut backend = ReferenceBackend::default();
        for spec in &self.weights {
            let value = |index: usize, rng: &mut Rng| match spec.label.as_str() {
                "rope" => {
                    let (position, pair) = (index / HEAD_DIM, index % HEAD_DIM);
                    let half = HEAD_DIM / 2;
                    let angle = position as f32 * 100_f32.powf(-((pair % half) as f32) / half as f32);
                    if pair < half { angle.cos() } else { angle.sin() }
                }
                label if label.ends_with("norm") => 1.0 + 0.1 * rng.normal(),
                _ => 1.6 * rng.normal() / (spec.cols as f32).sqrt(),
            };
            let values: Vec<f32> = (0..spec.elements()).map(|index| value(index, &mut rng)).collect();
            backend.upload(spec, &mut std::iter::once(bytemuck::cast_slice(&values))).unwrap();
        }
        Poisoned(backend, Gate::default())
    }
}

fn record_layer(builder: &mut ProgramBuilder<'_>, layer: usize, x: ValueId) -> Result<ValueId, BackendError> {
    let weight = |index: u32| WeightId(2 + PER_LAYER * layer as u32 + index);
    let label = |name: &str| format!("layers.{layer}.{name}");
    let place = KvLayer { group: layer, index: 0 };
    let normed = builder.rms_norm(label("attn_norm"), x, weight(0), 1e-5)?;
    let q = builder.linear(label("q"), normed, weight(1), None)?;
    let k = builder.linear(label("k"), normed, weight(2), None)?;
    let v = builder.linear(label("v"), normed, weight(3), None)?;
    let style = RopeStyle::HalfSplit;
    let q = builder.rope(label("q_rope"), q, WeightId(1), (HEADS, HEAD_DIM), style)?;
    let k = builder.rope(label("k_rope"), k, WeightId(1), (KV_HEADS, HEAD_DIM), style)?;
    builder.kv_write(label("kv"), k, v, place)?;
    let attention = Op::Attention {
        q,
        layer: place,
        heads: HEADS,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: (HEAD_DIM as f32).sqrt().recip(),
        window: WINDOWS[layer],
        sinks: None,
    };
    let attended = builder.attention(label("attention"), attention)?;
    let attended = builder.linear(label("o"), attended, weight(4), None)?;
    let x = builder.add(label("attn_add"), x, attended)?;
    let normed = builder.rms_norm(label("ffn_norm"), x, weight(5), 1e-5)?;
    let gate = builder.linear(label("gate"), normed, weight(6), None)?;
    let up = builder.linear(label("up"), normed, weight(7), None)?;
    let mixed = builder.swiglu(label("swiglu"), gate, up, SwiGluKind::Silu)?;
    let mixed = builder.linear(label("down"), mixed, weight(8), None)?;
    builder.add(label("ffn_add"), x, mixed)
}

impl Recorder for Tiny {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn kv_groups(&self) -> Vec<KvGroupSpec> {
        let group = |window| KvGroupSpec { layers: 1, num_kv_heads: KV_HEADS, head_dim: HEAD_DIM, window };
        WINDOWS.into_iter().map(group).collect()
    }

    fn record(&self, shape: StepShape, head: StepHead) -> Result<Program, BackendError> {
        let mut builder = ProgramBuilder::new("tiny", shape, &self.weights);
        let mut x = builder.embed("embed", WeightId(0))?;
        for layer in 0..WINDOWS.len() {
            x = record_layer(&mut builder, layer, x)?;
        }
        let rows = builder.gather_rows("rows", x)?;
        let logits = builder.linear("lm_head", rows, WeightId(0), None)?;
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

/// The interpreter, poisoned once it is compiled: whatever was never written shows.
#[derive(Debug)]
struct Poisoned(ReferenceBackend, Gate);

/// While somebody holds it, no step begins.
type Gate = Arc<Mutex<()>>;

impl Backend for Poisoned {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn caps(&self) -> &Caps {
        self.0.caps()
    }

    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        self.0.upload(spec, chunks)
    }

    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.0.create_kv(layout)
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        let plans = self.0.compile(programs)?;
        self.0.poison()?;
        Ok(plans)
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        drop(self.1.lock().unwrap());
        self.0.submit(plan, inputs)
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        self.0.wait(outputs)
    }

    fn memory(&self) -> MemoryReport {
        self.0.memory()
    }

    fn check_residency(&self) -> Result<(), BackendError> {
        self.0.check_residency()
    }

    fn profile(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        self.0.profile(plan, inputs)
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        self.0.poison()
    }
}

/// Tokens, and the log-probabilities of the whole vocabulary where the job asks for reports.
#[derive(Debug, PartialEq)]
struct Said {
    tokens: Vec<u32>,
    logprobs: Vec<Vec<u32>>,
}

/// What `job` says by hand: no engine, one block table in order, the whole prompt in one step.
fn by_hand(job: &Job) -> Said {
    let tiny = Tiny::declared();
    let mut backend = tiny.backend();
    let groups = tiny.kv_groups().iter().map(|group| group.layout(1, 1)).collect();
    backend.create_kv(&KvLayout { block_size: CONTEXT, element: KvElement::F16, groups }).unwrap();
    let shape = StepShape { tokens: CONTEXT, rows: 1, sequences: 1 };
    let program = tiny.record(shape, StepHead::Logits).unwrap();
    let plan = backend.compile(std::slice::from_ref(&program)).unwrap()[0];
    let mut outputs = StepOutputs::for_program(&program);
    let mut scratch = SampleScratch::default();
    let (mut tokens, mut cached) = (job.prompt.clone(), 0);
    let mut said = Said { tokens: vec![], logprobs: vec![] };
    while said.tokens.len() < job.max_tokens {
        let positions: Vec<u32> = (cached as u32..tokens.len() as u32).collect();
        let inputs = StepInputs {
            tokens: &tokens[cached..],
            positions: &positions,
            sequences: &vec![0; positions.len()],
            slots: &[&positions, &positions],
            block_tables: &[&[0], &[0]],
            out_rows: &[positions.len() as u32 - 1],
            sampling: &[],
            penalty_tokens: &[],
        };
        backend.submit(plan, &inputs).unwrap();
        backend.wait(&mut outputs).unwrap();
        cached = tokens.len();
        let sampling = &job.sampling;
        let row = SampleRow {
            temperature: sampling.temperature,
            seed_low: sampling.seed as u32,
            draw: said.tokens.len() as u32,
            repetition_penalty: sampling.repetition_penalty,
            ..SampleRow::GREEDY
        };
        let logits = outputs.f32(0);
        let id = sample_row(logits, &row, &tokens, &mut scratch);
        if sampling.logprobs.is_some() {
            let bits = |id| (logprob(logits, id) as f32).to_bits();
            said.logprobs.push((0..VOCAB as u32).map(bits).collect());
        }
        tokens.push(id);
        said.tokens.push(id);
    }
    said
}

fn jobs() -> Vec<Job> {
    let lengths = [1, 33, 8, 50, 16, 17];
    let make = |(index, &length): (usize, &usize)| {
        let sampling = Sampling {
            temperature: [0.0, 0.8, 1.2][index % 3],
            repetition_penalty: [1.0, 1.3][index % 2],
            logprobs: [Some(VOCAB), None, None, Some(VOCAB)][index % 4],
            seed: 1000 + index as u64,
            ..Sampling::greedy()
        };
        Job { sampling, ..job(index, &prompt(length, index), 10 + index) }
    };
    lengths.iter().enumerate().map(make).collect()
}

fn engine(config: EngineConfig) -> (Engine, Gate) {
    let tiny = Tiny::declared();
    let backend = tiny.backend();
    let gate = Arc::clone(&backend.1);
    (Engine::start(Box::new(backend), &tiny, config).unwrap(), gate)
}

fn hear(mut stream: worker_orcd::engine::JobStream) -> Said {
    let mut said = Said { tokens: vec![], logprobs: vec![] };
    loop {
        match next_event(&mut stream) {
            Some(TokenEvent::Token { id, logprobs, .. }) => {
                said.tokens.push(id);
                if let Some(TokenLogprobs { mut top, .. }) = logprobs {
                    top.sort_unstable_by_key(|&(id, _)| id);
                    said.logprobs.push(top.into_iter().map(|(_, logprob)| logprob.to_bits()).collect());
                }
            }
            Some(TokenEvent::Finished { reason, .. }) => {
                assert_eq!(reason, FinishReason::Length);
                return said;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Runs all jobs at once and compares each with itself by hand; the number of preemptions.
fn check(config: EngineConfig) -> u64 {
    let (engine, gate) = engine(config);
    let jobs = jobs();
    let closed = gate.lock().unwrap();
    let streams: Vec<_> = jobs.iter().map(|job| engine.submit(job.clone()).unwrap()).collect();
    drop(closed);
    for (stream, job) in streams.into_iter().zip(&jobs) {
        assert_eq!(hear(stream), by_hand(job), "job {}", job.id);
    }
    assert_nothing_held(&engine);
    engine.stats().preemptions
}

fn config() -> EngineConfig {
    EngineConfig { max_batch: 4, block_size: 8, prefill_chunk: 32, ..EngineConfig::default() }
}

#[test]
fn alone_and_whole_is_by_hand() {
    check(EngineConfig { max_batch: 1, prefill_chunk: CONTEXT, ..config() });
}

#[test]
fn batched_and_chunked_is_by_hand() {
    check(config());
    check(EngineConfig { max_batch: 6, block_size: 4, prefill_chunk: 7, ..config() });
    check(EngineConfig { host_sampling: true, ..config() });
}

#[test]
fn preempted_is_by_hand() {
    let preemptions = check(EngineConfig { kv_budget: KvBudget::Blocks(8), ..config() });
    assert!(preemptions >= 1, "the cache was not tight");
}

/// Prompts that branch off one stem, at block edges and beside them.
fn branches() -> Vec<Job> {
    let make = |(index, shared): (usize, usize)| {
        let mut ids = prompt(shared, 0);
        ids.extend(prompt(1 + index % 3 * 4, 40 + index));
        let sampling = Sampling {
            temperature: [0.0, 0.9][index % 2],
            logprobs: [Some(VOCAB), None][index / 2 % 2],
            seed: 77 + index as u64,
            ..Sampling::greedy()
        };
        Job { sampling, ..job(format!("branch {index} at {shared}"), &ids, 9) }
    };
    [33, 48, 47, 48, 16, 24, 31, 32].into_iter().enumerate().map(make).collect()
}

#[test]
fn cached_is_by_hand() {
    let jobs = branches();
    let truth: Vec<Said> = jobs.iter().map(by_hand).collect();
    let configs = [
        config(),
        EngineConfig { max_batch: 1, prefill_chunk: CONTEXT, ..config() },
        EngineConfig { max_batch: 6, block_size: 4, prefill_chunk: 7, ..config() },
        EngineConfig { kv_budget: KvBudget::Blocks(12), ..config() },
    ];
    for config in configs {
        let (engine, _) = engine(config.clone());
        for _ in 0..2 {
            let streams: Vec<_> = jobs.iter().map(|job| engine.submit(job.clone()).unwrap()).collect();
            for ((stream, job), truth) in streams.into_iter().zip(&jobs).zip(&truth) {
                assert_eq!(&hear(stream), truth, "job {}", job.id);
            }
        }
        assert_nothing_held(&engine);
        let stats = engine.stats();
        assert!(stats.prefix_cache_hits > stats.prefix_cache_queries / 4, "{stats:?} with {config:?}");
    }
}
