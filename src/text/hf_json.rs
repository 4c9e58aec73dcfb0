//! The `hf-json` backend: a tokenizer from a Hugging Face `tokenizer.json` (MODELS.md §4.7).
//!
//! The `tokenizers` crate's BPE model does the merging. Its regular-expression splitters give up or slow down on long
//! runs and its model needs more than a second for a piece of some million bytes, so two things stand in front of it:
//! the file's pipeline is recognised and cut by our own linear-time splitters, and very long pieces are merged by our
//! own model, built from the same merges. Pipelines that are not recognised are refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Model as _;
use tokenizers::models::bpe::{BPE, BpeBuilder};

use super::byte_alphabet;
use super::byte_bpe::{ByteBpe, PieceRules};
use super::error::TokenizerError;
use super::gguf_bpe::merge_table;
use super::hf_file::{AddedToken, MergePair, ModelFile, TokenizerFile};
use super::sentence_bpe::{SentenceBpe, SpacePrefix};
use super::special::WholeToken;
use super::split::Splitter;
use super::vocab::{TextForm, TokenKind, Vocab};
use super::{Model, Parts, SpecialIds, Tokenizer, TokenizerKind};

/// Pieces beyond this many bytes are merged by our own model.
const LONGEST_DELEGATED: usize = 16 * 1024;

/// The crate's model with the alphabet its pieces are written in.
#[derive(Debug)]
pub(super) struct HuggingFaceBpe {
    bpe: BPE,
    form: TextForm,
}

impl HuggingFaceBpe {
    /// Appends the ids of one piece; `false` if the piece is too long for it or the model refuses it.
    pub(super) fn encode_piece(&self, piece: &str, ids: &mut Vec<u32>) -> bool {
        if piece.len() > LONGEST_DELEGATED {
            return false;
        }
        let written = match self.form {
            TextForm::ByteAlphabet => piece.bytes().map(byte_alphabet::char_of).collect(),
            TextForm::Metaspace => piece.replace(' ', "▁"),
        };
        let Ok(tokens) = self.bpe.tokenize(&written) else { return false };
        ids.extend(tokens.iter().map(|token| token.id));
        true
    }
}

impl Tokenizer {
    /// Builds the `hf-json` tokenizer from the text of a `tokenizer.json`.
    ///
    /// `ids` are the model file's special ids; what they leave open (all of it, without a model) is taken from the
    /// JSON's own template.
    ///
    /// # Errors
    /// JSON of another shape, a pipeline no supported model has, and every rule `from_gguf` checks.
    pub fn from_json(json: &[u8], ids: &SpecialIds) -> Result<Self, TokenizerError> {
        let TokenizerFile { added_tokens, normalizer, pre_tokenizer, post_processor, model: file } =
            serde_json::from_slice(json)?;
        check_model(&file)?;
        let pipeline = Pipeline::recognise(&normalizer, &pre_tokenizer, file.ignore_merges)?;
        let form = pipeline.form();
        let vocab = build_vocab(&file, &added_tokens, form)?;
        let merges = merge_table(&vocab, file.merges.iter().map(|pair| (pair.0.as_str(), pair.1.as_str())))?;
        let model = match pipeline {
            Pipeline::Bytes(rules) => Model::Bytes(ByteBpe::build(&vocab, rules, merges)?),
            Pipeline::Sentence { .. } if !file.byte_fallback => {
                return Err(unsupported("model.byte_fallback", &Value::Bool(false)));
            }
            Pipeline::Sentence { space_prefix } => {
                Model::Sentence(SentenceBpe::from_merges(&vocab, space_prefix, merges)?)
            }
        };
        let ids = complete_ids(ids, &post_processor, &vocab);
        let whole_tokens = added_tokens.into_iter().filter(|token| !token.content.is_empty()).map(Into::into);
        let whole_tokens = whole_tokens.collect();
        let hugging_face = Some(HuggingFaceBpe { bpe: build_bpe(file)?, form });
        let kind = TokenizerKind::HfJson;
        Self::assemble(Parts { kind, vocab, model, hugging_face, whole_tokens, ids })
    }
}

impl From<AddedToken> for WholeToken {
    fn from(token: AddedToken) -> Self {
        let AddedToken { id, content, single_word, lstrip, rstrip, special: _ } = token;
        Self { id, text: content, lstrip, rstrip, single_word }
    }
}

