//! `bench ops`: single operations of a decode step, by format and shape.
//!
//! An operation is short beside what it takes to start and end a step. So a step runs it many times, each time over
//! another weight or another layer's cache, and the step's time is divided: like this the bytes come from memory and not
//! from a cache, as they do in a model. A backend may fuse neighbours, as it does with query, key and value.

use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use worker_orcd_core::{
    Backend, BackendError, DType, KvElement, KvGroup, KvLayer, KvLayout, Node, Op, PlanId, Program,
    ProgramBuilder, SampleRow, StepInputs, StepOutputs, StepShape, ValueId, WeightId, WeightSpec, quant,
    rng::Rng,
};

use super::roof::Roof;
use super::work::{StepTokens, Workload};
use super::{median_rate, spread, timed};
use crate::commands::CommandError;
use crate::commands::args::DeviceArgs;
use crate::device;

/// Positions per cache block.
const BLOCK_SIZE: usize = 16;

/// Flags of `bench ops`.
#[derive(Args, Debug)]
pub(super) struct OpsArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Operations, separated by commas
    #[arg(
        long,
        env = "WORKER_ORCD_OP",
        value_enum,
        value_delimiter = ',',
        default_value = "linear,moe_linear,attention,rms_norm"
    )]
    op: Vec<OpChoice>,
    /// Storage formats of weights, separated by commas; every one when omitted
    #[arg(long, env = "WORKER_ORCD_DTYPE", value_delimiter = ',', value_parser = dtype)]
    dtype: Vec<DType>,
    /// Output features of products
    #[arg(long, env = "WORKER_ORCD_ROWS", default_value_t = 2048)]
    rows: usize,
    /// Input features
    #[arg(long, env = "WORKER_ORCD_COLS", default_value_t = 2048)]
    cols: usize,
    /// Numbers of tokens, separated by commas; for attention each of a sequence of its own
    #[arg(long, env = "WORKER_ORCD_TOKENS", value_delimiter = ',', default_value = "1,16")]
    tokens: Vec<usize>,
    /// Experts of a mixture
    #[arg(long, env = "WORKER_ORCD_EXPERTS", default_value_t = 32)]
    experts: usize,
    /// Experts that each token chooses
    #[arg(long, env = "WORKER_ORCD_EXPERTS_PER_TOKEN", default_value_t = 4)]
    experts_per_token: usize,
    /// Tokens that attention finds in the cache, separated by commas
    #[arg(long, env = "WORKER_ORCD_DEPTH", value_delimiter = ',', default_value = "128,1024,4096")]
    depth: Vec<usize>,
    /// Query heads of attention
    #[arg(long, env = "WORKER_ORCD_HEADS", default_value_t = 64)]
    heads: usize,
    /// Key/value heads of attention
    #[arg(long, env = "WORKER_ORCD_KV_HEADS", default_value_t = 8)]
    kv_heads: usize,
    /// Elements per head
    #[arg(long, env = "WORKER_ORCD_HEAD_DIM", default_value_t = 64)]
    head_dim: usize,
    /// Weights, or layers of cache, that a step goes through: together more than the device's caches hold
    #[arg(long, env = "WORKER_ORCD_COPIES", default_value_t = 32)]
    copies: usize,
    /// Repeats; the median is reported
    #[arg(long, env = "WORKER_ORCD_REPEATS", default_value_t = 5)]
    repeats: usize,
}

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum OpChoice {
    /// A matrix product.
    Linear,
    /// A product with each token's experts.
    MoeLinear,
    /// Attention over the cache.
    Attention,
    /// A norm.
    RmsNorm,
}

fn dtype(name: &str) -> Result<DType, String> {
    let found = DType::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("there are {}", DType::ALL.map(DType::name).join(", ")))
}

/// One operation in one shape.
#[derive(Clone, Copy, Debug)]
struct Case {
    op: OpChoice,
    dtype: DType,
    tokens: usize,
    depth: usize,
}

/// Runs the command.
///
/// # Errors
/// The device, or a shape that no operation has.
pub(super) fn run(args: &OpsArgs) -> Result<Json, CommandError> {
    let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
    let roof = Roof::measured(backend.as_mut())?;
    let name = backend.caps().device.clone();
    drop(backend);
    let mut results = vec![];
    for case in cases(args) {
        // Weights stay as long as their backend does.
        let mut backend = device::open(args.device.backend, args.device.gpu_device)?;
        results.push(Bench { args, case }.run(backend.as_mut(), &roof)?);
    }
    Ok(json!({
        "bench": "ops", "backend": args.device.backend.name(), "device": name, "bandwidth": roof.report(),
        "results": results,
    }))
}

