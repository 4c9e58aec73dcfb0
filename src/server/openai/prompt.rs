//! What a conversation asks of the model: the prompt it becomes, and the grammar that its answer keeps to.

use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use super::admission::Prompts;
use super::grammar::{Grammar, Grammars};
use super::syntax::{Body, CallSyntax, Callable, grammar};
use super::tools::{ToolChoice, ToolUse, is_strict};
use super::{messages, refused};
use crate::random;
use crate::server::body::Fields;
use crate::server::error::{ApiError, ErrorCode};
use crate::server::log::TextPrint;
use crate::server::state::LoadedModel;
use crate::text::chat::{
    ChatError, ChatFormat, Conversation, OutputParser, ParserOptions, ReasoningEffort, RenderOptions,
    ResponseFormat,
};
use crate::text::{DecodeOptions, Tokenizer};

/// What an answer's text must be.
#[derive(Clone, Debug)]
pub enum AnswerFormat {
    /// Anything.
    Text,
    /// What the schema allows.
    Json {
        /// The request's field, for errors.
        field: &'static str,
        /// The schema.
        schema: Value,
        /// What models that know of schemas are shown.
        shown: Option<Box<ResponseFormat>>,
    },
}

impl AnswerFormat {
    /// Takes `response_format` of a chat completion.
    ///
    /// # Errors
    ///
    /// 400 for another format, or a schema that is no object.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let field = "response_format";
        let Some(format) = fields.object(field)? else { return Ok(Self::Text) };
        let described = format.get("json_schema").unwrap_or(&Value::Null);
        Self::of(format.get("type").and_then(Value::as_str), described, field)
    }

    /// The format of that type; `described` holds name, description and schema. `field` is named in errors.
    ///
    /// # Errors
    ///
    /// As for [`AnswerFormat::take`].
    pub fn of(kind: Option<&str>, described: &Value, field: &'static str) -> Result<Self, ApiError> {
        match kind {
            Some("text") => Ok(Self::Text),
            Some("json_object") => Ok(Self::Json { field, schema: json!({ "type": "object" }), shown: None }),
            Some("json_schema") => {
                let text = |field: &str| described.get(field).and_then(Value::as_str).map(str::to_owned);
                let schema = described.get("schema").filter(|schema| schema.is_object()).cloned();
                let rule = "expected a json_schema with a name and an object for schema";
                let schema = schema.ok_or_else(|| ApiError::invalid(field, rule))?;
                let (name, description) =
                    (text("name").unwrap_or_else(|| "answer".into()), text("description"));
                let shown = Some(Box::new(ResponseFormat { name, description, schema: schema.clone() }));
                Ok(Self::Json { field, schema, shown })
            }
            _ => Err(ApiError {
                detail: Some("unsupported_value"),
                ..ApiError::invalid(field, "expected type text, json_object or json_schema")
            }),
        }
    }
}

/// A conversation that is to be answered.
#[derive(Debug)]
pub struct Chat {
    /// How the model is prompted.
    pub format: Arc<ChatFormat>,
    /// The messages.
    pub conversation: Conversation,
    /// Everything else the prompt depends on.
    pub options: RenderOptions,
    /// What the answer's text must be.
    pub answer: AnswerFormat,
    /// Whether the model calls a tool.
    pub choice: ToolChoice,
    /// It calls one at most.
    pub single_call: bool,
    /// Where the members of a tool stand, for errors.
    tool_prefix: &'static str,
    /// The field that holds the messages, for errors.
    field: &'static str,
    /// What it held, for the log.
    source: Value,
}

impl Chat {
    /// Takes the fields that make the prompt of a chat completion.
    ///
    /// # Errors
    ///
    /// 400 that names the place at fault, also for a model that nobody told how conversations look.
    pub fn take(fields: &mut Fields, model: &LoadedModel, answer: AnswerFormat) -> Result<Self, ApiError> {
        let messages = fields.present("messages").ok_or_else(|| ApiError::invalid("messages", "required"))?;
        let conversation = messages::conversation(&messages)?;
        let tool_use = ToolUse::take(fields)?;
        let effort = match fields.optional_string("reasoning_effort")? {
            Some(name) => Some(reasoning_effort(&name, "reasoning_effort")?),
            None => None,
        };
        let mut chat =
            Self::of(model, "messages", conversation, messages)?.answered(answer, tool_use, effort);
        chat.options.add_generation_prompt = fields.switch("add_generation_prompt")?.unwrap_or(true);
        chat.options.template_variables = fields.object("chat_template_kwargs")?.unwrap_or_default();
        if fields.get("chat_template").is_some() {
            return Err(refused::unsupported("chat_template"));
        }
        Ok(chat)
    }

