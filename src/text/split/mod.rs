//! Cutting text into the pieces byte-level BPE merges within (MODELS.md §4.3).
//!
//! The published patterns are regular expressions with look-ahead; engines for those back-track, recurse or give up on
//! long runs. Each pattern is therefore a hand-written scanner that looks at every character a bounded number of times.

mod cl100k;
mod gpt2;
mod o200k;

use super::unicode::{OTHER, SPACE, class_of};

/// One family's way of cutting text into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// Qwen 2 and 2.5: like `LlamaBpe`, but every digit is its own piece.
    Qwen2,
    /// Llama 3 (the cl100k pattern): digits in groups of up to three.
    LlamaBpe,
    /// GPT-4o and gpt-oss (the o200k pattern): words also end where the case changes.
    Gpt4o,
    /// GPT-2.
    Gpt2,
}

impl Splitter {
    /// The splitter that `tokenizer.ggml.pre` names, if it is one of ours.
    pub(super) fn from_pre(name: &str) -> Option<Self> {
        Some(match name {
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "dbrx" => Self::LlamaBpe,
            "gpt-4o" | "llama4" => Self::Gpt4o,
            "gpt-2" => Self::Gpt2,
            _ => return None,
        })
    }

    /// The splitter whose published regular expression is `pattern`, as `tokenizer.json` writes it.
    pub(super) fn from_pattern(pattern: &str) -> Option<Self> {
        [(cl100k::QWEN2, Self::Qwen2), (cl100k::LLAMA, Self::LlamaBpe), (o200k::PATTERN, Self::Gpt4o)]
            .into_iter()
            .chain([(gpt2::PATTERN, Self::Gpt2)])
            .find_map(|(known, splitter)| (known == pattern).then_some(splitter))
    }

    /// The pieces of `text` in order; together they are `text`.
    pub(super) fn pieces(self, text: &str) -> impl Iterator<Item = &str> {
        let scanner = Scanner { text };
        let mut start = 0;
        std::iter::from_fn(move || {
            let first = scanner.at(start)?;
            let end = match self {
                Self::Qwen2 => cl100k::piece_end(scanner, first, 1),
                Self::LlamaBpe => cl100k::piece_end(scanner, first, 3),
                Self::Gpt4o => o200k::piece_end(scanner, first),
                Self::Gpt2 => gpt2::piece_end(scanner, first),
            };
            let piece = text.get(start..end)?;
            start = end;
            Some(piece)
        })
    }
}

/// A character of the text with its class and place.
#[derive(Clone, Copy)]
struct Place {
    character: char,
    class: u8,
    start: usize,
    end: usize,
}

impl Place {
    fn is(self, class: u8) -> bool {
        self.class & class != 0
    }

    fn is_newline(self) -> bool {
        matches!(self.character, '\r' | '\n')
    }
}

/// The text with the few questions all patterns ask of it.
#[derive(Clone, Copy)]
struct Scanner<'a> {
    text: &'a str,
}

impl Scanner<'_> {
    fn at(self, start: usize) -> Option<Place> {
        let character = self.text.get(start..)?.chars().next()?;
        Some(Place { character, class: class_of(character), start, end: start + character.len_utf8() })
    }

    /// The end of the longest stretch from `start` whose characters all satisfy `wanted`.
    fn run(self, start: usize, wanted: impl Fn(Place) -> bool) -> usize {
        let mut end = start;
        while let Some(place) = self.at(end).filter(|&place| wanted(place)) {
            end = place.end;
        }
        end
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)` at `start`; like the reference engines, the long s folds to s.
    fn contraction(self, start: usize) -> Option<usize> {
        let mut rest = self.text.get(start..)?.strip_prefix('\'')?.chars();
        let first = rest.next()?;
        let short = start + 1 + first.len_utf8();
        match (first.to_ascii_lowercase(), rest.next().map(|c| c.to_ascii_lowercase())) {
            ('s' | 't' | 'm' | 'd' | 'ſ', _) => Some(short),
            ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(short + 1),
            _ => None,
        }
    }

    /// ` ?[^\s\p{L}\p{N}]+` from `first`: punctuation, with one plain space before it if there is one.
    fn punctuation(self, first: Place) -> Option<usize> {
        let head = if first.character == ' ' { self.at(first.end)? } else { first };
        head.is(OTHER).then(|| self.run(head.end, |place| place.is(OTHER)))
    }

    /// `\s+(?!\S)|\s+` from `first`, a whitespace: the run, less its last character when a word follows it.
    fn blank(self, first: Place) -> usize {
        let (mut end, mut last) = (first.end, first.start);
        while let Some(place) = self.at(end).filter(|place| place.is(SPACE)) {
            (last, end) = (place.start, place.end);
        }
        if end == self.text.len() || last == first.start { end } else { last }
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+` from `first`, a whitespace: up to the run's last newline if it has one.
    fn blank_or_lines(self, first: Place) -> usize {
        let (mut end, mut newline) = (first.start, None);
        while let Some(place) = self.at(end).filter(|place| place.is(SPACE)) {
            end = place.end;
            if place.is_newline() {
                newline = Some(end);
            }
        }
        newline.unwrap_or_else(|| self.blank(first))
    }
}

#[cfg(test)]
mod tests;
