//! The open device: buffers, waiting, and the one place where driver errors become `BackendError`s.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use worker_orcd_core::BackendError;

use crate::NAME;

/// Storage buffers the widest fused shader reads and writes.
const FUSED_STORAGE_BINDINGS: u32 = 12;

/// What went wrong outside any error scope; the first one stays.
#[derive(Clone, Debug)]
enum Fault {
    Lost(String),
    OutOfMemory,
    Other(String),
}

#[derive(Clone, Debug, Default)]
struct Faults(Arc<Mutex<Option<Fault>>>);

impl Faults {
    fn record(&self, fault: Fault) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A lost device explains every error before it.
        if held.is_none() || matches!(fault, Fault::Lost(_)) {
            *held = Some(fault);
        }
    }

    fn get(&self) -> Option<Fault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a buffer is for; names it in out-of-memory errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Weights,
    KvCache,
    Activations,
    Workspace,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvCache => "kv_cache",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
        }
    }
}

const PENDING: u8 = 0;
const MAPPED: u8 = 1;
const UNMAPPED: u8 = 2;

/// How far the mapping of a buffer is.
#[derive(Clone, Debug)]
pub(crate) struct Mapping(Arc<AtomicU8>);

impl Mapping {
    /// Of a buffer that is mapped already.
    pub(crate) fn done() -> Self {
        Self(Arc::new(AtomicU8::new(MAPPED)))
    }

    /// The buffer goes to the device.
    pub(crate) fn end(&self) {
        self.0.store(UNMAPPED, Ordering::Release);
    }

    /// Whether the buffer is mapped, as far as known without waiting.
    pub(crate) fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire) == MAPPED
    }
}

/// An open device and its queue.
#[derive(Debug)]
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    /// Whether passes can write timestamps.
    pub(crate) timestamps: bool,
    /// Whether a step of one token may do several operations in one dispatch.
    pub(crate) fuses: bool,
    /// Largest slice of a weight, if tests ask for smaller ones than a binding holds.
    max_slice_bytes: Option<u64>,
    faults: Faults,
}

