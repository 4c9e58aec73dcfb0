//! How a token is drawn from logits: the arithmetic every sampler shares, so that a device picks the same token as the
//! host, whatever the order of its sums.
//!
//! Per row, in this order:
//! 1. repetition penalty on the listed ids: `l > 0 ? l * (1/r) : l * r`;
//! 2. a NaN or +inf, or nothing above -inf: [`NO_TOKEN`]; temperature 0: the lowest id among the largest logits;
//! 3. temperature: `y = (max - l) * (log2(e) / temperature)`, one subtraction and one product, both f32;
//! 4. an integer weight `w = floor(2^31 * 2^-y)`, see [`exp_weight`]; the largest logit weighs exactly 2^31;
//! 5. min-p keeps `w >= ceil(min_p * 2^31)`, and never `w = 0`;
//! 6. top-k keeps the k largest logits, ties to the lower id ([`ordered_key`]);
//! 7. top-p sorts the survivors by weight, ties to the lower id, and keeps the shortest prefix whose sum reaches
//!    `ceil(total * ceil(top_p * 2^32) / 2^32)`, at least one;
//! 8. the draw: `r = (random * total) >> 64` of the survivors' total, then the first survivor in ascending id order
//!    whose cumulative weight exceeds `r`.
//!
//! From step 4 on everything is an integer, so sums do not depend on their order. The only float operations on a
//! device are one comparison, one subtraction and two products per logit: all correctly rounded everywhere, unlike
//! division, `exp` or a multiply-add. [`PreparedRow`] holds what the host computes once per row.

mod philox;

pub use philox::philox4x32;

use bytemuck::{Pod, Zeroable};

use crate::step::{NO_TOKEN, SampleRow};

/// Weight of the largest logit.
pub const ONE: u32 = 1 << 31;

/// Purpose tag in the Philox counter of token draws.
const PURPOSE_SAMPLE: u32 = 0;

/// One row's parameters in the form the arithmetic uses them: no division, transcendental or generator is left.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct PreparedRow {
    /// `log2(e) / temperature`; 0 = greedy.
    pub scale: f32,
    /// Factor of penalised logits that are not positive.
    pub penalty: f32,
    /// Factor of penalised positive logits.
    pub inverse_penalty: f32,
    /// Smallest weight that survives, at least 1.
    pub min_weight: u32,
    /// Number of largest logits that survive; `u32::MAX` = all.
    pub top_k: u32,
    /// `ceil(top_p * 2^32)`, low word.
    pub top_p_low: u32,
    /// High word: 1 = top-p is off, then the low word is 0.
    pub top_p_high: u32,
    /// The row's 64 random bits, low word (second word of the Philox block).
    pub random_low: u32,
    /// High word (first word of the Philox block).
    pub random_high: u32,
    /// Fills the row to 48 bytes.
    pub padding: [u32; 3],
}

impl From<&SampleRow> for PreparedRow {
    fn from(row: &SampleRow) -> Self {
        let scale = if row.temperature > 0.0 {
            let scale = (std::f64::consts::LOG2_E / f64::from(row.temperature)) as f32;
            scale.clamp(f32::MIN_POSITIVE, f32::MAX)
        } else {
            0.0
        };
        // Saturating casts: out-of-range parameters act like the nearest sensible ones.
        let min_weight = ((f64::from(row.min_p) * f64::from(ONE)).ceil() as u32).clamp(1, ONE);
        let top_p = ((f64::from(row.top_p) * 4_294_967_296.0).ceil() as u64).clamp(1, 1 << 32);
        let [random_high, random_low, ..] =
            philox4x32([row.draw, 0, 0, PURPOSE_SAMPLE], [row.seed_low, row.seed_high]);
        Self {
            scale,
            penalty: row.repetition_penalty,
            inverse_penalty: 1.0 / row.repetition_penalty,
            min_weight,
            top_k: if row.top_k == 0 { u32::MAX } else { row.top_k },
            top_p_low: top_p as u32,
            top_p_high: (top_p >> 32) as u32,
            random_low,
            random_high,
            padding: [0; 3],
        }
    }
}

impl PreparedRow {
    fn top_p(&self) -> u64 {
        u64::from(self.top_p_high) << 32 | u64::from(self.top_p_low)
    }

    fn random(&self) -> u64 {
        u64::from(self.random_high) << 32 | u64::from(self.random_low)
    }
}

/// `floor(2^31 * 2^-y)` up to two units, in integers; 0 from `y = 32` on and for NaN, exactly 2^31 at 0.
///
/// `y` is cut to 5.26 bits fixed point. `2^-f` of the fraction is a degree-7 polynomial with `p(0) = 1`,
/// `p(1) = 1/2`, evaluated with the high halves of 32-bit products.
pub fn exp_weight(y: f32) -> u32 {
    /// Coefficients of `f`, `-f^2`, `f^3`, … in units of 2^-32, alternating signs taken out.
    const COEFFICIENTS: [u32; 7] =
        [2_977_044_470, 1_031_764_842, 238_386_455, 41_300_355, 5_704_530, 633_126, 46_516];
    if y.is_nan() || y >= 32.0 {
        return 0;
    }
    let fixed = (y * 67_108_864.0) as u32;
    let fraction = fixed << 6;
    let mut tail = 0;
    for coefficient in COEFFICIENTS.into_iter().rev() {
        tail = coefficient - multiply_high(tail, fraction);
    }
    (ONE - (multiply_high(tail, fraction) >> 1)) >> (fixed >> 26)
}

