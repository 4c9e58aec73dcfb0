//! Answers on the wire: as a stream of chunks, or whole. What differs between the routes is their [`Wire`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answers::{Answers, Said, TokenReport, Totals};
use super::error;
use crate::server::error::{ApiError, ErrorCode};
use crate::server::record::Outcome;
use crate::server::sse::{self, Event};
use crate::server::state::ServerState;
use crate::text::chat::{OutputEvent, ToolCall};

/// What ends a stream.
const DONE: &str = "[DONE]";

/// What every chunk and every whole answer says of itself.
#[derive(Clone, Debug)]
pub struct Head {
    /// Id of the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Name of the model.
    pub model: String,
    /// What else the tokens depend on, beside the request.
    pub system_fingerprint: String,
}

impl Head {
    /// Of an answer that begins now.
    pub fn begin(state: &ServerState, id: &str) -> Self {
        let kind = state.model().map(|model| format!("-{}-{}", model.card.backend, model.card.quant_kind));
        Self {
            id: id.to_owned(),
            created: unix_seconds(),
            model: state.model_name().unwrap_or_default().to_owned(),
            system_fingerprint: concat!("worker-orcd-", env!("CARGO_PKG_VERSION")).to_owned()
                + &kind.unwrap_or_default(),
        }
    }

    fn object(&self, kind: &str) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("id".into(), self.id.as_str().into());
        object.insert("object".into(), kind.into());
        object.insert("created".into(), self.created.into());
        object.insert("model".into(), self.model.as_str().into());
        object.insert("system_fingerprint".into(), self.system_fingerprint.as_str().into());
        object
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// Its text.
    pub content: String,
    /// The reasoning before it.
    pub reasoning: String,
    /// Its tool calls.
    pub calls: Vec<ToolCall>,
    /// Its tokens, when asked for.
    pub reports: Vec<TokenReport>,
    /// Why it ended; `None` before that.
    pub outcome: Option<Outcome>,
}

impl Whole {
    fn add(&mut self, event: OutputEvent, reports: Vec<TokenReport>) {
        self.reports.extend(reports);
        match event {
            OutputEvent::ContentDelta(text) => self.content.push_str(&text),
            OutputEvent::ReasoningDelta(text) => self.reasoning.push_str(&text),
            OutputEvent::ToolCallStart { id, name, .. } => {
                self.calls.push(ToolCall { id, name, arguments: String::new() });
            }
            OutputEvent::ToolCallArgumentsDelta { index, delta } => {
                if let Some(call) = self.calls.get_mut(index) {
                    call.arguments.push_str(&delta);
                }
            }
            OutputEvent::ToolCallEnd { .. } | OutputEvent::Finished(_) => {}
        }
    }
}

/// How one route writes its answers. Every method returns an entry of `choices`.
pub trait Wire: Send + Unpin + 'static {
    /// `object` of a chunk.
    const CHUNK: &'static str;
    /// `object` of a whole answer.
    const WHOLE: &'static str;

    /// What begins an answer, if anything does.
    fn opening(&self, choice: usize) -> Option<Value>;
    /// A piece of an answer, if it is shown, as JSON: the one that is written once a token.
    fn piece(&mut self, choice: usize, event: OutputEvent, reports: &[TokenReport]) -> Option<String>;
    /// The end of an answer.
    fn ending(&self, choice: usize, outcome: Outcome) -> Value;
    /// A whole answer.
    fn whole(&self, choice: usize, whole: Whole) -> Value;
}

/// JSON of a value that has one.
pub fn json_of(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Answers as the request asked: as a stream, with its token counts at the end if wanted, or whole.
pub async fn reply<W: Wire>(
    mut answers: Answers,
    wire: W,
    head: Head,
    stream: bool,
    include_usage: bool,
) -> Response {
    if !stream {
        return match collect(&mut answers, wire, &head).await {
            Ok(body) => Json(body).into_response(),
            Err(error) => error::refusal(&error),
        };
    }
    let chunk = Value::Object(head.object(W::CHUNK)).to_string();
    // Every chunk begins with the same members; only `choices` differs.
    let chunk_head = chunk.strip_suffix('}').unwrap_or_default().to_owned();
    let mut chunks = Chunks { answers, wire, chunk_head, include_usage, due: VecDeque::new() };
    for choice in 0..chunks.answers.count() {
        if let Some(opening) = chunks.wire.opening(choice) {
            chunks.push(&opening);
        }
    }
    sse::response(chunks)
}

async fn collect<W: Wire>(answers: &mut Answers, wire: W, head: &Head) -> Result<Value, ApiError> {
    let mut wholes: Vec<Whole> = vec![Whole::default(); answers.count()];
    let totals = loop {
        match std::future::poll_fn(|cx| answers.poll_said(cx)).await {
            Some(Said::Piece { choice, event, reports }) => {
                if let Some(whole) = wholes.get_mut(choice) {
                    whole.add(event, reports);
                }
            }
            Some(Said::Ended { choice, outcome }) => {
                if let Some(whole) = wholes.get_mut(choice) {
                    whole.outcome = Some(outcome);
                }
            }
            Some(Said::Complete(totals)) => break totals,
            Some(Said::Failed(error)) => return Err(error),
            None => return Err(ApiError::of(ErrorCode::Internal, "the answer ended without a result")),
        }
    };
    let choices = wholes.into_iter().enumerate().map(|(choice, whole)| wire.whole(choice, whole)).collect();
    let mut body = head.object(W::WHOLE);
    body.insert("choices".into(), choices);
    body.insert("usage".into(), usage(&totals));
    Ok(Value::Object(body))
}

/// Token counts of a request.
fn usage(totals: &Totals) -> Value {
    json!({
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
        "prompt_tokens_details": { "cached_tokens": totals.cached_tokens },
        "completion_tokens_details": { "reasoning_tokens": totals.reasoning_tokens },
    })
}

/// The chunks of one streamed request. Dropping them before their end cancels the sequences.
#[derive(Debug)]
struct Chunks<W> {
    answers: Answers,
    wire: W,
    chunk_head: String,
    include_usage: bool,
    due: VecDeque<Event>,
}

impl<W: Wire> Chunks<W> {
    /// Queues a chunk with one entry of `choices`.
    fn push(&mut self, choice: &dyn Display) {
        let usage = if self.include_usage { ",\"usage\":null" } else { "" };
        let head = &self.chunk_head;
        self.due.push_back(Event::of(format_args!("{head},\"choices\":[{choice}]{usage}}}")));
    }

    fn render(&mut self, said: Said) {
        match said {
            Said::Piece { choice, event, reports } => {
                if let Some(piece) = self.wire.piece(choice, event, &reports) {
                    self.push(&piece);
                }
            }
            Said::Ended { choice, outcome } => {
                let ending = self.wire.ending(choice, outcome);
                self.push(&ending);
            }
            Said::Complete(totals) => {
                if self.include_usage {
                    let (head, usage) = (&self.chunk_head, usage(&totals));
                    self.due.push_back(Event::of(format_args!("{head},\"choices\":[],\"usage\":{usage}}}")));
                }
                self.due.push_back(Event::of(format_args!("{DONE}")));
            }
            // What makes a client raise it; nothing may follow that looks like an end that went well.
            Said::Failed(error) => {
                self.due.push_back(Event::of(format_args!("{}", error::body(&error))));
            }
        }
    }
}

impl<W: Wire> Stream for Chunks<W> {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while this.due.is_empty() {
            match this.answers.poll_said(cx) {
                Poll::Ready(Some(said)) => this.render(said),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(this.due.pop_front().map(Ok))
    }
}
