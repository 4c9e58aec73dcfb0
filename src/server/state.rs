//! What the routes share: the limits, the loaded model once there is one, and the live jobs.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::api_keys::{ApiKeys, KeyFileError};
use super::error::{ApiError, ErrorCode};
use super::openai::grammar::Grammars;
use super::record::Tally;
use super::registry::{Refusal, Registry};
use super::span_export::{self, ExportError, SpanExport, SpanSender};
use super::supervisor;
use super::tls::{Tls, TlsError};
use super::worker::{ModelCard, Worker, WorkerHealth};
use crate::config::WorkerConfig;
use crate::engine::Health;
use crate::text::Tokenizer;
use crate::text::chat::ChatFormat;

/// The engine's own end of a drain comes after the server's, which knows what to tell the client.
const ENGINE_GRACE: Duration = Duration::from_millis(100);

/// A model in memory, ready to serve.
pub struct LoadedModel {
    /// What does not change.
    pub card: ModelCard,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How it is prompted with a conversation; `None` if nothing says so.
    pub chat: Option<Arc<ChatFormat>>,
    /// Compiles schemas for its vocabulary, from the first request that brings one on.
    pub grammars: Arc<OnceLock<Result<Arc<Grammars>, String>>>,
    /// The engine that runs it.
    pub worker: Box<dyn Worker>,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("card", &self.card).finish_non_exhaustive()
    }
}

/// The word of `/health.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Serving.
    Healthy,
    /// Serving; the last request ran out of memory.
    Degraded,
    /// The device has failed.
    Unhealthy,
    /// The model is not in memory yet.
    Loading,
    /// Finishing what runs, taking nothing more.
    Draining,
}

