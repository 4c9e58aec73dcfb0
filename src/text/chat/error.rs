//! What can go wrong between a conversation and its prompt.

use std::path::PathBuf;

use crate::gguf::GgufError;

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model file's metadata.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The template file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing says how this model is prompted.
    #[error("the model file holds no chat template; name a file with --chat-template")]
    NoTemplate,
    /// The template is longer than any honest one.
    #[error("the chat template is {got} bytes long, expected at most {limit}")]
    TemplateTooLong {
        /// Its length.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// The template is no valid template, or does something impossible.
    #[error("chat template, line {line}: {problem}")]
    Template {
        /// Where, from 1; 0 if unknown.
        line: usize,
        /// What the template engine said.
        problem: String,
    },
    /// The template works too long or writes too much.
    #[error("the chat template exceeds the limit of {limit} {unit}")]
    TemplateLimit {
        /// The limit.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// The template itself refuses the conversation (`raise_exception`).
    #[error("the model's chat template refuses the conversation: {0}")]
    Refused(String),
    /// A tool result that belongs to no call.
    #[error("messages[{index}]: a tool result without a name needs the tool_call_id of an earlier call")]
    ResultWithoutCall {
        /// Which message, from 0.
        index: usize,
    },
    /// The conversation uses so much of Unicode's private-use planes that none is left to protect it with.
    #[error("the conversation holds too many different private-use characters")]
    PrivateUse,
}

impl ChatError {
    /// Whether the conversation is at fault (a client error) rather than the model file or its template.
    pub fn is_conversation_fault(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::ResultWithoutCall { .. } | Self::PrivateUse)
    }
}
