//! The fields that completions and chat completions share: how to choose tokens, when to stop, what to report.

use serde_json::{Map, Value};

use super::grammar::Grammar;
use super::refused;
use crate::engine::Sampling;
use crate::random;
use crate::server::body::Fields;
use crate::server::error::ApiError;
use crate::server::state::ServerState;
use crate::text::{SpecialParsing, Tokenizer};

/// Most answers to one prompt.
pub const MAX_CHOICES: usize = 16;
/// Most alternatives reported of a token.
pub const MAX_TOP_LOGPROBS: u64 = 20;
/// Most stop strings.
const MAX_STOPS: usize = 16;
/// Most bytes of a stop string.
const MAX_STOP_BYTES: usize = 1024;
/// Most stop ids, and most biased ids.
const MAX_IDS: usize = 1024;

/// Fields within their bounds.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// Most tokens to generate; `None`: what the context leaves.
    pub max_tokens: Option<usize>,
    /// How to choose tokens; the seed is filled in.
    pub sampling: Sampling,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Ids that end an answer, beside the model's own.
    pub stop_ids: Vec<u32>,
    /// Go on after the model's own stop ids.
    pub ignore_eos: bool,
    /// Answers to each prompt.
    pub choices: usize,
    /// Answer as a stream.
    pub stream: bool,
    /// Let the stream's last chunk count tokens.
    pub include_usage: bool,
    /// What every answer keeps to.
    pub grammar: Option<Grammar>,
    /// Whose cached prefixes may be shared.
    pub cache_salt: Option<String>,
}

impl Parameters {
    /// Takes the fields. `logprobs` differs between the routes and is set by them.
    ///
    /// # Errors
    ///
    /// 400 that names the first field that breaks its rule or asks for something this worker does not do; 404 for
    /// another model's name.
    pub fn take(
        fields: &mut Fields,
        state: &ServerState,
        tokenizer: &Tokenizer,
        max_tokens_fields: &[&'static str],
    ) -> Result<Self, ApiError> {
        named_model(fields, state)?;
        refused::check(fields)?;
        let vocab_size = tokenizer.vocab_size();
        let mut max_tokens = None;
        for &field in max_tokens_fields {
            max_tokens = max_tokens.or(fields.integer(field, 1, state.max_tokens_out as u64)?);
        }
        let sampling = sampling(fields, vocab_size)?;
        let stop = fields.one_or_more_strings("stop", MAX_STOPS)?;
        if stop.iter().any(|text| text.is_empty() || text.len() > MAX_STOP_BYTES) {
            return Err(ApiError::invalid(
                "stop",
                format_args!("expected strings of 1 to {MAX_STOP_BYTES} bytes"),
            ));
        }
        let stream = fields.switch("stream")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        Ok(Self {
            max_tokens: max_tokens.map(|tokens| tokens as usize),
            sampling,
            stop,
            stop_ids: stop_ids(fields, vocab_size)?,
            ignore_eos: fields.switch("ignore_eos")?.unwrap_or(false),
            choices: fields.integer("n", 1, MAX_CHOICES as u64)?.unwrap_or(1) as usize,
            stream,
            include_usage,
            grammar: None,
            cache_salt: cache_salt(fields)?,
        })
    }

    /// Lets every answer keep to a grammar, if there is one.
    ///
    /// # Errors
    ///
    /// 400 for a request that wants to go on after the grammar's end.
    pub fn constrain(&mut self, grammar: Option<Grammar>) -> Result<(), ApiError> {
        if grammar.is_some() && self.ignore_eos {
            return Err(ApiError::invalid(
                "ignore_eos",
                "an answer that is constrained ends where it is complete",
            ));
        }
        self.grammar = grammar;
        Ok(())
    }

    /// Most tokens to generate after a prompt of this length.
    ///
    /// # Errors
    ///
    /// 400 `context_length_exceeded` when prompt and answer do not fit.
    pub fn room(&self, prompt_tokens: usize, state: &ServerState, context: usize) -> Result<usize, ApiError> {
        let most = state.max_tokens_in.unwrap_or(usize::MAX).min(context.saturating_sub(1));
        if prompt_tokens > most {
            let rule = format_args!("expected at most {most} tokens, got {prompt_tokens}");
            return Err(ApiError::prompt_too_long(rule));
        }
        let left = context - prompt_tokens;
        match self.max_tokens {
            Some(asked) if asked > left => Err(ApiError::prompt_too_long(format_args!(
                "the context has {context} tokens; {prompt_tokens} of the prompt leave {left}, not the {asked} asked for"
            ))),
            Some(asked) => Ok(asked),
            None => Ok(left.min(state.max_tokens_out)),
        }
    }

    /// The ids that end an answer.
    pub fn all_stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let own = if self.ignore_eos { &[][..] } else { tokenizer.stop_ids() };
        own.iter().chain(&self.stop_ids).copied().collect()
    }