fn unsupported(part: &'static str, found: &Value) -> TokenizerError {
    let mut found = found.to_string();
    if let Some((cut, _)) = found.char_indices().nth(400) {
        found.truncate(cut);
    }
    TokenizerError::UnsupportedPart { part, found }
}

/// Refuses models that are not plain BPE.
fn check_model(file: &ModelFile) -> Result<(), TokenizerError> {
    if file.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(unsupported("model.type", &file.kind.clone().into()));
    }
    if file.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(unsupported("model.dropout", &file.dropout.into()));
    }
    for (part, affix) in [
        ("model.continuing_subword_prefix", &file.continuing_subword_prefix),
        ("model.end_of_word_suffix", &file.end_of_word_suffix),
    ] {
        if affix.as_deref().is_some_and(|affix| !affix.is_empty()) {
            return Err(unsupported(part, &affix.clone().into()));
        }
    }
    Ok(())
}

/// What stands before the merging.
enum Pipeline {
    Bytes(PieceRules),
    Sentence { space_prefix: SpacePrefix },
}

/// The pre-tokenizers that the supported models use.
#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
    Split {
        pattern: BTreeMap<String, String>,
        behavior: String,
        invert: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Metaspace {
        replacement: char,
        prepend_scheme: String,
        split: bool,
    },
}

fn yes() -> bool {
    true
}

impl Pipeline {
    fn form(&self) -> TextForm {
        match self {
            Self::Bytes(_) => TextForm::ByteAlphabet,
            Self::Sentence { .. } => TextForm::Metaspace,
        }
    }

    fn recognise(
        normalizer: &Value,
        pre_tokenizer: &Value,
        whole_pieces: bool,
    ) -> Result<Self, TokenizerError> {
        let steps = match normalizer.get("normalizers").and_then(Value::as_array) {
            Some(steps) => steps.clone(),
            None if normalizer.is_null() => Vec::new(),
            None => vec![normalizer.clone()],
        };
        if pre_tokenizer.is_null() {
            let replace = serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
            let prepend = serde_json::json!({"type": "Prepend", "prepend": "▁"});
            let space_prefix = match steps.as_slice() {
                [only] if *only == replace => SpacePrefix::Never,
                [first, second] if *first == prepend && *second == replace => SpacePrefix::Every,
                _ => return Err(unsupported("normalizer", normalizer)),
            };
            return Ok(Self::Sentence { space_prefix });
        }
        let parsed: PreTokenizer = serde_json::from_value(pre_tokenizer.clone())
            .map_err(|_| unsupported("pre_tokenizer", pre_tokenizer))?;
        if let Some(space_prefix) = space_prefix_of(&parsed) {
            return match steps.as_slice() {
                [] => Ok(Self::Sentence { space_prefix }),
                _ => Err(unsupported("normalizer", normalizer)),
            };
        }
        let nfc = match steps.as_slice() {
            [] => false,
            [only] if only.get("type").and_then(Value::as_str) == Some("NFC") => true,
            _ => return Err(unsupported("normalizer", normalizer)),
        };
        let splitter = splitter_of(&parsed).ok_or_else(|| unsupported("pre_tokenizer", pre_tokenizer))?;
        Ok(Self::Bytes(PieceRules { splitter, nfc, whole_pieces }))
    }
}

fn space_prefix_of(pre_tokenizer: &PreTokenizer) -> Option<SpacePrefix> {
    match pre_tokenizer {
        PreTokenizer::Metaspace { replacement: '▁', prepend_scheme, split: false } => {
            match prepend_scheme.as_str() {
                "never" => Some(SpacePrefix::Never),
                "always" => Some(SpacePrefix::EveryWord),
                "first" => Some(SpacePrefix::FirstWord),
                _ => None,
            }
        }
        _ => None,
    }
}

fn splitter_of(pre_tokenizer: &PreTokenizer) -> Option<Splitter> {
    use PreTokenizer::{ByteLevel, Sequence, Split};
    match pre_tokenizer {
        ByteLevel { add_prefix_space: false, use_regex: true } => Some(Splitter::Gpt2),
        Sequence { pretokenizers } => match pretokenizers.as_slice() {
            [only] => splitter_of(only),
            [
                Split { pattern, behavior, invert: false },
                ByteLevel { add_prefix_space: false, use_regex: false },
            ] if behavior == "Isolated" => Splitter::from_pattern(pattern.get("Regex")?),
            _ => None,
        },
        _ => None,
    }
}

