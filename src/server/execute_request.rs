//! The body of `POST /execute`: its fields, their bounds and defaults.

use axum::http::HeaderMap;

use super::body::Fields;
use super::error::ApiError;
use crate::engine::Sampling;
use crate::random;
use crate::text::{SpecialParsing, Tokenizer};

/// Most characters (Unicode scalar values) of a prompt.
pub const MAX_PROMPT_CHARS: usize = 32_768;
/// Most bytes of the body: every character of the longest prompt may be two six-byte escapes.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Most stop strings.
pub const MAX_STOPS: usize = 4;
/// Most tokens of a stop string.
pub const MAX_STOP_TOKENS: usize = 32;
/// Most characters of a job's name, since every log line carries it.
const MAX_JOB_ID_CHARS: usize = 256;
/// Tokens generated when the request does not say.
const DEFAULT_MAX_TOKENS: usize = 2048;

/// Header with the milliseconds the client is still willing to wait.
pub const DEADLINE_HEADER: &str = "x-deadline";

/// A request whose fields are within their bounds. Its text is not tokenised yet.
#[derive(Debug)]
pub struct ExecuteRequest {
    /// Name chosen by the client.
    pub job_id: String,
    /// Raw prompt text.
    pub prompt: String,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How to choose tokens; the seed is filled in.
    pub sampling: Sampling,
    /// Strings that end the output.
    pub stop: Vec<String>,
}

impl ExecuteRequest {
    /// Checks every field that can be checked without tokenising.
    ///
    /// # Errors
    ///
    /// 400 that names the first field that breaks its rule.
    pub fn from_fields(
        fields: &mut Fields,
        vocab_size: usize,
        max_tokens_out: usize,
    ) -> Result<Self, ApiError> {
        let job_id = fields.string("job_id")?;
        if !(1..=MAX_JOB_ID_CHARS).contains(&job_id.chars().count()) {
            return Err(ApiError::invalid(
                "job_id",
                format_args!("expected 1 to {MAX_JOB_ID_CHARS} characters"),
            ));
        }
        let prompt = fields.string("prompt")?;
        if !(1..=MAX_PROMPT_CHARS).contains(&prompt.chars().count()) {
            return Err(ApiError::invalid(
                "prompt",
                format_args!("expected 1 to {MAX_PROMPT_CHARS} characters"),
            ));
        }
        let max_tokens = fields.integer("max_tokens", 1, max_tokens_out as u64)?;
        let sampling = Sampling {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            top_k: fields.integer("top_k", 0, vocab_size as u64)?.unwrap_or(0) as u32,
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
            repetition_penalty: repetition_penalty(fields)?,
            seed: fields.seed("seed")?.unwrap_or_else(random::seed),
            ..Sampling::greedy()
        };
        let stop = fields.strings("stop", MAX_STOPS)?;
        if stop.iter().any(String::is_empty) {
            return Err(ApiError::invalid("stop", "expected no empty string"));
        }
        let max_tokens =
            max_tokens.map_or_else(|| DEFAULT_MAX_TOKENS.min(max_tokens_out), |tokens| tokens as usize);
        Ok(Self { job_id, prompt, max_tokens, sampling, stop })
    }

    /// The prompt's ids, with the rules that need them: called off the server's threads. The text of a special token in
    /// the prompt is plain text.
    ///
    /// # Errors
    ///
    /// 400 for a prompt of no or too many tokens and for a stop string of too many.
    pub fn tokenise(
        &self,
        tokenizer: &Tokenizer,
        max_tokens_in: Option<usize>,
    ) -> Result<Vec<u32>, ApiError> {
        for stop in &self.stop {
            let tokens = tokenizer.encode(stop, SpecialParsing::Plain).len();
            if tokens > MAX_STOP_TOKENS {
                let rule = format_args!("expected strings of at most {MAX_STOP_TOKENS} tokens, got {tokens}");
                return Err(ApiError::invalid("stop", rule));
            }
        }
        let ids = tokenizer.encode_prompt(&self.prompt, SpecialParsing::Plain);
        if ids.is_empty() {
            return Err(ApiError::invalid("prompt", "has no tokens"));
        }
        if let Some(most) = max_tokens_in.filter(|&most| ids.len() > most) {
            let rule = format_args!("expected at most {most} tokens, got {}", ids.len());
            return Err(ApiError::prompt_too_long(rule));
        }
        Ok(ids)
    }
}

/// 0 is refused although the range begins there: it divides by zero.
fn repetition_penalty(fields: &mut Fields) -> Result<f32, ApiError> {
    let penalty = fields.number("repetition_penalty", 0.0, 2.0)?.unwrap_or(1.0);
    if penalty > 0.0 {
        Ok(penalty)
    } else {
        Err(ApiError::invalid("repetition_penalty", "expected a number above 0, up to 2"))
    }
}

/// Milliseconds left by the client's own clock, if it says so.
///
/// # Errors
///
/// 400 for a header that is no whole number.
pub fn deadline_ms(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(DEADLINE_HEADER) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| ApiError::invalid("X-Deadline", "expected milliseconds as a whole number"))
}
