//! The wire that OpenAI's clients speak, under `/v1`.
//!
//! A request's fields are honoured or refused by name; fields nobody knows are passed over, since routers add their own
//! ([`refused`]). [`admission`] takes a request to running sequences, [`answers`] reads them with the parser of the
//! model's format, [`reply`] writes them as chunks or whole; [`completions`], [`chat`] and [`responses`] say what is
//! theirs. [`prompt`] is what a conversation asks of the model; what it promises of the answer is written as a grammar by
//! [`syntax`] and enforced by [`mod@grammar`].

pub mod admission;
pub mod answers;
pub mod chat;
pub mod completions;
pub mod error;
pub mod grammar;
pub mod messages;
pub mod models;
pub mod parameters;
pub mod prompt;
pub mod refused;
pub mod reply;
pub mod responses;
pub mod syntax;
pub mod tokenize;
pub mod tools;

pub use error::refusal;

/// Paths outside `/v1` whose errors have OpenAI's shape all the same.
const BESIDES: [&str; 3] = ["/tokenize", "/detokenize", "/apply-template"];

/// Whether this path's errors have OpenAI's shape.
pub fn owns(path: &str) -> bool {
    path.starts_with("/v1/") || BESIDES.contains(&path)
}
