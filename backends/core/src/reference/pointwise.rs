//! Norms, activations, rotation, routing: everything without a matrix or a cache.

use super::linear::Weight;
use crate::op::{RopeStyle, SwiGluKind};
use crate::sampling::ordered_key;

/// `Op::RmsNorm`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let row = |row: &[f32]| {
        let mean_square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
        let factor = 1.0 / (mean_square + f64::from(eps)).sqrt();
        zip(row, weight, move |x, w| x * w * factor)
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

/// `Op::LayerNorm`.
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let row = |row: &[f32]| {
        let count = row.len() as f64;
        let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let factor = 1.0 / (variance + f64::from(eps)).sqrt();
        let scaled = row.iter().zip(weight).map(|(&x, &w)| (f64::from(x) - mean) * factor * f64::from(w));
        scaled.zip(bias).map(|(x, &b)| (x + f64::from(b)) as f32).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

/// `Op::Add`.
pub(super) fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    zip(a, b, |a, b| a + b)
}

/// `Op::Rope`.
pub(super) fn rope(
    x: &[f32],
    table: &Weight,
    positions: &[u32],
    head_dim: usize,
    style: RopeStyle,
) -> Vec<f32> {
    let rotated = table.spec.cols;
    let half = rotated / 2;
    let mut y = x.to_vec();
    if positions.is_empty() {
        return y;
    }
    let width = x.len() / positions.len();
    for (row, &position) in y.chunks_exact_mut(width).zip(positions) {
        let (cos, sin) = table.vector[position as usize * rotated..][..rotated].split_at(half);
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (first, second) = match style {
                    RopeStyle::HalfSplit => (i, i + half),
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                };
                let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                head[first] = (a * cos - b * sin) as f32;
                head[second] = (b * cos + a * sin) as f32;
            }
        }
    }
    y
}

/// `Op::SwiGlu`.
pub(super) fn swiglu(gate: &[f32], up: &[f32], kind: SwiGluKind) -> Vec<f32> {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        SwiGluKind::Silu => zip(gate, up, |g, u| g * sigmoid(g) * u),
        SwiGluKind::Clamped { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            zip(gate, up, |g, u| {
                // Comparisons, not min and clamp: a NaN must stay one.
                let g = if g > limit { limit } else { g };
                let u = if u > limit { limit } else { u };
                let u = if u < -limit { -limit } else { u };
                (u + 1.0) * g * sigmoid(alpha * g)
            })
        }
    }
}

/// `Op::Gelu`.
pub(super) fn gelu(x: &[f32]) -> Vec<f32> {
    let slope = (2.0 / std::f64::consts::PI).sqrt();
    let gelu = |x: f64| 0.5 * x * (1.0 + (slope * (x + 0.044_715 * x * x * x)).tanh());
    x.iter().map(|&x| gelu(f64::from(x)) as f32).collect()
}

/// `Op::Router`: (expert ids, weights).
pub(super) fn router(logits: &[f32], experts: usize, top_k: usize) -> (Vec<u32>, Vec<f32>) {
    let (mut ids, mut weights) = (vec![], vec![]);
    for row in logits.chunks_exact(experts) {
        let mut order: Vec<usize> = (0..experts).collect();
        // Stable: among equal logits the lowest index stays first.
        order.sort_by_key(|&expert| std::cmp::Reverse(ordered_key(row[expert])));
        order.truncate(top_k);
        let max = f64::from(row[order[0]]);
        let exp: Vec<f64> = order.iter().map(|&expert| (f64::from(row[expert]) - max).exp()).collect();
        let sum: f64 = exp.iter().sum();
        ids.extend(order.iter().map(|&expert| expert as u32));
        weights.extend(exp.iter().map(|exp| (exp / sum) as f32));
    }
    (ids, weights)
}

/// `Op::MoeCombine`.
pub(super) fn moe_combine(x: &[f32], weights: &[f32], width: usize, top_k: usize) -> Vec<f32> {
    let token = |(x, weights): (&[f32], &[f32])| {
        let column = |i: usize| {
            let terms = weights.iter().enumerate().map(|(k, &w)| f64::from(w) * f64::from(x[k * width + i]));
            terms.sum::<f64>() as f32
        };
        (0..width).map(column).collect::<Vec<_>>()
    };
    x.chunks_exact(top_k * width).zip(weights.chunks_exact(top_k)).flat_map(token).collect()
}

/// `Op::GatherRows`.
pub(super) fn gather_rows(x: &[f32], width: usize, rows: &[u32]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &x[row as usize * width..][..width]).copied().collect()
}

/// Applies an f64 function to pairs.
fn zip(a: &[f32], b: &[f32], f: impl Fn(f64, f64) -> f64) -> Vec<f32> {
    a.iter().zip(b).map(|(&a, &b)| f(f64::from(a), f64::from(b)) as f32).collect()
}
