//! The parts of a `tokenizer.json` that matter here, as serde reads them.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The whole file. Truncation, padding and the decoder are not read: the server has its own.
#[derive(Deserialize)]
pub(super) struct TokenizerFile {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub(super) normalizer: Value,
    #[serde(default)]
    pub(super) pre_tokenizer: Value,
    #[serde(default)]
    pub(super) post_processor: Value,
    pub(super) model: ModelFile,
}

/// A token outside the model's own vocabulary, or one of it with special treatment.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the file's own members")]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) single_word: bool,
    #[serde(default)]
    pub(super) lstrip: bool,
    #[serde(default)]
    pub(super) rstrip: bool,
    #[serde(default)]
    pub(super) special: bool,
}

/// The `model` member of a BPE tokenizer.
#[derive(Deserialize)]
pub(super) struct ModelFile {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) dropout: Option<f32>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    #[serde(default)]
    pub(super) fuse_unk: bool,
    #[serde(default)]
    pub(super) byte_fallback: bool,
    #[serde(default)]
    pub(super) ignore_merges: bool,
    pub(super) vocab: HashMap<String, u32>,
    pub(super) merges: Vec<MergePair>,
}

/// A merge, written `"A B"` or `["A", "B"]`.
pub(super) struct MergePair(pub(super) String, pub(super) String);

impl<'de> Deserialize<'de> for MergePair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = MergePair;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a merge: \"A B\" or [\"A\", \"B\"]")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MergePair, E> {
        match text.split_once(' ') {
            Some((left, right)) => Ok(MergePair(left.to_owned(), right.to_owned())),
            None => Err(E::custom(format_args!("merge {text:?} has no space"))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<MergePair, A::Error> {
        let mut half = |at| sequence.next_element()?.ok_or_else(|| A::Error::invalid_length(at, &self));
        let pair = MergePair(half(0)?, half(1)?);
        match sequence.next_element::<String>()? {
            Some(_) => Err(A::Error::invalid_length(3, &self)),
            None => Ok(pair),
        }
    }
}
