//! The interpreter against formulas written down independently: it is the meaning of every operation, so nothing else
//! judges it.

use super::*;
use crate::dtype::DType;
use crate::kv::{KvElement, KvGroup, KvLayer};
use crate::op::{RopeStyle, SwiGluKind};
use crate::program::ProgramBuilder;
use crate::step::{NO_BLOCK, NO_SLOT, SampleRow, StepShape};

/// Uploads f32 weights and runs one program whose values are all outputs.
#[derive(Default)]
struct Bench {
    backend: ReferenceBackend,
    specs: Vec<WeightSpec>,
}

impl Bench {
    fn weight(&mut self, spec: WeightSpec, values: &[f32]) -> WeightId {
        let bytes = bytemuck::cast_slice(values);
        // Odd chunks: uploads may be cut anywhere.
        let id = self.backend.upload(&spec, &mut bytes.chunks(7)).unwrap();
        self.specs.push(spec);
        id
    }

    fn vector(&mut self, values: &[f32]) -> WeightId {
        self.weight(WeightSpec::vector("vector", 1, values.len()), values)
    }

    fn matrix(&mut self, rows: usize, values: &[f32]) -> WeightId {
        self.weight(WeightSpec::matrix("matrix", DType::F32, rows, values.len() / rows), values)
    }

    /// Runs `record` and returns its outputs as f32; `x` is made available as an embedding of its rows.
    fn run(
        &mut self,
        x: &[&[f32]],
        inputs: Option<&StepInputs<'_>>,
        record: impl FnOnce(&mut ProgramBuilder<'_>, ValueId) -> Vec<ValueId>,
    ) -> Vec<Vec<f32>> {
        let table = self.matrix(x.len(), &x.concat());
        let shape = StepShape { tokens: x.len() + 2, rows: 4, sequences: 3 };
        let mut builder = ProgramBuilder::new("bench", shape, &self.specs);
        let value = builder.embed("x", table).unwrap();
        for output in record(&mut builder, value) {
            builder.output(output);
        }
        let program = builder.finish();
        let plan = self.backend.compile(std::slice::from_ref(&program)).unwrap()[0];
        self.backend.poison().unwrap();
        let tokens: Vec<u32> = (0..x.len() as u32).collect();
        let plain = StepInputs {
            tokens: &tokens,
            positions: &tokens,
            sequences: &vec![0; x.len()],
            slots: &[],
            block_tables: &[],
            out_rows: &[],
            sampling: &[],
            penalty_tokens: &[],
        };
        self.backend.submit(plan, inputs.unwrap_or(&plain)).unwrap();
        let mut outputs = StepOutputs::for_program(&program);
        self.backend.wait(&mut outputs).unwrap();
        let float = |value: &OutputValue| match value {
            OutputValue::F32(values) => values.clone(),
            OutputValue::U32(values) => values.iter().map(|&id| id as f32).collect(),
        };
        outputs.values.iter().map(float).collect()
    }
}

fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        // One rounding to f32 of an f64 result.
        assert!((f64::from(got) - want).abs() <= 1e-7 * want.abs().max(1e-3), "[{i}]: {got} is not {want}");
    }
}

#[test]
fn norms_follow_their_formulas() {
    let mut bench = Bench::default();
    let (w, b) = (bench.vector(&[2.0, 1.0, -1.0, 0.5]), bench.vector(&[0.1, 0.2, 0.3, 0.4]));
    let out = bench.run(&[&[1.0, -2.0, 3.0, 4.0]], None, |builder, x| {
        vec![builder.rms_norm("rms", x, w, 0.5).unwrap(), builder.layer_norm("layer", x, w, b, 0.25).unwrap()]
    });
    // Mean square 30/4 = 7.5, plus eps 0.5 = 8.
    let r = 8.0_f64.sqrt();
    assert_close(&out[0], &[2.0 / r, -2.0 / r, -3.0 / r, 2.0 / r]);
    // Mean 1.5, variance (0.25 + 12.25 + 2.25 + 6.25) / 4 = 5.25, plus eps = 5.5.
    let s = 5.5_f64.sqrt();
    let f = f64::from;
    let want = [
        -0.5 / s * 2.0 + f(0.1_f32),
        -3.5 / s + f(0.2_f32),
        -1.5 / s + f(0.3_f32),
        2.5 / s * 0.5 + f(0.4_f32),
    ];
    assert_close(&out[1], &want);
}

