//! What must hold for every vocabulary at hand, of both backends: the bundled ones always, the shared ones where they
//! exist. The full pipeline of the `tokenizers` crate is the oracle for text nobody published ids for.

use std::sync::Arc;

use crate::at_hand::{HAIKU_GGUF, HAIKU_JSON, all, bundled, load, shared_file};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use unicode_normalization::UnicodeNormalization;
use worker_orcd::text::SpecialParsing::{Parse, Plain};
use worker_orcd::text::{DecodeOptions, IncrementalDecoder, SpecialIds, TokenKind, Tokenizer, TokenizerKind};

/// Text that meets every branch of the splitters, special tokens included.
fn tricky_text() -> impl Strategy<Value = String> {
    let parts = [
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\n\n",
        "\u{a0}",
        "\u{3000}",
        "'s",
        "'VE",
        "'ſ",
        "'",
        "/",
        "!",
        "^^",
        "_",
        "A",
        "B",
        "a",
        "the",
        " The",
        "HTTP",
        "é",
        "e\u{301}",
        "\u{301}",
        "ǅ",
        "中",
        "文",
        "हिन्दी",
        "กำลัง",
        "한글",
        "한",
        "0",
        "12345",
        "٣",
        "½",
        "😀",
        "👩‍👩‍👧",
        "\u{0}",
        "\u{7f}",
        "\u{ad}",
        "\u{fffd}",
        "\u{e000}",
        "▁",
        "<0x0A>",
        "<|end|>",
        "<|start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "</s>",
        "<s>",
        "<unk>",
        "<tool_call>",
        "<|user|>",
        "[PAD7]",
        "fn main() {}",
        "https://a.b/c?d=e",
    ];
    let part = prop_oneof![
        9 => prop::sample::select(parts.to_vec()).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
}

/// Runs `check` on `cases` values and panics with the smallest failure.
fn for_all<S: Strategy>(cases: u32, strategy: &S, mut check: impl FnMut(&S::Value)) {
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) });
    // `check` asserts; its message names the vocabulary.
    let check = std::cell::RefCell::new(&mut check);
    let result = runner.run(strategy, |value| {
        (check.borrow_mut())(&value);
        Ok(())
    });
    if let Err(TestError::Fail(reason, value)) = result {
        panic!("{reason} for {value:?}");
    }
}

#[test]
fn both_backends_agree_on_the_bundled_model() {
    let (json, gguf) = (bundled(HAIKU_JSON), bundled(HAIKU_GGUF));
    assert_eq!((json.kind(), gguf.kind()), (TokenizerKind::HfJson, TokenizerKind::GgufBpe));
    assert_eq!((json.kind().as_str(), gguf.kind().as_str()), ("hf-json", "gguf-bpe"));
    assert_eq!((json.vocab_size(), gguf.vocab_size()), (4096, 4096));
    for id in 0..4096 {
        assert_eq!(json.literal_bytes(id), gguf.literal_bytes(id), "token {id}");
        assert_eq!(json.token_kind(id), gguf.token_kind(id), "token {id}");
    }
    for_all(2000, &tricky_text(), |text| {
        assert_eq!(json.encode(text, Plain), gguf.encode(text, Plain));
        assert_eq!(json.encode(text, Parse), gguf.encode(text, Parse));
        assert_eq!(gguf.decode(&gguf.encode(text, Plain)), *text);
    });
    assert_eq!(gguf.stop_ids(), [4065, 4068, 4078]);
    assert_eq!((gguf.bos_id(), gguf.eos_id(), gguf.add_bos()), (Some(4064), Some(4068), false));
    assert_eq!(gguf.special_to_id("<|start|>"), Some(4072));
    assert_eq!(gguf.token_to_id("Ġthe"), json.token_to_id("Ġthe"));
}

#[test]
fn the_hugging_face_pipeline_gives_the_same_ids() {
    let bundled = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(HAIKU_JSON);
    let shared =
        ["gpt-oss", "qwen2.5", "phi-3"].map(|name| shared_file(&format!("tokenizers/{name}/tokenizer.json")));
    for path in [Some(bundled)].into_iter().chain(shared).flatten() {
        let ours = load(&path);
        let mut oracle = tokenizers::Tokenizer::from_file(&path).unwrap();
        for (parsing, as_text) in [(Parse, false), (Plain, true)] {
            oracle.set_encode_special_tokens(as_text);
            for_all(700, &tricky_text(), |text| {
                let expected = oracle.encode_fast(text.as_str(), false).unwrap();
                assert_eq!(ours.encode(text, parsing), expected.get_ids(), "{} {parsing:?}", path.display());
            });
        }
    }
}