fn cases(args: &OpsArgs) -> Vec<Case> {
    let all = DType::ALL.to_vec();
    let dtypes = if args.dtype.is_empty() { &all } else { &args.dtype };
    let mut cases = vec![];
    for &op in &args.op {
        let (dtypes, depths) = match op {
            OpChoice::Linear | OpChoice::MoeLinear => (&dtypes[..], &[0][..]),
            OpChoice::Attention => (&[DType::F32][..], &args.depth[..]),
            OpChoice::RmsNorm => (&[DType::F32][..], &[0][..]),
        };
        for &dtype in dtypes {
            for &depth in depths {
                cases.extend(args.tokens.iter().map(|&tokens| Case { op, dtype, tokens, depth }));
            }
        }
    }
    cases
}

/// A case with the shapes around it.
struct Bench<'a> {
    args: &'a OpsArgs,
    case: Case,
}

impl Bench<'_> {
    /// What a token's row is wide before the operation.
    const fn width(&self) -> usize {
        match self.case.op {
            OpChoice::Attention => self.args.heads * self.args.head_dim,
            _ => self.args.cols,
        }
    }

    fn copies(&self) -> usize {
        self.args.copies.max(1)
    }

    /// The weight that there are copies of; attention has none.
    fn weight(&self) -> Option<WeightSpec> {
        let (rows, cols) = (self.args.rows, self.args.cols);
        match self.case.op {
            OpChoice::Linear => Some(WeightSpec::matrix("weight", self.case.dtype, rows, cols)),
            OpChoice::MoeLinear => {
                Some(WeightSpec::experts("weight", self.case.dtype, self.args.experts, rows, cols))
            }
            OpChoice::RmsNorm => Some(WeightSpec::vector("weight", 1, cols)),
            OpChoice::Attention => None,
        }
    }

    /// The tokens' rows, the scores their experts are chosen by, then the copies.
    fn specs(&self) -> Vec<WeightSpec> {
        let table = WeightSpec::matrix("table", DType::F32, self.case.tokens, self.width());
        let scores = WeightSpec::matrix("scores", DType::F32, self.case.tokens, self.args.experts);
        let copies = self.weight().into_iter().flat_map(|weight| vec![weight; self.copies()]);
        [table, scores].into_iter().chain(copies).collect()
    }

    fn layout(&self) -> Option<KvLayout> {
        let blocks = (self.case.depth + 1).div_ceil(BLOCK_SIZE);
        let group = KvGroup {
            layers: self.copies(),
            num_kv_heads: self.args.kv_heads,
            head_dim: self.args.head_dim,
            num_blocks: blocks * self.case.tokens,
            max_blocks_per_sequence: blocks,
        };
        let element: KvElement = self.args.device.kv.into();
        let layout = KvLayout { block_size: BLOCK_SIZE, element, groups: vec![group] };
        (self.case.op == OpChoice::Attention).then_some(layout)
    }

    /// The operation over every copy, from the same row.
    fn record(&self, specs: &[WeightSpec]) -> Result<Program, BackendError> {
        let tokens = self.case.tokens;
        let mut b = ProgramBuilder::new("ops", StepShape { tokens, rows: 1, sequences: tokens }, specs);
        let x = b.embed("x", WeightId(0))?;
        let experts = match self.case.op {
            OpChoice::MoeLinear => {
                let scores = b.embed("scores", WeightId(1))?;
                b.router("route", scores, self.args.experts_per_token)?.0
            }
            _ => x,
        };
        let mut last = x;
        for copy in 0..self.copies() {
            last = self.record_copy(&mut b, copy, x, experts)?;
        }
        // One row is enough to know that the step is over; all would have to travel.
        let row = b.gather_rows("row", last)?;
        b.output(row);
        Ok(b.finish())
    }

    fn record_copy(
        &self,
        b: &mut ProgramBuilder<'_>,
        copy: usize,
        x: ValueId,
        experts: ValueId,
    ) -> Result<ValueId, BackendError> {
        let (label, weight) = (format!("op.{copy}"), WeightId(copy as u32 + 2));
        match self.case.op {
            OpChoice::Linear => b.linear(label, x, weight, None),
            OpChoice::MoeLinear => b.moe_linear(label, x, experts, weight, None),
            OpChoice::RmsNorm => b.rms_norm(label, x, weight, 1e-5),
            OpChoice::Attention => {
                let OpsArgs { heads, kv_heads, head_dim, .. } = *self.args;
                let scale = (head_dim as f32).sqrt().recip();
                let layer = KvLayer { group: 0, index: copy };
                let (num_kv_heads, window, sinks) = (kv_heads, None, None);
                let op = Op::Attention { q: x, layer, heads, num_kv_heads, head_dim, scale, window, sinks };
                b.attention(label, op)
            }
        }
    }

    fn run(&self, backend: &mut dyn Backend, roof: &Roof) -> Result<Json, CommandError> {
        let specs = self.specs();
        let program = self.record(&specs)?;
        upload(backend, &specs)?;
        let layout = self.layout();
        if let Some(layout) = &layout {
            backend.create_kv(layout)?;
        }
        let plans = backend.compile(std::slice::from_ref(&program))?;
        let plan = plans.first().copied().unwrap_or(PlanId(0));
        let mut outputs = StepOutputs::for_program(&program);
        let inputs = Inputs::new(&self.case, layout.as_ref());
        let samples = timed(self.args.repeats, || {
            inputs.lend(|inputs| backend.submit(plan, inputs))?;
            Ok(backend.wait(&mut outputs)?)
        })?;
        let samples: Vec<f64> = samples.iter().map(|time_us| time_us / self.copies() as f64).collect();
        Ok(self.report(&program, &specs, samples, roof))
    }

    fn report(&self, program: &Program, specs: &[WeightSpec], samples: Vec<f64>, roof: &Roof) -> Json {
        let Case { op, dtype, tokens, depth } = self.case;
        let workload = Workload { program, specs, element: self.args.device.kv.into() };
        let step = StepTokens::decode(tokens, depth);
        let node = program.nodes().iter().find(|node| node.label == "op.0");
        let work = node.map(|node| workload.node(node, &step)).unwrap_or_default();
        let activation_bytes = node.map_or(0, |node| activation_bytes(program, node));
        let per_second = (work.bytes() + activation_bytes as f64) * median_rate(&samples);
        let stem = node.map_or("", |node| node.op.stem());
        let mut result = json!({ "op": stem, "tokens": tokens });
        match op {
            OpChoice::Linear | OpChoice::RmsNorm => {}
            OpChoice::MoeLinear => {
                result["experts"] = json!(self.args.experts);
                result["experts_per_token"] = json!(self.args.experts_per_token);
            }
            OpChoice::Attention => {
                let OpsArgs { heads, kv_heads, head_dim, .. } = *self.args;
                result["depth"] = json!(depth);
                result["heads"] = json!([heads, kv_heads, head_dim]);
            }
        }
        if let Some(weight) = self.weight() {
            result["dtype"] = json!(dtype.name());
            result["rows"] = json!(weight.rows);
            result["cols"] = json!(weight.cols);
        }
        result["weight_bytes"] = json!(work.weight_bytes.round() as u64);
        result["cache_bytes"] = json!(work.cache_bytes.round() as u64);
        result["activation_bytes"] = json!(activation_bytes);
        result["time"] = spread(samples);
        result["gigabytes_per_second"] = json!(per_second / 1e9);
        result["fraction_of_bandwidth"] = json!(roof.fraction(per_second));
        result
    }
}

