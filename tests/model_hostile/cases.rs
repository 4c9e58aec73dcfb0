//! The hand-made bad models: a preset, what is done to it, and words the refusal must hold, in order, with `…`
//! between them.

use worker_orcd_core::DType;

use crate::forged::Forged;

/// One bad model or tokenizer.
pub(crate) struct Bad {
    pub(crate) preset: &'static str,
    pub(crate) edit: Box<dyn Fn(&mut Forged)>,
    pub(crate) expected: &'static str,
}

fn bad(preset: &'static str, expected: &'static str, edit: impl Fn(&mut Forged) + 'static) -> Bad {
    Bad { preset, edit: Box::new(edit), expected }
}

/// An integer key set to a value out of range.
fn number(preset: &'static str, key: &'static str, value: u32, expected: &'static str) -> Bad {
    bad(preset, expected, move |file| file.set(key, &value))
}

fn float(preset: &'static str, key: &'static str, value: f32, expected: &'static str) -> Bad {
    bad(preset, expected, move |file| file.set(key, &value))
}

fn text(preset: &'static str, key: &'static str, value: &'static str, expected: &'static str) -> Bad {
    bad(preset, expected, move |file| file.set(key, value))
}

fn no_key(preset: &'static str, key: &'static str, expected: &'static str) -> Bad {
    bad(preset, expected, move |file| file.unset(key))
}

fn no_tensor(preset: &'static str, name: &'static str, expected: &'static str) -> Bad {
    bad(preset, expected, move |file| file.remove(|tensor| tensor == name))
}

fn shape(
    preset: &'static str,
    name: &'static str,
    dims: &'static [u64],
    dtype: DType,
    expected: &'static str,
) -> Bad {
    bad(preset, expected, move |file| file.reshape(name, dims, dtype))
}

const QWEN2: &str = "tiny-qwen2";
const PHI3: &str = "tiny-phi3";
const LLAMA: &str = "tiny-llama";
const GPT_OSS: &str = "tiny-gpt-oss";
const GPT2: &str = "tiny-gpt2";

