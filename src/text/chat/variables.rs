//! What chat templates see: the variables that Hugging Face's renderer defines.

use serde_json::{Map, Value, json};

use super::{ChatTemplate, Conversation, Message, RenderOptions, Role, ToolCall};
use crate::text::Tokenizer;

/// The variables that hold the client's text.
pub(super) fn of_conversation(
    template: &ChatTemplate,
    conversation: &Conversation,
    options: &RenderOptions,
) -> Map<String, Value> {
    let mut variables = Map::new();
    let messages =
        (0..conversation.messages.len()).filter_map(|index| message(template, conversation, index));
    variables.insert("messages".into(), messages.collect());
    let tools: Vec<Value> = options.tools.iter().map(|tool| tool.definition.clone()).collect();
    variables.insert("tools".into(), if tools.is_empty() { Value::Null } else { tools.into() });
    variables.insert("documents".into(), Value::Null);
    variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
    if let Some(effort) = options.reasoning_effort {
        variables.insert("reasoning_effort".into(), effort.as_str().into());
    }
    variables.extend(options.template_variables.clone());
    variables
}

/// Adds the variables that are special tokens and must be seen as such.
pub(super) fn with_marker_texts(
    mut variables: Map<String, Value>,
    tokenizer: &Tokenizer,
) -> Map<String, Value> {
    for (name, id) in [("bos_token", tokenizer.bos_id()), ("eos_token", tokenizer.eos_id())] {
        let text = id.map(|id| String::from_utf8_lossy(tokenizer.literal_bytes(id)).into_owned());
        variables.insert(name.into(), text.unwrap_or_default().into());
    }
    variables
}

fn message(template: &ChatTemplate, conversation: &Conversation, index: usize) -> Option<Value> {
    let source: &Message = conversation.messages.get(index)?;
    let role = match source.role {
        // Templates drop messages of roles they do not know.
        Role::Developer if !template.knows_developer() => Role::System,
        role => role,
    };
    let mut message = Map::new();
    message.insert("role".into(), role.as_str().into());
    message.insert("content".into(), source.content_text().into());
    let name = match source.role {
        Role::Tool => conversation.result_name(index),
        _ => source.name.as_deref(),
    };
    if let Some(name) = name {
        message.insert("name".into(), name.into());
    }
    if let Some(id) = &source.tool_call_id {
        message.insert("tool_call_id".into(), id.as_str().into());
    }
    if let Some(reasoning) = &source.reasoning_content {
        // Model makers have not agreed on a name.
        for name in ["reasoning_content", "thinking"] {
            message.insert(name.into(), reasoning.as_str().into());
        }
    }
    if !source.tool_calls.is_empty() {
        message.insert("tool_calls".into(), source.tool_calls.iter().map(tool_call).collect());
    }
    Some(Value::Object(message))
}

/// A call as templates expect it: arguments as an object wherever they are one, so that `tojson` does not encode them a
/// second time.
fn tool_call(call: &ToolCall) -> Value {
    let arguments = serde_json::from_str(&call.arguments).ok().filter(Value::is_object);
    let arguments = arguments.unwrap_or_else(|| call.arguments.as_str().into());
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}
