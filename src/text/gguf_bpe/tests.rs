//! Metadata that breaks a rule is refused with the rule's name.

use proptest::prelude::*;

use super::*;
use crate::text::SpecialParsing::{Parse, Plain};

/// A byte-level vocabulary: 256 byte tokens, then `more`.
fn byte_tokens(more: &[&str]) -> Vec<String> {
    let bytes = (0..=255u8).map(|byte| super::super::byte_alphabet::char_of(byte).to_string());
    bytes.chain(more.iter().map(|text| (*text).to_owned())).collect()
}

fn sentence_tokens(more: &[&str]) -> Vec<String> {
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    bytes.chain(more.iter().map(|text| (*text).to_owned())).collect()
}

fn byte_source(tokens: &[String]) -> VocabSource<'_> {
    VocabSource {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: tokens.iter().map(String::as_bytes).collect(),
        merges: Some(vec!["a b", "ab c"]),
        ..VocabSource::default()
    }
}

fn sentence_source(tokens: &[String]) -> VocabSource<'_> {
    let ordinary = tokens.len() - 256;
    VocabSource {
        model: "llama",
        tokens: tokens.iter().map(String::as_bytes).collect(),
        token_types: Some([vec![6; 256], vec![1; ordinary]].concat()),
        scores: Some((0..tokens.len()).map(|id| -(id as f32)).collect()),
        ..VocabSource::default()
    }
}

fn error(source: &VocabSource<'_>) -> String {
    Tokenizer::from_gguf(source).unwrap_err().to_string()
}

#[test]
fn a_small_byte_vocabulary_works() {
    let tokens = byte_tokens(&["ab", "abc"]);
    let tokenizer = Tokenizer::from_gguf(&byte_source(&tokens)).unwrap();
    assert_eq!(tokenizer.encode("abcab", Plain), [257, 256]);
    assert_eq!(tokenizer.decode(&[257, 256, 999]), "abcab");
    assert!(!tokenizer.add_bos());
}

#[test]
fn families_that_are_not_implemented_are_named() {
    let tokens = byte_tokens(&["ab", "abc"]);
    let source = byte_source(&tokens);
    assert!(error(&VocabSource { model: "bert", ..source.clone() }).contains("\"bert\""));
    assert!(error(&VocabSource { pre: Some("viking"), ..source.clone() }).contains("\"viking\""));
    assert!(error(&VocabSource { pre: None, ..source }).contains("tokenizer.ggml.pre is missing"));
}

#[test]
fn lists_must_exist_and_fit() {
    let tokens = byte_tokens(&["ab", "abc"]);
    let source = byte_source(&tokens);
    assert!(error(&VocabSource { merges: None, ..source.clone() }).contains("merges is missing"));
    assert!(error(&VocabSource { tokens: Vec::new(), ..source.clone() }).contains("0 entries"));
    let short = VocabSource { token_types: Some(vec![1; 257]), ..source.clone() };
    assert!(error(&short).contains("257 entries, expected at least 258"));
    let odd = VocabSource { token_types: Some([vec![1; 257], vec![7]].concat()), ..source };
    assert!(error(&odd).contains("token 257 has type 7"));

    let tokens = sentence_tokens(&["a"]);
    let source = sentence_source(&tokens);
    assert!(error(&VocabSource { scores: None, ..source.clone() }).contains("scores is missing"));
    assert!(error(&VocabSource { scores: Some(vec![0.0; 3]), ..source.clone() }).contains("3 entries"));
    let infinite = VocabSource { scores: Some(vec![f32::INFINITY; 257]), ..source };
    assert!(error(&infinite).contains("finite"));
}

