//! `messages` of a chat request as the conversation they mean. Every error names its place.

use serde_json::{Map, Value};

use crate::server::error::ApiError;
use crate::text::chat::{Content, Conversation, Message, Role, ToolCall};

/// Most messages of a conversation.
const MAX_MESSAGES: usize = 8192;
/// Most calls of a message.
const MAX_CALLS: usize = 128;

/// The conversation that `messages` holds.
///
/// # Errors
///
/// 400 that names the part at fault, `messages[3].content`.
pub fn conversation(messages: &Value) -> Result<Conversation, ApiError> {
    let expected =
        || ApiError::invalid("messages", format_args!("expected a list of 1 to {MAX_MESSAGES} messages"));
    let items = messages.as_array().filter(|items| (1..=MAX_MESSAGES).contains(&items.len()));
    let messages = items.ok_or_else(expected)?.iter().enumerate();
    let messages: Result<_, _> =
        messages.map(|(index, item)| message(item, &format!("messages[{index}]"))).collect();
    Ok(Conversation { messages: messages? })
}

fn message(value: &Value, place: &str) -> Result<Message, ApiError> {
    let Value::Object(map) = value else {
        return Err(ApiError::invalid(place.to_owned(), "expected an object"));
    };
    let Some(role) = map.get("role").and_then(Value::as_str).and_then(Role::parse) else {
        let rule = "expected system, developer, user, assistant or tool";
        return Err(ApiError::invalid(format!("{place}.role"), rule));
    };
    for field in ["function_call", "audio"] {
        if present(map, field).is_some() {
            return Err(ApiError::invalid(format!("{place}.{field}"), "this worker does not support it"));
        }
    }
    let content =
        present(map, "content").map(|value| content(value, &format!("{place}.content"))).transpose()?;
    let tool_calls = match present(map, "tool_calls") {
        Some(calls) => tool_calls(calls, &format!("{place}.tool_calls"))?,
        None => vec![],
    };
    if content.is_none() && !(role == Role::Assistant && has_more_than_content(map)) {
        return Err(ApiError::invalid(format!("{place}.content"), "required"));
    }
    if role != Role::Assistant && !tool_calls.is_empty() {
        return Err(ApiError::invalid(format!("{place}.tool_calls"), "only the assistant calls tools"));
    }
    let text = |field: &str| string(map, field, place);
    Ok(Message {
        role,
        content,
        name: text("name")?,
        tool_calls,
        tool_call_id: text("tool_call_id")?,
        // The second is what other servers call it.
        reasoning_content: match text("reasoning_content")? {
            Some(reasoning) => Some(reasoning),
            None => text("reasoning")?,
        },
    })
}

/// An assistant's message may be a call, reasoning or a refusal alone.
fn has_more_than_content(map: &Map<String, Value>) -> bool {
    ["tool_calls", "reasoning_content", "reasoning", "refusal"]
        .iter()
        .any(|field| present(map, field).is_some())
}

/// A text, or a list of parts that are texts.
///
/// # Errors
///
/// 400 that names the part at fault.
pub fn content(value: &Value, place: &str) -> Result<Content, ApiError> {
    match value {
        Value::String(text) => Ok(Content::Text(text.clone())),
        Value::Array(parts) => {
            let parts = parts.iter().enumerate().map(|(index, part)| {
                let text = match part.get("type").and_then(Value::as_str) {
                    Some("text" | "input_text" | "output_text") => part.get("text"),
                    Some("refusal") => part.get("refusal"),
                    _ => None,
                };
                let rule = "expected a part of type text with its text; this model reads nothing else";
                let unfit = || ApiError::invalid(format!("{place}[{index}]"), rule);
                text.and_then(Value::as_str).map(str::to_owned).ok_or_else(unfit)
            });
            parts.collect::<Result<_, _>>().map(Content::Parts)
        }
        _ => Err(ApiError::invalid(place.to_owned(), "expected a string or a list of parts")),
    }
}

fn tool_calls(value: &Value, place: &str) -> Result<Vec<ToolCall>, ApiError> {
    let expected =
        || ApiError::invalid(place.to_owned(), format_args!("expected a list of at most {MAX_CALLS} calls"));
    let calls = value.as_array().filter(|calls| calls.len() <= MAX_CALLS).ok_or_else(expected)?;
    let calls = calls.iter().enumerate().map(|(index, call)| {
        let rule = "expected {id, type: \"function\", function: {name, arguments}} of strings";
        let unfit = || ApiError::invalid(format!("{place}[{index}]"), rule);
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned).ok_or_else(unfit);
        let function = call.get("function").ok_or_else(unfit)?;
        Ok(ToolCall {
            id: text(call.get("id"))?,
            name: text(function.get("name"))?,
            arguments: text(function.get("arguments"))?,
        })
    });
    calls.collect()
}

/// A member, unless it is `null`.
pub fn present<'a>(map: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    map.get(field).filter(|value| !value.is_null())
}

fn string(map: &Map<String, Value>, field: &str, place: &str) -> Result<Option<String>, ApiError> {
    match present(map, field) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ApiError::invalid(format!("{place}.{field}"), "expected a string")),
    }
}
