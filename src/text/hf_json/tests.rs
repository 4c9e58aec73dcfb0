//! Files whose pipeline is not one of ours, or that would make the crate panic, are refused.

use serde_json::json;

use super::*;
use crate::text::SpecialParsing::{Parse, Plain};

/// A byte-level file with GPT-2's splitter and two merges.
fn file() -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (byte_alphabet::char_of(byte).to_string(), byte.into())).collect();
    vocab.insert("ab".to_owned(), 256.into());
    vocab.insert("abc".to_owned(), 257.into());
    json!({
        "added_tokens": [
            {"id": 258, "content": "<s>", "special": true},
            {"id": 259, "content": "<t>", "special": false, "lstrip": true, "rstrip": true},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel"},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
        ]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", ["ab", "c"]]},
    })
}

fn build(file: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json(file.to_string().as_bytes(), &SpecialIds::default())
}

fn error_with(pointer: &str, value: Value) -> String {
    let mut file = file();
    let (parent, member) = pointer.rsplit_once('/').unwrap();
    let parent = file.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    parent.insert(member.to_owned(), value);
    build(&file).unwrap_err().to_string()
}

#[test]
fn a_small_file_works_and_brings_its_template() {
    let tokenizer = build(&file()).unwrap();
    assert_eq!(tokenizer.encode("abcab", Plain), [257, 256]);
    assert_eq!(tokenizer.encode_prompt("ab <t> ab<s>", Parse), [258, 256, 259, 256, 258]);
    assert_eq!(tokenizer.encode("<s><t>", Plain).len(), 4);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()), (Some(258), None, 260));
    let ids = SpecialIds { bos: Some(0), add_bos: Some(false), eos: Some(258), ..SpecialIds::default() };
    let tokenizer = Tokenizer::from_json(file().to_string().as_bytes(), &ids).unwrap();
    assert_eq!(tokenizer.encode_prompt("ab", Plain), [256]);
    assert_eq!((tokenizer.bos_id(), tokenizer.stop_ids()), (Some(0), &[258][..]));
}

#[test]
fn other_pipelines_are_named() {
    for (pointer, value, part) in [
        ("/model/type", json!("WordPiece"), "model.type"),
        ("/model/dropout", json!(0.1), "model.dropout"),
        ("/model/end_of_word_suffix", json!("</w>"), "model.end_of_word_suffix"),
        ("/model/continuing_subword_prefix", json!("##"), "model.continuing_subword_prefix"),
        ("/normalizer", json!({"type": "Lowercase"}), "normalizer"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "pre_tokenizer"),
        ("/pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": true}), "pre_tokenizer"),
        ("/pre_tokenizer", Value::Null, "normalizer"),
    ] {
        let message = error_with(pointer, value);
        assert!(message.contains(&format!("{part} is not supported")), "{pointer}: {message}");
    }
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
    ]});
    assert!(error_with("/pre_tokenizer", split).contains("(a+)+b"));
}

#[test]
fn broken_files_are_errors_and_never_panics() {
    assert!(build(&json!([])).is_err());
    assert!(build(&json!({"model": {}})).is_err());
    assert!(error_with("/model/merges", json!([["a", "b", "c"]])).contains("merge"));
    assert!(error_with("/model/merges", json!(["ab"])).contains("no space"));
    assert!(error_with("/model/merges", json!(["abc abc"])).contains("not a token"));
    assert!(error_with("/model/vocab", json!({})).contains("merge"));
    let far = json!([{"id": u32::MAX, "content": "<far>", "special": true}]);
    assert!(error_with("/added_tokens", far).contains("id range"));
    let twice = json!([{"id": 258, "content": "ab", "special": true}]);
    assert!(error_with("/added_tokens", twice).contains("not distinct"));
    let taken = json!([{"id": 256, "content": "<s>", "special": true}]);
    assert!(error_with("/added_tokens", taken).contains("not distinct"));
    // Longer than anything in the model's own vocabulary: the crate would index past its buffer.
    let mut file = file();
    file["added_tokens"] = json!([{"id": 258, "content": "abcabc", "special": false}]);
    file["model"]["merges"] = json!(["abc abc"]);
    assert!(build(&file).unwrap_err().to_string().contains("not a token"));
}

#[test]
fn every_mutation_of_a_small_file_is_refused_or_works() {
    let text = file().to_string().into_bytes();
    // A fixed multiplicative sequence picks places and bytes.
    let mut state = 1u64;
    for _ in 0..400 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut mutated = text.clone();
        let at = (state >> 33) as usize % mutated.len();
        mutated[at] = b"0129{}[]\",:<a "[(state >> 20) as usize % 14];
        if let Ok(tokenizer) = Tokenizer::from_json(&mutated, &SpecialIds::default()) {
            let ids = tokenizer.encode("abc <s> xyz\n", Parse);
            tokenizer.decode(&ids);
        }
    }
}
