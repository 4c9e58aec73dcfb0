//! `POST /v1/completions`: the continuation of one or several prompts.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Value, json};

use super::admission::{Admitted, Prompts, answered, submit};
use super::answers::TokenReport;
use super::parameters::{MAX_TOP_LOGPROBS, Parameters, prompt_ids, token_ids};
use super::refused;
use super::reply::{Head, Whole, Wire, json_of, reply};
use crate::server::body::Fields;
use crate::server::error::ApiError;
use crate::server::log::TextPrint;
use crate::server::off_thread::off_thread;
use crate::server::record::Outcome;
use crate::server::state::ServerState;
use crate::text::chat::{OutputEvent, OutputParser, PlainParser};
use crate::text::{DecodeOptions, Tokenizer};

/// Most prompts of one request.
const MAX_PROMPTS: usize = 64;
/// Tokens generated when the request does not say, as everywhere.
const DEFAULT_MAX_TOKENS: usize = 16;

/// `POST /v1/completions`.
pub async fn completions(State(state): State<Arc<ServerState>>, request: Request) -> Response {
    answered(&state, request, "cmpl-", |admitted| answer(&state, admitted)).await
}

async fn answer(state: &ServerState, admitted: Admitted<'_>) -> Result<Response, ApiError> {
    let Admitted { model, mut fields, id, mut job, deadline } = admitted;
    let tokenizer = &model.tokenizer;
    let mut parameters = Parameters::take(&mut fields, state, tokenizer, &["max_tokens"])?;
    parameters.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS.min(state.max_tokens_out));
    parameters.sampling.logprobs =
        fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)?.map(|count| count as usize);
    let show_special = !fields.switch("skip_special_tokens")?.unwrap_or(true);
    for field in ["response_format", "tools"] {
        if fields.get(field).is_some_and(|value| *value != json!({ "type": "text" }) && *value != json!([])) {
            return Err(refused::unsupported(field));
        }
    }
    let prompt = Prompt::take(&mut fields, tokenizer.vocab_size())?;
    let prompts = {
        let tokenizer = Arc::clone(tokenizer);
        off_thread(&mut job, deadline, move || prompt.tokenise(&tokenizer)).await?
    };
    // The output continues the prompt: a word's leading space belongs to it.
    let decode = DecodeOptions { continues_text: true, show_special, stops: parameters.stop.clone() };
    let head = Head::begin(state, &id);
    let parser = |_| OutputParser::Plain(PlainParser::new(Arc::clone(tokenizer), &decode));
    let answers = submit(state, model, (id, job, deadline), &prompts, &parameters, parser)?;
    let wire = TextWire {
        tokenizer: Arc::clone(tokenizer),
        top_logprobs: parameters.sampling.logprobs,
        offsets: vec![0; answers.count()],
    };
    Ok(reply(answers, wire, head, parameters.stream, parameters.include_usage).await)
}

/// `prompt`: texts, or ids of texts that are tokenised already.
#[derive(Debug)]
enum Prompt {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl Prompt {
    fn take(fields: &mut Fields, vocab_size: usize) -> Result<Self, ApiError> {
        let expected = || {
            ApiError::invalid(
                "prompt",
                format_args!(
                    "expected a string, up to {MAX_PROMPTS} strings, a list of token ids or up to {MAX_PROMPTS} of them"
                ),
            )
        };
        let value = fields.present("prompt").ok_or_else(|| ApiError::invalid("prompt", "required"))?;
        let prompt = match &value {
            Value::String(text) => Some(Self::Texts(vec![text.clone()])),
            Value::Array(items) if items.first().is_some_and(Value::is_number) => {
                token_ids(&value, vocab_size).map(|ids| Self::Ids(vec![ids]))
            }
            Value::Array(items) if (1..=MAX_PROMPTS).contains(&items.len()) => {
                let texts: Option<Vec<String>> =
                    items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                let ids = || items.iter().map(|item| token_ids(item, vocab_size)).collect::<Option<Vec<_>>>();
                texts.map(Self::Texts).or_else(|| ids().map(Self::Ids))
            }
            _ => None,
        };
        prompt.ok_or_else(expected)
    }

    fn tokenise(self, tokenizer: &Tokenizer) -> Result<Prompts, ApiError> {
        let mut print = TextPrint::default();
        let ids = match self {
            Self::Texts(texts) => {
                for text in &texts {
                    print.push(text);
                }
                texts.iter().map(|text| prompt_ids(tokenizer, text)).collect()
            }
            Self::Ids(ids) => {
                for ids in &ids {
                    print.push(&tokenizer.decode(ids));
                }
                ids
            }
        };
        if ids.iter().any(Vec::is_empty) {
            return Err(ApiError::invalid("prompt", "expected at least one token"));
        }
        Ok(Prompts { ids, print })
    }
}

/// An entry of `choices` with a piece of an answer.
#[derive(Serialize)]
struct Piece {
    index: usize,
    text: String,
    logprobs: Value,
    finish_reason: Option<&'static str>,
}

/// Answers as `text_completion` objects.
#[derive(Debug)]
struct TextWire {
    tokenizer: Arc<Tokenizer>,
    top_logprobs: Option<usize>,
    /// Characters of each answer that are out.
    offsets: Vec<usize>,
}

impl TextWire {
    /// Tokens as parallel lists; `offset` is where the first one's text begins.
    fn logprobs(&self, reports: &[TokenReport], mut offset: usize) -> Value {
        if self.top_logprobs.is_none() {
            return Value::Null;
        }
        let text = |id: u32| String::from_utf8_lossy(self.tokenizer.literal_bytes(id)).into_owned();
        let mut offsets = Vec::with_capacity(reports.len());
        for report in reports {
            offsets.push(offset);
            offset += text(report.id).chars().count();
        }
        let top = |report: &TokenReport| -> Value {
            report.logprobs.top.iter().map(|&(id, logprob)| (text(id), json!(logprob))).collect()
        };
        json!({
            "tokens": reports.iter().map(|report| text(report.id)).collect::<Vec<_>>(),
            "token_logprobs": reports.iter().map(|report| report.logprobs.chosen).collect::<Vec<_>>(),
            "top_logprobs": reports.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

impl Wire for TextWire {
    const CHUNK: &'static str = "text_completion";
    const WHOLE: &'static str = "text_completion";

    fn opening(&self, _: usize) -> Option<Value> {
        None
    }

    fn piece(&mut self, choice: usize, event: OutputEvent, reports: &[TokenReport]) -> Option<String> {
        let OutputEvent::ContentDelta(text) = event else { return None };
        let offset = self.offsets.get(choice).copied().unwrap_or(0);
        let logprobs = self.logprobs(reports, offset);
        if let Some(offset) = self.offsets.get_mut(choice) {
            *offset += text.chars().count();
        }
        Some(json_of(&Piece { index: choice, text, logprobs, finish_reason: None }))
    }

    fn ending(&self, choice: usize, outcome: Outcome) -> Value {
        json!({ "index": choice, "text": "", "logprobs": null, "finish_reason": outcome.name() })
    }

    fn whole(&self, choice: usize, whole: Whole) -> Value {
        let logprobs = self.logprobs(&whole.reports, 0);
        let finish_reason = whole.outcome.map(Outcome::name);
        json!({ "index": choice, "text": whole.content, "logprobs": logprobs, "finish_reason": finish_reason })
    }
}
