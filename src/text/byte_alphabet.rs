//! The printable alphabet byte-level BPE files are written in: one character per byte (MODELS.md §4.2).
//!
//! Bytes 0x21–0x7E, 0xA1–0xAC and 0xAE–0xFF stand for themselves; the other 68 follow from U+0100 in
//! increasing order, so a space is written `Ġ` and a newline `Ċ`.

/// The character that byte `byte` is written as.
pub(super) fn char_of(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
        0x00..=0x20 => 0x100 + u32::from(byte),
        0x7F..=0xA0 => 0x121 + u32::from(byte - 0x7F),
        0xAD => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that `character` stands for, if it is of the alphabet.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes that an alphabet-written text stands for; `None` if a character is not of the alphabet.
pub(super) fn bytes_of(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=255u8 {
            let c = char_of(byte);
            assert!(seen.insert(c), "two bytes share {c}");
            assert_eq!(byte_of(c), Some(byte));
        }
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(b'\t'), char_of(b'a')), ('Ġ', 'Ċ', 'ĉ', 'a'));
        assert_eq!(byte_of(' '), None);
        assert_eq!(bytes_of("Ġthe"), Some(b" the".to_vec()));
    }
}
