//! The kernels of one device: compiled on demand, loaded once, looked up by name, launched within their limits.

use std::collections::HashMap;

use worker_orcd_core::BackendError;

use crate::arch::Arch;
use crate::driver::{Function, Module, Stream, unavailable};
use crate::kernels::Unit;
use crate::launch::{KernelName, Launch};
use crate::module::{self, Compiler};

/// Every unit the device can run, and what is loaded of it.
#[derive(Debug)]
pub(crate) struct KernelSet {
    arch: Arch,
    /// What the device gives a CTA at most.
    max_shared_bytes: u32,
    compiler: Compiler,
    origin: String,
    units: Vec<Unit>,
    /// Which unit and which of its kernels a name means.
    names: HashMap<KernelName, (usize, usize)>,
    functions: HashMap<KernelName, Function>,
    /// By unit; after `functions`, which point into them.
    modules: HashMap<usize, Module>,
}

/// Turns a compiler error into the engine's.
fn compile_error(error: &crate::nvrtc::NvrtcError) -> BackendError {
    unavailable(error.to_string())
}

impl KernelSet {
    /// Finds the compiler and makes sure that the disk cache holds every unit of this architecture.
    ///
    /// `max_shared_bytes`: what the device gives a CTA at most.
    ///
    /// # Errors
    /// No compiler, or a kernel that does not compile.
    pub(crate) fn open(arch: Arch, max_shared_bytes: u32) -> Result<Self, BackendError> {
        let origin = Compiler::describe(arch).map_err(|error| compile_error(&error))?;
        let compiler = Compiler::open();
        let units = module::units_of(arch);
        compiler.fill_cache(&units, arch).map_err(|error| compile_error(&error))?;
        let mut names = HashMap::new();
        for (index, unit) in units.iter().enumerate() {
            for (kernel, entry) in unit.kernels.iter().enumerate() {
                names.insert(entry.name.clone(), (index, kernel));
            }
        }
        let (functions, modules) = (HashMap::new(), HashMap::new());
        Ok(Self { arch, max_shared_bytes, compiler, origin, units, names, functions, modules })
    }

    /// Where the kernels come from, for logs.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Loads every kernel the launches name, compiling what is missing in parallel.
    ///
    /// # Errors
    /// A kernel that does not exist or does not compile, or a driver error.
    pub(crate) fn prepare(&mut self, launches: &[Launch]) -> Result<(), BackendError> {
        let mut wanted: Vec<usize> = vec![];
        for launch in launches {
            let (unit, _) = self.find(launch)?;
            if !self.modules.contains_key(&unit) && !wanted.contains(&unit) {
                wanted.push(unit);
            }
        }
        let units: Vec<Unit> = wanted.iter().filter_map(|&index| self.units.get(index).cloned()).collect();
        let cubins = self.compiler.cubins(&units, self.arch).map_err(|error| compile_error(&error))?;
        for ((index, unit), cubin) in wanted.into_iter().zip(&units).zip(cubins) {
            let module = Module::load(&cubin).map_err(|error| error.at(&unit.name))?;
            for kernel in &unit.kernels {
                // Plans refuse launches that want more than the device has.
                let shared_bytes = kernel.max_shared_bytes.min(self.max_shared_bytes);
                let function = module.function(&kernel.name, shared_bytes);
                let function = function.map_err(|error| error.at(&kernel.name))?;
                self.functions.insert(kernel.name.clone(), function);
            }
            self.modules.insert(index, module);
        }
        Ok(())
    }

    /// The loaded kernel of a launch that is within the kernel's limits.
    ///
    /// # Errors
    /// A limit is broken, or the kernel was not prepared.
    pub(crate) fn function(&self, launch: &Launch) -> Result<Function, BackendError> {
        let (unit, kernel) = self.find(launch)?;
        let error = |reason: String| BackendError::Execution { label: launch.label.clone(), reason };
        let declared = self.units.get(unit).and_then(|unit| unit.kernels.get(kernel));
        let declared = declared.ok_or_else(|| error(format!("no kernel {}", launch.kernel)))?;
        launch.check(declared).map_err(error)?;
        let loaded = self.functions.get(&launch.kernel).copied();
        loaded.ok_or_else(|| error(format!("kernel {} was not loaded", launch.kernel)))
    }

    /// Runs one launch that is no part of a plan.
    ///
    /// # Errors
    /// As `prepare` and `function`, or a driver error.
    pub(crate) fn run(&mut self, launch: &Launch, stream: &Stream) -> Result<(), BackendError> {
        if !self.functions.contains_key(&launch.kernel) {
            self.prepare(std::slice::from_ref(launch))?;
        }
        self.function(launch)?.launch(stream, launch, false).map_err(|error| error.at(&launch.label))
    }

    fn find(&self, launch: &Launch) -> Result<(usize, usize), BackendError> {
        self.names.get(&launch.kernel).copied().ok_or_else(|| BackendError::Execution {
            label: launch.label.clone(),
            reason: format!("no kernel {} for {}", launch.kernel, self.arch),
        })
    }
}
