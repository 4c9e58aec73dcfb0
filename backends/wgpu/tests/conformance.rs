//! The conformance table on whatever adapter is found, software ones included: every operation, every storage format,
//! every place a weight can take, and no result that depends on the batch around it.
//!
//! `CONFORMANCE=linear` limits the run to cases whose name contains the text. lavapipe's vector width is taken from
//! `LP_NATIVE_VECTOR_WIDTH` (128, 256, 512) by the driver itself.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops by panicking and says what it skips"
)]

mod device;

use worker_orcd_core::Backend;
use worker_orcd_core::conformance::{Case, cases, run_case};
use worker_orcd_wgpu::WgpuOptions;

fn chosen() -> Vec<Case> {
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let mut cases = cases().expect("the table records");
    cases.retain(|case| case.name.contains(&filter));
    cases
}

/// Runs `cases`, every failure told at the end.
fn run(cases: &[Case], options: &WgpuOptions) {
    let Some(device) = device::open(options) else { return };
    let mut failures = vec![];
    for case in cases {
        let open = || Ok(Box::new(device.sibling()) as Box<dyn Backend>);
        match run_case(&open, case) {
            Ok(outcome) => {
                if let Some(label) = outcome.batch_dependent {
                    failures.push(format!("{}: {label} depends on the batch", case.name));
                }
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn every_case_agrees_with_the_reference() {
    let cases = chosen();
    assert!(!cases.is_empty(), "CONFORMANCE matches no case");
    run(&cases, &WgpuOptions::default());
}

#[test]
fn matrices_agree_in_slices() {
    // A few rows: every matrix of the table falls apart, some in the middle of an expert.
    const SLICE_BYTES: u64 = 6 << 10;
    let mut cases = chosen();
    cases.retain(|case| {
        ["embed", "position_embed", "linear", "moe_linear"].iter().any(|stem| case.name.starts_with(stem))
    });
    run(&cases, &WgpuOptions { max_slice_bytes: Some(SLICE_BYTES), ..WgpuOptions::default() });
}

#[test]
fn single_tokens_agree_when_fused() {
    let mut cases = chosen();
    cases.retain(|case| {
        ["attention", "linear"].iter().any(|stem| case.name.starts_with(stem))
            && case.steps.iter().any(|step| step.program.shape().tokens == 1)
    });
    run(&cases, &WgpuOptions { fused: Some(true), ..WgpuOptions::default() });
}
