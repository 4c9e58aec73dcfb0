//! Text in and out: tokenizers, decoding that is safe to stream, and the chat formats on top of them ([`chat`],
//! [`harmony`]).
//!
//! A [`Tokenizer`] is built by one of two backends: `hf-json` from a Hugging Face `tokenizer.json`, `gguf-bpe` from the
//! model file itself. Both share everything but the merging of ordinary text: the vocabulary, the cutting out of
//! special tokens, the linear-time splitters and the decoding, so that they cannot differ there.
//!
//! Encoding is linear in the text (times the logarithm of distinct merges), uses no recursion and cannot fail: what a
//! vocabulary could do wrong is found when it is loaded. Text of users and tools is encoded as
//! [`SpecialParsing::Plain`]: no spelling of a special token in it becomes one.

mod byte_alphabet;
mod byte_bpe;
pub mod chat;
mod decode;
mod error;
mod gguf_bpe;
pub mod harmony;
mod hf_file;
mod hf_json;
mod load;
mod merge;
mod sentence_bpe;
mod special;
mod split;
mod stop;
mod unicode;
mod vocab;

pub use decode::{DecodeOptions, IncrementalDecoder};
pub use error::TokenizerError;
pub use gguf_bpe::VocabSource;
pub use load::{LoadTokenizerError, vocab_source};
pub use vocab::TokenKind;

use byte_bpe::ByteBpe;
use hf_json::HuggingFaceBpe;
use sentence_bpe::{SentenceBpe, SpacePrefix};
use special::{Fragment, SpecialMatcher, WholeToken};
use vocab::Vocab;

/// Which backend built a tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// From a `tokenizer.json`.
    HfJson,
    /// From GGUF metadata.
    GgufBpe,
}

impl TokenizerKind {
    /// The name in `/health.tokenizer_kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HfJson => "hf-json",
            Self::GgufBpe => "gguf-bpe",
        }
    }
}

/// Whether the text of special tokens inside a text means the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialParsing {
    /// No: it is text like any other. Only user-defined tokens, which are visible text anyway, are matched.
    Plain,
    /// Yes: for text the server itself or a trusted template wrote.
    Parse,
}

/// The ids a model file names, and whether its prompts begin or end with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message.
    pub eom: Option<u32>,
    /// Unknown text.
    pub unknown: Option<u32>,
    /// Padding.
    pub padding: Option<u32>,
    /// Whether prompts begin with `bos`; `None`: as the family does.
    pub add_bos: Option<bool>,
    /// Whether training texts end with `eos`; `None`: no.
    pub add_eos: Option<bool>,
}

/// How ordinary text is cut and merged.
#[derive(Debug)]
enum Model {
    Bytes(ByteBpe),
    Sentence(SentenceBpe),
}

/// What a backend hands over.
struct Parts {
    kind: TokenizerKind,
    vocab: Vocab,
    model: Model,
    hugging_face: Option<HuggingFaceBpe>,
    whole_tokens: Vec<WholeToken>,
    ids: SpecialIds,
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    kind: TokenizerKind,
    vocab: Vocab,
    model: Model,
    /// Merges the pieces of `hf-json` tokenizers, where it is fast enough.
    hugging_face: Option<HuggingFaceBpe>,
    /// All whole tokens.
    parsed: SpecialMatcher,
    /// Only the user-defined ones.
    visible: SpecialMatcher,
    ids: SpecialIds,
    stop_ids: Vec<u32>,
}

impl Tokenizer {
    fn assemble(parts: Parts) -> Result<Self, TokenizerError> {
        let Parts { kind, vocab, model, hugging_face, mut whole_tokens, ids } = parts;
        check_ids(&ids, vocab.len())?;
        whole_tokens.retain(|token| vocab.is_matched_whole(token.id));
        let visible = whole_tokens.iter().filter(|token| vocab.kind(token.id) == TokenKind::UserDefined);
        let visible = SpecialMatcher::build(visible.cloned());
        let parsed = SpecialMatcher::build(whole_tokens);
        let stop_ids = stop::stop_ids(&vocab, &ids);
        Ok(Self { kind, vocab, model, hugging_face, parsed, visible, ids, stop_ids })
    }

    /// The backend that built it.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// Number of ids, unused ones included; every id that encoding returns is less.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The ids the model names.
    pub fn special_ids(&self) -> &SpecialIds {
        &self.ids
    }

    /// The beginning-of-text id.
    pub fn bos_id(&self) -> Option<u32> {
        self.ids.bos
    }

    /// The end-of-text id.
    pub fn eos_id(&self) -> Option<u32> {
        self.ids.eos
    }

    /// Whether prompts begin with the beginning-of-text id.
    pub fn add_bos(&self) -> bool {
        self.ids.add_bos == Some(true) && self.ids.bos.is_some()
    }

    /// Whether training texts ended with the end-of-text id. Prompts do not.
    pub fn add_eos(&self) -> bool {
        self.ids.add_eos == Some(true) && self.ids.eos.is_some()
    }

