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