    /// A conversation that came in `field` as `source`, to be answered in any way.
    ///
    /// # Errors
    ///
    /// 400 for a model that nobody told how conversations look.
    pub fn of(
        model: &LoadedModel,
        field: &'static str,
        conversation: Conversation,
        source: Value,
    ) -> Result<Self, ApiError> {
        let no_template =
            "this model has no usable chat template; its operator can name one with --chat-template";
        let format = model.chat.as_ref().ok_or_else(|| ApiError::invalid(field, no_template))?;
        Ok(Self {
            format: Arc::clone(format),
            conversation,
            options: RenderOptions::default(),
            answer: AnswerFormat::Text,
            choice: ToolChoice::Auto,
            single_call: false,
            tool_prefix: "function.",
            field,
            source,
        })
    }

    /// The same, to be answered in this way.
    #[must_use]
    pub fn answered(
        mut self,
        answer: AnswerFormat,
        tool_use: ToolUse,
        effort: Option<ReasoningEffort>,
    ) -> Self {
        self.options.tools = tool_use.tools;
        self.options.reasoning_effort = effort;
        self.options.response_format = match &answer {
            AnswerFormat::Json { shown, .. } => shown.as_deref().cloned(),
            AnswerFormat::Text => None,
        };
        self.answer = answer;
        self.choice = tool_use.choice;
        self.single_call = tool_use.single;
        self
    }

    /// The same for a request whose tools have their members beside the type.
    #[must_use]
    pub const fn with_flat_tools(mut self) -> Self {
        self.tool_prefix = "";
        self
    }

    /// The one prompt. Takes the processor's time.
    ///
    /// # Errors
    ///
    /// 400 for a conversation that the model's template refuses.
    pub fn prompts(&self) -> Result<Prompts, ApiError> {
        let ids = self
            .format
            .render(&self.conversation, &self.options)
            .map_err(|error| unrendered(self.field, &error))?;
        if ids.is_empty() {
            return Err(ApiError::invalid(self.field, "the model's chat template makes no prompt of them"));
        }
        Ok(Prompts { ids: vec![ids], print: TextPrint::of(&self.source.to_string()) })
    }

    /// The prompt as text. Takes the processor's time.
    ///
    /// # Errors
    ///
    /// As for [`Chat::prompts`].
    pub fn text(&self) -> Result<String, ApiError> {
        let text = self.format.render_text(&self.conversation, &self.options);
        text.map_err(|error| unrendered(self.field, &error))
    }

    /// What makes the parser of each answer.
    pub fn parsers(
        &self,
        tokenizer: &Arc<Tokenizer>,
        stops: &[String],
        constrained: bool,
    ) -> impl Fn(usize) -> OutputParser + use<> {
        let tool_names: Vec<String> = self.options.tools.iter().map(|tool| tool.name.clone()).collect();
        let (tokenizer, format, stops) = (Arc::clone(tokenizer), Arc::clone(&self.format), stops.to_vec());
        move |_| {
            let options = ParserOptions {
                tool_names: tool_names.clone(),
                call_id_prefix: format!("call_{}_", &random::uuid()[..8]),
                tagged_calls_only: constrained,
                decode: DecodeOptions { stops: stops.clone(), ..DecodeOptions::default() },
            };
            OutputParser::for_model(&tokenizer, &format, options)
        }
    }

