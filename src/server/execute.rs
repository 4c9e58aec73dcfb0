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
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::json;

use super::body::Fields;
use super::error::ApiError;
use super::execute_request::{ExecuteRequest, MAX_BODY_BYTES, deadline_ms};
use super::following::Following;
use super::generation::{Generation, Output};
use super::log::{TextPrint, timestamp};
use super::off_thread::{deadline, off_thread};
use super::record::{self, Beginning, Outcome, Record, milliseconds};
use super::sse::{self, Event};
use super::state::ServerState;
use crate::engine::{Job, Usage};
use crate::text::{DecodeOptions, IncrementalDecoder};

/// `POST /execute`.
pub async fn execute(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    let mut job_id = None;
    match start(&state, request, &mut job_id).await {
        Ok(stream) => sse::response(stream),
        Err(error) => {
            record::refused(&state.tally, job_id.as_deref(), &error);
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
    let tokenizer = Arc::clone(&model.tokenizer);
    let max_tokens_in = state.max_tokens_in;
    let (request, prompt) = off_thread(&mut job, deadline, move || {
        let ids = request.tokenise(&tokenizer, max_tokens_in)?;
        Ok((request, ids))
    })
    .await?;
    let seed = request.sampling.seed;
    let tokens_in = prompt.len();
    let stream = model
        .worker
        .submit(Job {
            id: request.job_id.clone(),
            prompt,
            max_tokens: request.max_tokens,
            stop_ids: model.tokenizer.stop_ids().to_vec(),
            sampling: request.sampling,
            deadline: Some(deadline),
            cache_salt: None,
        })
        .map_err(|error| ApiError::from_engine(&error, &model.card.backend))?;
    let (job_id, max_tokens) = (&request.job_id, request.max_tokens);
    let record =
        Record::begin(&state.tally, &Beginning { job_id, prompt: &print, tokens_in, max_tokens, seed });
    let started = json!({
        "job_id": job_id, "model": model.card.name, "started_at": timestamp(), "seed": seed
    });
    // The output continues the prompt: a word's leading space belongs to it.
    let decoding = DecodeOptions { continues_text: true, stops: request.stop, ..DecodeOptions::default() };
    let decoder = IncrementalDecoder::new(Arc::clone(&model.tokenizer), &decoding);
    let following = Following::of(vec![stream], job, deadline, &model.card.backend);
    let generation = Generation::read(following, decoder);
    Ok(ExecuteStream { generation, due: VecDeque::from([sse::event("started", &started)]), record })
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
        self.record.note(self.generation.progress());
        match output {
            Output::Text { text, index } => {
                self.record.output.push(&text);
                self.due.push_back(sse::event("token", &json!({ "t": text, "i": index })));
            }
            Output::Ended { reason, usage } => {
                let outcome = Outcome::from(reason);
                self.record.end(outcome);
                if let Some(usage) = usage {
                    self.due.push_back(sse::event("metrics", &metrics(&usage)));
                }
                let progress = self.generation.progress();
                let end = json!({
                    "tokens_in": self.record.tokens_in,
                    "tokens_out": progress.tokens_out,
                    "ttft_ms": progress.time_to_first_token().map(milliseconds),
                    "decode_time_ms": milliseconds(progress.decode_time()),
                    "finish_reason": outcome.name(),
                });
                self.due.push_back(sse::event("end", &end));
            }
            Output::Failed(error) => {
                self.record.fail(&error);
                self.due.push_back(sse::event("error", &json!(error)));
            }
        }
    }
}

fn metrics(usage: &Usage) -> serde_json::Value {
    let seconds = usage.decode_time.as_secs_f64();
    // The first token ends the prefill; the others are what decoding made.
    let decoded = usage.generated_tokens.saturating_sub(1) as f64;
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "queue_time_ms": milliseconds(usage.queue_time),
        "prefill_time_ms": milliseconds(usage.prefill_time),
        "decode_time_ms": milliseconds(usage.decode_time),
        "tokens_per_second": (seconds > 0.0).then_some(decoded / seconds),
    })
}
