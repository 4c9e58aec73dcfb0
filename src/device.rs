//! Opens devices. The only file that names a concrete backend.

use cfg_if::cfg_if;
use worker_orcd_core::reference::ReferenceBackend;
use worker_orcd_core::{Backend, BackendError, Footprint, PlainFootprint};

use crate::config::BackendChoice;

/// A device that could be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSummary {
    /// Which backend reaches it.
    pub backend: BackendChoice,
    /// Value for `--gpu-device`.
    pub index: usize,
    /// Name and driver.
    pub description: String,
    /// Device memory; 0 when the API does not tell.
    pub total_memory_bytes: u64,
}

/// Opens one device. There is no fallback: what cannot be opened is an error that says why and names the alternatives.
///
/// # Errors
/// The backend is not in this build, or its device is not there.
pub fn open(choice: BackendChoice, index: usize) -> Result<Box<dyn Backend>, BackendError> {
    match choice {
        BackendChoice::Cuda => open_cuda(index),
        BackendChoice::Wgpu => open_wgpu(index),
        BackendChoice::Reference => Ok(Box::new(ReferenceBackend::default())),
    }
}

/// What a backend will allocate, without opening its device.
pub fn footprint(choice: BackendChoice) -> Box<dyn Footprint> {
    match choice {
        #[cfg(feature = "cuda")]
        BackendChoice::Cuda => Box::new(worker_orcd_cuda::CudaFootprint::default()),
        _ => Box::new(PlainFootprint),
    }
}

/// Every device of every backend in this build, and why a backend has none.
pub fn enumerate() -> (Vec<DeviceSummary>, Vec<(BackendChoice, BackendError)>) {
    let mut devices = vec![];
    let mut absent = vec![];
    for (choice, found) in [(BackendChoice::Cuda, enumerate_cuda()), (BackendChoice::Wgpu, enumerate_wgpu())]
    {
        match found {
            Ok(found) => devices.extend(found),
            Err(error) => absent.push((choice, error)),
        }
    }
    devices.push(DeviceSummary {
        backend: BackendChoice::Reference,
        index: 0,
        description: "CPU, scalar interpreter: correct and slow".into(),
        total_memory_bytes: 0,
    });
    (devices, absent)
}

/// The best backend that has a device: CUDA, else wgpu on a real GPU or a software adapter, else the interpreter.
pub fn best() -> BackendChoice {
    let (devices, _) = enumerate();
    devices.first().map_or(BackendChoice::Reference, |device| device.backend)
}

/// What `kernels` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelReport {
    /// Units compiled now.
    pub compiled: usize,
    /// Units found in the cache.
    pub cached: usize,
    /// Where they are kept.
    pub folder: Option<std::path::PathBuf>,
}

#[allow(dead_code, reason = "which backends are in the build decides whether it is used")]
fn not_built(backend: &'static str) -> BackendError {
    BackendError::Unavailable {
        backend,
        reason: format!("this build has no {backend} backend; rebuild with --features {backend}"),
    }
}

cfg_if! {
    if #[cfg(feature = "cuda")] {
        fn open_cuda(index: usize) -> Result<Box<dyn Backend>, BackendError> {
            let backend = worker_orcd_cuda::CudaBackend::open(index).map_err(with_alternatives)?;
            Ok(Box::new(backend))
        }

        fn with_alternatives(error: BackendError) -> BackendError {
            match error {
                BackendError::Unavailable { backend, reason } => BackendError::Unavailable {
                    backend,
                    reason: format!(
                        "{reason}; use --backend wgpu for any Vulkan, Metal or DX12 adapter, or --backend reference"
                    ),
                },
                other => other,
            }
        }

        /// Compiles every CUDA kernel for some architectures, all checked ones when none is named.
        ///
        /// # Errors
        /// No compiler, an unknown architecture, or a kernel that does not compile.
        pub fn build_kernels(names: &[String]) -> Result<KernelReport, BackendError> {
            use worker_orcd_cuda::{Arch, NvrtcError, build};
            let unavailable = |reason: String| BackendError::Unavailable { backend: "cuda", reason };
            let arch = |name: &String| {
                Arch::parse(name).ok_or_else(|| unavailable(format!("architecture {name:?} is not known")))
            };
            let mut arches = names.iter().map(arch).collect::<Result<Vec<_>, _>>()?;
            if arches.is_empty() {
                arches.extend(Arch::CHECKED);
            }
            let report = build(&arches).map_err(|error: NvrtcError| unavailable(error.to_string()))?;
            Ok(KernelReport { compiled: report.compiled, cached: report.cached, folder: report.folder })
        }

        fn enumerate_cuda() -> Result<Vec<DeviceSummary>, BackendError> {
            let summaries = worker_orcd_cuda::enumerate()?;
            Ok(summaries.into_iter().map(|device| DeviceSummary {
                backend: BackendChoice::Cuda,
                index: device.index,
                description: device.description,
                total_memory_bytes: device.total_memory_bytes,
            }).collect())
        }
    } else {
        fn open_cuda(_: usize) -> Result<Box<dyn Backend>, BackendError> {
            Err(BackendError::Unavailable {
                backend: "cuda",
                reason: "this build has no cuda backend; use --backend wgpu for any Vulkan, Metal or DX12 adapter, \
                         or --backend reference"
                    .into(),
            })
        }

        /// Compiles every CUDA kernel for some architectures, all checked ones when none is named.
        ///
        /// # Errors
        /// Always: this build has no CUDA backend.
        pub fn build_kernels(_: &[String]) -> Result<KernelReport, BackendError> {
            Err(not_built("cuda"))
        }

        fn enumerate_cuda() -> Result<Vec<DeviceSummary>, BackendError> {
            Err(not_built("cuda"))
        }
    }
}

cfg_if! {
    if #[cfg(feature = "wgpu")] {
        fn open_wgpu(index: usize) -> Result<Box<dyn Backend>, BackendError> {
            use worker_orcd_wgpu::{AdapterChoice, WgpuBackend, WgpuOptions};
            Ok(Box::new(WgpuBackend::open(&AdapterChoice::Index(index), &WgpuOptions::default())?))
        }

        fn enumerate_wgpu() -> Result<Vec<DeviceSummary>, BackendError> {
            let summaries = worker_orcd_wgpu::enumerate();
            if summaries.is_empty() {
                return Err(BackendError::Unavailable {
                    backend: "wgpu",
                    reason: "no Vulkan, Metal or DX12 device found".into(),
                });
            }
            Ok(summaries.into_iter().map(|device| DeviceSummary {
                backend: BackendChoice::Wgpu,
                index: device.index,
                description: format!("{} ({}, {}, {})", device.name, device.kind, device.api, device.driver),
                total_memory_bytes: 0,
            }).collect())
        }
    } else {
        fn open_wgpu(_: usize) -> Result<Box<dyn Backend>, BackendError> {
            Err(not_built("wgpu"))
        }

        fn enumerate_wgpu() -> Result<Vec<DeviceSummary>, BackendError> {
            Err(not_built("wgpu"))
        }
    }
}
