//! The `Backend` itself: what is uploaded, cached and compiled, and the one step in flight.

use std::sync::{Arc, Mutex, PoisonError};

use worker_orcd_core::{
    Backend, BackendError, Bandwidth, Caps, KvLayout, MemoryReport, PlanId, PlanProfile, Program, StepInputs,
    StepOutputs, WeightId, WeightSpec, step,
};

use crate::NAME;
use crate::adapter::{self, AdapterChoice, WgpuOptions};
use crate::bandwidth;
use crate::cache::Cache;
use crate::gpu::Gpu;
use crate::plan::{Counts, Plan, Workspace, encode, execution};
use crate::profile;
use crate::shader::ShaderCache;
use crate::weights::Weight;

/// One device opened through wgpu, with one model on it.
#[derive(Debug)]
pub struct WgpuBackend {
    gpu: Arc<Gpu>,
    caps: Caps,
    shaders: Arc<Mutex<ShaderCache>>,
    specs: Vec<WeightSpec>,
    weights: Vec<Weight>,
    cache: Option<Cache>,
    workspaces: Vec<Workspace>,
    plans: Vec<Plan>,
    in_flight: Option<(usize, Counts)>,
    /// Commands of another step like the last, encoded while that ran: most often the next is one, and then need not wait
    /// for the encoding.
    prepared: Option<((usize, Counts), wgpu::CommandBuffer)>,
}

impl WgpuBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when nothing matches, with what would help.
    pub fn open(choice: &AdapterChoice, options: &WgpuOptions) -> Result<Self, BackendError> {
        let (gpu, summary) = adapter::open(choice, options)?;
        let caps = Caps {
            device: summary.name,
            driver: format!("{} {}", summary.api, summary.driver).trim().to_owned(),
            kernel_set: "wgsl, f32 activations".into(),
            ..Caps::default()
        };
        Ok(Self::empty(Arc::new(gpu), caps, Arc::new(Mutex::new(ShaderCache::new(options)))))
    }

    fn empty(gpu: Arc<Gpu>, caps: Caps, shaders: Arc<Mutex<ShaderCache>>) -> Self {
        Self {
            gpu,
            caps,
            shaders,
            specs: vec![],
            weights: vec![],
            cache: None,
            workspaces: vec![],
            plans: vec![],
            in_flight: None,
            prepared: None,
        }
    }

    /// A backend without weights, cache or plans on the same device, sharing its compiled shaders. For tests, which
    /// want a fresh backend per case without opening a device and compiling shaders for each.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self::empty(Arc::clone(&self.gpu), self.caps.clone(), Arc::clone(&self.shaders))
    }

    /// Gives the device up, as a driver reset would: every later call reports [`BackendError::DeviceLost`]. For tests
    /// of what the layers above do then.
    pub fn lose_device(&self) {
        self.gpu.device.destroy();
    }

    fn plan(&self, id: PlanId) -> Result<usize, BackendError> {
        let index = id.0 as usize;
        if index < self.plans.len() {
            Ok(index)
        } else {
            Err(execution("submit", format!("no plan {index}")))
        }
    }

    /// Checks a step and puts its inputs where the plan's commands fetch them.
    fn stage(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<usize, BackendError> {
        self.gpu.check("submit")?;
        if self.in_flight.is_some() {
            return Err(execution("submit", "a step is in flight already".into()));
        }
        let index = self.plan(plan)?;
        let plan = &self.plans[index];
        let layout = self.cache.as_ref().map(|cache| &cache.layout);
        step::validate(&plan.program, layout, &self.specs, inputs)?;
        plan.stage(&self.gpu, &mut self.workspaces[plan.workspace], inputs)?;
        Ok(index)
    }

    /// The commands of any step of a plan with so many tokens and rows.
    fn encode(&self, (index, counts): (usize, Counts)) -> wgpu::CommandBuffer {
        let plan = &self.plans[index];
        let workspace = &self.workspaces[plan.workspace];
        let mut encoder = plan.begin(&self.gpu, workspace);
        encode(
            &mut encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()),
            plan.commands.iter(),
        );
        plan.copy_outputs(&mut encoder, workspace, counts);
        encoder.finish()
    }
}

