//! Generated ids to events. Total: any ids in any order parse, in constant time each.
//!
//! Of what a model generates, only the contents of its messages are ever shown; markers, headers and what invented
//! users or tools say are not. Text outside any message counts as an answer when nothing marks it as anything else,
//! since a model that forgets the format altogether should still be heard.

use std::sync::Arc;

use super::header::{CHANNEL_MARK, Purpose, purpose};
use super::{ANALYSIS, COMMENTARY, FINAL, HarmonyMarkers};
use crate::text::chat::{CallNumbers, FinishHint, OutputEvent, ParserOptions};
use crate::text::{DecodeOptions, IncrementalDecoder, Tokenizer};

/// Ids of the longest header that is read; real ones have at most some thirty.
const MAX_HEADER_IDS: usize = 128;
/// The role of the model's own messages.
const ROLE: &str = "assistant";

/// Parses one answer.
#[derive(Debug)]
pub struct HarmonyParser {
    tokenizer: Arc<Tokenizer>,
    markers: HarmonyMarkers,
    tool_names: Vec<String>,
    decode: DecodeOptions,
    calls: CallNumbers,
    state: State,
    reasoning_tokens: usize,
    finished: Option<FinishHint>,
}

#[derive(Debug)]
enum State {
    /// Before a `<|message|>`.
    Header(Header),
    /// After it.
    Body(Body),
}

#[derive(Debug)]
struct Header {
    /// Its ids, `<|channel|>` and `<|constrain|>` included; at most `MAX_HEADER_IDS`.
    ids: Vec<u32>,
    /// Ids spent on it, `<|start|>` included.
    spent: usize,
    /// The role is the assistant's unless the header says otherwise: no `<|start|>` precedes it.
    role_known: bool,
    /// It is too long to be a header, and no text either.
    given_up: bool,
}

impl Header {
    fn new(role_known: bool) -> Self {
        Self { ids: Vec::new(), spent: usize::from(!role_known), role_known, given_up: false }
    }
}

#[derive(Debug)]
struct Body {
    purpose: BodyPurpose,
    decoder: IncrementalDecoder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyPurpose {
    Answer,
    Reasoning,
    Call(usize),
    Foreign,
}

/// What ends a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// `<|end|>`, or the next message.
    Message,
    /// `<|call|>`, `<|return|>` or `<|endoftext|>`.
    Answer,
    /// Generation ended.
    Cut,
}

impl HarmonyParser {
    /// A parser for an answer to a prompt that ends in `<|start|>assistant`.
    pub fn new(tokenizer: Arc<Tokenizer>, markers: HarmonyMarkers, options: ParserOptions) -> Self {
        Self {
            tokenizer,
            markers,
            tool_names: options.tool_names,
            decode: DecodeOptions { continues_text: true, show_special: false, ..options.decode },
            calls: CallNumbers::new(options.call_id_prefix),
            state: State::Header(Header::new(true)),
            reasoning_tokens: 0,
            finished: None,
        }
    }

    /// Takes the next id. After a stop string has ended the answer nothing more comes out.
    pub fn push(&mut self, id: u32) -> Vec<OutputEvent> {
        let mut events = Vec::new();
        if matches!(self.finished, Some(FinishHint::StopString(_))) {
            return events;
        }
        match &mut self.state {
            State::Header(header) => header.spent += 1,
            State::Body(body) => {
                self.reasoning_tokens += usize::from(body.purpose == BodyPurpose::Reasoning);
            }
        }
        let markers = self.markers;
        if id == markers.start {
            self.end_message(End::Message, &mut events);
            self.state = State::Header(Header::new(false));
        } else if id == markers.end {
            self.end_message(End::Message, &mut events);
        } else if id == markers.call || id == markers.done || Some(id) == markers.end_of_text {
            self.end_message(End::Answer, &mut events);
        } else {
            self.push_inside(id, &mut events);
        }
        events
    }

