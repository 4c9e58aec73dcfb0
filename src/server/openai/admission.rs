//! From an HTTP request to running sequences: all that happens before the first byte of an answer.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;

use super::answers::Answers;
use super::error;
use super::parameters::Parameters;
use crate::engine::Job;
use crate::random;
use crate::server::body::Fields;
use crate::server::error::ApiError;
use crate::server::execute_request::deadline_ms;
use crate::server::following::Following;
use crate::server::log::TextPrint;
use crate::server::off_thread::deadline;
use crate::server::record::{self, Beginning, Record};
use crate::server::registry::LiveJob;
use crate::server::state::{LoadedModel, ServerState};
use crate::text::chat::OutputParser;

/// Most bytes of a body.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Header with the client's own name of the request.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Most characters of that name.
const MAX_REQUEST_ID_CHARS: usize = 128;

/// Admits a request under a name that begins with `prefix` and lets `answer` answer it; a refusal is written down.
pub async fn answered<'a, F, A>(state: &'a ServerState, request: Request, prefix: &str, answer: F) -> Response
where
    F: FnOnce(Admitted<'a>) -> A,
    A: Future<Output = Result<Response, ApiError>>,
{
    let mut id = None;
    let answered = match Admitted::read(state, request, prefix, &mut id).await {
        Ok(admitted) => answer(admitted).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(|error| {
        record::refused(&state.tally, id.as_deref(), &error);
        error::refusal(&error)
    })
}

/// A request whose body is read and whose name is taken.
#[derive(Debug)]
pub struct Admitted<'a> {
    /// The model that will answer.
    pub model: &'a LoadedModel,
    /// The body.
    pub fields: Fields,
    /// The answer's id, also the job's name.
    pub id: String,
    /// The name, while the request lives.
    pub job: LiveJob,
    /// When to give up.
    pub deadline: Instant,
}

impl<'a> Admitted<'a> {
    /// Reads the body and takes a name that begins with `prefix`; `id` is told for the log.
    ///
    /// # Errors
    ///
    /// 503 while loading or draining, 400 and 413 for the body.
    async fn read(
        state: &'a ServerState,
        request: Request,
        prefix: &str,
        id: &mut Option<String>,
    ) -> Result<Self, ApiError> {
        let received = Instant::now();
        let model = state.serving()?;
        let (parts, body) = request.into_parts();
        let deadline = deadline(received, deadline_ms(&parts.headers)?, state.inference_timeout);
        let fields = Fields::read(&parts.headers, body, MAX_BODY_BYTES).await?;
        let job = match client_id(&parts.headers).map(|name| state.register(&format!("{prefix}{name}"))) {
            Some(Ok(job)) => job,
            // A client that tries again may have left the first try running.
            _ => state.register(&format!("{prefix}{}", random::uuid().replace('-', "")))?,
        };
        let name = job.job_id().to_owned();
        *id = Some(name.clone());
        Ok(Self { model, fields, id: name, job, deadline })
    }
}

/// The client's name of the request, if it is fit for logs and ids.
fn client_id(headers: &HeaderMap) -> Option<&str> {
    let name = headers.get(REQUEST_ID_HEADER)?.to_str().ok()?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    ((1..=MAX_REQUEST_ID_CHARS).contains(&name.len()) && name.bytes().all(allowed)).then_some(name)
}

/// Prompts ready to run.
#[derive(Debug)]
pub struct Prompts {
    /// Ids of each prompt, none empty.
    pub ids: Vec<Vec<u32>>,
    /// What the log may say of them.
    pub print: TextPrint,
}

/// Submits every answer's sequence. If one is not taken, none is.
///
/// # Errors
///
/// 400 `context_length_exceeded`, or the engine's refusal.
pub fn submit(
    state: &ServerState,
    model: &LoadedModel,
    request: (String, LiveJob, Instant),
    prompts: &Prompts,
    parameters: &Parameters,
    parser: impl Fn(usize) -> OutputParser,
) -> Result<Answers, ApiError> {
    let (id, job, deadline) = request;
    let context = model.card.context_length.unwrap_or(usize::MAX);
    let room: Vec<usize> =
        prompts.ids.iter().map(|ids| parameters.room(ids.len(), state, context)).collect::<Result<_, _>>()?;
    let tokens_in = prompts.ids.iter().map(Vec::len).sum();
    let choices = parameters.choices;
    let count = prompts.ids.len() * choices;
    let mut streams = Vec::with_capacity(count);
    for (ids, &max_tokens) in prompts.ids.iter().zip(&room) {
        for choice in 0..choices {
            let name = if count == 1 { id.clone() } else { format!("{id}-{}", streams.len()) };
            let submitted = model.worker.submit(Job {
                id: name,
                prompt: ids.clone(),
                max_tokens,
                stop_ids: parameters.all_stop_ids(&model.tokenizer),
                sampling: parameters.sampling_of(choice),
                deadline: Some(deadline),
                cache_salt: parameters.cache_salt.clone(),
            });
            streams.push(submitted.map_err(|error| ApiError::from_engine(&error, &model.card.backend))?);
        }
    }
    let beginning = Beginning {
        job_id: &id,
        prompt: &prompts.print,
        tokens_in,
        max_tokens: room.iter().copied().max().unwrap_or(0),
        seed: parameters.sampling.seed,
    };
    let record = Record::begin(&state.tally, &beginning);
    let following = Following::of(streams, job, deadline, &model.card.backend);
    let parsers = (0..count).map(parser).collect();
    Ok(Answers::read(following, Arc::clone(&model.tokenizer), parsers, choices, record))
}