#[test]
fn linear_multiplies_rows_and_adds_the_bias() {
    let mut bench = Bench::default();
    let w = bench.matrix(2, &[1.0, 2.0, 3.0, -1.0, 0.5, 4.0]);
    let bias = bench.vector(&[10.0, -10.0]);
    let out = bench.run(&[&[1.0, 1.0, 1.0], &[2.0, 0.0, -1.0]], None, |builder, x| {
        vec![builder.linear("y", x, w, None).unwrap(), builder.linear("yb", x, w, Some(bias)).unwrap()]
    });
    assert_eq!(out[0], [6.0, 3.5, -1.0, -6.0]);
    assert_eq!(out[1], [16.0, -6.5, 9.0, -16.0]);
}

#[test]
#[allow(clippy::float_cmp, reason = "sums of small integers are exact")]
fn dot_sums_every_element_once() {
    for length in 0..40 {
        let a: Vec<f64> = (0..length).map(f64::from).collect();
        let want: f64 = (0..length).map(|i| f64::from(i * i)).sum();
        assert_eq!(linear::dot(&a, &a), want);
    }
}

#[test]
fn activations_follow_their_formulas() {
    let mut bench = Bench::default();
    let xs = [-8.0_f32, -1.0, 0.0, 0.5, 9.0];
    let clamped = SwiGluKind::Clamped { alpha: 1.702, limit: 7.0 };
    let out = bench.run(&[&xs], None, |builder, x| {
        let sum = builder.add("sum", x, x).unwrap();
        vec![
            builder.gelu("gelu", x).unwrap(),
            builder.swiglu("silu", x, sum, SwiGluKind::Silu).unwrap(),
            builder.swiglu("clamped", x, x, clamped).unwrap(),
        ]
    });
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let each = |f: &dyn Fn(f64) -> f64| xs.iter().map(|&x| f(f64::from(x))).collect::<Vec<_>>();
    // tanh(u) = 2 sigmoid(2u) - 1 turns the tanh form into x * sigmoid(2u).
    assert_close(&out[0], &each(&|x| x * sigmoid(1.595_769_121_605_731 * (x + 0.044_715 * x.powi(3)))));
    assert_close(&out[1], &each(&|x| 2.0 * x * x * sigmoid(x)));
    let alpha = f64::from(1.702_f32);
    assert_close(
        &out[2],
        &each(&|x| {
            let (g, u) = (x.min(7.0), x.clamp(-7.0, 7.0));
            (u + 1.0) * g * sigmoid(alpha * g)
        }),
    );
}

#[test]
fn rope_rotates_both_pairings_and_passes_the_rest() {
    let mut bench = Bench::default();
    // Two positions, four rotated elements: cosines then sines. Position 1 is a quarter turn and a half turn.
    let table = [1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 1.0, 0.0];
    let table = bench.weight(WeightSpec::vector("rope", 2, 4), &table);
    let x: [&[f32]; 2] = [&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]];
    let out = bench.run(&x, None, |builder, x| {
        vec![
            builder.rope("half", x, table, (1, 6), RopeStyle::HalfSplit).unwrap(),
            builder.rope("inter", x, table, (1, 6), RopeStyle::Interleaved).unwrap(),
        ]
    });
    assert_eq!(out[0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -3.0, -2.0, 1.0, -4.0, 5.0, 6.0]);
    assert_eq!(out[1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -2.0, 1.0, -3.0, -4.0, 5.0, 6.0]);
}

#[test]
fn router_orders_ties_by_index_and_renormalises() {
    let mut bench = Bench::default();
    let out = bench.run(&[&[1.0, 3.0, 3.0, -0.0, 0.0], &[0.0, -0.0, 0.0, -1.0, -1.0]], None, |builder, x| {
        let (ids, weights) = builder.router("router", x, 3).unwrap();
        vec![ids, weights]
    });
    assert_eq!(out[0], [1.0, 2.0, 0.0, 0.0, 1.0, 2.0]);
    let e = (-2.0_f64).exp();
    let third = 1.0 / 3.0;
    assert_close(&out[1], &[1.0 / (2.0 + e), 1.0 / (2.0 + e), e / (2.0 + e), third, third, third]);
}