impl Backend for WgpuBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError> {
        self.gpu.check(&spec.label)?;
        let weight = Weight::upload(&self.gpu, spec, chunks)?;
        self.weights.push(weight);
        self.specs.push(spec.clone());
        Ok(WeightId(self.weights.len() as u32 - 1))
    }

    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError> {
        self.gpu.check("create_kv")?;
        if self.cache.is_some() {
            return Err(BackendError::Unsupported { backend: NAME, what: "a second cache".into() });
        }
        self.cache = Some(Cache::create(&self.gpu, layout)?);
        Ok(())
    }

    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError> {
        self.gpu.check("compile")?;
        let layout = self.cache.as_ref().map(|cache| &cache.layout);
        for program in programs {
            program.check(&self.specs, layout)?;
        }
        let workspace = Workspace::create(&self.gpu, programs, self.cache.as_ref())?;
        let shared = (self.workspaces.len(), &workspace);
        let mut shaders = self.shaders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut plans = vec![];
        for program in programs {
            let cache = self.cache.as_ref();
            plans.push(Plan::compile(&self.gpu, &mut shaders, program, shared, &self.weights, cache)?);
        }
        drop(shaders);
        // Uploads and uniforms still pending reach the device now, so that the first step waits for nothing.
        self.gpu.flush("compile")?;
        let first = self.plans.len();
        self.workspaces.push(workspace);
        self.plans.extend(plans);
        Ok((first..self.plans.len()).map(|index| PlanId(index as u32)).collect())
    }

    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError> {
        let index = self.stage(plan, inputs)?;
        let step = (index, Counts::of(inputs));
        let prepared = self.prepared.take().filter(|(of, _)| *of == step);
        let commands = prepared.map_or_else(|| self.encode(step), |(_, commands)| commands);
        self.gpu.queue.submit([commands]);
        self.gpu.check(self.plans[index].program.name())?;
        self.in_flight = Some(step);
        self.prepared = Some((step, self.encode(step)));
        Ok(())
    }

    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError> {
        let (index, counts) =
            self.in_flight.take().ok_or_else(|| execution("wait", "no step is in flight".into()))?;
        let plan = &self.plans[index];
        plan.finish(&self.gpu, &mut self.workspaces[plan.workspace], counts, outputs)
    }

    fn memory(&self) -> MemoryReport {
        let cache = self.cache.as_ref();
        let params: u64 = self.plans.iter().map(|plan| plan.params_bytes).sum();
        MemoryReport {
            weights_bytes: self.weights.iter().map(Weight::device_bytes).sum(),
            kv_cache_bytes: cache.map_or(0, |cache| cache.buffers().map(wgpu::Buffer::size).sum()),
            activations_bytes: self.workspaces.iter().map(|workspace| workspace.arena.size()).sum(),
            workspace_bytes: params + self.workspaces.iter().map(Workspace::workspace_bytes).sum::<u64>(),
        }
    }

    /// Always holds as far as wgpu can tell: it allocates storage buffers in device-local memory and offers no way to
    /// ask a driver where they are.
    fn check_residency(&self) -> Result<(), BackendError> {
        self.gpu.check("check_residency")
    }

    fn profile(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<PlanProfile, BackendError> {
        let index = self.stage(plan, inputs)?;
        let plan = &self.plans[index];
        let encoder = plan.begin(&self.gpu, &self.workspaces[plan.workspace]);
        profile::run(&self.gpu, plan, encoder)
    }

    fn measure_bandwidth(&mut self) -> Result<Bandwidth, BackendError> {
        self.gpu.check("bandwidth")?;
        if self.in_flight.is_some() {
            return Err(execution("bandwidth", "a step is in flight".into()));
        }
        bandwidth::measure(&self.gpu)
    }

    fn poison(&mut self) -> Result<(), BackendError> {
        /// Two binary16 of 60000.
        const GARBAGE: u32 = 0x7b53_7b53;
        for workspace in &self.workspaces {
            self.gpu.fill(&workspace.arena, f32::NAN.to_bits())?;
        }
        for buffer in self.cache.iter().flat_map(Cache::buffers) {
            self.gpu.fill(buffer, GARBAGE)?;
        }
        Ok(())
    }
}
