//! Synthetic vocabularies of the published sizes that really tokenise: bytes, then letter groups built by merges, then
//! the special tokens at their published ids, then unused rows.

/// A vocabulary as GGUF stores it.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    pub(super) model: &'static str,
    pub(super) pre: &'static str,
    pub(super) tokens: Vec<String>,
    pub(super) types: Vec<i32>,
    pub(super) merges: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: u32,
    pub(super) padding: u32,
    pub(super) add_bos: bool,
    pub(super) chat_template: &'static str,
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const PHI3: &str = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|assistant|>\n{% endif %}";
const LLAMA3: &str = "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}\
                      <|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant\
                      <|end_header_id|>\n\n{% endif %}";
const HARMONY: &str = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}\
                       {% if add_generation_prompt %}<|start|>assistant{% endif %}";

impl Vocabulary {
    pub(super) fn qwen2(size: usize) -> Self {
        let specials = [
            ("<|endoftext|>", CONTROL),
            ("<|im_start|>", CONTROL),
            ("<|im_end|>", CONTROL),
            ("<tool_call>", USER_DEFINED),
            ("</tool_call>", USER_DEFINED),
        ];
        // Published: 151,643 ordinary tokens, then the specials.
        let first = 151_643.min(size - 64);
        let mut v = Self::byte_bpe("qwen2", size, first, &specials, CHATML);
        (v.eos, v.padding) = (first as u32 + 2, first as u32);
        v
    }

    pub(super) fn gpt_oss(size: usize) -> Self {
        let specials = [
            ("<|startoftext|>", CONTROL),
            ("<|endoftext|>", CONTROL),
            ("<|reserved_200000|>", CONTROL),
            ("<|reserved_200001|>", CONTROL),
            ("<|return|>", CONTROL),
            ("<|constrain|>", CONTROL),
            ("<|reserved_200004|>", CONTROL),
            ("<|channel|>", CONTROL),
            ("<|start|>", CONTROL),
            ("<|end|>", CONTROL),
            ("<|message|>", CONTROL),
            ("<|reserved_200009|>", CONTROL),
            ("<|reserved_200010|>", CONTROL),
            ("<|reserved_200011|>", CONTROL),
            ("<|call|>", CONTROL),
        ];
        let first = 199_998.min(size - 64);
        let mut v = Self::byte_bpe("gpt-4o", size, first, &specials, HARMONY);
        (v.bos, v.eos, v.padding) = (Some(first as u32), first as u32 + 4, first as u32 + 1);
        v
    }

    pub(super) fn llama3(size: usize) -> Self {
        let specials = [
            ("<|begin_of_text|>", CONTROL),
            ("<|end_of_text|>", CONTROL),
            ("<|start_header_id|>", CONTROL),
            ("<|end_header_id|>", CONTROL),
            ("<|eot_id|>", CONTROL),
        ];
        let first = size - 64;
        let mut v = Self::byte_bpe("llama-bpe", size, first, &specials, LLAMA3);
        (v.bos, v.eos, v.add_bos) = (Some(first as u32), first as u32 + 4, true);
        v.padding = v.eos;
        v
    }

    pub(super) fn gpt2(size: usize) -> Self {
        let mut v = Self::byte_bpe("gpt-2", size, size - 1, &[("<|endoftext|>", CONTROL)], "");
        let end = size as u32 - 1;
        (v.bos, v.eos, v.padding) = (Some(end), end, end);
        v
    }

    /// SentencePiece-style: unknown, begin, end, 256 bytes, pieces with falling scores, specials from 32,000.
    pub(super) fn phi3(size: usize) -> Self {
        let specials =
            ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>"]
                .into_iter()
                .chain([
                    "<|placeholder4|>",
                    "<|system|>",
                    "<|end|>",
                    "<|placeholder5|>",
                    "<|placeholder6|>",
                    "<|user|>",
                ]);
        let first = 32_000.min(size - 64);
        let mut v = Self::empty("llama", "default", PHI3);
        v.push("<unk>", UNKNOWN);
        v.push("<s>", CONTROL);
        v.push("</s>", CONTROL);
        for byte in 0..=255_u8 {
            v.push(&format!("<0x{byte:02X}>"), BYTE);
        }
        let letters = Letters::new('\u{2581}', first - v.tokens.len());
        for (token, _) in std::iter::once(("\u{2581}".to_owned(), None)).chain(ascii_pieces()).chain(letters)
        {
            if v.tokens.len() < first {
                v.push(&token, NORMAL);
            }
        }
        for special in specials {
            v.push(special, CONTROL);
        }
        v.fill(size);
        v.scores = (0..v.tokens.len()).map(|id| if id < 259 { 0.0 } else { -(id as f32 - 259.0) }).collect();
        (v.bos, v.eos, v.padding, v.add_bos) = (Some(1), first as u32, first as u32, true);
        v
    }

