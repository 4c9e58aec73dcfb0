//! From a conversation to token ids, and from generated ids back to what a client wants to see.
//!
//! [`ChatFormat`] knows how a model is prompted: in harmony where its vocabulary has harmony's markers, else by the
//! template in its file. What the conversation's authors wrote never becomes a special token, however it is spelled:
//! harmony prompts are built from ids, and templates see text whose special spellings are veiled (`chat/veil.rs`).
//! [`OutputParser`] turns generated ids into [`OutputEvent`]s, the same ones for every model family.

mod call_json;
mod date;
mod error;
mod message;
mod output;
mod plain;
mod python_json;
mod template;
mod tool_tags;
mod variables;
mod veil;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

pub use date::Date;
pub use error::ChatError;
pub use message::{Content, Conversation, Message, ReasoningEffort, ResponseFormat, Role, Tool, ToolCall};
pub(crate) use output::CallNumbers;
pub use output::{FinishHint, OutputEvent, OutputParser, ParserOptions};
pub use plain::PlainParser;
pub use template::{ChatTemplate, MAX_TEMPLATE_BYTES};
pub use tool_tags::ToolTagParser;

use super::Tokenizer;
use super::harmony::{self, BuiltinTools, HarmonyMarkers};
use crate::gguf::Gguf;
use veil::VeilRules;

/// How one conversation is rendered.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// The functions the model may call.
    pub tools: Vec<Tool>,
    /// Tools the model knows by itself; only harmony has them.
    pub builtin_tools: BuiltinTools,
    /// How long to think; `None`: the model's default.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// End the prompt where the assistant's next message begins.
    pub add_generation_prompt: bool,
    /// The current date; `None`: today in UTC.
    pub date: Option<Date>,
    /// The schema of the answer; only harmony shows it to the model.
    pub response_format: Option<ResponseFormat>,
    /// More variables for the template (`chat_template_kwargs`); they replace ours of the same name.
    pub template_variables: Map<String, Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            tools: Vec::new(),
            builtin_tools: BuiltinTools::default(),
            reasoning_effort: None,
            add_generation_prompt: true,
            date: None,
            response_format: None,
            template_variables: Map::new(),
        }
    }
}

/// How a model is prompted.
#[derive(Debug)]
enum Prompting {
    Harmony,
    Template { template: Box<ChatTemplate>, veil_rules: VeilRules },
}

/// How a model is prompted, and how its answers are read.
#[derive(Debug)]
pub struct ChatFormat {
    tokenizer: Arc<Tokenizer>,
    prompting: Prompting,
    /// Present if answers come in harmony, also when a template was named for the prompts.
    harmony: Option<HarmonyMarkers>,
    tool_tags: bool,
}

impl ChatFormat {
    /// The format of a loaded model: as the named `template` file says, else as its vocabulary and metadata tell.
    ///
    /// # Errors
    /// The template file is unreadable, or as for [`ChatFormat::detect`].
    pub fn load(gguf: &Gguf, tokenizer: &Arc<Tokenizer>, template: Option<&Path>) -> Result<Self, ChatError> {
        match template {
            Some(path) => {
                let source = std::fs::read_to_string(path)
                    .map_err(|source| ChatError::Read { path: path.to_owned(), source })?;
                Self::from_template(tokenizer, &source)
            }
            None => Self::detect(tokenizer, gguf.get_str("tokenizer.chat_template")?),
        }
    }

    /// The format that a model's vocabulary and the template of its file tell: harmony if all of its markers are
    /// special tokens, whatever the file's template says; else the template.
    ///
    /// # Errors
    /// There is neither, or the template is invalid.
    pub fn detect(tokenizer: &Arc<Tokenizer>, template: Option<&str>) -> Result<Self, ChatError> {
        let harmony = HarmonyMarkers::find(tokenizer);
        if harmony.is_some() {
            let tokenizer = Arc::clone(tokenizer);
            return Ok(Self { tokenizer, prompting: Prompting::Harmony, harmony, tool_tags: false });
        }
        Self::from_template(tokenizer, template.ok_or(ChatError::NoTemplate)?)
    }

    /// The format that a template describes.
    ///
    /// # Errors
    /// The template is too long or no template.
    pub fn from_template(tokenizer: &Arc<Tokenizer>, source: &str) -> Result<Self, ChatError> {
        let tool_tags = tokenizer.special_to_id("<tool_call>").is_some() || source.contains("<tool_call>");
        let template = Box::new(ChatTemplate::parse(source)?);
        let veil_rules = VeilRules::new(tokenizer.control_texts(), &template::constants(source), source);
        Ok(Self {
            tokenizer: Arc::clone(tokenizer),
            prompting: Prompting::Template { template, veil_rules },
            harmony: HarmonyMarkers::find(tokenizer),
            tool_tags,
        })
    }

    /// `"harmony"` or `"template"`, for logs and `/model_info`.
    pub fn name(&self) -> &'static str {
        match &self.prompting {
            Prompting::Harmony => "harmony",
            Prompting::Template { .. } => "template",
        }
    }

    /// The markers, if the model answers in harmony.
    pub fn harmony_markers(&self) -> Option<HarmonyMarkers> {
        self.harmony
    }

    /// Whether the model writes tool calls between `<tool_call>` tags.
    pub fn has_tool_tags(&self) -> bool {
        self.tool_tags
    }

    /// The parser for one answer.
    pub fn parser(&self, options: ParserOptions) -> OutputParser {
        OutputParser::for_model(&self.tokenizer, self, options)
    }

    /// The prompt's ids, BOS included where the model wants it.
    ///
    /// # Errors
    /// The template refuses the conversation or exceeds a limit; a tool result belongs to no call.
    pub fn render(
        &self,
        conversation: &Conversation,
        options: &RenderOptions,
    ) -> Result<Vec<u32>, ChatError> {
        match (&self.prompting, self.harmony) {
            (Prompting::Harmony, Some(markers)) => {
                let messages = harmony::prompt_messages(conversation, options)?;
                Ok(harmony::encode(&self.tokenizer, markers, &messages, options.add_generation_prompt))
            }
            (Prompting::Harmony, None) => Err(ChatError::NoTemplate),
            (Prompting::Template { template, veil_rules }, _) => {
                let variables = variables::of_conversation(template, conversation, options);
                let veil = veil_rules.over(&variables)?;
                let veiled = variables.into_iter().map(|(key, value)| (key, veil.hide_json(value))).collect();
                let variables = variables::with_marker_texts(veiled, &self.tokenizer);
                let text = template.render(&variables, options.date.unwrap_or_else(Date::today))?;
                Ok(self.tokenizer.encode_veiled_prompt(&text, |part| veil.reveal(part)))
            }
        }
    }

    /// The prompt as text, for people to read: special tokens as their spelling.
    ///
    /// # Errors
    /// As for [`ChatFormat::render`].
    pub fn render_text(
        &self,
        conversation: &Conversation,
        options: &RenderOptions,
    ) -> Result<String, ChatError> {
        match &self.prompting {
            Prompting::Harmony => {
                let messages = harmony::prompt_messages(conversation, options)?;
                Ok(harmony::text(&messages, options.add_generation_prompt))
            }
            Prompting::Template { template, .. } => {
                let variables = variables::of_conversation(template, conversation, options);
                let variables = variables::with_marker_texts(variables, &self.tokenizer);
                template.render(&variables, options.date.unwrap_or_else(Date::today))
            }
        }
    }
}
