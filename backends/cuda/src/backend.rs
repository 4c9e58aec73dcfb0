//! `CudaBackend`: the contract of `worker-orcd-core`, kept on one NVIDIA GPU.

use worker_orcd_core::{
    Backend, BackendError, Bandwidth, Caps, KvElement, KvLayout, MemoryReport, PlanId, PlanProfile, Program,
    StepInputs, StepOutputs, WeightId, WeightSpec, step,
};

use crate::bandwidth;
use crate::driver::{self, Attribute, BACKEND, Device, DriverError, PinnedMemory, Residency, Stream};
use crate::kernel_set::KernelSet;
use crate::kv::KvPools;
use crate::layout::WeightLayout;
use crate::lower::{DeviceTraits, DeviceWeight, Target};
use crate::memory::{self, Allocation, Arena, Purpose};
use crate::plan::{Plan, PlanArenas, PlanMemory, PlanOptions, StepRows};
use crate::upload::Staging;

/// Lowest compute capability the kernels are written for.
const MINIMUM_CAPABILITY: u32 = 80;

/// Large but finite binary16 values, twice in a word: what a poisoned cache holds.
const KV_POISON: u32 = 0xFB00_7B00;

/// One GPU with one model on it.
///
/// Field order is drop order: what uses memory goes before the memory, everything before the device.
#[derive(Debug)]
pub struct CudaBackend {
    plans: Vec<Plan>,
    in_flight: Option<(usize, StepRows)>,
    kernels: KernelSet,
    staging: Option<Staging>,
    inputs_host: Option<PinnedMemory>,
    outputs_host: Option<PinnedMemory>,
    plan_memory: Vec<PlanMemory>,
    pools: Option<KvPools>,
    weights: Vec<DeviceWeight>,
    specs: Vec<WeightSpec>,
    arenas: Arenas,
    injected: Option<PinnedMemory>,
    stream: Stream,
    options: PlanOptions,
    traits: DeviceTraits,
    caps: Caps,
    device: Device,
}

#[derive(Debug)]
struct Arenas {
    weights: Arena,
    kv_cache: Arena,
    activations: Arena,
    workspace: Arena,
}

impl CudaBackend {
    /// Opens the device with this ordinal.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`]: no driver, no such device, one that is too old, or no run-time compiler.
    pub fn open(ordinal: usize) -> Result<Self, BackendError> {
        Self::open_with(ordinal, PlanOptions::default())
    }

