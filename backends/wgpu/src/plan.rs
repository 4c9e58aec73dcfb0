//! Compiled programs: bind groups and uniforms built once, one compute pass per step, one readback.

use wgpu::BufferUsages as Use;
use worker_orcd_core::arena::{self, ArenaPlan};
use worker_orcd_core::{
    BackendError, Element, Op, OutputValue, Program, RowSet, StepInputs, StepOutputs, ValueId, WeightId,
    WeightSpec,
};

use crate::NAME;
use crate::cache::Cache;
use crate::fuse::{Work, fuse, unfused};
use crate::gpu::{Gpu, Mapping, Purpose};
use crate::inputs::InputsLayout;
use crate::lower::{Dispatch, Lowering, sample_scratch};
use crate::shader::ShaderCache;
use crate::weights::Weight;

/// Bytes per dispatch in the uniform buffer: the strictest offset alignment any device asks for.
const PARAMS_STRIDE: usize = 256;

/// Buffers the programs of one `compile` call share.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) arena: wgpu::Buffer,
    /// Written by the host, copied to `inputs` at the start of every step.
    staging: wgpu::Buffer,
    inputs: wgpu::Buffer,
    readback: wgpu::Buffer,
    /// One word per logit for `sample`.
    scratch: wgpu::Buffer,
    /// Whether `staging` may be written; it is mapped whenever no step is in flight.
    staging_mapping: Mapping,
    /// Host copy of the inputs.
    packed: Vec<u32>,
}

/// One recorded dispatch.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) workgroups: [u32; 3],
    /// Index of the plan's part it belongs to.
    pub(crate) part: usize,
}

/// One compiled program.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) program: Program,
    /// Index of its workspace.
    pub(crate) workspace: usize,
    /// What is done in one go, in order: labels of its nodes, joined by `+`.
    pub(crate) parts: Vec<String>,
    pub(crate) commands: Vec<Command>,
    places: ArenaPlan,
    inputs: InputsLayout,
    /// Bytes of uniform parameters.
    pub(crate) params_bytes: u64,
}

/// Actual counts of the step in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) tokens: usize,
    pub(crate) rows: usize,
}

impl Counts {
    pub(crate) fn of(inputs: &StepInputs<'_>) -> Self {
        Self { tokens: inputs.tokens.len(), rows: inputs.out_rows.len() }
    }
}

impl Workspace {
    /// Room for the largest of `programs` in every respect.
    pub(crate) fn create(
        gpu: &Gpu,
        programs: &[Program],
        cache: Option<&Cache>,
    ) -> Result<Self, BackendError> {
        let largest = |size: &dyn Fn(&Program) -> usize| programs.iter().map(size).max().unwrap_or(0) as u64;
        let layout = cache.map(|cache| &cache.layout);
        let arena_bytes = largest(&|program| places(program, gpu.fuses).bytes);
        let input_bytes = largest(&|program| InputsLayout::of(program, layout).words * 4);
        let output_bytes = largest(&|program| {
            let bytes = |&id: &ValueId| readback_stride(program.value(id).bytes(program.shape()) as u64);
            program.outputs().iter().map(bytes).sum::<u64>() as usize
        });
        let scratch_bytes = largest(&scratch_bytes);
        let arena_use = Use::STORAGE | Use::COPY_SRC | Use::COPY_DST;
        let work = |label, bytes, usage| gpu.buffer(Purpose::Workspace, label, bytes, usage);
        let workspace = Self {
            arena: gpu.buffer(Purpose::Activations, "arena", arena_bytes, arena_use)?,
            staging: work("step.staging", input_bytes, Use::MAP_WRITE | Use::COPY_SRC)?,
            inputs: work("step.inputs", input_bytes, Use::STORAGE | Use::COPY_DST)?,
            readback: work("step.readback", output_bytes, Use::MAP_READ | Use::COPY_DST)?,
            scratch: work("sample.scratch", scratch_bytes, Use::STORAGE)?,
            staging_mapping: Mapping::done(),
            packed: vec![0; input_bytes as usize / 4],
        };
        for buffer in [&workspace.inputs, &workspace.scratch] {
            if buffer.size() > gpu.max_binding() {
                let what = format!("{} bytes in one binding for step inputs or scratch", buffer.size());
                return Err(BackendError::Unsupported { backend: NAME, what });
            }
        }
        Ok(workspace)
    }

