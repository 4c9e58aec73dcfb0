//! `plan`: the device memory a model will need, computed from the file alone.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use worker_orcd_core::MemoryReport;

use super::CommandError;
use crate::config::BackendChoice;
use crate::device;
use crate::engine::{EngineConfig, memory_plan};
use crate::gguf::Gguf;
use crate::model::{Model, ModelOptions, Recorder};

/// Flags of `plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// GGUF file, or the first file of a split model
    #[arg(value_name = "FILE", required_unless_present = "model")]
    file: Option<PathBuf>,
    /// The same, as the other commands take it
    #[arg(long, env = "WORKER_ORCD_MODEL", value_name = "FILE")]
    model: Option<PathBuf>,
    /// Most positions of one sequence; the model's own limit, at most 16384, when omitted
    #[arg(long, env = "WORKER_ORCD_CONTEXT", value_name = "TOKENS")]
    context: Option<usize>,
    #[command(flatten)]
    batch: BatchArgs,
    /// Whose allocations are foretold
    #[arg(long, env = "WORKER_ORCD_BACKEND", value_enum, default_value_t = BackendChoice::Cuda)]
    backend: BackendChoice,
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
    let path = args.file.as_ref().or(args.model.as_ref());
    let path = path.ok_or_else(|| CommandError::Usage("a model file is needed".into()))?;
    let gguf = Gguf::open(path)?;
    let model = Model::new(&gguf, ModelOptions { context: args.context, ..ModelOptions::default() })?;
    let config = args.batch.engine_config(&model);
    let footprint = device::footprint(args.backend);
    let plan = memory_plan(model.specs(), &model, &config, footprint.as_ref())?;
    let report = plan.report;
    if args.json {
        let line = json!({
            "model": path, "context": config.context, "max_batch": config.max_batch,
            "weights_bytes": report.weights_bytes, "kv_cache_bytes": report.kv_cache_bytes,
            "activations_bytes": report.activations_bytes, "workspace_bytes": report.workspace_bytes,
            "total_bytes": report.total_bytes(),
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}, context {}, batch {}", model.config().name, config.context, config.max_batch)?;
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
