//! What a constrained answer looks like in the model's own syntax, as a grammar in Lark's notation.
//!
//! ```text
//! harmony    <|channel|>analysis<|message|>…<|end|><|start|>assistant        once, if the model wants to
//!            <|channel|>final<|message|>{JSON}<|return|>                     or
//!            <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{JSON}<|call|>
//! tags       {JSON}                                                          or
//!            <tool_call>\n{"name": "NAME", "arguments": {JSON}}\n</tool_call>
//! ```
//!
//! Markers are written as ids, so that no text can stand for one.

use std::fmt::Write;

use serde_json::{Value, json};

use super::grammar::guided;
use crate::text::chat::Tool;
use crate::text::harmony::HarmonyMarkers;

/// Any text.
const TEXT: &str = "TEXT: /(?s:.*)/\n";

/// How a model writes tool calls, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallSyntax {
    /// In harmony.
    Harmony(HarmonyMarkers),
    /// Between `<tool_call>` tags; the opening one may be a token.
    Tags {
        /// Its id.
        open: Option<u32>,
    },
    /// Not at all, or in no way that can be told from text.
    Unknown,
}

/// What the answer itself may be, calls aside.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Any text.
    Text,
    /// JSON of this schema.
    Json(&'a Value),
    /// Nothing: there must be a call.
    Nothing,
}

/// A function that may be called, and the schema of its arguments.
#[derive(Clone, Debug)]
pub struct Callable {
    /// Its name.
    pub name: String,
    /// What its arguments keep to.
    pub arguments: Value,
}

impl Callable {
    /// A function whose arguments keep to its parameters, where `strictly`; else to being an object.
    pub fn of(tool: &Tool, strictly: bool) -> Self {
        let arguments = match &tool.parameters {
            Some(Value::Object(members)) if strictly => {
                let mut members = members.clone();
                members.entry("type").or_insert_with(|| "object".into());
                Value::Object(members)
            }
            None if strictly => json!({ "type": "object", "properties": {}, "additionalProperties": false }),
            _ => json!({ "type": "object" }),
        };
        Self { name: tool.name.clone(), arguments }
    }
}

/// The grammar of an answer. `several`: one call may follow another.
pub fn grammar(syntax: CallSyntax, body: Body<'_>, calls: &[Callable], several: bool) -> String {
    let mut lark = String::new();
    match syntax {
        CallSyntax::Harmony(markers) => harmony(&mut lark, markers, body, calls),
        CallSyntax::Tags { open } => tags(&mut lark, open, body, calls, several),
        CallSyntax::Unknown => tags(&mut lark, None, body, &[], false),
    }
    if let Body::Json(schema) = body {
        rule(&mut lark, "json", &format!("%json {}", guided(schema)));
    }
    for (index, call) in calls.iter().enumerate() {
        rule(&mut lark, &format!("arguments_{index}"), &format!("%json {}", guided(&call.arguments)));
    }
    lark
}

fn rule(lark: &mut String, name: &str, definition: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(lark, "{name}: {definition}");
}

/// A literal; names of functions hold nothing that would need more than this.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn token(id: u32) -> String {
    format!("<[{id}]>")
}

fn harmony(lark: &mut String, markers: HarmonyMarkers, body: Body<'_>, calls: &[Callable]) {
    let (channel, message) = (token(markers.channel), token(markers.message));
    let typed = |id: u32| format!("\" \" {} \"json\"", token(id));
    let json_type = markers.constrain.map_or_else(|| literal(" json"), typed);
    let again = format!("{} {} \"assistant\"", token(markers.end), token(markers.start));
    lark.push_str(TEXT);
    rule(lark, "thought", &format!("{channel} \"analysis\" {message} TEXT {again}"));
    let mut ends: Vec<String> = match body {
        Body::Nothing => vec![],
        _ => vec!["final".into()],
    };
    if !calls.is_empty() {
        ends.push("call".into());
    }
    // What is said along with a call would be taken for part of a JSON answer.
    let preamble = if matches!(body, Body::Text) && !calls.is_empty() {
        rule(lark, "preamble", &format!("{channel} \"commentary\" {message} TEXT {again}"));
        "preamble? "
    } else {
        ""
    };
    rule(lark, "start", &format!("thought? {preamble}( {} )", ends.join(" | ")));
    let done = token(markers.done);
    match body {
        Body::Text => rule(lark, "final", &format!("{channel} \"final\" {message} TEXT {done}")),
        Body::Json(_) => {
            rule(lark, "final", &format!("{channel} \"final\" ({json_type})? {message} json {done}"));
        }
        Body::Nothing => {}
    }
    if !calls.is_empty() {
        let one = |(index, call): (usize, &Callable)| {
            let head = literal(&format!("commentary to=functions.{}", call.name));
            format!("{channel} {head} {json_type} {message} arguments_{index} {}", token(markers.call))
        };
        let each: Vec<String> = calls.iter().enumerate().map(one).collect();
        rule(lark, "call", &each.join(" | "));
    }
}

fn tags(lark: &mut String, open: Option<u32>, body: Body<'_>, calls: &[Callable], several: bool) {
    let close = literal("\n</tool_call>");
    if !calls.is_empty() {
        let one = |(index, call): (usize, &Callable)| {
            let head = literal(&format!("\n{{\"name\": \"{}\", \"arguments\": ", call.name));
            format!("{head} arguments_{index} \"}}\"")
        };
        let each: Vec<String> = calls.iter().enumerate().map(one).collect();
        rule(lark, "inner", &each.join(" | "));
        rule(lark, "call", &format!("{} inner {close}", open.map_or_else(|| literal("<tool_call>"), token)));
        rule(lark, "calls", if several { "call ( \"\\n\" call )*" } else { "call" });
    }
    match (body, calls.is_empty()) {
        (Body::Nothing, _) => rule(lark, "start", "calls"),
        (Body::Json(_), true) => rule(lark, "start", "json"),
        (Body::Json(_), false) => rule(lark, "start", "json | calls"),
        (Body::Text, true) => {
            lark.push_str(TEXT);
            rule(lark, "start", "TEXT");
        }
        (Body::Text, false) => {
            lark.push_str(TEXT);
            // The shortest text up to a tag, else all of it: no text holds a tag.
            rule(lark, "opening[lazy]", &format!("TEXT {}", literal("<tool_call>")));
            rule(lark, "start", &format!("( opening inner {close} )* rest"));
            rule(lark, "rest", "TEXT");
        }
    }
}
