//! Answers that keep to a grammar: JSON, required calls and strict tools, from a model that talks at random.

use serde_json::{Value, json};

use crate::chat::{TEMPLATE, TOOL_TEMPLATE, chat, gathered, plain, refused, user};
use crate::{Server, mock};

fn with_schema(schema: &Value) -> Value {
    json!({ "type": "json_schema", "json_schema": { "name": "s", "schema": schema, "strict": true } })
}

#[test]
fn json_is_promised_and_kept() {
    let schema = json!({
        "type": "object",
        "properties": {
            "kind": { "enum": ["cat", "dog"] },
            "legs": { "type": "integer", "minimum": 0, "maximum": 99 },
            "names": { "type": "array", "items": { "type": "string", "maxLength": 8 }, "maxItems": 3 },
        },
        "required": ["kind", "legs", "names"],
        "additionalProperties": false,
    });
    let template = Server::start_chat(&[], mock::byte_tokenizer(), Some(TEMPLATE));
    let harmony = Server::start_chat(&[], mock::harmony_tokenizer(), None);
    for server in [&template, &harmony] {
        for seed in 1..6 {
            let body = json!({ "messages": user("x"), "response_format": with_schema(&schema), "seed": seed * 77777,
                "max_tokens": 2000, "n": 2 });
            let whole = chat(server, &body).json();
            for choice in whole["choices"].as_array().unwrap() {
                assert_eq!(choice["finish_reason"], "stop", "{whole}");
                let content = choice["message"]["content"].as_str().unwrap();
                let value: Value = serde_json::from_str(content).unwrap_or_else(|e| panic!("{e}: {content}"));
                assert!(value["kind"] == "cat" || value["kind"] == "dog", "{content}");
                assert!(value["legs"].as_u64().is_some_and(|legs| legs < 100), "{content}");
                assert!(value["names"].as_array().is_some_and(|names| names.len() <= 3), "{content}");
                assert_eq!(value.as_object().unwrap().len(), 3, "{content}");
            }
        }
    }
    let prompt = harmony.worker.submitted.lock().unwrap()[0].prompt.clone();
    let shown = harmony.state.model().unwrap().tokenizer.decode(&prompt);
    assert!(shown.contains("\"legs\"") && shown.ends_with("assistant"), "{shown}");
    let body = json!({ "messages": user("x"), "response_format": { "type": "json_object" }, "seed": 5, "stream": true,
        "max_tokens": 2000 });
    let (content, _, _, reason) = gathered(&chat(&template, &body).chunks());
    assert_eq!(reason, "stop", "{content}");
    assert!(serde_json::from_str::<Value>(&content).unwrap().is_object(), "{content}");
}

#[test]
fn a_schema_that_cannot_be_enforced_is_refused() {
    let server = plain(&[]);
    for schema in [
        json!({ "type": "nonsense" }),
        json!({ "$ref": "#/nowhere" }),
        json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "(((" } } }),
        json!({ "enum": ["x".repeat(70_000)] }),
        json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true }),
    ] {
        let body = json!({ "messages": user("x"), "response_format": with_schema(&schema) });
        assert_eq!(refused(&server, &body, "response_format"), "invalid_json_schema");
    }
    assert!(server.worker.submitted.lock().unwrap().is_empty());
}

/// Two functions whose arguments are told apart by their schemas.
fn tools(strict: bool) -> Value {
    let function = |name: &str, property: &str, schema: Value| {
        let parameters = json!({ "type": "object", "properties": { property: schema }, "required": [property],
            "additionalProperties": false });
        json!({ "type": "function", "function": { "name": name, "parameters": parameters, "strict": strict } })
    };
    let city = function("weather", "city", json!({ "enum": ["Bern", "Zürich \"HB\""] }));
    json!([city, function("roll-dice", "sides", json!({ "type": "integer", "minimum": 2, "maximum": 9 }))])
}

/// Checks a call of one of [`tools`].
fn check_call(name: &str, arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{e}: {arguments}"));
    match name {
        "weather" => assert!(value["city"] == "Bern" || value["city"] == "Zürich \"HB\"", "{arguments}"),
        "roll-dice" => {
            assert!(value["sides"].as_u64().is_some_and(|sides| (2..10).contains(&sides)), "{arguments}");
        }
        _ => panic!("{name}"),
    }
    assert_eq!(value.as_object().unwrap().len(), 1, "{arguments}");
}

fn check_calls(calls: &[(String, String, String)]) {
    for (_, name, arguments) in calls {
        check_call(name, arguments);
    }
}

