//! Harmony at random, through the whole path of a streamed reply: whatever a model says, a client gets a stream that
//! keeps to its form. The parser alone is tried with more in `tests/chat/harmony_parser.rs::any_ids_parse`.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::chat::{chat, gathered, user};
use crate::http::post;
use crate::{Server, mock};

/// Answers to one request, the most there may be.
const CHOICES: usize = 16;

fn tools() -> Value {
    json!([{ "type": "function", "function": { "name": "f" } }])
}

#[test]
fn any_ids_make_a_stream_that_keeps_to_its_form() {
    let server = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    server.worker.at_random.store(true, Ordering::Relaxed);
    let rounds = 100_000 / CHOICES;
    std::thread::scope(|scope| {
        for half in 0..2 {
            let server = &server;
            scope.spawn(move || {
                for round in (half..rounds).step_by(2) {
                    check(server, round);
                }
            });
        }
    });
}

fn check(server: &Server, round: usize) {
    let stop = if round.is_multiple_of(3) { json!(["ll", "an"]) } else { Value::Null };
    let body = json!({ "messages": user("x"), "tools": tools(), "stream": true, "n": CHOICES, "stop": stop,
        "seed": (round + 1) * 1_000_003, "max_tokens": 60 });
    let chunks = chat(server, &body).chunks();
    let mut by_choice = vec![vec![]; CHOICES];
    for chunk in chunks {
        by_choice[chunk["choices"][0]["index"].as_u64().unwrap() as usize].push(chunk);
    }
    let whole = (round.is_multiple_of(50)).then(|| {
        let mut body = body.clone();
        body["stream"] = json!(false);
        chat(server, &body).json()
    });
    for (choice, chunks) in by_choice.iter().enumerate() {
        let (content, reasoning, calls, reason) = gathered(chunks);
        assert!(!content.contains("<|") && !reasoning.contains("<|"), "{round}/{choice}: {content:?}");
        assert!(reason.is_string(), "{round}/{choice} has no end");
        assert!(reason != "tool_calls" || !calls.is_empty(), "{round}/{choice}");
        if let Some(whole) = &whole {
            let message = &whole["choices"][choice]["message"];
            assert_eq!(whole["choices"][choice]["finish_reason"], reason, "{round}/{choice}");
            assert_eq!(message["content"].as_str().unwrap_or_default(), content);
            assert_eq!(message["reasoning_content"].as_str().unwrap_or_default(), reasoning);
        }
    }
    if round.is_multiple_of(10) {
        let body = json!({ "input": "x", "stream": true, "seed": round + 1, "max_output_tokens": 60 });
        crate::responses::check_events(&post(server.addr, "/v1/responses", &body).events());
    }
}
