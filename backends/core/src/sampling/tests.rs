//! The sampler against naive f64 formulas, away from ties, and its statistics under fixed seeds.

use super::*;
use crate::rng::Rng;

const SAMPLED: SampleRow = SampleRow { temperature: 1.0, ..SampleRow::GREEDY };

fn random_logits(rng: &mut Rng, vocab: usize, spread: f32) -> Vec<f32> {
    (0..vocab).map(|_| rng.normal() * spread).collect()
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> =
        logits.iter().map(|&l| ((f64::from(l) - f64::from(max)) / temperature).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

/// Every id that 4000 draws give.
fn drawn(logits: &[f32], row: &SampleRow) -> Vec<usize> {
    let mut scratch = SampleScratch::default();
    let mut counts = vec![0; logits.len()];
    for draw in 0..4000 {
        counts[sample_row(logits, &SampleRow { draw, ..*row }, &[], &mut scratch) as usize] += 1;
    }
    counts
}

#[test]
fn weights_follow_the_exponential() {
    assert_eq!(exp_weight(0.0), ONE);
    assert_eq!(exp_weight(32.0), 0);
    assert_eq!(exp_weight(f32::INFINITY), 0);
    assert_eq!(exp_weight(f32::NAN), 0);
    let mut last = ONE;
    for i in 0..320_000 {
        let y = i as f32 / 10_000.0;
        let weight = exp_weight(y);
        let exact = f64::from(ONE) * (-f64::from(y)).exp2();
        // 26 fraction bits cut at most 2^-26 of y: a relative 1.1e-8, 23 units; the polynomial adds two.
        assert!((f64::from(weight) - exact).abs() <= 1.1e-8 * exact + 3.0, "{y}: {weight} is not {exact}");
        assert!(weight <= last, "falls monotonically at {y}");
        last = weight;
    }
}

#[test]
fn keys_order_as_floats_do() {
    let floats = [f32::NEG_INFINITY, -3.0, -1e-40, 0.0, 1e-40, 2.0, f32::MAX];
    assert!(floats.windows(2).all(|pair| ordered_key(pair[0]) < ordered_key(pair[1])));
    assert_eq!(ordered_key(-0.0), ordered_key(0.0));
}

#[test]
fn greedy_takes_the_lowest_id_among_maxima_after_the_penalty() {
    let mut scratch = SampleScratch::default();
    let logits = [1.0, 3.0, -1.0, 3.0];
    assert_eq!(sample_row(&logits, &SampleRow::GREEDY, &[], &mut scratch), 1);
    let penalised = SampleRow { repetition_penalty: 2.0, ..SampleRow::GREEDY };
    assert_eq!(sample_row(&logits, &penalised, &[1, NO_TOKEN], &mut scratch), 3);
    assert_eq!(sample_row(&logits, &penalised, &[1, 3, 3, 1], &mut scratch), 1, "a repeated id counts once");
    assert_eq!(sample_row(&[-1.0, -1.5], &penalised, &[0], &mut scratch), 1, "negative logits sink too");
}

#[test]
fn unusable_logits_give_no_token() {
    let mut scratch = SampleScratch::default();
    for row in [SampleRow::GREEDY, SAMPLED] {
        for bad in [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(sample_row(&bad, &row, &[], &mut scratch), NO_TOKEN);
        }
        assert_eq!(sample_row(&[f32::NEG_INFINITY, -5.0], &row, &[], &mut scratch), 1);
        assert_eq!(sample_row(&[], &row, &[], &mut scratch), NO_TOKEN);
    }
}

#[test]
fn draws_match_the_softmax() {
    let logits = random_logits(&mut Rng::seeded(5), 40, 1.5);
    for temperature in [0.5, 1.0, 2.0] {
        let row = SampleRow { temperature, seed_low: 99, ..SAMPLED };
        let probabilities = softmax(&logits, f64::from(temperature));
        let counts = drawn(&logits, &row);
        let (mut chi_square, mut degrees) = (0.0, -1.0);
        for (count, probability) in counts.iter().zip(&probabilities) {
            let expected = probability * 4000.0;
            if expected >= 5.0 {
                chi_square += (f64::from(*count as u32) - expected).powi(2) / expected;
                degrees += 1.0;
            }
        }
        // Mean plus four standard deviations of the chi-square distribution; the seed is fixed.
        let bound = degrees + 4.0 * f64::sqrt(2.0 * degrees);
        assert!(chi_square < bound, "temperature {temperature}: {chi_square} over {bound}");
    }
}

/// Ids that survive by the naive definition, or `None` when a rounding could decide.
fn naive_survivors(logits: &[f32], row: &SampleRow) -> Option<Vec<bool>> {
    let p = softmax(logits, f64::from(row.temperature));
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    let close = |a: f64, b: f64| (a - b).abs() < 1e-5;
    let floor = f64::from(row.min_p) * p[order[0]];
    if p.iter().any(|&p| close(p / floor, 1.0)) {
        return None;
    }
    order.retain(|&id| p[id] >= floor);
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    let total: f64 = order.iter().map(|&id| p[id]).sum();
    let mut keep = vec![false; p.len()];
    let mut cumulative = 0.0;
    for id in order {
        keep[id] = true;
        cumulative += p[id] / total;
        if row.top_p < 1.0 && close(cumulative, f64::from(row.top_p)) {
            return None;
        }
        if row.top_p < 1.0 && cumulative >= f64::from(row.top_p) {
            break;
        }
    }
    Some(keep)
}

#[test]
fn survivors_match_the_naive_definition() {
    let mut rng = Rng::seeded(11);
    let mut scratch = SampleScratch::default();
    let mut compared = 0;
    for round in 0..600 {
        let vocab = 1 + rng.below(300);
        let spread = [0.3, 2.0, 6.0][round % 3];
        let logits = random_logits(&mut rng, vocab, spread);
        let row = SampleRow {
            temperature: [0.3, 0.7, 1.0, 1.8][rng.below(4)],
            top_p: [1.0, 0.95, 0.5, 0.01][rng.below(4)],
            min_p: [0.0, 0.05, 0.5, 0.001][rng.below(4)],
            top_k: [0, 1, 5, 40, 1000][rng.below(5)],
            ..SampleRow::GREEDY
        };
        let Some(keep) = naive_survivors(&logits, &row) else { continue };
        compared += 1;
        sample_row(&logits, &row, &[], &mut scratch);
        let p = softmax(&logits, f64::from(row.temperature));
        let max = p.iter().copied().fold(0.0, f64::max);
        for (id, (&weight, keep)) in scratch.weights.iter().zip(keep).enumerate() {
            // Below 2^-30 of the largest, an id may weigh nothing.
            let expected = keep && p[id] > max * 2.0_f64.powi(-30);
            assert!(
                (weight > 0) == expected || p[id] < max * 2.0_f64.powi(-30),
                "{row:?} id {id} of {vocab}"
            );
        }
    }
    assert!(compared > 500, "{compared} rounds were decided");
}

#[test]
fn ties_break_to_the_lower_id() {
    let logits = [1.0, 2.0, 1.0, 1.0, 2.0];
    let survivors = |row: SampleRow| {
        let mut scratch = SampleScratch::default();
        sample_row(&logits, &row, &[], &mut scratch);
        scratch.weights.iter().map(|&weight| weight > 0).collect::<Vec<_>>()
    };
    assert_eq!(survivors(SampleRow { top_k: 3, ..SAMPLED }), [true, true, false, false, true]);
    assert_eq!(survivors(SampleRow { top_k: 1, ..SAMPLED }), [false, true, false, false, false]);
    assert_eq!(survivors(SampleRow { top_p: 0.1, ..SAMPLED }), [false, true, false, false, false]);
    assert_eq!(survivors(SampleRow { top_p: 0.7, ..SAMPLED }), [true, true, false, false, true]);
    assert_eq!(survivors(SampleRow { min_p: 1.0, ..SAMPLED }), [false, true, false, false, true]);
}

#[test]
fn boundaries_are_strict_in_the_draw_and_inclusive_in_top_p() {
    assert_eq!(draw(0, &[0, 5]), 1, "an id without weight is never drawn");
    assert_eq!(draw(u64::MAX, &[5, 3, 0]), 1);
    assert_eq!(draw((1 << 63) - 1, &[2, 2]), 0);
    assert_eq!(draw(1 << 63, &[2, 2]), 1);
    assert_eq!(draw(0, &[0, 0]), NO_TOKEN);
    let kept = |top_p: u64| {
        let mut weights = [1, 2, 1];
        keep_top_p(top_p, &mut weights, &mut vec![]);
        weights
    };
    assert_eq!(kept(1 << 31), [0, 2, 0], "half of the total is reached by the first");
    assert_eq!(kept((1 << 31) + 1), [1, 2, 0]);
    assert_eq!(kept((3 << 30) + 1), [1, 2, 1]);
    assert_eq!(kept(1), [0, 2, 0]);
}

#[test]
fn extreme_parameters_stay_in_range() {
    let mut scratch = SampleScratch::default();
    let logits = [f32::MAX, f32::MIN, 0.0, f32::NEG_INFINITY];
    for temperature in [1e-40, 1e-6, 1.0, f32::MAX] {
        for draw in 0..50 {
            let row = SampleRow { temperature, draw, ..SAMPLED };
            assert!(sample_row(&logits, &row, &[], &mut scratch) < 3);
        }
    }
}

#[test]
fn the_draw_depends_on_seed_and_position_only() {
    let logits = random_logits(&mut Rng::seeded(2), 1000, 1.0);
    let row = SampleRow { seed_low: 1, seed_high: 2, draw: 3, top_p: 0.9, ..SAMPLED };
    let mut scratch = SampleScratch::default();
    let first = sample_row(&logits, &row, &[], &mut scratch);
    sample_row(&logits[..10], &SAMPLED, &[], &mut scratch);
    assert_eq!(sample_row(&logits, &row, &[], &mut scratch), first);
    let differs = |row| sample_row(&logits, &row, &[], &mut SampleScratch::default()) != first;
    assert!(differs(SampleRow { draw: 4, ..row }));
    assert!(differs(SampleRow { seed_low: 2, ..row }));
    assert!(differs(SampleRow { seed_high: 1, ..row }));
}

#[test]
#[allow(clippy::float_cmp, reason = "infinities are exact")]
fn logprobs_sum_to_one() {
    let logits = [0.5, -2.0, 3.0, f32::NEG_INFINITY];
    let sum: f64 = (0..4).map(|id| logprob(&logits, id).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-12);
    assert!((logprob(&[0.0, 0.0], 1) - 0.5_f64.ln()).abs() < 1e-15);
    assert_eq!(logprob(&logits, 3), f64::NEG_INFINITY);
    assert_eq!(logprob(&logits, 4), f64::NEG_INFINITY);
}
