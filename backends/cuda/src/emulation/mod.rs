//! The kernels on the host: their very source, compiled by the system's C++ compiler over a small machine that runs CTAs
//! thread by thread (`machine.hpp`), behind the real lowering, layouts and input packing.
//!
//! It shows without a GPU that indexing, masking, barriers, reductions, repacking and sampling are right. It does not
//! show what only a device can: its rounding inside tensor cores, memory ordering, and speed.
//! Without a C++ compiler the tests fail, unless `WORKER_ORCD_ALLOW_NO_CXX=1` says that this is known.
#![allow(unsafe_code, reason = "calls into the compiled kernels")]

#[path = "../../tests/agreement/mod.rs"]
mod agreement;
mod tests;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use libloading::Library;
use sha2::{Digest, Sha256};
use worker_orcd_core::{
    Backend, BackendError, Caps, Element, KvLayout, MemoryReport, OutputValue, PlanId, PlanProfile, Program,
    RowSet, StepInputs, StepOutputs, WeightId, WeightSpec, step,
};

use crate::arch::Arch;
use crate::inputs::InputLayout;
use crate::kernels::{self, HEADERS, Kernel, Unit};
use crate::kv::KvPools;
use crate::launch::{DevicePtr, Launch};
use crate::layout::WeightLayout;
use crate::lower::{self, COUNTER_BYTES, DeviceTraits, DeviceWeight, Lowered, PlanBases, Target};

const MACHINE: &str = include_str!("machine.hpp");

type Emulated = unsafe extern "C" fn(*const c_void, *const u32, *const u32) -> *const c_char;

/// Compiled units, by name; the machine has one set of globals per unit, so launches take turns.
static UNITS: Mutex<Option<HashMap<String, Library>>> = Mutex::new(None);

/// Memory that stands for the device's.
#[derive(Debug, Default)]
struct Memory {
    blocks: Vec<Vec<u128>>,
}

/// What new memory holds: NaN as floats.
const POISON: u128 = 0x7FC0_0001_7FC0_0001_7FC0_0001_7FC0_0001;

impl Memory {
    /// Memory of at least `bytes`, 256-byte aligned, never moved.
    fn allocate(&mut self, bytes: usize) -> DevicePtr {
        let block = vec![POISON; bytes / 16 + 33];
        let address = (block.as_ptr() as u64).next_multiple_of(256);
        self.blocks.push(block);
        DevicePtr(address)
    }
}

fn bytes_at<'a>(at: DevicePtr, bytes: usize) -> &'a mut [u8] {
    // SAFETY: only called with ranges inside `Memory`'s blocks, by one thread at a time.
    unsafe { std::slice::from_raw_parts_mut(at.0 as *mut u8, bytes) }
}

/// Flags of the compiler; products and sums stay apart, as the explicit intrinsics ask.
const FLAGS: &[&str] = &[
    "-x",
    "c++",
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-shared",
    "-w",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-DHOST_EMULATION",
    "-D__CUDA_ARCH__=900",
];

/// Compiles a unit to a shared library, unless an earlier run did.
fn compile(unit: &Unit) -> PathBuf {
    let folder = std::env::current_exe().unwrap().with_file_name("emulation");
    std::fs::create_dir_all(folder.join("common")).unwrap();
    let mut hash = Sha256::new();
    let mut text = format!("{MACHINE}\n");
    for (name, header) in HEADERS {
        hash.update(name);
        hash.update(header);
    }
    text.push_str(unit.source);
    let mut defines: Vec<String> =
        unit.defines.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
    defines.extend(
        unit.kernels.iter().map(|kernel| format!("-DARGS_BYTES_{}={}", kernel.name, kernel.args_bytes)),
    );
    hash.update(&text);
    hash.update(format!("{defines:?}{FLAGS:?}"));
    let key = crate::module::hex(&hash.finalize(), 8);
    let library = folder.join(format!("{}-{key}.so", unit.name));
    if library.exists() {
        return library;
    }
    let sources = folder.join(format!("{}-{key}", unit.name));
    std::fs::create_dir_all(sources.join("common")).unwrap();
    for (name, header) in HEADERS {
        std::fs::write(sources.join(name), header).unwrap();
    }
    let source = sources.join("unit.cpp");
    std::fs::write(&source, text).unwrap();
    let draft = library.with_extension("draft");
    let output = Command::new("c++")
        .args(FLAGS)
        .args(&defines)
        .arg("-I")
        .arg(&sources)
        .arg(&source)
        .arg("-o")
        .arg(&draft)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", unit.name, String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&draft, &library).unwrap();
    library
}

