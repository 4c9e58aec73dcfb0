//! Perplexity by llama-perplexity's method, against published figures.

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

use std::path::Path;
use std::process::Command;

use models::{backends, open_device, shared_data};
use serde_json::Value;

/// Windows that published figures are of.
const PUBLISHED_WINDOWS: usize = 64;
/// Windows on which backends are compared with each other: enough to see a wrong kernel, few enough for a software GPU.
const COMPARED_WINDOWS: usize = 8;

fn perplexity(model: &Path, text: &Path, backend: &str, windows: usize) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_worker-orcd"));
    command.args(["perplexity", "--chunks", &windows.to_string(), "--json", "--backend", backend]);
    command.arg("--model").arg(model).arg("--text").arg(text);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["tokens"], windows * 255);
    eprintln!("{} on {backend}: {}", model.display(), result["perplexity"]);
    result["perplexity"].as_f64().unwrap()
}

fn close(found: f64, published: f64, share: f64) {
    assert!((found / published - 1.0).abs() <= share, "{found} is not within {share} of {published}");
}

/// The other engine's figures come from the same f32 weights; only the cache's and the activations' rounding differ.
#[test]
fn story_teller_has_the_published_perplexity() {
    let Some(data) = shared_data() else { return };
    let text = data.join("text/wiki.test.raw");
    for (file, published) in [("stories260K-f32.gguf", 150.8583), ("stories260K-q8_0.gguf", 151.0276)] {
        let model = data.join("models/stories260K").join(file);
        close(perplexity(&model, &text, "reference", PUBLISHED_WINDOWS), published, 0.005);
    }
}

/// Logits differ by less than 1e-6 of their square, and so a mean of their logarithms by far less than 1e-4.
#[test]
fn story_teller_has_one_perplexity_on_every_backend() {
    let Some(data) = shared_data() else { return };
    let text = data.join("text/wiki.test.raw");
    let model = data.join("models/stories260K/stories260K-f32.gguf");
    let expected = perplexity(&model, &text, "reference", COMPARED_WINDOWS);
    for choice in backends() {
        if open_device(choice).is_some() {
            close(perplexity(&model, &text, choice.name(), COMPARED_WINDOWS), expected, 1e-4);
        }
    }
}

/// The card's figure was made with a rounded YaRN ramp and quantised activations; it allows about 1 %.
#[test]
fn bundled_model_has_its_cards_perplexity() {
    let Some(data) = shared_data() else { return };
    let model = models::root().join("models/haiku-moe/haiku-moe-mxfp4.gguf");
    close(perplexity(&model, &data.join("text/novel.val.txt"), "reference", PUBLISHED_WINDOWS), 26.318, 0.01);
}
