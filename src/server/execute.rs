//! `POST /execute`: one prompt in, its continuation out as server-sent events.
//!
//! ```text
//! started {job_id, model, started_at, seed}
//! token   {t, i}      t: whole characters, never empty; i: index of the newest token generated so far, from 0
//! metrics {…}         the engine's own figures; not sent when a stop string ended the text
//! end     {tokens_out, decode_time_ms, finish_reason, …}   or   error {code, message, retriable}
//! ```
//!
//! A token that completes no character makes no event, so `i` may skip numbers; text that was held back (it might
//! have begun a stop string) leaves with the index of the token that settled it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::json;

use super::body::Fields;
use super::error::{ApiError, ErrorCode};
use super::execute_request::{ExecuteRequest, MAX_BODY_BYTES, deadline_ms};
use super::generation::{Generation, Output};
use super::log::{TextPrint, timestamp};
use super::registry::{LiveJob, StopCause};
use super::sse;
use super::state::{LoadedModel, ServerState};
use crate::engine::{FinishReason, Job, Usage};
use crate::text::{DecodeOptions, IncrementalDecoder};

/// `POST /execute`.
pub async fn execute(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    let mut job_id = None;
    match start(&state, request, &mut job_id).await {
        Ok(stream) => sse::response(stream),
        Err(error) => {
            let (code, status) = (error.code.name(), error.status().as_u16());
            tracing::warn!(
                event = "error",
                job_id,
                code,
                status,
                field = error.field,
                reason = error.message
            );
            error.into_response()
        }
    }
}

/// All that happens before the first byte: every error here is a plain response. `job_id` is told for the log.
async fn start(
    state: &ServerState,
    request: Request,
    job_id: &mut Option<String>,
) -> Result<ExecuteStream, ApiError> {
    let received = Instant::now();
    let model = state.serving()?;
    let (parts, body) = request.into_parts();
    let deadline = deadline(received, deadline_ms(&parts.headers)?, state.inference_timeout);
    let mut fields = Fields::read(&parts.headers, body, MAX_BODY_BYTES).await?;
    let request =
        ExecuteRequest::from_fields(&mut fields, model.tokenizer.vocab_size(), state.max_tokens_out)?;
    *job_id = Some(request.job_id.clone());
    let mut job = state.register(&request.job_id)?;

    let print = TextPrint::of(&request.prompt);
    let (request, prompt) = tokenise(model, request, state.max_tokens_in, &mut job, deadline).await?;
    let record = Record {
        job_id: request.job_id.clone(),
        tokens_in: prompt.len(),
        output: TextPrint::default(),
        closed: false,
    };
    let seed = request.sampling.seed;
    let stream = model
        .worker
        .submit(Job {
            id: request.job_id,
            prompt,
            max_tokens: request.max_tokens,
            stop_ids: model.tokenizer.stop_ids().to_vec(),
            sampling: request.sampling,
            deadline: Some(deadline),
            cache_salt: None,
        })
        .map_err(|error| ApiError::from_engine(&error, &model.card.backend))?;
    tracing::info!(
        event = "execute_start",
        job_id = record.job_id,
        prompt_sha256 = print.sha256(),
        prompt_chars = print.chars(),
        tokens_in = record.tokens_in,
        max_tokens = request.max_tokens,
        seed
    );
    let started = json!({
        "job_id": record.job_id, "model": model.card.name, "started_at": timestamp(), "seed": seed
    });
    // The output continues the prompt: a word's leading space belongs to it.
    let decoding = DecodeOptions { continues_text: true, stops: request.stop, ..DecodeOptions::default() };
    let decoder = IncrementalDecoder::new(Arc::clone(&model.tokenizer), &decoding);
    let generation = Generation::follow(stream, job, decoder, deadline, &model.card.backend);
    Ok(ExecuteStream { generation, due: VecDeque::from([sse::event("started", &started)]), record })
}

/// The earlier of the client's and the worker's limit.
fn deadline(received: Instant, client_ms: Option<u64>, worker: Duration) -> Instant {
    let client = client_ms.map_or(worker, Duration::from_millis);
    received + client.min(worker)
}

