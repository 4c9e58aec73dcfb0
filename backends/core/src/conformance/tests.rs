//! The table is whole, and the runner catches what it must.

use std::collections::BTreeSet;

use super::*;
use crate::backend::{Backend, Caps, MemoryReport, PlanId, PlanProfile};
use crate::op::Op;
use crate::reference::ReferenceBackend;
use crate::step::{OutputValue, StepOutputs};
use crate::weight::WeightId;

#[allow(clippy::unnecessary_wraps, reason = "the form of a backend factory")]
fn reference() -> Result<Box<dyn Backend>, BackendError> {
    Ok(Box::new(ReferenceBackend::default()))
}

fn case(name: &str) -> Case {
    cases().unwrap().into_iter().find(|case| case.name.starts_with(name)).unwrap()
}

#[test]
fn every_operation_and_format_has_cases() {
    let cases = cases().unwrap();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len(), "names are unique");
    assert!(cases.len() <= 250, "{} cases are too slow on a software device", cases.len());
    for stem in Op::STEMS {
        assert!(names.iter().any(|name| name.starts_with(&format!("{stem}("))), "no case of {stem}");
    }
    for name in &names {
        let stem = name.split('(').next().unwrap();
        assert!(stem == "block" || Op::STEMS.contains(&stem), "{name} is about no operation");
    }
    for dtype in crate::DType::ALL {
        for stem in ["linear", "embed", "moe_linear"] {
            assert!(names.iter().any(|name| name.starts_with(&format!("{stem}({dtype},"))), "{stem} {dtype}");
        }
    }
}

/// A NaN never passes, so this also shows that the table expects none.
#[test]
fn the_reference_passes_every_case_and_does_not_depend_on_the_batch() {
    for case in cases().unwrap() {
        let outcome = run_case(&reference, &case).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(outcome, Outcome::default(), "{}", case.name);
    }
}

/// What a broken backend does to one output of one step.
type Fault = fn(&mut OutputValue);

/// The reference with a fault.
struct Faulty {
    inner: ReferenceBackend,
    /// Step at which the fault acts.
    step: usize,
    fault: Fault,
}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }
    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        self.inner.upload(spec, chunks)
    }
    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.inner.create_kv(layout)
    }
    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        self.inner.compile(programs)
    }
    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        self.inner.submit(plan, inputs)
    }
    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        self.inner.wait(outputs)?;
        if self.step == 0 {
            (self.fault)(outputs.values.last_mut().unwrap());
        }
        self.step = self.step.wrapping_sub(1);
        Ok(())
    }
    fn memory(&self) -> MemoryReport {
        self.inner.memory()
    }
    fn check_residency(&self) -> Result<(), BackendError> {
        self.inner.check_residency()
    }
    fn profile(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        self.inner.profile(plan, inputs)
    }
    fn poison(&mut self) -> Result<(), BackendError> {
        self.inner.poison()
    }
}

fn run_faulty(case: &Case, step: usize, fault: Fault) -> Result<Outcome, CaseError> {
    run_case(&|| Ok(Box::new(Faulty { inner: ReferenceBackend::default(), step, fault })), case)
}

fn nudge(value: &mut OutputValue) {
    match value {
        OutputValue::F32(values) => *values.last_mut().unwrap() += 0.01,
        OutputValue::U32(ids) => *ids.last_mut().unwrap() ^= 1,
    }
}

#[test]
fn a_perturbed_output_is_caught_in_the_right_place() {
    for (name, label) in [
        ("linear(Q4_K", "y"),
        ("attention(heads=4/2,head_dim=64", "attention"),
        ("moe_linear(MXFP4", "own"),
        ("sample(top_p", "token"),
    ] {
        let case = case(name);
        let last = case.steps.len() - 1;
        match run_faulty(&case, last, nudge).unwrap_err() {
            CaseError::Mismatch { step, label: got, .. } => assert_eq!((step, got.as_str()), (last, label)),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn nan_garbage_and_missing_rows_are_caught() {
    let case = case("rms_norm(n=256");
    let poison: Fault = |value| {
        if let OutputValue::F32(values) = value {
            values[3] = f32::NAN;
        }
    };
    assert!(matches!(run_faulty(&case, 0, poison), Err(CaseError::Mismatch { row: 0, column: 3, .. })));
    let cut: Fault = |value| {
        if let OutputValue::F32(values) = value {
            values.pop();
        }
    };
    assert!(matches!(run_faulty(&case, 1, cut), Err(CaseError::Shape { step: 1, .. })));
    let retype: Fault = |value| *value = OutputValue::U32(vec![0; 256]);
    assert!(matches!(run_faulty(&case, 0, retype), Err(CaseError::Shape { .. })));
}

#[test]
fn a_last_bit_that_depends_on_the_batch_is_told() {
    let last_bit: Fault = |value| {
        if let OutputValue::F32(values) = value {
            values[0] = values[0].next_up();
        }
    };
    let outcome = run_faulty(&case("linear(Q8_0,in=512"), 0, last_bit).unwrap();
    assert_eq!(outcome.batch_dependent.as_deref(), Some("y"));
    assert!(outcome.worst_nmse > 0.0);
}

#[test]
fn refusals_name_the_case() {
    let refuse = || {
        Err(BackendError::Unavailable { backend: "absent", reason: "no device".into() })
            as Result<Box<dyn Backend>, BackendError>
    };
    let error = run_case(&refuse, &case("add(")).unwrap_err();
    assert!(error.to_string().starts_with("add(") && error.to_string().contains("no device"), "{error}");
}
