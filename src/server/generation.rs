//! A running sequence as text: the engine's tokens decoded, stop strings applied, ended by whatever comes first.
//!
//! It ends in exactly one [`Output::Ended`] or [`Output::Failed`], whatever the engine does.

use std::task::{Context, Poll};

use super::error::ApiError;
use super::following::{Following, Heard, Progress};
use crate::engine::{FinishReason, Usage};
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

/// A running sequence and all that belongs to it. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct Generation {
    following: Following,
    decoder: IncrementalDecoder,
    /// The end, while text that must leave first is on its way.
    ending: Option<Output>,
}

impl Generation {
    /// Reads the one sequence that is followed. The text ends at the decoder's stop strings.
    pub const fn read(following: Following, decoder: IncrementalDecoder) -> Self {
        Self { following, decoder, ending: None }
    }

    /// Times and counts so far.
    pub const fn progress(&self) -> &Progress {
        self.following.progress()
    }

    /// The next output; `None` after the end.
    pub fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<Option<Output>> {
        if let Some(ending) = self.ending.take() {
            return Poll::Ready(Some(ending));
        }
        loop {
            let heard = match self.following.poll_heard(cx) {
                Poll::Ready(Some(heard)) => heard,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            };
            if let Some(output) = self.take(heard) {
                return Poll::Ready(Some(output));
            }
        }
    }

    /// Turns what was heard into an output, if it makes one.
    fn take(&mut self, heard: Heard) -> Option<Output> {
        match heard {
            Heard::Token { sequence, id, .. } => {
                let text = self.decoder.push(id);
                if self.decoder.stopped_by().is_some() {
                    self.following.close(sequence);
                    return Some(self.end(text, FinishReason::Stop, None));
                }
                self.text(text)
            }
            Heard::Finished { reason, usage, .. } => {
                let rest = self.decoder.finish();
                // The replacement for a character cut short may complete a stop string.
                let reason = self.decoder.stopped_by().map_or(reason, |_| FinishReason::Stop);
                Some(self.end(rest, reason, Some(usage)))
            }
            Heard::Failed(error) => Some(Output::Failed(error)),
        }
    }

    fn end(&mut self, rest: String, reason: FinishReason, usage: Option<Usage>) -> Output {
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
        let index = self.progress().tokens_out.saturating_sub(1);
        (!text.is_empty()).then_some(Output::Text { text, index })
    }
}