/// Runs a launch to its end.
fn run(unit: &Unit, launch: &Launch) {
    let mut units = UNITS.lock().unwrap_or_else(PoisonError::into_inner);
    let units = units.get_or_insert_with(HashMap::new);
    let library = units.entry(unit.name.clone()).or_insert_with(|| {
        // SAFETY: the library was compiled from this repository's own source and has no initialisers.
        unsafe { Library::new(compile(unit)) }.unwrap()
    });
    let symbol = format!("emulate_{}", launch.kernel);
    // SAFETY: every kernel's entry has this type, by the machine's KERNEL macro.
    let entry = unsafe { library.get::<Emulated>(symbol.as_bytes()) }.unwrap();
    // Aligned as the kernel's structure is.
    let mut args = vec![0_u128; launch.args.len().div_ceil(16)];
    bytemuck::cast_slice_mut::<u128, u8>(&mut args)[..launch.args.len()].copy_from_slice(&launch.args);
    // SAFETY: the arguments have the size the kernel asserts and point into `Memory`; grid and block are arrays of 3.
    let fault = unsafe { entry(args.as_ptr().cast(), launch.grid.as_ptr(), launch.block.as_ptr()) };
    if !fault.is_null() {
        // SAFETY: a NUL-terminated string of the library, which stays loaded.
        let fault = unsafe { CStr::from_ptr(fault) }.to_string_lossy();
        panic!("{} ({}): {fault}", launch.label, launch.kernel);
    }
}

/// A backend on the emulated machine.
struct EmulatedBackend {
    caps: Caps,
    traits: DeviceTraits,
    units: Vec<Unit>,
    memory: Memory,
    specs: Vec<WeightSpec>,
    weights: Vec<DeviceWeight>,
    pools: Option<KvPools>,
    plans: Vec<(Program, InputLayout, PlanBases, Lowered)>,
    in_flight: Option<(usize, usize, usize)>,
}

impl EmulatedBackend {
    fn new() -> Self {
        let traits = DeviceTraits { arch: Arch::of(90), multiprocessors: 132, max_shared_bytes: 232_448 };
        Self {
            caps: Caps::default(),
            traits,
            units: kernels::units(),
            memory: Memory::default(),
            specs: vec![],
            weights: vec![],
            pools: None,
            plans: vec![],
            in_flight: None,
        }
    }

    fn launch(&self, launch: &Launch) {
        let holds = |unit: &&Unit| unit.kernels.iter().any(|kernel: &Kernel| kernel.name == launch.kernel);
        let unit = self.units.iter().find(holds).unwrap_or_else(|| panic!("no kernel {}", launch.kernel));
        let kernel = unit.kernels.iter().find(|kernel| kernel.name == launch.kernel).unwrap();
        launch.check(kernel).unwrap();
        run(unit, launch);
    }
}

