//! Runs a case on a backend and on the reference, and compares.

use std::collections::HashMap;

use super::{Case, CaseStep};
use crate::backend::{Backend, BackendError, PlanId};
use crate::program::RowSet;
use crate::reference::ReferenceBackend;
use crate::step::{OutputValue, StepOutputs};

/// A case that did not pass.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The backend refused or broke.
    #[error("{case}: {error}")]
    Backend {
        /// Which case.
        case: String,
        /// What it said.
        error: BackendError,
    },
    /// An output has the wrong number of elements or element type.
    #[error("{case}: step {step}: {label} has {got} elements, expected {expected}")]
    Shape {
        /// Which case.
        case: String,
        /// Which step.
        step: usize,
        /// The value.
        label: String,
        /// Elements the backend gave (0 for the wrong type).
        got: usize,
        /// Elements the step has.
        expected: usize,
    },
    /// The first value that is too far from the reference.
    #[error(
        "{case}: step {step}: {label}[{row}][{column}] is {got}, expected {expected} (nmse {nmse:e}, allowed {allowed:e}: {why})"
    )]
    Mismatch {
        /// Which case.
        case: String,
        /// Which step.
        step: usize,
        /// The value.
        label: String,
        /// Row of the largest error in it.
        row: usize,
        /// Column of the largest error in that row.
        column: usize,
        /// What the backend computed there.
        got: f64,
        /// What the reference computed there.
        expected: f64,
        /// Error of the row.
        nmse: f64,
        /// Tolerance.
        allowed: f64,
        /// Its reason.
        why: &'static str,
    },
}

/// A case that passed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Largest error of any row.
    pub worst_nmse: f64,
    /// Label of the first value whose rows changed bits with the batch around them.
    pub batch_dependent: Option<String>,
}

/// Runs `case` on a backend made by `open` and compares with the reference.
///
/// # Errors
/// The first output, in step and declaration order, that differs.
pub fn run_case(
    open: &dyn Fn() -> Result<Box<dyn Backend>, BackendError>,
    case: &Case,
) -> Result<Outcome, CaseError> {
    run_case_within(open, case, 0.0)
}

/// As [`run_case`] with a tolerance of at least `least_nmse`, for a backend whose activations are narrower than f32.
///
/// # Errors
/// As [`run_case`].
pub fn run_case_within(
    open: &dyn Fn() -> Result<Box<dyn Backend>, BackendError>,
    case: &Case,
    least_nmse: f64,
) -> Result<Outcome, CaseError> {
    let broken = |error| CaseError::Backend { case: case.name.clone(), error };
    let expected = outputs(&mut ReferenceBackend::default(), case).map_err(broken)?;
    let got = open().and_then(|mut backend| outputs(backend.as_mut(), case)).map_err(broken)?;
    let mut outcome = Outcome::default();
    for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let place = Place { case, index, allowed: case.tolerance.nmse.max(least_nmse) };
        outcome.worst_nmse = outcome.worst_nmse.max(place.compare(got, expected)?);
    }
    outcome.batch_dependent = batch_dependent(case, &got);
    Ok(outcome)
}

/// Uploads, compiles, poisons and runs every step.
fn outputs(backend: &mut dyn Backend, case: &Case) -> Result<Vec<StepOutputs>, BackendError> {
    for weight in &case.weights {
        let bytes = weight.bytes();
        // A chunk size that is no multiple of any block.
        backend.upload(&weight.spec, &mut bytes.chunks(100_003))?;
    }
    if let Some(layout) = &case.kv {
        backend.create_kv(layout)?;
    }
    let programs: Vec<_> = case.steps.iter().map(|step| step.program.clone()).collect();
    let plans: Vec<PlanId> = backend.compile(&programs)?;
    backend.poison()?;
    let mut all = vec![];
    for (step, plan) in case.steps.iter().zip(plans) {
        step.inputs.lend(|inputs| backend.submit(plan, inputs))?;
        let mut outputs = StepOutputs::for_program(&step.program);
        backend.wait(&mut outputs)?;
        all.push(outputs);
    }
    Ok(all)
}

struct Place<'a> {
    case: &'a Case,
    index: usize,
    allowed: f64,
}

