//! Tool calls between tags, at every cut of the text.

use proptest::prelude::*;

use super::*;
use crate::text::{DecodeOptions, SpecialIds, VocabSource};

/// Byte tokens only, so that texts can be cut anywhere.
fn byte_tokenizer() -> Arc<Tokenizer> {
    let bytes: Vec<String> = (0..=255u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let source = VocabSource {
        model: "llama",
        tokens: bytes.iter().map(String::as_bytes).collect(),
        token_types: Some(vec![6; 256]),
        scores: Some(vec![0.0; 256]),
        ids: SpecialIds::default(),
        ..VocabSource::default()
    };
    Arc::new(Tokenizer::from_gguf(&source).unwrap())
}

fn parser(tools: &[&str], stops: &[&str]) -> ToolTagParser {
    let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let options = ParserOptions {
        tool_names: own(tools),
        call_id_prefix: "c".into(),
        tagged_calls_only: false,
        decode: DecodeOptions { continues_text: true, stops: own(stops), ..DecodeOptions::default() },
    };
    ToolTagParser::new(byte_tokenizer(), options)
}

/// Content, and calls as (name, arguments).
type Answer = (String, Vec<(String, String)>);

fn collect(events: impl IntoIterator<Item = OutputEvent>) -> Answer {
    let (mut content, mut calls, mut open) = (String::new(), Vec::<(String, String)>::new(), false);
    for event in events {
        match event {
            OutputEvent::ContentDelta(text) => {
                assert!(!open && !text.is_empty());
                content += &text;
            }
            OutputEvent::ToolCallStart { index, id, name } => {
                assert!(!open && index == calls.len() && id == format!("c{index}"));
                open = true;
                calls.push((name, String::new()));
            }
            OutputEvent::ToolCallArgumentsDelta { index, delta } => {
                assert!(open && index + 1 == calls.len() && !delta.is_empty());
                calls[index].1 += &delta;
            }
            OutputEvent::ToolCallEnd { index } => {
                assert!(open && index + 1 == calls.len());
                open = false;
            }
            OutputEvent::ReasoningDelta(_) => panic!("no reasoning here"),
            OutputEvent::Finished(_) => {}
        }
    }
    assert!(!open);
    (content, calls)
}

fn answer(text: &str) -> Answer {
    let mut parser = parser(&["f", "g"], &[]);
    let mut events: Vec<_> = text.bytes().flat_map(|byte| parser.push(byte.into())).collect();
    events.extend(parser.finish());
    collect(events)
}

/// The same text in one piece.
fn answer_whole(text: &str) -> Answer {
    let mut parser = parser(&["f", "g"], &[]);
    let mut events = Vec::new();
    parser.push_text(text, &mut events);
    events.extend(parser.finish());
    collect(events)
}

fn expect(text: &str, content: &str, calls: &[(&str, &str)]) {
    let calls: Vec<_> =
        calls.iter().map(|&(name, arguments)| (name.to_owned(), arguments.to_owned())).collect();
    assert_eq!(answer(text), (content.to_owned(), calls.clone()), "{text}");
    assert_eq!(answer_whole(text), (content.to_owned(), calls), "in one piece: {text}");
}

#[test]
fn calls_are_cut_out_with_their_arguments_byte_for_byte() {
    let arguments = "{\"b\":  1.10,\n \"a\": \"é \\u00e9 } </tool_call> \\\" {\"}";
    let call = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
    expect(&call, "", &[("f", arguments)]);
    expect(&format!("Let me see.\n{call}"), "Let me see.", &[("f", arguments)]);
    expect(&format!("{call}\n{call}\n"), "", &[("f", arguments), ("f", arguments)]);
    expect(&format!("a {call} b"), "a b", &[("f", arguments)]);
    expect("<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>", "", &[("f", "{\"a\": 1}")]);
    expect(
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
        "",
        &[("f", "{\"a\": 1}")],
    );
    expect("<tool_call>{\"name\": \"f\"}</tool_call>", "", &[("f", "{}")]);
    expect("<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>", "", &[("unknown", "{}")]);
    expect(
        "<tool_call>\n```json\n{\"name\": \"f\", \"arguments\": {}}\n```\n</tool_call>",
        "",
        &[("f", "{}")],
    );
}

#[test]
fn text_is_passed_on_unchanged() {
    for text in [
        "Hello",
        " \n leading and trailing \n ",
        "a < b, <tool>, <tool_cal l>, <tool_call",
        "{\"name\": \"f\"}",
        "{\"name\": \"h\", \"arguments\": {}}",
        "{\"answer\": 42}",
        "```python\nprint(1)\n```",
        "```json\n{\"a\": 1}\n```",
        "see {\"name\": \"f\", \"arguments\": {}}",
        "</tool_call>",
        "<tool_call>not json</tool_call> after",
        "<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>",
        "<tool_call>",
        "<tool_call>{\"name\": \"f",
        "",
    ] {
        expect(text, text, &[]);
    }
    let spaces = " ".repeat(10_000);
    expect(&format!("a{spaces}b"), &format!("a{spaces}b"), &[]);
}

#[test]
fn calls_of_careless_models_are_understood() {
    expect("{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", "", &[("f", "{\"a\": 1}")]);
    expect("{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", &[("f", "{\"a\": 1}")]);
    expect("```json\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n```", "", &[("f", "{\"a\": 1}")]);
    expect("\n```\n{\"name\": \"g\", \"arguments\": {}}\n```\nDone.", "Done.", &[("g", "{}")]);
    // Cut off, or without an end.
    expect("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b", "", &[("f", "{\"a\": \"b")]);
    expect("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}", "", &[("f", "{\"a\": 1}")]);
    expect("<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}", "", &[("f", "{\"a\": 1}")]);
    expect("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1</tool_call>x", "x", &[("f", "{\"a\": 1")]);
    expect(
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"1\n</tool_call>x",
        "x",
        &[("f", "{\"a\": \"1\n")],
    );
    let two = "<tool_call>{\"name\": \"f\", \"arguments\": {}}<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>";
    expect(two, "", &[("f", "{}"), ("g", "{}")]);
}

#[test]
fn arguments_arrive_as_they_are_written() {
    let mut parser = parser(&["f"], &[]);
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ";
    let events: Vec<_> = text.bytes().flat_map(|byte| parser.push(byte.into())).collect();
    assert!(matches!(&events[0], OutputEvent::ToolCallStart { name, .. } if name == "f"));
    assert_eq!(events.len(), 1 + "{\"a\": ".len());
}

#[test]
fn stop_strings_end_the_answer_once() {
    let mut parser = parser(&["f"], &["STOP"]);
    let mut events: Vec<_> = "a \nSTOP b".bytes().flat_map(|byte| parser.push(byte.into())).collect();
    events.extend(parser.finish());
    let finished =
        events.iter().filter(|event| matches!(event, OutputEvent::Finished(FinishHint::StopString(0))));
    assert_eq!(finished.count(), 1);
    assert_eq!(collect(events).0, "a \n");
    assert_eq!(parser.hint(), FinishHint::StopString(0));
}

proptest! {
    #[test]
    fn every_cut_gives_the_same_answer(
        parts in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "{\"name\": \"f\", \"arguments\": {", "}}", "}", "{", "\"", "\n", " ", "text",
            "```json", "```", "\"name\"", ":", ",", "<", "\\", "é", "<tool_", "{\"name\": \"f\"}",
        ]), 0..12),
        cut in 0usize..200,
    ) {
        let text = parts.concat();
        let bytewise = answer(&text);
        prop_assert_eq!(&bytewise, &answer_whole(&text));
        // Two pieces.
        let cut = (0..=cut.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        let mut parser = parser(&["f", "g"], &[]);
        let mut events = Vec::new();
        parser.push_text(&text[..cut], &mut events);
        parser.push_text(&text[cut..], &mut events);
        events.extend(parser.finish());
        prop_assert_eq!(bytewise, collect(events));
    }
}