impl Backend for EmulatedBackend {
    fn name(&self) -> &'static str {
        "emulated"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        let stored: Vec<u8> = chunks.flatten().copied().collect();
        let layout = WeightLayout::of(spec)?;
        let address = self.memory.allocate(layout.bytes());
        let source = self.memory.allocate(stored.len());
        bytes_at(source, stored.len()).copy_from_slice(&stored);
        // In pieces of one granule, the hardest case.
        let granule = layout.row_granule();
        let row_bytes = spec.row_bytes().unwrap();
        for expert in 0..spec.experts {
            for first in (0..spec.rows).step_by(granule) {
                let (row, rows) = (expert * spec.rows + first, granule.min(spec.rows - first));
                match layout.repack(spec, source.offset(row * row_bytes), address, row, rows) {
                    Some(launch) => self.launch(&launch),
                    None => bytes_at(address.offset(row * row_bytes), rows * row_bytes)
                        .copy_from_slice(bytes_at(source.offset(row * row_bytes), rows * row_bytes)),
                }
            }
        }
        self.specs.push(spec.clone());
        self.weights.push(DeviceWeight { spec: spec.clone(), address, layout });
        Ok(WeightId(self.specs.len() as u32 - 1))
    }

    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        let bytes = KvPools::bytes(layout).unwrap();
        let base = self.memory.allocate(bytes);
        // Large but finite, as the contract of `poison` has it.
        bytemuck::cast_slice_mut::<u8, u16>(bytes_at(base, bytes)).fill(0xFB00);
        self.pools = Some(KvPools { layout: layout.clone(), base });
        Ok(())
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        for program in programs {
            let inputs = InputLayout::of(program, self.pools.as_ref().map(|pools| &pools.layout));
            let target = Target { traits: self.traits, weights: &self.weights, kv: self.pools.as_ref() };
            let needs = lower::lower(program, &inputs, target, PlanBases::default())?;
            let bases = PlanBases {
                activations: self.memory.allocate(lower::activation_plan(program).bytes),
                inputs: self.memory.allocate(inputs.bytes()),
                scratch: self.memory.allocate(needs.scratch_bytes),
                counters: self.memory.allocate(COUNTER_BYTES),
            };
            bytes_at(bases.counters, COUNTER_BYTES).fill(0);
            let target = Target { traits: self.traits, weights: &self.weights, kv: self.pools.as_ref() };
            let lowered = lower::lower(program, &inputs, target, bases)?;
            self.plans.push((program.clone(), inputs, bases, lowered));
        }
        Ok((self.plans.len() - programs.len()..self.plans.len()).map(|index| PlanId(index as u32)).collect())
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        let (program, layout, bases, lowered) = &self.plans[plan.0 as usize];
        step::validate(program, self.pools.as_ref().map(|pools| &pools.layout), &self.specs, inputs)?;
        layout.pack(inputs, bytes_at(bases.inputs, layout.bytes()))?;
        for launch in &lowered.launches {
            self.launch(launch);
        }
        let counters = bytes_at(bases.counters, COUNTER_BYTES);
        assert!(counters.iter().all(|&byte| byte == 0), "a kernel left its counters standing");
        self.in_flight = Some((plan.0 as usize, inputs.tokens.len(), inputs.out_rows.len()));
        Ok(())
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        let (plan, tokens, rows) = self.in_flight.take().unwrap();
        let (program, _, bases, _) = &self.plans[plan];
        let arena = lower::activation_plan(program);
        outputs.values.clear();
        for &id in program.outputs() {
            let value = program.value(id);
            let count = if value.rows == RowSet::Tokens { tokens } else { rows };
            let words = bytes_at(bases.activations.offset(arena.offset(id)), count * value.width * 4);
            outputs.values.push(match value.element {
                Element::F32 => OutputValue::F32(bytemuck::cast_slice(words).to_vec()),
                Element::U32 => OutputValue::U32(bytemuck::cast_slice(words).to_vec()),
            });
        }
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        MemoryReport::default()
    }

    fn check_residency(&self) -> Result<(), BackendError> {
        Ok(())
    }

    fn profile(&mut self, _: PlanId, _: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        Ok(PlanProfile::default())
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        // Memory is allocated poisoned.
        Ok(())
    }
}
