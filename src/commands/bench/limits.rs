//! `bench limits`: how fast a model could decode at a given bandwidth. Reads shapes alone, and needs no device.

use clap::Args;
use serde_json::{Value as Json, json};
use worker_orcd_core::{Bandwidth, KvElement, StepShape};

use super::roof::Roof;
use super::work::{StepTokens, Workload};
use crate::commands::CommandError;
use crate::commands::args::ModelArgs;
use crate::model::{Recorder, StepHead};

/// Flags of `bench limits`.
#[derive(Args, Debug)]
pub(super) struct LimitsArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the device's memory reads or copies, in 10⁹ bytes a second
    #[arg(long, env = "WORKER_ORCD_GIGABYTES_PER_SECOND")]
    gigabytes_per_second: f64,
    /// Numbers of sequences, separated by commas
    #[arg(long, env = "WORKER_ORCD_BATCH", value_delimiter = ',', default_value = "1,8,16,32,64")]
    batch: Vec<usize>,
    /// Tokens of each sequence in the cache, separated by commas
    #[arg(long, env = "WORKER_ORCD_DEPTH", value_delimiter = ',', default_value = "128")]
    depth: Vec<usize>,
}

/// Runs the command.
///
/// # Errors
/// The model.
pub(super) fn run(args: &LimitsArgs) -> Result<Json, CommandError> {
    let open = args.model.open()?;
    let single = StepShape { tokens: 1, rows: 1, sequences: 1 };
    let program = open.model.record(single, StepHead::Logits)?;
    let workload = Workload { program: &program, specs: open.model.specs(), element: KvElement::F16 };
    let copy_bytes_per_second = Some(args.gigabytes_per_second * 1e9);
    let bandwidth = Bandwidth { copy_bytes_per_second, upload_bytes_per_second: None };
    let roof = Roof { bandwidth, operations_per_second: None };
    let mut results = vec![];
    for &batch in &args.batch {
        for &depth in &args.depth {
            let work = workload.step(&StepTokens::decode(batch, depth));
            let limit = roof.seconds(&work).map(|(seconds, _)| batch as f64 / seconds);
            results.push(json!({
                "batch": batch, "depth": depth, "weight_bytes": work.weight_bytes.round() as u64,
                "cache_bytes": work.cache_bytes.round() as u64, "giga_operations": work.operations / 1e9,
                "limit_tokens_per_second": limit,
            }));
        }
    }
    Ok(json!({
        "bench": "limits", "model": args.model.model, "gigabytes_per_second": args.gigabytes_per_second,
        "results": results,
    }))
}