    fn byte_bpe(
        pre: &'static str,
        size: usize,
        ordinary: usize,
        specials: &[(&str, i32)],
        chat_template: &'static str,
    ) -> Self {
        let mut v = Self::empty("gpt2", pre, chat_template);
        for byte in 0..=255_u8 {
            v.push(&byte_char(byte).to_string(), NORMAL);
        }
        for (token, merge) in Letters::new(byte_char(b' '), ordinary - 256) {
            v.push(&token, NORMAL);
            v.merges.extend(merge.map(|(left, right)| format!("{left} {right}")));
        }
        for (special, kind) in specials {
            v.push(special, *kind);
        }
        v.fill(size);
        v
    }

    fn empty(model: &'static str, pre: &'static str, chat_template: &'static str) -> Self {
        Self {
            model,
            pre,
            tokens: vec![],
            types: vec![],
            merges: vec![],
            scores: vec![],
            bos: None,
            eos: 0,
            padding: 0,
            add_bos: false,
            chat_template,
        }
    }

    fn push(&mut self, token: &str, kind: i32) {
        self.tokens.push(token.to_owned());
        self.types.push(kind);
    }

    fn fill(&mut self, size: usize) {
        for id in self.tokens.len()..size {
            self.push(&format!("[PAD{id}]"), UNUSED);
        }
    }
}

/// Printable ASCII pieces that are no letters.
fn ascii_pieces() -> impl Iterator<Item = (String, Option<(String, char)>)> {
    (b'!'..=b'~').filter(|byte| !byte.is_ascii_lowercase()).map(|byte| ((byte as char).to_string(), None))
}

/// The visible character that stands for a byte in byte-level vocabularies: printable Latin-1 stands for itself, the
/// other bytes follow from U+0100 in order.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return byte as char;
    }
    let rank = (0..byte).filter(|b| !visible(*b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or('\u{fffd}')
}

/// Groups of lower-case letters in order of length, with and without the space mark, and the merge that makes each.
struct Letters {
    space: char,
    left: usize,
    /// Previous and current length's groups: every new group is an old one and a letter.
    shorter: Vec<String>,
    current: Vec<String>,
    at: usize,
}

impl Letters {
    fn new(space: char, count: usize) -> Self {
        let mut shorter = vec![space.to_string()];
        shorter.extend(('a'..='z').map(String::from));
        Self { space, left: count, shorter, current: vec![], at: 0 }
    }
}

impl Iterator for Letters {
    type Item = (String, Option<(String, char)>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        if self.at == self.shorter.len() * 26 {
            self.shorter = std::mem::take(&mut self.current);
            self.at = 0;
        }
        let head = self.shorter.get(self.at / 26)?.clone();
        let letter = char::from(b'a' + (self.at % 26) as u8);
        let token = format!("{head}{letter}");
        self.at += 1;
        self.left -= 1;
        debug_assert!(token.chars().skip(1).all(|c| c != self.space));
        self.current.push(token.clone());
        Some((token, Some((head, letter))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn vocabularies_have_the_published_sizes_and_ids_without_duplicates() {
        for (vocabulary, size, eos) in [
            (Vocabulary::qwen2(151_936), 151_936, (151_645, "<|im_end|>")),
            (Vocabulary::gpt_oss(201_088), 201_088, (200_002, "<|return|>")),
            (Vocabulary::phi3(32_064), 32_064, (32_000, "<|endoftext|>")),
            (Vocabulary::gpt2(1024), 1024, (1023, "<|endoftext|>")),
            (Vocabulary::llama3(1024), 1024, (964, "<|eot_id|>")),
        ] {
            assert_eq!(vocabulary.tokens.len(), size);
            assert_eq!(vocabulary.types.len(), size);
            assert_eq!(vocabulary.eos, eos.0);
            assert_eq!(vocabulary.tokens[eos.0 as usize], eos.1);
            let distinct: HashSet<&String> = vocabulary.tokens.iter().collect();
            assert_eq!(distinct.len(), size);
            for merge in &vocabulary.merges {
                let joined = merge.replacen(' ', "", 1);
                assert!(distinct.contains(&joined), "{merge} makes no token");
            }
        }
        assert_eq!(Vocabulary::gpt_oss(201_088).tokens[200_012], "<|call|>");
        assert_eq!(Vocabulary::phi3(32_064).tokens[32_007], "<|end|>");
    }
}
