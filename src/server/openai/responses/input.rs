//! `input` as the conversation it means: messages, calls, their results, and what the model thought before.

use serde_json::{Map, Value};

use super::super::messages::{content, present};
use crate::server::error::ApiError;
use crate::text::chat::{Content, Conversation, Message, Role, ToolCall};

/// Most items.
const MAX_ITEMS: usize = 8192;

/// The conversation that `input` holds, after the instructions.
///
/// # Errors
///
/// 400 that names the item at fault, `input[3].content`.
pub(super) fn conversation(input: &Value, instructions: Option<&str>) -> Result<Conversation, ApiError> {
    let mut items = Items::default();
    if let Some(instructions) = instructions {
        items.messages.push(Message::text(Role::System, instructions));
    }
    match input {
        Value::String(text) => items.messages.push(Message::text(Role::User, text.as_str())),
        Value::Array(list) if (1..=MAX_ITEMS).contains(&list.len()) => {
            for (index, item) in list.iter().enumerate() {
                items.take(item, &format!("input[{index}]"))?;
            }
        }
        _ => {
            let rule = format_args!("expected a string or a list of 1 to {MAX_ITEMS} items");
            return Err(ApiError::invalid("input", rule));
        }
    }
    items.close();
    Ok(Conversation { messages: items.messages })
}

/// Puts items together: reasoning, text and calls that follow each other are one message of the assistant.
#[derive(Default)]
struct Items {
    messages: Vec<Message>,
    /// The assistant's message that more items may belong to.
    open: Option<Message>,
}

impl Items {
    fn take(&mut self, item: &Value, place: &str) -> Result<(), ApiError> {
        let Value::Object(map) = item else {
            return Err(ApiError::invalid(place.to_owned(), "expected an object"));
        };
        match present(map, "type").map_or(Some("message"), Value::as_str) {
            Some("message") => self.message(map, place),
            Some("reasoning") => self.reasoning(map, place),
            Some("function_call") => {
                let text = |field| required(map, field, place);
                let (id, name, arguments) = (text("call_id")?, text("name")?, text("arguments")?);
                self.assistant().tool_calls.push(ToolCall { id, name, arguments });
                Ok(())
            }
            Some("function_call_output") => {
                self.close();
                let id = required(map, "call_id", place)?;
                let place = format!("{place}.output");
                let output =
                    present(map, "output").ok_or_else(|| ApiError::invalid(place.clone(), "required"))?;
                self.messages.push(Message::tool_result(&id, content(output, &place)?));
                Ok(())
            }
            _ => {
                let rule = "expected message, reasoning, function_call or function_call_output";
                Err(ApiError::invalid(format!("{place}.type"), rule))
            }
        }
    }

    fn message(&mut self, map: &Map<String, Value>, place: &str) -> Result<(), ApiError> {
        let role = map.get("role").and_then(Value::as_str).and_then(Role::parse);
        let role = role.filter(|role| *role != Role::Tool).ok_or_else(|| {
            ApiError::invalid(format!("{place}.role"), "expected user, assistant, system or developer")
        })?;
        let place = format!("{place}.content");
        let value = present(map, "content").ok_or_else(|| ApiError::invalid(place.clone(), "required"))?;
        let content = content(value, &place)?;
        if role != Role::Assistant {
            self.close();
            self.messages.push(Message::text(role, content));
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|open| open.content.is_some() || !open.tool_calls.is_empty()) {
            self.close();
        }
        self.assistant().content = Some(content);
        Ok(())
    }

