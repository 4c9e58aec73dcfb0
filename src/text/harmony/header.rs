//! What the header of a generated message says: who speaks, to whom, in which channel.
//!
//! Models take liberties with headers; whatever stands there means something:
//! * the recipient may stand in the role's part or the channel's, with or without `to=`;
//! * of several channels the last counts;
//! * the content type may be missing, and may follow `<|constrain|>` or not;
//! * the role may be missing, or be a channel's name.

use super::{ANALYSIS, COMMENTARY, FINAL, FUNCTIONS};

/// Stands for `<|channel|>` in a header's text.
pub(super) const CHANNEL_MARK: char = '\0';

/// What kind of text the message's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    /// For the user.
    Answer,
    /// The model's own thoughts, and what it says to tools that nobody supplied.
    Reasoning,
    /// The arguments of a call of the named function.
    Call(String),
    /// Not the assistant's words: an invented user or tool.
    Foreign,
}

/// Reads a header. `text`: without the `<|start|>` before and the `<|message|>` after it, `<|channel|>` as
/// [`CHANNEL_MARK`], `<|constrain|>` as a space. `role_known`: the text goes on where the prompt said `assistant`.
pub(super) fn purpose(text: &str, role_known: bool, tool_names: &[String]) -> Purpose {
    let mut segments = text.split(CHANNEL_MARK);
    let mut words: Vec<&str> = segments.next().unwrap_or_default().split_whitespace().collect();
    let mut channel = None;
    for segment in segments {
        let segment = segment.trim_start();
        let end = segment.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(segment.len());
        let (name, rest) = segment.split_at(end);
        channel = Some(name).filter(|name| !name.is_empty()).or(channel);
        words.extend(rest.split_whitespace());
    }
    let mut role = None;
    if let Some(&first) = words.first()
        && !first.starts_with("to=")
        && (first == "assistant" || (!role_known && !text.starts_with(CHANNEL_MARK)))
    {
        role = Some(words.remove(0));
    }
    if channel.is_none() {
        channel = role.filter(|role| [ANALYSIS, COMMENTARY, FINAL].contains(role));
    }
    let recipient = recipient(&words, tool_names);
    if role.is_some_and(is_foreign) || recipient == Some("assistant") {
        return Purpose::Foreign;
    }
    let reasons = channel.is_some_and(|name| name.starts_with(ANALYSIS));
    match recipient.and_then(|recipient| function(recipient, tool_names)) {
        Some(name) => Purpose::Call(name.to_owned()),
        None if reasons => Purpose::Reasoning,
        None => Purpose::Answer,
    }
}

/// Whether a message of this role is not the assistant's.
fn is_foreign(role: &str) -> bool {
    matches!(role, "system" | "developer" | "user" | "tool") || role.starts_with("functions.")
}

fn recipient<'t>(words: &[&'t str], tool_names: &[String]) -> Option<&'t str> {
    if let Some(at) = words.iter().position(|word| word.starts_with("to=")) {
        let named = words.get(at).and_then(|word| word.strip_prefix("to=")).filter(|name| !name.is_empty());
        return named.or_else(|| words.get(at + 1).copied());
    }
    match words {
        [.., recipient, _content_type] => Some(recipient),
        // Alone, a word is the content type, unless it can only be a function.
        [word] => Some(*word).filter(|word| function(word, tool_names).is_some()),
        [] => None,
    }
}

/// The function that a recipient names: one of the request's namespace, or by the bare name of one supplied.
fn function<'t>(recipient: &'t str, tool_names: &[String]) -> Option<&'t str> {
    let recipient = recipient.split('<').next().unwrap_or_default();
    let qualified = recipient.strip_prefix(FUNCTIONS).and_then(|rest| rest.strip_prefix('.'));
    let bare = Some(recipient).filter(|name| tool_names.iter().any(|tool| tool == name));
    qualified.filter(|name| !name.is_empty()).or(bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, role_known: bool) -> Purpose {
        let text = text.replace("<|channel|>", "\0").replace("<|constrain|>", " ");
        purpose(&text, role_known, &["get_weather".to_owned()])
    }

    #[test]
    fn calls_are_found_wherever_the_recipient_stands() {
        let call = |name: &str| Purpose::Call(name.to_owned());
        for text in [
            " to=functions.f<|channel|>commentary <|constrain|>json",
            "<|channel|>commentary to=functions.f <|constrain|>json",
            "<|channel|>commentary to=functions.f<|constrain|>json",
            "<|channel|>commentary to=functions.f json",
            "<|channel|>commentary to=functions.f",
            "<|channel|>commentary functions.f json",
            "<|channel|>commentary functions.f",
            "<|channel|>analysis to=functions.f code",
            "<|channel|>commentary<|channel|>analysis to=functions.f",
            "<|channel|>commentary to=functions.f<|channel|>final",
            " to= functions.f<|channel|>commentary",
            " to=functions.f",
        ] {
            assert_eq!(read(text, true), call("f"), "{text}");
            assert_eq!(read(&format!("assistant{text}"), false), read(text, true), "{text}");
        }
        assert_eq!(read("<|channel|>commentary to=get_weather json", true), call("get_weather"));
        assert_eq!(read("<|channel|>commentary get_weather", true), call("get_weather"));
        assert_eq!(read("commentary to=functions.f", false), call("f"));
    }

    #[test]
    fn channels_tell_reasoning_from_answers() {
        for (text, purpose) in [
            ("<|channel|>analysis", Purpose::Reasoning),
            ("<|channel|>final", Purpose::Answer),
            ("<|channel|>commentary", Purpose::Answer),
            ("<|channel|>final <|constrain|>json", Purpose::Answer),
            ("<|channel|>commentary<|channel|>analysis", Purpose::Reasoning),
            ("<|channel|>commentary<|channel|>final", Purpose::Answer),
            ("<|channel|>analysis<|constrain|>text", Purpose::Reasoning),
            ("<|channel|>", Purpose::Answer),
            ("", Purpose::Answer),
            ("<|channel|>analysis to=python code", Purpose::Reasoning),
            ("<|channel|>commentary to=browser.search code", Purpose::Answer),
        ] {
            assert_eq!(read(text, true), purpose, "{text}");
            assert_eq!(read(&format!("assistant{text}"), false), purpose, "{text}");
        }
        assert_eq!(read("analysis", false), Purpose::Reasoning);
        assert_eq!(read("final", false), Purpose::Answer);
        assert_eq!(read("<|channel|>analysis", false), Purpose::Reasoning);
    }

    #[test]
    fn other_voices_are_not_the_answer() {
        for text in [
            "functions.f to=assistant<|channel|>commentary",
            "browser.search to=assistant<|channel|>commentary",
            "tool<|channel|>final",
            "user",
            "system",
        ] {
            assert_eq!(read(text, false), Purpose::Foreign, "{text}");
        }
    }
}
