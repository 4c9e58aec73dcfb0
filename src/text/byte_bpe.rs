//! Byte-level BPE: split, then merge the bytes of each piece (MODELS.md §4.2).

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::byte_alphabet;
use super::error::TokenizerError;
use super::merge::{MergeTable, merge_symbols};
use super::split::Splitter;
use super::vocab::{TokenKind, Vocab};

/// How one family turns text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PieceRules {
    /// The pattern.
    pub(super) splitter: Splitter,
    /// Compose characters first (Qwen 2: its models were trained on composed text).
    pub(super) nfc: bool,
    /// A piece that is itself a token is that token, whatever the merges say (Llama 3).
    pub(super) whole_pieces: bool,
}

/// A byte-level BPE model.
#[derive(Debug)]
pub(super) struct ByteBpe {
    rules: PieceRules,
    byte_ids: Box<[u32; 256]>,
    merges: MergeTable,
}

impl ByteBpe {
    /// A model over `vocab`.
    ///
    /// # Errors
    /// A byte without a token.
    pub(super) fn build(
        vocab: &Vocab,
        rules: PieceRules,
        merges: MergeTable,
    ) -> Result<Self, TokenizerError> {
        let byte_ids = vocab.byte_ids(TokenKind::Normal, |byte| byte_alphabet::char_of(byte).to_string())?;
        Ok(Self { rules, byte_ids, merges })
    }

    /// Calls `visit` with each piece of a stretch of ordinary text.
    pub(super) fn for_each_piece(&self, text: &str, mut visit: impl FnMut(&str)) {
        let text = if self.rules.nfc && !is_nfc(text) {
            Cow::Owned(text.nfc().collect())
        } else {
            Cow::Borrowed(text)
        };
        self.rules.splitter.pieces(&text).for_each(&mut visit);
    }

    /// Appends the ids of one piece.
    pub(super) fn encode_piece(&self, vocab: &Vocab, piece: &str, ids: &mut Vec<u32>) {
        if self.rules.whole_pieces && piece.len() <= LONGEST_WHOLE_PIECE {
            let text: String = piece.bytes().map(byte_alphabet::char_of).collect();
            if let Some(id) = vocab.normal_id(text.as_bytes()) {
                ids.push(id);
                return;
            }
        }
        let mut symbols: Vec<u32> = piece.bytes().map(|byte| self.byte_ids[usize::from(byte)]).collect();
        merge_symbols(&self.merges, &mut symbols);
        ids.append(&mut symbols);
    }
}

/// No token is longer than this, so longer pieces need not be looked up.
const LONGEST_WHOLE_PIECE: usize = 64 * 1024;
