//! What is written down of a request: one log line where it begins, one where it ends, and its outcome in the counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{ApiError, ErrorCode};
use super::following::Progress;
use super::log::TextPrint;
use super::trace::RequestTrace;
use crate::engine::{FinishReason, Histogram};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By a stop token or stop string.
    Stop,
    /// At its length.
    Length,
    /// With a call of a tool.
    ToolCalls,
    /// By its name, or by the end of the drain time.
    Cancelled,
    /// At its deadline.
    Timeout,
    /// Its client went away.
    Disconnected,
    /// By a fault while it ran.
    Error,
    /// Refused for what it says.
    Invalid,
    /// Refused for lack of room, or because no model is served.
    Rejected,
}

/// Every outcome, in the order of their counts.
pub const OUTCOMES: [Outcome; 9] = [
    Outcome::Stop,
    Outcome::Length,
    Outcome::ToolCalls,
    Outcome::Cancelled,
    Outcome::Timeout,
    Outcome::Disconnected,
    Outcome::Error,
    Outcome::Invalid,
    Outcome::Rejected,
];

impl Outcome {
    /// The name in the log and in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Error => "error",
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
        }
    }

    /// Of a request that ended with this error while it ran.
    pub const fn of_failure(error: &ApiError) -> Self {
        match error.code {
            ErrorCode::Cancelled => Self::Cancelled,
            ErrorCode::InferenceTimeout => Self::Timeout,
            _ => Self::Error,
        }
    }

    /// Of a request that was answered with this error.
    pub const fn of_refusal(error: &ApiError) -> Self {
        match error.code {
            ErrorCode::Busy | ErrorCode::Loading | ErrorCode::ShuttingDown | ErrorCode::InsufficientVram => {
                Self::Rejected
            }
            ErrorCode::InvalidRequest
            | ErrorCode::Unauthorized
            | ErrorCode::Forbidden
            | ErrorCode::NotFound
            | ErrorCode::MethodNotAllowed => Self::Invalid,
            _ => Self::of_failure(error),
        }
    }
}

impl From<FinishReason> for Outcome {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
        }
    }
}

/// Bounds of whole requests in seconds.
const REQUESTS_S: &[f64] = &[
    0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
];

/// Counts of all requests since the start.
#[derive(Debug)]
pub struct Tally {
    outcomes: [AtomicU64; OUTCOMES.len()],
    durations: Mutex<Histogram>,
}

impl Default for Tally {
    fn default() -> Self {
        let counts = vec![0; REQUESTS_S.len() + 1];
        Self {
            outcomes: Default::default(),
            durations: Mutex::new(Histogram { bounds: REQUESTS_S, counts, sum: 0.0 }),
        }
    }
}

impl Tally {
    /// Counts one request.
    pub fn count(&self, outcome: Outcome) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests that ended so.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(outcome as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How long requests took that were not refused, from submission to end, in seconds.
    pub fn durations(&self) -> Histogram {
        self.durations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn took(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = durations.bounds.partition_point(|&bound| bound < seconds);
        if let Some(count) = durations.counts.get_mut(bucket) {
            *count += 1;
        }
        durations.sum += seconds;
    }
}

/// Says that a request was refused, and why.
pub fn refused(tally: &Tally, job_id: Option<&str>, error: &ApiError) {
    tally.count(Outcome::of_refusal(error));
    if let Some(trace) = RequestTrace::current() {
        trace.note(|facts| {
            facts.outcome = Some(Outcome::of_refusal(error).name());
            facts.error = Some(error.code.name());
        });
    }
    tracing::warn!(
        event = "error",
        job_id,
        code = error.code.name(),
        status = error.status().as_u16(),
        field = error.field.as_deref(),
        reason = error.message
    );
}

/// What is known of a request when it begins.
#[derive(Debug)]
pub struct Beginning<'a> {
    /// Its name.
    pub job_id: &'a str,
    /// Its prompt, as the client sent it.
    pub prompt: &'a TextPrint,
    /// Tokens of the prompt.
    pub tokens_in: usize,
    /// Most tokens it may generate.
    pub max_tokens: usize,
    /// The seed of its random numbers.
    pub seed: u64,
}

/// A request that runs. One that is dropped unended was left by its client.
#[derive(Debug)]
pub struct Record {
    tally: Arc<Tally>,
    /// Its name.
    pub job_id: String,
    /// Tokens of its prompt.
    pub tokens_in: usize,
    /// Its text so far.
    pub output: TextPrint,
    progress: Progress,
    trace: Option<Arc<RequestTrace>>,
    ended: bool,
}

impl Record {
    /// Writes the first line.
    pub fn begin(tally: &Arc<Tally>, beginning: &Beginning<'_>) -> Self {
        let Beginning { job_id, prompt, tokens_in, max_tokens, seed } = *beginning;
        tracing::info!(
            event = "execute_start",
            job_id,
            prompt_sha256 = prompt.sha256(),
            prompt_chars = prompt.chars(),
            tokens_in,
            max_tokens,
            seed
        );
        let trace = RequestTrace::current();
        if let Some(trace) = &trace {
            trace.note(|facts| {
                facts.id = Some(job_id.to_owned());
                facts.tokens_in = Some(tokens_in);
                facts.max_tokens = Some(max_tokens);
            });
        }
        Self {
            tally: Arc::clone(tally),
            job_id: job_id.to_owned(),
            tokens_in,
            output: TextPrint::default(),
            progress: Progress { tokens_out: 0, submitted: Instant::now(), first_token: None },
            trace,
            ended: false,
        }
    }

    /// Notes how far it has come.
    pub const fn note(&mut self, progress: &Progress) {
        self.progress = *progress;
    }

    /// Writes the last line; only the first end counts.
    pub fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.tally.count(outcome);
        self.tally.took(self.progress.submitted.elapsed());
        let ttft_ms = self.progress.time_to_first_token().map(milliseconds);
        if let Some(trace) = &self.trace {
            trace.note(|facts| {
                facts.outcome = Some(outcome.name());
                facts.tokens_out = Some(self.progress.tokens_out);
                facts.ttft_ms = ttft_ms;
            });
        }
        RequestTrace::within(self.trace.as_ref(), || {
            tracing::info!(
                event = "execute_end",
                job_id = self.job_id,
                outcome = outcome.name(),
                tokens_in = self.tokens_in,
                tokens_out = self.progress.tokens_out,
                output_sha256 = self.output.sha256(),
                output_chars = self.output.chars(),
                ttft_ms,
                decode_time_ms = milliseconds(self.progress.decode_time())
            );
        });
    }

    /// Writes the last line of one that failed, and why.
    pub fn fail(&mut self, error: &ApiError) {
        self.end(Outcome::of_failure(error));
        let (code, reason) = (error.code.name(), &error.message);
        if let Some(trace) = &self.trace {
            trace.note(|facts| facts.error = Some(code));
        }
        RequestTrace::within(self.trace.as_ref(), || {
            tracing::warn!(event = "error", job_id = self.job_id, code, reason);
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end(Outcome::Disconnected);
    }
}

/// Milliseconds to the microsecond.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
