//! A job in the engine: its tokens so far, what of them is cached, and how it ends.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use worker_orcd_core::SampleRow;

use super::blocks::SequenceBlocks;
use super::job::{EngineError, FinishReason, Job, Sampling, TokenEvent, TokenLogprobs, Usage};
use super::prefix::{BlockKey, KeyChain};

/// What penalties need to know of the ids seen so far; empty when no penalty is on.
#[derive(Debug, Default)]
pub(super) struct History {
    seen: HashSet<u32>,
    /// Distinct ids of prompt and generation, in order of first appearance.
    pub(super) distinct: Vec<u32>,
    /// How often each id was generated.
    pub(super) generated: HashMap<u32, u32>,
}

impl History {
    fn see(&mut self, sampling: &Sampling, id: u32) {
        if repeats(sampling) && self.seen.insert(id) {
            self.distinct.push(id);
        }
    }

    fn generate(&mut self, sampling: &Sampling, id: u32) {
        self.see(sampling, id);
        if counts(sampling) {
            *self.generated.entry(id).or_insert(0) += 1;
        }
    }
}

fn repeats(sampling: &Sampling) -> bool {
    sampling.repetition_penalty.to_bits() != 1.0_f32.to_bits()
}

fn counts(sampling: &Sampling) -> bool {
    sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0
}

/// What a first admission tells the statistics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    /// Since submission.
    pub(super) waited: Duration,
    pub(super) prompt_tokens: usize,
    /// Prompt tokens looked up in the prefix cache, and those found.
    pub(super) looked_up: usize,
    pub(super) found: usize,
}

/// How long a token took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// The sequence's first.
    First { since_submission: Duration, since_admission: Duration },
    /// Since the one before.
    Next(Duration),
}

/// One sequence.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: String,
    /// Prompt, then everything generated; a stop token is never part of it.
    pub(super) tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Leading tokens whose keys and values are cached.
    pub(super) cached: usize,
    pub(super) blocks: SequenceBlocks,
    /// Names of its full blocks; `None` = it neither takes nor leaves cached blocks.
    chain: Option<KeyChain>,
    /// Leading tokens found cached at the first admission.
    prefix_tokens: usize,
    /// The same for its listener.
    pub(super) told_prefix: Arc<OnceLock<usize>>,
    /// Length at which it ends: `max_tokens` or the end of the context.
    max_length: usize,
    stop_ids: Vec<u32>,
    pub(super) sampling: Sampling,
    pub(super) history: History,
    deadline: Option<Instant>,
    events: mpsc::Sender<TokenEvent>,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// The latest token, while its listener has not been told.
    unsaid: Option<TokenEvent>,
    outcome: Option<Result<FinishReason, EngineError>>,
}

impl Sequence {
    /// A sequence for `job` in a context of `context` positions. `events` has room for all it will say:
    /// [`Sequence::events_needed`].
    pub(super) fn new(
        job: Job,
        context: usize,
        events: mpsc::Sender<TokenEvent>,
        submitted: Instant,
    ) -> Self {
        let prompt_tokens = job.prompt.len();
        let mut history = History::default();
        for &id in &job.prompt {
            history.see(&job.sampling, id);
        }
        let max_length = prompt_tokens.saturating_add(job.max_tokens).min(context);
        let mut tokens = job.prompt;
        tokens.reserve_exact(max_length.saturating_sub(prompt_tokens));
        Self {
            id: job.id,
            tokens,
            prompt_tokens,
            cached: 0,
            blocks: SequenceBlocks::default(),
            chain: None,
            prefix_tokens: 0,
            told_prefix: Arc::default(),
            max_length,
            stop_ids: job.stop_ids,
            sampling: job.sampling,
            history,
            deadline: job.deadline,
            events,
            submitted,
            admitted: None,
            first_token: None,
            last_token: None,
            unsaid: None,
            outcome: None,
        }
    }

    /// Names the full blocks of the prompt, and from now on every block it fills: it shares them with sequences of the
    /// same salt.
    pub(super) fn share_blocks(&mut self, block_size: usize, salt: Option<&str>) {
        let mut chain = KeyChain::new(block_size, salt);
        chain.reserve(self.max_length);
        chain.extend(&self.tokens);
        self.chain = Some(chain);
    }

