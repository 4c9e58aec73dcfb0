//! The rules fire where they may, and not where a tap, a batch or a second reader forbids it.

use worker_orcd_core::{Program, ProgramBuilder, StepShape, WeightSpec};

use super::super::{PlanBases, Target, lower};
use super::*;
use crate::arch::Arch;
use crate::inputs::InputLayout;
use crate::layout::WeightLayout;
use crate::lower::DeviceTraits;

fn specs() -> Vec<WeightSpec> {
    vec![
        WeightSpec::matrix("table", DType::F16, 50, 64),
        WeightSpec::vector("norm", 1, 64),
        WeightSpec::matrix("q8", DType::Q8_0, 64, 64),
        WeightSpec::matrix("q5", DType::Q5_0, 64, 64),
        WeightSpec::experts("experts", DType::MXFP4, 4, 64, 64),
        WeightSpec::matrix("router", DType::F32, 4, 64),
    ]
}

fn kernels(program: &Program) -> Vec<String> {
    let specs = specs();
    let weights: Vec<DeviceWeight> = specs
        .iter()
        .map(|spec| DeviceWeight {
            spec: spec.clone(),
            address: DevicePtr(4096),
            layout: WeightLayout::of(spec).unwrap(),
        })
        .collect();
    let traits = DeviceTraits { arch: Arch::of(90), multiprocessors: 132, max_shared_bytes: 232_448 };
    let target = Target { traits, weights: &weights, kv: None };
    let inputs = InputLayout::of(program, None);
    let lowered = lower(program, &inputs, target, PlanBases::default()).unwrap();
    lowered.launches.iter().map(|launch| launch.kernel.to_string()).collect()
}

fn record(tokens: usize, build: impl Fn(&mut ProgramBuilder<'_>)) -> Program {
    let specs = specs();
    let mut builder = ProgramBuilder::new("rules", StepShape { tokens, rows: 1, sequences: 1 }, &specs);
    build(&mut builder);
    builder.finish()
}

fn attention_like(builder: &mut ProgramBuilder<'_>) {
    let x = builder.embed("x", WeightId(0)).unwrap();
    let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
    let q = builder.linear("q", normed, WeightId(2), None).unwrap();
    let k = builder.linear("k", normed, WeightId(3), None).unwrap();
    let v = builder.linear("v", normed, WeightId(2), None).unwrap();
    let sum = builder.add("qk", q, k).unwrap();
    let sum = builder.add("qkv", sum, v).unwrap();
    let change = builder.linear("o", sum, WeightId(2), None).unwrap();
    let x = builder.add("residual", x, change).unwrap();
    builder.output(x);
}

#[test]
fn norms_products_of_two_formats_and_residuals_fuse() {
    let expected =
        ["embed_f32", "linear_single_f32_q5_0_q8_0", "add_f32", "add_f32", "linear_single_f32_q8_0"];
    assert_eq!(kernels(&record(1, attention_like)), expected);
}

#[test]
fn batches_and_taps_keep_their_nodes_apart() {
    let batch = kernels(&record(2, attention_like));
    let norms = batch.iter().filter(|name| name.starts_with("rms_norm")).count();
    assert!(norms == 1 && !batch.iter().any(|name| name.contains("single")), "{batch:?}");
    let tapped = kernels(&record(1, attention_like).tapped());
    assert_eq!(tapped.iter().filter(|name| *name == "add_f32").count(), 3, "{tapped:?}");
}

#[test]
fn experts_fuse_with_their_activation_and_their_sum() {
    let build = |builder: &mut ProgramBuilder<'_>| {
        let x = builder.embed("x", WeightId(0)).unwrap();
        let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
        let logits = builder.linear("logits", normed, WeightId(5), None).unwrap();
        let (experts, weights) = builder.router("router", logits, 2).unwrap();
        let gate = builder.moe_linear("gate", normed, experts, WeightId(4), None).unwrap();
        let up = builder.moe_linear("up", normed, experts, WeightId(4), None).unwrap();
        let active = builder.swiglu("act", gate, up, SwiGluKind::Silu).unwrap();
        let down = builder.moe_linear("down", active, experts, WeightId(4), None).unwrap();
        let sum = builder.moe_combine("sum", down, weights).unwrap();
        let x = builder.add("residual", x, sum).unwrap();
        builder.output(x);
    };
    let expected =
        ["embed_f32", "router_norm_f32", "moe_linear_gated_f32_mxfp4", "moe_linear_combined_f32_mxfp4"];
    assert_eq!(kernels(&record(1, build)), expected);
}

#[test]
fn a_norm_that_others_read_is_written_too() {
    let build = |builder: &mut ProgramBuilder<'_>| {
        let x = builder.embed("x", WeightId(0)).unwrap();
        let normed = builder.rms_norm("norm", x, WeightId(1), 1e-5).unwrap();
        let gate = builder.linear("gate", normed, WeightId(2), None).unwrap();
        let up = builder.linear("up", normed, WeightId(2), None).unwrap();
        let active = builder.swiglu("act", gate, up, SwiGluKind::Silu).unwrap();
        let y = builder.add("y", active, normed).unwrap();
        builder.output(y);
    };
    let expected = ["embed_f32", "linear_single_f32_q8_0", "swiglu_f32", "add_f32"];
    let program = record(1, build);
    let names = kernels(&program);
    assert!(
        names == expected || names == ["embed_f32", "rms_norm_f32", "linear_gated_f32_q8_0", "add_f32"],
        "{names:?}"
    );
}