/// Of the rows that a node reads and writes.
fn activation_bytes(program: &Program, node: &Node) -> usize {
    let bytes = |id: ValueId| program.value(id).bytes(program.shape());
    node.op.reads().into_iter().chain(node.outputs.iter().copied()).map(bytes).sum()
}

/// Random weights; those of one shape and format are the same.
fn upload(backend: &mut dyn Backend, specs: &[WeightSpec]) -> Result<(), CommandError> {
    let mut rng = Rng::seeded(1);
    let (mut bytes, mut of): (Vec<u8>, Option<&WeightSpec>) = (vec![], None);
    for spec in specs {
        if of != Some(spec) {
            bytes.clear();
            for _ in 0..spec.rows * spec.experts {
                quant::random_row(spec.dtype, spec.cols, 1.0, &mut rng, &mut bytes);
            }
            of = Some(spec);
        }
        backend.upload(spec, &mut bytes.chunks(1 << 20))?;
    }
    Ok(())
}

/// A step of single tokens of as many sequences, whose blocks follow each other.
struct Inputs {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// One group's, or none.
    slots: Vec<Vec<u32>>,
    tables: Vec<Vec<u32>>,
}

impl Inputs {
    fn new(case: &Case, layout: Option<&KvLayout>) -> Self {
        let tokens: Vec<u32> = (0..case.tokens as u32).collect();
        let positions = vec![case.depth as u32; case.tokens];
        let (mut slots, mut tables) = (vec![], vec![]);
        for group in layout.iter().flat_map(|layout| &layout.groups) {
            let stride = group.max_blocks_per_sequence * BLOCK_SIZE;
            slots.push(tokens.iter().map(|token| token * stride as u32 + case.depth as u32).collect());
            tables.push((0..group.num_blocks as u32).collect());
        }
        Self { tokens, positions, slots, tables }
    }

    fn lend<T>(&self, run: impl FnOnce(&StepInputs<'_>) -> T) -> T {
        let slots: Vec<&[u32]> = self.slots.iter().map(Vec::as_slice).collect();
        let tables: Vec<&[u32]> = self.tables.iter().map(Vec::as_slice).collect();
        run(&StepInputs {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &self.tokens,
            slots: &slots,
            block_tables: &tables,
            out_rows: &[0],
            sampling: &[SampleRow::GREEDY],
            penalty_tokens: &[],
        })
    }
}