/// Tokenises off the server's threads, unless the job ends first.
async fn tokenise(
    model: &LoadedModel,
    request: ExecuteRequest,
    max_tokens_in: Option<usize>,
    job: &mut LiveJob,
    deadline: Instant,
) -> Result<(ExecuteRequest, Vec<u32>), ApiError> {
    let tokenizer = Arc::clone(&model.tokenizer);
    let work = tokio::task::spawn_blocking(move || {
        let ids = request.tokenise(&tokenizer, max_tokens_in)?;
        Ok((request, ids))
    });
    let timed_out = || ApiError::of(ErrorCode::InferenceTimeout, "deadline exceeded");
    let done = tokio::select! {
        biased;
        cause = job.stopped() => return Err(match cause {
            StopCause::Cancelled => ApiError::of(ErrorCode::Cancelled, "cancelled"),
            StopCause::Drained => ApiError::drained(),
        }),
        () = tokio::time::sleep_until(deadline.into()) => return Err(timed_out()),
        done = work => done.map_err(|_| ApiError::of(ErrorCode::Internal, "the tokenizer has failed"))?,
    };
    // Timers are coarse: a deadline of a millisecond may have passed unnoticed.
    if Instant::now() < deadline { done } else { Err(timed_out()) }
}

/// What the log says of a request at its end.
#[derive(Debug)]
struct Record {
    job_id: String,
    tokens_in: usize,
    output: TextPrint,
    closed: bool,
}

/// The events of one request. Dropping it before its end cancels the sequence.
#[derive(Debug)]
struct ExecuteStream {
    generation: Generation,
    due: VecDeque<Event>,
    record: Record,
}

impl Stream for ExecuteStream {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.due.is_empty() {
            match this.generation.poll_output(cx) {
                Poll::Ready(Some(output)) => this.render(output),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(this.due.pop_front().map(Ok))
    }
}

impl ExecuteStream {
    /// Queues the events of one output.
    fn render(&mut self, output: Output) {
        match output {
            Output::Text { text, index } => {
                self.record.output.push(&text);
                self.due.push_back(sse::event("token", &json!({ "t": text, "i": index })));
            }
            Output::Ended { reason, usage } => {
                let finish_reason = finish_reason(reason);
                self.close(finish_reason);
                if let Some(usage) = usage {
                    self.due.push_back(sse::event("metrics", &metrics(&usage)));
                }
                let progress = *self.generation.progress();
                let end = json!({
                    "tokens_in": self.record.tokens_in,
                    "tokens_out": progress.tokens_out,
                    "ttft_ms": progress.time_to_first_token().map(ms),
                    "decode_time_ms": ms(progress.decode_time()),
                    "finish_reason": finish_reason,
                });
                self.due.push_back(sse::event("end", &end));
            }
            Output::Failed(error) => {
                self.close(error_outcome(error.code));
                let (code, reason) = (error.code.name(), &error.message);
                tracing::warn!(event = "error", job_id = self.record.job_id, code, reason);
                self.due.push_back(sse::event("error", &json!(error)));
            }
        }
    }

    /// The one log line at the end of a request.
    fn close(&mut self, outcome: &'static str) {
        if std::mem::replace(&mut self.record.closed, true) {
            return;
        }
        let progress = self.generation.progress();
        tracing::info!(
            event = "execute_end",
            job_id = self.record.job_id,
            outcome,
            tokens_in = self.record.tokens_in,
            tokens_out = progress.tokens_out,
            output_sha256 = self.record.output.sha256(),
            output_chars = self.record.output.chars(),
            ttft_ms = progress.time_to_first_token().map(ms),
            decode_time_ms = ms(progress.decode_time())
        );
    }
}

impl Drop for ExecuteStream {
    fn drop(&mut self) {
        self.close("disconnected");
    }
}

const fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

const fn error_outcome(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Cancelled => "cancelled",
        ErrorCode::InferenceTimeout => "timeout",
        _ => "error",
    }
}

fn metrics(usage: &Usage) -> serde_json::Value {
    let seconds = usage.decode_time.as_secs_f64();
    // The first token ends the prefill; the others are what decoding made.
    let decoded = usage.generated_tokens.saturating_sub(1) as f64;
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "queue_time_ms": ms(usage.queue_time),
        "prefill_time_ms": ms(usage.prefill_time),
        "decode_time_ms": ms(usage.decode_time),
        "tokens_per_second": (seconds > 0.0).then_some(decoded / seconds),
    })
}

/// Milliseconds to the microsecond.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
