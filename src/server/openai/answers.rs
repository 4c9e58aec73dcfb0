//! The answers to one request as they are generated: every sequence read by its parser, every answer ended once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::engine::{FinishReason, TokenLogprobs};
use crate::server::error::ApiError;
use crate::server::following::{Following, Heard};
use crate::server::record::{Outcome, Record};
use crate::text::Tokenizer;
use crate::text::chat::{FinishHint, OutputEvent, OutputParser};

/// A token with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenReport {
    /// Its id.
    pub id: u32,
    /// As the engine reports them.
    pub logprobs: TokenLogprobs,
}

/// Tokens of a whole request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// Of the prompts, found cached.
    pub cached_tokens: usize,
    /// Of all answers, reasoning included.
    pub completion_tokens: usize,
    /// Of all answers, spent on reasoning.
    pub reasoning_tokens: usize,
}

/// What the answers say. `choice` counts them from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A piece of an answer; never [`OutputEvent::Finished`].
    Piece {
        /// Of which answer.
        choice: usize,
        /// The piece.
        event: OutputEvent,
        /// Tokens that became it, when asked for.
        reports: Vec<TokenReport>,
    },
    /// The end of one answer.
    Ended {
        /// Which.
        choice: usize,
        /// Why.
        outcome: Outcome,
    },
    /// All have ended.
    Complete(Totals),
    /// The request has failed: nothing follows.
    Failed(ApiError),
}

#[derive(Debug)]
struct Choice {
    parser: OutputParser,
    /// Tokens whose text has not come out yet.
    reports: Vec<TokenReport>,
    outcome: Option<Outcome>,
}

/// The answers to one request. Dropping them cancels what still runs.
#[derive(Debug)]
pub struct Answers {
    following: Following,
    tokenizer: Arc<Tokenizer>,
    choices: Vec<Choice>,
    /// Consecutive answers that share a prompt.
    choices_per_prompt: usize,
    /// End an answer at its first tool call.
    single_call: bool,
    due: VecDeque<Said>,
    record: Record,
    complete: bool,
}

impl Answers {
    /// Reads one sequence with each parser; `choices_per_prompt` of them in a row share a prompt.
    pub fn read(
        following: Following,
        tokenizer: Arc<Tokenizer>,
        parsers: Vec<OutputParser>,
        choices_per_prompt: usize,
        record: Record,
    ) -> Self {
        let choice = |parser| Choice { parser, reports: vec![], outcome: None };
        Self {
            following,
            tokenizer,
            choices: parsers.into_iter().map(choice).collect(),
            choices_per_prompt,
            single_call: false,
            due: VecDeque::new(),
            record,
            complete: false,
        }
    }

    /// Ends every answer at its first tool call.
    pub const fn end_at_first_call(&mut self) {
        self.single_call = true;
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.choices.len()
    }

    /// What is said next; `None` after [`Said::Complete`] or [`Said::Failed`].
    pub fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        loop {
            if let Some(said) = self.due.pop_front() {
                return Poll::Ready(Some(said));
            }
            match self.following.poll_heard(cx) {
                Poll::Ready(Some(heard)) => self.take(heard),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
            self.record.note(self.following.progress());
            self.end_when_all_have();
        }
    }

    fn take(&mut self, heard: Heard) {
        match heard {
            Heard::Token { sequence, id, logprobs } => {
                let Some(choice) = self.choices.get_mut(sequence) else { return };
                if let Some(logprobs) = logprobs.filter(|_| !self.tokenizer.is_special(id)) {
                    choice.reports.push(TokenReport { id, logprobs });
                }
                for event in choice.parser.push(id) {
                    self.say(sequence, event);
                }
            }
            Heard::Finished { sequence, reason, .. } => {
                let Some(choice) = self.choices.get_mut(sequence) else { return };
                let rest = choice.parser.finish();
                let outcome = match (reason, choice.parser.hint()) {
                    (FinishReason::Length, _) => Outcome::Length,
                    (FinishReason::Stop, hint) => outcome(hint),
                };
                for event in rest {
                    self.say(sequence, event);
                }
                self.end(sequence, outcome);
            }
            Heard::Failed(error) => {
                self.record.fail(&error);
                self.complete = true;
                self.due.push_back(Said::Failed(error));
            }
        }
    }

    /// Queues one event of a parser, or the end it stands for.
    fn say(&mut self, index: usize, event: OutputEvent) {
        let Some(choice) = self.choices.get_mut(index).filter(|choice| choice.outcome.is_none()) else {
            return;
        };
        if let OutputEvent::Finished(hint) = event {
            return self.end(index, outcome(hint));
        }
        let reports = std::mem::take(&mut choice.reports);
        let is_content = matches!(event, OutputEvent::ContentDelta(_));
        if let OutputEvent::ContentDelta(text) | OutputEvent::ReasoningDelta(text) = &event {
            self.record.output.push(text);
        }
        let ends = self.single_call && matches!(event, OutputEvent::ToolCallEnd { .. });
        // Only tokens of the answer's text are reported.
        let reports = if is_content { reports } else { vec![] };
        self.due.push_back(Said::Piece { choice: index, event, reports });
        if ends {
            self.end(index, Outcome::ToolCalls);
        }
    }

    /// Ends one answer; the first end counts.
    fn end(&mut self, index: usize, outcome: Outcome) {
        if let Some(choice) = self.choices.get_mut(index)
            && choice.outcome.is_none()
        {
            choice.outcome = Some(outcome);
            self.following.close(index);
            self.due.push_back(Said::Ended { choice: index, outcome });
        }
    }

    fn end_when_all_have(&mut self) {
        if self.complete || self.choices.iter().any(|choice| choice.outcome.is_none()) {
            return;
        }
        self.complete = true;
        self.due.push_back(Said::Complete(self.totals()));
        if let Some(outcome) = self.choices.first().and_then(|choice| choice.outcome) {
            self.record.end(outcome);
        }
    }

    fn totals(&self) -> Totals {
        let firsts = (0..self.choices.len()).step_by(self.choices_per_prompt.max(1));
        Totals {
            prompt_tokens: self.record.tokens_in,
            cached_tokens: firsts.map(|first| self.following.cached_tokens(first)).sum(),
            completion_tokens: self.following.progress().tokens_out,
            reasoning_tokens: self.choices.iter().map(|choice| choice.parser.reasoning_tokens()).sum(),
        }
    }
}

const fn outcome(hint: FinishHint) -> Outcome {
    match hint {
        FinishHint::Stop | FinishHint::StopString(_) => Outcome::Stop,
        FinishHint::ToolCalls => Outcome::ToolCalls,
    }
}
