//! M0-W-1822: MXFP4 in every place it may stand, against f64 arithmetic on the decoded weights, on every backend.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the golden tests, which use more of it")]
mod models;

use models::{backends, open_device};
use worker_orcd_core::rng::Rng;
use worker_orcd_core::{
    Backend, DType, KvElement, KvGroup, KvLayer, KvLayout, Op, ProgramBuilder, SampleRow, StepInputs,
    StepOutputs, StepShape, WeightId, WeightSpec, quant,
};

const TOKENS: usize = 7;
const HIDDEN: usize = 96;
const HEADS: usize = 2;
const HEAD_DIM: usize = 32;
/// The requirement's own bound.
const RELATIVE_ERROR: f64 = 0.01;

struct Weights {
    specs: Vec<WeightSpec>,
    bytes: Vec<Vec<u8>>,
}

/// An MXFP4 embedding, then q, k and v, all MXFP4.
fn weights() -> Weights {
    let width = HEADS * HEAD_DIM;
    let specs = vec![
        WeightSpec::matrix("embedding", DType::MXFP4, 50, HIDDEN),
        WeightSpec::matrix("q", DType::MXFP4, width, HIDDEN),
        WeightSpec::matrix("k", DType::MXFP4, width, HIDDEN),
        WeightSpec::matrix("v", DType::MXFP4, width, HIDDEN),
    ];
    let mut rng = Rng::seeded(1822);
    let bytes = specs.iter().map(|spec| {
        let mut bytes = vec![];
        for _ in 0..spec.rows {
            quant::random_row(
                spec.dtype,
                spec.cols,
                if spec.rows == 50 { 1.0 } else { 0.2 },
                &mut rng,
                &mut bytes,
            );
        }
        bytes
    });
    Weights { bytes: bytes.collect(), specs }
}

impl Weights {
    fn decoded(&self, index: usize) -> Vec<Vec<f64>> {
        let spec = &self.specs[index];
        let row_bytes = spec.row_bytes().unwrap();
        let decode = |row: &[u8]| {
            let mut values = vec![f32::NAN; spec.cols];
            quant::dequantize_row(spec.dtype, row, &mut values);
            values.into_iter().map(f64::from).collect()
        };
        self.bytes[index].chunks_exact(row_bytes).map(decode).collect()
    }
}

fn product(matrix: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// q and the attention output of every token, in f64.
fn expected(weights: &Weights) -> (Vec<f64>, Vec<f64>) {
    let [embedding, q, k, v] = [0, 1, 2, 3].map(|index| weights.decoded(index));
    let of = |matrix: &[Vec<f64>]| -> Vec<Vec<f64>> {
        (0..TOKENS).map(|token| product(matrix, &embedding[token * 3])).collect()
    };
    let (q, k, v) = (of(&q), of(&k), of(&v));
    let mut mixed = vec![];
    for token in 0..TOKENS {
        for head in 0..HEADS {
            let part =
                |rows: &Vec<Vec<f64>>, row: usize| rows[row][head * HEAD_DIM..(head + 1) * HEAD_DIM].to_vec();
            let query = part(&q, token);
            let score = |at: usize| {
                let dot: f64 = part(&k, at).iter().zip(&query).map(|(k, q)| k * q).sum();
                (dot / (HEAD_DIM as f64).sqrt()).exp()
            };
            let scores: Vec<f64> = (0..=token).map(score).collect();
            let total: f64 = scores.iter().sum();
            for i in 0..HEAD_DIM {
                mixed.push((0..=token).map(|at| scores[at] / total * part(&v, at)[i]).sum());
            }
        }
    }
    (q.concat(), mixed)
}

fn found(backend: &mut dyn Backend, weights: &Weights) -> (Vec<f32>, Vec<f32>) {
    for (spec, bytes) in weights.specs.iter().zip(&weights.bytes) {
        backend.upload(spec, &mut bytes.chunks(100)).unwrap();
    }
    let group = KvGroup {
        layers: 1,
        num_kv_heads: HEADS,
        head_dim: HEAD_DIM,
        num_blocks: 1,
        max_blocks_per_sequence: 1,
    };
    backend.create_kv(&KvLayout { block_size: 16, element: KvElement::F16, groups: vec![group] }).unwrap();
    let shape = StepShape { tokens: TOKENS, rows: 1, sequences: 1 };
    let mut b = ProgramBuilder::new("mxfp4", shape, &weights.specs);
    let x = b.embed("x", WeightId(0)).unwrap();
    let [q, k, v] = [1, 2, 3].map(|id| b.linear(format!("product.{id}"), x, WeightId(id), None).unwrap());
    let layer = KvLayer { group: 0, index: 0 };
    b.kv_write("kv", k, v, layer).unwrap();
    let scale = 1.0 / (HEAD_DIM as f32).sqrt();
    let op = Op::Attention {
        q,
        layer,
        heads: HEADS,
        num_kv_heads: HEADS,
        head_dim: HEAD_DIM,
        scale,
        window: None,
        sinks: None,
    };
    let mixed = b.attention("mix", op).unwrap();
    b.output(q);
    b.output(mixed);
    let program = b.finish();
    let plan = backend.compile(std::slice::from_ref(&program)).unwrap()[0];
    backend.poison().unwrap();
    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let tokens: Vec<u32> = positions.iter().map(|position| position * 3).collect();
    let inputs = StepInputs {
        tokens: &tokens,
        positions: &positions,
        sequences: &[0; TOKENS],
        slots: &[&positions],
        block_tables: &[&[0]],
        out_rows: &[0],
        sampling: &[SampleRow::GREEDY],
        penalty_tokens: &[],
    };
    backend.submit(plan, &inputs).unwrap();
    let mut outputs = StepOutputs::for_program(&program);
    backend.wait(&mut outputs).unwrap();
    (outputs.f32(0).to_vec(), outputs.f32(1).to_vec())
}

fn relative_error(expected: &[f64], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len());
    let error: f64 = expected.iter().zip(found).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
    let power: f64 = expected.iter().map(|a| a * a).sum();
    let relative = (error / power).sqrt();
    if relative.is_nan() { f64::INFINITY } else { relative }
}

#[test]
fn mxfp4_products_and_attention_are_within_one_percent_of_f64_on_every_backend() {
    let weights = weights();
    let (product, mixed) = expected(&weights);
    for choice in backends() {
        let Some(mut backend) = open_device(choice) else { continue };
        let (found_product, found_mixed) = found(backend.as_mut(), &weights);
        let errors = [relative_error(&product, &found_product), relative_error(&mixed, &found_mixed)];
        eprintln!("{}: product {:.1e}, attention {:.1e}", choice.name(), errors[0], errors[1]);
        assert!(errors.iter().all(|error| *error <= RELATIVE_ERROR), "{}: {errors:?}", choice.name());
    }
}
