//! Chooses a token on the host, from logits that were read back.
//!
//! The arithmetic is the device's own ([`worker_orcd_core::sampling`]); what only the host does (logit bias, frequency
//! and presence penalties, log-probabilities) is added around it. Order, MODELS 6.1: bias, repetition, frequency,
//! presence, then temperature and truncation. Log-probabilities are those of the raw logits.

use worker_orcd_core::sampling::{SampleScratch, log_sum_exp, sample_row};
use worker_orcd_core::{NO_TOKEN, SampleRow};

use super::job::TokenLogprobs;
use super::sequence::Sequence;

/// Buffers of the host's choices; they grow to the vocabulary once.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    scratch: SampleScratch,
    logits: Vec<f32>,
    ids: Vec<u32>,
    /// Logits of the ids that a constraint allows.
    allowed: Vec<f32>,
}

impl Sampler {
    /// The next token of `sequence`; `NO_TOKEN` when the logits are unusable.
    pub(super) fn choose(&mut self, raw: &[f32], sequence: &Sequence) -> u32 {
        let Some(constraint) = &sequence.sampling.constraint else { return self.choose_any(raw, sequence) };
        let mut allowed = std::mem::take(&mut self.allowed);
        allowed.clear();
        allowed.extend_from_slice(raw);
        constraint.mask(&mut allowed);
        let id = self.choose_any(&allowed, sequence);
        if id != NO_TOKEN {
            constraint.accept(id);
        }
        self.allowed = allowed;
        id
    }

