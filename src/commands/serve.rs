//! `serve`, also what runs without a subcommand: load one model, answer HTTP until told to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use worker_orcd_core::{Backend, MemoryReport};

use super::args::OpenModel;
use super::plan::table;
use super::{CommandError, NoRoom};
use crate::config::WorkerConfig;
use crate::device;
use crate::engine::{Engine, EngineConfig, memory_plan};
use crate::model::Model;
use crate::server::callback::{Patience, announce};
use crate::server::worker::ModelCard;
use crate::server::{ServerState, log, serve, termination};
use crate::text::Tokenizer;
use crate::text::chat::ChatFormat;

/// Time for the step under way to end once nobody listens any more: with the drain and the server's own limits it keeps
/// the exit within a second of the drain time.
const LAST_STEP_TIME: Duration = Duration::from_millis(300);
/// Time between looks at the device's state.
const HEALTH_INTERVAL: Duration = Duration::from_millis(200);

/// Runs the worker until it is told to stop.
///
/// # Errors
/// A flag out of range, a port that is taken, or whatever keeps the model from being served.
pub fn run(config: &WorkerConfig) -> Result<(), CommandError> {
    config.validate().map_err(|error| CommandError::Usage(error.to_string()))?;
    log::install(config.log_format, &config.worker_id, &config.log_level);
    tracing::info!(event = "startup", version = env!("CARGO_PKG_VERSION"), backend = config.backend.name());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind((config.host, config.port)).await?;
        let local = listener.local_addr()?;
        tracing::info!(event = "listening", address = %local);
        let state = ServerState::loading(config).map_err(|error| CommandError::Usage(error.to_string()))?;
        let loading = tokio::task::spawn_blocking({
            let (config, state) = (config.clone(), Arc::clone(&state));
            move || load(&config, &state)
        });
        let server = serve(listener, Arc::clone(&state), termination());
        tokio::pin!(server);
        // The server answers while the model loads; a model that cannot be loaded ends both.
        let engine = tokio::select! {
            ended = &mut server => return Ok(ended?),
            loaded = loading => loaded.map_err(std::io::Error::other)??,
        };
        if let Some(url) = config.callback_url.clone() {
            tokio::spawn(announce(state, url, local, Patience::default()));
        }
        let failed = device_failure(&engine);
        tokio::select! {
            ended = &mut server => ended?,
            // A device that failed once computes nothing that may be served: end, and let the supervisor start anew.
            reason = failed => return Err(CommandError::DeviceFailed(reason)),
        }
        engine.shutdown();
        if tokio::time::timeout(LAST_STEP_TIME, engine.stopped()).await.is_err() {
            tracing::warn!("the device is still at work; its step is given up");
        }
        Ok(())
    });
    // Loading that is still under way must not hold up the exit.
    runtime.shutdown_background();
    served
}

/// Resolves when the device has failed for good, after its listeners had time to hear of it.
async fn device_failure(engine: &Engine) -> String {
    loop {
        tokio::time::sleep(HEALTH_INTERVAL).await;
        if let Some(reason) = engine.device_failure() {
            tracing::error!(event = "error", reason, "the device failed; the worker ends");
            tokio::time::sleep(LAST_STEP_TIME).await;
            return reason.to_owned();
        }
    }
}

/// Loads the model and hands it to the server.
fn load(config: &WorkerConfig, state: &ServerState) -> Result<Engine, CommandError> {
    let start = Instant::now();
    tracing::info!(event = "model_load_start");
    let open = config.model.open()?;
    let tokenizer = Arc::new(Tokenizer::load(&open.gguf, config.model.tokenizer.as_deref())?);
    let settings = EngineConfig {
        max_batch: config.max_batch,
        max_queue: config.max_queue,
        prefill_chunk: config.prefill_chunk,
        ..EngineConfig::for_model(&open.model, config.kv_cache_mb)
    };
    let plan =
        memory_plan(open.model.specs(), &open.model, &settings, device::footprint(config.backend).as_ref())?
            .report;
    let mut backend = device::open(config.backend, config.gpu_device)?;
    check_room(backend.as_ref(), &plan, config)?;
    super::progress::upload(&open, backend.as_mut(), config.model.chunk_bytes)?;
    let chat = chat_format(&open, &tokenizer, config)?;
    let card = model_card(&open.model, backend.as_ref(), settings.block_size);
    let engine = Engine::start(backend, &open.model, settings)?;
    let memory = engine.memory();
    tracing::info!(
        event = "model_load_complete",
        load_ms = start.elapsed().as_millis() as u64,
        vram_bytes = memory.total_bytes(),
        planned_bytes = plan.total_bytes(),
        quant_kind = card.quant_kind,
    );
    let OpenModel { gguf, model } = open;
    // The mapping and the recorded layers are not needed any more: the weights live on the device.
    drop((gguf, model));
    if state.attach(card, tokenizer, chat, Box::new(engine.clone())).is_err() {
        return Err(CommandError::Usage("a model is loaded already".into()));
    }
    Ok(engine)
}

/// How the model is prompted with a conversation. One whose file does not say so, or says it wrongly, still completes
/// text; a template that was named must be good.
fn chat_format(
    open: &OpenModel,
    tokenizer: &Arc<Tokenizer>,
    config: &WorkerConfig,
) -> Result<Option<Arc<ChatFormat>>, CommandError> {
    let template = config.model.chat_template.as_deref();
    match ChatFormat::load(&open.gguf, tokenizer, template) {
        Ok(format) => Ok(Some(Arc::new(format))),
        Err(error) if template.is_some() => Err(CommandError::Usage(error.to_string())),
        Err(error) => {
            tracing::warn!(event = "no_chat", %error);
            Ok(None)
        }
    }
}

/// Refuses before the first byte is copied when the model cannot fit.
fn check_room(backend: &dyn Backend, plan: &MemoryReport, config: &WorkerConfig) -> Result<(), CommandError> {
    let free = backend.caps().free_memory_bytes;
    if free == 0 || plan.total_bytes() <= free {
        return Ok(());
    }
    Err(CommandError::NoRoom(Box::new(NoRoom {
        model: config.model.model.display().to_string(),
        device: config.gpu_device,
        available_bytes: free,
        required_bytes: plan.total_bytes(),
        table: table(plan),
    })))
}

fn model_card(model: &Model, backend: &dyn Backend, kv_block_size: usize) -> ModelCard {
    let caps = backend.caps();
    ModelCard {
        name: model.config().name.clone(),
        quant_kind: model.quant_kind().to_owned(),
        context_length: Some(crate::model::Recorder::context_length(model)),
        kv_block_size,
        backend: backend.name().to_owned(),
        device: caps.device.clone(),
        sm: caps.compute_capability.map(|capability| capability.to_string()),
        cuda_driver_version: caps.compute_capability.map(|_| caps.driver.clone()),
    }
}
