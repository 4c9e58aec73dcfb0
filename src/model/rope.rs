//! Rotary tables: cosines and sines of every served position, built once in f64.
//!
//! A table rather than device arithmetic, because at position 131,071 the angle itself is only good to 5e-3 in f32,
//! and because every backend then rotates by the same numbers.

use std::f64::consts::PI;

use super::config::{Parity, RopeConfig, RopeScaling};

/// Frequencies after scaling, and the factor that multiplies cosines and sines.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frequencies {
    /// Radians per position, one per rotated pair.
    pub per_pair: Vec<f64>,
    /// 1 unless YaRN or long-rope says otherwise.
    pub attention_factor: f64,
}

/// Computes the frequencies. `divisors` (llama's `rope_freqs`, phi3's chosen long or short factors) divide them.
pub(super) fn frequencies(config: &RopeConfig, divisors: Option<&[f32]>, parity: Parity) -> Frequencies {
    let pairs = config.rotary_dim / 2;
    let inverse = |pair: usize| config.theta.powf(-2.0 * pair as f64 / config.rotary_dim as f64);
    let divisor =
        |pair: usize| divisors.and_then(|divisors| divisors.get(pair)).map_or(1.0, |d| f64::from(*d));
    let base: Vec<f64> = (0..pairs).map(|pair| inverse(pair) / divisor(pair)).collect();
    match config.scaling {
        RopeScaling::None => Frequencies { per_pair: base, attention_factor: 1.0 },
        RopeScaling::Linear { factor } => {
            Frequencies { per_pair: base.into_iter().map(|f| f / factor).collect(), attention_factor: 1.0 }
        }
        RopeScaling::LongRope { attention_factor, .. } => Frequencies { per_pair: base, attention_factor },
        RopeScaling::Yarn { factor, original_context, beta_slow, beta_fast, attention_factor } => {
            let ramp = Ramp::new(config, original_context, (beta_fast, beta_slow), parity);
            let scale = |(pair, f): (usize, f64)| {
                let divided = ramp.at(pair);
                f * (1.0 - divided) + f / factor * divided
            };
            Frequencies {
                per_pair: base.into_iter().enumerate().map(scale).collect(),
                attention_factor: attention_factor * (0.1 * factor.ln() + 1.0),
            }
        }
    }
}

/// YaRN's ramp over pairs: 0 = frequency kept, 1 = divided.
struct Ramp {
    low: f64,
    high: f64,
}

impl Ramp {
    fn new(config: &RopeConfig, original_context: f64, (fast, slow): (f64, f64), parity: Parity) -> Self {
        let dim = config.rotary_dim as f64;
        let pair_of = |rotations: f64| {
            dim * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * config.theta.ln())
        };
        let (mut low, mut high) = (pair_of(fast), pair_of(slow));
        if parity.yarn_truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // Equal ends would divide by zero; the reference nudges the upper one.
        Self { low, high: if high > low { high } else { low + 0.001 } }
    }

    fn at(&self, pair: usize) -> f64 {
        ((pair as f64 - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }
}

/// `[positions, rotary_dim]`: per position `rotary_dim / 2` cosines, then as many sines.
pub(super) fn table(frequencies: &Frequencies, positions: usize) -> Vec<f32> {
    let factor = frequencies.attention_factor;
    let mut table = Vec::with_capacity(positions * frequencies.per_pair.len() * 2);
    for position in 0..positions {
        let angle = |f: &f64| position as f64 * f;
        table.extend(frequencies.per_pair.iter().map(|f| (angle(f).cos() * factor) as f32));
        table.extend(frequencies.per_pair.iter().map(|f| (angle(f).sin() * factor) as f32));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_orcd_core::RopeStyle;

    fn gpt_oss() -> RopeConfig {
        RopeConfig {
            rotary_dim: 64,
            theta: 150_000.0,
            style: RopeStyle::HalfSplit,
            scaling: RopeScaling::Yarn {
                factor: 32.0,
                original_context: 4096.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: 1.0,
            },
        }
    }

    #[test]
    fn yarn_frequencies_match_the_published_reference() {
        // Values of the gpt-oss reference implementation, printed to nine digits.
        let expected = [
            (0, 1.0),
            (8, 0.050_813_274_8),
            (9, 0.031_705_696_2),
            (13, 0.003_860_359_32),
            (17, 0.000_129_318_701),
            (18, 3.830_881_24e-5),
            (31, 3.023_511_43e-7),
        ];
        let frequencies = frequencies(&gpt_oss(), None, Parity::default());
        assert!((frequencies.attention_factor - 1.346_573_590_279_972_7).abs() < 1e-15);
        for (pair, value) in expected {
            let relative = (frequencies.per_pair[pair] / value - 1.0).abs();
            assert!(relative < 2e-9, "pair {pair}: {} is not {value}", frequencies.per_pair[pair]);
        }
    }

    #[test]
    fn yarn_truncation_widens_the_ramp_as_llama_cpp_does() {
        let reference = frequencies(&gpt_oss(), None, Parity::default());
        let parity = Parity { yarn_truncate: true, ..Parity::default() };
        let truncated = frequencies(&gpt_oss(), None, parity);
        let ratio = truncated.per_pair[17] / reference.per_pair[17];
        assert!((ratio - 1.763).abs() < 1e-3, "{ratio}");
        assert!((truncated.per_pair[8] - reference.per_pair[8]).abs() < 1e-12);
    }

    #[test]
    fn divisors_divide_each_pair() {
        let config = RopeConfig {
            rotary_dim: 4,
            theta: 10_000.0,
            style: RopeStyle::Interleaved,
            scaling: RopeScaling::None,
        };
        let frequencies = frequencies(&config, Some(&[1.0, 8.0]), Parity::default());
        assert!((frequencies.per_pair[1] - 0.01 / 8.0).abs() < 1e-15);
        let table = table(&frequencies, 3);
        assert_eq!(table.len(), 12);
        assert!((f64::from(table[8]) - 2.0_f64.cos()).abs() < 1e-7);
        assert!((f64::from(table[10]) - 2.0_f64.sin()).abs() < 1e-7);
    }
}