    /// The grammar the answer keeps to, if the request promises anything of it. Takes the processor's time.
    ///
    /// # Errors
    ///
    /// 400 for a schema that cannot be enforced, and for a call from a model that has no syntax for one.
    pub fn grammar(
        &self,
        tokenizer: &Arc<Tokenizer>,
        grammars: &OnceLock<Result<Arc<Grammars>, String>>,
    ) -> Result<Option<Grammar>, ApiError> {
        let tools = &self.options.tools;
        let must_call = self.choice != ToolChoice::Auto;
        let strict = tools.iter().position(is_strict);
        if matches!(self.answer, AnswerFormat::Text) && !must_call && strict.is_none() {
            return Ok(None);
        }
        if !self.options.add_generation_prompt {
            let rule = "a constrained answer begins where the prompt leaves the model to answer";
            return Err(ApiError::invalid("add_generation_prompt", rule));
        }
        let syntax = self.call_syntax(tokenizer);
        if syntax == CallSyntax::Unknown && must_call {
            return Err(no_syntax("tool_choice".into()));
        }
        if let (CallSyntax::Unknown, Some(index)) = (syntax, strict) {
            return Err(no_syntax(self.tool_place(index, "strict")));
        }
        let at_fault = match &self.answer {
            AnswerFormat::Json { field, .. } => field,
            AnswerFormat::Text => "tools",
        };
        let grammars = grammars.get_or_init(|| Grammars::of(tokenizer).map(Arc::new)).as_ref();
        let grammars = grammars.map_err(|reason| ApiError::invalid(at_fault, reason))?;
        let body = match &self.answer {
            _ if must_call => Body::Nothing,
            AnswerFormat::Json { field, schema, .. } => {
                grammars.check(schema).map_err(|reason| unenforceable((*field).into(), &reason))?;
                Body::Json(schema)
            }
            AnswerFormat::Text => Body::Text,
        };
        let calls = self.callable(syntax, grammars)?;
        let several = !self.single_call && !matches!(self.choice, ToolChoice::Function(_));
        let end_ids = match syntax {
            CallSyntax::Harmony(_) => vec![],
            _ => tokenizer.stop_ids().to_vec(),
        };
        let compiled = grammars.compile(grammar(syntax, body, &calls, several), end_ids);
        compiled.map(Some).map_err(|reason| unenforceable(at_fault.into(), &reason))
    }

    /// The functions that the answer may call, with their arguments' checked schemas.
    fn callable(&self, syntax: CallSyntax, grammars: &Grammars) -> Result<Vec<Callable>, ApiError> {
        let mut calls = vec![];
        if syntax == CallSyntax::Unknown {
            return Ok(calls);
        }
        for (index, tool) in self.options.tools.iter().enumerate() {
            let chosen = match &self.choice {
                ToolChoice::Auto => false,
                ToolChoice::Required => true,
                ToolChoice::Function(name) if *name == tool.name => true,
                ToolChoice::Function(_) => continue,
            };
            let call = Callable::of(tool, chosen || is_strict(tool));
            let place = || self.tool_place(index, "parameters");
            if call.arguments.get("type").is_none_or(|kind| kind != "object") {
                return Err(unenforceable(place(), "expected a schema of type object"));
            }
            grammars.check(&call.arguments).map_err(|reason| unenforceable(place(), &reason))?;
            calls.push(call);
        }
        Ok(calls)
    }

    fn tool_place(&self, index: usize, part: &str) -> String {
        format!("tools[{index}].{}{part}", self.tool_prefix)
    }

    fn call_syntax(&self, tokenizer: &Tokenizer) -> CallSyntax {
        if let Some(markers) = self.format.harmony_markers() {
            return CallSyntax::Harmony(markers);
        }
        let open = tokenizer.special_to_id("<tool_call>");
        // A tag that is no text would not be seen by the parser.
        if !self.format.has_tool_tags() || open.is_some_and(|id| tokenizer.is_special(id)) {
            return CallSyntax::Unknown;
        }
        CallSyntax::Tags { open }
    }
}

fn no_syntax(field: String) -> ApiError {
    let rule = "this model's chat template has no syntax for tool calls that could be enforced";
    ApiError { detail: Some("unsupported_value"), ..ApiError::invalid(field, rule) }
}

fn unenforceable(field: String, reason: &str) -> ApiError {
    ApiError { detail: Some("invalid_json_schema"), ..ApiError::invalid(field, reason) }
}

/// A conversation without a prompt: most templates have a shape of conversation in mind, and say so by failing.
fn unrendered(field: &'static str, error: &ChatError) -> ApiError {
    match error {
        ChatError::Gguf(_) | ChatError::Read { .. } => ApiError::of(ErrorCode::Internal, error.to_string()),
        _ => ApiError::invalid(field, error),
    }
}

/// The effort of that name; `field` is named in errors.
///
/// # Errors
///
/// 400 for a name nobody uses.
pub fn reasoning_effort(name: &str, field: &'static str) -> Result<ReasoningEffort, ApiError> {
    let rule = "expected none, minimal, low, medium, high, xhigh or max";
    ReasoningEffort::parse(name).ok_or_else(|| ApiError::invalid(field, rule))
}
