//! `compare`: runs one prompt on two backends with every value tapped and names the first label where they part.

use std::io::Write;

use clap::Args;
use serde_json::json;
use worker_orcd_core::{Op, OutputValue, Program, ValueId};

use super::CommandError;
use super::args::{DeviceArgs, KvChoice, ModelArgs, OpenModel, PromptArgs};
use crate::config::BackendChoice;
use crate::engine::direct::{DirectOptions, DirectRun};

/// Flags of `compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// The two backends; the first is the one believed
    #[arg(
        long,
        env = "WORKER_ORCD_BACKENDS",
        value_enum,
        value_delimiter = ',',
        default_value = "reference,wgpu"
    )]
    backends: Vec<BackendChoice>,
    /// Index of the GPU
    #[arg(long, env = "WORKER_ORCD_GPU_DEVICE", default_value_t = 0)]
    gpu_device: usize,
    /// Largest normalised mean squared error of a value
    #[arg(long, env = "WORKER_ORCD_TOLERANCE", default_value_t = DEFAULT_TOLERANCE)]
    tolerance: f64,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// f32 sums in another order differ by about 1e-13 in this measure; the f16 cache turns a last-bit difference into one
/// of 2^-11 on few elements, and CUDA's products round activations to 12 bits per 32, 1e-7 each, which 24 layers add up
/// to 1.2e-5 at most (the interpreter with such activations says so). A wrong index or a wrong formula is above 1e-2.
pub const DEFAULT_TOLERANCE: f64 = 2e-5;

/// How one value compares.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Its label.
    pub label: String,
    /// Normalised mean squared error of activations; share of differing rows of ids.
    pub nmse: f64,
    /// Whether it is within the tolerance.
    pub agrees: bool,
    /// For expert ids that differ: the smallest gap between a chosen and a left-out logit where they do. A tiny one is
    /// a near-tie that either backend may break its own way.
    pub router_margin: Option<f64>,
}

/// Runs the command.
///
/// # Errors
/// The model or a device; [`CommandError::Differs`] when the backends part.
pub fn run(args: &CompareArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let open = args.model.open()?;
    let ids = args.prompt.ids(&args.model, &open)?;
    let [believed, judged] = args.backends.as_slice() else {
        return Err(CommandError::Usage("--backends takes two, separated by a comma".into()));
    };
    let tapped = |choice: BackendChoice| -> Result<(Program, Vec<OutputValue>), CommandError> {
        let device = DeviceArgs { backend: choice, gpu_device: args.gpu_device, kv: KvChoice::F16 };
        run_tapped(&open, &ids, &device, args.model.chunk_bytes)
    };
    let (program, expected) = tapped(*believed)?;
    let (_, found) = tapped(*judged)?;
    let differences = differences(&program, &expected, &found, args.tolerance);
    let parted = differences.iter().find(|difference| !difference.agrees);
    let worst = differences.iter().map(|difference| difference.nmse).fold(0.0, f64::max);
    if args.json {
        let values: Vec<_> =
            differences.iter().map(|d| json!({ "label": d.label, "nmse": d.nmse })).collect();
        let line = json!({
            "values": values, "worst_nmse": worst, "tolerance": args.tolerance,
            "first_divergence": parted.map(|d| d.label.as_str()),
            "router_margin": parted.and_then(|d| d.router_margin),
        });
        writeln!(out, "{line}")?;
    } else if parted.is_none() {
        let (a, b) = (believed.name(), judged.name());
        writeln!(out, "{a} and {b} agree on {} values, worst NMSE {worst:.2e}", differences.len())?;
    }
    match parted {
        None => Ok(()),
        Some(d) => Err(CommandError::Differs {
            label: d.label.clone(),
            nmse: d.nmse,
            margin: d.router_margin.map_or(String::new(), |margin| format!(", router margin {margin:.2e}")),
        }),
    }
}

/// Runs a prompt in one step with every value tapped.
///
/// # Errors
/// The device.
pub fn run_tapped(
    open: &OpenModel,
    ids: &[u32],
    device: &DeviceArgs,
    chunk_bytes: usize,
) -> Result<(Program, Vec<OutputValue>), CommandError> {
    let backend = device.load(open, chunk_bytes)?;
    let options = DirectOptions {
        context: ids.len(),
        chunk: ids.len(),
        rows: 1,
        element: device.kv.into(),
        tapped: true,
    };
    let mut run = DirectRun::new(backend, &open.model, &options)?;
    let values = run.step(ids, 0, &[ids.len() as u32 - 1])?.to_vec();
    Ok((run.program().clone(), values))
}

/// Compares every tapped value in program order.
pub fn differences(
    program: &Program,
    expected: &[OutputValue],
    found: &[OutputValue],
    tolerance: f64,
) -> Vec<Difference> {
    let ids = program.outputs().iter().zip(expected.iter().zip(found));
    ids.map(|(id, pair)| difference(program, *id, pair, expected, tolerance)).collect()
}

fn difference(
    program: &Program,
    id: ValueId,
    pair: (&OutputValue, &OutputValue),
    expected: &[OutputValue],
    tolerance: f64,
) -> Difference {
    let label = program.value(id).label.clone();
    match pair {
        (OutputValue::F32(expected), OutputValue::F32(found)) => {
            let nmse = nmse(expected, found);
            Difference { label, nmse, agrees: nmse <= tolerance, router_margin: None }
        }
        (OutputValue::U32(a), OutputValue::U32(b)) => {
            let width = program.value(id).width;
            let rows: Vec<usize> = (0..a.len() / width)
                .filter(|row| {
                    a[row * width..][..width] != *b.get(row * width..(row + 1) * width).unwrap_or_default()
                })
                .collect();
            let share = rows.len() as f64 / (a.len() / width).max(1) as f64;
            let router_margin = router_margin(program, id, &rows, width, expected);
            Difference { label, nmse: share, agrees: rows.is_empty(), router_margin }
        }
        _ => Difference { label, nmse: f64::INFINITY, agrees: false, router_margin: None },
    }
}

/// Normalised mean squared error; anything not finite is infinitely wrong.
pub fn nmse(expected: &[f32], found: &[f32]) -> f64 {
    if expected.len() != found.len() {
        return f64::INFINITY;
    }
    let (mut error, mut power) = (0.0_f64, 0.0_f64);
    for (a, b) in expected.iter().zip(found) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        error += (a - b) * (a - b);
        power += a * a;
    }
    match (error, power) {
        (error, _) if !error.is_finite() => f64::INFINITY,
        (0.0, _) => 0.0,
        (error, power) => error / power.max(f64::MIN_POSITIVE),
    }
}

/// The smallest gap between the last chosen and the first left-out logit among rows whose experts differ.
fn router_margin(
    program: &Program,
    experts: ValueId,
    rows: &[usize],
    top_k: usize,
    expected: &[OutputValue],
) -> Option<f64> {
    let node = program.nodes().iter().find(|node| node.outputs.first() == Some(&experts))?;
    let Op::Router { logits, .. } = node.op else { return None };
    let position = program.outputs().iter().position(|id| *id == logits)?;
    let OutputValue::F32(values) = expected.get(position)? else { return None };
    let width = program.value(logits).width;
    let margin = |row: &usize| {
        let mut sorted = values.get(row * width..(row + 1) * width)?.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        // Two chosen experts may also swap places, so neighbours inside the choice count too.
        sorted.windows(2).take(top_k).map(|pair| f64::from(pair[0] - pair[1])).reduce(f64::min)
    };
    rows.iter().filter_map(margin).reduce(f64::min)
}
