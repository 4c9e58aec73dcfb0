//! Turning generated ids into text as they arrive (MODELS.md §4.8).
//!
//! Whatever the ids and however they are cut into events, the pieces handed out are whole characters, and together
//! they are exactly the decode of all ids at once, cut before the first stop string.

use std::sync::Arc;

use super::Tokenizer;

/// How generated ids become text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Write control and unknown tokens as their literal text instead of leaving them out.
    pub show_special: bool,
    /// The ids continue a text: keep the space that SentencePiece-style models put before a word. Without it one
    /// leading space is dropped, as at the beginning of a text.
    pub continues_text: bool,
    /// Strings that end the text; they are not part of it. Empty strings are ignored.
    pub stops: Vec<String>,
}

/// Decodes one sequence's ids one at a time.
#[derive(Debug)]
pub struct IncrementalDecoder {
    tokenizer: Arc<Tokenizer>,
    show_special: bool,
    /// The next bytes are the first of a text whose leading space is dropped.
    drops_space: bool,
    /// Bytes of a character that is not complete yet; at most three.
    partial: Vec<u8>,
    /// Text that may turn out to begin a stop string.
    held: String,
    stops: Vec<StopString>,
    stopped_by: Option<usize>,
}

impl IncrementalDecoder {
    /// A decoder for one generated sequence.
    pub fn new(tokenizer: Arc<Tokenizer>, options: &DecodeOptions) -> Self {
        Self {
            drops_space: tokenizer.has_space_prefix() && !options.continues_text,
            tokenizer,
            show_special: options.show_special,
            partial: Vec::new(),
            held: String::new(),
            stops: options.stops.iter().map(|text| StopString::new(text)).collect(),
            stopped_by: None,
        }
    }

    /// Takes the next id and returns the text that is now certain; often empty. After a stop string has been
    /// completed it returns nothing more.
    pub fn push(&mut self, id: u32) -> String {
        let tokenizer = Arc::clone(&self.tokenizer);
        let mut bytes =
            if self.show_special { tokenizer.literal_bytes(id) } else { tokenizer.token_bytes(id) };
        if self.drops_space && !bytes.is_empty() {
            self.drops_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.partial.extend_from_slice(bytes);
        let text = take_characters(&mut self.partial, false);
        self.release(&text)
    }

    /// Ends the sequence and returns what was held back. An incomplete character becomes one U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = take_characters(&mut self.partial, true);
        let mut released = self.release(&text);
        released.push_str(&std::mem::take(&mut self.held));
        released
    }

    /// The index in `DecodeOptions::stops` of the stop string that ended the text.
    pub fn stopped_by(&self) -> Option<usize> {
        self.stopped_by
    }

    /// Adds decoded text and returns the part of all held text that cannot belong to a stop string.
    fn release(&mut self, text: &str) -> String {
        if self.stopped_by.is_some() {
            return String::new();
        }
        for (offset, byte) in text.bytes().enumerate() {
            let mut completed: Option<(usize, usize)> = None;
            for (index, stop) in self.stops.iter_mut().enumerate() {
                // Of several that end here the longest begins first.
                if stop.advance(byte) && completed.is_none_or(|(_, len)| len < stop.text.len()) {
                    completed = Some((index, stop.text.len()));
                }
            }
            if let Some((index, len)) = completed {
                self.stopped_by = Some(index);
                let mut released = std::mem::take(&mut self.held);
                released.push_str(text);
                let tail = text.len() - (offset + 1);
                released.truncate(released.len().saturating_sub(tail + len));
                return released;
            }
        }
        self.held.push_str(text);
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len().saturating_sub(keep));
        std::mem::replace(&mut self.held, kept)
    }
}

/// A stop string with the state of a Knuth–Morris–Pratt search for it: constant time per byte, whatever the text.
#[derive(Debug)]
struct StopString {
    text: Vec<u8>,
    /// For each prefix, the length of its longest proper suffix that is also a prefix.
    fallback: Vec<usize>,
    /// How many bytes of `text` the decoded text ends with.
    matched: usize,
}

impl StopString {
    fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut fallback = vec![0; text.len()];
        let mut len = 0;
        for at in 1..text.len() {
            while len > 0 && text[at] != text[len] {
                len = fallback[len - 1];
            }
            len += usize::from(text[at] == text[len]);
            fallback[at] = len;
        }
        Self { text, fallback, matched: 0 }
    }

    /// Takes one byte of decoded text; `true` when it completes the stop string.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        if self.text.get(self.matched) != Some(&byte) {
            return false;
        }
        self.matched += 1;
        self.matched == self.text.len()
    }
}

/// Takes the complete characters off the front of `bytes`, with one U+FFFD for each maximal invalid part, and leaves
/// an incomplete character in place unless this is the end.
fn take_characters(bytes: &mut Vec<u8>, at_end: bool) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let Err(error) = std::str::from_utf8(rest) else {
            text.push_str(&String::from_utf8_lossy(rest));
            rest = &[];
            break;
        };
        let (valid, invalid) = rest.split_at(error.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        rest = invalid;
        let Some(skip) = error.error_len().or(at_end.then_some(invalid.len())) else { break };
        text.push(char::REPLACEMENT_CHARACTER);
        rest = rest.get(skip..).unwrap_or_default();
    }
    *bytes = rest.to_vec();
    text
}

#[cfg(test)]
mod tests;
