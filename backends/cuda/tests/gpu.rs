//! The CUDA backend on a real device: the conformance table against the reference interpreter, and what only a device
//! can show: residency, graphs against single launches, running out of memory, nothing left behind.
//!
//! Without a device every test fails, unless `WORKER_ORCD_ALLOW_NO_GPU=1` says that this is known; then each prints a
//! line that begins with `SKIPPED:`. A kernel that faults takes the device from the whole process: to see past it, run
//! the tests one process at a time,
//! `for t in $(./gpu --list | sed -n 's/: test$//p'); do ./gpu --exact "$t" --nocapture; done`.
//! `WORKER_ORCD_CASES=linear(Q4_K` runs only the cases whose name contains that.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test, also where it is outside of test functions"
)]

mod agreement;

use std::sync::{Mutex, MutexGuard, PoisonError};

use worker_orcd_core::conformance::{Case, CaseStep, cases, run_case_within};
use worker_orcd_core::{
    Backend, BackendError, DType, Footprint, KvElement, KvGroup, KvLayout, Op, OutputValue, PlanId,
    StepOutputs, WeightSpec,
};
use worker_orcd_cuda::{CudaBackend, CudaFootprint, PlanOptions, least_nmse};

/// One test at a time: a step's time and the free memory are the device's, not a test's.
static DEVICE: Mutex<()> = Mutex::new(());

/// Keeps the device's context alive between cases, which saves its making 250 times.
struct Session {
    _alive: CudaBackend,
    _turn: MutexGuard<'static, ()>,
}