/// Servers of both syntaxes: tags, spelled out or as tokens, and harmony.
fn callers() -> [Server; 3] {
    [
        Server::start_chat(&[], mock::byte_tokenizer(), Some(TOOL_TEMPLATE)),
        Server::start_chat(&[], mock::tags_tokenizer(), Some(TOOL_TEMPLATE)),
        Server::start_chat(&[], mock::harmony_tokenizer(), None),
    ]
}

#[test]
fn a_required_call_is_made_and_keeps_to_its_schema() {
    for server in &callers() {
        let mut names = vec![];
        for seed in 1..12 {
            for (choice, parallel) in [
                (json!("required"), true),
                (json!("required"), false),
                (json!({ "type": "function", "function": { "name": "roll-dice" } }), true),
            ] {
                let body = json!({ "messages": user("x"), "tools": tools(false), "tool_choice": choice, "stream": true,
                    "seed": seed * 77_777, "max_tokens": 2000, "parallel_tool_calls": parallel });
                let (content, _, calls, reason) = gathered(&chat(server, &body).chunks());
                assert_eq!((content.as_str(), reason), ("", json!("tool_calls")), "{calls:?}");
                assert!(!calls.is_empty());
                for (_, name, arguments) in &calls {
                    check_call(name, arguments);
                    assert!(choice == "required" || name == "roll-dice");
                }
                assert!(calls.len() == 1 || parallel && choice == "required", "{calls:?}");
                names.extend(calls.into_iter().map(|(_, name, _)| name));
            }
        }
        assert!(names.iter().any(|name| name == "weather"), "both are called: {names:?}");
    }
}

#[test]
fn strict_tools_keep_to_their_schemas_and_leave_text_free() {
    for server in &callers() {
        let script = if server.state.model().unwrap().chat.as_ref().unwrap().has_tool_tags() {
            "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call><|endoftext|>"
        } else {
            "<|channel|>analysis<|message|>Hm, {\"x\": 1}.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Bern\"}<|call|>"
        };
        let body = json!({ "messages": user("x"), "tools": tools(true), "max_tokens": 2000, "stream": true });
        // What a good model says is allowed, token by token.
        server.worker.prefer(script, server);
        let (content, _, calls, reason) = gathered(&chat(server, &body).chunks());
        assert_eq!((content.trim(), reason), ("Let me see.", json!("tool_calls")));
        assert_eq!((calls[0].1.as_str(), calls[0].2.as_str()), ("weather", "{\"city\": \"Bern\"}"));
        // What a bad one wants is not.
        server.worker.prefer(&script.replace("Bern", "Paris"), server);
        let (_, _, calls, _) = gathered(&chat(server, &body).chunks());
        check_calls(&calls);
        assert!(!calls.is_empty());
        server.worker.prefer("", server);
        for seed in 1..12 {
            let body = json!({ "messages": user("x"), "tools": tools(true), "max_tokens": 2000, "stream": true,
                "seed": seed * 7_777_777 });
            let (_, _, calls, _) = gathered(&chat(server, &body).chunks());
            let (_, complete) = calls.split_last().map_or((None, &[][..]), |(last, rest)| (Some(last), rest));
            check_calls(complete);
        }
    }
}

#[test]
fn json_may_be_reasoned_about_and_tools_may_be_called_instead() {
    let schema = json!({ "type": "object", "properties": { "n": { "enum": [1, 2] } }, "required": ["n"],
        "additionalProperties": false });
    let [tags, tokens, harmony] = callers();
    let body = json!({ "messages": user("x"), "response_format": with_schema(&schema), "tools": tools(true),
        "max_tokens": 2000, "stream": true });
    harmony.worker.prefer(
        "<|channel|>analysis<|message|>Hm, {\"m\"}.<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{\"n\":2}<|return|>",
        &harmony,
    );
    let (content, reasoning, calls, reason) = gathered(&chat(&harmony, &body).chunks());
    assert_eq!((content.as_str(), reasoning.as_str()), ("{\"n\":2}", "Hm, {\"m\"}."));
    assert_eq!((calls.len(), reason), (0, json!("stop")));
    let (mut answers, mut called) = (0, 0);
    for seed in 1..24 {
        for server in [&tags, &tokens, &harmony] {
            server.worker.prefer("", server);
            let mut body = body.clone();
            body["seed"] = json!(seed * 77_777);
            let (content, _, calls, reason) = gathered(&chat(server, &body).chunks());
            check_calls(&calls);
            if calls.is_empty() {
                let value: Value =
                    serde_json::from_str(&content).unwrap_or_else(|e| panic!("{e}: {content}"));
                assert!(value == json!({ "n": 1 }) || value == json!({ "n": 2 }), "{content}");
                assert_eq!(reason, "stop");
                answers += 1;
            } else {
                assert_eq!((content.as_str(), reason), ("", json!("tool_calls")));
                called += 1;
            }
        }
    }
    assert!(answers > 0 && called > 0, "{answers} answers, {called} calls");
}

