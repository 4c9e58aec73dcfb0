//! The vocabulary itself: what bytes each token id stands for, what kind of token it is, and which text has which id.

use std::collections::HashMap;

use super::byte_alphabet;
use super::error::TokenizerError;

/// Longest token text accepted, in bytes (MODELS.md §1.3).
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// What a token is for (`tokenizer.ggml.token_type`, or an added token of `tokenizer.json`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Normal,
    /// Stands for text that cannot be expressed.
    Unknown,
    /// Structure of the chat format; never visible text.
    Control,
    /// Added by the model's makers: matched whole in any text, and visible.
    UserDefined,
    /// A padding row of the embedding; never visible text.
    Unused,
    /// One raw byte, written `<0xHH>`.
    Byte,
}

/// How the file writes the text of ordinary tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextForm {
    /// Each byte as one printable character (byte-level BPE).
    ByteAlphabet,
    /// UTF-8 with `▁` for a space (SentencePiece).
    Metaspace,
}

/// All tokens, by id and by text.
#[derive(Debug)]
pub(super) struct Vocab {
    kinds: Vec<TokenKind>,
    /// The raw bytes of all tokens one after the other; special tokens hold their literal text.
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
    /// Ids by the text the file has.
    index: HashMap<Box<[u8]>, u32>,
}

impl Vocab {
    /// Builds the table from each id's text (`None`: no such id) and kind.
    ///
    /// # Errors
    /// A text that is too long or that two ids share; more ids than fit.
    pub(super) fn build<'t>(
        tokens: impl ExactSizeIterator<Item = (Option<&'t [u8]>, TokenKind)>,
        form: TextForm,
    ) -> Result<Self, TokenizerError> {
        let count = tokens.len();
        if count == 0 || count > i32::MAX as usize {
            let expected = "1 to 2147483647".to_owned();
            return Err(TokenizerError::Length { list: "the vocabulary", expected, got: count });
        }
        let mut vocab = Self {
            kinds: Vec::with_capacity(count),
            bytes: Vec::new(),
            ends: Vec::with_capacity(count),
            index: HashMap::with_capacity(count),
        };
        for (id, (text, kind)) in (0u32..).zip(tokens) {
            vocab.push(id, text, kind, form)?;
        }
        Ok(vocab)
    }

    fn push(
        &mut self,
        id: u32,
        text: Option<&[u8]>,
        kind: TokenKind,
        form: TextForm,
    ) -> Result<(), TokenizerError> {
        let Some(text) = text else {
            self.kinds.push(TokenKind::Unused);
            self.ends.push(self.bytes.len());
            return Ok(());
        };
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenizerError::TokenTooLong { id, got: text.len(), limit: MAX_TOKEN_BYTES });
        }
        if let Some(first) = self.index.insert(text.into(), id) {
            let text = String::from_utf8_lossy(text).into_owned();
            return Err(TokenizerError::DuplicateToken { first, second: id, text });
        }
        let kind = if is_padding_row(id, text, kind) { TokenKind::Unused } else { kind };
        match kind {
            TokenKind::Unused => {}
            TokenKind::Byte => self.bytes.push(parse_byte_token(id, text)?),
            TokenKind::Normal => self.push_ordinary(text, form),
            TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => self.bytes.extend(text),
        }
        self.kinds.push(kind);
        self.ends.push(self.bytes.len());
        Ok(())
    }

    fn push_ordinary(&mut self, text: &[u8], form: TextForm) {
        match (form, std::str::from_utf8(text)) {
            (TextForm::Metaspace, Ok(text)) => self.bytes.extend(text.replace('▁', " ").into_bytes()),
            (TextForm::ByteAlphabet, Ok(text)) => match byte_alphabet::bytes_of(text) {
                Some(bytes) => self.bytes.extend(bytes),
                // Like the reference decoder: a text outside the alphabet stands for itself.
                None => self.bytes.extend(text.as_bytes()),
            },
            (_, Err(_)) => self.bytes.extend(text),
        }
    }

    /// Number of ids, holes and padding rows included.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The kind of `id`; ids beyond the table are unused.
    pub(super) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// The bytes `id` stands for; for control and unknown tokens their literal text, for unused ids nothing.
    pub(super) fn literal_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).copied().unwrap_or(0) };
        let end = self.ends.get(id).copied().unwrap_or(start);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The id whose text in the file is `text`.
    pub(super) fn id(&self, text: &[u8]) -> Option<u32> {
        self.index.get(text).copied()
    }

    /// The id whose text is `text`, if it is ordinary text: what merging may produce.
    pub(super) fn normal_id(&self, text: &[u8]) -> Option<u32> {
        self.id(text).filter(|&id| self.kind(id) == TokenKind::Normal)
    }

    /// The id whose text is `text`, if it is a token that is matched whole: control, unknown or user-defined.
    pub(super) fn special_id(&self, text: &str) -> Option<u32> {
        self.id(text.as_bytes()).filter(|&id| self.is_matched_whole(id))
    }

    /// Whether `id` is control, unknown or user-defined.
    pub(super) fn is_matched_whole(&self, id: u32) -> bool {
        matches!(self.kind(id), TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined)
    }

    /// The id of each byte value's token, by the text that `text_of` says it has.
    ///
    /// # Errors
    /// A byte without a token.
    pub(super) fn byte_ids(
        &self,
        kind: TokenKind,
        text_of: impl Fn(u8) -> String,
    ) -> Result<Box<[u32; 256]>, TokenizerError> {
        let mut ids = Box::new([0; 256]);
        for (byte, slot) in (0..=255u8).zip(ids.iter_mut()) {
            *slot = self
                .id(text_of(byte).as_bytes())
                .filter(|&id| self.kind(id) == kind)
                .ok_or(TokenizerError::MissingByte(byte))?;
        }
        Ok(ids)
    }
}

