//! Harmony, the chat format of gpt-oss: prompts out of messages, messages out of generated ids (MODELS.md §5.1).
//!
//! Prompts are lists of ids from the start: markers by id, everything else as ordinary text, so that nothing a user
//! writes can become a marker. The rules are those of the reference renderer, in which the model was trained, not those
//! of the Jinja template in its files. The parser is total: whatever ids a model generates become events.

mod builtin;
mod developer;
mod header;
mod history;
mod message;
mod parser;
mod system;
mod typescript;

pub use builtin::BuiltinTools;
pub use developer::DeveloperText;
pub use history::{prompt_messages, without_finished_reasoning};
pub use message::{ContentType, HarmonyMessage, encode, text};
pub use parser::HarmonyParser;
pub use system::SystemText;

use super::Tokenizer;

/// The ids of harmony's markers in one vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HarmonyMarkers {
    /// `<|start|>`: a header begins.
    pub start: u32,
    /// `<|channel|>`: the channel's name follows.
    pub channel: u32,
    /// `<|message|>`: the content begins.
    pub message: u32,
    /// `<|constrain|>`: a content type follows.
    pub constrain: Option<u32>,
    /// `<|end|>`: the message ends.
    pub end: u32,
    /// `<|call|>`: the message ends, and a tool is to answer.
    pub call: u32,
    /// `<|return|>`: the answer ends.
    pub done: u32,
    /// `<|endoftext|>`.
    pub end_of_text: Option<u32>,
}

impl HarmonyMarkers {
    /// The markers, if all that the format cannot do without are special tokens of the vocabulary.
    pub fn find(tokenizer: &Tokenizer) -> Option<Self> {
        let id = |text: &str| tokenizer.special_to_id(text);
        Some(Self {
            start: id("<|start|>")?,
            channel: id("<|channel|>")?,
            message: id("<|message|>")?,
            constrain: id("<|constrain|>"),
            end: id("<|end|>")?,
            call: id("<|call|>")?,
            done: id("<|return|>")?,
            end_of_text: id("<|endoftext|>"),
        })
    }
}

/// The channel of reasoning.
const ANALYSIS: &str = "analysis";
/// The channel of function calls, and of what is said to the user along with them.
const COMMENTARY: &str = "commentary";
/// The channel of the answer.
const FINAL: &str = "final";
/// The namespace of the request's functions.
const FUNCTIONS: &str = "functions";
