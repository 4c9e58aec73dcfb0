//! One message of a harmony conversation, as ids and as text.

use super::HarmonyMarkers;
use crate::text::{SpecialParsing, Tokenizer};

/// What the content of a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentType {
    /// Written after `<|constrain|>`: generation was held to it.
    Constrained(String),
    /// Written plainly.
    Named(String),
}

/// A message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HarmonyMessage {
    /// A role, or the full name of the tool that wrote it (`functions.f`).
    pub author: String,
    /// Whom it addresses.
    pub recipient: Option<String>,
    /// The channel; prompts' own messages have none.
    pub channel: Option<String>,
    /// The type of the content.
    pub content_type: Option<ContentType>,
    /// The content.
    pub content: String,
}

impl HarmonyMessage {
    /// A message without channel or recipient.
    pub fn plain(author: &str, content: impl Into<String>) -> Self {
        Self { author: author.to_owned(), content: content.into(), ..Self::default() }
    }

    /// A message of the assistant.
    pub fn assistant(channel: &str, content: impl Into<String>) -> Self {
        Self { channel: Some(channel.to_owned()), ..Self::plain("assistant", content) }
    }

    /// Whether it is the assistant's and waits for a tool.
    fn is_call(&self) -> bool {
        self.author == "assistant" && self.recipient.is_some()
    }

    /// The message as a series of markers and texts.
    fn write(&self, sink: &mut impl Sink) {
        sink.marker(Marker::Start);
        sink.text(&self.author);
        if let Some(recipient) = &self.recipient {
            sink.text(&format!(" to={recipient}"));
        }
        if let Some(channel) = &self.channel {
            sink.marker(Marker::Channel);
            sink.text(channel);
        }
        match &self.content_type {
            Some(ContentType::Constrained(name)) => {
                sink.text(" ");
                sink.marker(Marker::Constrain);
                sink.text(name);
            }
            Some(ContentType::Named(name)) => sink.text(&format!(" {name}")),
            None => {}
        }
        sink.marker(Marker::Message);
        sink.text(&self.content);
        sink.marker(if self.is_call() { Marker::Call } else { Marker::End });
    }
}

#[derive(Clone, Copy)]
enum Marker {
    Start,
    Channel,
    Constrain,
    Message,
    End,
    Call,
}

/// Where a message is written: the one place that knows the order of its parts serves ids and text.
trait Sink {
    fn marker(&mut self, marker: Marker);
    fn text(&mut self, text: &str);
}

struct Ids<'t> {
    tokenizer: &'t Tokenizer,
    markers: HarmonyMarkers,
    out: Vec<u32>,
}

impl Sink for Ids<'_> {
    fn marker(&mut self, marker: Marker) {
        self.out.extend(match marker {
            Marker::Start => Some(self.markers.start),
            Marker::Channel => Some(self.markers.channel),
            Marker::Constrain => self.markers.constrain,
            Marker::Message => Some(self.markers.message),
            Marker::End => Some(self.markers.end),
            Marker::Call => Some(self.markers.call),
        });
    }

    fn text(&mut self, text: &str) {
        self.out.extend(self.tokenizer.encode(text, SpecialParsing::Plain));
    }
}

impl Sink for String {
    fn marker(&mut self, marker: Marker) {
        self.push_str(match marker {
            Marker::Start => "<|start|>",
            Marker::Channel => "<|channel|>",
            Marker::Constrain => "<|constrain|>",
            Marker::Message => "<|message|>",
            Marker::End => "<|end|>",
            Marker::Call => "<|call|>",
        });
    }

    fn text(&mut self, text: &str) {
        self.push_str(text);
    }
}

/// The ids of `messages`; with `generate`, the beginning of the assistant's next one too.
pub fn encode(
    tokenizer: &Tokenizer,
    markers: HarmonyMarkers,
    messages: &[HarmonyMessage],
    generate: bool,
) -> Vec<u32> {
    let mut sink = Ids { tokenizer, markers, out: Vec::new() };
    write_all(&mut sink, messages, generate);
    sink.out
}

/// The text of `messages`, for people to read.
pub fn text(messages: &[HarmonyMessage], generate: bool) -> String {
    let mut text = String::new();
    write_all(&mut text, messages, generate);
    text
}

fn write_all(sink: &mut impl Sink, messages: &[HarmonyMessage], generate: bool) {
    for message in messages {
        message.write(sink);
    }
    if generate {
        sink.marker(Marker::Start);
        sink.text("assistant");
    }
}
