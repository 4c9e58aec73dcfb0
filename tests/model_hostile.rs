//! Files that are sound containers but no models we can run: each is refused by the rule it breaks, at the key or
//! tensor that breaks it; none panics, and none takes memory out of proportion.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "model_hostile/cases.rs"]
mod cases;
#[path = "gguf_hostile/counting.rs"]
mod counting;
#[path = "model_hostile/forged.rs"]
mod forged;

use cases::Bad;
use counting::peak_bytes;
use forged::{Forged, PRESETS};
use worker_orcd::gguf::{EncodeValue, Gguf};
use worker_orcd::model::{Model, ModelOptions, Parity, Recorder, StepHead};
use worker_orcd::text::Tokenizer;
use worker_orcd_core::StepShape;

/// Rotary tables are made for at most 16,384 positions of at most 512 elements (32 MiB) while a file is understood;
/// vocabularies cost several times their text.
const ALLOWANCE: usize = 48 << 20;

fn understand(gguf: &Gguf, options: ModelOptions) -> Result<Model, String> {
    let (result, peak) = peak_bytes(|| Model::new(gguf, options));
    let limit = ALLOWANCE + 4 * gguf.file_bytes() as usize;
    assert!(peak <= limit, "{peak} bytes held, at most {limit} are reasonable");
    result.map_err(|error| error.to_string())
}

fn tokenizer(gguf: &Gguf) -> Result<Tokenizer, String> {
    let (result, peak) = peak_bytes(|| Tokenizer::load(gguf, None));
    let limit = ALLOWANCE + 4 * gguf.file_bytes() as usize;
    assert!(peak <= limit, "{peak} bytes held, at most {limit} are reasonable");
    result.map_err(|error| error.to_string())
}

fn open(file: &Forged) -> Gguf {
    Gguf::from_bytes("bad.gguf", file.bytes()).unwrap()
}

/// Whether the text has the words between the `…` of `expected`, in order.
fn holds(text: &str, expected: &str) -> bool {
    let rest = expected.split('…').try_fold(text, |rest, words| Some(rest.split_once(words)?.1));
    rest.is_some()
}

fn refusals(bad: &[Bad], understand: impl Fn(&Gguf) -> Result<(), String>) {
    let mut wrong = vec![];
    for Bad { preset, edit, expected } in bad {
        let mut file = Forged::preset(preset);
        edit(&mut file);
        match understand(&open(&file)) {
            Ok(()) => wrong.push(format!("{preset}: accepted, must say {expected:?}")),
            Err(text) if !text.starts_with("bad.gguf: ") || !holds(&text, expected) => {
                wrong.push(format!("{preset}: must say {expected:?}, says {text:?}"));
            }
            Err(text) => assert!(text.len() < 1000, "a message of {} bytes: {text:.200}…", text.len()),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), bad.len(), wrong.join("\n"));
}

#[test]
fn every_hand_made_bad_model_is_refused_by_its_rule() {
    let bad = cases::models();
    assert!(bad.len() >= 100, "{} cases", bad.len());
    refusals(&bad, |gguf| understand(gguf, ModelOptions::default()).map(drop));
}

#[test]
fn every_hand_made_bad_vocabulary_is_refused_by_its_rule() {
    let bad = cases::tokenizers();
    refusals(&bad, |gguf| tokenizer(gguf).map(drop));
}

#[test]
fn what_the_cases_are_made_from_is_a_model_with_a_tokenizer() {
    for preset in PRESETS {
        let gguf = open(&Forged::preset(preset));
        understand(&gguf, ModelOptions::default()).unwrap();
        tokenizer(&gguf).unwrap();
    }
}

