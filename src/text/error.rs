//! What can be wrong with a vocabulary, told with the place, what was expected and what was found.

use thiserror::Error;

/// A tokenizer that cannot be built from what its file holds.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` names a family that is not implemented.
    #[error("tokenizer model {0:?} is not supported (expected \"gpt2\" or \"llama\")")]
    UnsupportedModel(String),
    /// A byte-level vocabulary does not say how text is split before merging.
    #[error("tokenizer.ggml.pre is missing; byte-level BPE cannot be split without it")]
    MissingPreTokenizer,
    /// The named splitter is not implemented.
    #[error("pre-tokenizer {0:?} is not supported (expected one of: qwen2, gpt-4o, llama-bpe, gpt-2)")]
    UnsupportedPreTokenizer(String),
    /// A part of `tokenizer.json` does something no supported model needs.
    #[error("tokenizer.json: {part} is not supported: {found}")]
    UnsupportedPart {
        /// The JSON member.
        part: &'static str,
        /// What stands there.
        found: String,
    },
    /// `tokenizer.json` is not JSON, or not of the expected shape.
    #[error("tokenizer.json: {0}")]
    Json(#[from] serde_json::Error),
    /// The Hugging Face model refused the vocabulary.
    #[error("tokenizer.json: model: {0}")]
    HuggingFace(String),
    /// A list that must exist is missing.
    #[error("{0} is missing")]
    MissingList(&'static str),
    /// Two parallel lists differ in length, or a list is out of range.
    #[error("{list} has {got} entries, expected {expected}")]
    Length {
        /// The metadata key.
        list: &'static str,
        /// The accepted count, in words.
        expected: String,
        /// The count found.
        got: usize,
    },
    /// A token's text is longer than any real one.
    #[error("token {id} is {got} bytes long, expected at most {limit}")]
    TokenTooLong {
        /// Token id.
        id: u32,
        /// Length in bytes.
        got: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Two ids have the same text, or one id two texts.
    #[error("tokens {first} and {second} are not distinct: {text:?}")]
    DuplicateToken {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// The shared text.
        text: String,
    },
    /// A token type outside the format's list.
    #[error("token {id} has type {got}, expected 1 to 6")]
    TokenType {
        /// Token id.
        id: u32,
        /// The type found.
        got: i32,
    },
    /// A score that cannot be ordered.
    #[error("token {id} has score {got}, expected a finite number")]
    Score {
        /// Token id.
        id: u32,
        /// The score found.
        got: f32,
    },
    /// A byte token that is not written `<0xHH>`.
    #[error("byte token {id} is written {text:?}, expected <0xHH> with upper-case hex digits")]
    ByteToken {
        /// Token id.
        id: u32,
        /// Its text.
        text: String,
    },
    /// A byte no token can express: some text could not be encoded.
    #[error("no token stands for byte 0x{0:02X}, so some text could not be encoded")]
    MissingByte(u8),
    /// A merge that is not two tokens whose concatenation is a token.
    #[error("merge {rank} ({text:?}): {problem}")]
    Merge {
        /// Index in the merge list.
        rank: usize,
        /// The entry's text.
        text: String,
        /// Which rule is broken.
        problem: &'static str,
    },
    /// A special id points outside the vocabulary.
    #[error("{key} is {id}, expected less than the vocabulary size {vocab_size}")]
    IdOutOfRange {
        /// Metadata key.
        key: &'static str,
        /// The id found.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
}
