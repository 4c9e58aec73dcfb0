//! A compiled program: checked launches, the CUDA graph made of them, and where inputs and outputs are.

use worker_orcd_core::arena::ArenaPlan;
use worker_orcd_core::{
    BackendError, Element, KvLayout, OutputValue, PlanProfile, ProfileEntry, Program, RowSet, StepInputs,
    StepOutputs,
};

use crate::driver::{BACKEND, Device, Event, Function, GraphExec, PinnedMemory, Stream};
use crate::inputs::InputLayout;
use crate::kernel_set::KernelSet;
use crate::launch::Launch;
use crate::lower::{self, COUNTER_BYTES, PlanBases, Target};
use crate::memory::Arena;

/// How plans run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// Replay a CUDA graph instead of launching kernel by kernel.
    pub graphs: bool,
    /// Let kernels start before their predecessor has ended, where the device can (9.0 and above).
    pub dependent_launch: bool,
    /// Wait after every kernel, so that an error names the node at fault. Slow; no graphs.
    pub wait_after_each: bool,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { graphs: true, dependent_launch: true, wait_after_each: false }
    }
}

/// Memory that the plans of one `compile` share; their steps never overlap.
#[derive(Debug)]
pub(crate) struct PlanMemory {
    bases: PlanBases,
    /// Bytes of the activations, which `poison` fills.
    activation_bytes: usize,
    scratch_bytes: usize,
}

/// What the plans of one `compile` need at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    activations: usize,
    inputs: usize,
    scratch: usize,
    outputs: usize,
}

impl Needs {
    fn of(program: &Program, target: Target<'_>, layout: &InputLayout) -> Result<Self, BackendError> {
        let lowered = lower::lower(program, layout, target, PlanBases::default())?;
        let shape = program.shape();
        Ok(Self {
            activations: lower::activation_plan(program).bytes,
            inputs: layout.bytes(),
            scratch: lowered.scratch_bytes,
            outputs: program.outputs().iter().map(|&id| program.value(id).bytes(shape)).sum(),
        })
    }

    /// What `programs`, compiled together, need.
    ///
    /// # Errors
    /// A program that cannot be lowered.
    pub(crate) fn of_all(
        programs: &[Program],
        kv: Option<&KvLayout>,
        target: Target<'_>,
    ) -> Result<Self, BackendError> {
        programs.iter().try_fold(Self::default(), |needs, program| {
            Ok(needs.max(Self::of(program, target, &InputLayout::of(program, kv))?))
        })
    }

    /// Bytes of the activations.
    pub(crate) const fn activations(&self) -> usize {
        self.activations
    }

    /// The ranges of the workspace: inputs, scratch, counters.
    pub(crate) const fn workspace(&self) -> [usize; 3] {
        [self.inputs, self.scratch, COUNTER_BYTES]
    }

    fn max(self, other: Self) -> Self {
        Self {
            activations: self.activations.max(other.activations),
            inputs: self.inputs.max(other.inputs),
            scratch: self.scratch.max(other.scratch),
            outputs: self.outputs.max(other.outputs),
        }
    }
}

/// The arenas a `compile` takes memory from.
#[derive(Debug)]
pub(crate) struct PlanArenas<'a> {
    /// For activations.
    pub(crate) activations: &'a mut Arena,
    /// For the rest.
    pub(crate) workspace: &'a mut Arena,
}

impl PlanMemory {
    /// Takes the memory that `programs` need, and reports how large the host's input and output buffers must be.
    ///
    /// # Errors
    /// No room, or a program that cannot be lowered.
    pub(crate) fn allocate(
        programs: &[Program],
        kv: Option<&KvLayout>,
        target: Target<'_>,
        (device, stream): (&Device, &Stream),
        arenas: &mut PlanArenas<'_>,
    ) -> Result<(Self, usize, usize), BackendError> {
        let needs = Needs::of_all(programs, kv, target)?;
        let activations = arenas.activations.place(device, stream, needs.activations)?;
        arenas.workspace.reserve(device, needs.workspace().into_iter())?;
        let [inputs, scratch, counters] = needs.workspace();
        let mut place = |bytes| arenas.workspace.place(device, stream, bytes);
        let (inputs, scratch, counters) = (place(inputs)?, place(scratch)?, place(counters)?);
        let bases = PlanBases { activations, inputs, scratch, counters };
        stream.fill(bases.counters, 0, COUNTER_BYTES).map_err(|error| error.at("workspace"))?;
        // A plan that is run before its first inputs have come finds no tokens.
        stream.fill(bases.inputs, 0, needs.inputs).map_err(|error| error.at("workspace"))?;
        let memory = Self { bases, activation_bytes: needs.activations, scratch_bytes: needs.scratch };
        Ok((memory, needs.inputs, needs.outputs))
    }