#[test]
fn the_metaspace_form_of_a_tokenizer_json_is_read_too() {
    let Some(path) = shared_file("tokenizers/phi-3/tokenizer.json") else { return };
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["normalizer"] = serde_json::Value::Null;
    for scheme in ["first", "always", "never"] {
        file["pre_tokenizer"] = serde_json::json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false,
        });
        let json = file.to_string();
        let ours = Tokenizer::from_json(json.as_bytes(), &SpecialIds::default()).unwrap();
        let oracle = tokenizers::Tokenizer::from_bytes(json.as_bytes()).unwrap();
        for_all(300, &tricky_text(), |text| {
            let expected = oracle.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(ours.encode(text, Parse), expected.get_ids(), "{scheme}");
        });
    }
}

/// The two backends of one vocabulary.
fn pairs() -> Vec<[Arc<Tokenizer>; 2]> {
    let mut pairs = vec![[bundled(HAIKU_JSON), bundled(HAIKU_GGUF)]];
    for (json, gguf) in [
        ("gpt-oss", "vocab-gpt-oss-20b.rebuilt"),
        ("qwen2.5", "vocab-qwen2.5-0.5b-instruct.rebuilt"),
        ("phi-3", "ggml-vocab-phi-3"),
    ] {
        let json = shared_file(&format!("tokenizers/{json}/tokenizer.json"));
        let gguf = shared_file(&format!("vocab/{gguf}.gguf"));
        pairs.extend(json.zip(gguf).map(|(json, gguf)| [load(&json), load(&gguf)]));
    }
    pairs
}

#[test]
fn the_backends_agree_on_long_pieces() {
    // On both sides of the length from which `hf-json` merges with our own model.
    let lengths = [16 * 1024 - 2, 16 * 1024 + 1, 40_000];
    let units = ["a", "é", " ", "\n", "^", "\u{301}", "中", "😀", "ab", "中A", "banana"];
    let mut texts: Vec<String> =
        units.iter().flat_map(|unit| lengths.map(|length| unit.repeat(length / unit.len()))).collect();
    if let Some(path) = shared_file("text/wiki.test.raw") {
        let wiki = std::fs::read_to_string(path).unwrap();
        texts.push(wiki.chars().take(300_000).collect());
    }
    for [json, gguf] in pairs() {
        for text in &texts {
            let start: String = text.chars().take(20).collect();
            assert!(json.encode(text, Plain) == gguf.encode(text, Plain), "{} of {start:?}…", text.len());
        }
    }
}

#[test]
fn text_survives_encoding_and_decoding() {
    for (name, tokenizer) in all() {
        let composes = name.contains("qwen");
        let sentence = name.contains("phi-3") || name.contains("spm");
        for_all(300, &tricky_text(), |text| {
            // The one loss of the SentencePiece form: a literal ▁ is a space.
            let mut expected = if sentence { text.replace('▁', " ") } else { text.clone() };
            if composes {
                expected = expected.nfc().collect();
            }
            // Whole visible tokens cut the text in stretches, each with its own prefix or composition.
            let shown: String = tokenizer.decode(&tokenizer.encode(&expected, Plain));
            if !expected.contains("tool_call") && !expected.contains("</s>") {
                assert_eq!(shown, expected, "{name}");
            }
        });
    }
}

#[test]
fn plain_text_never_becomes_a_control_token() {
    for (name, tokenizer) in all() {
        let specials: Vec<String> = (0..tokenizer.vocab_size() as u32)
            .filter(|&id| tokenizer.is_special(id))
            .map(|id| String::from_utf8_lossy(tokenizer.literal_bytes(id)).into_owned())
            .collect();
        assert!(!specials.is_empty(), "{name}");
        for text in specials.iter().cloned().chain([specials.concat(), specials.join(" ")]) {
            let ids = tokenizer.encode(&text, Plain);
            assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "{name}: {text:?} became {ids:?}");
        }
        let parsed = tokenizer.encode(&specials.concat(), Parse);
        assert_eq!(parsed.len(), specials.len(), "{name}");
    }
}

