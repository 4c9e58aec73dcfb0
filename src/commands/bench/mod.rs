//! `bench`: measures, never judges. Medians over repeats beside what the device allows, as JSON, and plots of it.

mod batch;
mod limits;
mod load;
mod ops;
mod plot;
mod profile;
mod roof;
mod serve;
mod steps;
mod work;

use std::io::Write;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use super::CommandError;
use super::args::OpenModel;
use crate::model::Recorder;

/// Flags of `bench`.
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time single operations by format and shape
    Ops(ops::OpsArgs),
    /// Time single-token steps after a prompt
    Decode(steps::ModelBenchArgs),
    /// Time whole prompts
    Prefill(steps::ModelBenchArgs),
    /// Time many sequences at once through the engine
    Batch(batch::BatchBenchArgs),
    /// Time the way from the file to the first token
    Load(load::LoadBenchArgs),
    /// Time many streams at once against a running server
    Serve(serve::ServeBenchArgs),
    /// Tell what a bandwidth would allow, from the model's shapes alone
    Limits(limits::LimitsArgs),
    /// Draw what `batch` measured against the batch and against the context
    Plot(plot::PlotArgs),
}

/// Runs the command.
///
/// # Errors
/// The model or the device.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let result = match &args.what {
        What::Ops(args) => ops::run(args)?,
        What::Decode(args) => steps::decode(args)?,
        What::Prefill(args) => steps::prefill(args)?,
        What::Batch(args) => batch::run(args)?,
        What::Load(args) => load::run(args)?,
        What::Limits(args) => limits::run(args)?,
        What::Serve(args) => return serve::run(args, out),
        What::Plot(args) => return plot::run(args, out),
    };
    writeln!(out, "{result}")?;
    Ok(())
}

/// Smallest, middle and largest of the samples, in microseconds.
fn spread(mut samples: Vec<f64>) -> Json {
    samples.sort_by(f64::total_cmp);
    json!({ "min_us": samples.first(), "median_us": median(&samples), "max_us": samples.last() })
}

/// Adds the middle, smallest and largest of tokens per second to a result, and returns the middle.
fn rates(result: &mut Json, mut per_second: Vec<f64>) -> f64 {
    per_second.sort_by(f64::total_cmp);
    let middle = median(&per_second);
    result["tokens_per_second"] = json!(middle);
    result["min_tokens_per_second"] = json!(per_second.first());
    result["max_tokens_per_second"] = json!(per_second.last());
    middle
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How often a second something of the median duration happens.
fn median_rate(samples_us: &[f64]) -> f64 {
    let mut sorted = samples_us.to_vec();
    sorted.sort_by(f64::total_cmp);
    1e6 / median(&sorted)
}

/// Microseconds of each repeat, after one that is not timed.
fn timed(
    repeats: usize,
    mut run: impl FnMut() -> Result<(), CommandError>,
) -> Result<Vec<f64>, CommandError> {
    run()?;
    let mut samples = vec![];
    for _ in 0..repeats.max(1) {
        let start = Instant::now();
        run()?;
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(samples)
}

/// A prompt of ids spread over the vocabulary.
fn prompt(open: &OpenModel, tokens: usize) -> Vec<u32> {
    let vocab = open.model.vocab_size() as u64;
    (0..tokens as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) % vocab) as u32).collect()
}