    /// Keys of the blocks it may take from the cache.
    pub(super) fn reusable(&self) -> &[BlockKey] {
        self.chain.as_ref().map_or(&[], |chain| chain.reusable(self.tokens.len()))
    }

    /// Keys of the full blocks of what is cached.
    pub(super) fn filled(&mut self) -> &[BlockKey] {
        match &mut self.chain {
            Some(chain) => {
                chain.extend(&self.tokens[..self.cached]);
                chain.filled(self.cached)
            }
            None => &[],
        }
    }

    /// Most events `job` can cause: its tokens and the last word.
    pub(super) fn events_needed(job: &Job, context: usize) -> usize {
        job.max_tokens.min(context.saturating_sub(job.prompt.len())).saturating_add(1)
    }

    /// Length at which it ends at the latest.
    pub(super) const fn max_length(&self) -> usize {
        self.max_length
    }

    /// Tokens not cached yet; 1 while decoding.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Tokens generated so far; also the draw counter of the next one.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Notes the first admission, which found `self.cached` tokens cached; what it tells the statistics, if it was.
    pub(super) fn admit(&mut self, now: Instant) -> Option<Admission> {
        if self.admitted.is_some() {
            return None;
        }
        self.admitted = Some(now);
        self.prefix_tokens = self.cached;
        self.told_prefix.get_or_init(|| self.cached);
        Some(Admission {
            waited: now.saturating_duration_since(self.submitted),
            prompt_tokens: self.prompt_tokens,
            looked_up: if self.chain.is_some() { self.prompt_tokens } else { 0 },
            found: self.cached,
        })
    }

    /// Whether it ever ran.
    pub(super) const fn was_admitted(&self) -> bool {
        self.admitted.is_some()
    }

    /// Whether the device can choose this sequence's next token.
    pub(super) fn device_can_sample(&self, max_penalty_tokens: usize) -> bool {
        let sampling = &self.sampling;
        sampling.logprobs.is_none()
            && sampling.constraint.is_none()
            && sampling.logit_bias.is_empty()
            && !counts(sampling)
            && (!repeats(sampling) || self.history.distinct.len() <= max_penalty_tokens)
    }

    /// Parameters of the next choice.
    pub(super) fn sample_row(&self) -> SampleRow {
        SampleRow {
            temperature: self.sampling.temperature,
            top_p: self.sampling.top_p,
            min_p: self.sampling.min_p,
            repetition_penalty: self.sampling.repetition_penalty,
            top_k: self.sampling.top_k,
            seed_low: self.sampling.seed as u32,
            seed_high: (self.sampling.seed >> 32) as u32,
            draw: self.generated() as u32,
        }
    }

    /// Takes the chosen token: has it said next time, or ends the sequence, or both. Whether it was one to say.
    pub(super) fn accept(&mut self, id: u32, logprobs: Option<TokenLogprobs>, now: Instant) -> bool {
        self.say();
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        if self.stop_ids.contains(&id) {
            self.end(Ok(FinishReason::Stop));
            return false;
        }
        let index = self.generated();
        self.tokens.push(id);
        self.history.generate(&self.sampling, id);
        self.unsaid = Some(TokenEvent::Token { id, index, logprobs });
        if self.tokens.len() >= self.max_length {
            self.end(Ok(FinishReason::Length));
        }
        true
    }

    /// Tells the listener the latest token, if it does not know it yet. Waking it costs more than choosing the token,
    /// so this is done while the device works.
    pub(super) fn say(&mut self) {
        if let Some(event) = self.unsaid.take()
            && self.events.try_send(event).is_err()
        {
            self.end(Err(EngineError::Cancelled));
        }
    }

    /// How long a token chosen now took.
    pub(super) fn pace(&self, now: Instant) -> Pace {
        match self.last_token {
            Some(last) => Pace::Next(now.saturating_duration_since(last)),
            None => Pace::First {
                since_submission: now.saturating_duration_since(self.submitted),
                since_admission: now.saturating_duration_since(self.admitted.unwrap_or(now)),
            },
        }
    }

    /// Decides how the sequence ends; the first decision stands.
    pub(super) fn end(&mut self, outcome: Result<FinishReason, EngineError>) {
        self.outcome.get_or_insert(outcome);
    }