#[test]
fn experts_see_shared_and_own_rows() {
    let mut bench = Bench::default();
    // Expert e multiplies by (e + 1) and by -(e + 1).
    let spec = WeightSpec::experts("experts", DType::F32, 3, 2, 1);
    let weight = bench.weight(spec, &[1.0, -1.0, 2.0, -2.0, 3.0, -3.0]);
    let second =
        bench.weight(WeightSpec::experts("second", DType::F32, 3, 1, 2), &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    let bias = bench.weight(WeightSpec::vector("bias", 3, 1), &[100.0, 200.0, 300.0]);
    let narrow = bench.matrix(1, &[1.0, 0.0, 0.0]);
    let out = bench.run(&[&[4.0, 5.0, 1.0], &[7.0, 0.0, 7.5]], None, |builder, x| {
        let (ids, weights) = builder.router("router", x, 2).unwrap();
        let one = builder.linear("one", x, narrow, None).unwrap();
        let up = builder.moe_linear("up", one, ids, weight, None).unwrap();
        let down = builder.moe_linear("down", up, ids, second, Some(bias)).unwrap();
        vec![ids, up, down, builder.moe_combine("sum", down, weights).unwrap()]
    });
    assert_eq!(out[0], [1.0, 0.0, 2.0, 0.0]);
    assert_eq!(out[1], [8.0, -8.0, 4.0, -4.0, 21.0, -21.0, 7.0, -7.0]);
    assert_eq!(out[2], [192.0, 104.0, 300.0, 107.0]);
    let share = |gap: f64| 1.0 / (1.0 + (-gap).exp());
    let (first, second) = (share(1.0), share(0.5));
    assert_close(&out[3], &[192.0 * first + 104.0 * (1.0 - first), 300.0 * second + 107.0 * (1.0 - second)]);
}

fn layout(element: KvElement) -> KvLayout {
    let group =
        KvGroup { layers: 1, num_kv_heads: 1, head_dim: 2, num_blocks: 4, max_blocks_per_sequence: 3 };
    KvLayout { block_size: 2, element, groups: vec![group] }
}

fn attention(q: ValueId, window: Option<usize>, sinks: Option<WeightId>) -> Op {
    let layer = KvLayer { group: 0, index: 0 };
    Op::Attention { q, layer, heads: 2, num_kv_heads: 1, head_dim: 2, scale: 0.5, window, sinks }
}

#[test]
fn attention_reads_pages_windows_and_sinks() {
    let mut bench = Bench::default();
    bench.backend.create_kv(&layout(KvElement::F32)).unwrap();
    let sinks = bench.vector(&[0.5, -1.0]);
    // Rows: query of two heads, key, value.
    let (wq, wk, wv) = (
        bench.matrix(4, &selector(&[0, 1, 2, 3])),
        bench.matrix(2, &selector(&[4, 5])),
        bench.matrix(2, &selector(&[6, 7])),
    );
    let x: [&[f32]; 4] = [
        &[1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 1.0, -1.0],
        &[1.0, 1.0, 2.0, 0.0, -1.0, 0.5, 2.0, 5.0],
        &[0.5, -1.0, 1.0, 1.0, 0.0, 1.0, -3.0, 0.0],
        &[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0],
    ];
    // Sequence 1 holds positions 0..3 in blocks 3 and 0; the fourth token is padding that sees position 0 only.
    let inputs = StepInputs {
        tokens: &[0, 1, 2, 3],
        positions: &[0, 1, 2, 0],
        sequences: &[1, 1, 1, 1],
        slots: &[&[6, 7, 0, NO_SLOT]],
        block_tables: &[&[NO_BLOCK, NO_BLOCK, NO_BLOCK, 3, 0, NO_BLOCK]],
        out_rows: &[2, 0],
        sampling: &[],
        penalty_tokens: &[],
    };
    let out = bench.run(&x, Some(&inputs), |builder, x| {
        let q = builder.linear("q", x, wq, None).unwrap();
        let k = builder.linear("k", x, wk, None).unwrap();
        let v = builder.linear("v", x, wv, None).unwrap();
        builder.kv_write("write", k, v, KvLayer { group: 0, index: 0 }).unwrap();
        let full = builder.attention("full", attention(q, None, None)).unwrap();
        let windowed = builder.attention("windowed", attention(q, Some(2), Some(sinks))).unwrap();
        vec![full, windowed, builder.gather_rows("rows", full).unwrap()]
    });
    let expected = |token: usize, first: usize, sinks: Option<[f64; 2]>| {
        let row = |p: usize| x[p].iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let q = row(token);
        let mut y = vec![];
        for head in 0..2 {
            let weight = |p: usize| (0.5 * (q[2 * head] * row(p)[4] + q[2 * head + 1] * row(p)[5])).exp();
            let sum: f64 =
                (first..=token).map(weight).sum::<f64>() + sinks.map_or(0.0, |sinks| sinks[head].exp());
            for i in 0..2 {
                y.push((first..=token).map(|p| weight(p) * row(p)[6 + i]).sum::<f64>() / sum);
            }
        }
        y
    };
    for token in 0..3 {
        assert_close(&out[0][4 * token..][..4], &expected(token, 0, None));
        let first = token.saturating_sub(1);
        assert_close(&out[1][4 * token..][..4], &expected(token, first, Some([0.5, -1.0])));
    }
    assert_eq!(out[2], [&out[0][8..12], &out[0][0..4]].concat());
    // Padding left the cache alone: it reads position 0 as the first token wrote it.
    assert_close(&out[0][12..], &[1.0, -1.0, 1.0, -1.0]);
}

fn selector(columns: &[usize]) -> Vec<f32> {
    columns.iter().flat_map(|&column| (0..8).map(move |i| if i == column { 1.0 } else { 0.0 })).collect()
}

#[test]
fn half_cache_rounds_to_nearest_even() {
    let mut bench = Bench::default();
    bench.backend.create_kv(&layout(KvElement::F16)).unwrap();
    let wide = bench.matrix(4, &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    let inputs = StepInputs {
        tokens: &[0],
        positions: &[0],
        sequences: &[0],
        slots: &[&[0]],
        block_tables: &[&[0, NO_BLOCK, NO_BLOCK]],
        out_rows: &[],
        sampling: &[],
        penalty_tokens: &[],
    };
    // 2049 is halfway between the halves 2048 and 2050; 2051 between 2050 and 2052.
    let out = bench.run(&[&[2049.0, 2051.0]], Some(&inputs), |builder, x| {
        let q = builder.linear("q", x, wide, None).unwrap();
        builder.kv_write("write", x, x, KvLayer { group: 0, index: 0 }).unwrap();
        vec![builder.attention("attention", attention(q, None, None)).unwrap()]
    });
    assert_eq!(out[0], [2048.0, 2052.0, 2048.0, 2052.0]);
}

#[test]
fn sampling_rows_use_their_own_parameters() {
    let mut bench = Bench::default();
    let penalised = SampleRow { repetition_penalty: 4.0, ..SampleRow::GREEDY };
    let inputs = StepInputs {
        tokens: &[0, 1],
        positions: &[0, 1],
        sequences: &[0, 0],
        slots: &[],
        block_tables: &[],
        out_rows: &[1, 0, 0],
        sampling: &[SampleRow::GREEDY, SampleRow::GREEDY, penalised],
        penalty_tokens: &[2, 0, u32::MAX, u32::MAX, 2, u32::MAX],
    };
    let out = bench.run(&[&[1.0, 2.0, 3.0], &[5.0, 5.0, -1.0]], Some(&inputs), |builder, x| {
        let rows = builder.gather_rows("rows", x).unwrap();
        vec![builder.sample("token", rows, 2).unwrap()]
    });
    assert_eq!(out[0], [0.0, 2.0, 1.0]);
}

#[test]
fn misuse_is_an_error() {
    let mut backend = ReferenceBackend::default();
    let spec = WeightSpec::matrix("w", DType::Q4_0, 2, 32);
    for length in [0, 35, 37] {
        let bytes = vec![0; length];
        assert!(backend.upload(&spec, &mut std::iter::once(bytes.as_slice())).is_err(), "{length} bytes");
    }
    let ragged = WeightSpec::matrix("w", DType::Q4_0, 2, 33);
    assert!(backend.upload(&ragged, &mut std::iter::once([0; 36].as_slice())).is_err());
    assert!(backend.wait(&mut StepOutputs::default()).is_err(), "nothing is in flight");
    backend.create_kv(&layout(KvElement::F16)).unwrap();
    assert!(backend.create_kv(&layout(KvElement::F16)).is_err(), "one cache only");
    let spec = WeightSpec::matrix("w", DType::F32, 2, 2);
    let id = backend.upload(&spec, &mut std::iter::once([0; 16].as_slice())).unwrap();
    let specs = [spec];
    let mut builder = ProgramBuilder::new("p", StepShape { tokens: 1, rows: 1, sequences: 1 }, &specs);
    let x = builder.embed("x", id).unwrap();
    builder.kv_write("write", x, x, KvLayer { group: 0, index: 1 }).unwrap();
    assert!(backend.compile(&[builder.finish()]).is_err(), "the group has one layer");
}