fn build_vocab(file: &ModelFile, added: &[AddedToken], form: TextForm) -> Result<Vocab, TokenizerError> {
    let entries = file.vocab.len() + added.len();
    let largest = file.vocab.values().copied().chain(added.iter().map(|token| token.id)).max();
    let count = largest.map_or(0, |id| id as usize + 1);
    // Some vocabularies have holes; a huge id must not become a huge allocation.
    if count > entries * 4 + 65_536 {
        let expected = format!("ids close to the {entries} tokens");
        return Err(TokenizerError::Length { list: "tokenizer.json: the id range", expected, got: count });
    }
    let mut tokens: Vec<(Option<&[u8]>, TokenKind)> = vec![(None, TokenKind::Unused); count];
    let ordinary = file.vocab.iter().map(|(text, &id)| {
        let is_byte = file.byte_fallback && form == TextForm::Metaspace && is_byte_token(text);
        (text.as_str(), id, if is_byte { TokenKind::Byte } else { TokenKind::Normal })
    });
    let added = added.iter().map(|token| {
        let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        (token.content.as_str(), token.id, kind)
    });
    for (text, id, kind) in ordinary.chain(added) {
        let Some(entry) = tokens.get_mut(id as usize) else { continue };
        if entry.0.is_some_and(|other| other != text.as_bytes()) {
            return Err(TokenizerError::DuplicateToken { first: id, second: id, text: text.to_owned() });
        }
        *entry = (Some(text.as_bytes()), kind);
    }
    Vocab::build(tokens.into_iter(), form)
}

fn is_byte_token(text: &str) -> bool {
    text.len() == 6 && text.starts_with("<0x") && text.ends_with('>')
}

/// The crate's model. `merge_table` has checked the merges against all tokens; the crate knows only the model's own and
/// panics on a merge longer than the longest of them.
fn build_bpe(file: ModelFile) -> Result<BPE, TokenizerError> {
    let longest = file.vocab.keys().map(String::len).max().unwrap_or(0);
    let too_long = |pair: &MergePair| pair.0.len() + pair.1.len() > longest;
    if let Some((rank, pair)) = file.merges.iter().enumerate().find(|(_, pair)| too_long(pair)) {
        let text = format!("{} {}", pair.0, pair.1);
        return Err(TokenizerError::Merge { rank, text, problem: "the halves together are not a token" });
    }
    let merges = file.merges.into_iter().map(|pair| (pair.0, pair.1)).collect();
    let vocab: tokenizers::models::bpe::Vocab = file.vocab.into_iter().collect();
    let mut builder = BpeBuilder::new()
        // The crate's cache is one per thread, and the server tokenizes on many.
        .cache_capacity(0)
        .fuse_unk(file.fuse_unk)
        .byte_fallback(file.byte_fallback)
        .ignore_merges(file.ignore_merges);
    if let Some(unknown) = file.unk_token.filter(|text| vocab.contains_key(text)) {
        builder = builder.unk_token(unknown);
    }
    builder
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|error| TokenizerError::HuggingFace(error.to_string()))
}

/// Fills what the model file leaves open from the JSON's template: a special token before the text is BOS.
fn complete_ids(ids: &SpecialIds, post_processor: &Value, vocab: &Vocab) -> SpecialIds {
    let template = template_of(post_processor);
    let position = |part: &Value| part.get("Sequence").is_some();
    let special = |part: &Value| {
        let text = part.get("SpecialToken")?.get("id")?.as_str()?;
        vocab.special_id(text)
    };
    let sequence = template.iter().position(position).unwrap_or(0);
    let before = template.get(..sequence).unwrap_or_default().iter().find_map(special);
    let after = template.get(sequence..).unwrap_or_default().iter().find_map(special);
    SpecialIds {
        bos: ids.bos.or(before),
        eos: ids.eos.or(after),
        add_bos: Some(ids.add_bos.unwrap_or(before.is_some())),
        add_eos: Some(ids.add_eos.unwrap_or(after.is_some())),
        ..*ids
    }
}

/// The parts of the single-sequence template, wherever it stands in the post-processor.
fn template_of(post_processor: &Value) -> &[Value] {
    let nested = post_processor.get("processors").and_then(Value::as_array);
    let single = |step: &'_ Value| step.get("single").is_some();
    let step = match nested {
        Some(steps) => steps.iter().find(|step| single(step)),
        None => Some(post_processor),
    };
    step.and_then(|step| step.get("single")?.as_array()).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests;