    /// Whether it has ended and waits to be swept out.
    pub(super) fn has_ended(&self) -> bool {
        self.outcome.is_some()
    }

    /// Ends the sequence when its listener is gone or its time is up.
    pub(super) fn check_listener_and_deadline(&mut self, now: Instant) {
        if self.events.is_closed() {
            self.end(Err(EngineError::Cancelled));
        } else if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.end(Err(EngineError::DeadlineExceeded));
        }
    }

    /// Says the last word. The caller has freed the blocks.
    pub(super) fn announce_end(mut self, now: Instant) {
        self.say();
        let usage = self.usage(now);
        let event = match self.outcome {
            Some(Ok(reason)) => TokenEvent::Finished { reason, usage },
            Some(Err(error)) => TokenEvent::Failed { error },
            None => TokenEvent::Failed { error: EngineError::ShuttingDown },
        };
        // A listener that went away does not hear it.
        let _ = self.events.try_send(event);
    }

    /// How it ended, if it has.
    pub(super) fn outcome(&self) -> Option<&Result<FinishReason, EngineError>> {
        self.outcome.as_ref()
    }

    /// Times and counts up to now.
    pub(super) fn usage(&self, now: Instant) -> Usage {
        let admitted = self.admitted.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.prefix_tokens,
            generated_tokens: self.generated(),
            queue_time: admitted.saturating_duration_since(self.submitted),
            prefill_time: first_token.saturating_duration_since(admitted),
            decode_time: now.saturating_duration_since(first_token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(prompt: &[u32], max_tokens: usize) -> Job {
        Job {
            id: "job".into(),
            prompt: prompt.to_vec(),
            max_tokens,
            stop_ids: vec![9],
            sampling: Sampling {
                repetition_penalty: 1.1,
                presence_penalty: 0.5,
                seed: 1 << 32,
                ..Sampling::greedy()
            },
            deadline: None,
            cache_salt: None,
        }
    }

    #[test]
    fn tokens_are_said_and_the_stop_token_is_not() {
        let (events, mut listener) = mpsc::channel(8);
        let now = Instant::now();
        let mut sequence = Sequence::new(job(&[1, 2, 1], 5), 100, events, now);
        assert_eq!(sequence.history.distinct, [1, 2]);
        assert!(sequence.accept(2, None, now) && !sequence.has_ended());
        assert_eq!((sequence.sample_row().draw, sequence.sample_row().seed_high), (1, 1));
        assert_eq!(sequence.history.generated.get(&2), Some(&1));
        assert!(!sequence.accept(9, None, now));
        assert_eq!(sequence.outcome(), Some(&Ok(FinishReason::Stop)));
        sequence.announce_end(now);
        assert_eq!(listener.try_recv(), Ok(TokenEvent::Token { id: 2, index: 0, logprobs: None }));
        let Ok(TokenEvent::Finished { usage, .. }) = listener.try_recv() else { panic!("no end") };
        assert_eq!((usage.prompt_tokens, usage.generated_tokens), (3, 1));
    }

    #[test]
    fn the_context_ends_a_sequence_and_the_channel_is_large_enough() {
        let job = job(&[1, 2, 3], 50);
        assert_eq!(Sequence::events_needed(&job, 5), 3);
        let (events, mut listener) = mpsc::channel(Sequence::events_needed(&job, 5));
        let now = Instant::now();
        let mut sequence = Sequence::new(job, 5, events, now);
        sequence.accept(4, None, now);
        sequence.accept(5, None, now);
        assert_eq!(sequence.outcome(), Some(&Ok(FinishReason::Length)));
        sequence.announce_end(now);
        assert_eq!(std::iter::from_fn(|| listener.try_recv().ok()).count(), 3);
    }

    #[test]
    fn a_lost_listener_ends_the_sequence() {
        let (events, listener) = mpsc::channel(8);
        let now = Instant::now();
        let mut sequence = Sequence::new(job(&[1], 5), 100, events, now);
        sequence.check_listener_and_deadline(now);
        assert!(!sequence.has_ended());
        drop(listener);
        sequence.check_listener_and_deadline(now);
        assert_eq!(sequence.outcome(), Some(&Err(EngineError::Cancelled)));
    }
}
