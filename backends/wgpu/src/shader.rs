//! The WGSL sources, how they are composed, and the cache of pipelines made of them.
//!
//! A shader is the plain concatenation of its parts; what varies inside is an `override` constant. The same parts,
//! entry point and constants give the same pipeline, which every plan shares.

use std::collections::HashMap;

use worker_orcd_core::{BackendError, DType};

use crate::adapter::WgpuOptions;
use crate::gpu::Gpu;

macro_rules! part {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../shaders/", $name, ".wgsl")))
    };
}

/// Every part: name (path under `shaders/` without the suffix) and source text.
pub const PARTS: [(&str, &str); 54] = [
    part!("prelude"),
    part!("dot"),
    part!("dot_one"),
    part!("rows_vec4"),
    part!("rows_ragged"),
    part!("input_plain"),
    part!("input_normed"),
    part!("weight_one"),
    part!("weight_three"),
    part!("activation"),
    part!("half"),
    part!("rotation"),
    part!("attention_walk"),
    part!("score_eights"),
    part!("cache_eights"),
    part!("cache_ragged"),
    part!("sample_logits"),
    part!("quant/unit"),
    part!("quant/f32"),
    part!("quant/f16"),
    part!("quant/bf16"),
    part!("quant/q4_0"),
    part!("quant/q4_1"),
    part!("quant/q5_0"),
    part!("quant/q5_1"),
    part!("quant/q8_0"),
    part!("quant/q2_k"),
    part!("quant/q3_k"),
    part!("quant/q4_k"),
    part!("quant/q5_k"),
    part!("quant/q6_k"),
    part!("quant/mxfp4"),
    part!("embed"),
    part!("position_embed"),
    part!("rms_norm"),
    part!("layer_norm"),
    part!("linear"),
    part!("linear_one"),
    part!("linear_group"),
    part!("gated_one"),
    part!("add"),
    part!("rope"),
    part!("kv_write"),
    part!("attention"),
    part!("attention_one"),
    part!("swiglu"),
    part!("gelu"),
    part!("router"),
    part!("moe_linear"),
    part!("experts_sum_one"),
    part!("moe_combine"),
    part!("gather_rows"),
    part!("sample_scan"),
    part!("sample"),
];

/// Shaders that are no operation by themselves: its form for one row, its first pass, or several operations in one
/// dispatch.
pub const COMPOSITES: [&str; 6] =
    ["linear_one", "linear_group", "gated_one", "experts_sum_one", "attention_one", "sample_scan"];

macro_rules! alias {
    ($format:literal, $name:literal) => {
        (
            concat!($format, " as ", $name),
            concat!(
                "fn ",
                $name,
                "(row: u32, index: u32) -> Unit {\n    return read_",
                $format,
                "(row, index);\n}\n"
            ),
        )
    };
}

macro_rules! aliases {
    ($($format:literal)*) => {
        [$(alias!($format, "read_first"), alias!($format, "read_second"),)*]
    };
}

/// Parts that are no file: a format's reader under the name shaders call it by.
const ALIASES: [(&str, &str); 28] = aliases![
    "f32" "f16" "bf16" "q4_0" "q4_1" "q5_0" "q5_1" "q8_0" "q2_k" "q3_k" "q4_k" "q5_k" "q6_k" "mxfp4"
];

/// The parts that decode a storage format.
#[derive(Clone, Copy, Debug)]
struct Reader {
    file: &'static str,
    /// Its alias as a shader's first or only format, and as its second.
    first: &'static str,
    second: &'static str,
}

macro_rules! reader {
    ($format:literal) => {
        Reader {
            file: concat!("quant/", $format),
            first: concat!($format, " as read_first"),
            second: concat!($format, " as read_second"),
        }
    };
}

const fn reader(dtype: DType) -> Reader {
    match dtype {
        DType::F32 => reader!("f32"),
        DType::F16 => reader!("f16"),
        DType::BF16 => reader!("bf16"),
        DType::Q4_0 => reader!("q4_0"),
        DType::Q4_1 => reader!("q4_1"),
        DType::Q5_0 => reader!("q5_0"),
        DType::Q5_1 => reader!("q5_1"),
        DType::Q8_0 => reader!("q8_0"),
        DType::Q2_K => reader!("q2_k"),
        DType::Q3_K => reader!("q3_k"),
        DType::Q4_K => reader!("q4_k"),
        DType::Q5_K => reader!("q5_k"),
        DType::Q6_K => reader!("q6_k"),
        DType::MXFP4 => reader!("mxfp4"),
    }
}

/// What shapes and neighbours decide about how a shader is composed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Format of the matrices it reads, if it reads any.
    pub weight: Option<DType>,
    /// Format of those among several that have another one.
    pub second: Option<DType>,
    /// Whether rows of x are a multiple of four wide, or heads a multiple of eight.
    pub wide: bool,
    /// Whether an RMS norm in front of the product is part of it. Asks for wide rows.
    pub normed: bool,
}

