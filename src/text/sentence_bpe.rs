//! SentencePiece-style BPE: whole stretches of text are merged character by character (MODELS.md §4.4).
//!
//! A GGUF file ranks merges by the score of the token they make; `tokenizer.json` lists them. Both become the same
//! table of pairs here.

use std::borrow::Cow;
use std::collections::HashMap;

use super::error::TokenizerError;
use super::merge::{Merge, MergeTable, merge_symbols};
use super::vocab::{TokenKind, Vocab};

/// Longest token whose ways of being merged are listed, in bytes; real ones have at most 48. The work at load grows with
/// its square.
const LONGEST_MERGED: usize = 256;

/// Which stretches of ordinary text get a space before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    /// None.
    Never,
    /// All: the one at the start and those after special tokens.
    Every,
    /// All that do not begin with a space.
    EveryWord,
    /// Only the one at the start of the text, unless it begins with a space.
    FirstWord,
}

/// A SentencePiece-style model.
#[derive(Debug)]
pub(super) struct SentenceBpe {
    pub(super) space_prefix: SpacePrefix,
    symbol_of: HashMap<char, u32>,
    /// Characters that occur in tokens without being one; their symbols follow the vocabulary's ids.
    wordless: Vec<char>,
    vocab_size: u32,
    byte_ids: Box<[u32; 256]>,
    merges: MergeTable,
}

impl SentenceBpe {
    /// A model whose merges are listed.
    ///
    /// # Errors
    /// A byte without a token.
    pub(super) fn from_merges(
        vocab: &Vocab,
        space_prefix: SpacePrefix,
        merges: MergeTable,
    ) -> Result<Self, TokenizerError> {
        let mut model = Self {
            space_prefix,
            symbol_of: HashMap::new(),
            wordless: Vec::new(),
            vocab_size: vocab.len() as u32,
            byte_ids: vocab.byte_ids(TokenKind::Byte, |byte| format!("<0x{byte:02X}>"))?,
            merges,
        };
        for (id, text) in normal_texts(vocab) {
            let mut chars = text.chars();
            if let (Some(only), None) = (chars.next(), chars.next()) {
                model.symbol_of.insert(only, id);
            }
        }
        Ok(model)
    }

    /// A model whose merges follow from the tokens' scores: every way to cut a token into two symbols, the token of
    /// the highest score first.
    ///
    /// # Errors
    /// A byte without a token; a score that is not finite.
    pub(super) fn from_scores(
        vocab: &Vocab,
        space_prefix: SpacePrefix,
        scores: &[f32],
    ) -> Result<Self, TokenizerError> {
        let mut model = Self::from_merges(vocab, space_prefix, MergeTable::with_capacity(0))?;
        for text in normal_texts(vocab).map(|(_, text)| text) {
            for c in text.chars() {
                let next = model.vocab_size + model.wordless.len() as u32;
                if *model.symbol_of.entry(c).or_insert(next) == next {
                    model.wordless.push(c);
                }
            }
        }
        let ranks = ranks_by_score(scores)?;
        let mut cuts = Vec::new();
        for (id, text) in normal_texts(vocab).filter(|(_, text)| text.len() <= LONGEST_MERGED) {
            let rank = ranks.get(id as usize).copied().unwrap_or(u32::MAX);
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if let Some(pair) = model.symbol(vocab, left).zip(model.symbol(vocab, right)) {
                    cuts.push((pair, Merge { rank, id }));
                }
            }
        }
        model.merges = MergeTable::with_capacity(cuts.len());
        for ((left, right), merge) in cuts {
            model.merges.insert_first(left, right, merge);
        }
        Ok(model)
    }

    /// The symbol that stands for `text` (`▁` written as a space): a token, or a character.
    fn symbol(&self, vocab: &Vocab, text: &str) -> Option<u32> {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(only), None) => self.symbol_of.get(&only).copied(),
            _ if text.contains(' ') => vocab.normal_id(text.replace(' ', "▁").as_bytes()),
            _ => vocab.normal_id(text.as_bytes()),
        }
    }

    /// A stretch of ordinary text as it is merged: with its space prefix. `first`: the whole text begins with it.
    pub(super) fn prepare<'t>(&self, text: &'t str, first: bool) -> Cow<'t, str> {
        let is_word = !text.starts_with([' ', '▁']);
        let prefixed = match self.space_prefix {
            SpacePrefix::Never => false,
            SpacePrefix::Every => true,
            SpacePrefix::EveryWord => is_word,
            SpacePrefix::FirstWord => is_word && first,
        };
        if prefixed { Cow::Owned(format!(" {text}")) } else { Cow::Borrowed(text) }
    }

    /// Appends the ids of a prepared stretch.
    pub(super) fn encode_prepared(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols = Vec::with_capacity(text.len());
        for c in text.chars() {
            // A space and a literal ▁ are the same symbol.
            match self.symbol_of.get(if c == '▁' { &' ' } else { &c }) {
                Some(&symbol) => symbols.push(symbol),
                None => self.push_bytes(c, &mut symbols),
            }
        }
        merge_symbols(&self.merges, &mut symbols);
        for symbol in symbols {
            match self.wordless.get((symbol.wrapping_sub(self.vocab_size)) as usize) {
                Some(&c) => self.push_bytes(c, ids),
                None => ids.push(symbol),
            }
        }
    }

    fn push_bytes(&self, c: char, ids: &mut Vec<u32>) {
        ids.extend(c.encode_utf8(&mut [0; 4]).bytes().map(|byte| self.byte_ids[usize::from(byte)]));
    }
}

