//! GPT-2's pattern: how its text is cut before pieces are merged.

use super::super::unicode::{LETTER, NUMBER};
use super::{Place, Scanner};

/// The pattern, as OpenAI published it.
pub(super) const PATTERN: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The end of the piece that begins at `first`.
pub(super) fn piece_end(scanner: Scanner<'_>, first: Place) -> usize {
    if let Some(end) = contraction(scanner, first.start) {
        return end;
    }
    let head = if first.character == ' ' { scanner.at(first.end).unwrap_or(first) } else { first };
    for class in [LETTER, NUMBER] {
        if head.is(class) {
            return scanner.run(head.end, |place| place.is(class));
        }
    }
    scanner.punctuation(first).unwrap_or_else(|| scanner.blank(first))
}

/// Lower case only, unlike the later patterns.
fn contraction(scanner: Scanner<'_>, start: usize) -> Option<usize> {
    let rest = scanner.text.get(start..)?;
    ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"]
        .into_iter()
        .find(|suffix| rest.starts_with(suffix))
        .map(|suffix| start + suffix.len())
}
