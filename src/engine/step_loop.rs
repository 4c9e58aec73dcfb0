//! The engine's thread: takes commands, runs steps, ends sequences. It parks when there is nothing to do.
//!
//! Between a step's outputs and the next step the device idles, so only what the next step depends on happens there:
//! accept the tokens, free what ended, schedule, gather. Listeners are told, and commands taken, while it works.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use worker_orcd_core::{Backend, BackendError};

use super::batch::Batch;
use super::constraint::Constraint;
use super::job::{EngineError, FinishReason};
use super::plans::{Chooser, Plans};
use super::sampler::Sampler;
use super::scheduler::Scheduler;
use super::sequence::{Pace, Sequence};
use super::stats::{Shared, add};

/// Shortest time between residency checks, so that an idle engine does not spin.
const SHORTEST_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// A device that takes longer to accept a step works inside `submit`: listeners are told before, or they would learn
/// of every token a step late.
const PROMPT_SUBMIT: Duration = Duration::from_micros(500);

/// What handles tell the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// A job that has a place in the queue.
    Submit(Box<Sequence>),
    /// Ends every sequence of this id.
    Cancel(String),
    /// Ends the thread when nothing is left to do, at the latest then.
    Drain(Instant),
}

/// Everything the thread owns.
pub(super) struct StepLoop {
    pub(super) backend: Box<dyn Backend>,
    pub(super) plans: Plans,
    pub(super) batch: Batch,
    pub(super) scheduler: Scheduler,
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Receiver<Command>,
    /// Limit of the device's sampler; `None` = the host chooses always.
    pub(super) max_penalty_tokens: Option<usize>,
    pub(super) residency_interval: Duration,
    pub(super) sampler: Sampler,
    /// Sequences that have left and not been told.
    pub(super) ended: Vec<Sequence>,
    /// Whether listeners are told before a step is submitted, not after.
    pub(super) speaks_first: bool,
    /// When the device began to wait for the next step; `None` = there was none to wait for.
    pub(super) device_free: Option<Instant>,
    pub(super) drain_by: Option<Instant>,
    pub(super) last_check: Instant,
}

