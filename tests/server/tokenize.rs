//! `POST /tokenize`, `/detokenize` and `/apply-template`.

use serde_json::{Value, json};

use crate::http::post;
use crate::{Server, mock};

fn ask(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let reply = post(server.addr, path, body);
    (reply.status, reply.json())
}

#[test]
fn texts_become_ids_and_ids_texts() {
    let server = Server::start(&[]);
    let (status, body) =
        ask(&server, "/tokenize", &json!({ "prompt": "hi<|endoftext|>", "return_token_strs": true }));
    assert_eq!((status, &body["count"], &body["max_model_len"]), (200, &json!(15), &json!(mock::CONTEXT)));
    assert_eq!((&body["tokens"][0], &body["token_strs"][1]), (&json!(104), &json!("i")));
    let (_, body) =
        ask(&server, "/tokenize", &json!({ "content": "hi<|endoftext|>", "parse_special": true }));
    assert_eq!((&body["tokens"], &body["token_strs"]), (&json!([104, 105, 256]), &Value::Null));
    let (status, body) = ask(&server, "/detokenize", &json!({ "tokens": [104, 105, 256] }));
    assert_eq!((status, body), (200, json!({ "prompt": "hi<|endoftext|>", "content": "hi<|endoftext|>" })));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({ "prompt": 1 }), "prompt"),
        ("/tokenize", json!({ "prompt": "x", "add_special_tokens": 1 }), "add_special_tokens"),
        ("/detokenize", json!({ "tokens": [257] }), "tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/apply-template", json!({ "messages": [{ "role": "user", "content": "x" }] }), "messages"),
    ] {
        let (status, error) = ask(&server, path, &body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)), "{path} {body}: {error}");
    }
}

#[test]
fn conversations_become_prompts() {
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}";
    let server = Server::start_chat(&[], mock::byte_tokenizer(), Some(template));
    let messages = json!([{ "role": "user", "content": "x<|endoftext|>" }]);
    let (status, body) = ask(&server, "/apply-template", &json!({ "messages": messages }));
    assert_eq!((status, body), (200, json!({ "prompt": "[user]x<|endoftext|>[a]" })));
    let (_, body) =
        ask(&server, "/tokenize", &json!({ "messages": messages, "add_generation_prompt": false }));
    assert_eq!(body["count"], "[user]x<|endoftext|>".len(), "the user's spelling of a special token is text");
}