#[test]
fn merges_must_be_two_tokens_that_make_a_token() {
    let tokens = byte_tokens(&["ab", "abc"]);
    for (merge, expected) in [
        ("", "two texts"),
        ("ab", "two texts"),
        ("a ", "two texts"),
        (" b", "two texts"),
        ("a  b", "a half is not a token"),
        ("abab a", "a half is not a token"),
        ("b a", "not a token"),
        ("é a", "not a token"),
    ] {
        let message = error(&VocabSource { merges: Some(vec!["a b", merge]), ..byte_source(&tokens) });
        assert!(message.starts_with("merge 1 ") && message.contains(expected), "{merge:?}: {message}");
    }
    let types = [vec![1; 257], vec![3]].concat();
    let message = error(&VocabSource { token_types: Some(types), ..byte_source(&tokens) });
    assert!(message.contains("special token from ordinary text"), "{message}");
}

#[test]
fn every_byte_needs_a_token() {
    let mut tokens = byte_tokens(&["ab", "abc"]);
    tokens[usize::from(b'x')] = "xx".to_owned();
    assert!(error(&byte_source(&tokens)).contains("byte 0x78"));
    let mut tokens = sentence_tokens(&["a"]);
    tokens[0x78] = "x".to_owned();
    assert!(error(&sentence_source(&tokens)).contains("byte token 120"));
    let mut types = vec![6; 256];
    types[0x78] = 1;
    let source = VocabSource { token_types: Some([types, vec![1]].concat()), ..sentence_source(&tokens) };
    assert!(error(&source).contains("byte 0x78"));
}

#[test]
fn special_ids_must_be_inside_the_vocabulary() {
    let tokens = byte_tokens(&["ab", "abc"]);
    for (ids, key) in [
        (SpecialIds { bos: Some(258), ..SpecialIds::default() }, "bos"),
        (SpecialIds { eos: Some(u32::MAX), ..SpecialIds::default() }, "eos"),
        (SpecialIds { eot: Some(258), ..SpecialIds::default() }, "eot"),
        (SpecialIds { eom: Some(258), ..SpecialIds::default() }, "eom"),
        (SpecialIds { unknown: Some(258), ..SpecialIds::default() }, "unknown"),
        (SpecialIds { padding: Some(258), ..SpecialIds::default() }, "padding"),
    ] {
        let message = error(&VocabSource { ids, ..byte_source(&tokens) });
        assert!(message.contains(&format!("{key}_token_id")) && message.contains("258"), "{message}");
    }
}

#[test]
fn tokens_of_any_bytes_are_safe() {
    let tokens = byte_tokens(&["ab", "abc"]);
    let mut source = byte_source(&tokens);
    source.tokens.extend([&b"\xFF\xFE"[..], b"", b"\xF0\x9F"]);
    source.token_types = Some([vec![1; 258], vec![3, 4, 4]].concat());
    let tokenizer = Tokenizer::from_gguf(&source).unwrap();
    assert_eq!(tokenizer.encode("ab😀", Parse).first(), Some(&256));
    assert_eq!(tokenizer.decode(&[258, 259, 260]), "\u{FFFD}");
}

#[test]
fn special_text_is_plain_unless_parsing_is_asked_for() {
    let tokens = byte_tokens(&["ab", "abc", "<|end|>", "<t>", "[PAD260]"]);
    let mut source = byte_source(&tokens);
    source.token_types = Some([vec![1; 258], vec![3, 4, 4]].concat());
    let tokenizer = Tokenizer::from_gguf(&source).unwrap();
    assert_eq!(tokenizer.encode("ab<|end|>ab<t>", Parse), [256, 258, 256, 259]);
    let plain = tokenizer.encode("ab<|end|>ab<t>", Plain);
    assert_eq!((plain.len(), plain.last()), (2 + "<|end|>".len() + 1, Some(&259)));
    assert!(!plain.contains(&258));
    // A padding row matches no text, whatever its type.
    assert_eq!(tokenizer.encode("[PAD260]", Parse).len(), 8);
    assert_eq!(tokenizer.decode(&[258, 259, 260]), "<t>");
    assert_eq!((tokenizer.special_to_id("<|end|>"), tokenizer.special_to_id("ab")), (Some(258), None));
    assert!(tokenizer.is_special(258) && !tokenizer.is_special(259));
}