    /// Bytes besides the arena.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        [&self.staging, &self.inputs, &self.readback, &self.scratch].iter().map(|buffer| buffer.size()).sum()
    }

    /// Packs a step's inputs into the staging buffer and hands that to the device.
    fn stage(
        &mut self,
        gpu: &Gpu,
        layout: &InputsLayout,
        inputs: &StepInputs<'_>,
    ) -> Result<(), BackendError> {
        layout.pack(inputs, &mut self.packed);
        if !self.staging_mapping.is_done() && !gpu.mapped(&self.staging_mapping, "step inputs")? {
            // A step failed between handing the buffer over and mapping it again.
            self.staging_mapping = Gpu::map(&self.staging, wgpu::MapMode::Write);
            gpu.mapped(&self.staging_mapping, "step inputs")?;
        }
        let bytes = bytemuck::cast_slice(&self.packed[..layout.words]);
        let mut view = self
            .staging
            .get_mapped_range_mut(..bytes.len() as u64)
            .map_err(|error| execution("step inputs", error.to_string()))?;
        view.copy_from_slice(bytes);
        drop(view);
        self.staging_mapping.end();
        self.staging.unmap();
        Ok(())
    }
}

pub(crate) fn execution(label: &str, reason: String) -> BackendError {
    BackendError::Execution { label: label.to_owned(), reason }
}

/// Bytes an output takes in the readback buffer: mapped ranges start at multiples of eight.
const fn readback_stride(bytes: u64) -> u64 {
    bytes.next_multiple_of(wgpu::MAP_ALIGNMENT)
}

fn scratch_bytes(program: &Program) -> usize {
    let bytes = |op: &Op| match *op {
        Op::Sample { logits, .. } => {
            let value = program.value(logits);
            let (shape, vocab) = (program.shape(), value.width);
            sample_scratch(value.bytes(shape), value.max_rows(shape), vocab).0
        }
        _ => 0,
    };
    program.nodes().iter().map(|node| bytes(&node.op)).max().unwrap_or(0)
}

/// Where the values of `program` live. In fused steps of one token, whose dispatches read and write what several nodes
/// would, every value has a place of its own; they are small.
fn places(program: &Program, fused: bool) -> ArenaPlan {
    if program.shape().tokens != 1 || !fused {
        return arena::plan(program);
    }
    let mut bytes = 0;
    let mut take = |size: usize| {
        let at = bytes;
        bytes += size.next_multiple_of(arena::ALIGNMENT);
        at
    };
    let offsets = program.values().iter().map(|value| take(value.bytes(program.shape()))).collect();
    ArenaPlan { offsets, bytes }
}

/// A weight that lies in one slice.
fn whole_weight(weights: &[Weight], id: WeightId) -> Option<&WeightSpec> {
    let weight = weights.get(id.0 as usize)?;
    (weight.slices.len() == 1).then_some(&weight.spec)
}

fn label_of(program: &Program, work: &Work) -> String {
    let labels: Vec<&str> =
        work.nodes().into_iter().map(|index| program.nodes()[index].label.as_str()).collect();
    labels.join("+")
}