/// A session with the device; `None` when there is none and that is allowed.
fn session() -> Option<Session> {
    let turn = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    match CudaBackend::open(0) {
        Ok(alive) => Some(Session { _alive: alive, _turn: turn }),
        Err(error @ BackendError::Unavailable { .. })
            if std::env::var_os("WORKER_ORCD_ALLOW_NO_GPU").is_some() =>
        {
            println!("SKIPPED: no CUDA device: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn open(options: PlanOptions) -> CudaBackend {
    CudaBackend::open_with(0, options).unwrap()
}

fn chosen(name: &str) -> bool {
    std::env::var("WORKER_ORCD_CASES").map_or(true, |part| name.contains(&part))
}

/// Runs every case whose name begins with `stem`, and reports all that fail.
fn conformance(stem: &str) {
    let Some(_session) = session() else { return };
    let factory = || Ok(Box::new(open(PlanOptions::default())) as Box<dyn Backend>);
    let mut failures = vec![];
    let mut worst = (0.0, String::new());
    let mut passed = 0;
    let prefix = format!("{stem}(");
    for case in cases().unwrap().iter().filter(|case| case.name.starts_with(&prefix) && chosen(&case.name)) {
        match run_case_within(&factory, case, least_nmse(stem)) {
            Ok(outcome) => {
                println!("{:<70} nmse {:.2e} of {:.0e}", case.name, outcome.worst_nmse, case.tolerance.nmse);
                if outcome.worst_nmse >= worst.0 {
                    worst = (outcome.worst_nmse, case.name.clone());
                }
                match outcome.batch_dependent {
                    None => passed += 1,
                    Some(label) => failures.push(format!("{}: {label} depends on the batch", case.name)),
                }
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    println!("{stem}: {passed} passed, {} failed, worst nmse {:.2e} in {}", failures.len(), worst.0, worst.1);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! conformance_tests {
    ($($stem:ident)*) => {
        mod conformance_of {
            $(#[test] fn $stem() { super::conformance(stringify!($stem)); })*
        }
        const STEMS: &[&str] = &[$(stringify!($stem)),*];
    };
}

conformance_tests! {
    embed position_embed rms_norm layer_norm linear add rope kv_write attention swiglu gelu router moe_linear
    moe_combine gather_rows sample block
}

/// Steps above 512 tokens, which have kernels of their own on some devices: of one and of two groups of columns more.
const WIDE: [usize; 2] = [600, 1100];

fn agree(check: fn(agreement::Open<'_>, &[usize])) {
    let Some(_session) = session() else { return };
    check(&|_| Box::new(open(PlanOptions::default())), &WIDE);
}

agreement::agreement_tests!(super::agree);

#[test]
fn no_case_is_left_out() {
    for stem in Op::STEMS {
        assert!(STEMS.contains(&stem), "{stem} has no test here");
    }
    for case in cases().unwrap() {
        let stem = case.name.split('(').next().unwrap();
        assert!(STEMS.contains(&stem), "{} is run by no test", case.name);
    }
}

/// Uploads, compiles and poisons; returns the plans.
fn prepare(backend: &mut CudaBackend, case: &Case) -> Vec<PlanId> {
    for weight in &case.weights {
        backend.upload(&weight.spec, &mut weight.bytes().chunks(65_537)).unwrap();
    }
    if let Some(layout) = &case.kv {
        backend.create_kv(layout).unwrap();
    }
    let programs: Vec<_> = case.steps.iter().map(|step| step.program.clone()).collect();
    let plans = backend.compile(&programs).unwrap();
    backend.poison().unwrap();
    plans
}

/// Runs every step once and returns the outputs' bits.
fn run(backend: &mut CudaBackend, case: &Case, plans: &[PlanId]) -> Vec<Vec<u32>> {
    let step = |(step, plan): (&CaseStep, &PlanId)| {
        step.inputs.lend(|inputs| backend.submit(*plan, inputs)).unwrap();
        let mut outputs = StepOutputs::for_program(&step.program);
        backend.wait(&mut outputs).unwrap();
        let bits = |value: &OutputValue| match value {
            OutputValue::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
            OutputValue::U32(values) => values.clone(),
        };
        outputs.values.iter().flat_map(|value: &OutputValue| -> Vec<u32> { bits(value) }).collect()
    };
    case.steps.iter().zip(plans).map(step).collect()
}

/// Whole layers: every family, tapped and not.
fn blocks() -> Vec<Case> {
    let blocks: Vec<Case> =
        cases().unwrap().into_iter().filter(|case| case.name.starts_with("block(")).collect();
    assert!(!blocks.is_empty());
    blocks
}

#[test]
fn graphs_dependent_launches_and_single_launches_agree_bit_for_bit() {
    let Some(_session) = session() else { return };
    let plain = PlanOptions { graphs: false, dependent_launch: false, wait_after_each: true };
    let others = [
        PlanOptions { graphs: false, dependent_launch: false, wait_after_each: false },
        PlanOptions { graphs: false, dependent_launch: true, wait_after_each: false },
        PlanOptions { graphs: true, dependent_launch: false, wait_after_each: false },
        PlanOptions::default(),
    ];
    for case in blocks() {
        let mut backend = open(plain);
        let plans = prepare(&mut backend, &case);
        let expected = run(&mut backend, &case, &plans);
        for options in others {
            let mut backend = open(options);
            let plans = prepare(&mut backend, &case);
            assert!(run(&mut backend, &case, &plans) == expected, "{} with {options:?}", case.name);
        }
    }
}

#[test]
fn five_runs_give_the_same_bits() {
    let Some(_session) = session() else { return };
    for case in blocks() {
        let mut backend = open(PlanOptions::default());
        let plans = prepare(&mut backend, &case);
        let expected = run(&mut backend, &case, &plans);
        for round in 1..5 {
            assert!(run(&mut backend, &case, &plans) == expected, "{}, run {round}", case.name);
        }
    }
}

#[test]
fn everything_is_resident_until_a_violation_is_injected() {
    let Some(_session) = session() else { return };
    for case in blocks() {
        let mut backend = open(PlanOptions::default());
        let plans = prepare(&mut backend, &case);
        run(&mut backend, &case, &plans);
        // In debug builds this also reads the guard words behind every range.
        backend.check_residency().unwrap();
        backend.inject_residency_violation().unwrap();
        let error = backend.check_residency().unwrap_err();
        assert!(
            matches!(&error, BackendError::Residency { reason } if reason.contains("host memory")),
            "{error}"
        );
    }
}

fn layout(num_blocks: usize) -> KvLayout {
    let group = KvGroup { layers: 1, num_kv_heads: 8, head_dim: 64, num_blocks, max_blocks_per_sequence: 16 };
    KvLayout { block_size: 16, element: KvElement::F16, groups: vec![group] }
}

#[test]
fn too_large_a_cache_is_out_of_memory_and_a_smaller_one_still_fits() {
    let Some(_session) = session() else { return };
    let mut backend = open(PlanOptions::default());
    let block = layout(1).bytes();
    let total = backend.caps().total_memory_bytes as usize;
    for blocks in [total / block + 1, usize::MAX / 4] {
        let error = backend.create_kv(&layout(blocks)).unwrap_err();
        assert!(matches!(&error, BackendError::OutOfMemory { purpose: "kv_cache", .. }), "{error}");
    }
    backend.create_kv(&layout(64)).unwrap();
    backend.check_residency().unwrap();
    let mut f32_cache = layout(1);
    f32_cache.element = KvElement::F32;
    let second = backend.create_kv(&layout(1)).unwrap_err();
    assert!(matches!(second, BackendError::Unsupported { .. }), "{second}");
    let refused = open(PlanOptions::default()).create_kv(&f32_cache).unwrap_err();
    assert!(matches!(refused, BackendError::Unsupported { .. }), "{refused}");
}

#[test]
fn the_report_is_what_the_device_lost_and_nothing_stays_behind() {
    let Some(_session) = session() else { return };
    let free = || open(PlanOptions::default()).caps().free_memory_bytes;
    let cycle = || {
        let case = &blocks()[0];
        let mut backend = open(PlanOptions::default());
        let plans = prepare(&mut backend, case);
        for _ in 0..50 {
            run(&mut backend, case, &plans);
        }
        backend.memory().total_bytes()
    };
    cycle();
    let before = free();
    let reports: Vec<u64> = (0..5).map(|_| cycle()).collect();
    // The driver keeps the pages of unloaded modules for the next ones; a model or a cache left behind is larger.
    let after = free();
    assert!(before.abs_diff(after) <= 4 << 20, "{before} bytes free before 250 more runs, {after} after");
    assert!(reports.iter().all(|report| *report == reports[0] && *report > 0));
}

#[test]
fn what_is_allocated_is_what_was_foretold_to_the_byte() {
    let Some(_session) = session() else { return };
    for case in blocks().iter().filter(|case| case.kv.is_some()) {
        let mut backend = open(PlanOptions::default());
        let specs: Vec<WeightSpec> = case.weights.iter().map(|weight| weight.spec.clone()).collect();
        backend.reserve_weights(&specs).unwrap();
        prepare(&mut backend, case);
        let programs: Vec<_> = case.steps.iter().map(|step| step.program.clone()).collect();
        let kv = case.kv.as_ref().unwrap();
        let foretold = CudaFootprint::default().memory(&specs, kv, &programs).unwrap();
        let found = backend.memory();
        assert_eq!(foretold, found, "{}", case.name);
    }
}

#[test]
fn copies_have_a_bandwidth_and_leave_nothing_behind() {
    let Some(_session) = session() else { return };
    let free = || open(PlanOptions::default()).caps().free_memory_bytes;
    let mut backend = open(PlanOptions::default());
    backend.measure_bandwidth().unwrap();
    let before = free();
    let found = backend.measure_bandwidth().unwrap();
    println!("{found:?}");
    // No device that this runs on copies slower than 50 GB/s, nor faster than 20 TB/s; a bus has 1 to 500 GB/s.
    assert!(found.copy_bytes_per_second.is_some_and(|rate| (5e10..2e13).contains(&rate)), "{found:?}");
    assert!(found.upload_bytes_per_second.is_some_and(|rate| (1e9..5e11).contains(&rate)), "{found:?}");
    assert_eq!(backend.memory().total_bytes(), 0);
    assert_eq!(free(), before);
}

#[test]
fn a_profile_times_every_label() {
    let Some(_session) = session() else { return };
    for case in blocks() {
        let mut backend = open(PlanOptions::default());
        let plans = prepare(&mut backend, &case);
        for (step, &plan) in case.steps.iter().zip(&plans) {
            let profile = step.inputs.lend(|inputs| backend.profile(plan, inputs)).unwrap();
            for node in step.program.nodes() {
                let entry = profile
                    .entries
                    .iter()
                    .find(|entry| entry.label.split('+').any(|part| part == node.label));
                assert!(entry.is_some_and(|entry| entry.time_us > 0.0), "{} of {}", node.label, case.name);
            }
        }
    }
}

#[test]
fn a_weight_of_the_wrong_length_is_refused() {
    let Some(_session) = session() else { return };
    let mut backend = open(PlanOptions::default());
    let spec = WeightSpec::matrix("probe", DType::Q8_0, 40, 64);
    let bytes = vec![0_u8; spec.bytes().unwrap() + 1];
    for length in [0, bytes.len() - 2, bytes.len()] {
        let error = backend.upload(&spec, &mut bytes[..length].chunks(777)).unwrap_err();
        assert!(
            matches!(&error, BackendError::Weight { label, .. } if label == "probe"),
            "{length}: {error}"
        );
    }
    backend.upload(&spec, &mut bytes[..bytes.len() - 1].chunks(777)).unwrap();
}

#[test]
fn a_device_that_is_not_there_is_unavailable() {
    let Some(_session) = session() else { return };
    let error = CudaBackend::open(99).unwrap_err();
    assert!(matches!(&error, BackendError::Unavailable { reason, .. } if reason.contains("99")), "{error}");
}
