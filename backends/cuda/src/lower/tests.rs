//! Lowering without a device: every program of the conformance table becomes launches that their kernels accept.

use std::collections::HashMap;

use worker_orcd_core::conformance::{Case, cases};
use worker_orcd_core::{Node, RowSet, StepShape};

use super::*;
use crate::kernels::{self, Kernel};

/// What the devices in the table may give a CTA.
const DEVICES: [(u32, u32, u32); 4] =
    [(80, 108, 166_912), (86, 82, 101_376), (90, 132, 232_448), (120, 170, 101_376)];

const BASES: PlanBases = PlanBases {
    activations: DevicePtr(0x1_0000_0000),
    inputs: DevicePtr(0x2_0000_0000),
    scratch: DevicePtr(0x3_0000_0000),
    counters: DevicePtr(7 << 40),
};

fn weights(case: &Case) -> Vec<DeviceWeight> {
    let mut next = 0x5_0000_0000_u64;
    let place = |weight: &worker_orcd_core::conformance::CaseWeight| {
        let layout = WeightLayout::of(&weight.spec).unwrap();
        let address = DevicePtr(next);
        next += (layout.bytes() as u64).next_multiple_of(256);
        DeviceWeight { spec: weight.spec.clone(), address, layout }
    };
    case.weights.iter().map(place).collect()
}

/// Lowers every step of a case for one device.
fn lowered(case: &Case, (capability, multiprocessors, max_shared_bytes): (u32, u32, u32)) -> Vec<Lowered> {
    let weights = weights(case);
    let pools = case.kv.clone().map(|layout| KvPools { layout, base: DevicePtr(0x6_0000_0000) });
    let traits = DeviceTraits { arch: Arch::of(capability), multiprocessors, max_shared_bytes };
    let target = Target { traits, weights: &weights, kv: pools.as_ref() };
    let lower_step = |step: &worker_orcd_core::conformance::CaseStep| {
        let inputs = InputLayout::of(&step.program, case.kv.as_ref());
        let measured = lower(&step.program, &inputs, target, PlanBases::default());
        let measured = measured.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let lowered = lower(&step.program, &inputs, target, BASES).unwrap();
        assert_eq!(measured.scratch_bytes, lowered.scratch_bytes, "{}: measuring is not lowering", case.name);
        assert_eq!(measured.launches.len(), lowered.launches.len());
        lowered
    };
    case.steps.iter().map(lower_step).collect()
}

#[test]
fn every_launch_of_every_case_is_within_its_kernels_limits_on_every_device() {
    let units = kernels::units();
    let table: HashMap<&str, &Kernel> =
        units.iter().flat_map(|unit| &unit.kernels).map(|kernel| (kernel.name.as_ref(), kernel)).collect();
    for case in cases().unwrap() {
        for device in DEVICES {
            for launch in lowered(&case, device).iter().flat_map(|lowered| &lowered.launches) {
                let kernel = table.get(launch.kernel.as_ref());
                let kernel = kernel.unwrap_or_else(|| panic!("{}: no kernel {}", case.name, launch.kernel));
                launch.check(kernel).unwrap_or_else(|reason| panic!("{}: {reason}", case.name));
                assert!(launch.shared_bytes <= device.2, "{}: {} on {device:?}", case.name, launch.kernel);
            }
        }
    }
}

#[test]
fn every_node_is_launched_under_its_own_label_and_in_order() {
    for case in cases().unwrap() {
        for (step, lowered) in case.steps.iter().zip(lowered(&case, DEVICES[2])) {
            let mut labels = lowered.launches.iter().flat_map(|launch| launch.label.split('+')).peekable();
            for Node { label, .. } in step.program.nodes() {
                assert_eq!(labels.peek(), Some(&label.as_str()), "{}", case.name);
                while labels.next_if(|next| next == label).is_some() {}
            }
            assert_eq!(labels.next(), None, "{}: a label of no node", case.name);
        }
    }
}

#[test]
fn values_live_where_the_arena_puts_them_and_counts_at_the_head_of_the_inputs() {
    let case = cases().unwrap().into_iter().find(|case| case.name.starts_with("block(")).unwrap();
    let program = &case.steps[0].program;
    let inputs = InputLayout::of(program, case.kv.as_ref());
    let weights = weights(&case);
    let traits = DeviceTraits { arch: Arch::of(90), multiprocessors: 132, max_shared_bytes: 232_448 };
    let target = Target { traits, weights: &weights, kv: None };
    let mut lowering = Lowering::start(program, &inputs, target, BASES);
    let StepShape { tokens, rows, .. } = program.shape();
    assert_eq!(lowering.max_rows(RowSet::Tokens), tokens as u32);
    assert_eq!(lowering.max_rows(RowSet::Outputs), rows as u32);
    assert_eq!(lowering.row_count(RowSet::Tokens), BASES.inputs);
    assert_eq!(lowering.row_count(RowSet::Outputs), BASES.inputs.offset(4));
    let plan = activation_plan(program);
    for id in (0..program.values().len() as u32).map(ValueId) {
        assert_eq!(lowering.value(id), BASES.activations.offset(plan.offset(id)));
    }
    assert_eq!(lowering.scratch(100), BASES.scratch);
    assert_eq!(lowering.scratch(1), BASES.scratch.offset(256));
    assert_eq!(lowering.scratch_bytes, 512);
}