    /// Fills activations and scratch with NaN.
    ///
    /// # Errors
    /// A driver error.
    pub(crate) fn poison(&self, stream: &Stream) -> Result<(), BackendError> {
        let nan = f32::NAN.to_bits();
        let fill = |place, bytes| stream.fill(place, nan, bytes).map_err(|error| error.at("poison"));
        fill(self.bases.activations, self.activation_bytes)?;
        fill(self.bases.scratch, self.scratch_bytes)
    }
}

/// The rows a running step really has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepRows {
    tokens: usize,
    rows: usize,
}

impl StepRows {
    /// Of these inputs.
    pub(crate) const fn of(inputs: &StepInputs<'_>) -> Self {
        Self { tokens: inputs.tokens.len(), rows: inputs.out_rows.len() }
    }

    const fn count(self, rows: RowSet) -> usize {
        match rows {
            RowSet::Tokens => self.tokens,
            RowSet::Outputs => self.rows,
        }
    }
}

/// A compiled program.
#[derive(Debug)]
pub(crate) struct Plan {
    program: Program,
    layout: InputLayout,
    arena: ArenaPlan,
    bases: PlanBases,
    launches: Vec<(Function, Launch)>,
    graph: Option<GraphExec>,
    options: PlanOptions,
}

impl Plan {
    /// Lowers `program` for good, checks every launch, and captures the graph.
    ///
    /// # Errors
    /// A program or launch outside the limits, or a driver error.
    pub(crate) fn compile(
        program: &Program,
        memory: &PlanMemory,
        target: Target<'_>,
        (kernels, stream): (&mut KernelSet, &Stream),
        options: PlanOptions,
    ) -> Result<Self, BackendError> {
        let layout = InputLayout::of(program, target.kv.map(|pools| &pools.layout));
        let lowered = lower::lower(program, &layout, target, memory.bases)?;
        if let Some(launch) =
            lowered.launches.iter().find(|launch| launch.shared_bytes > target.traits.max_shared_bytes)
        {
            let (wanted, limit) = (launch.shared_bytes, target.traits.max_shared_bytes);
            let what =
                format!("{wanted} bytes of shared memory for {}: the device has {limit}", launch.kernel);
            return Err(BackendError::Unsupported { backend: BACKEND, what });
        }
        kernels.prepare(&lowered.launches)?;
        let launches = lowered.launches.into_iter().map(|launch| Ok((kernels.function(&launch)?, launch)));
        let launches = launches.collect::<Result<Vec<_>, BackendError>>()?;
        let dependent = options.dependent_launch && target.traits.arch.has_dependent_launch();
        let mut plan = Self {
            program: program.clone(),
            layout,
            arena: lower::activation_plan(program),
            bases: memory.bases,
            launches,
            graph: None,
            options: PlanOptions { dependent_launch: dependent, ..options },
        };
        if options.graphs && !options.wait_after_each && !plan.launches.is_empty() {
            let graph = stream.capture(|| {
                plan.launches
                    .iter()
                    .try_for_each(|(function, launch)| function.launch(stream, launch, dependent))
            });
            plan.graph = Some(graph.map_err(|error| error.at(program.name()))?);
        }
        Ok(plan)
    }

    /// The recording.
    pub(crate) const fn program(&self) -> &Program {
        &self.program
    }

    /// Sends a step's inputs and queues its kernels.
    ///
    /// # Errors
    /// Inputs beyond the plan's bounds, or a driver error.
    pub(crate) fn start(
        &self,
        inputs: &StepInputs<'_>,
        staging: &mut PinnedMemory,
        stream: &Stream,
    ) -> Result<(), BackendError> {
        self.send(inputs, staging, stream)?;
        match &self.graph {
            Some(graph) => graph.launch(stream).map_err(|error| error.at(self.program.name())),
            None => self.launch_each(stream),
        }
    }

    fn send(
        &self,
        inputs: &StepInputs<'_>,
        staging: &mut PinnedMemory,
        stream: &Stream,
    ) -> Result<(), BackendError> {
        let buffer = staging.bytes_mut().map_err(|error| error.at("step inputs"))?;
        let live = self.layout.pack(inputs, buffer)?;
        staging.copy_to_device(stream, 0..live, self.bases.inputs).map_err(|error| error.at("step inputs"))
    }

    fn launch_each(&self, stream: &Stream) -> Result<(), BackendError> {
        for (function, launch) in &self.launches {
            let launched = function.launch(stream, launch, self.options.dependent_launch);
            launched.map_err(|error| error.at(&launch.label))?;
            if self.options.wait_after_each {
                stream.synchronize().map_err(|error| error.at(&launch.label))?;
            }
        }
        Ok(())
    }