impl Gpu {
    pub(crate) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        limits: wgpu::Limits,
        (timestamps, fuses): (bool, bool),
        max_slice_bytes: Option<u64>,
    ) -> Self {
        let faults = Faults::default();
        let lost = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            lost.record(Fault::Lost(format!("{reason:?}: {message}")));
        });
        let uncaptured = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            uncaptured.record(match error {
                wgpu::Error::OutOfMemory { .. } => Fault::OutOfMemory,
                _ => Fault::Other(error.to_string()),
            });
        }));
        // The fused shaders have more bindings than WebGPU promises.
        let fuses = fuses && limits.max_storage_buffers_per_shader_stage >= FUSED_STORAGE_BINDINGS;
        Self { device, queue, limits, timestamps, fuses, max_slice_bytes, faults }
    }

    /// Largest storage binding, in bytes, a multiple of a word.
    pub(crate) fn max_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size) / 4 * 4
    }

    /// Largest slice of a weight, in bytes.
    pub(crate) fn max_slice(&self) -> u64 {
        self.max_slice_bytes.map_or(self.max_binding(), |bytes| bytes.min(self.max_binding()))
    }

    /// The fault recorded so far, if any; `label` says during what it is reported.
    pub(crate) fn check(&self, label: &str) -> Result<(), BackendError> {
        match self.faults.get() {
            None => Ok(()),
            Some(Fault::Lost(reason)) => Err(BackendError::DeviceLost { reason }),
            Some(Fault::OutOfMemory) => Err(BackendError::OutOfMemory {
                purpose: "workspace",
                requested_bytes: 0,
                available_bytes: 0,
            }),
            Some(Fault::Other(reason)) => Err(BackendError::Execution { label: label.to_owned(), reason }),
        }
    }

    /// Runs `work` and returns the first error the device raised in it.
    pub(crate) fn scoped<T>(&self, work: impl FnOnce() -> T) -> Result<T, wgpu::Error> {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let result = work();
        let errors = [
            pollster::block_on(internal.pop()),
            pollster::block_on(memory.pop()),
            pollster::block_on(validation.pop()),
        ];
        errors.into_iter().flatten().next().map_or(Ok(result), Err)
    }

    /// As [`Self::scoped`], naming `label` in the error.
    pub(crate) fn labelled<T>(&self, label: &str, work: impl FnOnce() -> T) -> Result<T, BackendError> {
        let result = self.scoped(work).map_err(|error| BackendError::Execution {
            label: label.to_owned(),
            reason: error.to_string(),
        })?;
        self.check(label)?;
        Ok(result)
    }

    /// A buffer of `bytes`, rounded up to whole words.
    pub(crate) fn buffer(
        &self,
        purpose: Purpose,
        label: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, BackendError> {
        let size = bytes.max(4).next_multiple_of(4);
        if size > self.limits.max_buffer_size {
            return Err(BackendError::Unsupported {
                backend: NAME,
                what: format!(
                    "{label}: one buffer of {size} bytes on a device that allows {}",
                    self.limits.max_buffer_size
                ),
            });
        }
        let mapped_at_creation = usage.contains(wgpu::BufferUsages::MAP_WRITE);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation };
        let created = self.scoped(|| self.device.create_buffer(&descriptor));
        self.check(label)?;
        created.map_err(|error| match error {
            wgpu::Error::OutOfMemory { .. } => BackendError::OutOfMemory {
                purpose: purpose.name(),
                requested_bytes: size,
                available_bytes: 0,
            },
            other => BackendError::Execution { label: label.to_owned(), reason: other.to_string() },
        })
    }

    /// Waits until everything submitted so far is done and its callbacks have run.
    pub(crate) fn wait_idle(&self, label: &str) -> Result<(), BackendError> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check(label)?;
        match polled {
            Ok(_) => Ok(()),
            Err(error) => Err(BackendError::Execution { label: label.to_owned(), reason: error.to_string() }),
        }
    }

    /// Starts mapping a buffer; [`Self::mapped`] waits until the bytes may be touched.
    pub(crate) fn map(buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Mapping {
        let mapping = Mapping(Arc::new(AtomicU8::new(PENDING)));
        let state = Arc::clone(&mapping.0);
        buffer.map_async(mode, .., move |result| {
            state.store(if result.is_ok() { MAPPED } else { UNMAPPED }, Ordering::Release);
        });
        mapping
    }

    /// Waits for everything submitted so far, and for the mapping's own word: another thread that waits on the device may
    /// have taken it and not yet passed it on. False when the buffer is not mapped.
    pub(crate) fn mapped(&self, mapping: &Mapping, label: &str) -> Result<bool, BackendError> {
        loop {
            self.wait_idle(label)?;
            match mapping.0.load(Ordering::Acquire) {
                PENDING => std::thread::yield_now(),
                state => return Ok(state == MAPPED),
            }
        }
    }

    /// Writes `bytes` into a buffer again and again from its start to its end, in bounded pieces.
    pub(crate) fn fill(&self, buffer: &wgpu::Buffer, word: u32) -> Result<(), BackendError> {
        const PIECE_BYTES: u64 = 4 << 20;
        let piece = vec![word; (PIECE_BYTES.min(buffer.size()) / 4) as usize];
        let mut at = 0;
        while at < buffer.size() {
            let bytes = PIECE_BYTES.min(buffer.size() - at);
            self.queue.write_buffer(buffer, at, &bytemuck::cast_slice(&piece)[..bytes as usize]);
            at += bytes;
            self.flush("poison")?;
        }
        Ok(())
    }

    /// Hands pending writes to the device and waits for them, which frees their staging memory.
    pub(crate) fn flush(&self, label: &str) -> Result<(), BackendError> {
        self.queue.submit([]);
        self.wait_idle(label)
    }
}