    fn reasoning(&mut self, map: &Map<String, Value>, place: &str) -> Result<(), ApiError> {
        let mut text = String::new();
        // The model's own words where the client kept them, else their summary.
        for (field, kind) in [("content", "reasoning_text"), ("summary", "summary_text")] {
            let Some(parts) = present(map, field) else { continue };
            let rule = format_args!("expected a list of parts of type {kind}");
            let unfit = || ApiError::invalid(format!("{place}.{field}"), rule);
            let mut texts = vec![];
            for part in parts.as_array().ok_or_else(unfit)? {
                let fits = part.get("type").is_some_and(|found| found == kind);
                texts.push(part.get("text").and_then(Value::as_str).filter(|_| fits).ok_or_else(unfit)?);
            }
            if text.is_empty() {
                text = texts.join("\n");
            }
        }
        if self.open.as_ref().is_some_and(|open| open.content.is_some() || !open.tool_calls.is_empty()) {
            self.close();
        }
        if !text.is_empty() {
            let reasoning = self.assistant().reasoning_content.get_or_insert_default();
            if !reasoning.is_empty() {
                reasoning.push('\n');
            }
            reasoning.push_str(&text);
        }
        Ok(())
    }

    fn assistant(&mut self) -> &mut Message {
        self.open.get_or_insert_with(|| Message::calling(vec![]))
    }

    fn close(&mut self) {
        if let Some(mut message) = self.open.take() {
            // A model that was cut while it reasoned said nothing.
            if message.tool_calls.is_empty() && message.content.is_none() {
                message.content = Some(Content::Text(String::new()));
            }
            self.messages.push(message);
        }
    }
}

fn required(map: &Map<String, Value>, field: &str, place: &str) -> Result<String, ApiError> {
    let text = present(map, field).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| ApiError::invalid(format!("{place}.{field}"), "expected a string"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn items_become_the_messages_they_were() {
        let input = json!([
            { "role": "user", "content": "a" },
            { "type": "reasoning", "id": "rs_1", "summary": [{ "type": "summary_text", "text": "short" }],
              "content": [{ "type": "reasoning_text", "text": "long" }] },
            { "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
              "content": [{ "type": "output_text", "text": "b", "annotations": [] }] },
            { "type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}" },
            { "type": "function_call", "call_id": "c2", "name": "g", "arguments": "not JSON" },
            { "type": "function_call_output", "call_id": "c1", "output": "r1" },
            { "type": "function_call_output", "call_id": "c2", "output": [{ "type": "input_text", "text": "r2" }] },
            { "type": "reasoning", "summary": [] },
            { "role": "assistant", "content": "d" },
            { "role": "assistant", "content": "e" },
            { "role": "developer", "content": [{ "type": "input_text", "text": "f" }] },
        ]);
        let messages = conversation(&input, Some("rules")).unwrap().messages;
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(
            roles,
            ["system", "user", "assistant", "tool", "tool", "assistant", "assistant", "developer"]
        );
        let called = &messages[2];
        assert_eq!(
            (called.reasoning_content.as_deref(), called.content_text().as_ref()),
            (Some("long"), "b")
        );
        let names: Vec<_> = called.tool_calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["f", "g"]);
        assert_eq!(messages[4].content_text(), "r2");
        assert_eq!(messages[5].reasoning_content, None);
    }

    #[test]
    fn every_item_at_fault_is_named() {
        for (input, field) in [
            (json!([]), "input"),
            (json!(3), "input"),
            (json!(["x"]), "input[0]"),
            (json!([{ "role": "tool", "content": "x" }]), "input[0].role"),
            (json!([{ "role": "user" }]), "input[0].content"),
            (json!([{ "role": "user", "content": [{ "type": "input_image" }] }]), "input[0].content[0]"),
            (json!([{ "type": "item_reference", "id": "x" }]), "input[0].type"),
            (json!([{ "type": "function_call", "name": "f", "arguments": "" }]), "input[0].call_id"),
            (json!([{ "type": "function_call_output", "call_id": "c" }]), "input[0].output"),
            (json!([{ "type": "reasoning", "summary": [{ "text": "x" }] }]), "input[0].summary"),
        ] {
            assert_eq!(conversation(&input, None).unwrap_err().field.as_deref(), Some(field), "{input}");
        }
    }
}
