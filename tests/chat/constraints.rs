//! Grammars of answers on published vocabularies: what a trained model writes is allowed token by token, and what it must
//! not write is not.

use std::sync::Arc;

use serde_json::json;
use worker_orcd::engine::Constraint;
use worker_orcd::server::openai::grammar::Grammars;
use worker_orcd::server::openai::syntax::{Body, CallSyntax, Callable, grammar};
use worker_orcd::text::chat::Tool;
use worker_orcd::text::{SpecialIds, SpecialParsing, Tokenizer, VocabSource};

use crate::at_hand::{Model, shared};

fn qwen() -> Option<Arc<Tokenizer>> {
    let path = shared("vocab/vocab-qwen2.5-0.5b-instruct.rebuilt.gguf")?;
    Some(Arc::new(Tokenizer::load(&worker_orcd::gguf::Gguf::open(path).unwrap(), None).unwrap()))
}

fn weather() -> Callable {
    let parameters = json!({ "type": "object", "properties": { "city": { "enum": ["Bern", "Zürich"] } },
        "required": ["city"], "additionalProperties": false });
    Callable::of(&Tool::function("get_weather", None, Some(parameters)), true)
}

/// How many ids of `text` are allowed one after the other, of how many; and whether an end may follow them all.
fn allowed(tokenizer: &Tokenizer, constraint: &Constraint, text: &str) -> (usize, usize, bool) {
    let ids = tokenizer.encode(text, SpecialParsing::Parse);
    let mask = || {
        let mut logits = vec![0.0_f32; tokenizer.vocab_size() + 64];
        constraint.mask(&mut logits);
        assert!(
            logits[tokenizer.vocab_size()..].iter().all(|logit| !logit.is_finite()),
            "ids behind the vocabulary"
        );
        logits
    };
    for (at, &id) in ids.iter().enumerate() {
        if !mask()[id as usize].is_finite() {
            return (at, ids.len(), false);
        }
        constraint.accept(id);
    }
    let logits = mask();
    let ends = tokenizer.stop_ids().iter().any(|&id| logits[id as usize].is_finite());
    (ids.len(), ids.len(), ends)
}

#[test]
fn a_call_in_the_model_s_own_tokens_is_allowed_and_another_is_not() {
    let mut models = vec![];
    if let Some(tokenizer) = qwen() {
        let open = tokenizer.special_to_id("<tool_call>").unwrap();
        assert!(!tokenizer.is_special(open), "the tag is text, and one token");
        let call =
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\"}}\n</tool_call>";
        models.push((tokenizer, CallSyntax::Tags { open: Some(open) }, call, String::new()));
    }
    for model in [Some(Model::own()), Model::gpt_oss()].into_iter().flatten() {
        let call = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Zürich\"}<|call|>";
        let thought = "<|channel|>analysis<|message|>Need {weather}.\n<|end|><|start|>assistant".to_owned();
        models.push((
            model.tokenizer,
            CallSyntax::Harmony(model.format.harmony_markers().unwrap()),
            call,
            thought,
        ));
    }
    for (tokenizer, syntax, call, thought) in models {
        let grammars = Arc::new(Grammars::of(&tokenizer).unwrap());
        let end_ids = match syntax {
            CallSyntax::Harmony(_) => vec![],
            _ => tokenizer.stop_ids().to_vec(),
        };
        let must =
            grammars.compile(grammar(syntax, Body::Nothing, &[weather()], true), end_ids.clone()).unwrap();
        let may = grammars.compile(grammar(syntax, Body::Text, &[weather()], true), end_ids).unwrap();
        for text in [call.to_owned(), thought.clone() + call] {
            for compiled in [&must, &may] {
                let (got, all, ends) = allowed(&tokenizer, &compiled.constraint(), &text);
                // Harmony's last token ends the answer itself.
                assert_eq!((got, ends), (all, thought.is_empty()), "{text}");
            }
        }
        for wrong in [
            call.replace("Zürich", "Paris"),
            call.replace("get_weather", "get_time"),
            call.replace("city", "town"),
            call.replace("\"Zürich\"}", "\"Zürich\", \"x\": 1}"),
        ] {
            for compiled in [&must, &may] {
                let (got, all, _) = allowed(&tokenizer, &compiled.constraint(), &wrong);
                assert!(got < all, "{wrong}");
            }
        }
        let (got, all, _) = allowed(&tokenizer, &must.constraint(), "It rains.");
        assert!(got < all, "a call was required");
    }
}

/// A SentencePiece vocabulary of bytes alone: it begins every text with a space.
fn sentence_bytes() -> Arc<Tokenizer> {
    let spelled: Vec<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens = spelled.iter().map(String::as_bytes).chain([&b"</s>"[..]]).collect();
    let source = VocabSource {
        model: "llama",
        tokens,
        token_types: Some([vec![6; 256], vec![3]].concat()),
        scores: Some(vec![0.0; 257]),
        ids: SpecialIds { eos: Some(256), ..SpecialIds::default() },
        ..VocabSource::default()
    };
    Arc::new(Tokenizer::from_gguf(&source).unwrap())
}

/// Walks at random through what a grammar allows, on every vocabulary there is: whatever is said, it ends in what was
/// promised.
#[test]
fn any_walk_through_a_schema_is_json_of_it() {
    let mut tokenizers = vec![Model::own().tokenizer, sentence_bytes()];
    for name in [
        "vocab-gpt-oss-20b.rebuilt",
        "vocab-qwen2.5-0.5b-instruct.rebuilt",
        "ggml-vocab-phi-3",
        "ggml-vocab-llama-spm",
    ] {
        if let Some(path) = shared(&format!("vocab/{name}.gguf")) {
            let gguf = worker_orcd::gguf::Gguf::open(path).unwrap();
            tokenizers.push(Arc::new(Tokenizer::load(&gguf, None).unwrap()));
        }
    }
    let schema = json!({ "type": "object", "required": ["kind é🦙", "n"], "additionalProperties": false, "properties": {
        "kind é🦙": { "enum": ["cät 🦙🦙", "dog"] }, "n": { "type": "integer", "minimum": 0, "maximum": 999 } } });
    let text = grammar(CallSyntax::Unknown, Body::Json(&schema), &[], false);
    for tokenizer in tokenizers {
        let grammars = Arc::new(Grammars::of(&tokenizer).unwrap());
        let compiled = grammars.compile(text.clone(), tokenizer.stop_ids().to_vec()).unwrap();
        for seed in 1..40_u64 {
            let constraint = compiled.constraint();
            let (mut random, mut bytes) = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), vec![]);
            loop {
                let mut logits = vec![0.0_f32; tokenizer.vocab_size()];
                constraint.mask(&mut logits);
                let ids: Vec<usize> = (0..logits.len()).filter(|&id| logits[id].is_finite()).collect();
                assert!(
                    !ids.is_empty(),
                    "{:?} after {:?}",
                    constraint.fault(),
                    String::from_utf8_lossy(&bytes)
                );
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let id = ids[(random >> 11) as usize % ids.len()] as u32;
                constraint.accept(id);
                if tokenizer.stop_ids().contains(&id) {
                    break;
                }
                bytes.extend_from_slice(tokenizer.literal_bytes(id));
                assert!(bytes.len() < 200);
            }
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert!(value["kind é🦙"] == "dog" || value["kind é🦙"] == "cät 🦙🦙", "{value}");
            assert!(value["n"].as_u64().is_some_and(|n| n < 1000), "{value}");
        }
    }
}
