//! The o200k pattern of GPT-4o and gpt-oss, with Unicode case classes and marks as the original has them.

use super::super::unicode::{HEAD, LETTER, NUMBER, TAIL};
use super::{Place, Scanner, cl100k::digits};

/// The pattern, as gpt-oss's `tokenizer.json` writes it.
pub(super) const PATTERN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The end of the piece that begins at `first`.
pub(super) fn piece_end(scanner: Scanner<'_>, first: Place) -> usize {
    if let Some(end) = word(scanner, first) {
        return scanner.contraction(end).unwrap_or(end);
    }
    if first.is(NUMBER) {
        return digits(scanner, first, 3);
    }
    match scanner.punctuation(first) {
        Some(end) => scanner.run(end, |place| place.is_newline() || place.character == '/'),
        None => scanner.blank_or_lines(first),
    }
}

/// Both word alternatives without their contraction, in the order a backtracking engine tries them: with a lower-case
/// tail first, and each with the optional leading character taken before it is tried without.
fn word(scanner: Scanner<'_>, first: Place) -> Option<usize> {
    let may_lead = !first.is(LETTER | NUMBER) && !first.is_newline();
    let starts = [may_lead.then_some(first.end), Some(first.start)];
    let tailed = starts.into_iter().flatten().find_map(|start| head_then_tail(scanner, start));
    tailed.or_else(|| starts.into_iter().flatten().find_map(|start| head_only(scanner, start)))
}

/// `HEAD*TAIL+` at `start`. The head is greedy; when no lower-case letter follows it, it gives characters back up to
/// the last one that may also be a tail.
fn head_then_tail(scanner: Scanner<'_>, start: usize) -> Option<usize> {
    let (mut end, mut last_both) = (start, None);
    while let Some(place) = scanner.at(end).filter(|place| place.is(HEAD)) {
        end = place.end;
        if place.is(TAIL) {
            last_both = Some(end);
        }
    }
    let tail = scanner.run(end, |place| place.is(TAIL));
    if tail > end { Some(tail) } else { last_both }
}

/// `HEAD+TAIL*` at `start`.
fn head_only(scanner: Scanner<'_>, start: usize) -> Option<usize> {
    let end = scanner.run(start, |place| place.is(HEAD));
    (end > start).then(|| scanner.run(end, |place| place.is(TAIL)))
}
