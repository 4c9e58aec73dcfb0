//! The commands' promises: JSON on stdout, messages on stderr, exit codes.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::Value;

use super::worker::{command, haiku_model};

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{args:?} prints one JSON object: {text}");
    serde_json::from_str(&text).unwrap()
}

fn model() -> String {
    haiku_model().to_str().unwrap().to_owned()
}

#[test]
fn generate_prints_ids_text_and_reason_and_repeats_itself() {
    let model = model();
    let args = [
        "generate",
        "--model",
        &model,
        "--backend",
        "reference",
        "--prompt",
        "Write a haiku about the sea",
        "--temperature",
        "0.7",
        "--seed",
        "5",
        "--max-tokens",
        "40",
        "--json",
    ];
    let first = json(&args);
    assert_eq!(first, json(&args));
    let prompt_ids: Vec<String> =
        first["prompt_token_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let ids = prompt_ids.join(",");
    let by_ids = json(&[
        "generate",
        "--model",
        &model,
        "--backend",
        "reference",
        "--token-ids",
        &ids,
        "--temperature",
        "0.7",
        "--seed",
        "5",
        "--max-tokens",
        "40",
        "--json",
    ]);
    assert_eq!(first, by_ids);
    assert!(matches!(first["finish_reason"].as_str(), Some("stop" | "length")), "{first}");
}

#[test]
fn logits_have_full_precision_and_taps_are_numpy_files() {
    let folder = tempfile::tempdir().unwrap();
    let taps = folder.path().to_str().unwrap();
    let model = model();
    let args = ["logits", "--model", &model, "--backend", "reference", "--token-ids", "1,2,3", "--json"];
    let plain = json(&args);
    assert_eq!(plain["logits"].as_array().unwrap().len(), 4096);
    let tapped = json(&[&args[..], &["--taps", taps]].concat());
    assert_eq!(plain, tapped, "tapping must change nothing");
    let npy = std::fs::read(folder.path().join("layers.0.attn.q.npy")).unwrap();
    assert!(npy.starts_with(b"\x93NUMPY\x01\x00"));
    let header_len = u16::from_le_bytes([npy[8], npy[9]]) as usize;
    assert_eq!((10 + header_len) % 64, 0);
    let header = String::from_utf8_lossy(&npy[10..10 + header_len]).into_owned();
    assert!(header.contains("'shape': (3, 512)"), "{header}");
    assert_eq!(npy.len(), 10 + header_len + 3 * 512 * 4);
    assert!(folder.path().join("layers.5.ffn.route.experts.npy").exists());
}

#[test]
fn tokenize_answers_every_line() {
    let model = model();
    let mut child = command(&["tokenize", "--model", &model, "--json-lines"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all("{\"text\": \"Hello  wörld\"}\n{\"text\": \"\"}\n".as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let lines: Vec<Value> = output
        .stdout
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["text"], "Hello  wörld");
    assert!(!lines[0]["ids"].as_array().unwrap().is_empty());
    assert_eq!(lines[1]["ids"], Value::Array(vec![]));
}

#[test]
fn inspect_plan_and_devices_tell_in_json() {
    let model = model();
    let inspected = json(&["inspect", &model, "--json"]);
    assert_eq!(inspected["quant_kind"], "MXFP4");
    assert_eq!(inspected["data_bytes"], 11_463_936);
    let planned = json(&["plan", "--model", &model, "--json"]);
    let parts: u64 = ["weights_bytes", "kv_cache_bytes", "activations_bytes", "workspace_bytes"]
        .map(|part| planned[part].as_u64().unwrap())
        .iter()
        .sum();
    assert_eq!(planned["total_bytes"], parts);
    assert_eq!(planned, json(&["plan", &model, "--json"]), "the file may stand alone");
    let devices = json(&["devices", "--json"]);
    let names: Vec<&str> =
        devices["devices"].as_array().unwrap().iter().map(|d| d["backend"].as_str().unwrap()).collect();
    assert!(names.contains(&"reference"), "{devices}");
}

#[test]
fn perplexity_of_the_bundled_model_on_its_own_words_is_far_below_chance() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    // Our own sentences, in the manner of what the model has read.
    let sentence = "The old man walked down to the river and looked for a long time at the water. ";
    std::fs::write(&text, sentence.repeat(12)).unwrap();
    let model = model();
    let result = json(&[
        "perplexity",
        "--model",
        &model,
        "--backend",
        "reference",
        "--text",
        text.to_str().unwrap(),
        "--window",
        "64",
        "--chunks",
        "2",
        "--json",
    ]);
    let perplexity = result["perplexity"].as_f64().unwrap();
    // Chance is 4096; repetition within the window makes the second half easy for a model that attends.
    assert!((1.0..20.0).contains(&perplexity), "{result}");
    assert_eq!(result["tokens"], 2 * 31);
}

#[test]
fn mistakes_are_told_on_stderr_with_exit_codes() {
    let model = model();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["generate", "--model", "/nowhere.gguf", "--prompt", "x"], 1, "/nowhere.gguf"),
        (&["logits", "--model", &model, "--backend", "reference", "--token-ids", "4096"], 2, "4096"),
        (&["--model", &model, "--port", "80"], 2, "--port"),
        (&["generate", "--model", &model, "--prompt", "x", "--temperature", "3"], 2, "--temperature"),
        (&["tokenize", "--model", &model], 2, "--json-lines"),
        (&["forge", "--preset", "no-such", "--out", "/tmp/x"], 2, "no-such"),
    ];
    for (args, code, message) in cases {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

/// The default backend is CUDA; without it the worker says what else there is instead of choosing it by itself.
#[test]
fn worker_without_cuda_names_the_alternatives_and_exits() {
    if std::env::var_os("WORKER_ORCD_TEST_CUDA").is_some() {
        return;
    }
    let output = run(&["--model", &model(), "--port", "18080"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--backend wgpu") && stderr.contains("--backend reference"), "{stderr}");
}
