//! Finding special tokens in text: one pass, at each place the longest that matches (MODELS.md §4.5).
//!
//! The texts form a byte trie, so the time per character does not grow with the number of tokens.

use std::collections::HashMap;
use std::ops::Range;

/// A token that is matched whole, before the text around it is split and merged.
#[derive(Debug, Clone)]
pub(super) struct WholeToken {
    /// Token id.
    pub(super) id: u32,
    /// The literal text.
    pub(super) text: String,
    /// Whitespace before it belongs to the match and vanishes.
    pub(super) lstrip: bool,
    /// Whitespace after it belongs to the match and vanishes.
    pub(super) rstrip: bool,
    /// Matches only where no word character touches it.
    pub(super) single_word: bool,
}

impl WholeToken {
    /// A token that takes nothing with it.
    pub(super) fn plain(id: u32, text: &str) -> Self {
        Self { id, text: text.to_owned(), lstrip: false, rstrip: false, single_word: false }
    }
}

/// A stretch of the text: to be split and merged, or one whole token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Byte range of ordinary text, never empty.
    Text(Range<usize>),
    /// A whole token's id.
    Token(u32),
}

/// A set of whole tokens.
#[derive(Debug, Default)]
pub(super) struct SpecialMatcher {
    tokens: Vec<WholeToken>,
    /// Trie edges: (node, byte) to node; node 0 is the root.
    edges: HashMap<(u32, u8), u32>,
    /// For each node the token that ends there.
    token_at: Vec<Option<u32>>,
    /// Whether any token starts with the byte; spares the hash look-up at nearly every place.
    starts: Vec<bool>,
}

impl SpecialMatcher {
    /// A matcher for `tokens`; empty texts never match.
    pub(super) fn build(tokens: impl IntoIterator<Item = WholeToken>) -> Self {
        let mut matcher = Self { token_at: vec![None], starts: vec![false; 256], ..Self::default() };
        for token in tokens {
            let Some(&first) = token.text.as_bytes().first() else { continue };
            matcher.starts[usize::from(first)] = true;
            let mut node = 0;
            for &byte in token.text.as_bytes() {
                let next = matcher.token_at.len() as u32;
                node = *matcher.edges.entry((node, byte)).or_insert(next);
                if node == next {
                    matcher.token_at.push(None);
                }
            }
            matcher.token_at[node as usize] = Some(matcher.tokens.len() as u32);
            matcher.tokens.push(token);
        }
        matcher
    }

    /// The tokens, in no particular order.
    pub(super) fn tokens(&self) -> &[WholeToken] {
        &self.tokens
    }

    /// The longest token that starts at byte `start` of `text`, with the end of its text.
    fn longest_at(&self, text: &str, start: usize) -> Option<(&WholeToken, usize)> {
        let mut node = 0;
        let mut found = None;
        for (end, &byte) in (start + 1..).zip(text.as_bytes().get(start..)?) {
            let Some(&next) = self.edges.get(&(node, byte)) else { break };
            node = next;
            if let Some(token) = self.token_at[node as usize].map(|index| &self.tokens[index as usize])
                && (!token.single_word || stands_alone(text, start..end))
            {
                found = Some((token, end));
            }
        }
        found
    }

    /// Cuts `text` into ordinary stretches and whole tokens, in order.
    pub(super) fn fragments(&self, text: &str) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        let (mut text_start, mut at) = (0, 0);
        while let Some(&byte) = text.as_bytes().get(at) {
            let found = if self.starts[usize::from(byte)] { self.longest_at(text, at) } else { None };
            let Some((token, mut end)) = found else {
                at += 1;
                continue;
            };
            let mut before = text.get(text_start..at).unwrap_or_default();
            if token.lstrip {
                before = before.trim_end();
            }
            if !before.is_empty() {
                fragments.push(Fragment::Text(text_start..text_start + before.len()));
            }
            if token.rstrip {
                let after = text.get(end..).unwrap_or_default();
                end += after.len() - after.trim_start().len();
            }
            fragments.push(Fragment::Token(token.id));
            (text_start, at) = (end, end);
        }
        if text_start < text.len() {
            fragments.push(Fragment::Text(text_start..text.len()));
        }
        fragments
    }
}

/// Whether no word character touches `range` from outside.
fn stands_alone(text: &str, range: Range<usize>) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let before = text.get(..range.start).and_then(|before| before.chars().next_back());
    let after = text.get(range.end..).and_then(|after| after.chars().next());
    !before.is_some_and(is_word) && !after.is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Fragment::{Text, Token};

    fn matcher(texts: &[&str]) -> SpecialMatcher {
        SpecialMatcher::build((0..).zip(texts).map(|(id, text)| WholeToken::plain(id, text)))
    }

    #[test]
    fn the_longest_token_wins_at_each_place() {
        let m = matcher(&["<a>", "<a><b>", "  ", "    ", "é"]);
        assert_eq!(m.fragments("x<a><b>y"), [Text(0..1), Token(1), Text(7..8)]);
        assert_eq!(m.fragments("<a><a>"), [Token(0), Token(0)]);
        assert_eq!(m.fragments("<a><b"), [Token(0), Text(3..5)]);
        assert_eq!(m.fragments("       "), [Token(3), Token(2), Text(6..7)]);
        assert_eq!(m.fragments("éa"), [Token(4), Text(2..3)]);
        assert_eq!(m.fragments(""), []);
    }

    #[test]
    fn strips_take_the_whitespace_between_matches_only() {
        let token = WholeToken { lstrip: true, rstrip: true, ..WholeToken::plain(7, "<s>") };
        let m = SpecialMatcher::build([token]);
        assert_eq!(
            m.fragments(" a \n<s>\t\u{3000}b <s> <s>"),
            [Text(0..2), Token(7), Text(11..12), Token(7), Token(7)]
        );
    }

    #[test]
    fn single_words_do_not_match_inside_words() {
        let token = WholeToken { single_word: true, ..WholeToken::plain(7, "ab") };
        let m = SpecialMatcher::build([token]);
        assert_eq!(m.fragments("ab cab ab_ (ab)"), [Token(7), Text(2..12), Token(7), Text(14..15)]);
    }

    #[test]
    fn a_thousand_tokens_cost_no_more_than_one() {
        let texts: Vec<String> = (0..2000).map(|i| format!("<|reserved_special_token_{i}|>")).collect();
        let m = SpecialMatcher::build((0..).zip(&texts).map(|(id, text)| WholeToken::plain(id, text)));
        let text = "<|reserved_special_token_".repeat(40_000);
        assert_eq!(m.fragments(&text), [Text(0..text.len())]);
        assert_eq!(m.fragments(&texts.concat()).len(), 2000);
    }
}