/// Every bad model.
pub(crate) fn models() -> Vec<Bad> {
    [
        architecture(),
        sizes(),
        heads(),
        experts(),
        windows(),
        rotary(),
        missing_and_extra_tensors(),
        tensor_shapes(),
        vocabulary_size(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn architecture() -> Vec<Bad> {
    let supported = "is not supported; supported: qwen2, phi3, llama, gpt-oss, gptoss, gpt2";
    vec![
        no_key(QWEN2, "general.architecture", "general.architecture…is missing"),
        text(QWEN2, "general.architecture", "mamba", supported),
        text(QWEN2, "general.architecture", "", supported),
        text(QWEN2, "general.architecture", "Qwen2", supported),
        number(QWEN2, "general.architecture", 7, "general.architecture…must be a string, found u32"),
        bad(QWEN2, supported, |file| file.set("general.architecture", "q".repeat(1 << 20).as_str())),
        // The keys of one architecture under the name of another.
        text(
            QWEN2,
            "general.architecture",
            "llama",
            "key llama.block_count: found nothing, must be 1 to 512",
        ),
        text(GPT_OSS, "general.architecture", "gptoss", "key gptoss.block_count: found nothing"),
    ]
}

fn sizes() -> Vec<Bad> {
    let layers = "qwen2.block_count: found";
    vec![
        no_key(QWEN2, ".block_count", "key qwen2.block_count: found nothing, must be 1 to 512"),
        number(QWEN2, ".block_count", 0, layers),
        number(QWEN2, ".block_count", 513, layers),
        number(QWEN2, ".block_count", u32::MAX, "found 4294967295, must be 1 to 512"),
        number(QWEN2, ".block_count", 512, "tensor blk.4.attn_norm.weight is missing"),
        number(QWEN2, ".block_count", 3, "tensors have no place in this architecture, the first is blk.3."),
        bad(QWEN2, "block_count…must be an integer, found array of u32", |f| {
            f.set(".block_count", [4_u32, 4].as_slice());
        }),
        bad(QWEN2, "qwen2.block_count…-1 does not fit", |f| f.set(".block_count", &-1_i32)),
        text(QWEN2, ".block_count", "4", "block_count…must be an integer, found string"),
        float(QWEN2, ".block_count", 4.0, "block_count…must be an integer, found f32"),
        bad(QWEN2, layers, |file| file.set(".block_count", &u64::MAX)),
        no_key(LLAMA, ".embedding_length", "key llama.embedding_length: found nothing"),
        number(LLAMA, ".embedding_length", 0, "embedding_length: found 0, must be 1 to 65536"),
        number(LLAMA, ".embedding_length", 65_537, "embedding_length: found 65537"),
        number(LLAMA, ".embedding_length", 512, "tensor token_embd.weight: expected shape [512, 1024, 1]"),
        no_key(PHI3, ".context_length", "key phi3.context_length: found nothing"),
        number(PHI3, ".context_length", 0, "phi3.context_length: found 0, must be 1 to 16777216"),
        number(PHI3, ".context_length", u32::MAX, "context_length: found 4294967295"),
        number(GPT2, ".context_length", 1 << 24, "position_embd.weight: expected shape [256, 16777216, 1]"),
        no_key(LLAMA, ".feed_forward_length", "key llama.feed_forward_length: found nothing"),
        number(LLAMA, ".feed_forward_length", 0, "feed_forward_length: found 0"),
        number(LLAMA, ".feed_forward_length", u32::MAX, "feed_forward_length: found 4294967295"),
        number(LLAMA, ".feed_forward_length", 511, "blk.0.ffn_gate.weight: expected shape [256, 511, 1]"),
        bad(LLAMA, "feed_forward_length…must be an integer, found array of i32", |f| {
            f.set(".feed_forward_length", [512_i32; 4].as_slice());
        }),
        no_key(QWEN2, ".attention.layer_norm_rms_epsilon", "layer_norm_rms_epsilon: found NaN, must be in"),
        float(QWEN2, ".attention.layer_norm_rms_epsilon", f32::NAN, "rms_epsilon…must be finite"),
        float(QWEN2, ".attention.layer_norm_rms_epsilon", 0.0, "rms_epsilon: found 0, must be in (0, 0.01]"),
        float(QWEN2, ".attention.layer_norm_rms_epsilon", -1e-6, "must be in (0, 0.01]"),
        float(QWEN2, ".attention.layer_norm_rms_epsilon", 0.5, "must be in (0, 0.01]"),
        no_key(GPT2, ".attention.layer_norm_epsilon", "gpt2.attention.layer_norm_epsilon: found NaN"),
        float(GPT2, ".attention.layer_norm_epsilon", f32::INFINITY, "layer_norm_epsilon…must be finite"),
    ]
}

fn heads() -> Vec<Bad> {
    vec![
        no_key(QWEN2, ".attention.head_count", "key qwen2.attention.head_count: found nothing"),
        number(QWEN2, ".attention.head_count", 0, "head_count: found 0, must be 1 to 4096"),
        number(QWEN2, ".attention.head_count", 4097, "head_count: found 4097, must be 1 to 4096"),
        bad(QWEN2, "attention.head_count…must be an integer, found array of u32", |f| {
            f.set(".attention.head_count", [4_u32, 4, 4].as_slice());
        }),
        number(QWEN2, ".attention.head_count_kv", 0, "head_count_kv: found 0, must be 1 to 4096"),
        number(QWEN2, ".attention.head_count_kv", 3, "head_count_kv: found 3, must divide head_count 4"),
        number(QWEN2, ".attention.head_count_kv", 8, "head_count_kv: found 8, must divide head_count 4"),
        number(QWEN2, ".attention.head_count_kv", 1, "blk.0.attn_k.weight: expected shape [256, 64, 1]"),
        bad(PHI3, "key phi3.attention.head_count: found 3, must divide embedding_length", |file| {
            file.set(".attention.head_count", &3_u32);
            file.set(".attention.head_count_kv", &3_u32);
            file.keys.retain(|(key, _)| !key.ends_with("key_length") && !key.ends_with("value_length"));
        }),
        number(GPT_OSS, ".attention.key_length", 0, "key_length: found 0, must be 1 to 512"),
        number(GPT_OSS, ".attention.key_length", 63, "key_length: found 63, must be even"),
        number(GPT_OSS, ".attention.key_length", 513, "key_length: found 513"),
        number(GPT_OSS, ".attention.key_length", 32, "attention.value_length: found 64, must be 32"),
        number(GPT_OSS, ".attention.value_length", 128, "value_length: found 128, must be 64"),
        float(LLAMA, ".attention.scale", 0.0, "attention.scale: found 0, must be positive"),
        float(LLAMA, ".attention.scale", f32::NAN, "attention.scale…must be finite"),
    ]
}

fn experts() -> Vec<Bad> {
    vec![
        no_key(GPT_OSS, ".expert_count", "gpt-oss.expert_count: found nothing, must be 1 to 4096"),
        number(GPT_OSS, ".expert_count", 0, "expert_count: found 0, must be 1 to 4096"),
        number(GPT_OSS, ".expert_count", u32::MAX, "expert_count: found 4294967295"),
        number(GPT_OSS, ".expert_count", 16, "ffn_gate_inp.weight: expected shape [256, 16, 1]"),
        no_key(GPT_OSS, ".expert_used_count", "expert_used_count: found nothing, must be 1 to 8"),
        number(GPT_OSS, ".expert_used_count", 0, "expert_used_count: found 0, must be 1 to 8"),
        number(GPT_OSS, ".expert_used_count", 9, "expert_used_count: found 9, must be 1 to 8"),
        number(GPT_OSS, ".expert_feed_forward_length", 0, "expert_feed_forward_length: found 0"),
        number(GPT_OSS, ".expert_feed_forward_length", 1 << 21, "expert_feed_forward_length: found 2097152"),
        number(QWEN2, ".expert_count", 8, "expert_count: found 8, must be absent: only gpt-oss has experts"),
    ]
}

fn windows() -> Vec<Bad> {
    let window = "key gpt-oss.attention.sliding_window: found none, must be at least 1";
    vec![
        no_key(GPT_OSS, ".attention.sliding_window", window),
        number(GPT_OSS, ".attention.sliding_window", 0, window),
        bad(GPT_OSS, "attention.sliding_window: found 4294967296", |file| {
            file.set(".attention.sliding_window", &(1_u64 << 32));
        }),
        bad(GPT_OSS, "sliding_window_pattern: found 3 flags, must be 4 flags", |file| {
            file.set(".attention.sliding_window_pattern", [true, false, true].as_slice());
        }),
        number(GPT_OSS, ".attention.sliding_window_pattern", 0, "sliding_window_pattern: found 0, must be 1"),
        text(
            GPT_OSS,
            ".attention.sliding_window_pattern",
            "even",
            "sliding_window_pattern…must be an integer",
        ),
        bad(GPT_OSS, "sliding_window_pattern…must be", |file| {
            file.set(".attention.sliding_window_pattern", ["a", "b", "c", "d"].as_slice());
        }),
    ]
}

fn rotary() -> Vec<Bad> {
    let base = "rope.freq_base: found";
    vec![
        float(QWEN2, ".rope.freq_base", 0.0, base),
        float(QWEN2, ".rope.freq_base", -1.0, base),
        float(QWEN2, ".rope.freq_base", 1.0, base),
        float(QWEN2, ".rope.freq_base", f32::NAN, "rope.freq_base…must be finite"),
        float(QWEN2, ".rope.freq_base", f32::INFINITY, "rope.freq_base…must be finite"),
        text(QWEN2, ".rope.freq_base", "1e6", "rope.freq_base…must be a float, found string"),
        number(LLAMA, ".rope.dimension_count", 0, "rope.dimension_count: found 0, must be 2 to 64"),
        number(LLAMA, ".rope.dimension_count", 33, "rope.dimension_count: found 33, must be even"),
        number(LLAMA, ".rope.dimension_count", 128, "rope.dimension_count: found 128, must be 2 to 64"),
        float(GPT_OSS, ".rope.scaling.factor", 0.0, "rope.scaling.factor: found 0, must be at least 1"),
        float(GPT_OSS, ".rope.scaling.factor", 0.5, "rope.scaling.factor: found 0.5, must be at least 1"),
        float(GPT_OSS, ".rope.scaling.factor", f32::NAN, "rope.scaling.factor…must be finite"),
        text(
            GPT_OSS,
            ".rope.scaling.type",
            "ntk",
            "rope.scaling.type: found ntk, must be none, linear or yarn",
        ),
        number(GPT_OSS, ".rope.scaling.type", 1, "rope.scaling.type…must be a string, found u32"),
        number(GPT_OSS, ".rope.scaling.original_context_length", 0, "original_context_length: found 0"),
        float(GPT_OSS, ".rope.scaling.yarn_beta_fast", 0.0, "yarn_beta_fast: found 0, must be positive"),
        float(
            GPT_OSS,
            ".rope.scaling.yarn_attn_factor",
            -1.0,
            "yarn_attn_factor: found -1, must be positive",
        ),
        shape(
            LLAMA,
            "rope_freqs.weight",
            &[32],
            DType::F32,
            "rope factors: found a value that is not positive",
        ),
        shape(LLAMA, "rope_freqs.weight", &[31], DType::F32, "rope_freqs.weight: expected shape [32, 1, 1]"),
        bad(
            PHI3,
            "rope_factors_long.weight and rope_factors_short.weight (both or neither) is missing",
            |file| {
                file.add("rope_factors_long.weight", &[32], DType::F32);
            },
        ),
        bad(PHI3, "rope factors: found a value that is not positive", |file| {
            file.add("rope_factors_long.weight", &[32], DType::F32);
            file.add("rope_factors_short.weight", &[32], DType::F32);
        }),
    ]
}

fn missing_and_extra_tensors() -> Vec<Bad> {
    vec![
        no_tensor(QWEN2, "token_embd.weight", "tensor token_embd.weight is missing"),
        no_tensor(QWEN2, "output_norm.weight", "tensor output_norm.weight is missing"),
        no_tensor(PHI3, "blk.1.attn_qkv.weight", "tensor blk.1.attn_q.weight is missing"),
        no_tensor(GPT_OSS, "blk.2.attn_sinks.weight", "tensor blk.2.attn_sinks.weight is missing"),
        no_tensor(GPT_OSS, "blk.2.ffn_down_exps.weight", "tensor blk.2.ffn_down_exps.weight is missing"),
        no_tensor(GPT2, "position_embd.weight", "tensor position_embd.weight is missing"),
        bad(LLAMA, "is missing", |file| file.tensors.clear()),
        bad(
            LLAMA,
            "1 tensors have no place in this architecture, the first is blk.0.attn_rot_embd",
            |file| {
                file.add("blk.0.attn_rot_embd", &[64], DType::F32);
            },
        ),
        bad(LLAMA, "the first is blk.4.attn_norm.weight", |f| {
            f.add("blk.4.attn_norm.weight", &[256], DType::F32);
        }),
    ]
}

fn tensor_shapes() -> Vec<Bad> {
    let mut cases = vec![
        shape(
            LLAMA,
            "blk.0.ffn_gate.weight",
            &[512, 256],
            DType::F16,
            "expected shape [256, 512, 1], found [512, 256",
        ),
        shape(
            LLAMA,
            "blk.0.attn_norm.weight",
            &[255],
            DType::F32,
            "blk.0.attn_norm.weight: expected shape [256, 1",
        ),
        shape(
            LLAMA,
            "blk.0.attn_norm.weight",
            &[256, 2],
            DType::F32,
            "expected shape [256, 1, 1], found [256, 2",
        ),
        shape(
            LLAMA,
            "blk.0.attn_norm.weight",
            &[256],
            DType::Q8_0,
            "type Q8_0 where F32, F16 or BF16 is needed",
        ),
        shape(
            QWEN2,
            "blk.0.attn_q.bias",
            &[256],
            DType::MXFP4,
            "type MXFP4 where F32, F16 or BF16 is needed",
        ),
        shape(
            GPT_OSS,
            "blk.0.attn_sinks.weight",
            &[8],
            DType::F32,
            "attn_sinks.weight: expected shape [4, 1, 1]",
        ),
        shape(GPT_OSS, "blk.0.ffn_gate_exps.bias", &[8, 256], DType::F32, "expected shape [256, 8, 1]"),
        shape(
            GPT_OSS,
            "blk.0.ffn_up_exps.weight",
            &[256, 256, 7],
            DType::MXFP4,
            "blk.0.ffn_up_exps.weight: expected shape [256, 256, 8], found [256, 256, 7, 1]",
        ),
        shape(PHI3, "blk.0.ffn_up.weight", &[256, 512], DType::F16, "expected shape [256, 1024, 1]"),
        shape(QWEN2, "blk.0.attn_q.weight", &[256, 128, 2], DType::F16, "found [256, 128, 2, 1]"),
    ];
    for preset in [QWEN2, LLAMA] {
        let expected = "output.weight: expected shape [256, 1024, 1], found [256, 1023, 1, 1]";
        cases.push(bad(preset, expected, |file| {
            file.tensors.retain(|tensor| tensor.name != "output.weight");
            file.add("output.weight", &[256, 1023], DType::F16);
        }));
    }
    cases
}

fn vocabulary_size() -> Vec<Bad> {
    let few = "key tokenizer.ggml.tokens: found 2 tokens, must match the 1024 rows of token_embd.weight";
    vec![
        bad(QWEN2, few, |file| file.set("tokenizer.ggml.tokens", ["a", "b"].as_slice())),
        bad(QWEN2, "tokenizer.ggml.tokens: found 0 tokens, must match", |file| {
            file.set("tokenizer.ggml.tokens", Vec::<&str>::new().as_slice());
        }),
        bad(QWEN2, "tokenizer.ggml.tokens…must be", |f| {
            f.set("tokenizer.ggml.tokens", [1_u32, 2].as_slice());
        }),
        shape(LLAMA, "token_embd.weight", &[256], DType::F32, "found 1024 tokens, must match the 1 rows"),
        number(LLAMA, "general.name", 3, "general.name…must be a string, found u32"),
        text(LLAMA, "general.file_type", "Q4_K_M", "general.file_type…must be an integer, found string"),
    ]
}

/// Every bad tokenizer: byte-level in `tiny-qwen2`, SentencePiece-style in `tiny-phi3`.
pub(crate) fn tokenizers() -> Vec<Bad> {
    [families(), parallel_lists(), merges(), special_ids(), token_texts()].into_iter().flatten().collect()
}

fn families() -> Vec<Bad> {
    vec![
        no_key(QWEN2, "tokenizer.ggml.model", "tokenizer model \"\" is not supported"),
        text(QWEN2, "tokenizer.ggml.model", "bert", "tokenizer model \"bert\" is not supported"),
        number(QWEN2, "tokenizer.ggml.model", 1, "tokenizer.ggml.model…must be a string"),
        no_key(QWEN2, "tokenizer.ggml.pre", "tokenizer.ggml.pre is missing"),
        text(QWEN2, "tokenizer.ggml.pre", "klingon", "pre-tokenizer \"klingon\" is not supported"),
        no_key(QWEN2, "tokenizer.ggml.tokens", "the vocabulary has 0 entries, expected 1 to"),
        bad(QWEN2, "the vocabulary has 0 entries", |file| {
            file.set("tokenizer.ggml.tokens", Vec::<&str>::new().as_slice());
        }),
    ]
}

fn parallel_lists() -> Vec<Bad> {
    vec![
        bad(PHI3, "tokenizer.ggml.token_type has 3 entries, expected at least 1024, one per token", |file| {
            file.set("tokenizer.ggml.token_type", [1_i32, 1, 1].as_slice());
        }),
        bad(PHI3, "tokenizer.ggml.token_type…must be", |file| {
            file.set("tokenizer.ggml.token_type", [1.0_f32; 1024].as_slice());
        }),
        bad(PHI3, "token 0 has type 7, expected 1 to 6", |file| {
            file.set("tokenizer.ggml.token_type", [7_i32; 1024].as_slice());
        }),
        bad(PHI3, "token 0 has type -2147483648, expected 1 to 6", |file| {
            file.set("tokenizer.ggml.token_type", [i32::MIN; 1024].as_slice());
        }),
        no_key(PHI3, "tokenizer.ggml.scores", "tokenizer.ggml.scores is missing"),
        bad(PHI3, "tokenizer.ggml.scores has 2 entries, expected at least 1024", |file| {
            file.set("tokenizer.ggml.scores", [0.0_f32; 2].as_slice());
        }),
        bad(PHI3, "tokenizer.ggml.scores…must be", |f| {
            f.set("tokenizer.ggml.scores", [0_u8; 1024].as_slice());
        }),
        bad(PHI3, "token 0 has score NaN, expected a finite number", |file| {
            file.set("tokenizer.ggml.scores", [f32::NAN; 1024].as_slice());
        }),
    ]
}

fn merges() -> Vec<Bad> {
    vec![
        no_key(QWEN2, "tokenizer.ggml.merges", "tokenizer.ggml.merges is missing"),
        bad(QWEN2, "merge 0…expected two texts with a space between", |file| {
            file.set("tokenizer.ggml.merges", ["abc"].as_slice());
        }),
        bad(QWEN2, "merge 0…expected two texts", |f| {
            f.set("tokenizer.ggml.merges", [""].as_slice());
        }),
        bad(QWEN2, "merge 0 (\"\u{4e00} b\"): a half is not a token", |file| {
            file.set("tokenizer.ggml.merges", ["\u{4e00} b"].as_slice());
        }),
        bad(QWEN2, "merge 0 (\"! !\"): the halves together are not a token", |file| {
            file.set("tokenizer.ggml.merges", ["! !"].as_slice());
        }),
        bad(QWEN2, "tokenizer.ggml.merges…must be", |f| f.set("tokenizer.ggml.merges", [1_i32].as_slice())),
    ]
}

fn special_ids() -> Vec<Bad> {
    vec![
        number(
            QWEN2,
            "tokenizer.ggml.bos_token_id",
            1024,
            "is 1024, expected less than the vocabulary size 1024",
        ),
        number(
            QWEN2,
            "tokenizer.ggml.eos_token_id",
            u32::MAX,
            "is 4294967295, expected less than the vocabulary",
        ),
        bad(QWEN2, "padding_token_id…-1 does not fit", |f| {
            f.set("tokenizer.ggml.padding_token_id", &-1_i32);
        }),
        number(QWEN2, "tokenizer.ggml.eot_token_id", 5000, "is 5000, expected less than the vocabulary size"),
        text(QWEN2, "tokenizer.ggml.add_bos_token", "no", "tokenizer.ggml.add_bos_token…must be a bool"),
    ]
}

fn token_texts() -> Vec<Bad> {
    vec![
        bad(QWEN2, "tokens 0 and 1 are not distinct: \"a\"", |file| {
            file.set("tokenizer.ggml.tokens", ["a"; 1024].as_slice());
        }),
        bad(QWEN2, "no token stands for byte 0x00", move |file| {
            let names: Vec<String> = (0..1024).map(|id| format!("token{id}")).collect();
            file.set("tokenizer.ggml.tokens", names.as_slice());
            file.set("tokenizer.ggml.merges", Vec::<&str>::new().as_slice());
        }),
        bad(PHI3, "byte token 0 is written \"<0xZZ>\", expected <0xHH>", byte_token("<0xZZ>")),
        bad(PHI3, "byte token 0 is written \"<0x-1>\", expected <0xHH>", byte_token("<0x-1>")),
        bad(PHI3, "byte token 0 is written \"<0x>\", expected <0xHH>", byte_token("<0x>")),
        bad(PHI3, "no token stands for byte 0x00", byte_token("<0x41>")),
    ]
}

/// A vocabulary whose first token is a byte token of this text, and whose others are ordinary.
fn byte_token(text: &'static str) -> impl Fn(&mut Forged) {
    move |file| {
        let mut names: Vec<String> = (0..1024).map(|id| format!("token{id}")).collect();
        text.clone_into(&mut names[0]);
        let mut types = [1_i32; 1024];
        types[0] = 6;
        file.set("tokenizer.ggml.tokens", names.as_slice());
        file.set("tokenizer.ggml.token_type", types.as_slice());
    }
}
