//! What a model says, as a client wants to see it: one kind of event for every model family.

use std::sync::Arc;

use super::ChatFormat;
use super::plain::PlainParser;
use super::tool_tags::ToolTagParser;
use crate::text::harmony::HarmonyParser;
use crate::text::{DecodeOptions, Tokenizer};

/// Why an answer is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishHint {
    /// The model ended its answer.
    Stop,
    /// The model waits for the results of its tool calls.
    ToolCalls,
    /// A stop string was met: its index in [`ParserOptions::decode`]'s `stops`.
    StopString(usize),
}

/// A piece of what the model says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputEvent {
    /// More of the answer.
    ContentDelta(String),
    /// More of the reasoning that precedes the answer.
    ReasoningDelta(String),
    /// A tool call begins.
    ToolCallStart {
        /// Which call of this answer, from 0.
        index: usize,
        /// The call's id, unique in this answer.
        id: String,
        /// The function's name, without namespace.
        name: String,
    },
    /// More of the arguments of the call that began last, exactly as the model writes them.
    ToolCallArgumentsDelta {
        /// Which call, from 0.
        index: usize,
        /// The text.
        delta: String,
    },
    /// The arguments are complete, or as complete as they become.
    ToolCallEnd {
        /// Which call, from 0.
        index: usize,
    },
    /// The answer is complete; generation may stop here even where the engine would go on.
    Finished(FinishHint),
}

/// What a parser needs to know about the request.
#[derive(Debug, Clone, Default)]
pub struct ParserOptions {
    /// The names of the functions the request supplies; none: the answer is never searched for tool calls (harmony
    /// calls to `functions.…` are structure and always recognised).
    pub tool_names: Vec<String>,
    /// Prefix of call ids, unique to the request; a running number follows.
    pub call_id_prefix: String,
    /// Calls stand between their tags only: for answers that keep to a grammar, whose text may look like a call.
    pub tagged_calls_only: bool,
    /// How ids become text. Stop strings are looked for in the answer's text, not in reasoning or arguments.
    pub decode: DecodeOptions,
}

/// Turns the ids of one answer into events as they are generated. Total: it accepts any ids in any order, and never
/// fails.
#[derive(Debug)]
pub enum OutputParser {
    /// Harmony channels.
    Harmony(Box<HarmonyParser>),
    /// Tool calls between `<tool_call>` tags.
    ToolTags(Box<ToolTagParser>),
    /// All text is the answer.
    Plain(PlainParser),
}

impl OutputParser {
    /// The parser for a model prompted in `format`.
    pub fn for_model(tokenizer: &Arc<Tokenizer>, format: &ChatFormat, options: ParserOptions) -> Self {
        if let Some(markers) = format.harmony_markers() {
            return Self::Harmony(Box::new(HarmonyParser::new(Arc::clone(tokenizer), markers, options)));
        }
        if format.has_tool_tags() && !options.tool_names.is_empty() {
            return Self::ToolTags(Box::new(ToolTagParser::new(Arc::clone(tokenizer), options)));
        }
        Self::Plain(PlainParser::new(Arc::clone(tokenizer), &options.decode))
    }

    /// Takes the next generated id, stop ids included.
    pub fn push(&mut self, id: u32) -> Vec<OutputEvent> {
        match self {
            Self::Harmony(parser) => parser.push(id),
            Self::ToolTags(parser) => parser.push(id),
            Self::Plain(parser) => parser.push(id),
        }
    }

    /// Ends the answer, for whatever reason, and returns what was held back. Open tool calls are ended; no `Finished`
    /// is added, because only the engine knows why generation ended: see [`OutputParser::hint`].
    pub fn finish(&mut self) -> Vec<OutputEvent> {
        match self {
            Self::Harmony(parser) => parser.finish(),
            Self::ToolTags(parser) => parser.finish(),
            Self::Plain(parser) => parser.finish(),
        }
    }

    /// The finish reason if the engine ended at a stop id: `ToolCalls` if the answer holds any call.
    pub fn hint(&self) -> FinishHint {
        match self {
            Self::Harmony(parser) => parser.hint(),
            Self::ToolTags(parser) => parser.hint(),
            Self::Plain(parser) => parser.hint(),
        }
    }

    /// How many of the ids so far were spent on reasoning, its markers included.
    pub fn reasoning_tokens(&self) -> usize {
        match self {
            Self::Harmony(parser) => parser.reasoning_tokens(),
            Self::ToolTags(_) | Self::Plain(_) => 0,
        }
    }
}

/// Numbers the tool calls of one answer.
#[derive(Debug)]
pub(crate) struct CallNumbers {
    prefix: String,
    next: usize,
}

impl CallNumbers {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix, next: 0 }
    }

    /// The index of the next call, with the event that begins it.
    pub(crate) fn start(&mut self, name: String) -> (usize, OutputEvent) {
        let index = self.next;
        self.next += 1;
        let id = format!("{}{index}", self.prefix);
        (index, OutputEvent::ToolCallStart { index, id, name })
    }

    /// `ToolCalls` once there was one.
    pub(crate) fn hint(&self) -> FinishHint {
        if self.next == 0 { FinishHint::Stop } else { FinishHint::ToolCalls }
    }
}