#[test]
fn bos_is_added_as_the_family_or_the_file_says() {
    let tokens = sentence_tokens(&["<s>", "▁", "a", "▁a"]);
    let mut source = sentence_source(&tokens);
    source.token_types = Some([vec![6; 256], vec![3, 1, 1, 1]].concat());
    source.ids.bos = Some(256);
    let tokenizer = Tokenizer::from_gguf(&source).unwrap();
    assert_eq!(tokenizer.encode_prompt("a", Plain), [256, 259]);
    assert_eq!(tokenizer.encode_prompt("", Plain), [256]);
    assert_eq!(tokenizer.encode_prompt("<s>a", Parse), [256, 259]);
    source.ids.add_bos = Some(false);
    source.add_space_prefix = Some(false);
    let tokenizer = Tokenizer::from_gguf(&source).unwrap();
    assert_eq!(tokenizer.encode_prompt("a", Plain), [258]);
    assert_eq!(tokenizer.decode(&[259]), " a");

    let tokens = byte_tokens(&["ab", "abc"]);
    let mut source = VocabSource { pre: Some("llama-bpe"), ..byte_source(&tokens) };
    source.ids.bos = Some(0);
    let tokenizer = Tokenizer::from_gguf(&source).unwrap();
    assert_eq!(tokenizer.encode_prompt("abc", Plain), [0, 257]);
}

#[test]
fn llama3_takes_a_whole_piece_that_is_a_token() {
    let tokens = byte_tokens(&["ab", "abc", "xyz"]);
    let merges = Some(vec!["a b"]);
    let source = VocabSource { pre: Some("llama-bpe"), merges: merges.clone(), ..byte_source(&tokens) };
    assert_eq!(Tokenizer::from_gguf(&source).unwrap().encode("xyz xyz", Plain)[..2], [258, 32]);
    let source = VocabSource { merges, ..byte_source(&tokens) };
    assert_eq!(Tokenizer::from_gguf(&source).unwrap().encode("xyz", Plain).len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_vocabulary_is_refused_or_works(
        sentence in any::<bool>(),
        more in prop::collection::vec(("[ab▁é<>]{0,4}", prop_oneof![6 => Just(1), 4 => 2..6i32]), 0..20),
        merges in prop::collection::vec(("[ab▁]{1,2}", "[ab▁]{1,2}"), 0..6),
        bos in prop::option::of(0..300u32),
        text in "[ab▁é<> ]{0,30}",
    ) {
        let more: std::collections::BTreeMap<String, i32> = more.into_iter().collect();
        let texts: Vec<&str> = more.keys().map(String::as_str).collect();
        let mut tokens = if sentence { sentence_tokens(&texts) } else { byte_tokens(&texts) };
        if !sentence {
            // A byte-level vocabulary has `a`, `b`, … among its bytes already.
            tokens.truncate(256);
            tokens.extend(texts.iter().filter(|text| text.chars().count() != 1).map(|t| (*t).to_owned()));
        }
        let lines: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        let sound = |line: &&String| tokens.contains(&line.replacen(' ', "", 1));
        let types = tokens[256..].iter().map(|text| more[text]);
        let source = VocabSource {
            token_types: Some(vec![if sentence { 6 } else { 1 }; 256].into_iter().chain(types).collect()),
            merges: Some(lines.iter().filter(sound).map(String::as_str).collect()),
            ids: SpecialIds { bos, ..SpecialIds::default() },
            ..if sentence { sentence_source(&tokens) } else { byte_source(&tokens) }
        };
        if let Ok(tokenizer) = Tokenizer::from_gguf(&source) {
            for parsing in [Plain, Parse] {
                let ids = tokenizer.encode_prompt(&text, parsing);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                let shown = tokenizer.decode(&ids);
                if parsing == Plain && tokenizer.bos_id().is_none() && !sentence {
                    prop_assert_eq!(shown, text.clone());
                }
            }
        }
    }
}
