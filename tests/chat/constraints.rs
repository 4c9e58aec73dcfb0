//! Grammars of answers on published vocabularies: what a trained model writes is allowed token by token, and what it must
//! not write is not.

use std::sync::Arc;

use serde_json::json;
use worker_orcd::engine::Constraint;
use worker_orcd::server::openai::grammar::Grammars;
use worker_orcd::server::openai::syntax::{Body, CallSyntax, Callable, grammar};
use worker_orcd::text::chat::Tool;
use worker_orcd::text::{SpecialParsing, Tokenizer};

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