impl Plan {
    /// Builds pipelines, uniforms and bind groups for every node.
    pub(crate) fn compile(
        gpu: &Gpu,
        shaders: &mut ShaderCache,
        program: &Program,
        (workspace_index, workspace): (usize, &Workspace),
        weights: &[Weight],
        cache: Option<&Cache>,
    ) -> Result<Self, BackendError> {
        let places = places(program, gpu.fuses);
        let inputs = InputsLayout::of(program, cache.map(|cache| &cache.layout));
        let lowering = Lowering {
            program,
            weights,
            cache,
            arena: &workspace.arena,
            places: &places,
            scratch: &workspace.scratch,
            inputs: &inputs,
            fuses: gpu.fuses,
        };
        let works = if gpu.fuses { fuse(program, &|id| whole_weight(weights, id)) } else { unfused(program) };
        let (mut parts, mut dispatches) = (vec![], vec![]);
        for (part, work) in works.iter().enumerate() {
            let label = label_of(program, work);
            for dispatch in lowering.lower_work(work)? {
                check_limits(gpu, &label, &dispatch)?;
                dispatches.push((part, dispatch));
            }
            parts.push(label);
        }
        let params = upload_params(gpu, dispatches.iter().map(|(_, dispatch)| dispatch))?;
        let mut commands = vec![];
        for (slot, (part, dispatch)) in dispatches.into_iter().enumerate() {
            let writable: Vec<bool> = dispatch.bindings.iter().map(|binding| binding.writable).collect();
            let built = shaders.pipeline(gpu, &dispatch.kernel, &writable)?;
            let label = &parts[part];
            let bind_group = gpu.labelled(label, || {
                bind(gpu, label, &built.layout, (&params, slot), &workspace.inputs, &dispatch)
            })?;
            let workgroups = dispatch.workgroups.map(|count| count as u32);
            commands.push(Command { pipeline: built.pipeline, bind_group, workgroups, part });
        }
        Ok(Self {
            program: program.clone(),
            workspace: workspace_index,
            parts,
            commands,
            places,
            inputs,
            params_bytes: params.size(),
        })
    }

    /// Packs a step's inputs where the commands of [`Self::begin`] fetch them.
    pub(crate) fn stage(
        &self,
        gpu: &Gpu,
        workspace: &mut Workspace,
        inputs: &StepInputs<'_>,
    ) -> Result<(), BackendError> {
        workspace.stage(gpu, &self.inputs, inputs)
    }

    /// An encoder that has fetched the inputs of a step.
    pub(crate) fn begin(&self, gpu: &Gpu, workspace: &Workspace) -> wgpu::CommandEncoder {
        let descriptor = wgpu::CommandEncoderDescriptor { label: Some(self.program.name()) };
        let mut encoder = gpu.device.create_command_encoder(&descriptor);
        let bytes = self.inputs.words as u64 * 4;
        encoder.copy_buffer_to_buffer(&workspace.staging, 0, &workspace.inputs, 0, bytes);
        encoder
    }

    /// Appends copies of the declared outputs' actual rows to the readback buffer.
    pub(crate) fn copy_outputs(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        workspace: &Workspace,
        counts: Counts,
    ) {
        let mut at = 0;
        for &id in self.program.outputs() {
            let bytes = self.output_bytes(id, counts);
            if bytes > 0 {
                let from = self.places.offset(id) as u64;
                encoder.copy_buffer_to_buffer(&workspace.arena, from, &workspace.readback, at, bytes);
            }
            at += readback_stride(bytes);
        }
    }

    fn output_bytes(&self, id: ValueId, counts: Counts) -> u64 {
        let value = self.program.value(id);
        let rows = match value.rows {
            RowSet::Tokens => counts.tokens,
            RowSet::Outputs => counts.rows,
        };
        (rows * value.width * 4) as u64
    }

    /// Waits for the device and reads the declared outputs.
    pub(crate) fn finish(
        &self,
        gpu: &Gpu,
        workspace: &mut Workspace,
        counts: Counts,
        outputs: &mut StepOutputs,
    ) -> Result<(), BackendError> {
        let readable = Gpu::map(&workspace.readback, wgpu::MapMode::Read);
        workspace.staging_mapping = Gpu::map(&workspace.staging, wgpu::MapMode::Write);
        if !gpu.mapped(&readable, self.program.name())? {
            return Err(execution(self.program.name(), "the outputs could not be mapped".into()));
        }
        let read = self.read(workspace, counts, outputs);
        workspace.readback.unmap();
        read
    }

