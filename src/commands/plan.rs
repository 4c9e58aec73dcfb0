//! `plan`: the device memory a model will need, computed from the file alone.

use std::io::Write;

use clap::Args;
use serde_json::json;
use worker_orcd_core::MemoryReport;

use super::CommandError;
use super::args::ModelArgs;
use crate::engine::{EngineConfig, memory_plan};
use crate::model::Recorder;

/// Flags of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    batch: BatchArgs,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// What decides the cache's size.
#[derive(Args, Clone, Copy, Debug)]
pub struct BatchArgs {
    /// Most sequences that run at once
    #[arg(long, env = "WORKER_ORCD_MAX_BATCH", default_value_t = 16)]
    pub max_batch: usize,
    /// Memory of the key/value cache in MiB; room for one full context, at least 8192 positions, when omitted
    #[arg(long, env = "WORKER_ORCD_KV_CACHE_MB", value_name = "MIB")]
    pub kv_cache_mb: Option<usize>,
    /// Most prompt tokens per step
    #[arg(long, env = "WORKER_ORCD_PREFILL_CHUNK", default_value_t = 512)]
    pub prefill_chunk: usize,
}

impl BatchArgs {
    /// The engine's settings for a model.
    pub fn engine_config(&self, recorder: &dyn Recorder) -> EngineConfig {
        EngineConfig {
            max_batch: self.max_batch,
            prefill_chunk: self.prefill_chunk,
            ..EngineConfig::for_model(recorder, self.kv_cache_mb)
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The file is not a model we can run.
pub fn run(args: &PlanArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let open = args.model.open()?;
    let config = args.batch.engine_config(&open.model);
    let plan = memory_plan(open.model.specs(), &open.model, &config)?;
    let report = plan.report;
    if args.json {
        let line = json!({
            "model": args.model.model, "context": config.context, "max_batch": config.max_batch,
            "weights_bytes": report.weights_bytes, "kv_cache_bytes": report.kv_cache_bytes,
            "activations_bytes": report.activations_bytes, "workspace_bytes": report.workspace_bytes,
            "total_bytes": report.total_bytes(),
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(
            out,
            "{}, context {}, batch {}",
            open.model.config().name,
            config.context,
            config.max_batch
        )?;
        write!(out, "{}", table(&report))?;
    }
    Ok(())
}

/// The bytes by purpose, a line each.
pub fn table(report: &MemoryReport) -> String {
    let rows = [
        ("weights", report.weights_bytes),
        ("kv_cache", report.kv_cache_bytes),
        ("activations", report.activations_bytes),
        ("workspace", report.workspace_bytes),
        ("total", report.total_bytes()),
    ];
    let line = |(purpose, bytes): (&str, u64)| {
        format!("  {purpose:<12} {bytes:>16} bytes {:>9.3} GiB\n", bytes as f64 / f64::from(1 << 30))
    };
    rows.into_iter().map(line).collect()
}
