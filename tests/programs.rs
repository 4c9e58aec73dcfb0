//! One program per architecture with every value tapped, on the interpreter and on wgpu: each value within its
//! tolerance, and the first label named where a shader is broken on purpose.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

#[path = "support/models.rs"]
#[allow(dead_code, reason = "shared with the golden tests, which use more of it")]
mod models;

use models::{TestModel, backends, direct_options, open_device};
use worker_orcd::commands::compare::{DEFAULT_TOLERANCE, Difference, differences};
use worker_orcd::commands::forge::forge;
use worker_orcd::config::BackendChoice;
use worker_orcd::engine::direct::{DirectOptions, DirectRun};
use worker_orcd::model::ModelOptions;
use worker_orcd_core::{Backend, KvElement, OutputValue, Program};
use worker_orcd_wgpu::{AdapterChoice, WgpuBackend, WgpuOptions};

/// Longer than one block and one window of the tiny models, not a multiple of anything.
const PROMPT_TOKENS: usize = 41;

fn prompt() -> Vec<u32> {
    (0..PROMPT_TOKENS as u32).map(|i| (i * 167 + 13) % 900).collect()
}

fn tiny(architecture: &str, folder: &tempfile::TempDir) -> TestModel {
    let path = folder.path().join("model.gguf");
    forge(&format!("tiny-{architecture}"), 11, &path).unwrap();
    TestModel::open(&path, ModelOptions { context: Some(64), ..ModelOptions::default() })
}

fn tapped(test: &TestModel, backend: Box<dyn Backend>) -> (Program, Vec<OutputValue>) {
    let options = DirectOptions {
        tapped: true,
        rows: 1,
        ..direct_options(PROMPT_TOKENS, PROMPT_TOKENS, KvElement::F16)
    };
    let mut run: DirectRun = test.direct(backend, &options);
    let values = run.step(&prompt(), 0, &[PROMPT_TOKENS as u32 - 1]).unwrap().to_vec();
    (run.program().clone(), values)
}

fn compare(test: &TestModel, judged: Box<dyn Backend>) -> Vec<Difference> {
    let (program, expected) = tapped(test, open_device(BackendChoice::Reference).unwrap());
    let (_, found) = tapped(test, judged);
    differences(&program, &expected, &found, DEFAULT_TOLERANCE)
}

#[test]
fn every_value_of_every_architecture_agrees_on_every_backend() {
    for architecture in ["qwen2", "phi3", "llama", "gpt-oss", "gpt2"] {
        let folder = tempfile::tempdir().unwrap();
        let test = tiny(architecture, &folder);
        for choice in backends().into_iter().filter(|choice| *choice != BackendChoice::Reference) {
            let Some(backend) = open_device(choice) else { continue };
            let differences = compare(&test, backend);
            assert!(differences.len() > 40, "{architecture}: {} values", differences.len());
            let worst = differences.iter().map(|d| d.nmse).fold(0.0, f64::max);
            eprintln!(
                "{architecture} on {}: {} values, worst NMSE {worst:.2e}",
                choice.name(),
                differences.len()
            );
            let parted = differences.iter().find(|difference| !difference.agrees);
            assert!(parted.is_none(), "{architecture} on {}: {parted:?}", choice.name());
        }
    }
}

/// Bits of the logits of steps of one token behind the prompt, and the labels of what such a step does at once.
fn steps_of_one(test: &TestModel, fused: bool) -> (Vec<Vec<u32>>, Vec<String>) {
    const STEPS: usize = 4;
    let options = WgpuOptions { fused: Some(fused), ..WgpuOptions::default() };
    let backend = WgpuBackend::open(&AdapterChoice::Preferred, &options).unwrap();
    let options = direct_options(PROMPT_TOKENS + STEPS, PROMPT_TOKENS, KvElement::F16);
    let mut run = test.direct(Box::new(backend), &options);
    run.step(&prompt(), 0, &[]).unwrap();
    let bits = (0..STEPS).map(|step| {
        let token = [(step * 31 + 7) as u32];
        let values = run.step(&token, PROMPT_TOKENS + step, &[0]).unwrap();
        let OutputValue::F32(logits) = &values[0] else { panic!("logits are floats") };
        logits.iter().map(|logit| logit.to_bits()).collect()
    });
    let bits = bits.collect();
    let profile = run.profile(&[7], PROMPT_TOKENS).unwrap();
    (bits, profile.entries.into_iter().map(|entry| entry.label).collect())
}

#[test]
fn fused_steps_have_the_bits_of_single_operations() {
    if open_device(BackendChoice::Wgpu).is_none() {
        return;
    }
    for (architecture, per_layer) in [("qwen2", 5), ("phi3", 5), ("llama", 5), ("gpt-oss", 7), ("gpt2", 8)] {
        let folder = tempfile::tempdir().unwrap();
        let test = tiny(architecture, &folder);
        let (fused, parts) = steps_of_one(&test, true);
        let (single, operations) = steps_of_one(&test, false);
        assert!(fused == single, "{architecture}: fused steps have other logits");
        let of_layers = |labels: &[String]| -> Vec<String> {
            labels.iter().filter(|label| label.starts_with("layers.")).cloned().collect()
        };
        let (parts, operations) = (of_layers(&parts), of_layers(&operations));
        let layers = test.model.config().num_layers;
        eprintln!("{architecture}: {} of {} in {layers} layers", parts.len(), operations.len());
        assert_eq!(parts.len(), per_layer * layers, "{architecture}: {parts:#?}");
    }
}

#[test]
fn broken_shader_is_named_by_the_first_label_it_writes() {
    if open_device(BackendChoice::Wgpu).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let test = tiny("gpt-oss", &folder);
    let source = std::fs::read_to_string(models::root().join("shaders/activation.wgsl")).unwrap();
    // The clamp of the linear half loses its lower side, and its shift by one.
    let broken = source.replace("+ 1.0", "+ 1.25");
    assert_ne!(source, broken, "the shader has another shape than this test breaks");
    let options =
        WgpuOptions { shader_overrides: vec![("activation".into(), broken)], ..WgpuOptions::default() };
    let backend = WgpuBackend::open(&AdapterChoice::Preferred, &options).unwrap();
    let differences = compare(&test, Box::new(backend));
    let first = differences.iter().find(|difference| !difference.agrees).expect("a broken shader shows");
    assert_eq!(first.label, "layers.0.ffn.act");
}
