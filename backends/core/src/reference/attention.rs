//! The paged cache and causal attention over it.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::linear::dot;
use crate::kv::{KvElement, KvLayer, KvLayout};
use crate::op::Op;
use crate::step::{NO_SLOT, StepInputs};

/// Every pool of keys and values.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) layout: KvLayout,
    /// `[group][layer]`: keys and values.
    pools: Vec<Vec<[Pool; 2]>>,
}

/// `[num_blocks * block_size, num_kv_heads * head_dim]`.
#[derive(Clone, Debug)]
enum Pool {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Pool {
    fn write(&mut self, at: usize, values: &[f32]) {
        match self {
            // `half` rounds to nearest even.
            Self::F16(pool) => pool[at..at + values.len()].convert_from_f32_slice(values),
            Self::F32(pool) => pool[at..at + values.len()].copy_from_slice(values),
        }
    }

    fn read(&self, at: usize, out: &mut [f64]) {
        match self {
            Self::F16(pool) => {
                for (out, value) in out.iter_mut().zip(&pool[at..]) {
                    *out = value.to_f64();
                }
            }
            Self::F32(pool) => {
                for (out, &value) in out.iter_mut().zip(&pool[at..]) {
                    *out = f64::from(value);
                }
            }
        }
    }
}

impl Cache {
    pub(super) fn create(layout: &KvLayout) -> Self {
        let pools = layout.groups.iter().map(|group| {
            let elements = group.num_blocks * layout.block_size * group.num_kv_heads * group.head_dim;
            let pool = match layout.element {
                KvElement::F16 => Pool::F16(vec![f16::ZERO; elements]),
                KvElement::F32 => Pool::F32(vec![0.0; elements]),
            };
            vec![[pool.clone(), pool]; group.layers]
        });
        Self { layout: layout.clone(), pools: pools.collect() }
    }

    pub(super) fn poison(&mut self) {
        for pool in self.pools.iter_mut().flatten().flatten() {
            match pool {
                Pool::F16(pool) => pool.fill(f16::from_f32(60_000.0)),
                Pool::F32(pool) => pool.fill(60_000.0),
            }
        }
    }

    /// `Op::KvWrite`.
    pub(super) fn kv_write(&mut self, layer: KvLayer, slots: &[u32], k: &[f32], v: &[f32]) {
        let group = &self.layout.groups[layer.group];
        let width = group.num_kv_heads * group.head_dim;
        let [keys, values] = &mut self.pools[layer.group][layer.index];
        for ((&slot, k), v) in slots.iter().zip(k.chunks_exact(width)).zip(v.chunks_exact(width)) {
            if slot != NO_SLOT {
                keys.write(slot as usize * width, k);
                values.write(slot as usize * width, v);
            }
        }
    }

    /// `Op::Attention`: per token and kv head, the scores of all its query heads, their softmax, the weighted values.
    pub(super) fn attention(
        &self,
        op: &Op,
        q: &[f32],
        sinks: Option<&[f32]>,
        inputs: &StepInputs<'_>,
    ) -> Vec<f32> {
        let Op::Attention { layer, heads, num_kv_heads, head_dim, scale, window, .. } = *op else {
            return vec![];
        };
        let [keys, values] = &self.pools[layer.group][layer.index];
        let ratio = heads / num_kv_heads;
        let mut y = vec![0.0; q.len()];
        let mut row = vec![0.0; head_dim];
        let tokens = q.chunks_exact(heads * head_dim).zip(y.chunks_exact_mut(heads * head_dim)).enumerate();
        for (token, (q, y)) in tokens {
            let places = self.visible(layer, window, token, inputs);
            for kv_head in 0..num_kv_heads {
                let at = |place: usize| (place * num_kv_heads + kv_head) * head_dim;
                let mine = kv_head * ratio..(kv_head + 1) * ratio;
                let queries: Vec<f64> =
                    q[mine.start * head_dim..mine.end * head_dim].iter().map(|&q| q.into()).collect();
                let mut scores = vec![vec![]; ratio];
                for &place in &places {
                    keys.read(at(place), &mut row);
                    for (scores, q) in scores.iter_mut().zip(queries.chunks_exact(head_dim)) {
                        scores.push(dot(q, &row) * f64::from(scale));
                    }
                }
                for (scores, head) in scores.iter_mut().zip(mine.clone()) {
                    softmax(scores, sinks.map(|sinks| f64::from(sinks[head])));
                }
                let mut sums = vec![0.0; ratio * head_dim];
                for (index, &place) in places.iter().enumerate() {
                    values.read(at(place), &mut row);
                    for (sums, scores) in sums.chunks_exact_mut(head_dim).zip(&scores) {
                        for (sum, value) in sums.iter_mut().zip(&row) {
                            *sum += scores[index] * value;
                        }
                    }
                }
                for (y, sum) in y[mine.start * head_dim..].iter_mut().zip(sums) {
                    *y = sum as f32;
                }
            }
        }
        y
    }

    /// Pool rows of the positions a token sees, oldest first.
    fn visible(
        &self,
        layer: KvLayer,
        window: Option<usize>,
        token: usize,
        inputs: &StepInputs<'_>,
    ) -> Vec<usize> {
        let (block_size, group) = (self.layout.block_size, &self.layout.groups[layer.group]);
        let position = inputs.positions[token] as usize;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let table = inputs.block_tables[layer.group];
        let start = inputs.sequences[token] as usize * group.max_blocks_per_sequence;
        let place = |p: usize| table[start + p / block_size] as usize * block_size + p % block_size;
        (first..=position).map(place).collect()
    }
}

/// In place; a sink takes its share of the probability and is dropped.
fn softmax(scores: &mut [f64], sink: Option<f64>) {
    let max = scores.iter().copied().fold(sink.unwrap_or(f64::NEG_INFINITY), f64::max);
    let mut sum = sink.map_or(0.0, |sink| (sink - max).exp());
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}
