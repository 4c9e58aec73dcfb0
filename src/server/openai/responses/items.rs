//! The items of a response as they grow, and the event for each step of it.
//!
//! ```text
//! output_item.added, content_part.added, *.delta …, *.done, content_part.done, output_item.done
//! ```
//!
//! A call's item has no parts; its arguments grow instead. Every event says its place in the sequence.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::answers::TokenReport;
use crate::text::Tokenizer;
use crate::text::chat::{OutputEvent, ToolCall};

/// An event's name and data.
pub(super) type Named = (&'static str, Value);

/// The items so far, and the one that grows.
#[derive(Debug)]
pub(super) struct Items {
    tokenizer: Arc<Tokenizer>,
    /// The end of every item's id.
    suffix: String,
    done: Vec<Value>,
    open: Option<Open>,
    next_sequence_number: u64,
    due: Vec<Named>,
}

#[derive(Debug)]
enum Open {
    Message { text: String, logprobs: Vec<Value> },
    Reasoning { text: String },
    Call(ToolCall),
}

impl Open {
    const fn prefix(&self) -> &'static str {
        match self {
            Self::Message { .. } => "msg",
            Self::Reasoning { .. } => "rs",
            Self::Call(_) => "fc",
        }
    }

    /// The item's one part, unless it has none.
    fn part(&self) -> Option<Value> {
        match self {
            Self::Message { text, logprobs } => {
                Some(json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs }))
            }
            Self::Reasoning { text } => Some(json!({ "type": "reasoning_text", "text": text })),
            Self::Call(_) => None,
        }
    }

    /// The item. Its content is told by the parts' own events until it is done.
    fn item(&self, id: &str, status: &str) -> Value {
        let content = if status == "in_progress" { vec![] } else { self.part().into_iter().collect() };
        match self {
            Self::Message { .. } => json!({
                "id": id, "type": "message", "role": "assistant", "status": status, "content": content,
            }),
            Self::Reasoning { .. } => json!({
                "id": id, "type": "reasoning", "status": status, "summary": [], "content": content,
                "encrypted_content": null,
            }),
            Self::Call(call) => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
                "arguments": call.arguments,
            }),
        }
    }
}

impl Items {
    /// No items yet.
    pub(super) fn new(suffix: String, tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, suffix, done: vec![], open: None, next_sequence_number: 0, due: vec![] }
    }

    /// The events since the last call.
    pub(super) fn due(&mut self) -> impl Iterator<Item = Named> + use<> {
        std::mem::take(&mut self.due).into_iter()
    }

    /// The items, the one that still grows as it is.
    pub(super) fn all(&self) -> Vec<Value> {
        let open = self.open.as_ref().map(|open| open.item(&self.id(open), "incomplete"));
        self.done.iter().cloned().chain(open).collect()
    }

    /// An event in its place.
    pub(super) fn event(&mut self, name: &'static str, mut data: Value) {
        data["type"] = name.into();
        data["sequence_number"] = self.next_sequence_number.into();
        self.next_sequence_number += 1;
        self.due.push((name, data));
    }

    /// Takes a piece of the answer.
    pub(super) fn take(&mut self, event: OutputEvent, reports: &[TokenReport]) {
        match event {
            OutputEvent::ContentDelta(delta) => self.content(&delta, reports),
            OutputEvent::ReasoningDelta(delta) => self.reasoning(&delta),
            OutputEvent::ToolCallStart { id, name, .. } => {
                self.open(Open::Call(ToolCall { id, name, arguments: String::new() }));
            }
            OutputEvent::ToolCallArgumentsDelta { delta, .. } => {
                if let Some(Open::Call(call)) = &mut self.open {
                    call.arguments.push_str(&delta);
                    self.tell("response.function_call_arguments.delta", json!({ "delta": delta }));
                }
            }
            // A call that is cut ends as well: its item is done when it is known how the answer goes on.
            OutputEvent::ToolCallEnd { .. } | OutputEvent::Finished(_) => {}
        }
    }

    /// Ends the answer: with a message at least.
    pub(super) fn end(&mut self, status: &'static str) {
        if self.open.is_none() && self.done.is_empty() {
            self.open(Open::Message { text: String::new(), logprobs: vec![] });
        }
        self.close(status);
    }

    fn content(&mut self, delta: &str, reports: &[TokenReport]) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.open(Open::Message { text: String::new(), logprobs: vec![] });
        }
        let reported: Vec<Value> = reports.iter().map(|report| self.logprob(report)).collect();
        if let Some(Open::Message { text, logprobs }) = &mut self.open {
            text.push_str(delta);
            logprobs.extend_from_slice(&reported);
        }
        let data = json!({ "content_index": 0, "delta": delta, "logprobs": reported });
        self.tell("response.output_text.delta", data);
    }

    fn reasoning(&mut self, delta: &str) {
        if !matches!(self.open, Some(Open::Reasoning { .. })) {
            self.open(Open::Reasoning { text: String::new() });
        }
        if let Some(Open::Reasoning { text }) = &mut self.open {
            text.push_str(delta);
        }
        self.tell("response.reasoning_text.delta", json!({ "content_index": 0, "delta": delta }));
    }

    fn logprob(&self, report: &TokenReport) -> Value {
        let entry = |id: u32, logprob: f32| {
            let bytes = self.tokenizer.literal_bytes(id);
            json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes })
        };
        let mut token = entry(report.id, report.logprobs.chosen);
        token["top_logprobs"] = report.logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
        token
    }

    fn open(&mut self, open: Open) {
        self.close("completed");
        let item = open.item(&self.id(&open), "in_progress");
        let part = open.part();
        self.open = Some(open);
        self.event("response.output_item.added", json!({ "output_index": self.done.len(), "item": item }));
        if let Some(part) = part {
            self.tell("response.content_part.added", json!({ "content_index": 0, "part": part }));
        }
    }

    fn close(&mut self, status: &'static str) {
        let Some(open) = &self.open else { return };
        let (item, part) = (open.item(&self.id(open), status), open.part());
        let (name, data) = match open {
            Open::Message { text, logprobs } => (
                "response.output_text.done",
                json!({ "content_index": 0, "text": text, "logprobs": logprobs }),
            ),
            Open::Reasoning { text } => {
                ("response.reasoning_text.done", json!({ "content_index": 0, "text": text }))
            }
            Open::Call(call) => (
                "response.function_call_arguments.done",
                json!({ "name": call.name, "arguments": call.arguments }),
            ),
        };
        self.tell(name, data);
        if let Some(part) = part {
            self.tell("response.content_part.done", json!({ "content_index": 0, "part": part }));
        }
        self.event("response.output_item.done", json!({ "output_index": self.done.len(), "item": item }));
        self.open = None;
        self.done.push(item);
    }

    /// An event of the item that grows.
    fn tell(&mut self, name: &'static str, mut data: Value) {
        data["item_id"] = self.open.as_ref().map(|open| self.id(open)).into();
        data["output_index"] = self.done.len().into();
        self.event(name, data);
    }

    fn id(&self, open: &Open) -> String {
        format!("{}_{}_{}", open.prefix(), self.suffix, self.done.len())
    }
}
