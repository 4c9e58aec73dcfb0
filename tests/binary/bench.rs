//! `bench`: every result has its spread, what it moves and its limit; plots come from what it prints.

use serde_json::Value;

use super::models::backends;
use super::worker::{command, haiku_model};

/// Layers of the bundled model.
const HAIKU_LAYERS: u64 = 6;

fn bench(line: &str) -> Value {
    let args: Vec<&str> = std::iter::once("bench").chain(line.split(' ')).collect();
    let output = command(&args).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{line} prints one JSON object: {text}");
    serde_json::from_str(&text).unwrap()
}

/// The bundled model's path; a command line here is split at spaces.
fn model() -> String {
    let path = haiku_model().to_str().unwrap().to_owned();
    assert!(!path.contains(' '), "these tests run where no folder's name has spaces: {path}");
    path
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// A rate between its smallest and its largest, beside a limit that follows from the bytes and the bandwidth.
fn has_rate_and_limit(result: &Value, whole: &Value, tokens: f64) {
    let rate = number(result, "tokens_per_second");
    assert!(number(result, "min_tokens_per_second") <= rate, "{result}");
    assert!(number(result, "max_tokens_per_second") >= rate, "{result}");
    let bytes = number(result, "weight_bytes") + number(result, "cache_bytes");
    let bandwidth = number(&whole["bandwidth"], "copy_gigabytes_per_second") * 1e9;
    let limit = tokens * bandwidth / bytes;
    assert!((number(result, "limit_tokens_per_second") / limit - 1.0).abs() < 1e-3, "{limit}: {result}");
    assert!((number(result, "fraction_of_limit") * limit / rate - 1.0).abs() < 1e-3, "{result}");
    assert_eq!(result["limited_by"], "memory");
}

#[test]
fn a_profile_names_every_byte_of_a_step() {
    let model = model();
    for backend in backends() {
        let line = format!(
            "decode --model {model} --backend {} --depth 8 --steps 2 --repeats 3 --profile",
            backend.name()
        );
        let result = bench(&line);
        has_rate_and_limit(&result, &result, 1.0);
        let profile = &result["profile"];
        let parts = profile["parts"].as_array().unwrap();
        let sum = |name: &str| parts.iter().map(|part| number(part, name)).sum::<f64>();
        assert!((sum("weight_bytes") / number(&result, "weight_bytes") - 1.0).abs() < 1e-3, "{result}");
        assert!((sum("share") - 1.0).abs() < 1e-9, "{profile}");
        assert!((sum("time_us") - number(profile, "total_us")).abs() < 1e-3, "{profile}");
        assert_eq!(number(profile, "unnamed_bytes").to_bits(), 0, "{profile}");
        let gaps = number(profile, "unprofiled_us") - number(profile, "total_us");
        assert!((number(profile, "gaps_us") - gaps).abs() < 1e-3, "{profile}");
        let mix = parts.iter().find(|part| part["part"].as_str().unwrap().contains("attn.mix")).unwrap();
        assert_eq!(mix["launches"], HAIKU_LAYERS, "{mix}");
        assert!(number(mix, "cache_bytes") > 0.0 && number(mix, "gigabytes_per_second") > 0.0, "{mix}");
    }
}

#[test]
fn a_prompt_s_limit_is_that_of_arithmetic_where_this_is_lower() {
    let line = format!("prefill --model {} --backend reference --depth 8 --chunk 4 --repeats 1", model());
    let result = bench(&line);
    has_rate_and_limit(&result, &result, 8.0);
    let result = bench(&format!("{line} --tera-operations 1e-6 --profile"));
    assert_eq!(result["limited_by"], "arithmetic");
    let limit = 8.0 * 1e6 / (number(&result, "giga_operations") * 1e9);
    assert!((number(&result, "limit_tokens_per_second") / limit - 1.0).abs() < 1e-9, "{result}");
    let head = result["profile"]["parts"].as_array().unwrap().iter().find(|part| part["part"] == "lm_head");
    assert_eq!(head.unwrap()["launches"], 2, "one for each chunk: {result}");
}

#[test]
fn batches_at_depths_become_a_plot() {
    let folder = tempfile::tempdir().unwrap();
    let result = bench(&format!(
        "batch --model {} --backend reference --batch 1,2 --depth 4,20 --steps 4 --repeats 2 --positions 45",
        model()
    ));
    let results = result["results"].as_array().unwrap();
    let measured: Vec<(u64, u64)> = results
        .iter()
        .map(|result| (result["batch"].as_u64().unwrap(), result["depth"].as_u64().unwrap()))
        .collect();
    assert_eq!(measured, [(1, 4), (1, 20), (2, 4)], "{result}");
    assert_eq!(result["left_out"], serde_json::json!([{ "batch": 2, "depth": 20 }]));
    for measured in results {
        has_rate_and_limit(measured, &result, number(measured, "batch"));
        assert!(number(measured, "mean_depth") > number(measured, "depth"), "{measured}");
    }
    let weights = |index: usize| number(&results[index], "weight_bytes");
    assert!(weights(2) > weights(0) * 1.1, "two tokens choose more experts than one: {result}");
    let (figures, svg) = (folder.path().join("figures.json"), folder.path().join("figures.svg"));
    std::fs::write(&figures, result.to_string()).unwrap();
    let told = bench(&format!("plot {} -o {}", figures.display(), svg.display()));
    assert_eq!((told["panels"].as_u64(), told["lines"].as_u64()), (Some(2), Some(2)));
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("haiku-moe-mxfp4, 4 tokens deep"), "{drawn}");
}