    /// The ids that end a generation, ascending (MODELS.md §4.6).
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The ids of `text`, without BOS.
    pub fn encode(&self, text: &str, special: SpecialParsing) -> Vec<u32> {
        let matcher = match special {
            SpecialParsing::Plain => &self.visible,
            SpecialParsing::Parse => &self.parsed,
        };
        let mut ids = Vec::new();
        for fragment in matcher.fragments(text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(range) => {
                    let first = range.start == 0;
                    self.encode_ordinary(text.get(range).unwrap_or_default(), first, &mut ids);
                }
            }
        }
        ids
    }

    /// The ids of a whole prompt: BOS first if the model wants it and the text does not bring it.
    pub fn encode_prompt(&self, text: &str, special: SpecialParsing) -> Vec<u32> {
        self.with_bos(self.encode(text, special))
    }

    fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.ids.bos.filter(|bos| self.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        ids
    }

    /// The ids of a prompt of which parts are veiled: special tokens are looked for in `text` as it is, and what lies
    /// between them is encoded, as [`SpecialParsing::Plain`], after `reveal` has shown what it really reads. BOS as in
    /// [`Tokenizer::encode_prompt`].
    pub(crate) fn encode_veiled_prompt(&self, text: &str, reveal: impl Fn(&str) -> String) -> Vec<u32> {
        let mut ids = Vec::new();
        for fragment in self.parsed.fragments(text) {
            let range = match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    continue;
                }
                Fragment::Text(range) => range,
            };
            let revealed = reveal(text.get(range.clone()).unwrap_or_default());
            for inner in self.visible.fragments(&revealed) {
                match inner {
                    Fragment::Token(id) => ids.push(id),
                    Fragment::Text(part) => {
                        let first = range.start == 0 && part.start == 0;
                        self.encode_ordinary(revealed.get(part).unwrap_or_default(), first, &mut ids);
                    }
                }
            }
        }
        self.with_bos(ids)
    }

    /// The spellings of all control and unknown tokens, which text of users must not become.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.parsed.tokens().iter().filter(|token| self.is_special(token.id)).map(|token| token.text.as_str())
    }

    /// Encodes a stretch of text without special tokens; `first` if the whole text begins with it.
    fn encode_ordinary(&self, text: &str, first: bool, ids: &mut Vec<u32>) {
        let delegated = |piece: &str, ids: &mut Vec<u32>| {
            self.hugging_face.as_ref().is_some_and(|hf| hf.encode_piece(piece, ids))
        };
        match &self.model {
            Model::Bytes(model) => model.for_each_piece(text, |piece| {
                if !delegated(piece, ids) {
                    model.encode_piece(&self.vocab, piece, ids);
                }
            }),
            Model::Sentence(model) => {
                let prepared = model.prepare(text, first);
                if !delegated(&prepared, ids) {
                    model.encode_prepared(&prepared, ids);
                }
            }
        }
    }

    /// The bytes that `id` adds to generated text: none for control, unknown and unused tokens.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if self.is_special(id) { &[] } else { self.vocab.literal_bytes(id) }
    }

    /// Like `token_bytes`, but control and unknown tokens give their literal text.
    pub fn literal_bytes(&self, id: u32) -> &[u8] {
        self.vocab.literal_bytes(id)
    }

    /// Whether `id` is structure rather than text: a control or unknown token.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.vocab.kind(id), TokenKind::Control | TokenKind::Unknown)
    }

    /// What `id` is for.
    pub fn token_kind(&self, id: u32) -> TokenKind {
        self.vocab.kind(id)
    }

    /// The id of the token that the file writes as `text`: special tokens literally, ordinary ones in the file's own
    /// alphabet.
    pub fn token_to_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text.as_bytes())
    }

    /// The special token (control, unknown or user-defined) written `text`.
    pub fn special_to_id(&self, text: &str) -> Option<u32> {
        self.vocab.special_id(text)
    }

    /// Whether the text of a sequence begins with a space the model adds, to be dropped when decoding.
    fn has_space_prefix(&self) -> bool {
        matches!(&self.model, Model::Sentence(model) if model.space_prefix != SpacePrefix::Never)
    }

    /// The text of a whole sequence: special tokens left out, invalid bytes as U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, &DecodeOptions::default())
    }

    /// The text of a whole sequence as `options` ask, stop strings aside: what an [`IncrementalDecoder`] without stop
    /// strings gives in pieces.
    pub fn decode_with(&self, ids: &[u32], options: &DecodeOptions) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend(if options.show_special { self.literal_bytes(id) } else { self.token_bytes(id) });
        }
        let start =
            usize::from(self.has_space_prefix() && !options.continues_text && bytes.first() == Some(&b' '));
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned()
    }
}

fn check_ids(ids: &SpecialIds, vocab_size: usize) -> Result<(), TokenizerError> {
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", ids.bos),
        ("tokenizer.ggml.eos_token_id", ids.eos),
        ("tokenizer.ggml.eot_token_id", ids.eot),
        ("tokenizer.ggml.eom_token_id", ids.eom),
        ("tokenizer.ggml.unknown_token_id", ids.unknown),
        ("tokenizer.ggml.padding_token_id", ids.padding),
    ] {
        if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
            return Err(TokenizerError::IdOutOfRange { key, id, vocab_size });
        }
    }
    Ok(())
}
