//! Every kernel compiles for every checked architecture, without a GPU. Prints registers and spills of each.
//!
//! NVRTC must be there; a machine without it has to say so with `WORKER_ORCD_ALLOW_NO_NVRTC=1`, or the test fails.
//! `WORKER_ORCD_KERNELS=linear,moe` restricts the run to units whose name contains one of the words, and
//! `WORKER_ORCD_ARCHES=90a` to some architectures, while kernels are being written.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::arch::Arch;
use crate::kernels::{self, Unit};
use crate::module::Compiler;
use crate::nvrtc::{Nvrtc, NvrtcError};

/// What the assembler said of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Usage {
    kernel: String,
    registers: u32,
    spill_bytes: u32,
    stack_bytes: u32,
}

/// Reads `ptxas -v` messages.
fn usages(log: &str) -> Vec<Usage> {
    let mut found: Vec<Usage> = vec![];
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            found.push(Usage { kernel, ..Usage::default() });
        }
        let Some(last) = found.last_mut() else { continue };
        let before = |word: &str| {
            let head = line.split(word).next().filter(|head| head.len() < line.len())?;
            head.split_whitespace().last()?.parse::<u32>().ok()
        };
        last.stack_bytes = before(" bytes stack frame").unwrap_or(last.stack_bytes);
        let spills = before(" bytes spill stores").into_iter().chain(before(" bytes spill loads"));
        last.spill_bytes += spills.sum::<u32>();
        last.registers = before(" registers").unwrap_or(last.registers);
    }
    found
}

fn chosen(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |words| words.split(',').any(|word| name.contains(word)))
}

#[test]
fn every_kernel_compiles_for_every_checked_architecture() {
    let nvrtc = match Nvrtc::load() {
        Ok(nvrtc) => nvrtc,
        Err(error @ NvrtcError::Missing { .. })
            if std::env::var_os("WORKER_ORCD_ALLOW_NO_NVRTC").is_some() =>
        {
            println!("SKIPPED: no kernel was compiled: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    println!("NVRTC {}", nvrtc.version());
    let units: Vec<Unit> =
        kernels::units().into_iter().filter(|unit| chosen("WORKER_ORCD_KERNELS", &unit.name)).collect();
    let chosen_arches =
        || Arch::CHECKED.into_iter().filter(|arch| chosen("WORKER_ORCD_ARCHES", &arch.to_string()));
    let jobs: Vec<(&Unit, Arch)> = chosen_arches()
        .flat_map(|arch| units.iter().filter(move |unit| unit.supports(arch)).map(move |unit| (unit, arch)))
        .collect();
    assert!(!jobs.is_empty(), "no unit was chosen");
    let Report { mut lines, failures } = compile_all(&jobs);
    lines.sort();
    println!("{}", lines.join("\n"));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What compiling came to.
#[derive(Debug, Default)]
struct Report {
    /// One per kernel and architecture.
    lines: Vec<String>,
    /// What there is to complain of.
    failures: Vec<String>,
}

/// Compiles every job on all cores.
fn compile_all(jobs: &[(&Unit, Arch)]) -> Report {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut report = Report::default();
        while let Some((unit, arch)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            match Compiler::compile(unit, *arch, &["--ptxas-options=-v"]) {
                Ok((_, log)) => check(unit, *arch, &log, &mut report),
                Err(error) => report.failures.push(error.to_string()),
            }
        }
        report
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).fold(Report::default(), |mut all, report| {
            all.lines.extend(report.lines);
            all.failures.extend(report.failures);
            all
        })
    })
}

/// Whether a decode step of one to eight sequences of a shipped model runs the kernel: everything but the kernels for
/// more tokens, those that run at load time, and the formats no shipped model has.
fn is_hot(kernel: &str) -> bool {
    const WIDER: [&str; 9] = [
        "_stream16_",
        "_gated16_",
        "_twin16_",
        "_split16_",
        "_split32_",
        "_sweep_",
        "_group_",
        "attention_rows_",
        "repack_",
    ];
    const RARER: [&str; 6] = ["_q4_0", "_q4_1", "_q5_1", "_q2_k", "_q3_k", "_q5_k"];
    !WIDER.iter().any(|part| kernel.contains(part)) && !RARER.iter().any(|end| kernel.ends_with(end))
}

/// Notes each kernel's registers and spills; complains of warnings, of kernels the table does not have, and of spills
/// in the hot kernels of the reference device.
fn check(unit: &Unit, arch: Arch, log: &str, report: &mut Report) {
    let found = usages(log);
    for kernel in &unit.kernels {
        let Some(usage) = found.iter().find(|usage| usage.kernel == kernel.name) else {
            report
                .failures
                .push(format!("{} for {arch}: no kernel {} in {}", unit.name, kernel.name, unit.file));
            continue;
        };
        let Usage { registers, spill_bytes, stack_bytes, .. } = usage;
        report.lines.push(format!(
            "{:<7} {:<44} {registers:>3} registers {spill_bytes:>3} spilled {stack_bytes:>3} stack",
            arch.to_string(),
            kernel.name
        ));
        if *spill_bytes > 0 && arch.capability() == 90 && is_hot(&kernel.name) {
            report.failures.push(format!("{} for {arch} spills {spill_bytes} bytes", kernel.name));
        }
    }
    for usage in &found {
        if !unit.kernels.iter().any(|kernel| kernel.name == usage.kernel) {
            report.failures.push(format!("{}: {} is in no table", unit.file, usage.kernel));
        }
    }
    if log.contains("warning") {
        report.failures.push(format!("{} for {arch}: {log}", unit.name));
    }
}

#[test]
fn the_assembler_log_is_understood() {
    let log = "ptxas info    : 0 bytes gmem\n\
         ptxas info    : Compiling entry function 'add_f32' for 'sm_90a'\n\
         ptxas info    : Function properties for add_f32\n    \
         8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
         ptxas info    : Used 12 registers, used 0 barriers\n";
    let expected = Usage { kernel: "add_f32".to_owned(), registers: 12, spill_bytes: 16, stack_bytes: 8 };
    assert_eq!(usages(log), [expected]);
}
