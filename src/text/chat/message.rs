//! What a conversation is, whatever the model: messages, tools and how to answer.
//!
//! The server builds these from its wire types; nothing here knows HTTP. All text is the client's own and never
//! becomes a special token.

use std::borrow::Cow;

use serde_json::{Value, json};

/// Who wrote a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The rules of the service.
    System,
    /// The rules of the application; what newer clients send instead of `system`.
    Developer,
    /// The person asking.
    User,
    /// The model.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The role's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of that name; `function` is the old name of `tool`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "system" => Self::System,
            "developer" => Self::Developer,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" | "function" => Self::Tool,
            _ => return None,
        })
    }
}

/// The text of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// One text.
    Text(String),
    /// Several texts; models see them joined by line breaks.
    Parts(Vec<String>),
}

impl Content {
    /// The text as models see it.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Parts(parts) => Cow::Owned(parts.join("\n")),
        }
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// A call of a tool, as the model made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What the result's `tool_call_id` refers to.
    pub id: String,
    /// The function's name, without namespace.
    pub name: String,
    /// The arguments exactly as the model wrote them; JSON if the model made no mistake.
    pub arguments: String,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// Its text; an assistant message with tool calls may have none.
    pub content: Option<Content>,
    /// The author's or the tool's name.
    pub name: Option<String>,
    /// The calls an assistant message makes.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result a tool message is.
    pub tool_call_id: Option<String>,
    /// What the model thought before it answered, handed back by the client.
    pub reasoning_content: Option<String>,
}

impl Message {
    /// A message with a text and nothing else.
    pub fn text(role: Role, content: impl Into<Content>) -> Self {
        Self {
            role,
            content: Some(content.into()),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning_content: None,
        }
    }

    /// An assistant message that calls tools.
    pub fn calling(tool_calls: Vec<ToolCall>) -> Self {
        Self { content: None, tool_calls, ..Self::text(Role::Assistant, "") }
    }

    /// The result of the call `tool_call_id`.
    pub fn tool_result(tool_call_id: &str, content: impl Into<Content>) -> Self {
        Self { tool_call_id: Some(tool_call_id.to_owned()), ..Self::text(Role::Tool, content) }
    }

    /// The text as models see it; empty if there is none.
    pub fn content_text(&self) -> Cow<'_, str> {
        self.content.as_ref().map_or(Cow::Borrowed(""), Content::text)
    }
}

/// All messages of a conversation, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// The name of the function whose result the message at `index` is: that of the latest earlier call with its id,
    /// else its own `name`, else, when it gives no id either, that of the latest call.
    pub(crate) fn result_name(&self, index: usize) -> Option<&str> {
        let message = self.messages.get(index)?;
        let mut calls = self.messages.get(..index)?.iter().rev().flat_map(|m| m.tool_calls.iter().rev());
        let own = message.name.as_deref();
        match &message.tool_call_id {
            Some(id) => calls.find(|call| call.id == *id).map(|call| call.name.as_str()).or(own),
            None => own.or_else(|| calls.next().map(|call| call.name.as_str())),
        }
    }
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments; the order of properties is kept.
    pub parameters: Option<Value>,
    /// The whole object as the client sent it (`{"type": "function", "function": {…}}`): what templates show.
    pub definition: Value,
}

impl Tool {
    /// A tool from its parts.
    pub fn function(name: &str, description: Option<&str>, parameters: Option<Value>) -> Self {
        let mut function = json!({ "name": name });
        if let Some(description) = description {
            function["description"] = description.into();
        }
        if let Some(parameters) = &parameters {
            function["parameters"] = parameters.clone();
        }
        Self {
            name: name.to_owned(),
            description: description.map(str::to_owned),
            parameters,
            definition: json!({ "type": "function", "function": function }),
        }
    }

    /// A tool from the object the client sent; `None` if it is not a function with a name.
    pub fn from_definition(definition: Value) -> Option<Self> {
        let function = definition.get("function")?;
        Some(Self {
            name: function.get("name")?.as_str()?.to_owned(),
            description: function.get("description").and_then(Value::as_str).map(str::to_owned),
            parameters: function.get("parameters").filter(|parameters| !parameters.is_null()).cloned(),
            definition,
        })
    }
}

/// How long a reasoning model should think.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReasoningEffort {
    /// Briefly.
    Low,
    /// As the model does by itself.
    #[default]
    Medium,
    /// At length.
    High,
}

impl ReasoningEffort {
    /// The name in prompts.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    /// The nearest of the three for any name that clients use.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "none" | "minimal" | "low" => Self::Low,
            "medium" => Self::Medium,
            "high" | "xhigh" | "max" => Self::High,
            _ => return None,
        })
    }
}

/// A JSON schema the answer must follow, shown to models that are trained to see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ResponseFormat {
    /// The schema's name.
    pub name: String,
    /// What the answer is.
    pub description: Option<String>,
    /// The schema.
    pub schema: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str, name: &str) -> Message {
        Message::calling(vec![ToolCall { id: id.into(), name: name.into(), arguments: "{}".into() }])
    }

    #[test]
    fn a_result_belongs_to_the_latest_call_with_its_id() {
        let unnamed = Message { tool_call_id: None, ..Message::tool_result("", "r") };
        let named = Message { name: Some("given".into()), ..Message::tool_result("9", "r") };
        let messages = vec![
            call("1", "old"),
            call("1", "f"),
            call("2", "g"),
            Message::tool_result("1", "r"),
            unnamed,
            named,
            Message::tool_result("9", "r"),
        ];
        let conversation = Conversation { messages };
        let names: Vec<_> = (3..8).map(|index| conversation.result_name(index)).collect();
        assert_eq!(names, [Some("f"), Some("g"), Some("given"), None, None]);
    }

    #[test]
    fn tools_keep_what_the_client_sent() {
        let definition = json!({"type": "function", "function": {
            "name": "f", "strict": true, "parameters": {"properties": {"z": {}, "a": {}}}}});
        let tool = Tool::from_definition(definition.clone()).unwrap();
        assert_eq!(
            (tool.name.as_str(), tool.description.clone(), &tool.definition),
            ("f", None, &definition)
        );
        assert_eq!(tool.parameters.unwrap().to_string(), r#"{"properties":{"z":{},"a":{}}}"#);
        for bad in [json!({}), json!({"function": {}}), json!({"function": {"name": 1}}), json!(3)] {
            assert_eq!(Tool::from_definition(bad), None);
        }
        let built = Tool::function("f", Some("does"), None).definition.to_string();
        assert_eq!(built, r#"{"type":"function","function":{"name":"f","description":"does"}}"#);
    }
}
