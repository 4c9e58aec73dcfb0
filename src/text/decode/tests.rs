//! Streaming decode against decoding all at once.

use proptest::prelude::*;

use super::*;
use crate::text::{SpecialIds, VocabSource};

/// Byte tokens 0–255, then words; SentencePiece-style.
fn sentence_tokenizer() -> Arc<Tokenizer> {
    let words = ["▁Hello", "▁", "<s>", "é", "<t>"];
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let source = VocabSource {
        model: "llama",
        tokens: bytes.iter().map(String::as_bytes).chain(words.iter().map(|w| w.as_bytes())).collect(),
        token_types: Some([vec![6; 256], vec![1, 1, 3, 1, 4]].concat()),
        scores: Some(vec![0.0; 261]),
        ids: SpecialIds::default(),
        ..VocabSource::default()
    };
    Arc::new(Tokenizer::from_gguf(&source).unwrap())
}

fn stream(tokenizer: &Arc<Tokenizer>, ids: &[u32], options: &DecodeOptions) -> (Vec<String>, Option<usize>) {
    let mut decoder = IncrementalDecoder::new(Arc::clone(tokenizer), options);
    let mut deltas: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
    deltas.push(decoder.finish());
    (deltas, decoder.stopped_by())
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn stopping(stops: &[&str]) -> DecodeOptions {
    DecodeOptions {
        continues_text: true,
        stops: stops.iter().map(|s| (*s).to_owned()).collect(),
        ..DecodeOptions::default()
    }
}

#[test]
fn a_character_appears_when_its_last_byte_arrives() {
    let (deltas, _) = stream(&sentence_tokenizer(), &bytes("a😀b"), &DecodeOptions::default());
    assert_eq!(deltas, ["a", "", "", "", "😀", "b", ""]);
}

#[test]
fn a_broken_character_is_one_replacement_and_nothing_waits_for_it() {
    let tokenizer = sentence_tokenizer();
    let (deltas, _) = stream(&tokenizer, &[0xF0, 0x9F, b'x'.into(), 0xE2, 0x82], &DecodeOptions::default());
    assert_eq!(deltas, ["", "", "\u{FFFD}x", "", "", "\u{FFFD}"]);
    let (deltas, _) = stream(&tokenizer, &[0xFF, 0xC0, 0x80], &DecodeOptions::default());
    assert_eq!(deltas.concat(), "\u{FFFD}\u{FFFD}\u{FFFD}");
}

#[test]
fn one_space_is_dropped_at_the_start_of_a_text_only() {
    let tokenizer = sentence_tokenizer();
    let text = |ids: &[u32], continues_text| {
        let options = DecodeOptions { continues_text, ..DecodeOptions::default() };
        let streamed = stream(&tokenizer, ids, &options).0.concat();
        assert_eq!(streamed, tokenizer.decode_with(ids, &options));
        streamed
    };
    assert_eq!(text(&[256, 256], false), "Hello Hello");
    assert_eq!(text(&[256], true), " Hello");
    assert_eq!(text(&[257, 256], false), " Hello");
    // A control token shows nothing, so the text still begins after it.
    assert_eq!(text(&[258, 256], false), "Hello");
    assert_eq!(text(&[259, 256], false), "é Hello");
}

#[test]
fn special_tokens_are_shown_on_request() {
    let tokenizer = sentence_tokenizer();
    let options = DecodeOptions { show_special: true, ..DecodeOptions::default() };
    assert_eq!(stream(&tokenizer, &[258, 256, 260], &options).0.concat(), "<s> Hello<t>");
    assert_eq!(stream(&tokenizer, &[258, 256, 260], &DecodeOptions::default()).0.concat(), "Hello<t>");
}

#[test]
fn a_stop_string_ends_the_text_before_itself() {
    let tokenizer = sentence_tokenizer();
    let (deltas, stopped) = stream(&tokenizer, &bytes("one STOP two"), &stopping(&["", "STOP"]));
    assert_eq!((deltas.concat().as_str(), stopped), ("one ", Some(1)));
    // What only looked like a stop string is given out when that is clear.
    let (deltas, stopped) = stream(&tokenizer, &bytes("SSTxSTO"), &stopping(&["STOP"]));
    assert_eq!(deltas, ["", "S", "", "STx", "", "", "", "STO"]);
    assert_eq!(stopped, None);
    // The first to be completed wins; of two that end together, the longer.
    let (deltas, stopped) = stream(&tokenizer, &bytes("xabcd"), &stopping(&["abcd", "c", "bc"]));
    assert_eq!((deltas.concat().as_str(), stopped), ("xa", Some(2)));
    let (deltas, _) = stream(&tokenizer, &bytes("aabaac"), &stopping(&["aac"]));
    assert_eq!(deltas.concat(), "aab");
}

#[test]
fn nothing_follows_a_stop_string() {
    let tokenizer = sentence_tokenizer();
    let mut decoder = IncrementalDecoder::new(tokenizer, &stopping(&["."]));
    assert_eq!(decoder.push(u32::from(b'a')), "a");
    assert_eq!(decoder.push(u32::from(b'.')), "");
    assert_eq!((decoder.push(u32::from(b'b')), decoder.finish()), (String::new(), String::new()));
}

#[test]
fn held_text_is_bounded_by_the_stop_strings() {
    let tokenizer = sentence_tokenizer();
    let mut decoder = IncrementalDecoder::new(tokenizer, &stopping(&[&format!("{}b", "a".repeat(50))]));
    let given: usize = (0..100_000).map(|_| decoder.push(u32::from(b'a')).len()).sum();
    assert_eq!(given, 100_000 - 50);
}

/// The text before the stop string that is completed first.
fn cut(text: &str, stops: &[String]) -> String {
    let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
    for end in ends {
        let longest = stops
            .iter()
            .filter(|s| !s.is_empty() && text[..end].ends_with(s.as_str()))
            .map(String::len)
            .max();
        if let Some(len) = longest {
            return text[..end - len].to_owned();
        }
    }
    text.to_owned()
}

proptest! {
    #[test]
    fn deltas_are_the_one_shot_decode(
        ids in prop::collection::vec(prop_oneof![0u32..270, 120u32..200, Just(0xF0), Just(0x9F)], 0..60),
        show_special in any::<bool>(),
        continues_text in any::<bool>(),
    ) {
        let tokenizer = sentence_tokenizer();
        let options = DecodeOptions { show_special, continues_text, stops: Vec::new() };
        let (deltas, _) = stream(&tokenizer, &ids, &options);
        prop_assert_eq!(deltas.concat(), tokenizer.decode_with(&ids, &options));
    }

    #[test]
    fn stop_strings_cut_at_the_same_place_however_the_text_arrives(
        text in "[abé]{0,40}",
        stops in prop::collection::vec("[abé]{0,4}", 0..4),
    ) {
        let tokenizer = sentence_tokenizer();
        let options = DecodeOptions { continues_text: true, stops, ..DecodeOptions::default() };
        let expected = cut(&text, &options.stops);
        let (deltas, stopped) = stream(&tokenizer, &bytes(&text), &options);
        prop_assert_eq!(&deltas.concat(), &expected);
        prop_assert_eq!(stopped.is_some(), expected.len() < text.len());
        // The whole text as one delta.
        let mut decoder = IncrementalDecoder::new(tokenizer, &options);
        let mut whole = decoder.release(&text);
        whole.push_str(&decoder.finish());
        prop_assert_eq!(whole, expected);
    }
}
