//! A response as it is made: every change as an event, or the whole of it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use serde_json::{Value, json};

use super::super::answers::{Answers, Said, Totals};
use super::items::Items;
use super::request::Echo;
use crate::server::error::{ApiError, ErrorCode};
use crate::server::record::Outcome;
use crate::server::sse::{self, Event};
use crate::text::Tokenizer;

/// The events of one response. Dropping it before its end cancels the sequence.
#[derive(Debug)]
pub(super) struct ResponseStream {
    answers: Answers,
    echo: Echo,
    items: Items,
    outcome: Option<Outcome>,
    /// The response, once nothing changes any more.
    ended: Option<Result<Value, ApiError>>,
    due: VecDeque<Event>,
}

impl ResponseStream {
    /// Makes a response of the one answer.
    pub(super) fn of(answers: Answers, echo: Echo, tokenizer: Arc<Tokenizer>) -> Self {
        let mut items = Items::new(echo.suffix.clone(), tokenizer);
        for name in ["response.created", "response.in_progress"] {
            items.event(name, json!({ "response": echo.response(json!({})) }));
        }
        let mut stream = Self { answers, echo, items, outcome: None, ended: None, due: VecDeque::new() };
        stream.queue();
        stream
    }

    /// The response when it is complete.
    ///
    /// # Errors
    ///
    /// What ended it before.
    pub(super) async fn whole(mut self) -> Result<Value, ApiError> {
        loop {
            let said = std::future::poll_fn(|cx| self.answers.poll_said(cx)).await;
            let lost = || ApiError::of(ErrorCode::Internal, "the answer ended without a result");
            self.take(said.ok_or_else(lost)?);
            self.due.clear();
            if let Some(ended) = self.ended.take() {
                return ended;
            }
        }
    }

    fn take(&mut self, said: Said) {
        match said {
            Said::Piece { event, reports, .. } => self.items.take(event, &reports),
            Said::Ended { outcome, .. } => self.outcome = Some(outcome),
            Said::Complete(totals) => self.complete(&totals),
            Said::Failed(error) => {
                let reason = json!({ "code": "server_error", "message": error.message });
                let output = self.items.all();
                let changed = json!({ "status": "failed", "error": reason, "output": output });
                self.items.event("response.failed", json!({ "response": self.echo.response(changed) }));
                self.ended = Some(Err(error));
            }
        }
        self.queue();
    }

    fn complete(&mut self, totals: &Totals) {
        let (name, status, details) = if self.outcome == Some(Outcome::Length) {
            ("response.incomplete", "incomplete", json!({ "reason": "max_output_tokens" }))
        } else {
            ("response.completed", "completed", Value::Null)
        };
        self.items.end(status);
        let response = self.echo.response(json!({
            "status": status,
            "incomplete_details": details,
            "output": self.items.all(),
            "usage": usage(totals),
        }));
        self.items.event(name, json!({ "response": response.clone() }));
        self.ended = Some(Ok(response));
    }

    fn queue(&mut self) {
        self.due.extend(self.items.due().map(|(name, data)| sse::event(name, &data)));
    }
}

/// Token counts of a response.
fn usage(totals: &Totals) -> Value {
    json!({
        "input_tokens": totals.prompt_tokens,
        "input_tokens_details": { "cached_tokens": totals.cached_tokens },
        "output_tokens": totals.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": totals.reasoning_tokens },
        "total_tokens": totals.prompt_tokens + totals.completion_tokens,
    })
}

impl Stream for ResponseStream {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while this.due.is_empty() {
            match this.answers.poll_said(cx) {
                Poll::Ready(Some(said)) => this.take(said),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(this.due.pop_front().map(Ok))
    }
}
