//! A running sequence as text: the engine's tokens decoded, stop strings applied, ended by whatever comes first.
//!
//! This is what every streaming or collecting route is built on. It ends in exactly one [`Output::Ended`] or
//! [`Output::Failed`], whatever the engine does, and from that moment the job's name is free and the sequence is gone.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use super::error::{ApiError, ErrorCode};
use super::registry::{LiveJob, StopCause};
use crate::engine::{EngineError, FinishReason, JobStream, TokenEvent, Usage};
use crate::text::IncrementalDecoder;

/// What a generation says.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Whole characters, never empty.
    Text {
        /// The characters.
        text: String,
        /// Index of the newest token generated so far, from 0.
        index: usize,
    },
    /// The end of a generation that went well.
    Ended {
        /// Why it ended.
        reason: FinishReason,
        /// The engine's figures; absent when a stop string ended the text, since the engine was still at work then.
        usage: Option<Usage>,
    },
    /// The end of one that did not.
    Failed(ApiError),
}

/// Times and counts as this side of the engine saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens seen.
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

/// A running sequence and all that belongs to it. Dropping it cancels the sequence.
pub struct Generation {
    /// Absent once ended: dropping the stream is what tells the engine.
    running: Option<Running>,
    decoder: IncrementalDecoder,
    backend: String,
    /// The end, while text that must leave first is on its way.
    ending: Option<Output>,
    progress: Progress,
}

struct Running {
    stream: JobStream,
    job: LiveJob,
    deadline: Pin<Box<Sleep>>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Generation {
    /// Follows a submitted job until `deadline`. The text ends at the decoder's stop strings; `backend` names the device
    /// in errors.
    pub fn follow(
        stream: JobStream,
        job: LiveJob,
        decoder: IncrementalDecoder,
        deadline: Instant,
        backend: &str,
    ) -> Self {
        let deadline = Box::pin(tokio::time::sleep_until(deadline.into()));
        Self {
            running: Some(Running { stream, job, deadline }),
            decoder,
            backend: backend.to_owned(),
            ending: None,
            progress: Progress { tokens_out: 0, submitted: Instant::now(), first_token: None },
        }
    }

    /// Times and counts so far.
    pub const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The next output; `None` after the end.
    pub fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Option<Output>> {
        if let Some(ending) = self.ending.take() {
            return Poll::Ready(Some(ending));
        }
        while let Some(running) = &mut self.running {
            if let Poll::Ready(cause) = running.job.poll_stop(cx) {
                return Poll::Ready(Some(self.stopped(cause)));
            }
            let event = match running.stream.events.poll_recv(cx) {
                Poll::Ready(event) => event,
                Poll::Pending if running.deadline.as_mut().poll(cx).is_ready() => {
                    Some(TokenEvent::Failed { error: EngineError::DeadlineExceeded })
                }
                Poll::Pending => return Poll::Pending,
            };
            if let Some(output) = self.take(event) {
                return Poll::Ready(Some(output));
            }
        }
        Poll::Ready(None)
    }

    fn stopped(&mut self, cause: StopCause) -> Output {
        self.running = None;
        Output::Failed(match cause {
            StopCause::Cancelled => ApiError::of(ErrorCode::Cancelled, "cancelled"),
            StopCause::Drained => ApiError::drained(),
        })
    }

    /// Turns an event into an output, if it makes one.
    fn take(&mut self, event: Option<TokenEvent>) -> Option<Output> {
        match event {
            Some(TokenEvent::Token { id, .. }) => {
                self.progress.first_token.get_or_insert_with(Instant::now);
                self.progress.tokens_out += 1;
                let text = self.decoder.push(id);
                if self.decoder.stopped_by().is_some() {
                    return Some(self.end(text, FinishReason::Stop, None));
                }
                self.text(text)
            }
            Some(TokenEvent::Finished { reason, usage }) => {
                let rest = self.decoder.finish();
                // The replacement for a character cut short may complete a stop string.
                let reason = self.decoder.stopped_by().map_or(reason, |_| FinishReason::Stop);
                Some(self.end(rest, reason, Some(usage)))
            }
            Some(TokenEvent::Failed { error }) => {
                self.running = None;
                Some(Output::Failed(ApiError::from_engine(&error, &self.backend)))
            }
            None => {
                self.running = None;
                let message = "the engine ended without a result";
                Some(Output::Failed(ApiError::of(ErrorCode::Internal, message)))
            }
        }
    }

    fn end(&mut self, rest: String, reason: FinishReason, usage: Option<Usage>) -> Output {
        self.running = None;
        let ended = Output::Ended { reason, usage };
        match self.text(rest) {
            Some(text) => {
                self.ending = Some(ended);
                text
            }
            None => ended,
        }
    }

    fn text(&self, text: String) -> Option<Output> {
        let index = self.progress.tokens_out.saturating_sub(1);
        (!text.is_empty()).then_some(Output::Text { text, index })
    }
}