#[test]
fn loads_tell_their_phases_and_their_limit() {
    let result = bench(&format!("load --model {} --backend reference --repeats 1", model()));
    for phase in ["open_file", "open_device", "upload", "start_engine", "first_token"] {
        let phase = &result["phases"][phase];
        assert!(number(phase, "min_ms") <= number(phase, "max_ms"), "{result}");
    }
    let limit =
        number(&result, "data_bytes") / number(&result["bandwidth"], "upload_gigabytes_per_second") / 1e6;
    assert!((number(&result, "limit_ms") / limit - 1.0).abs() < 1e-9, "{result}");
    let fraction = limit / number(&result["total"], "median_ms");
    assert!((number(&result, "fraction_of_limit") / fraction - 1.0).abs() < 1e-9, "{result}");
}

#[test]
fn operations_are_measured_by_format_and_shape() {
    let every =
        bench("ops --backend reference --op linear --rows 32 --cols 256 --tokens 1 --repeats 1 --copies 2");
    assert_eq!(every["results"].as_array().unwrap().len(), 14, "every format: {every}");
    for backend in backends() {
        let line = format!(
            "ops --backend {} --dtype q4_k --rows 32 --cols 256 --tokens 2 --repeats 1 --copies 3 --depth 5 \
             --heads 4 --kv-heads 2 --head-dim 16 --experts 4 --experts-per-token 2",
            backend.name()
        );
        let result = bench(&line);
        let results = result["results"].as_array().unwrap();
        let ops: Vec<&str> = results.iter().map(|result| result["op"].as_str().unwrap()).collect();
        assert_eq!(ops, ["linear", "moe_linear", "attention", "rms_norm"], "{result}");
        for measured in results {
            assert!(number(measured, "fraction_of_bandwidth") > 0.0, "{measured}");
            assert!(number(&measured["time"], "min_us") <= number(&measured["time"], "median_us"));
        }
        // Two sequences of 6 positions of 2 heads of 16 halves, keys and values.
        assert_eq!(results[2]["cache_bytes"], 2.0 * 6.0 * 2.0 * 16.0 * 2.0 * 2.0);
        assert_eq!(results[0]["weight_bytes"], 32.0 * 144.0);
        // Of 4 experts two tokens choose 4 (1 - (1 - 2/4)^2) = 3.
        assert_eq!(results[1]["weight_bytes"], 3.0 * 32.0 * 144.0);
    }
}

#[test]
fn limits_need_no_device() {
    let line = format!("limits --model {} --gigabytes-per-second 3050 --batch 1,4 --depth 0,1000", model());
    let result = bench(&line);
    let results = result["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        let bytes = number(result, "weight_bytes") + number(result, "cache_bytes");
        let limit = number(result, "batch") * 3050e9 / bytes;
        assert!((number(result, "limit_tokens_per_second") / limit - 1.0).abs() < 1e-6, "{result}");
    }
    assert!(number(&results[1], "cache_bytes") > number(&results[0], "cache_bytes"));
}