/// Whatever a schema holds, it stays within its place of the grammar.
#[test]
fn marks_of_the_grammar_s_own_notation_in_a_schema_are_text() {
    let names =
        ["a}b{", "start: /x/", "\"\\", "%json {", "\n\nstart: TEXT", "// c", "<[3]>", "é\u{1F999}\u{0}"];
    for server in &callers() {
        for name in names {
            let schema = json!({ "type": "object", "properties": { name: { "const": name } }, "required": [name],
                "additionalProperties": false, "description": name });
            let function = json!({ "name": "f", "parameters": schema, "description": name });
            let tools = json!([{ "type": "function", "function": function }]);
            let body = json!({ "messages": user("x"), "tools": tools, "tool_choice": "required", "max_tokens": 2000 });
            let whole = chat(server, &body).json();
            let arguments = whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].as_str();
            let arguments: Value =
                serde_json::from_str(arguments.unwrap_or_else(|| panic!("{whole}"))).unwrap();
            assert_eq!(arguments, json!({ name: name }));
        }
    }
}

/// A JSON answer that looks like a call is an answer.
#[test]
fn json_that_looks_like_a_call_is_content() {
    let server = Server::start_chat(&[], mock::byte_tokenizer(), Some(TOOL_TEMPLATE));
    let text = "{\"name\": \"weather\", \"arguments\": {}}";
    server.worker.prefer(text, &server);
    let schema = json!({ "const": { "name": "weather", "arguments": {} } });
    let body = json!({ "messages": user("x"), "response_format": with_schema(&schema), "tools": tools(false),
        "max_tokens": 400 });
    let whole = chat(&server, &body).json();
    assert_eq!(whole["choices"][0]["message"]["content"], text, "{whole}");
}

#[test]
fn an_answer_cut_at_its_length_says_so() {
    for server in &callers() {
        let body = json!({ "messages": user("x"), "tools": tools(false), "tool_choice": "required", "max_tokens": 30 });
        let whole = chat(server, &body).json();
        assert_eq!(whole["choices"][0]["finish_reason"], "length", "{whole}");
    }
}

#[test]
fn calls_that_cannot_be_enforced_are_refused() {
    let mute = plain(&[]);
    let body =
        |tools: Value, choice: Value| json!({ "messages": user("x"), "tools": tools, "tool_choice": choice });
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    assert_eq!(refused(&mute, &body(tools(false), json!("required")), "tool_choice"), "unsupported_value");
    assert_eq!(refused(&mute, &body(tools(false), named("weather")), "tool_choice"), "unsupported_value");
    refused(&mute, &body(tools(true), json!("auto")), "tools[0].function.strict");
    for server in &callers() {
        refused(server, &body(json!([]), json!("required")), "tool_choice");
        refused(server, &body(tools(false), named("other")), "tool_choice");
        refused(server, &body(tools(false), json!({ "type": "allowed_tools" })), "tool_choice");
        for schema in [
            json!({ "type": "object", "properties": { "a": { "type": "nonsense" } } }),
            json!({ "type": "object", "properties": { "a": { "type": "array", "uniqueItems": true } } }),
            json!({ "type": "string" }),
            json!({ "type": "object", "properties": { "a": { "enum": ["x".repeat(70_000)] } } }),
        ] {
            let other = json!({ "type": "function", "function": { "name": "g" } });
            let odd = json!({ "type": "function", "function": { "name": "f", "parameters": schema } });
            let both = json!([other, odd]);
            let field = "tools[1].function.parameters";
            assert_eq!(refused(server, &body(both.clone(), json!("required")), field), "invalid_json_schema");
            // Nothing is promised of tools that are neither strict nor forced.
            assert_eq!(chat(server, &body(both, json!("auto"))).status, 200);
        }
        let mut endless = body(tools(false), json!("required"));
        endless["ignore_eos"] = json!(true);
        refused(server, &endless, "ignore_eos");
        let mut unopened = body(tools(false), json!("required"));
        unopened["add_generation_prompt"] = json!(false);
        refused(server, &unopened, "add_generation_prompt");
    }
}
