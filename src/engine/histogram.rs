//! Distributions in fixed buckets: the step loop adds, anybody reads, nobody waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A distribution at one moment, in the shape Prometheus exposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Upper bounds of the buckets, inclusive, ascending; a last bucket without bound follows.
    pub bounds: &'static [f64],
    /// Observations in each bucket, not accumulated: `bounds.len() + 1` of them.
    pub counts: Vec<u64>,
    /// Sum of all observed values.
    pub sum: f64,
}

impl Histogram {
    /// Observations in all buckets.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// [`Histogram`] in atomics.
#[derive(Debug)]
pub(super) struct AtomicHistogram {
    bounds: &'static [f64],
    counts: Box<[AtomicU64]>,
    /// Bits of an f64. One thread adds, so an addition is never lost.
    sum: AtomicU64,
}

impl AtomicHistogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0.0_f64.to_bits()),
        }
    }

    pub(super) fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed)) + value;
        self.sum.store(sum.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    pub(super) fn snapshot(&self) -> Histogram {
        Histogram {
            bounds: self.bounds,
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: f64::from_bits(self.sum.load(Ordering::Relaxed)),
        }
    }
}

/// Bounds of waiting times in seconds: from a warm small model to a long queue.
const WAITS_S: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0,
];
/// Bounds of single steps and gaps between tokens in seconds.
const STEPS_S: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
];
/// Bounds of sequences in a step.
const SEQUENCES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Names each distribution once for the atomics and their snapshot.
macro_rules! histograms {
    ($($(#[$doc:meta])* $field:ident: $bounds:ident),* $(,)?) => {
        /// Distributions since the start. Times are in seconds.
        #[derive(Clone, Debug, PartialEq)]
        pub struct EngineHistograms {
            $($(#[$doc])* pub $field: Histogram,)*
        }

        /// [`EngineHistograms`] in atomics.
        #[derive(Debug)]
        pub(super) struct Histograms {
            $(pub(super) $field: AtomicHistogram,)*
        }

        impl Default for Histograms {
            fn default() -> Self {
                Self { $($field: AtomicHistogram::new($bounds),)* }
            }
        }

        impl Histograms {
            /// The distributions of this moment.
            pub(super) fn snapshot(&self) -> EngineHistograms {
                EngineHistograms { $($field: self.$field.snapshot(),)* }
            }
        }
    };
}

histograms! {
    /// Submission to first token, of every sequence that got one.
    time_to_first_token: WAITS_S,
    /// Between two tokens of a sequence, preemptions included.
    inter_token_latency: STEPS_S,
    /// Submission to first admission, of every sequence admitted.
    queue_time: WAITS_S,
    /// First admission to first token, of every sequence that got one.
    prefill_time: WAITS_S,
    /// First token to end, of every sequence that ended well.
    decode_time: WAITS_S,
    /// Time per token after the first, of every sequence of several that ended well.
    time_per_output_token: STEPS_S,
    /// Submission to end, of every sequence that ended well.
    request_time: WAITS_S,
    /// Handing a step to the device to having its outputs.
    step_duration: STEPS_S,
    /// Sequences in a step.
    batch_size: SEQUENCES,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_first_bucket_that_holds_them() {
        let histogram = AtomicHistogram::new(SEQUENCES);
        for value in [1.0, 2.0, 3.0, 4.0, 256.0, 257.0, 1e9] {
            histogram.observe(value);
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.counts, [1, 1, 2, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((snapshot.count(), snapshot.sum), (7, 1e9 + 523.0));
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [WAITS_S, STEPS_S, SEQUENCES] {
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