    /// The next token of a sequence, constraint aside.
    fn choose_any(&mut self, raw: &[f32], sequence: &Sequence) -> u32 {
        let row = sequence.sample_row();
        let sampling = &sequence.sampling;
        let distinct = &sequence.history.distinct;
        let generated = &sequence.history.generated;
        if sampling.logit_bias.is_empty() && generated.is_empty() {
            return sample_row(raw, &row, distinct, &mut self.scratch);
        }
        self.logits.clear();
        self.logits.extend_from_slice(raw);
        for &(id, bias) in &sampling.logit_bias {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if generated.is_empty() {
            return sample_row(&self.logits, &row, distinct, &mut self.scratch);
        }
        let (penalty, inverse_penalty) = (row.repetition_penalty, 1.0 / row.repetition_penalty);
        for &id in distinct {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit *= if *logit > 0.0 { inverse_penalty } else { penalty };
            }
        }
        for (&id, &count) in generated {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit -= sampling.frequency_penalty * count as f32;
                *logit -= sampling.presence_penalty;
            }
        }
        sample_row(&self.logits, &SampleRow { repetition_penalty: 1.0, ..row }, &[], &mut self.scratch)
    }

    /// Log-probabilities of `chosen` and of the `count` most probable ids, ties to the lower id.
    pub(super) fn logprobs(&mut self, raw: &[f32], chosen: u32, count: usize) -> TokenLogprobs {
        let normalizer = log_sum_exp(raw);
        let logprob = |id: u32| {
            let logit = raw.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
            (f64::from(logit) - normalizer) as f32
        };
        let by_rank = |a: &u32, b: &u32| {
            let (x, y) = (raw[*a as usize], raw[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        self.ids.clear();
        self.ids.extend(0..raw.len() as u32);
        let count = count.min(raw.len());
        if count > 0 && count < raw.len() {
            self.ids.select_nth_unstable_by(count - 1, by_rank);
        }
        self.ids.truncate(count);
        self.ids.sort_unstable_by(by_rank);
        TokenLogprobs { chosen: logprob(chosen), top: self.ids.iter().map(|&id| (id, logprob(id))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::mpsc;

    use super::super::constraint::{Constraint, TokenRules};
    use super::super::job::{Job, Sampling};
    use super::*;

    fn sequence(prompt: &[u32], generated: &[u32], sampling: Sampling) -> Sequence {
        let job = Job {
            id: "job".into(),
            prompt: prompt.to_vec(),
            max_tokens: 100,
            stop_ids: vec![],
            sampling,
            deadline: None,
            cache_salt: None,
        };
        let (events, mut listener) = mpsc::channel(200);
        let now = Instant::now();
        let mut sequence = Sequence::new(job, 1000, events, now);
        for &id in generated {
            sequence.accept(id, None, now);
        }
        listener.close();
        sequence
    }

    fn choose(raw: &[f32], prompt: &[u32], generated: &[u32], sampling: Sampling) -> u32 {
        Sampler::default().choose(raw, &sequence(prompt, generated, sampling))
    }

    #[test]
    fn bias_forces_and_bans() {
        let raw = [1.0, 2.0, 0.0];
        let biased = |bias: &[(u32, f32)]| Sampling { logit_bias: bias.to_vec(), ..Sampling::greedy() };
        assert_eq!(choose(&raw, &[0], &[], Sampling::greedy()), 1);
        assert_eq!(choose(&raw, &[0], &[], biased(&[(2, 100.0)])), 2);
        assert_eq!(choose(&raw, &[0], &[], biased(&[(1, -100.0), (77, 5.0)])), 0);
    }

    /// Allows ids in turn, and fails when there is none.
    struct InTurn(Vec<u32>);

    impl TokenRules for InTurn {
        fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
            let next = *self.0.first().ok_or("nothing left")?;
            let others = logits.iter_mut().enumerate().filter(|(id, _)| *id != next as usize);
            others.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
            Ok(())
        }

        fn accept(&mut self, id: u32) -> Result<(), String> {
            if self.0.remove(0) == id { Ok(()) } else { Err("not allowed".into()) }
        }
    }

    #[test]
    fn a_constraint_outranks_logits_and_bias_and_ends_what_it_cannot_rule() {
        let constraint = Constraint::of(Box::new(InTurn(vec![2, 0])));
        let sampling = Sampling {
            constraint: Some(constraint.clone()),
            logit_bias: vec![(1, 100.0)],
            temperature: 1.0,
            ..Sampling::greedy()
        };
        let sequence = sequence(&[0], &[], sampling);
        let mut sampler = Sampler::default();
        let ids: Vec<u32> = (0..3).map(|_| sampler.choose(&[1.0, 2.0, 0.0], &sequence)).collect();
        assert_eq!(ids, [2, 0, NO_TOKEN]);
        assert_eq!(constraint.fault().as_deref(), Some("nothing left"));
        assert!(!sequence.device_can_sample(100));
    }

    #[test]
    fn frequency_counts_and_presence_does_not() {
        let raw = [2.0, 1.0, 0.0];
        let frequency = Sampling { frequency_penalty: 0.6, ..Sampling::greedy() };
        assert_eq!(choose(&raw, &[0, 0, 0], &[], frequency.clone()), 0, "the prompt does not count");
        assert_eq!(choose(&raw, &[1], &[0], frequency.clone()), 0);
        assert_eq!(choose(&raw, &[1], &[0, 0], frequency), 1);
        let presence = Sampling { presence_penalty: 0.9, ..Sampling::greedy() };
        assert_eq!(choose(&raw, &[1], &[0, 0, 0], presence), 0);
    }

    #[test]
    fn repetition_is_the_same_with_and_without_the_host_penalties() {
        let raw: Vec<f32> = (0..50).map(|id| ((id * 37 % 50) as f32 - 25.0) * 0.11).collect();
        for seed in 0..200 {
            let plain = Sampling { temperature: 0.9, repetition_penalty: 1.7, seed, ..Sampling::greedy() };
            // So small that no logit changes, but it takes the other path.
            let host = Sampling { presence_penalty: f32::MIN_POSITIVE, ..plain.clone() };
            let prompt = [3, 49, 7, 3];
            assert_eq!(choose(&raw, &prompt, &[11, 12], plain), choose(&raw, &prompt, &[11, 12], host));
        }
    }

    #[test]
    fn logprobs_are_raw_sorted_and_complete() {
        let raw = [0.0, 3.0, 3.0, 1.0];
        let mut sampler = Sampler::default();
        let report = sampler.logprobs(&raw, 3, 2);
        let ids: Vec<u32> = report.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [1, 2]);
        let sum = 1.0_f64 + 2.0 * 3.0_f64.exp() + 1.0_f64.exp();
        // One rounding to f32.
        assert!((f64::from(report.chosen) - (1.0 - sum.ln())).abs() < 1e-6);
        let all = sampler.logprobs(&raw, 0, 10).top;
        assert_eq!(all.len(), 4);
        let total: f64 = all.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert!(sampler.logprobs(&raw, 0, 0).top.is_empty());
    }
}