impl Status {
    /// Whether a request sent now would be taken.
    pub const fn serves(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

/// Something that the server needs is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The keys of clients.
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    /// The certificate or its key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The collector of traces.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// State of the server, shared by all routes.
#[derive(Debug)]
pub struct ServerState {
    /// This worker's name.
    pub worker_id: String,
    /// Most prompt tokens, beside the context's own limit.
    pub max_tokens_in: Option<usize>,
    /// Most generated tokens.
    pub max_tokens_out: usize,
    /// Longest life of a request.
    pub inference_timeout: Duration,
    /// Time that running requests get after a shutdown was asked for.
    pub drain_timeout: Duration,
    /// Names of the model in `/v1`; its own name when empty.
    pub served_names: Vec<String>,
    /// Where the model lies.
    pub model_path: String,
    /// Keys of which a request must bring one.
    pub api_keys: Option<ApiKeys>,
    /// Origins of web pages that may send requests.
    pub cors_origins: Vec<String>,
    /// How connections are encrypted, if they are.
    pub tls: Option<Tls>,
    /// Counts of all requests.
    pub tally: Arc<Tally>,
    /// Live jobs by name.
    pub jobs: Arc<Registry>,
    model: OnceLock<LoadedModel>,
    spans: Option<SpanSender>,
    span_export: Mutex<Option<SpanExport>>,
    /// When the server began, in seconds since 1970.
    pub created: u64,
    started: Instant,
    shutdown: Notify,
}

impl ServerState {
    /// A server that still loads.
    ///
    /// # Errors
    ///
    /// The file of keys, the certificate, its key or the collector's address is of no use.
    pub fn loading(config: &WorkerConfig) -> Result<Arc<Self>, SetUpError> {
        let tls = match (&config.ssl_certfile, &config.ssl_keyfile) {
            (Some(certificate), Some(key)) => Some(Tls::load(certificate, key)?),
            _ => None,
        };
        let spans = span_export::open(config.otlp_endpoint.as_deref(), &config.worker_id)?;
        let (spans, span_export) = spans.unzip();
        Ok(Arc::new(Self {
            worker_id: config.worker_id.clone(),
            max_tokens_in: config.max_tokens_in,
            max_tokens_out: config.max_tokens_out,
            inference_timeout: config.inference_timeout(),
            drain_timeout: config.drain_timeout(),
            served_names: config.served_model_name.clone(),
            model_path: config.model.model.display().to_string(),
            api_keys: config.api_key_file.as_deref().map(ApiKeys::load).transpose()?,
            cors_origins: config.cors_origin.clone(),
            tls,
            tally: Arc::default(),
            jobs: Arc::default(),
            model: OnceLock::new(),
            spans,
            span_export: Mutex::new(span_export),
            created: super::openai::reply::unix_seconds(),
            started: Instant::now(),
            shutdown: Notify::new(),
        }))
    }

    /// Begins to serve this model. A worker has one model for life: a second one is handed back.
    ///
    /// # Errors
    ///
    /// The model, when there is one already.
    pub fn attach(
        &self,
        card: ModelCard,
        tokenizer: Arc<Tokenizer>,
        chat: Option<Arc<ChatFormat>>,
        worker: Box<dyn Worker>,
    ) -> Result<(), Box<LoadedModel>> {
        let model = LoadedModel { card, tokenizer, chat, grammars: Arc::default(), worker };
        self.model.set(model).map_err(Box::new)?;
        tracing::info!(event = "ready", load_ms = self.uptime().as_millis() as u64);
        supervisor::ready();
        Ok(())
    }

    /// The model, if a request may be sent to it.
    ///
    /// # Errors
    ///
    /// 503 while draining or loading.
    pub fn serving(&self) -> Result<&LoadedModel, ApiError> {
        if self.jobs.is_closed() {
            return Err(ApiError::of(ErrorCode::ShuttingDown, "shutting down"));
        }
        self.model().ok_or_else(|| ApiError::of(ErrorCode::Loading, "the model is still loading"))
    }

    /// Where requests leave their spans, if anywhere.
    pub fn span_sender(&self) -> Option<SpanSender> {
        self.spans.clone()
    }

    /// The other end, for the one task that takes the spans to the collector.
    pub fn take_span_export(&self) -> Option<SpanExport> {
        self.span_export.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The name the model says it has.
    pub fn model_name(&self) -> Option<&str> {
        let first = self.served_names.first().map(String::as_str);
        first.or_else(|| self.model().map(|model| model.card.name.as_str()))
    }

    /// Whether the model answers to this name.
    pub fn answers_to(&self, name: &str) -> bool {
        self.model_name() == Some(name) || self.served_names.iter().any(|served| served == name)
    }

    /// The model once loaded, whether or not requests are taken.
    pub fn model(&self) -> Option<&LoadedModel> {
        self.model.get()
    }

    /// Time since the server began.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The word for the whole worker. `health` is the engine's own state once there is one.
    pub fn status(&self, health: Option<&WorkerHealth>) -> Status {
        match health.map(|health| health.health) {
            _ if self.jobs.is_closed() => Status::Draining,
            None => Status::Loading,
            Some(Health::Ready) => Status::Healthy,
            Some(Health::Degraded) => Status::Degraded,
            Some(Health::Draining) => Status::Draining,
            Some(Health::Unhealthy) => Status::Unhealthy,
        }
    }

    /// Takes a job's name.
    ///
    /// # Errors
    ///
    /// 409 when a live job has it, 503 when draining.
    pub fn register(&self, job_id: &str) -> Result<super::registry::LiveJob, ApiError> {
        self.jobs.register(job_id).map_err(|refusal| match refusal {
            Refusal::Closed => ApiError::of(ErrorCode::ShuttingDown, "shutting down"),
            Refusal::Duplicate => ApiError {
                status: Some(axum::http::StatusCode::CONFLICT),
                ..ApiError::invalid("job_id", "a live job has this name")
            },
        })
    }

    /// Asks [`super::serve`] to end; requests are refused from now on.
    pub fn request_shutdown(&self) {
        self.close();
        self.shutdown.notify_one();
    }

    /// Returns once a shutdown was asked for.
    pub async fn shutdown_requested(&self) {
        self.shutdown.notified().await;
    }

    /// Refuses requests from now on; those running go on.
    pub fn close(&self) {
        self.jobs.close();
        if let Some(model) = self.model() {
            model.worker.drain(Instant::now() + self.drain_timeout + ENGINE_GRACE);
        }
    }
}
