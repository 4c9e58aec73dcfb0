//! The cl100k pattern: Llama 3 as published, Qwen 2 with single digits.

use super::super::unicode::{LETTER, NUMBER};
use super::{Place, Scanner};

/// Qwen 2's pattern, as its `tokenizer.json` writes it.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's pattern.
pub(super) const LLAMA: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The end of the piece that begins at `first`; numbers are cut after `max_digits` characters.
pub(super) fn piece_end(scanner: Scanner<'_>, first: Place, max_digits: usize) -> usize {
    if let Some(end) = scanner.contraction(first.start) {
        return end;
    }
    if let Some(end) = word(scanner, first) {
        return end;
    }
    if first.is(NUMBER) {
        return digits(scanner, first, max_digits);
    }
    match scanner.punctuation(first) {
        Some(end) => scanner.run(end, Place::is_newline),
        None => scanner.blank_or_lines(first),
    }
}

/// `[^\r\n\p{L}\p{N}]?\p{L}+`.
fn word(scanner: Scanner<'_>, first: Place) -> Option<usize> {
    let head = if first.is(LETTER) {
        first
    } else if first.is(NUMBER) || first.is_newline() {
        return None;
    } else {
        scanner.at(first.end).filter(|place| place.is(LETTER))?
    };
    Some(scanner.run(head.end, |place| place.is(LETTER)))
}

/// `\p{N}{1,max}` from `first`, a number.
pub(super) fn digits(scanner: Scanner<'_>, first: Place, max: usize) -> usize {
    let mut end = first.end;
    for _ in 1..max {
        match scanner.at(end) {
            Some(place) if place.is(NUMBER) => end = place.end,
            _ => break,
        }
    }
    end
}
