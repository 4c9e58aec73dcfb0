//! Tool calls written as JSON objects with the members `name` and `arguments`.
//!
//! The arguments are handed on exactly as the model wrote them, so they are cut out of the text, not parsed and written
//! anew.

use serde::de::IgnoredAny;
use serde_json::Deserializer;

/// How a text compares with the usual beginning of a call, up to the opening brace of its arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Could still become one.
    Incomplete,
    /// Is one: the function's name, and where the arguments begin.
    Complete { name: String, arguments_at: usize },
    /// Something else; perhaps a call in another form.
    Other,
}

/// Looks for `{"name": "…", "arguments": {` at the beginning of `text`.
pub(super) fn opening(text: &str) -> Opening {
    let mut rest = text;
    for expected in ["{", "\"name\"", ":"] {
        match after(rest, expected) {
            Ok(next) => rest = next,
            Err(verdict) => return verdict,
        }
    }
    rest = rest.trim_start();
    if rest.is_empty() {
        return Opening::Incomplete;
    }
    let Some(len) = string_len(rest) else {
        return if rest.starts_with('"') { Opening::Incomplete } else { Opening::Other };
    };
    let (name, next) = rest.split_at(len);
    let Ok(name) = serde_json::from_str::<String>(name) else { return Opening::Other };
    rest = match after(next, ",") {
        Ok(next) => next,
        Err(verdict) => return verdict,
    };
    rest = match (after(rest, "\"arguments\""), after(rest, "\"parameters\"")) {
        (Ok(next), _) | (_, Ok(next)) => next,
        (Err(Opening::Other), Err(verdict)) | (Err(verdict), _) => return verdict,
    };
    rest = match after(rest, ":") {
        Ok(next) => next.trim_start(),
        Err(verdict) => return verdict,
    };
    match rest.chars().next() {
        None => Opening::Incomplete,
        Some('{') => Opening::Complete { name, arguments_at: text.len() - rest.len() },
        Some(_) => Opening::Other,
    }
}

/// What follows `expected` and whitespace before it.
fn after<'t>(text: &'t str, expected: &str) -> Result<&'t str, Opening> {
    let text = text.trim_start();
    match text.strip_prefix(expected) {
        Some(rest) => Ok(rest),
        None if expected.starts_with(text) => Err(Opening::Incomplete),
        None => Err(Opening::Other),
    }
}

/// The length of the JSON string that `text` begins with, if it is complete.
fn string_len(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if at == 0 => {}
            _ if at == 0 => return None,
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The name and arguments of a complete call in any form: members in any order, arguments as an object or as a string
/// that holds one.
pub(super) fn parse_call(text: &str) -> Option<(String, String)> {
    let members = members(text.trim())?;
    let member = |name: &str| members.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    let name: String = serde_json::from_str(member("name")?).ok()?;
    let arguments = match member("arguments").or_else(|| member("parameters")) {
        None | Some("null") => "{}".to_owned(),
        Some(value) => serde_json::from_str::<String>(value).unwrap_or_else(|_| value.to_owned()),
    };
    (!name.is_empty()).then_some((name, arguments))
}

/// The members of the JSON object that `text` is, with their values as they are written.
fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let mut rest = text.strip_prefix('{')?.trim_start();
    let mut members = Vec::new();
    while !rest.starts_with('}') {
        let key_len = string_len(rest)?;
        let (key, after_key) = rest.split_at(key_len);
        let value = after_key.trim_start().strip_prefix(':')?.trim_start();
        let mut values = Deserializer::from_str(value).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        let (value, after_value) = value.split_at(values.byte_offset());
        members.push((serde_json::from_str(key).ok()?, value.trim_end()));
        let after_value = after_value.trim_start();
        rest = match after_value.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None => after_value,
        };
        if rest.is_empty() {
            return None;
        }
    }
    rest.strip_prefix('}').filter(|end| end.trim().is_empty()).map(|_| members)
}

/// Follows a JSON object to its closing brace.
#[derive(Debug, Default)]
pub(super) struct ObjectScan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ObjectScan {
    /// Takes the next byte; `true` if it closes the object.
    pub(super) fn advance(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    /// Whether the scan stands inside a string.
    pub(super) fn in_string(&self) -> bool {
        self.in_string
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_opening_is_recognised_at_every_cut() {
        let text = "\n{ \"name\" : \"a\\\"b\" , \"arguments\": {\"x\": 1}}";
        let at = text.find("{\"x\"").unwrap();
        for end in 0..=text.len() {
            let complete = Opening::Complete { name: "a\"b".into(), arguments_at: at };
            let expected = if end > at { complete } else { Opening::Incomplete };
            assert_eq!(opening(&text[..end]), expected, "{:?}", &text[..end]);
        }
        let parameters = "{\"name\":\"f\",\"parameters\":{";
        assert_eq!(opening(parameters), Opening::Complete { name: "f".into(), arguments_at: 25 });
        for other in
            ["x", "{\"nome", "{\"name\": 3", "{\"name\":\"f\"}", "{\"name\":\"f\",\"arguments\":\"", "[{"]
        {
            assert_eq!(opening(other), Opening::Other, "{other}");
        }
    }

    #[test]
    fn calls_parse_in_any_form_and_keep_their_arguments_text() {
        let call = |name: &str, arguments: &str| Some((name.to_owned(), arguments.to_owned()));
        for (text, expected) in [
            (
                r#" {"name": "f", "arguments": {"b": 1.10,  "a":"é\u00e9"}} "#,
                call("f", r#"{"b": 1.10,  "a":"é\u00e9"}"#),
            ),
            (r#"{"arguments": {}, "name": "f"}"#, call("f", "{}")),
            (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, call("f", r#"{"a": 1}"#)),
            (
                r#"{"name": "f", "parameters": {"a": [1, {"b": 2}]} , "id": 3}"#,
                call("f", r#"{"a": [1, {"b": 2}]}"#),
            ),
            (r#"{"name": "f"}"#, call("f", "{}")),
            (r#"{"name": "f", "arguments": null}"#, call("f", "{}")),
            (r#"{"name": "f", "arguments": [1]}"#, call("f", "[1]")),
            (r#"{"name": "f", "arguments": {"a": }}"#, None),
            (r#"{"name": "f", "arguments": {"#, None),
            (r#"{"name": 3}"#, None),
            (r#"{"name": ""}"#, None),
            (r#"{"name": "f"} x"#, None),
            (r#"{"name": "f","#, None),
            ("", None),
            ("[]", None),
        ] {
            assert_eq!(parse_call(text), expected, "{text}");
        }
    }

    #[test]
    fn braces_in_strings_do_not_close_an_object() {
        let text = r#"{"a": "}\"}", "b": [{}]}rest"#;
        let mut scan = ObjectScan::default();
        let end = text.bytes().position(|byte| scan.advance(byte)).unwrap();
        assert_eq!(&text[end + 1..], "rest");
    }
}