    /// As [`Self::open`], with a say in how plans run.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(ordinal: usize, options: PlanOptions) -> Result<Self, BackendError> {
        let device = Device::open(ordinal)?;
        let failed = |error: DriverError| driver::unavailable(format!("device {ordinal}: {error}"));
        let arch = device.arch().map_err(failed)?;
        let name = device.name().map_err(failed)?;
        if arch.capability() < MINIMUM_CAPABILITY {
            return Err(driver::unavailable(format!(
                "{name} has compute capability {}.{}, {}.{} or above is needed",
                arch.capability() / 10,
                arch.capability() % 10,
                MINIMUM_CAPABILITY / 10,
                MINIMUM_CAPABILITY % 10
            )));
        }
        device.forbid_device_heap().map_err(failed)?;
        let shared = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let traits = DeviceTraits {
            arch,
            multiprocessors: device
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
                .map_err(failed)?,
            max_shared_bytes: device.attribute(shared).map_err(failed)?,
        };
        let kernels = KernelSet::open(arch, traits.max_shared_bytes)?;
        let stream = Stream::create().map_err(failed)?;
        let (free, total) = device.memory().map_err(failed)?;
        let caps = Caps {
            device: name,
            driver: format!("{}, {}", device.driver(), kernels.origin()),
            total_memory_bytes: total,
            free_memory_bytes: free,
            compute_capability: Some(arch.capability()),
            kv_f32: false,
            kernel_set: arch.kernel_set().to_owned(),
        };
        let arenas = Arenas {
            weights: Arena::new(Purpose::Weights),
            kv_cache: Arena::new(Purpose::KvCache),
            activations: Arena::new(Purpose::Activations),
            workspace: Arena::new(Purpose::Workspace),
        };
        Ok(Self {
            plans: vec![],
            in_flight: None,
            kernels,
            staging: None,
            inputs_host: None,
            outputs_host: None,
            plan_memory: vec![],
            pools: None,
            weights: vec![],
            specs: vec![],
            arenas,
            injected: None,
            stream,
            options,
            traits,
            caps,
            device,
        })
    }

    /// Number of CUDA devices.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`]: no usable driver.
    pub fn device_count() -> Result<usize, BackendError> {
        driver::device_count()
    }

    /// Puts a page of host memory among the allocations, so that the residency check has something to find: its test,
    /// and the worker's reaction to it, need one.
    ///
    /// # Errors
    /// A driver error.
    pub fn inject_residency_violation(&mut self) -> Result<(), BackendError> {
        self.bind()?;
        self.injected = Some(PinnedMemory::allocate(4096).map_err(|error| error.at("injected violation"))?);
        Ok(())
    }

    fn bind(&self) -> Result<(), BackendError> {
        self.device.bind().map_err(|error| error.at("context"))
    }

    fn kv_layout(&self) -> Option<&KvLayout> {
        self.pools.as_ref().map(|pools| &pools.layout)
    }

    fn allocations(&self) -> impl Iterator<Item = Allocation> {
        let Arenas { weights, kv_cache, activations, workspace } = &self.arenas;
        let staging = self.staging.iter().map(Staging::arena);
        let injected = self.injected.iter().map(|pinned| Allocation {
            purpose: Purpose::Weights,
            address: pinned.address(),
            bytes: pinned.len(),
        });
        [weights, kv_cache, activations, workspace]
            .into_iter()
            .chain(staging)
            .flat_map(Arena::allocations)
            .chain(injected)
    }

    /// The plan, if no step is in flight and the inputs keep its bounds.
    fn accept(&self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<&Plan, BackendError> {
        if self.in_flight.is_some() {
            return Err(execution("submit", "a step is in flight already"));
        }
        let plan = self.plans.get(plan.0 as usize).ok_or_else(|| execution("submit", "no such plan"))?;
        step::validate(plan.program(), self.kv_layout(), &self.specs, inputs)?;
        Ok(plan)
    }

    fn grow_host(buffer: &mut Option<PinnedMemory>, bytes: usize) -> Result<(), BackendError> {
        if buffer.as_ref().is_none_or(|held| held.len() < bytes) {
            *buffer = Some(PinnedMemory::allocate(bytes).map_err(|error| error.at("host buffers"))?);
        }
        Ok(())
    }
}