    fn read(
        &self,
        workspace: &Workspace,
        counts: Counts,
        outputs: &mut StepOutputs,
    ) -> Result<(), BackendError> {
        let declared = self.program.outputs();
        outputs.values.resize(declared.len(), OutputValue::F32(vec![]));
        let mut at = 0;
        for (value, &id) in outputs.values.iter_mut().zip(declared) {
            let bytes = self.output_bytes(id, counts);
            let view = if bytes == 0 {
                None
            } else {
                let mapped = workspace.readback.get_mapped_range(at..at + bytes);
                Some(mapped.map_err(|error| execution(self.program.name(), error.to_string()))?)
            };
            store(value, self.program.value(id).element, view.as_deref().unwrap_or(&[]));
            at += readback_stride(bytes);
        }
        Ok(())
    }
}

/// Refills an output buffer, keeping its allocation where the element type fits.
fn store(value: &mut OutputValue, element: Element, bytes: &[u8]) {
    match (&mut *value, element) {
        (OutputValue::F32(values), Element::F32) => {
            values.clear();
            values.extend(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>));
        }
        (OutputValue::U32(values), Element::U32) => {
            values.clear();
            values.extend(bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned::<u32>));
        }
        (_, Element::F32) => {
            *value = OutputValue::F32(vec![]);
            store(value, element, bytes);
        }
        (_, Element::U32) => {
            *value = OutputValue::U32(vec![]);
            store(value, element, bytes);
        }
    }
}

fn check_limits(gpu: &Gpu, label: &str, dispatch: &Dispatch<'_>) -> Result<(), BackendError> {
    let unsupported =
        |what: String| Err(BackendError::Unsupported { backend: NAME, what: format!("{label}: {what}") });
    let most = gpu.limits.max_compute_workgroups_per_dimension as usize;
    if dispatch.workgroups.iter().any(|&count| count > most) {
        return unsupported(format!("{:?} workgroups, at most {most} per dimension", dispatch.workgroups));
    }
    match dispatch.bindings.iter().find(|binding| binding.bytes > gpu.max_binding()) {
        Some(binding) => {
            unsupported(format!("{} bytes in one binding, at most {}", binding.bytes, gpu.max_binding()))
        }
        None => Ok(()),
    }
}

fn upload_params<'a, 'd: 'a>(
    gpu: &Gpu,
    dispatches: impl Iterator<Item = &'a Dispatch<'d>>,
) -> Result<wgpu::Buffer, BackendError> {
    let mut bytes: Vec<u8> = vec![];
    for dispatch in dispatches {
        let start = bytes.len();
        bytes.extend_from_slice(bytemuck::cast_slice(&dispatch.params));
        bytes.resize(start + PARAMS_STRIDE, 0);
    }
    let usage = Use::UNIFORM | Use::COPY_DST;
    let buffer = gpu.buffer(Purpose::Workspace, "params", bytes.len() as u64, usage)?;
    if !bytes.is_empty() {
        gpu.queue.write_buffer(&buffer, 0, &bytes);
    }
    Ok(buffer)
}

fn bind(
    gpu: &Gpu,
    label: &str,
    layout: &wgpu::BindGroupLayout,
    (params, slot): (&wgpu::Buffer, usize),
    inputs: &wgpu::Buffer,
    dispatch: &Dispatch<'_>,
) -> wgpu::BindGroup {
    let part = |buffer, offset, bytes| {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer,
            offset,
            size: std::num::NonZero::new(bytes),
        })
    };
    let params = part(params, (slot * PARAMS_STRIDE) as u64, PARAMS_STRIDE as u64);
    let mut entries = vec![
        wgpu::BindGroupEntry { binding: 0, resource: params },
        wgpu::BindGroupEntry { binding: 1, resource: inputs.as_entire_binding() },
    ];
    for (index, binding) in dispatch.bindings.iter().enumerate() {
        entries.push(wgpu::BindGroupEntry {
            binding: index as u32 + 2,
            resource: part(binding.buffer, binding.offset, binding.bytes),
        });
    }
    gpu.device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries })
}

/// Encodes some commands into a pass.
pub(crate) fn encode<'c>(pass: &mut wgpu::ComputePass<'_>, commands: impl Iterator<Item = &'c Command>) {
    for command in commands {
        let [x, y, z] = command.workgroups;
        pass.set_pipeline(&command.pipeline);
        pass.set_bind_group(0, &command.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}