/// The ordinary tokens with their text, `▁` written as a space.
fn normal_texts(vocab: &Vocab) -> impl Iterator<Item = (u32, &str)> {
    (0..vocab.len() as u32)
        .filter(|&id| vocab.kind(id) == TokenKind::Normal)
        .filter_map(|id| Some((id, std::str::from_utf8(vocab.literal_bytes(id)).ok()?)))
}

/// Each token's rank: 0 for the highest score; equal scores share a rank, so that the leftmost pair goes first.
fn ranks_by_score(scores: &[f32]) -> Result<Vec<u32>, TokenizerError> {
    if let Some((id, &got)) = (0u32..).zip(scores).find(|(_, score)| !score.is_finite()) {
        return Err(TokenizerError::Score { id, got });
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut ranks = vec![0; scores.len()];
    for pair in order.windows(2) {
        // `-0.0` and `0.0` are equal scores.
        ranks[pair[1]] = ranks[pair[0]] + u32::from(scores[pair[0]] > scores[pair[1]]);
    }
    Ok(ranks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::vocab::TextForm;

    /// Byte tokens, then the given words, scored by their order.
    fn model(words: &[(&str, f32)]) -> (Vocab, SentenceBpe) {
        let bytes: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
        let tokens: Vec<_> = bytes
            .iter()
            .map(|text| (Some(text.as_bytes()), TokenKind::Byte))
            .chain(words.iter().map(|(text, _)| (Some(text.as_bytes()), TokenKind::Normal)))
            .collect();
        let vocab = Vocab::build(tokens.into_iter(), TextForm::Metaspace).unwrap();
        let scores: Vec<f32> = [0.0; 256].into_iter().chain(words.iter().map(|w| w.1)).collect();
        let model = SentenceBpe::from_scores(&vocab, SpacePrefix::Never, &scores).unwrap();
        (vocab, model)
    }

    fn encode(words: &[(&str, f32)], text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        model(words).1.encode_prepared(text, &mut ids);
        ids
    }

    #[test]
    fn the_highest_score_joins_first_and_ties_go_left() {
        let words = [("a", 0.0), ("b", 0.0), ("ab", -1.0), ("ba", -1.0), ("bb", -0.5), ("▁", 0.0)];
        assert_eq!(encode(&words, "aba"), [258, 256]);
        assert_eq!(encode(&words, "abb"), [256, 260]);
        assert_eq!(encode(&words, " a"), [261, 256]);
    }

    #[test]
    fn characters_without_a_token_become_bytes_unless_a_longer_token_holds_them() {
        let words = [("a", 0.0), ("aé", -1.0)];
        assert_eq!(encode(&words, "aé"), [257]);
        assert_eq!(encode(&words, "éa"), [0xC3, 0xA9, 256]);
        assert_eq!(encode(&words, "\u{0}"), [0]);
    }

    #[test]
    fn the_space_prefix_follows_its_rule() {
        let (_, mut model) = model(&[("a", 0.0)]);
        for (rule, expected) in [
            (SpacePrefix::Never, ["a", " a", "▁a", "a"]),
            (SpacePrefix::Every, [" a", "  a", " ▁a", " a"]),
            (SpacePrefix::EveryWord, [" a", " a", "▁a", " a"]),
            (SpacePrefix::FirstWord, [" a", " a", "▁a", "a"]),
        ] {
            model.space_prefix = rule;
            let prepared = [("a", true), (" a", true), ("▁a", true), ("a", false)]
                .map(|(text, first)| model.prepare(text, first).into_owned());
            assert_eq!(prepared, expected, "{rule:?}");
        }
    }

    #[test]
    fn scores_must_be_finite() {
        assert!(matches!(ranks_by_score(&[0.0, f32::NAN]), Err(TokenizerError::Score { id: 1, .. })));
        assert_eq!(ranks_by_score(&[1.0, 3.0, 3.0, -2.0]).unwrap(), [1, 0, 0, 2]);
        assert_eq!(ranks_by_score(&[0.0, -0.0]).unwrap(), [0, 0]);
    }
}