fn execution(label: &str, reason: &str) -> BackendError {
    BackendError::Execution { label: label.to_owned(), reason: reason.to_owned() }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn reserve_weights(&mut self, specs: &[WeightSpec]) -> Result<(), BackendError> {
        self.bind()?;
        let layouts = specs.iter().map(WeightLayout::of).collect::<Result<Vec<_>, _>>()?;
        self.arenas.weights.reserve(&self.device, layouts.iter().map(WeightLayout::bytes))
    }

    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        self.bind()?;
        let layout = WeightLayout::of(spec)?;
        let address = self.arenas.weights.place(&self.device, &self.stream, layout.bytes())?;
        let staging = match &mut self.staging {
            Some(staging) => staging,
            None => self.staging.insert(Staging::allocate(&self.device, &self.stream)?),
        };
        let weight = DeviceWeight { spec: spec.clone(), address, layout };
        staging.upload(&weight, chunks, &self.stream, &mut self.kernels)?;
        self.weights.push(weight);
        self.specs.push(spec.clone());
        Ok(WeightId(self.specs.len() as u32 - 1))
    }

    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.bind()?;
        let unsupported = |what: &str| BackendError::Unsupported { backend: BACKEND, what: what.to_owned() };
        if self.pools.is_some() {
            return Err(unsupported("a second cache"));
        }
        if layout.element != KvElement::F16 {
            return Err(unsupported("a cache of 32-bit floats"));
        }
        // An overflowing size is asked for as the largest there is, and refused by the driver like any other.
        let bytes = KvPools::bytes(layout).unwrap_or(usize::MAX);
        let base = self.arenas.kv_cache.place(&self.device, &self.stream, bytes)?;
        self.stream.fill(base, 0, bytes).map_err(|error| error.at("kv_cache"))?;
        self.pools = Some(KvPools { layout: layout.clone(), base });
        Ok(())
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        self.bind()?;
        for program in programs {
            program.check(&self.specs, self.kv_layout())?;
        }
        // Uploads are over: what they staged with is given back before plans take their memory.
        self.stream.synchronize().map_err(|error| error.at("upload"))?;
        self.staging = None;
        let target = Target { traits: self.traits, weights: &self.weights, kv: self.pools.as_ref() };
        let mut arenas =
            PlanArenas { activations: &mut self.arenas.activations, workspace: &mut self.arenas.workspace };
        let layout = self.pools.as_ref().map(|pools| &pools.layout);
        let place = (&self.device, &self.stream);
        let (memory, inputs, outputs) = PlanMemory::allocate(programs, layout, target, place, &mut arenas)?;
        Self::grow_host(&mut self.inputs_host, inputs)?;
        Self::grow_host(&mut self.outputs_host, outputs)?;
        let mut plans = vec![];
        for program in programs {
            let tools = (&mut self.kernels, &self.stream);
            plans.push(Plan::compile(program, &memory, target, tools, self.options)?);
        }
        self.stream.synchronize().map_err(|error| error.at("compile"))?;
        let first = self.plans.len();
        self.plans.extend(plans);
        self.plan_memory.push(memory);
        Ok((first..self.plans.len()).map(|index| PlanId(index as u32)).collect())
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        self.bind()?;
        self.accept(plan, inputs)?;
        let (Some(plan_at), Some(to), Some(from)) =
            (self.plans.get(plan.0 as usize), self.inputs_host.as_mut(), self.outputs_host.as_mut())
        else {
            return Err(execution("submit", "no such plan"));
        };
        let rows = StepRows::of(inputs);
        plan_at.start(inputs, to, &self.stream)?;
        plan_at.read_back(rows, from, &self.stream)?;
        self.in_flight = Some((plan.0 as usize, rows));
        Ok(())
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        self.bind()?;
        let none = || execution("wait", "no step is in flight");
        let (plan, rows) = self.in_flight.take().ok_or_else(none)?;
        let plan = self.plans.get(plan).ok_or_else(none)?;
        let host = self.outputs_host.as_ref().ok_or_else(none)?;
        plan.finish(rows, host, &self.stream, outputs)
    }

    fn memory(&self) -> MemoryReport {
        let staging = self.staging.as_ref().map_or(0, |staging| staging.arena().bytes());
        MemoryReport {
            weights_bytes: self.arenas.weights.bytes(),
            kv_cache_bytes: self.arenas.kv_cache.bytes(),
            activations_bytes: self.arenas.activations.bytes(),
            workspace_bytes: self.arenas.workspace.bytes() + staging,
        }
    }

    fn check_residency(&self) -> Result<(), BackendError> {
        self.bind()?;
        memory::check_residency(self.allocations(), self.device.ordinal(), Residency::of)?;
        let Arenas { weights, kv_cache, activations, workspace } = &self.arenas;
        [weights, kv_cache, activations, workspace]
            .into_iter()
            .try_for_each(|arena| arena.check_guards(&self.stream))
    }

    fn profile(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        self.bind()?;
        self.accept(plan, inputs)?;
        let (Some(plan), Some(to)) = (self.plans.get(plan.0 as usize), self.inputs_host.as_mut()) else {
            return Err(execution("profile", "no such plan"));
        };
        plan.profile(inputs, to, &self.stream)
    }

    fn measure_bandwidth(&mut self) -> Result<Bandwidth, BackendError> {
        self.bind()?;
        if self.in_flight.is_some() {
            return Err(execution("bandwidth", "a step is in flight"));
        }
        bandwidth::measure(&self.device, &self.stream)
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        self.bind()?;
        for memory in &self.plan_memory {
            memory.poison(&self.stream)?;
        }
        if let Some(KvPools { layout, base }) = &self.pools {
            let bytes = KvPools::bytes(layout).unwrap_or(0);
            self.stream.fill(*base, KV_POISON, bytes).map_err(|error| error.at("poison"))?;
        }
        self.stream.synchronize().map_err(|error| error.at("poison"))
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // The fields free themselves in this context. Errors have nowhere to go.
        let _ = self.device.bind();
        let _ = self.stream.synchronize();
    }
}
