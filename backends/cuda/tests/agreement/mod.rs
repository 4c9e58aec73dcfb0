//! Every shape of a kernel gives the bits of every other: run on the emulated machine by the library's own tests, and on a
//! device by `tests/gpu.rs`.

pub(crate) mod attention;
pub(crate) mod products;

use worker_orcd_core::quant::random_row;
use worker_orcd_core::rng::Rng;
use worker_orcd_core::{
    Backend, DType, NO_TOKEN, PlanId, Program, ProgramBuilder, StepInputs, StepOutputs, StepShape, ValueId,
    WeightSpec,
};

/// Makes a backend that believes to have so many multiprocessors; a real one knows better.
pub(crate) type Open<'a> = &'a dyn Fn(u32) -> Box<dyn Backend>;

/// Rows of the tables that tokens are looked up in.
const VOCABULARY: usize = 199;

fn some_tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i * 37 % VOCABULARY as u32).filter(|token| *token != NO_TOKEN).collect()
}

/// A backend with random weights.
fn loaded(open: Open<'_>, multiprocessors: u32, specs: &[WeightSpec]) -> Box<dyn Backend> {
    let mut backend = open(multiprocessors);
    for spec in specs {
        let (mut rng, mut bytes) = (Rng::seeded(spec.cols as u64), vec![]);
        for row in 0..spec.experts * spec.rows {
            random_row(spec.dtype, spec.cols, deviation(spec.dtype, row), &mut rng, &mut bytes);
        }
        backend.upload(spec, &mut std::iter::once(bytes.as_slice())).unwrap();
    }
    backend
}

/// Rows of MXFP4 have scales that binary16 has room for, and in every other tile some that it has not.
fn deviation(dtype: DType, row: usize) -> f32 {
    let exponent = if dtype == DType::MXFP4 && row / 32 % 2 == 1 { row as i32 % 48 - 36 } else { 0 };
    0.1 * f32::powi(2.0, exponent)
}

/// A program of at most `tokens` tokens that puts out what `record` makes.
fn program(
    specs: &[WeightSpec],
    tokens: usize,
    record: impl Fn(&mut ProgramBuilder<'_>) -> ValueId,
) -> Program {
    let mut builder = ProgramBuilder::new("agreement", StepShape { tokens, rows: 1, sequences: 1 }, specs);
    let last = record(&mut builder);
    builder.output(last);
    builder.finish()
}

/// Bits of a step's output.
fn bits(backend: &mut dyn Backend, plan: PlanId, inputs: &StepInputs<'_>) -> Vec<u32> {
    backend.submit(plan, inputs).unwrap();
    output_bits(backend)
}

/// Bits of the first output of the step under way.
fn output_bits(backend: &mut dyn Backend) -> Vec<u32> {
    let mut outputs = StepOutputs::default();
    backend.wait(&mut outputs).unwrap();
    outputs.f32(0).iter().map(|value| value.to_bits()).collect()
}

/// A test for every comparison, in a module of its own; `$check` runs what it is given.
macro_rules! agreement_tests {
    ($check:path) => {
        agreement::agreement_tests! { $check;
            products:
                linear_shapes_agree_in_every_bit moe_linear_shapes_agree_in_every_bit router_shapes_agree_in_every_bit
                normed_router_shapes_agree_in_every_bit
                expert_layers_agree_in_every_bit gated_layers_agree_in_every_bit
                fused_single_steps_agree_with_batches_in_every_bit prefill_steps_agree_with_single_ones_in_every_bit;
            attention:
                attention_shapes_agree_in_every_bit rotations_agree_fused_and_apart_in_every_bit
                single_steps_deep_in_a_context_have_the_prompts_bits;
        }
    };
    ($check:path; $($family:ident: $($name:ident)*;)*) => {
        mod shapes {
            $($(#[test] fn $name() { $check(super::agreement::$family::$name); })*)*
        }
    };
}
pub(crate) use agreement_tests;