/// Converters fill unused rows with `[PAD<id>]` under changing types; they must never match text.
fn is_padding_row(id: u32, text: &[u8], kind: TokenKind) -> bool {
    kind != TokenKind::Normal && text == format!("[PAD{id}]").as_bytes()
}

fn parse_byte_token(id: u32, text: &[u8]) -> Result<u8, TokenizerError> {
    let parsed = match text {
        [b'<', b'0', b'x', high, low, b'>'] => hex_digit(*high).zip(hex_digit(*low)),
        _ => None,
    };
    parsed
        .map(|(high, low)| high << 4 | low)
        .ok_or_else(|| TokenizerError::ByteToken { id, text: String::from_utf8_lossy(text).into_owned() })
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(tokens: &[(&str, TokenKind)], form: TextForm) -> Result<Vocab, TokenizerError> {
        Vocab::build(tokens.iter().map(|&(text, kind)| (Some(text.as_bytes()), kind)), form)
    }

    #[test]
    fn texts_become_the_bytes_they_stand_for() {
        let tokens = [
            ("Ġthe", TokenKind::Normal),
            ("<|end|>", TokenKind::Control),
            ("[PAD2]", TokenKind::UserDefined),
            ("a b", TokenKind::Normal),
        ];
        let vocab = build(&tokens, TextForm::ByteAlphabet).unwrap();
        let bytes: Vec<_> = (0..5).map(|id| vocab.literal_bytes(id)).collect();
        assert_eq!(bytes, [b" the".as_slice(), b"<|end|>", b"", b"a b", b""]);
        assert_eq!(vocab.kind(2), TokenKind::Unused);
        assert_eq!(vocab.special_id("[PAD2]"), None);

        let tokens = [("▁the", TokenKind::Normal), ("<0xAF>", TokenKind::Byte)];
        let vocab = build(&tokens, TextForm::Metaspace).unwrap();
        assert_eq!((vocab.literal_bytes(0), vocab.literal_bytes(1)), (b" the".as_slice(), &[0xAF][..]));
    }

    #[test]
    fn malformed_vocabularies_are_errors() {
        let same = [("a", TokenKind::Normal), ("a", TokenKind::Control)];
        assert!(matches!(
            build(&same, TextForm::Metaspace),
            Err(TokenizerError::DuplicateToken { first: 0, second: 1, .. })
        ));
        for text in ["<0xaf>", "<0xA>", "<0xA+>", "x", ""] {
            let error = build(&[(text, TokenKind::Byte)], TextForm::Metaspace);
            assert!(matches!(error, Err(TokenizerError::ByteToken { id: 0, .. })), "{text}");
        }
        let long = "a".repeat(MAX_TOKEN_BYTES + 1);
        let error = build(&[(&long, TokenKind::Normal)], TextForm::Metaspace);
        assert!(matches!(error, Err(TokenizerError::TokenTooLong { .. })));
        assert!(matches!(build(&[], TextForm::Metaspace), Err(TokenizerError::Length { .. })));
    }
}
