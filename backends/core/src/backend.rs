//! The contract between the engine and a device.

use crate::kv::KvLayout;
use crate::program::Program;
use crate::step::{StepInputs, StepOutputs};
use crate::weight::{WeightId, WeightSpec};

/// A compiled program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanId(pub u32);

/// What the device is and can do.
#[derive(Clone, Debug, Default)]
pub struct Caps {
    /// Device name as its driver tells it.
    pub device: String,
    /// Driver and API, for logs and `/health`.
    pub driver: String,
    /// Device memory in bytes; 0 when the API does not tell.
    pub total_memory_bytes: u64,
    /// Free device memory at open; 0 when the API does not tell.
    pub free_memory_bytes: u64,
    /// CUDA compute capability as `major * 10 + minor`.
    pub compute_capability: Option<u32>,
    /// Whether the cache may hold [`crate::kv::KvElement::F32`].
    pub kv_f32: bool,
    /// Which kernel set was chosen, in words.
    pub kernel_set: String,
}

/// Device bytes by purpose, as accounted by the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryReport {
    /// Weights in their stored quantisation.
    pub weights_bytes: u64,
    /// Key/value cache.
    pub kv_cache_bytes: u64,
    /// Activation arenas.
    pub activations_bytes: u64,
    /// Step inputs, outputs, staging, scratch.
    pub workspace_bytes: u64,
}

impl MemoryReport {
    /// The sum of all purposes.
    pub const fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.workspace_bytes
    }
}

/// Time of one labelled part of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileEntry {
    /// Label of the node, or of the fused nodes joined by `+`.
    pub label: String,
    /// Device time.
    pub time_us: f64,
}

/// Where the time of one step goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanProfile {
    /// In execution order.
    pub entries: Vec<ProfileEntry>,
}

/// How fast a device moves bytes in plain copies: what results are compared with.
///
/// A step that reads weights is bound by reading. A copy reads and writes, and memory takes both at about the same speed,
/// so the sum of both is a fair measure of the limit; a kernel that only reads may come a little above it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bandwidth {
    /// Bytes read and bytes written together, per second, of a copy inside the device's memory; `None` when not known.
    pub copy_bytes_per_second: Option<f64>,
    /// Bytes per second from the host's memory, page-locked where the API has that, to the device's; `None` when not
    /// known.
    pub upload_bytes_per_second: Option<f64>,
}

/// Everything that can go wrong on a device.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No such device, driver or loader.
    #[error("{backend}: {reason}")]
    Unavailable {
        /// Backend name.
        backend: &'static str,
        /// Why, and what would help.
        reason: String,
    },
    /// The device has no room.
    #[error(
        "out of device memory for {purpose}: {requested_bytes} bytes requested, {available_bytes} available"
    )]
    OutOfMemory {
        /// weights, kv_cache, activations or workspace.
        purpose: &'static str,
        /// Asked for.
        requested_bytes: u64,
        /// Left, 0 when the API does not tell.
        available_bytes: u64,
    },
    /// The device is gone; the process cannot serve any more.
    #[error("device lost: {reason}")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// The backend cannot do this.
    #[error("{backend} does not support {what}")]
    Unsupported {
        /// Backend name.
        backend: &'static str,
        /// What was asked.
        what: String,
    },
    /// A weight's bytes do not fit its spec.
    #[error("weight {label}: {reason}")]
    Weight {
        /// The weight.
        label: String,
        /// Rule broken.
        reason: String,
    },
    /// A program breaks a rule.
    #[error("node {label}: {reason}")]
    Program {
        /// The node.
        label: String,
        /// Rule broken.
        reason: String,
    },
    /// A step's inputs break a rule.
    #[error("step input {field}: {reason}")]
    Input {
        /// Field of `StepInputs`.
        field: &'static str,
        /// Rule broken.
        reason: String,
    },
    /// Device memory is not where it should be.
    #[error("residency violated: {reason}")]
    Residency {
        /// Which allocation, and what the driver says of it.
        reason: String,
    },
    /// A launch or synchronisation failed.
    #[error("{label}: {reason}")]
    Execution {
        /// Node or phase.
        label: String,
        /// What the driver said.
        reason: String,
    },
}

/// One device with one model on it. Owned by the engine thread: nothing here is async, and nothing allocates on the
/// device after the last `compile`.
pub trait Backend: Send {
    /// `cuda`, `wgpu` or `reference`.
    fn name(&self) -> &'static str;

    /// The device.
    fn caps(&self) -> &Caps;

    /// Told before the first `upload` what will come, so that the room for it is taken at once and exactly.
    ///
    /// # Errors
    /// A weight that the backend refuses, or no room.
    fn reserve_weights(&mut self, _specs: &[WeightSpec]) -> Result<(), BackendError> {
        Ok(())
    }

    /// Takes a weight whose bytes arrive in chunks of any size, in order; may repack it.
    ///
    /// # Errors
    /// Wrong total length, no room, or a lost device.
    fn upload(
        &mut self,
        spec: &WeightSpec,
        chunks: &mut dyn Iterator<Item = &[u8]>,
    ) -> Result<WeightId, BackendError>;

    /// Creates the cache; once.
    ///
    /// # Errors
    /// No room, an element the backend does not offer, or a second call.
    fn create_kv(&mut self, layout: &KvLayout) -> Result<(), BackendError>;

    /// Compiles programs over the uploaded weights and the cache. Programs of one call share one activation arena
    /// (their steps never overlap).
    ///
    /// # Errors
    /// No room, or a program outside the backend's limits.
    fn compile(&mut self, programs: &[Program]) -> Result<Vec<PlanId>, BackendError>;

    /// Starts one step. At most one step is in flight.
    ///
    /// # Errors
    /// Inputs that break the plan's bounds, or a device error.
    fn submit(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<(), BackendError>;

    /// Waits for the step in flight and fills its declared outputs.
    ///
    /// # Errors
    /// A device error.
    fn wait(&mut self, outputs: &mut StepOutputs) -> Result<(), BackendError>;

    /// Bytes by purpose.
    fn memory(&self) -> MemoryReport;

    /// Asks the driver where every allocation is.
    ///
    /// # Errors
    /// [`BackendError::Residency`] naming the first allocation that is not plain device memory.
    fn check_residency(&self) -> Result<(), BackendError>;

    /// Runs one step with a clock around every part of it.
    ///
    /// # Errors
    /// As `submit` and `wait`.
    fn profile(&mut self, plan: PlanId, inputs: &StepInputs<'_>) -> Result<PlanProfile, BackendError>;

    /// Measures the device's own copies: the fastest of several, over ranges far larger than any cache where there is room
    /// for them. Takes memory for as long as the call lasts, so it belongs before the first `upload`.
    ///
    /// # Errors
    /// A step in flight, or a device error. No room is none: what could not be measured is not known.
    fn measure_bandwidth(&mut self) -> Result<Bandwidth, BackendError> {
        Ok(Bandwidth::default())
    }

    /// Fills every activation with NaN and the whole cache with large finite garbage, so that a test sees what was
    /// never written.
    ///
    /// # Errors
    /// A device error.
    fn poison(&mut self) -> Result<(), BackendError>;
}