fn multiply_high(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// A key that orders as the logits do, as an unsigned integer; both zeros are equal.
pub fn ordered_key(logit: f32) -> u32 {
    let bits = if logit == 0.0 { 0 } else { logit.to_bits() };
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

/// Buffers [`sample_row`] reuses; they grow to the vocabulary once.
#[derive(Clone, Debug, Default)]
pub struct SampleScratch {
    logits: Vec<f32>,
    weights: Vec<u32>,
    keys: Vec<u64>,
}

/// Draws one token of `logits` (`[vocab]`); `penalty_ids` are the ids the repetition penalty acts on, ids outside the
/// vocabulary (such as padding) are ignored. Returns [`NO_TOKEN`] when the logits are unusable.
pub fn sample_row(logits: &[f32], row: &SampleRow, penalty_ids: &[u32], scratch: &mut SampleScratch) -> u32 {
    let row = PreparedRow::from(row);
    let penalised = &mut scratch.logits;
    penalised.clear();
    penalised.extend_from_slice(logits);
    for &id in penalty_ids {
        // From the raw logit: a repeated id is penalised once.
        if let (Some(&raw), Some(logit)) = (logits.get(id as usize), penalised.get_mut(id as usize)) {
            *logit = raw * if raw > 0.0 { row.inverse_penalty } else { row.penalty };
        }
    }
    let Some((best, max)) = arg_max(penalised) else { return NO_TOKEN };
    if row.scale == 0.0 {
        return best;
    }
    let weights = &mut scratch.weights;
    weights.clear();
    weights.extend(penalised.iter().map(|&logit| {
        let weight = exp_weight((max - logit) * row.scale);
        if weight < row.min_weight { 0 } else { weight }
    }));
    keep_top_k(row.top_k as usize, penalised, weights, &mut scratch.keys);
    keep_top_p(row.top_p(), weights, &mut scratch.keys);
    draw(row.random(), weights)
}

/// The lowest id among the largest logits, and that logit; `None` when one is NaN or +inf or all are -inf.
#[allow(clippy::float_cmp, reason = "the maximum is one of the logits")]
fn arg_max(logits: &[f32]) -> Option<(u32, f32)> {
    let usable = logits.iter().all(|&logit| logit < f32::INFINITY);
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| if logit > max { logit } else { max });
    if !usable || max == f32::NEG_INFINITY {
        return None;
    }
    let best = logits.iter().position(|&logit| logit == max)?;
    Some((best as u32, max))
}

/// Larger is earlier; among equals the lower id.
fn ranked(rank: u32, id: usize) -> u64 {
    u64::from(rank) << 32 | u64::from(!(id as u32))
}

fn keep_top_k(top_k: usize, logits: &[f32], weights: &mut [u32], keys: &mut Vec<u64>) {
    if top_k >= logits.len() {
        return;
    }
    keys.clear();
    keys.extend(logits.iter().enumerate().map(|(id, &logit)| ranked(ordered_key(logit), id)));
    let (_, &mut last, _) = keys.select_nth_unstable_by(top_k - 1, |a, b| b.cmp(a));
    for (id, (weight, &logit)) in weights.iter_mut().zip(logits).enumerate() {
        if ranked(ordered_key(logit), id) < last {
            *weight = 0;
        }
    }
}

fn keep_top_p(top_p: u64, weights: &mut [u32], keys: &mut Vec<u64>) {
    if top_p >> 32 != 0 {
        return;
    }
    let needed = (u128::from(top_p) * u128::from(total(weights))).div_ceil(1 << 32) as u64;
    keys.clear();
    keys.extend(
        weights.iter().enumerate().filter(|(_, weight)| **weight > 0).map(|(id, &weight)| ranked(weight, id)),
    );
    // Halve the candidates around the place where the descending sum reaches `needed`.
    let (mut candidates, mut reached) = (keys.as_mut_slice(), 0);
    while candidates.len() > 1 {
        let middle = candidates.len() / 2;
        candidates.select_nth_unstable_by(middle, |a, b| b.cmp(a));
        let (larger, smaller) = candidates.split_at_mut(middle);
        let sum: u64 = larger.iter().map(|key| key >> 32).sum();
        if reached + sum >= needed {
            candidates = larger;
        } else {
            reached += sum;
            candidates = smaller;
        }
    }
    let last = candidates.first().copied().unwrap_or(0);
    for (id, weight) in weights.iter_mut().enumerate() {
        if ranked(*weight, id) < last {
            *weight = 0;
        }
    }
}

fn total(weights: &[u32]) -> u64 {
    weights.iter().map(|&weight| u64::from(weight)).sum()
}

fn draw(random: u64, weights: &[u32]) -> u32 {
    let target = ((u128::from(random) * u128::from(total(weights))) >> 64) as u64;
    let mut cumulative = 0;
    for (id, &weight) in weights.iter().enumerate() {
        cumulative += u64::from(weight);
        if cumulative > target {
            return id as u32;
        }
    }
    NO_TOKEN
}

/// `log(sum(exp(logits)))` in f64, for reported log-probabilities: `logprob(id) = logits[id] - log_sum_exp(logits)`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return f64::from(max);
    }
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    f64::from(max) + sum.ln()
}

/// Natural logarithm of the softmax probability of `id` in raw `logits`; -inf for an id outside them.
pub fn logprob(logits: &[f32], id: u32) -> f64 {
    logits.get(id as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit) - log_sum_exp(logits))
}

#[cfg(test)]
mod tests;