#[test]
fn unusual_good_models_are_understood() {
    let understood = |preset: &str, edit: &dyn Fn(&mut Forged)| {
        let mut file = Forged::preset(preset);
        edit(&mut file);
        understand(&open(&file), ModelOptions::default()).unwrap()
    };
    let wide = understood("tiny-qwen2", &|file| file.set(".block_count", &4_u64));
    assert_eq!(wide.config().num_layers, 4, "any integer width will do");
    let window = understood("tiny-gpt-oss", &|file| file.set(".attention.sliding_window", &u32::MAX));
    assert_eq!(
        window.config().sliding_window,
        Some(u32::MAX as usize),
        "wider than the context is no window"
    );
    let none = understood("tiny-phi3", &|file| file.set(".attention.sliding_window", &0_u32));
    assert_eq!(none.config().sliding_window, None);
    let huge = understood("tiny-llama", &|file| file.set(".context_length", &(1_u32 << 24)));
    assert_eq!(huge.context_length(), 16_384, "a long context is served only when asked for");
    let flags = [false, true, true, false];
    let pattern = understood("tiny-gpt-oss", &|file| {
        file.set(".attention.sliding_window_pattern", flags.as_slice());
    });
    assert_eq!(pattern.config().sliding_layers, flags);
}

#[test]
fn a_context_beyond_the_model_is_refused() {
    let gguf = open(&Forged::preset("tiny-llama"));
    for context in [0, 2049, usize::MAX] {
        let options = ModelOptions { context: Some(context), ..ModelOptions::default() };
        let text = understand(&gguf, options).unwrap_err();
        assert_eq!(text, format!("context of {context} positions; this model has 2048"));
    }
}

#[test]
fn unknown_tensors_are_ignored_only_on_request() {
    let mut file = Forged::preset("tiny-llama");
    file.add("blk.0.attn_rot_embd", &[64], worker_orcd_core::DType::F32);
    let options = ModelOptions { allow_unknown_tensors: true, ..ModelOptions::default() };
    understand(&open(&file), options).unwrap();
    understand(&open(&file), ModelOptions::default()).unwrap_err();
}

/// Values that have broken readers of this format, of every type.
fn nasty() -> Vec<(&'static str, Box<dyn EncodeValue>)> {
    vec![
        ("0", Box::new(0_u32)),
        ("1", Box::new(1_u32)),
        ("3", Box::new(3_u32)),
        ("512", Box::new(512_u32)),
        ("2^24", Box::new(1_u32 << 24)),
        ("2^32 - 1", Box::new(u32::MAX)),
        ("2^64 - 1", Box::new(u64::MAX)),
        ("-1", Box::new(-1_i32)),
        ("0.0", Box::new(0_f32)),
        ("-0.5", Box::new(-0.5_f32)),
        ("smallest", Box::new(f32::from_bits(1))),
        ("largest", Box::new(f32::MAX)),
        ("NaN", Box::new(f32::NAN)),
        ("true", Box::new(true)),
    ]
}

#[test]
fn no_value_of_any_key_panics() {
    let shape = StepShape { tokens: 3, rows: 2, sequences: 2 };
    for preset in PRESETS {
        let good = Forged::preset(preset);
        let extra = [".rope.dimension_count", ".rope.scaling.factor", ".attention.scale", ".expert_count"];
        let keys: Vec<String> = good.keys.iter().map(|(key, _)| key.clone()).collect();
        for key in keys.iter().map(String::as_str).chain(extra) {
            for (about, value) in nasty() {
                let mut file = good.clone();
                file.set(key, &Boxed(value));
                let gguf = open(&file);
                let options = ModelOptions {
                    parity: Parity { yarn_truncate: true, ignore_phi3_window: true },
                    ..ModelOptions::default()
                };
                for options in [options, ModelOptions::default()] {
                    let Ok(model) = understand(&gguf, options) else { continue };
                    for head in [StepHead::Logits, StepHead::Sample { max_penalty_tokens: 4 }] {
                        let recorded = model.record(shape, head);
                        assert!(recorded.is_ok(), "{preset}, {key} = {about}: {:?}", recorded.err());
                    }
                }
                if key.starts_with("tokenizer.") || key.starts_with("general.") {
                    let _either_way = tokenizer(&gguf);
                }
            }
        }
    }
}

/// Any value, to be passed where one type is wanted.
struct Boxed(Box<dyn EncodeValue>);

impl EncodeValue for Boxed {
    fn kind(&self) -> worker_orcd::gguf::ValueKind {
        self.0.kind()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