impl Place<'_> {
    fn step(&self) -> &CaseStep {
        &self.case.steps[self.index]
    }

    /// The largest error of any row of any output.
    fn compare(&self, got: &StepOutputs, expected: &StepOutputs) -> Result<f64, CaseError> {
        let mut worst = 0.0_f64;
        let program = &self.step().program;
        if got.values.len() != expected.values.len() {
            return Err(self.shape("outputs", got.values.len(), expected.values.len()));
        }
        for (index, id) in program.outputs().iter().enumerate() {
            let value = program.value(*id);
            worst = worst.max(match (&got.values[index], &expected.values[index]) {
                (OutputValue::F32(got), OutputValue::F32(expected)) if got.len() == expected.len() => {
                    self.compare_f32(&value.label, value.width, got, expected)?
                }
                (OutputValue::U32(got), OutputValue::U32(expected)) if got.len() == expected.len() => {
                    self.compare_ids(&value.label, value.width, got, expected)?
                }
                (got, expected) => return Err(self.shape(&value.label, length(got), length(expected))),
            });
        }
        Ok(worst)
    }

    fn compare_f32(
        &self,
        label: &str,
        width: usize,
        got: &[f32],
        expected: &[f32],
    ) -> Result<f64, CaseError> {
        let square = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        let rows = (expected.len() / width).max(1);
        // A row that happens to be nearly nothing is judged by a hundredth of the mean row.
        let floor = (square(expected) / rows as f64 * 0.01).max(f64::MIN_POSITIVE);
        let mut worst = 0.0_f64;
        for (row, (got, expected)) in got.chunks_exact(width).zip(expected.chunks_exact(width)).enumerate() {
            let errors = got.iter().zip(expected).map(|(&got, &expected)| {
                let error = (f64::from(got) - f64::from(expected)).powi(2);
                if error.is_nan() { f64::INFINITY } else { error }
            });
            let nmse = errors.clone().sum::<f64>() / square(expected).max(floor);
            if nmse > self.allowed {
                let column =
                    errors.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(column, _)| column);
                let values = (f64::from(got[column]), f64::from(expected[column]));
                return Err(self.mismatch(label, (row, column), values, nmse));
            }
            worst = worst.max(nmse);
        }
        Ok(worst)
    }

    fn compare_ids(
        &self,
        label: &str,
        width: usize,
        got: &[u32],
        expected: &[u32],
    ) -> Result<f64, CaseError> {
        match got.iter().zip(expected).position(|(got, expected)| got != expected) {
            Some(at) => {
                let values = (f64::from(got[at]), f64::from(expected[at]));
                Err(self.mismatch(label, (at / width, at % width), values, f64::INFINITY))
            }
            None => Ok(0.0),
        }
    }

    fn shape(&self, label: &str, got: usize, expected: usize) -> CaseError {
        CaseError::Shape {
            case: self.case.name.clone(),
            step: self.index,
            label: label.to_owned(),
            got,
            expected,
        }
    }

    fn mismatch(
        &self,
        label: &str,
        (row, column): (usize, usize),
        (got, expected): (f64, f64),
        nmse: f64,
    ) -> CaseError {
        CaseError::Mismatch {
            case: self.case.name.clone(),
            step: self.index,
            label: label.to_owned(),
            row,
            column,
            got,
            expected,
            nmse,
            allowed: self.allowed,
            why: self.case.tolerance.why,
        }
    }
}

fn length(value: &OutputValue) -> usize {
    match value {
        OutputValue::F32(values) => values.len(),
        OutputValue::U32(values) => values.len(),
    }
}

/// The first value of which two rows with one key differ in a bit.
fn batch_dependent(case: &Case, outputs: &[StepOutputs]) -> Option<String> {
    let mut seen: HashMap<(&str, u64), Vec<u32>> = HashMap::new();
    for (step, outputs) in case.steps.iter().zip(outputs).filter(|(step, _)| !step.row_keys.is_empty()) {
        for (id, output) in step.program.outputs().iter().zip(&outputs.values) {
            let value = step.program.value(*id);
            let bits = match output {
                OutputValue::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
                OutputValue::U32(values) => values.clone(),
            };
            for (row, bits) in bits.chunks_exact(value.width).enumerate() {
                let token = match value.rows {
                    RowSet::Tokens => row,
                    RowSet::Outputs => step.inputs.out_rows[row] as usize,
                };
                let earlier =
                    seen.entry((&value.label, step.row_keys[token])).or_insert_with(|| bits.to_vec());
                if earlier != bits {
                    return Some(value.label.clone());
                }
            }
        }
    }
    None
}