impl StepLoop {
    /// Runs until drained, or until nobody holds a handle and nothing is left to do.
    pub(super) fn run(mut self) {
        while self.receive() {
            let now = Instant::now();
            self.check_residency(now);
            self.check_sequences(now);
            self.release_ended();
            self.scheduler.schedule(now);
            self.publish();
            if let Err(error) = self.step() {
                self.break_down(&error);
            }
            self.release_ended();
            if self.scheduler.is_idle() {
                self.speak();
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        self.end_all(&EngineError::ShuttingDown);
        self.release_ended();
        self.speak();
    }

    /// Takes what has been sent; waits for the next residency check when there is nothing to do. False = end.
    fn receive(&mut self) -> bool {
        loop {
            if self.scheduler.is_idle() {
                if self.drain_by.is_some() {
                    return false;
                }
                let interval = self.residency_interval.max(SHORTEST_CHECK_INTERVAL);
                let wait = interval.saturating_sub(self.last_check.elapsed());
                self.device_free = None;
                match self.commands.recv_timeout(wait) {
                    Ok(command) => self.take(command),
                    Err(RecvTimeoutError::Timeout) => return true,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
                }
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(mut sequence) => {
                if let Some(reason) = self.shared.broken.get() {
                    sequence.end(Err(EngineError::Device { reason: reason.clone() }));
                }
                self.scheduler.waiting.push_back(*sequence);
            }
            Command::Cancel(id) => {
                let named = self.scheduler.sequences_mut().filter(|sequence| sequence.id == id);
                named.for_each(|sequence| sequence.end(Err(EngineError::Cancelled)));
            }
            Command::Drain(deadline) => {
                self.drain_by = Some(self.drain_by.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
    }

    fn check_residency(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last_check) < self.residency_interval {
            return;
        }
        self.last_check = now;
        if let Err(error) = self.backend.check_residency() {
            tracing::error!(event = "error", %error, "residency check");
            self.shared.resident.store(false, Ordering::Relaxed);
            self.shared.fault.get_or_init(|| error.to_string());
        }
    }

    fn check_sequences(&mut self, now: Instant) {
        for sequence in self.scheduler.sequences_mut() {
            sequence.check_listener_and_deadline(now);
        }
        if self.drain_by.is_some_and(|deadline| deadline <= now) {
            self.end_all(&EngineError::Cancelled);
        }
    }

    fn end_all(&mut self, error: &EngineError) {
        for sequence in self.scheduler.sequences_mut() {
            sequence.end(Err(error.clone()));
        }
    }

    /// Runs what the scheduler chose.
    fn step(&mut self) -> Result<(), BackendError> {
        if self.scheduler.step.is_empty() {
            self.speak();
            return Ok(());
        }
        self.batch.gather(&self.scheduler, self.max_penalty_tokens);
        let tokens = self.batch.len();
        let chooser = self.batch.chooser;
        let no_plan = || BackendError::Input { field: "tokens", reason: format!("no plan holds {tokens}") };
        let plan = self.plans.choose(chooser, tokens).ok_or_else(no_plan)?;
        if self.speaks_first {
            self.speak();
        }
        let start = Instant::now();
        if let Some(free) = self.device_free {
            let waited = start.saturating_duration_since(free);
            add(&self.shared.counters.host_time_ns, waited.as_nanos() as usize);
        }
        self.batch.with_inputs(|inputs| self.backend.submit(plan, inputs))?;
        self.speaks_first = start.elapsed() > PROMPT_SUBMIT;
        // The device works; meanwhile listeners are told and the queue moves.
        self.speak();
        while let Ok(command) = self.commands.try_recv() {
            self.take(command);
        }
        self.backend.wait(self.plans.outputs(chooser))?;
        let (counters, histograms) = (&self.shared.counters, &self.shared.histograms);
        add(&counters.steps, 1);
        let end = Instant::now();
        self.device_free = Some(end);
        histograms.step_duration.observe_time(end.saturating_duration_since(start));
        histograms.batch_size.observe(self.scheduler.step.len() as f64);
        let decoded = self.scheduler.decoding_in_step();
        add(&counters.prefill_tokens, tokens.saturating_sub(decoded));
        self.scheduler.complete_step();
        self.accept_tokens()
    }

    /// Hands every output row's token to its sequence.
    fn accept_tokens(&mut self) -> Result<(), BackendError> {
        let now = Instant::now();
        let rows = self.batch.chosen_for.len();
        let vocab = self.shared.vocab_size;
        let outputs = self.plans.outputs(self.batch.chooser);
        let (ids, logits) = (outputs.u32(0), outputs.f32(0));
        let (got, expected) = match self.batch.chooser {
            Chooser::Device => (ids.len(), rows),
            Chooser::Host => (logits.len(), rows * vocab),
        };
        if got != expected {
            let reason = format!("{got} values for {rows} rows, expected {expected}");
            return Err(BackendError::Execution { label: "output".into(), reason });
        }
        for (row, &index) in self.batch.chosen_for.iter().enumerate() {
            let Some(sequence) = self.scheduler.running.get_mut(index) else { continue };
            if sequence.has_ended() {
                continue;
            }
            let (id, logprobs) = match self.batch.chooser {
                Chooser::Device => (ids[row], None),
                Chooser::Host => {
                    let raw = &logits[row * vocab..(row + 1) * vocab];
                    let id = self.sampler.choose(raw, sequence);
                    let report = |count| self.sampler.logprobs(raw, id, count);
                    (id, sequence.sampling.logprobs.map(report))
                }
            };
            if id as usize >= vocab {
                let fault = sequence.sampling.constraint.as_ref().and_then(Constraint::fault);
                let error =
                    fault.map_or(EngineError::NonFiniteLogits, |reason| EngineError::Constraint { reason });
                sequence.end(Err(error));
                continue;
            }
            let histograms = &self.shared.histograms;
            match sequence.pace(now) {
                Pace::First { since_submission, since_admission } => {
                    histograms.time_to_first_token.observe_time(since_submission);
                    histograms.prefill_time.observe_time(since_admission);
                }
                Pace::Next(gap) => histograms.inter_token_latency.observe_time(gap),
            }
            if sequence.accept(id, logprobs, now) {
                add(&self.shared.counters.generated_tokens, 1);
            }
        }
        Ok(())
    }

    /// A step failed. Inputs the backend refused, before it ran anything, cost their own sequences; after any other
    /// error the device is gone: every sequence fails, and no other will be taken.
    fn break_down(&mut self, error: &BackendError) {
        let reason = error.to_string();
        tracing::error!(event = "error", %error, "step");
        if matches!(error, BackendError::Input { .. }) {
            for slice in &self.scheduler.step {
                if let Some(sequence) = self.scheduler.running.get_mut(slice.running) {
                    sequence.end(Err(EngineError::Device { reason: reason.clone() }));
                }
            }
            return;
        }
        self.shared.fault.get_or_init(|| reason.clone());
        self.shared.broken.get_or_init(|| reason.clone());
        self.end_all(&EngineError::Device { reason });
    }

    /// Frees what ended sequences hold and counts their ends; they are told when the thread speaks.
    fn release_ended(&mut self) {
        let known = self.ended.len();
        self.scheduler.sweep(&mut self.ended);
        let now = Instant::now();
        for sequence in self.ended.iter().skip(known) {
            if !sequence.was_admitted() {
                self.shared.leave_queue();
            }
            self.count_end(sequence, now);
        }
        self.publish();
    }

    /// Tells listeners their latest tokens, and the ends of those that ended.
    fn speak(&mut self) {
        self.scheduler.running.iter_mut().chain(&mut self.scheduler.waiting).for_each(Sequence::say);
        let now = Instant::now();
        for sequence in self.ended.drain(..) {
            sequence.announce_end(now);
        }
    }

    fn count_end(&self, sequence: &Sequence, now: Instant) {
        let counters = &self.shared.counters;
        let counter = match sequence.outcome() {
            Some(Ok(FinishReason::Stop)) => &counters.finished_stop,
            Some(Ok(FinishReason::Length)) => &counters.finished_length,
            Some(Err(EngineError::Cancelled)) => &counters.cancelled,
            Some(Err(EngineError::DeadlineExceeded)) => &counters.deadlines_exceeded,
            Some(Err(EngineError::KvExhausted)) => &counters.kv_exhaustions,
            Some(Err(EngineError::NonFiniteLogits)) => &counters.non_finite,
            Some(Err(_)) | None => &counters.failed,
        };
        add(counter, 1);
        match sequence.outcome() {
            Some(Ok(_)) => {
                self.shared.degraded.store(false, Ordering::Relaxed);
                let (histograms, usage) = (&self.shared.histograms, sequence.usage(now));
                histograms.decode_time.observe_time(usage.decode_time);
                // The first token is the prefill's; one that ended the sequence took its time as well.
                let ending = usize::from(sequence.outcome() == Some(&Ok(FinishReason::Stop)));
                let decoded = (usage.generated_tokens + ending).saturating_sub(1);
                if decoded > 0 {
                    let pace = usage.decode_time.as_secs_f64() / decoded as f64;
                    histograms.time_per_output_token.observe(pace);
                }
                let all = usage.queue_time + usage.prefill_time + usage.decode_time;
                histograms.request_time.observe_time(all);
            }
            Some(Err(EngineError::KvExhausted)) => {
                tracing::warn!(event = "error", job_id = %sequence.id, "key/value cache exhausted");
                self.shared.degraded.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Writes the gauges.
    fn publish(&mut self) {
        let counters = &self.shared.counters;
        for admission in self.scheduler.admissions.drain(..) {
            self.shared.leave_queue();
            self.shared.histograms.queue_time.observe_time(admission.waited);
            add(&counters.prompt_tokens, admission.prompt_tokens);
            add(&counters.prefix_cache_queries, admission.looked_up);
            add(&counters.prefix_cache_hits, admission.found);
        }
        let gauges = [
            (&counters.running, self.scheduler.running.len() as u64),
            (&counters.waiting, self.scheduler.waiting.len() as u64),
            (&counters.kv_blocks_used, self.scheduler.blocks.used_blocks() as u64),
            (&counters.kv_blocks_cached, self.scheduler.blocks.named_blocks() as u64),
            (&counters.preemptions, self.scheduler.preemptions),
        ];
        for (counter, value) in gauges {
            counter.store(value, Ordering::Relaxed);
        }
    }
}
