//! What the engine is asked and what it answers: token ids only, never text.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::constraint::Constraint;

/// How the next token is chosen. Values are already validated; see MODELS' order of operations in `sampler`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 = greedy, else 0 < t <= 2.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off; acts on prompt and generated ids.
    pub repetition_penalty: f32,
    /// 0 = off; per occurrence among generated ids.
    pub frequency_penalty: f32,
    /// 0 = off; once per distinct generated id.
    pub presence_penalty: f32,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Philox key; always known, so that it can be reported.
    pub seed: u64,
    /// Which ids may come at all; one sequence's own.
    pub constraint: Option<Constraint>,
    /// Report the chosen token's log-probability and this many alternatives; `None` = no report.
    pub logprobs: Option<usize>,
}

impl Sampling {
    /// Arg-max without penalties.
    pub const fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: vec![],
            seed: 0,
            constraint: None,
            logprobs: None,
        }
    }

    /// The first promise the values break. A device refuses a whole step for the sake of one such row.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let zero_to_one = 0.0..=1.0;
        let finite = |value: f32| value.is_finite();
        let rules = [
            (finite(self.temperature) && self.temperature >= 0.0, "temperature is negative or not finite"),
            (zero_to_one.contains(&self.top_p), "top_p is not in [0, 1]"),
            (zero_to_one.contains(&self.min_p), "min_p is not in [0, 1]"),
            (
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "repetition_penalty is not positive and finite",
            ),
            (finite(self.frequency_penalty), "frequency_penalty is not finite"),
            (finite(self.presence_penalty), "presence_penalty is not finite"),
            (self.logit_bias.iter().all(|&(_, bias)| finite(bias)), "a logit_bias is not finite"),
        ];
        rules.into_iter().find(|(holds, _)| !holds).map(|(_, rule)| rule)
    }
}

/// A validated request: it cannot be wrong any more, only unlucky.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name in logs.
    pub id: String,
    /// Prompt ids, not empty.
    pub prompt: Vec<u32>,
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// Ids that end the sequence; the stop token itself is not reported.
    pub stop_ids: Vec<u32>,
    /// How to choose.
    pub sampling: Sampling,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Shares cached prefixes only with jobs of the same salt: how fast an answer begins then tells nothing of the
    /// prompts of others.
    pub cache_salt: Option<String>,
}

/// Log-probabilities of one position, from raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most probable ids with theirs, descending.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop id was generated.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
}

/// Times and counts of a finished sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens whose keys and values were already cached when it was first admitted.
    pub cached_tokens: usize,
    /// Tokens generated, the stop token not counted.
    pub generated_tokens: usize,
    /// Submission to admission.
    pub queue_time: Duration,
    /// Admission to first token.
    pub prefill_time: Duration,
    /// First token to end.
    pub decode_time: Duration,
}

/// What a running sequence tells its listener.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// One generated token.
    Token {
        /// Its id.
        id: u32,
        /// Its index among the generated tokens, from 0.
        index: usize,
        /// Present when asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The last event of a sequence that ended well.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The last event of a sequence that did not.
    Failed {
        /// Why.
        error: EngineError,
    },
}

/// Why a sequence failed, or was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The waiting queue is full.
    #[error("queue full: {waiting} requests are waiting")]
    QueueFull {
        /// Its length.
        waiting: usize,
    },
    /// The worker is draining.
    #[error("shutting down")]
    ShuttingDown,
    /// Prompt and `max_tokens` do not fit the context at all.
    #[error("prompt of {prompt_tokens} tokens leaves no room in a context of {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The worker's context.
        context: usize,
    },
    /// The job breaks what [`Job`] promises.
    #[error("invalid job: {reason}")]
    InvalidJob {
        /// Rule broken.
        reason: &'static str,
    },
    /// The cache has no block left for this sequence and none can be freed.
    #[error("key/value cache exhausted")]
    KvExhausted,
    /// Cancelled by request, or its listener went away.
    #[error("cancelled")]
    Cancelled,
    /// The deadline passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
    /// The rules of [`Sampling::constraint`] could not be applied any more.
    #[error("constraint: {reason}")]
    Constraint {
        /// What they said.
        reason: String,
    },
    /// The model produced NaN or infinite logits.
    #[error("non-finite logits")]
    NonFiniteLogits,
    /// The device failed; the worker is unhealthy.
    #[error("device: {reason}")]
    Device {
        /// What it said.
        reason: String,
    },
}

/// The listener's end of a submitted job. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct JobStream {
    /// Events in order; the last is `Finished` or `Failed`. Bounded by the job's own length, so it is never full.
    pub events: mpsc::Receiver<TokenEvent>,
    /// Prompt tokens found cached; known from the first admission on, and so before the first event, also to a listener
    /// that does not wait for the last.
    pub cached_tokens: Arc<OnceLock<usize>>,
}