#[test]
fn streaming_gives_the_one_shot_decode_in_whole_characters() {
    for (name, tokenizer) in all() {
        let vocab_size = tokenizer.vocab_size() as u32;
        // Any ids, with bytes of unfinished characters among them more often than chance would have it.
        let partial: Vec<u32> =
            (0..vocab_size).filter(|&id| std::str::from_utf8(tokenizer.token_bytes(id)).is_err()).collect();
        let id = prop_oneof![0..vocab_size + 2, prop::sample::select(partial)];
        for_all(
            300,
            &(prop::collection::vec(id, 0..60), any::<bool>(), any::<bool>()),
            |(ids, special, continues)| {
                let options = DecodeOptions {
                    show_special: *special,
                    continues_text: *continues,
                    ..DecodeOptions::default()
                };
                let mut decoder = IncrementalDecoder::new(Arc::clone(&tokenizer), &options);
                let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
                text.push_str(&decoder.finish());
                assert_eq!(text, tokenizer.decode_with(ids, &options), "{name}");
            },
        );
    }
}

#[test]
fn a_stop_string_is_found_across_every_token_border() {
    let tokenizer = bundled(HAIKU_GGUF);
    let text = "The moon rests.\n\nUser: 😀";
    for stop in ["\n\nUser:", "moon", "😀", "s.", ".\n", "T", "User: 😀"] {
        let expected = &text[..text.find(stop).unwrap()];
        // Every way of cutting the text in two, each half encoded on its own.
        for (at, _) in text.char_indices() {
            let ids = [&text[..at], &text[at..]].map(|part| tokenizer.encode(part, Plain)).concat();
            let options = DecodeOptions { stops: vec![stop.to_owned()], ..DecodeOptions::default() };
            let mut decoder = IncrementalDecoder::new(Arc::clone(&tokenizer), &options);
            let mut shown: String = ids.iter().map(|&id| decoder.push(id)).collect();
            shown.push_str(&decoder.finish());
            assert_eq!((shown.as_str(), decoder.stopped_by()), (expected, Some(0)), "{stop:?} cut at {at}");
        }
    }
}

#[test]
fn the_published_vocabularies_have_their_published_facts() {
    type Facts = (&'static str, usize, Option<u32>, bool, &'static [u32]);
    let facts: [Facts; 8] = [
        ("vocab/vocab-gpt-oss-20b.rebuilt.gguf", 201_088, Some(200_002), false, &[199_999, 200_002, 200_012]),
        (
            "vocab/vocab-qwen2.5-0.5b-instruct.rebuilt.gguf",
            151_936,
            Some(151_645),
            false,
            &[151_643, 151_645],
        ),
        ("vocab/ggml-vocab-phi-3.gguf", 32_064, Some(32_000), true, &[32_000, 32_001, 32_007]),
        ("vocab/ggml-vocab-llama-spm.gguf", 32_000, Some(2), true, &[2]),
        ("vocab/ggml-vocab-gpt-2.gguf", 50_257, Some(50_256), false, &[50_256]),
        ("tokenizers/gpt-oss/tokenizer.json", 200_019, None, false, &[199_999, 200_002, 200_012]),
        ("tokenizers/qwen2.5/tokenizer.json", 151_665, None, false, &[151_643, 151_645]),
        ("tokenizers/phi-3/tokenizer.json", 32_011, None, false, &[32_000, 32_001, 32_007]),
    ];
    for (name, vocab_size, eos, add_bos, stops) in facts {
        let Some(path) = shared_file(name) else { return };
        let tokenizer: Arc<Tokenizer> = load(&path);
        assert_eq!(tokenizer.vocab_size(), vocab_size, "{name}");
        assert_eq!((tokenizer.eos_id(), tokenizer.add_bos()), (eos, add_bos), "{name}");
        assert_eq!(tokenizer.stop_ids(), stops, "{name}");
    }
    // Qwen's ordinary token that merely reads like an end.
    let qwen = load(&shared_file("vocab/vocab-qwen2.5-0.5b-instruct.rebuilt.gguf").unwrap());
    assert_eq!((qwen.token_bytes(128_247), qwen.token_kind(128_247)), (&b"</s>"[..], TokenKind::Normal));
    assert_eq!(qwen.special_to_id("</s>"), None);
}
