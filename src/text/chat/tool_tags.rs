//! Tool calls of Qwen and its kin: JSON between `<tool_call>` and `</tool_call>` in the text of the answer.
//!
//! Used only when the request supplies tools. Text that may turn out to begin a tag is held back, arguments are handed
//! on as they arrive, and what claims to be a call but is none comes out as text. Small models forget the opening tag
//! or wrap the call in a code fence; at the beginning of an answer, and after another call, a JSON object that calls a
//! supplied function counts as well.

use std::sync::Arc;

use super::call_json::{ObjectScan, Opening, opening, parse_call};
use super::{CallNumbers, FinishHint, OutputEvent, ParserOptions};
use crate::text::{IncrementalDecoder, Tokenizer};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const FENCES: [&str; 2] = ["```json", "```"];
/// Whitespace that may stand before a call is held back up to this length.
const MAX_HELD_SPACE: usize = 64;

/// Parses one answer.
#[derive(Debug)]
pub struct ToolTagParser {
    decoder: IncrementalDecoder,
    tool_names: Vec<String>,
    tagged_calls_only: bool,
    calls: CallNumbers,
    state: State,
    /// Text not dealt with yet; all but at most one delta of it is held back on purpose.
    pending: String,
    stopped: bool,
}

#[derive(Debug)]
enum State {
    /// Outside calls. `fresh`: nothing but whitespace since the beginning or a call.
    Text { fresh: bool },
    /// After an opening tag, before it is clear what follows.
    Opened,
    /// After an opening tag that something unusual follows: waiting for all of it.
    Unusual,
    /// In the arguments of a call.
    Arguments { index: usize, scan: ObjectScan, after_newline: bool },
    /// After the arguments, before the end of the call.
    Closing,
}

/// Whether to wait for more text.
#[derive(PartialEq, Eq)]
enum Progress {
    Made,
    NeedsMore,
}

impl ToolTagParser {
    /// A parser for one answer.
    pub fn new(tokenizer: Arc<Tokenizer>, options: ParserOptions) -> Self {
        Self {
            decoder: IncrementalDecoder::new(tokenizer, &options.decode),
            tool_names: options.tool_names,
            tagged_calls_only: options.tagged_calls_only,
            calls: CallNumbers::new(options.call_id_prefix),
            state: State::Text { fresh: true },
            pending: String::new(),
            stopped: false,
        }
    }

    /// Takes the next id.
    pub fn push(&mut self, id: u32) -> Vec<OutputEvent> {
        let text = self.decoder.push(id);
        let mut events = Vec::new();
        self.push_text(&text, &mut events);
        if let Some(stop) = self.decoder.stopped_by().filter(|_| !self.stopped) {
            self.stopped = true;
            self.flush(&mut events);
            events.push(OutputEvent::Finished(FinishHint::StopString(stop)));
        }
        events
    }