    /// Sampling of one of several answers: the first has the request's seed, the others seeds that follow from it.
    pub fn sampling_of(&self, choice: usize) -> Sampling {
        Sampling {
            seed: self.sampling.seed.wrapping_add(choice as u64),
            constraint: self.grammar.as_ref().map(Grammar::constraint),
            ..self.sampling.clone()
        }
    }
}

/// 404 unless the request names this worker's model, or none.
///
/// # Errors
///
/// As said.
pub fn named_model(fields: &mut Fields, state: &ServerState) -> Result<(), ApiError> {
    match fields.optional_string("model")? {
        Some(name) if !state.answers_to(&name) => Err(ApiError {
            status: Some(axum::http::StatusCode::NOT_FOUND),
            detail: Some("model_not_found"),
            ..ApiError::invalid(
                "model",
                format_args!("this worker serves {:?}", state.model_name().unwrap_or_default()),
            )
        }),
        _ => Ok(()),
    }
}

fn sampling(fields: &mut Fields, vocab_size: usize) -> Result<Sampling, ApiError> {
    // -1 is what other servers call "off".
    let top_k = if fields.get("top_k").and_then(Value::as_i64) == Some(-1) {
        fields.present("top_k");
        0
    } else {
        fields.integer("top_k", 0, u64::from(u32::MAX))?.unwrap_or(0).min(vocab_size as u64) as u32
    };
    let repetition_penalty = fields.number("repetition_penalty", 0.0, 2.0)?.unwrap_or(1.0);
    if repetition_penalty <= 0.0 {
        return Err(ApiError::invalid("repetition_penalty", "expected a number above 0, up to 2"));
    }
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
        top_k,
        top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        repetition_penalty,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: logit_bias(fields.object("logit_bias")?.unwrap_or_default(), vocab_size)?,
        seed: seed(fields)?,
        constraint: None,
        logprobs: None,
    })
}

/// Clients send signed 64-bit seeds; those of one bit pattern are one seed.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    if let Some(negative) = fields.get("seed").and_then(Value::as_i64).filter(|&seed| seed < 0) {
        fields.present("seed");
        return Ok(negative as u64);
    }
    Ok(fields.seed("seed")?.unwrap_or_else(random::seed))
}

fn logit_bias(biases: Map<String, Value>, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    if biases.len() > MAX_IDS {
        return Err(ApiError::invalid("logit_bias", format_args!("expected at most {MAX_IDS} ids")));
    }
    let rule = || {
        let last = vocab_size.saturating_sub(1);
        ApiError::invalid(
            "logit_bias",
            format_args!("expected ids from 0 to {last} with numbers from -100 to 100"),
        )
    };
    let pairs = biases.into_iter().map(|(id, bias)| {
        let id = id.parse::<u32>().ok().filter(|&id| (id as usize) < vocab_size).ok_or_else(rule)?;
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)).ok_or_else(rule)?;
        Ok((id, bias as f32))
    });
    pairs.collect()
}

fn stop_ids(fields: &mut Fields, vocab_size: usize) -> Result<Vec<u32>, ApiError> {
    let Some(value) = fields.present("stop_token_ids") else { return Ok(vec![]) };
    token_ids(&value, vocab_size).filter(|ids| ids.len() <= MAX_IDS).ok_or_else(|| {
        ApiError::invalid("stop_token_ids", format_args!("expected a list of up to {MAX_IDS} ids"))
    })
}

/// A list of ids of the vocabulary.
pub fn token_ids(value: &Value, vocab_size: usize) -> Option<Vec<u32>> {
    let known = |id: &Value| id.as_u64().filter(|&id| id < vocab_size as u64).map(|id| id as u32);
    value.as_array()?.iter().map(known).collect()
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "only with stream: true"));
    }
    let mut options = Fields::from(options);
    let invalid = |_| ApiError::invalid("stream_options.include_usage", "expected true or false");
    let include_usage = options.switch("include_usage").map_err(invalid)?.unwrap_or(false);
    if options.get("continuous_usage_stats").is_some_and(|value| *value != Value::Bool(false)) {
        return Err(refused::unsupported("stream_options.continuous_usage_stats"));
    }
    Ok(include_usage)
}

fn cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    match fields.optional_string("cache_salt")? {
        Some(salt) if salt.is_empty() || salt.len() > MAX_STOP_BYTES => Err(ApiError::invalid(
            "cache_salt",
            format_args!("expected a string of 1 to {MAX_STOP_BYTES} bytes"),
        )),
        salt => Ok(salt),
    }
}

/// The prompt's ids: its text's special tokens are text.
pub fn prompt_ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_prompt(text, SpecialParsing::Plain)
}
