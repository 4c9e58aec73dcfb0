//! The `gguf-bpe` backend: a tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file (MODELS.md §4.1).

use super::byte_bpe::{ByteBpe, PieceRules};
use super::error::TokenizerError;
use super::merge::{Merge, MergeTable};
use super::sentence_bpe::{SentenceBpe, SpacePrefix};
use super::special::WholeToken;
use super::split::Splitter;
use super::vocab::{TextForm, TokenKind, Vocab};
use super::{Model, Parts, SpecialIds, Tokenizer, TokenizerKind};

/// The tokenizer metadata of a GGUF file, as read and not yet checked.
#[derive(Debug, Clone, Default)]
pub struct VocabSource<'a> {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`; the index is the id.
    pub tokens: Vec<&'a [u8]>,
    /// `tokenizer.ggml.token_type`.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.scores`.
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.merges`; the index is the rank.
    pub merges: Option<Vec<&'a str>>,
    /// `tokenizer.ggml.*_token_id`, `add_bos_token`, `add_eos_token`.
    pub ids: SpecialIds,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `general.name`.
    pub name: Option<&'a str>,
    /// `general.architecture`.
    pub architecture: Option<&'a str>,
}

impl Tokenizer {
    /// Builds the `gguf-bpe` tokenizer.
    ///
    /// # Errors
    /// Any rule of MODELS.md §1.4 and §4.1 that the metadata breaks, and families that are not implemented.
    pub fn from_gguf(source: &VocabSource<'_>) -> Result<Self, TokenizerError> {
        let form = match source.model {
            "gpt2" => TextForm::ByteAlphabet,
            "llama" => TextForm::Metaspace,
            other => return Err(TokenizerError::UnsupportedModel(other.to_owned())),
        };
        let kinds = token_kinds(source)?;
        let tokens = source.tokens.iter().zip(kinds).map(|(&text, kind)| (Some(text), kind));
        let vocab = Vocab::build(tokens, form)?;
        let (model, adds_bos) = match form {
            TextForm::ByteAlphabet => byte_model(source, &vocab)?,
            TextForm::Metaspace => (sentence_model(source, &vocab)?, true),
        };
        let whole_tokens = whole_tokens(source, &vocab);
        let mut ids = source.ids;
        ids.add_bos = Some(ids.add_bos.unwrap_or(adds_bos));
        let kind = TokenizerKind::GgufBpe;
        Self::assemble(Parts { kind, vocab, model, hugging_face: None, whole_tokens, ids })
    }
}

/// Checks the parallel lists' lengths and turns type numbers into kinds.
fn token_kinds(source: &VocabSource<'_>) -> Result<Vec<TokenKind>, TokenizerError> {
    let count = source.tokens.len();
    let check = |list, got| {
        let expected = format!("at least {count}, one per token");
        if got < count { Err(TokenizerError::Length { list, expected, got }) } else { Ok(()) }
    };
    if let Some(scores) = &source.scores {
        check("tokenizer.ggml.scores", scores.len())?;
    }
    let Some(types) = &source.token_types else {
        return Ok(vec![TokenKind::Normal; count]);
    };
    check("tokenizer.ggml.token_type", types.len())?;
    (0u32..)
        .zip(types.iter().take(count))
        .map(|(id, &number)| match number {
            2 => Ok(TokenKind::Unknown),
            3 => Ok(TokenKind::Control),
            4 => Ok(TokenKind::UserDefined),
            5 => Ok(TokenKind::Unused),
            // Byte tokens are a SentencePiece notion; byte-level vocabularies have ordinary ones.
            6 if source.model == "llama" => Ok(TokenKind::Byte),
            1 | 6 => Ok(TokenKind::Normal),
            got => Err(TokenizerError::TokenType { id, got }),
        })
        .collect()
}

/// The byte-level model, and whether its family puts BOS before a prompt by default.
fn byte_model(source: &VocabSource<'_>, vocab: &Vocab) -> Result<(Model, bool), TokenizerError> {
    let pre = source.pre.ok_or(TokenizerError::MissingPreTokenizer)?;
    let splitter =
        Splitter::from_pre(pre).ok_or_else(|| TokenizerError::UnsupportedPreTokenizer(pre.to_owned()))?;
    let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
    let rules = PieceRules { splitter, nfc: splitter == Splitter::Qwen2, whole_pieces: llama3 };
    let lines = source.merges.as_ref().ok_or(TokenizerError::MissingList("tokenizer.ggml.merges"))?;
    let pairs = lines.iter().map(|&line| {
        // The first half may itself begin with a space, the separator cannot.
        let cut = line.bytes().skip(1).position(|byte| byte == b' ').map_or(0, |at| at + 1);
        line.split_at_checked(cut)
            .map_or(("", ""), |(left, right)| (left, right.get(1..).unwrap_or_default()))
    });
    let merges = merge_table(vocab, pairs)?;
    Ok((Model::Bytes(ByteBpe::build(vocab, rules, merges)?), llama3))
}

/// The merges as a table, each pair checked to be two tokens whose concatenation is a token.
pub(super) fn merge_table<'m>(
    vocab: &Vocab,
    pairs: impl ExactSizeIterator<Item = (&'m str, &'m str)>,
) -> Result<MergeTable, TokenizerError> {
    let mut table = MergeTable::with_capacity(pairs.len());
    let mut joined = Vec::new();
    for (rank, (left, right)) in pairs.enumerate() {
        joined.clear();
        joined.extend_from_slice(left.as_bytes());
        joined.extend_from_slice(right.as_bytes());
        let broken = |problem| TokenizerError::Merge { rank, text: format!("{left} {right}"), problem };
        if left.is_empty() || right.is_empty() {
            return Err(broken("expected two texts with a space between"));
        }
        let halves = vocab.id(left.as_bytes()).zip(vocab.id(right.as_bytes()));
        let (left_id, right_id) = halves.ok_or_else(|| broken("a half is not a token"))?;
        let id = vocab.id(&joined).ok_or_else(|| broken("the halves together are not a token"))?;
        // Otherwise plain user text could merge into the chat format's structure.
        if !matches!(vocab.kind(id), TokenKind::Normal | TokenKind::UserDefined) {
            return Err(broken("it would make a special token from ordinary text"));
        }
        table.insert_first(left_id, right_id, Merge { rank: rank as u32, id });
    }
    Ok(table)
}

fn sentence_model(source: &VocabSource<'_>, vocab: &Vocab) -> Result<Model, TokenizerError> {
    let scores = source.scores.as_deref().ok_or(TokenizerError::MissingList("tokenizer.ggml.scores"))?;
    let scores = scores.get(..vocab.len()).unwrap_or(scores);
    let prefix = if source.add_space_prefix == Some(false) { SpacePrefix::Never } else { SpacePrefix::Every };
    Ok(Model::Sentence(SentenceBpe::from_scores(vocab, prefix, scores)?))
}

/// The tokens that are matched whole. GGUF has no strip attributes: Phi-3's are known (MODELS.md §4.4).
fn whole_tokens(source: &VocabSource<'_>, vocab: &Vocab) -> Vec<WholeToken> {
    let name = source.name.unwrap_or_default().to_lowercase();
    let phi3 = source.model == "llama"
        && (source.architecture == Some("phi3") || name.contains("phi-3") || name.contains("phi3"));
    (0..vocab.len() as u32)
        .filter(|&id| vocab.is_matched_whole(id))
        .filter_map(|id| Some((id, std::str::from_utf8(vocab.literal_bytes(id)).ok()?)))
        .map(|(id, text)| WholeToken {
            rstrip: phi3 && !matches!(text, "<|endoftext|>" | "<unk>" | "<s>"),
            ..WholeToken::plain(id, text)
        })
        .collect()
}

#[cfg(test)]
mod tests;
