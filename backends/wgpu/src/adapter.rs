//! Which devices wgpu finds, in what order of preference, and how one is opened.

use std::fmt;

use worker_orcd_core::BackendError;

use crate::NAME;
use crate::gpu::Gpu;

/// What stands behind an adapter; the order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdapterKind {
    /// A GPU with its own memory.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU passed into a virtual machine.
    Virtual,
    /// A software driver, such as lavapipe.
    Cpu,
    /// The driver does not say.
    Other,
}

impl fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Cpu => "cpu",
            Self::Other => "other",
        })
    }
}

/// One device wgpu can open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterSummary {
    /// What [`AdapterChoice::Index`] takes; 0 is the preferred device.
    pub index: usize,
    /// Device name as its driver tells it.
    pub name: String,
    /// Discrete, integrated, virtual or software.
    pub kind: AdapterKind,
    /// `vulkan`, `metal` or `dx12`.
    pub api: String,
    /// Driver name and version, as far as known.
    pub driver: String,
}

/// Which device to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The first of [`enumerate`].
    #[default]
    Preferred,
    /// The one with this [`AdapterSummary::index`].
    Index(usize),
    /// The first whose name contains this, whatever the case.
    Name(String),
}

/// Switches for tests; the default is what serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WgpuOptions {
    /// Splits weights as if no storage binding could be larger.
    pub max_slice_bytes: Option<u64>,
    /// Whether a step of one token does several operations in one dispatch. When omitted a GPU does; a software device,
    /// which has no wait between dispatches to save, does not.
    pub fused: Option<bool>,
    /// Other source text for shader parts, by name (`rms_norm`, `prelude`, `quant/q8_0`, ...).
    pub shader_overrides: Vec<(String, String)>,
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    wgpu::Instance::new(descriptor)
}

fn kind(info: &wgpu::AdapterInfo) -> AdapterKind {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
        wgpu::DeviceType::IntegratedGpu => AdapterKind::Integrated,
        wgpu::DeviceType::VirtualGpu => AdapterKind::Virtual,
        wgpu::DeviceType::Cpu => AdapterKind::Cpu,
        wgpu::DeviceType::Other => AdapterKind::Other,
    }
}

/// Every adapter that can run compute shaders, preferred first; drivers list equals in a fixed order.
fn adapters() -> Vec<wgpu::Adapter> {
    if wgpu::Instance::enabled_backend_features().is_empty() {
        return vec![];
    }
    let mut found = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    found.retain(|adapter| {
        let flags = adapter.get_downlevel_capabilities().flags;
        flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    found.sort_by_key(|adapter| kind(&adapter.get_info()));
    found
}

fn summary(index: usize, info: &wgpu::AdapterInfo) -> AdapterSummary {
    let driver = format!("{} {}", info.driver, info.driver_info);
    AdapterSummary {
        index,
        name: info.name.clone(),
        kind: kind(info),
        api: info.backend.to_string(),
        driver: driver.trim().to_owned(),
    }
}

/// The devices wgpu can open, preferred first: discrete, integrated, virtual, software. Empty without a driver or
/// loader.
pub fn enumerate() -> Vec<AdapterSummary> {
    adapters().iter().enumerate().map(|(index, adapter)| summary(index, &adapter.get_info())).collect()
}

fn unavailable(reason: String) -> BackendError {
    BackendError::Unavailable { backend: NAME, reason }
}

fn choose(mut found: Vec<wgpu::Adapter>, choice: &AdapterChoice) -> Result<wgpu::Adapter, BackendError> {
    if found.is_empty() {
        return Err(unavailable(
            "no Vulkan, Metal or DX12 device found; install a GPU driver, or the software driver \
             (mesa-vulkan-drivers and libvulkan1 on Debian)"
                .into(),
        ));
    }
    let names: Vec<String> = found.iter().map(|adapter| adapter.get_info().name).collect();
    let index = match choice {
        AdapterChoice::Preferred => Some(0),
        AdapterChoice::Index(index) => Some(*index).filter(|&index| index < names.len()),
        AdapterChoice::Name(name) => {
            let wanted = name.to_lowercase();
            names.iter().position(|name| name.to_lowercase().contains(&wanted))
        }
    };
    let listed = names.join(", ");
    let index = index.ok_or_else(|| unavailable(format!("no device matches {choice:?}; found: {listed}")))?;
    Ok(found.swap_remove(index))
}

/// Opens a device with every limit its adapter offers.
pub(crate) fn open(
    choice: &AdapterChoice,
    options: &WgpuOptions,
) -> Result<(Gpu, AdapterSummary), BackendError> {
    let adapter = choose(adapters(), choice)?;
    let limits = adapter.limits();
    let features = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("worker-orcd"),
        required_features: features,
        required_limits: limits.clone(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    });
    let (device, queue) = pollster::block_on(request)
        .map_err(|error| unavailable(format!("{} refused to open: {error}", adapter.get_info().name)))?;
    let timestamps = features.contains(wgpu::Features::TIMESTAMP_QUERY);
    let summary = summary(0, &adapter.get_info());
    let fuses = options.fused.unwrap_or(summary.kind != AdapterKind::Cpu);
    let gpu = Gpu::new(device, queue, limits, (timestamps, fuses), options.max_slice_bytes);
    Ok((gpu, summary))
}