    /// Queues the read-back of the live rows of every declared output, packed one after the other.
    ///
    /// # Errors
    /// A driver error.
    pub(crate) fn read_back(
        &self,
        rows: StepRows,
        host: &mut PinnedMemory,
        stream: &Stream,
    ) -> Result<(), BackendError> {
        let mut start = 0;
        for &id in self.program.outputs() {
            let value = self.program.value(id);
            let end = start + rows.count(value.rows) * value.width * size_of::<u32>();
            let from = self.bases.activations.offset(self.arena.offset(id));
            host.copy_from_device(stream, from, start..end).map_err(|error| error.at(&value.label))?;
            start = end;
        }
        Ok(())
    }

    /// Waits for the step and hands out what `read_back` brought.
    ///
    /// # Errors
    /// A driver error, which a kernel of the step may have caused.
    pub(crate) fn finish(
        &self,
        rows: StepRows,
        host: &PinnedMemory,
        stream: &Stream,
        outputs: &mut StepOutputs,
    ) -> Result<(), BackendError> {
        let at = |error: crate::driver::DriverError| error.at(self.program.name());
        let declared = self.program.outputs();
        let bytes = host.bytes().map_err(at)?;
        if declared.iter().all(|&id| rows.count(self.program.value(id).rows) == 0) {
            // Nothing was copied, so nothing was waited for.
            stream.synchronize().map_err(at)?;
        }
        outputs.values.resize(declared.len(), OutputValue::F32(vec![]));
        let mut rest = bytes;
        for (output, &id) in outputs.values.iter_mut().zip(declared) {
            let value = self.program.value(id);
            let length = rows.count(value.rows) * value.width * size_of::<u32>();
            let (words, later) = rest.split_at(length.min(rest.len()));
            store(output, value.element, words);
            rest = later;
        }
        Ok(())
    }

    /// Runs the step once to warm up and once with a clock between its kernels, as one graph, so that no time of the
    /// host is in the figures. Launches of one label are summed. Dependent launch is off: stages do not overlap.
    ///
    /// # Errors
    /// As `start`.
    pub(crate) fn profile(
        &self,
        inputs: &StepInputs<'_>,
        staging: &mut PinnedMemory,
        stream: &Stream,
    ) -> Result<PlanProfile, BackendError> {
        let at = |error: crate::driver::DriverError| error.at(self.program.name());
        let events = (0..=self.launches.len()).map(|_| Event::create(true)).collect::<Result<Vec<_>, _>>();
        let events = events.map_err(at)?;
        let graph = stream.capture(|| {
            for ((function, launch), event) in self.launches.iter().zip(&events) {
                event.record_in_graph(stream)?;
                function.launch(stream, launch, false)?;
            }
            events.last().map_or(Ok(()), |event| event.record_in_graph(stream))
        });
        let graph = graph.map_err(at)?;
        self.send(inputs, staging, stream)?;
        for _ in 0..2 {
            graph.launch(stream).map_err(at)?;
            stream.synchronize().map_err(at)?;
        }
        let mut entries: Vec<ProfileEntry> = vec![];
        for ((_, launch), pair) in self.launches.iter().zip(events.windows(2)) {
            let [before, after] = pair else { continue };
            let time_us = after.microseconds_since(before).map_err(at)?;
            match entries.last_mut().filter(|last| last.label == launch.label) {
                Some(last) => last.time_us += time_us,
                None => entries.push(ProfileEntry { label: launch.label.clone(), time_us }),
            }
        }
        Ok(PlanProfile { entries })
    }
}

/// Copies words into an output, reusing its buffer when it is of the right kind.
fn store(output: &mut OutputValue, element: Element, words: &[u8]) {
    let values = words.chunks_exact(size_of::<u32>()).map(bytemuck::pod_read_unaligned::<u32>);
    match (output, element) {
        (OutputValue::F32(buffer), Element::F32) => {
            buffer.clear();
            buffer.extend(values.map(f32::from_bits));
        }
        (OutputValue::U32(buffer), Element::U32) => {
            buffer.clear();
            buffer.extend(values);
        }
        (other, Element::F32) => *other = OutputValue::F32(values.map(f32::from_bits).collect()),
        (other, Element::U32) => *other = OutputValue::U32(values.collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_keep_their_buffer_and_change_their_kind_when_they_must() {
        let words: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let mut output = OutputValue::F32(Vec::with_capacity(8));
        store(&mut output, Element::F32, &words);
        assert_eq!(output, OutputValue::F32(vec![1.5, -2.0]));
        assert!(matches!(&output, OutputValue::F32(values) if values.capacity() == 8));
        store(&mut output, Element::U32, &7_u32.to_le_bytes());
        assert_eq!(output, OutputValue::U32(vec![7]));
    }
}