#[test]
fn a_program_without_its_cache_is_refused_by_the_node_that_needs_it() {
    let case = cases().unwrap().into_iter().find(|case| case.name.starts_with("attention(")).unwrap();
    let step = &case.steps[0];
    let inputs = InputLayout::of(&step.program, None);
    let weights = weights(&case);
    let traits = DeviceTraits { arch: Arch::of(80), multiprocessors: 108, max_shared_bytes: 166_912 };
    let target = Target { traits, weights: &weights, kv: None };
    let error = lower(&step.program, &inputs, target, BASES).unwrap_err();
    assert!(matches!(&error, BackendError::Program { label, .. } if label == "kv_write"), "{error}");
}

#[test]
fn rules_have_names_of_their_own() {
    let names: std::collections::HashSet<&str> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), RULES.len());
}

/// How often each kernel is launched by the first step of the case whose name starts so.
fn kernel_counts(prefix: &str) -> HashMap<String, usize> {
    let case = cases().unwrap().into_iter().find(|case| case.name.starts_with(prefix)).unwrap();
    let mut counts = HashMap::new();
    for launch in &lowered(&case, DEVICES[2])[0].launches {
        *counts.entry(launch.kernel.to_string()).or_default() += 1;
    }
    counts
}

#[test]
fn norms_write_the_records_their_products_read_unless_tapped_values_are_floats_too() {
    // Two layers with two norms each, of which routers take one, and the last.
    for (prefix, norms) in [("block(Llama,Q4_K)", 5), ("block(Experts,MXFP4)", 3)] {
        let counts = kernel_counts(prefix);
        assert_eq!(counts.get("rms_norm_quantize_f32"), Some(&norms), "{prefix}: {counts:?}");
        assert_eq!(counts.get("rms_norm_f32"), None, "{prefix}: {counts:?}");
    }
    assert_eq!(kernel_counts("block(Gpt2,F16)").get("rms_norm_quantize_f32"), None);
}

#[test]
fn rotations_and_the_cache_write_are_one_launch_unless_tapped() {
    for prefix in ["block(Llama,Q4_K)", "block(Experts,MXFP4)"] {
        let counts = kernel_counts(prefix);
        assert_eq!(counts.get("rope_kv_write_f32_f16"), Some(&2), "{prefix}: {counts:?}");
        assert_eq!(counts.get("rope_f32").or(counts.get("kv_write_f32_f16")), None, "{prefix}: {counts:?}");
    }
    let counts = kernel_counts("block(Llama,Q4_K,tapped)");
    assert_eq!((counts.get("rope_f32"), counts.get("kv_write_f32_f16")), (Some(&4), Some(&2)));
}

#[test]
fn a_split_attention_writes_the_records_its_product_reads() {
    for prefix in ["block(Llama,Q4_K)", "block(Experts,MXFP4)"] {
        let case = cases().unwrap().into_iter().find(|case| case.name.starts_with(prefix)).unwrap();
        let lowered = &lowered(&case, DEVICES[2])[0];
        for label in ["layers.0.attn.o+layers.0.attn.add", "layers.1.attn.o+layers.1.attn.add"] {
            let own = lowered.launches.iter().filter(|launch| launch.label == label).count();
            assert_eq!(own, 1, "{prefix}: {label} quantises its input");
        }
    }
}

#[test]
fn a_router_its_product_and_its_norm_are_one_launch_for_few_tokens() {
    let case =
        cases().unwrap().into_iter().find(|case| case.name.starts_with("block(Experts,MXFP4)")).unwrap();
    let mut few = 0;
    for (step, lowered) in case.steps.iter().zip(lowered(&case, DEVICES[2])) {
        let expected = if step.program.shape().tokens <= 16 { 2 } else { 0 };
        let count = |name: &str| lowered.launches.iter().filter(|launch| launch.kernel == name).count();
        assert_eq!(count("router_norm_f32"), expected, "{:?}", step.program.shape());
        assert_eq!(count("router_normed4_f32"), 2 - expected, "{:?}", step.program.shape());
        few += expected;
    }
    assert!(few > 0, "no step of the case has few tokens");
}

#[test]
fn expert_layers_fuse_for_few_tokens_and_stay_apart_when_tapped() {
    let case =
        cases().unwrap().into_iter().find(|case| case.name.starts_with("block(Experts,MXFP4)")).unwrap();
    let mut few = 0;
    for (step, lowered) in case.steps.iter().zip(lowered(&case, DEVICES[2])) {
        let tokens = step.program.shape().tokens;
        let count = |name: &str| lowered.launches.iter().filter(|launch| launch.kernel == name).count();
        if tokens > 1 {
            assert_eq!((count("moe_combine_f32"), count("add_f32")), (2, 0), "{tokens} tokens");
        }
        let gated =
            ["moe_linear_stream_gated8_f32_mxfp4", "moe_linear_stream_gated_twin16_f32_mxfp4"].map(count);
        if (2..=64).contains(&tokens) {
            assert_eq!(gated.iter().sum::<usize>(), 2, "{tokens} tokens");
            assert_eq!(count("swiglu_f32"), 0, "{tokens} tokens");
            few += 1;
        } else {
            assert_eq!(gated, [0, 0], "{tokens} tokens");
        }
    }
    assert!(few > 0, "no step of the case has few tokens");
    let tapped = kernel_counts("block(Experts,MXFP4,tapped)");
    assert_eq!((tapped.get("swiglu_f32"), tapped.get("moe_combine_f32")), (Some(&2), Some(&2)));
    assert!(tapped.get("add_f32") >= Some(&2), "{tapped:?}");
}
