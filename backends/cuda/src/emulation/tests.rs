//! The conformance table on the emulated machine, and every shape of its kernels against every other.

use std::process::Command;

use worker_orcd_core::conformance::{cases, run_case_within};

use super::*;

/// Whether there is a compiler; says so when there is none and that is allowed.
fn compiler_is_there() -> bool {
    if Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return true;
    }
    assert!(
        std::env::var_os("WORKER_ORCD_ALLOW_NO_CXX").is_some(),
        "no C++ compiler to emulate kernels with"
    );
    println!("SKIPPED: no C++ compiler: no kernel was emulated");
    false
}

fn conformance(stem: &str) {
    if !compiler_is_there() {
        return;
    }
    let only = std::env::var("WORKER_ORCD_CASES").unwrap_or_default();
    let prefix = format!("{stem}(");
    let factory = || Ok(Box::new(EmulatedBackend::new()) as Box<dyn Backend>);
    let mut failures = vec![];
    let chosen = cases()
        .unwrap()
        .into_iter()
        .filter(|case| case.name.starts_with(&prefix) && case.name.contains(&only));
    for case in chosen {
        match run_case_within(&factory, &case, crate::least_nmse(stem)) {
            Ok(outcome) => {
                println!("{:<70} nmse {:.2e} of {:.0e}", case.name, outcome.worst_nmse, case.tolerance.nmse);
                failures.extend(
                    outcome
                        .batch_dependent
                        .map(|label| format!("{}: {label} depends on the batch", case.name)),
                );
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! conformance_tests {
    ($($stem:ident)*) => {
        $(#[test] fn $stem() { conformance(stringify!($stem)); })*
    };
}

conformance_tests! {
    embed position_embed rms_norm layer_norm linear add rope kv_write attention swiglu gelu router moe_linear
    moe_combine gather_rows sample block
}

/// Shapes of kernels that must agree, on a machine of any size.
fn agree(check: fn(agreement::Open<'_>, &[usize])) {
    if !compiler_is_there() {
        return;
    }
    let open = |multiprocessors| {
        let mut backend = EmulatedBackend::new();
        backend.traits.multiprocessors = multiprocessors;
        // Small devices have little memory for a CTA, the smallest none to speak of.
        backend.traits.max_shared_bytes = match multiprocessors {
            1 => 48 << 10,
            2 => 99 << 10,
            _ => 227 << 10,
        };
        Box::new(backend) as Box<dyn Backend>
    };
    check(&open, &[]);
}

agreement::agreement_tests!(super::agree);
