//! Every shader, for every storage format it can be composed with, is valid and translates to what each API runs.
//! Needs no device.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops by panicking and says what it skips"
)]

use std::collections::HashMap;

use naga::back::{PipelineConstants, hlsl, msl, spv};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use worker_orcd_core::{DType, Op};
use worker_orcd_wgpu::shader::{COMPOSITES, Form, PARTS, compose, parts};

/// Entry point and override constants a composed shader is used with.
type Variant = (&'static str, &'static [(&'static str, f64)]);

fn variants(stem: &str) -> &'static [Variant] {
    match stem {
        "linear" => {
            &[("main", &[("TOKENS", 1.0)]), ("main", &[("TOKENS", 4.0)]), ("main", &[("TOKENS", 8.0)])]
        }
        "moe_linear" => &[("main", &[("TOKENS", 1.0)]), ("grouped", &[("TOKENS", 8.0)])],
        "attention" => &[
            ("main", &[("HEAD_DIM", 64.0), ("AT_ONCE", 1.0)]),
            ("main", &[("HEAD_DIM", 511.0), ("AT_ONCE", 4.0)]),
        ],
        "attention_one" => &[("main", &[("HEAD_DIM", 512.0), ("AT_ONCE", 4.0)])],
        "linear_one" | "experts_sum_one" => &[("main", &[("AHEAD", 1.0)]), ("main", &[("AHEAD", 4.0)])],
        "linear_group" | "gated_one" => {
            &[("main", &[("AHEAD", 1.0), ("OTHERS", 3.0)]), ("main", &[("AHEAD", 4.0), ("OTHERS", 1.0)])]
        }
        _ => &[("main", &[])],
    }
}

fn stems() -> impl Iterator<Item = &'static str> {
    Op::STEMS.into_iter().chain(COMPOSITES)
}

/// Every way a shader is composed.
fn compositions(stem: &'static str) -> Vec<Vec<&'static str>> {
    let plain = Form::default();
    let wide = Form { wide: true, ..plain };
    let normed = Form { normed: true, ..wide };
    let forms: &[Form] = match stem {
        "linear" | "moe_linear" | "experts_sum_one" | "attention" => &[plain, wide],
        "linear_one" | "linear_group" | "gated_one" => &[plain, wide, normed],
        _ => &[plain],
    };
    let reads_matrix = !matches!(stem, "attention" | "attention_one" | "sample_scan")
        && (forms.len() > 1 || stem.ends_with("embed"));
    let weights: Vec<Option<DType>> =
        if reads_matrix { DType::ALL.into_iter().map(Some).collect() } else { vec![None] };
    let forms = forms.iter().flat_map(|form| weights.iter().map(|&weight| Form { weight, ..*form }));
    let mut composed: Vec<_> = forms.map(|form| parts(stem, form)).collect();
    if matches!(stem, "linear_group" | "gated_one") {
        // Every format beside another.
        let mixed = DType::ALL.into_iter().zip(DType::ALL.into_iter().cycle().skip(1));
        let form = |(weight, second)| Form { weight: Some(weight), second: Some(second), ..normed };
        composed.extend(mixed.map(|pair| parts(stem, form(pair))));
    }
    composed
}

#[test]
fn every_shader_is_valid_and_translates() {
    for stem in stems() {
        for parts in compositions(stem) {
            let name = parts.join("+");
            let source = compose(&parts, &[]);
            let module = naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
                .validate(&module)
                .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(&source)));
            for (entry, constants) in variants(stem) {
                translate(&name, &module, &info, entry, constants);
            }
        }
    }
}

fn translate(
    name: &str,
    module: &naga::Module,
    info: &naga::valid::ModuleInfo,
    entry: &str,
    constants: &[(&str, f64)],
) {
    let point = (naga::ShaderStage::Compute, entry.to_owned());
    let constants: PipelineConstants = constants
        .iter()
        .map(|&(name, value)| (name.to_owned(), value))
        .collect::<HashMap<_, _>>()
        .into_iter()
        .collect();
    let (module, info) = naga::back::pipeline_constants::process_overrides(
        module,
        info,
        Some((naga::ShaderStage::Compute, entry)),
        &constants,
    )
    .unwrap_or_else(|error| panic!("{name} {entry}: overrides: {error}"));
    let pipeline = spv::PipelineOptions { shader_stage: point.0, entry_point: point.1.clone() };
    let words = spv::write_vec(&module, &info, &spv::Options::default(), Some(&pipeline))
        .unwrap_or_else(|error| panic!("{name} {entry}: SPIR-V: {error}"));
    assert!(!words.is_empty());
    let options =
        msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
    let pipeline =
        msl::PipelineOptions { entry_point: Some(point.clone()), ..msl::PipelineOptions::default() };
    let (text, _) = msl::write_string(&module, &info, &options, &pipeline)
        .unwrap_or_else(|error| panic!("{name} {entry}: MSL: {error}"));
    assert!(text.contains("kernel"), "{name}: no kernel in the MSL");
    let mut text = String::new();
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..hlsl::Options::default() };
    let pipeline = hlsl::PipelineOptions { entry_point: Some(point) };
    hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module, &info, None)
        .unwrap_or_else(|error| panic!("{name} {entry}: HLSL: {error}"));
    assert!(text.contains("numthreads"), "{name}: no kernel in the HLSL");
}

#[test]
fn every_operation_and_format_has_its_file_and_every_file_is_used() {
    let mut used: Vec<&str> = stems().flat_map(compositions).flatten().collect();
    used.retain(|name| !name.contains(" as "));
    used.sort_unstable();
    used.dedup();
    let mut files: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
    files.sort_unstable();
    assert_eq!(used, files);
    for (name, text) in PARTS {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with(&format!("// {name}: ")), "{name} opens with its name and formula");
    }
}

#[test]
fn an_override_replaces_one_part() {
    let source = compose(&["prelude", "add"], &[("add".into(), "// nothing".into())]);
    assert!(source.contains("fn workgroup_sum"));
    assert!(source.ends_with("// nothing\n"));
}
