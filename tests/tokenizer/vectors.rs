//! Tokenizers against the ids other engines gave: every published vector, both backends, no mismatch.

use std::path::Path;

use crate::at_hand::{load, shared_file};
use crate::gguf_vocab::VocabFile;
use serde_json::Value;
use worker_orcd::text::{SpecialParsing, Tokenizer, TokenizerError};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Compares `[{text, ids}]` and returns how many entries there were.
fn check_vectors(
    name: &str,
    tokenizer: &Tokenizer,
    vectors: &Value,
    key: &str,
    special: SpecialParsing,
) -> usize {
    let vectors = vectors.as_array().unwrap();
    let mut mismatches = 0;
    for vector in vectors {
        let text = vector["text"].as_str().unwrap();
        let (got, expected) = (tokenizer.encode(text, special), ids(&vector[key]));
        if got != expected {
            mismatches += 1;
            if mismatches <= 10 {
                println!("{name}: {text:?}\n  got      {got:?}\n  expected {expected:?}");
            }
        }
    }
    assert_eq!(mismatches, 0, "{name}: {mismatches} of {} strings differ", vectors.len());
    vectors.len()
}

/// The vocabularies of each file of vectors, and whether its reference parsed the special tokens that a few of the
/// strings spell.
const FAMILIES: [(&str, SpecialParsing, &[&str], Option<&str>); 4] = [
    (
        "gpt-oss",
        SpecialParsing::Plain,
        &["tokenizers/gpt-oss/tokenizer.json", "vocab/vocab-gpt-oss-20b.rebuilt.gguf"],
        Some("gpt-oss.harmony-special"),
    ),
    (
        "qwen2.5",
        SpecialParsing::Parse,
        &["tokenizers/qwen2.5/tokenizer.json", "vocab/vocab-qwen2.5-0.5b-instruct.rebuilt.gguf"],
        Some("qwen2.5.special"),
    ),
    (
        "phi-3",
        SpecialParsing::Parse,
        &["tokenizers/phi-3/tokenizer.json", "vocab/ggml-vocab-phi-3.gguf"],
        Some("phi-3.special"),
    ),
    ("llama-spm", SpecialParsing::Plain, &["vocab/ggml-vocab-llama-spm.gguf"], None),
];

#[test]
fn every_string_of_the_four_families_has_the_reference_ids() {
    for (family, parsing, files, specials) in FAMILIES {
        let Some(path) = shared_file(&format!("tokenizers/{family}.vectors.json")) else { return };
        let vectors = json(&path);
        for file in files {
            let tokenizer = load(&shared_file(file).unwrap());
            assert_eq!(check_vectors(file, &tokenizer, &vectors, "ids", parsing), 3700);
            if let Some(specials) = specials {
                let vectors = json(&shared_file(&format!("tokenizers/{specials}.json")).unwrap());
                assert!(check_vectors(file, &tokenizer, &vectors, "ids", SpecialParsing::Parse) > 0);
            }
        }
    }
}

#[test]
fn the_published_inputs_of_each_vocabulary_have_the_published_ids() {
    for (inputs, vocab) in [
        ("gpt-2", "ggml-vocab-gpt-2.gguf"),
        ("qwen2", "vocab-qwen2.5-0.5b-instruct.rebuilt.gguf"),
        ("phi-3", "ggml-vocab-phi-3.gguf"),
        ("llama-spm", "ggml-vocab-llama-spm.gguf"),
    ] {
        let Some(path) = shared_file(&format!("vocab/ggml-vocab-{inputs}.gguf.inp")) else { return };
        let tokenizer = load(&shared_file(&format!("vocab/{vocab}")).unwrap());
        let texts = std::fs::read_to_string(&path).unwrap();
        let expected = std::fs::read_to_string(path.with_extension("out")).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let expected: Vec<&str> = expected.lines().collect();
        assert!(texts.len() >= 47, "{inputs}: {} inputs", texts.len());
        for (text, line) in texts.iter().zip(&expected) {
            let line: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, SpecialParsing::Plain), line, "{inputs}: {text:?}");
        }
    }
}

#[test]
fn the_specification_vectors_hold() {
    let vectors = json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer_vectors.json"));
    for (name, vocab) in [
        ("qwen2", "vocab/vocab-qwen2.5-0.5b-instruct.rebuilt.gguf"),
        ("o200k", "vocab/vocab-gpt-oss-20b.rebuilt.gguf"),
        ("phi3-spm (no BOS)", "vocab/ggml-vocab-phi-3.gguf"),
        ("gpt2", "vocab/ggml-vocab-gpt-2.gguf"),
    ] {
        let Some(path) = shared_file(vocab) else { return };
        let tokenizer = load(&path);
        for (text, expected) in
            vectors["strings"].as_array().unwrap().iter().zip(vectors["ids"][name].as_array().unwrap())
        {
            let text = text.as_str().unwrap();
            assert_eq!(tokenizer.encode(text, SpecialParsing::Plain), ids(expected), "{name}: {text:?}");
        }
    }
}

#[test]
fn the_tiny_models_vocabularies_match_hugging_face() {
    for (vectors, model, parsing) in [
        ("gptoss", "gptoss-192/q8_0", SpecialParsing::Parse),
        ("phi3", "phi3-192/q8_0", SpecialParsing::Plain),
        ("qwen2", "qwen2-192/q8_0", SpecialParsing::Parse),
    ] {
        let Some(path) = shared_file(&format!("models/tokenizer/{vectors}.json")) else { return };
        let tokenizer = load(&shared_file(&format!("models/{model}.gguf")).unwrap());
        check_vectors(model, &tokenizer, &json(&path), "ref", parsing);
    }
}

#[test]
fn an_unsupported_pre_tokenizer_is_named() {
    let Some(path) = shared_file("vocab/ggml-vocab-deepseek-llm.gguf") else { return };
    let error = Tokenizer::from_gguf(&VocabFile::read(&path).source()).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::UnsupportedPreTokenizer(name) if name == "deepseek-llm"),
        "{error}"
    );
}