    /// Ends the answer and returns what was held back.
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        let mut events = Vec::new();
        if !matches!(self.finished, Some(FinishHint::StopString(_))) {
            self.end_message(End::Cut, &mut events);
        }
        events
    }

    /// The finish reason if generation ended at a stop id.
    pub fn hint(&self) -> FinishHint {
        match self.finished {
            Some(FinishHint::StopString(index)) => FinishHint::StopString(index),
            _ => self.calls.hint(),
        }
    }

    /// How many ids so far were spent on reasoning, headers and terminators included.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    /// Whether the next ids are the text of the answer: where a grammar for the answer applies.
    pub fn is_in_answer(&self) -> bool {
        matches!(&self.state, State::Body(body) if body.purpose == BodyPurpose::Answer)
    }

    /// Takes an id that ends no message.
    fn push_inside(&mut self, id: u32, events: &mut Vec<OutputEvent>) {
        let markers = self.markers;
        match &mut self.state {
            State::Header(header) => {
                if id == markers.message {
                    let purpose = self.read_header();
                    self.begin_body(purpose, events);
                } else if header.ids.len() < MAX_HEADER_IDS {
                    header.ids.push(id);
                } else if !header.given_up {
                    header.given_up = true;
                    if self.show_unmarked_text(events) {
                        self.push_text(id, events);
                    }
                }
            }
            State::Body(_) if id == markers.channel => {
                // A message without its end, followed by one without its beginning.
                self.end_message(End::Message, events);
                self.state = State::Header(Header { ids: vec![id], ..Header::new(true) });
            }
            State::Body(_) => self.push_text(id, events),
        }
    }

    fn read_header(&self) -> Purpose {
        let State::Header(header) = &self.state else { return Purpose::Answer };
        purpose(&self.header_text(header), header.role_known, &self.tool_names)
    }

    fn header_text(&self, header: &Header) -> String {
        let mut bytes = Vec::new();
        for &id in &header.ids {
            if id == self.markers.channel {
                bytes.push(CHANNEL_MARK as u8);
            } else if Some(id) == self.markers.constrain {
                bytes.push(b' ');
            } else {
                bytes.extend_from_slice(self.tokenizer.token_bytes(id));
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the current header reads after the role, if nothing in it is a sign of being a header; with the number of
    /// ids that spell the role.
    fn unmarked_text(&self) -> Option<(String, usize)> {
        let State::Header(header) = &self.state else { return None };
        let role = self.role_ids(&header.ids);
        let skip = if header.role_known { role.unwrap_or(0) } else { role? };
        let text = self.header_text(header);
        let text = if skip == 0 { &text } else { text.trim_start().strip_prefix(ROLE)? };
        let words = text.trim();
        let marked = text.contains(CHANNEL_MARK) || text.contains("to=");
        let cut_word = [ANALYSIS, COMMENTARY, FINAL, ROLE].iter().any(|name| name.starts_with(words));
        (!marked && !cut_word).then(|| (text.to_owned(), skip))
    }

    /// How many ids at the front spell the assistant's role.
    fn role_ids(&self, ids: &[u32]) -> Option<usize> {
        let mut spelled = Vec::new();
        let at = ids.iter().position(|&id| {
            spelled.extend_from_slice(self.tokenizer.token_bytes(id));
            spelled.len() >= ROLE.len()
        })?;
        (spelled.trim_ascii() == ROLE.as_bytes()).then_some(at + 1)
    }

    /// Shows a header that turned out to be text, if it did.
    fn show_unmarked_text(&mut self, events: &mut Vec<OutputEvent>) -> bool {
        let Some((text, skip)) = self.unmarked_text() else { return false };
        let State::Header(header) = &mut self.state else { return false };
        let ids = std::mem::take(&mut header.ids);
        let reasons = text.trim_start().starts_with(ANALYSIS);
        self.begin_body(if reasons { Purpose::Reasoning } else { Purpose::Answer }, events);
        for id in ids.into_iter().skip(skip) {
            self.push_text(id, events);
        }
        true
    }

    fn begin_body(&mut self, purpose: Purpose, events: &mut Vec<OutputEvent>) {
        let purpose = match purpose {
            Purpose::Answer => BodyPurpose::Answer,
            Purpose::Reasoning => BodyPurpose::Reasoning,
            Purpose::Foreign => BodyPurpose::Foreign,
            Purpose::Call(name) => {
                let (index, start) = self.calls.start(name);
                events.push(start);
                BodyPurpose::Call(index)
            }
        };
        if let (State::Header(header), BodyPurpose::Reasoning) = (&self.state, purpose) {
            self.reasoning_tokens += header.spent;
        }
        let mut decode = self.decode.clone();
        if purpose != BodyPurpose::Answer {
            decode.stops.clear();
        }
        let decoder = IncrementalDecoder::new(Arc::clone(&self.tokenizer), &decode);
        self.state = State::Body(Body { purpose, decoder });
    }

    /// Takes an id of a message's content; markers show nothing.
    fn push_text(&mut self, id: u32, events: &mut Vec<OutputEvent>) {
        if let State::Body(body) = &mut self.state {
            let text = body.decoder.push(id);
            self.show(text, events);
        }
    }

    fn show(&mut self, text: String, events: &mut Vec<OutputEvent>) {
        let State::Body(body) = &self.state else { return };
        let stopped_by = body.decoder.stopped_by();
        if !text.is_empty() {
            match body.purpose {
                BodyPurpose::Answer => events.push(OutputEvent::ContentDelta(text)),
                BodyPurpose::Reasoning => events.push(OutputEvent::ReasoningDelta(text)),
                BodyPurpose::Call(index) => {
                    events.push(OutputEvent::ToolCallArgumentsDelta { index, delta: text });
                }
                BodyPurpose::Foreign => {}
            }
        }
        if let Some(index) = stopped_by {
            self.finished(FinishHint::StopString(index), events);
        }
    }

    /// Ends the current message, if there is one, and waits for the next header.
    fn end_message(&mut self, end: End, events: &mut Vec<OutputEvent>) {
        if let State::Header(header) = &self.state {
            // A call whose arguments are missing altogether is still a call; other empty messages are none.
            let cut = end == End::Cut || header.ids.is_empty();
            match self.read_header() {
                Purpose::Call(name) if !cut => self.begin_body(Purpose::Call(name), events),
                _ => {
                    self.show_unmarked_text(events);
                }
            }
        }
        let mut called = false;
        if let State::Body(body) = &mut self.state {
            let purpose = body.purpose;
            let text = body.decoder.finish();
            self.show(text, events);
            if let BodyPurpose::Call(index) = purpose {
                called = true;
                events.push(OutputEvent::ToolCallEnd { index });
            }
        }
        self.state = State::Header(Header::new(true));
        match end {
            End::Cut => {}
            _ if called => self.finished(FinishHint::ToolCalls, events),
            End::Answer => self.finished(FinishHint::Stop, events),
            End::Message => {}
        }
    }

    /// Says once why the answer is complete.
    fn finished(&mut self, hint: FinishHint, events: &mut Vec<OutputEvent>) {
        if self.finished.is_none() {
            self.finished = Some(hint);
            events.push(OutputEvent::Finished(hint));
        }
    }
}
