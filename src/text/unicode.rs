//! Character classes of the splitters, one byte of flags per code point in a two-stage table.
//!
//! The table is computed once from the Unicode general categories; looking a character up is two loads, which keeps
//! the splitters fast without a regular expression engine.

use std::sync::OnceLock;

use unicode_general_category::{GeneralCategory as Category, get_general_category};

/// `\p{L}`.
pub(super) const LETTER: u8 = 1;
/// `\p{N}`.
pub(super) const NUMBER: u8 = 2;
/// `\s`, Unicode White_Space.
pub(super) const SPACE: u8 = 4;
/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`: what may begin a word in the gpt-4o pattern.
pub(super) const HEAD: u8 = 8;
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: what may end a word in the gpt-4o pattern.
pub(super) const TAIL: u8 = 16;
/// `[^\s\p{L}\p{N}]`: punctuation, symbols, marks, controls, unassigned.
pub(super) const OTHER: u8 = 32;

const BLOCK: usize = 256;
const BLOCKS: usize = 0x11_0000 / BLOCK;

struct Table {
    /// Which distinct block describes each run of 256 code points.
    block_of: Vec<u16>,
    flags: Vec<u8>,
}

/// The class flags of `character`.
pub(super) fn class_of(character: char) -> u8 {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let table = TABLE.get_or_init(Table::compute);
    let code = character as usize;
    let block = table.block_of.get(code / BLOCK).copied().unwrap_or(0);
    table.flags.get(usize::from(block) * BLOCK + code % BLOCK).copied().unwrap_or(OTHER)
}

impl Table {
    fn compute() -> Self {
        let mut distinct = std::collections::HashMap::new();
        let mut table = Self { block_of: Vec::with_capacity(BLOCKS), flags: Vec::new() };
        for block in 0..BLOCKS {
            let flags: Vec<u8> = (0..BLOCK)
                .map(|i| char::from_u32((block * BLOCK + i) as u32).map_or(OTHER, compute_class))
                .collect();
            let next = distinct.len() as u16;
            let index = *distinct.entry(flags).or_insert_with_key(|flags| {
                table.flags.extend_from_slice(flags);
                next
            });
            table.block_of.push(index);
        }
        table
    }
}

fn compute_class(character: char) -> u8 {
    if character.is_whitespace() {
        return SPACE;
    }
    match get_general_category(character) {
        Category::UppercaseLetter | Category::TitlecaseLetter => LETTER | HEAD,
        Category::LowercaseLetter => LETTER | TAIL,
        Category::ModifierLetter | Category::OtherLetter => LETTER | HEAD | TAIL,
        Category::NonspacingMark | Category::SpacingMark | Category::EnclosingMark => OTHER | HEAD | TAIL,
        Category::DecimalNumber | Category::LetterNumber | Category::OtherNumber => NUMBER,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_its_source_for_every_character() {
        for code in 0..=0x10_FFFFu32 {
            if let Some(c) = char::from_u32(code) {
                assert_eq!(class_of(c), compute_class(c), "U+{code:04X}");
            }
        }
    }

    #[test]
    fn classes_of_known_characters() {
        for (c, class) in [
            ('A', LETTER | HEAD),
            ('a', LETTER | TAIL),
            ('中', LETTER | HEAD | TAIL),
            ('\u{301}', OTHER | HEAD | TAIL),
            ('7', NUMBER),
            ('Ⅷ', NUMBER),
            ('\u{3000}', SPACE),
            ('\u{85}', SPACE),
            ('^', OTHER),
            ('😀', OTHER),
        ] {
            assert_eq!(class_of(c), class, "{c:?}");
        }
    }
}
