//! Every kernel compiles for every checked architecture, without a GPU. Prints registers and spills of each.
//!
//! NVRTC must be there; a machine without it has to say so with `WORKER_ORCD_ALLOW_NO_NVRTC=1`, or the test fails.
//! `WORKER_ORCD_KERNELS=linear,moe` restricts the run to units whose name contains one of the words, and
//! `WORKER_ORCD_ARCHES=90a` to some architectures, while kernels are being written.

use crate::arch::Arch;
use crate::kernels::{self, Unit};
use crate::module::Compiler;
use crate::nvrtc::NvrtcError;

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
    let compiler = match Compiler::open() {
        Ok(compiler) => compiler,
        Err(error @ NvrtcError::Missing { .. })
            if std::env::var_os("WORKER_ORCD_ALLOW_NO_NVRTC").is_some() =>
        {
            println!("SKIPPED: no kernel was compiled: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    println!("{}", compiler.describe());
    let units: Vec<Unit> =
        kernels::units().into_iter().filter(|unit| chosen("WORKER_ORCD_KERNELS", &unit.name)).collect();
    let mut failures = vec![];
    let mut compiled = 0;
    for arch in Arch::CHECKED.into_iter().filter(|arch| chosen("WORKER_ORCD_ARCHES", &arch.to_string())) {
        let jobs: Vec<&Unit> = units.iter().filter(|unit| unit.supports(arch)).collect();
        compiled += jobs.len();
        for (unit, result) in jobs.iter().zip(compile_all(&compiler, &jobs, arch)) {
            match result {
                Ok(log) => failures.extend(check(unit, arch, &log)),
                Err(error) => failures.push(error.to_string()),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compiled > 0, "no unit was chosen");
}

fn compile_all(compiler: &Compiler, units: &[&Unit], arch: Arch) -> Vec<Result<String, NvrtcError>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chunk = units.len().div_ceil(threads).max(1);
    let compile = |unit: &&Unit| Ok(compiler.compile(unit, arch, &["--ptxas-options=-v"])?.log);
    std::thread::scope(|scope| {
        let workers: Vec<_> = units
            .chunks(chunk)
            .map(|chunk| scope.spawn(move || chunk.iter().map(compile).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Prints each kernel's registers; complains of warnings, of kernels the table does not have, and of spills.
fn check(unit: &Unit, arch: Arch, log: &str) -> Vec<String> {
    let mut complaints = vec![];
    let found = usages(log);
    for kernel in &unit.kernels {
        let Some(usage) = found.iter().find(|usage| usage.kernel == kernel.name) else {
            complaints.push(format!("{} for {arch}: no kernel {} in {}", unit.name, kernel.name, unit.file));
            continue;
        };
        let Usage { registers, spill_bytes, stack_bytes, .. } = usage;
        println!(
            "{arch:>7} {:<44} {registers:>3} registers {spill_bytes:>3} spilled {stack_bytes:>3} stack",
            kernel.name
        );
        if *spill_bytes > 0 {
            complaints.push(format!("{} for {arch} spills {spill_bytes} bytes", kernel.name));
        }
    }
    for usage in &found {
        if !unit.kernels.iter().any(|kernel| kernel.name == usage.kernel) {
            complaints.push(format!("{}: {} is in no table", unit.file, usage.kernel));
        }
    }
    if log.contains("warning") {
        complaints.push(format!("{} for {arch}: {log}", unit.name));
    }
    complaints
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
