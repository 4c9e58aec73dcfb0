//! Which messages a conversation becomes: the server's own, and what of the past goes back into the prompt.

use super::{ANALYSIS, COMMENTARY, ContentType, DeveloperText, FINAL, FUNCTIONS, HarmonyMessage, SystemText};
use crate::text::chat::{ChatError, Conversation, Date, Message, RenderOptions, Role, Tool};

/// The messages of the prompt for `conversation`.
///
/// The client's first `system` and `developer` messages become the instructions of the developer message, later ones
/// developer messages of their own. Reasoning of finished answers is left out; calls and results stay.
///
/// # Errors
/// A tool result belongs to no call.
pub fn prompt_messages(
    conversation: &Conversation,
    options: &RenderOptions,
) -> Result<Vec<HarmonyMessage>, ChatError> {
    let identity = options.template_variables.get("model_identity").and_then(|value| value.as_str());
    let system = SystemText {
        date: Some(options.date.unwrap_or_else(Date::today)),
        effort: options.reasoning_effort.unwrap_or_default(),
        builtin_tools: options.builtin_tools,
        has_functions: !options.tools.is_empty(),
        ..SystemText::default()
    };
    let system = SystemText { identity: identity.unwrap_or(system.identity), ..system };
    let mut messages = vec![HarmonyMessage::plain("system", system.to_string())];

    let instructs = |message: &&Message| matches!(message.role, Role::System | Role::Developer);
    let leading: Vec<_> = conversation.messages.iter().take_while(instructs).collect();
    let texts: Vec<_> = leading.iter().map(|m| m.content_text()).filter(|text| !text.is_empty()).collect();
    messages.extend(developer(&texts.join("\n\n"), &options.tools, options));

    for index in leading.len()..conversation.messages.len() {
        push_message(&mut messages, conversation, index, options)?;
    }
    without_finished_reasoning(&mut messages, options.add_generation_prompt);
    Ok(messages)
}

fn developer(instructions: &str, tools: &[Tool], options: &RenderOptions) -> Option<HarmonyMessage> {
    let text = DeveloperText {
        instructions: Some(instructions).filter(|text| !text.is_empty()),
        tools,
        response_format: options.response_format.as_ref(),
    };
    text.render().map(|text| HarmonyMessage::plain("developer", text))
}

fn push_message(
    messages: &mut Vec<HarmonyMessage>,
    conversation: &Conversation,
    index: usize,
    options: &RenderOptions,
) -> Result<(), ChatError> {
    let Some(message) = conversation.messages.get(index) else { return Ok(()) };
    let content = message.content_text();
    match message.role {
        Role::System | Role::Developer => {
            let text = DeveloperText { instructions: Some(&content), ..DeveloperText::default() };
            messages.extend(text.render().map(|text| HarmonyMessage::plain("developer", text)));
        }
        Role::User => messages.push(HarmonyMessage::plain("user", content)),
        Role::Assistant => push_assistant(messages, message, options),
        Role::Tool => {
            let name = conversation.result_name(index).ok_or(ChatError::ResultWithoutCall { index })?;
            let (author, channel) = tool_address(name, options);
            messages.push(HarmonyMessage {
                author,
                recipient: Some("assistant".to_owned()),
                ..HarmonyMessage::assistant(channel, content)
            });
        }
    }
    Ok(())
}

fn push_assistant(messages: &mut Vec<HarmonyMessage>, message: &Message, options: &RenderOptions) {
    if let Some(reasoning) = message.reasoning_content.as_ref().filter(|text| !text.is_empty()) {
        messages.push(HarmonyMessage::assistant(ANALYSIS, reasoning));
    }
    let content = message.content_text();
    // What is said along with calls is a preamble; an answer is final even if it is empty.
    if message.tool_calls.is_empty() {
        messages.push(HarmonyMessage::assistant(FINAL, content));
    } else if !content.is_empty() {
        messages.push(HarmonyMessage::assistant(COMMENTARY, content));
    }
    for call in &message.tool_calls {
        let (recipient, channel) = tool_address(&call.name, options);
        let content_type = match channel {
            ANALYSIS => ContentType::Named("code".to_owned()),
            _ => ContentType::Constrained("json".to_owned()),
        };
        messages.push(HarmonyMessage {
            recipient: Some(recipient),
            content_type: Some(content_type),
            ..HarmonyMessage::assistant(channel, call.arguments.as_str())
        });
    }
}

/// The full name of a tool, and the channel in which it is spoken to.
fn tool_address(name: &str, options: &RenderOptions) -> (String, &'static str) {
    if options.builtin_tools.has(name) {
        (name.to_owned(), ANALYSIS)
    } else if name.strip_prefix(FUNCTIONS).is_some_and(|rest| rest.starts_with('.')) {
        (name.to_owned(), COMMENTARY)
    } else {
        (format!("{FUNCTIONS}.{name}"), COMMENTARY)
    }
}

/// Drops the reasoning of finished answers. What precedes an answer that is the end of the conversation stays unless
/// more is to be generated; while a tool is awaited, there is no answer yet and all stays.
pub fn without_finished_reasoning(messages: &mut Vec<HarmonyMessage>, generate: bool) {
    let last_user = messages.iter().rposition(|message| message.author == "user").unwrap_or(0);
    let considered = if generate { messages.len() } else { last_user };
    let is_channel = |message: &HarmonyMessage, name: &str| {
        message.author == "assistant"
            && message.recipient.is_none()
            && message.channel.as_deref() == Some(name)
    };
    let finished =
        messages.iter().take(considered).rposition(|message| is_channel(message, FINAL)).unwrap_or(0);
    let mut index = 0;
    messages.retain(|message| {
        let drop = index < finished && is_channel(message, ANALYSIS);
        index += 1;
        !drop
    });
}