/// The parts of a shader, in order: of the operation or composite `stem` in this form.
pub fn parts(stem: &'static str, form: Form) -> Vec<&'static str> {
    let mut parts = vec!["prelude"];
    if let Some(dtype) = form.weight {
        parts.extend(["quant/unit", reader(dtype).file, reader(dtype).first]);
        if matches!(stem, "linear_group" | "gated_one") {
            let second = reader(form.second.unwrap_or(dtype));
            parts.extend((second.file != reader(dtype).file).then_some(second.file));
            parts.push(second.second);
        }
    }
    let rows = if form.wide { "rows_vec4" } else { "rows_ragged" };
    let input = if form.normed { "input_normed" } else { "input_plain" };
    let shared: &[&str] = match stem {
        "embed" | "position_embed" => &["weight_one"],
        "linear" | "moe_linear" => &["weight_one", rows, "dot"],
        "linear_one" => &["weight_one", rows, input, "dot_one"],
        "experts_sum_one" => &["weight_one", rows, "input_plain", "dot_one"],
        "linear_group" => &["weight_three", rows, input, "dot_one"],
        "gated_one" => &["weight_three", rows, input, "dot_one", "activation"],
        "swiglu" => &["activation"],
        "rope" => &["rotation"],
        "kv_write" => &["half"],
        "attention" if form.wide => &["attention_walk", "score_eights", "cache_eights"],
        "attention" => &["attention_walk", "cache_ragged"],
        "attention_one" => &["half", "rotation", "attention_walk", "score_eights"],
        "sample" | "sample_scan" => &["sample_logits"],
        _ => &[],
    };
    parts.extend(shared);
    parts.push(stem);
    parts
}

/// The source text of `parts`, joined; `overrides` replace parts by name.
pub fn compose(parts: &[&str], overrides: &[(String, String)]) -> String {
    let mut source = String::new();
    for part in parts {
        let replaced = overrides.iter().find(|(name, _)| name == part).map(|(_, text)| text.as_str());
        let ours = PARTS.iter().chain(&ALIASES).find(|(name, _)| name == part).map(|(_, text)| *text);
        source.push_str(replaced.or(ours).unwrap_or_default());
        source.push('\n');
    }
    source
}

/// What makes a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    pub(crate) parts: Vec<&'static str>,
    pub(crate) entry: &'static str,
    /// Values of `override` constants.
    pub(crate) constants: Vec<(&'static str, u32)>,
}

impl Kernel {
    fn key(&self, bindings: &[bool]) -> String {
        format!("{:?} {} {:?} {bindings:?}", self.parts, self.entry, self.constants)
    }

    fn label(&self) -> &'static str {
        self.parts.last().unwrap_or(&"empty")
    }
}

/// A compiled shader and the layout of its bindings.
#[derive(Clone, Debug)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// Modules by their parts, pipelines by everything that makes them.
#[derive(Debug, Default)]
pub(crate) struct ShaderCache {
    overrides: Vec<(String, String)>,
    modules: HashMap<String, wgpu::ShaderModule>,
    pipelines: HashMap<String, Pipeline>,
}

impl ShaderCache {
    pub(crate) fn new(options: &WgpuOptions) -> Self {
        Self { overrides: options.shader_overrides.clone(), ..Self::default() }
    }

    /// The pipeline of a kernel whose storage bindings from 2 on are writable or not.
    pub(crate) fn pipeline(
        &mut self,
        gpu: &Gpu,
        kernel: &Kernel,
        writable: &[bool],
    ) -> Result<Pipeline, BackendError> {
        let key = kernel.key(writable);
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let label = kernel.label();
        let module = self.module(gpu, kernel)?;
        let pipeline = gpu.labelled(label, || build(gpu, kernel, label, &module, writable))?;
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn module(&mut self, gpu: &Gpu, kernel: &Kernel) -> Result<wgpu::ShaderModule, BackendError> {
        let key = kernel.parts.join("+");
        if let Some(module) = self.modules.get(&key) {
            return Ok(module.clone());
        }
        let source = wgpu::ShaderSource::Wgsl(compose(&kernel.parts, &self.overrides).into());
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&key), source };
        let module = gpu.labelled(kernel.label(), || gpu.device.create_shader_module(descriptor))?;
        self.modules.insert(key, module.clone());
        Ok(module)
    }
}

fn entry(binding: u32, ty: wgpu::BufferBindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

fn build(
    gpu: &Gpu,
    kernel: &Kernel,
    label: &str,
    module: &wgpu::ShaderModule,
    writable: &[bool],
) -> Pipeline {
    let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform), entry(1, storage(true))];
    for (index, &writable) in writable.iter().enumerate() {
        entries.push(entry(index as u32 + 2, storage(!writable)));
    }
    let layout = gpu
        .device
        .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries });
    let pipeline_layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(label),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let constants: Vec<(&str, f64)> =
        kernel.constants.iter().map(|&(name, value)| (name, f64::from(value))).collect();
    let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: Some(&pipeline_layout),
        module,
        entry_point: Some(kernel.entry),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &constants,
            // Every shader writes its workgroup memory before it reads it.
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    Pipeline { pipeline, layout }
}