    /// Ends the answer and returns what was held back.
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        let text = self.decoder.finish();
        let mut events = Vec::new();
        self.push_text(&text, &mut events);
        self.flush(&mut events);
        events
    }

    /// The finish reason if generation ended at a stop id.
    pub fn hint(&self) -> FinishHint {
        self.decoder.stopped_by().map_or_else(|| self.calls.hint(), FinishHint::StopString)
    }

    fn push_text(&mut self, text: &str, events: &mut Vec<OutputEvent>) {
        if text.is_empty() {
            return;
        }
        self.pending.push_str(text);
        while !self.pending.is_empty() && self.step(events) == Progress::Made {}
    }

    fn step(&mut self, events: &mut Vec<OutputEvent>) -> Progress {
        match &self.state {
            State::Text { fresh } => {
                let fresh = *fresh;
                self.step_text(fresh, events)
            }
            State::Opened => self.step_opened(events),
            State::Unusual => self.step_unusual(events),
            State::Arguments { .. } => self.step_arguments(events),
            State::Closing => self.step_closing(),
        }
    }

    fn step_text(&mut self, fresh: bool, events: &mut Vec<OutputEvent>) -> Progress {
        if fresh
            && !self.tagged_calls_only
            && let Some(progress) = self.step_bare(events)
        {
            return progress;
        }
        if let Some(at) = self.pending.find(OPEN) {
            let before = self.pending.get(..at).unwrap_or_default().trim_end().to_owned();
            push_content(before, events);
            self.pending.drain(..at + OPEN.len());
            self.state = State::Opened;
            return Progress::Made;
        }
        let sure = self.pending.len() - partial_suffix(&self.pending, OPEN);
        let spaceless = self.pending.get(..sure).unwrap_or_default().trim_end().len();
        let keep_from = if sure - spaceless > MAX_HELD_SPACE { sure } else { spaceless };
        if keep_from > 0 {
            push_content(self.pending.drain(..keep_from).collect(), events);
            self.state = State::Text { fresh: false };
        }
        Progress::NeedsMore
    }

    /// Looks for a call without its opening tag where one may stand. `None`: there is none.
    fn step_bare(&mut self, events: &mut Vec<OutputEvent>) -> Option<Progress> {
        let text = self.pending.trim_start();
        if text.is_empty() {
            return Some(Progress::NeedsMore).filter(|_| self.pending.len() <= MAX_HELD_SPACE);
        }
        let unfenced = FENCES.iter().find_map(|fence| text.strip_prefix(fence)).unwrap_or(text);
        if FENCES.iter().any(|fence| fence.starts_with(text)) {
            return Some(Progress::NeedsMore);
        }
        match opening(unfenced) {
            Opening::Incomplete if unfenced.len() <= 512 => Some(Progress::NeedsMore),
            Opening::Complete { name, arguments_at } if self.tool_names.contains(&name) => {
                let skip = self.pending.len() - unfenced.len() + arguments_at;
                self.begin_call(name, skip, events);
                Some(Progress::Made)
            }
            _ => None,
        }
    }

    fn begin_call(&mut self, name: String, skip: usize, events: &mut Vec<OutputEvent>) {
        self.pending.drain(..skip);
        let (index, start) = self.calls.start(name);
        events.push(start);
        self.state = State::Arguments { index, scan: ObjectScan::default(), after_newline: false };
    }

    fn step_opened(&mut self, events: &mut Vec<OutputEvent>) -> Progress {
        match opening(&self.pending) {
            Opening::Complete { name, arguments_at } if !name.is_empty() => {
                self.begin_call(name, arguments_at, events);
                Progress::Made
            }
            Opening::Incomplete if !self.pending.contains(CLOSE) => Progress::NeedsMore,
            _ => {
                self.state = State::Unusual;
                Progress::Made
            }
        }
    }

    fn step_unusual(&mut self, events: &mut Vec<OutputEvent>) -> Progress {
        let Some(at) = self.pending.find(CLOSE) else { return Progress::NeedsMore };
        let inner = self.pending.get(..at).unwrap_or_default().to_owned();
        self.pending.drain(..at + CLOSE.len());
        self.whole_call(&inner, CLOSE, events);
        Progress::Made
    }

    /// Shows a call of which all text is known, or the text, if it is none.
    fn whole_call(&mut self, inner: &str, close: &str, events: &mut Vec<OutputEvent>) {
        let Some((name, delta)) = parse_call(unfence(inner)) else {
            push_content(format!("{OPEN}{inner}{close}"), events);
            self.state = State::Text { fresh: false };
            return;
        };
        let (index, start) = self.calls.start(name);
        events.push(start);
        events.push(OutputEvent::ToolCallArgumentsDelta { index, delta });
        events.push(OutputEvent::ToolCallEnd { index });
        self.state = State::Text { fresh: true };
    }

    fn step_arguments(&mut self, events: &mut Vec<OutputEvent>) -> Progress {
        let State::Arguments { index, scan, after_newline } = &mut self.state else { return Progress::Made };
        let index = *index;
        let (mut taken, mut closed, mut waits) = (0, false, false);
        for (at, byte) in self.pending.bytes().enumerate() {
            // A closing tag inside a string is text, unless the string cannot be meant to go on.
            if byte == b'<' && (!scan.in_string() || *after_newline) {
                let rest = self.pending.get(at..).unwrap_or_default();
                closed = rest.starts_with(CLOSE);
                waits = !closed && CLOSE.starts_with(rest);
                if closed || waits {
                    break;
                }
            }
            *after_newline = byte == b'\n';
            taken = at + 1;
            closed = scan.advance(byte);
            if closed {
                break;
            }
        }
        let delta: String = self.pending.drain(..taken).collect();
        if !delta.is_empty() {
            events.push(OutputEvent::ToolCallArgumentsDelta { index, delta });
        }
        if closed {
            events.push(OutputEvent::ToolCallEnd { index });
            self.state = State::Closing;
            return Progress::Made;
        }
        if waits { Progress::NeedsMore } else { Progress::Made }
    }

    /// Skips what may stand between the arguments and the end of a call.
    fn step_closing(&mut self) -> Progress {
        let rest = self.pending.trim_start_matches(|c: char| c.is_whitespace() || c == '}' || c == '`');
        let skipped = self.pending.len() - rest.len();
        if let Some(after) = rest.strip_prefix(CLOSE) {
            let skipped = self.pending.len() - after.len();
            self.pending.drain(..skipped);
            self.state = State::Text { fresh: true };
            return Progress::Made;
        }
        let waits = CLOSE.starts_with(rest);
        self.pending.drain(..skipped);
        if waits {
            return Progress::NeedsMore;
        }
        self.state = State::Text { fresh: true };
        Progress::Made
    }

    /// Shows all that is held back.
    fn flush(&mut self, events: &mut Vec<OutputEvent>) {
        let pending = std::mem::take(&mut self.pending);
        match std::mem::replace(&mut self.state, State::Text { fresh: false }) {
            State::Text { fresh } => {
                // Whitespace after a call is no answer.
                let nothing =
                    fresh && self.calls.hint() == FinishHint::ToolCalls && pending.trim().is_empty();
                push_content(if nothing { String::new() } else { pending }, events);
            }
            State::Opened | State::Unusual => self.whole_call(&pending, "", events),
            State::Arguments { index, .. } => {
                if !pending.is_empty() {
                    events.push(OutputEvent::ToolCallArgumentsDelta { index, delta: pending });
                }
                events.push(OutputEvent::ToolCallEnd { index });
            }
            State::Closing => {}
        }
        self.state = State::Text { fresh: false };
    }
}

fn push_content(text: String, events: &mut Vec<OutputEvent>) {
    if !text.is_empty() {
        events.push(OutputEvent::ContentDelta(text));
    }
}

/// `text` without a code fence around it.
fn unfence(text: &str) -> &str {
    let text = text.trim();
    let unfenced = FENCES.iter().find_map(|fence| text.strip_prefix(fence)).unwrap_or(text);
    unfenced.strip_suffix("```").unwrap_or(unfenced)
}

/// The length of the longest end of `text` that is a beginning of `tag`, but not all of it.
fn partial_suffix(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&len| tag.get(..len).is_some_and(|start| text.ends_with(start))).unwrap_or(0)
}

#[cfg(test)]
mod tests;
