//! The sequences of one request, followed to their ends: tokens from the engine, or whatever ends them first.
//!
//! Every sequence is heard to end once, unless the whole request fails: then everything stops at that one error. From
//! that moment the request's name is free and its sequences are gone.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::error::{ApiError, ErrorCode};
use super::registry::{LiveJob, StopCause};
use crate::engine::{EngineError, FinishReason, JobStream, TokenEvent, TokenLogprobs, Usage};

/// What is heard of a request's sequences. `sequence` counts them from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// One generated token.
    Token {
        /// Of which sequence.
        sequence: usize,
        /// Its id.
        id: u32,
        /// Present when asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The end of a sequence that went well.
    Finished {
        /// Which sequence.
        sequence: usize,
        /// Why it ended.
        reason: FinishReason,
        /// What it cost.
        usage: Usage,
    },
    /// The end of the request.
    Failed(ApiError),
}

/// Times and counts as this side of the engine saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens seen, of all sequences.
    pub tokens_out: usize,
    /// When the job was handed over.
    pub submitted: Instant,
    /// When the first token came.
    pub first_token: Option<Instant>,
}

impl Progress {
    /// Submission to first token.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        Some(self.first_token?.duration_since(self.submitted))
    }

    /// First token to now.
    pub fn decode_time(&self) -> Duration {
        self.first_token.map_or(Duration::ZERO, |first| first.elapsed())
    }
}

/// Running sequences and all that belongs to them. Dropping it cancels them.
pub struct Following {
    /// Absent once every sequence has ended: dropping a stream is what tells the engine.
    live: Option<Live>,
    /// The sequence that is asked first next time, so that none starves another.
    turn: usize,
    backend: String,
    progress: Progress,
    /// Prompt tokens found cached, by sequence.
    cached_tokens: Vec<Arc<OnceLock<usize>>>,
}

struct Live {
    streams: Vec<Option<JobStream>>,
    job: LiveJob,
    deadline: Pin<Box<Sleep>>,
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Following").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Following {
    /// Follows submitted sequences until `deadline`; `backend` names the device in errors.
    pub fn of(streams: Vec<JobStream>, job: LiveJob, deadline: Instant, backend: &str) -> Self {
        let deadline = Box::pin(tokio::time::sleep_until(deadline.into()));
        let cached_tokens = streams.iter().map(|stream| Arc::clone(&stream.cached_tokens)).collect();
        let streams = streams.into_iter().map(Some).collect();
        Self {
            live: Some(Live { streams, job, deadline }),
            turn: 0,
            backend: backend.to_owned(),
            progress: Progress { tokens_out: 0, submitted: Instant::now(), first_token: None },
            cached_tokens,
        }
    }

    /// Times and counts so far.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Prompt tokens of one sequence that were found cached; none before it was admitted.
    pub fn cached_tokens(&self, sequence: usize) -> usize {
        self.cached_tokens.get(sequence).and_then(|cached| cached.get()).copied().unwrap_or(0)
    }

    /// Ends one sequence: nothing more is heard of it.
    pub fn close(&mut self, sequence: usize) {
        let Some(live) = &mut self.live else { return };
        if let Some(stream) = live.streams.get_mut(sequence) {
            *stream = None;
        }
        if live.streams.iter().all(Option::is_none) {
            self.live = None;
        }
    }

    /// What is heard next; `None` after the end.
    pub fn poll_heard(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        let Some(live) = &mut self.live else { return Poll::Ready(None) };
        if let Poll::Ready(cause) = live.job.poll_stop(cx) {
            return Poll::Ready(Some(self.fail(match cause {
                StopCause::Cancelled => ApiError::of(ErrorCode::Cancelled, "cancelled"),
                StopCause::Drained => ApiError::drained(),
            })));
        }
        let count = live.streams.len();
        for sequence in (0..count).map(|step| (self.turn + step) % count) {
            let Some(Some(stream)) = live.streams.get_mut(sequence) else { continue };
            if let Poll::Ready(event) = stream.events.poll_recv(cx) {
                self.turn = (sequence + 1) % count;
                return Poll::Ready(Some(self.take(sequence, event)));
            }
        }
        if live.deadline.as_mut().poll(cx).is_ready() {
            let error = ApiError::from_engine(&EngineError::DeadlineExceeded, &self.backend);
            return Poll::Ready(Some(self.fail(error)));
        }
        Poll::Pending
    }

    fn take(&mut self, sequence: usize, event: Option<TokenEvent>) -> Heard {
        match event {
            Some(TokenEvent::Token { id, logprobs, .. }) => {
                self.progress.first_token.get_or_insert_with(Instant::now);
                self.progress.tokens_out += 1;
                Heard::Token { sequence, id, logprobs }
            }
            Some(TokenEvent::Finished { reason, usage }) => {
                self.close(sequence);
                Heard::Finished { sequence, reason, usage }
            }
            Some(TokenEvent::Failed { error }) => {
                let error = ApiError::from_engine(&error, &self.backend);
                self.fail(error)
            }
            None => self.fail(ApiError::of(ErrorCode::Internal, "the engine ended without a result")),
        }
    }

    fn fail(&mut self, error: ApiError) -> Heard {
        self.live = None;
        Heard::Failed(error)
    }
}
