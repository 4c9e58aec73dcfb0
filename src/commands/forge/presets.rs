//! The presets: exact shapes, types and metadata of the published files, and tiny models of every architecture.

use worker_orcd_core::DType;

use super::blueprint::{Blueprint, Fill, Meta, Role, Sizes, q4_k_m};
use super::vocabulary::Vocabulary;

/// Names of the presets.
pub(super) const NAMES: [&str; 9] = [
    "gpt-oss-20b",
    "gpt-oss-120b",
    "qwen2.5-0.5b",
    "phi-3-mini",
    "tiny-qwen2",
    "tiny-phi3",
    "tiny-llama",
    "tiny-gpt-oss",
    "tiny-gpt2",
];

const TINY: Sizes = Sizes {
    layers: 4,
    hidden: 256,
    ffn: 512,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 1024,
    context: 2048,
    window: 0,
    experts: 0,
};

/// The blueprint of a preset.
pub(super) fn blueprint(name: &str) -> Option<Blueprint> {
    let gpt_oss = Sizes {
        layers: 24,
        hidden: 2880,
        ffn: 2880,
        heads: 64,
        kv_heads: 8,
        head_dim: 64,
        vocab: 201_088,
        context: 131_072,
        window: 128,
        experts: 32,
    };
    Some(match name {
        "gpt-oss-20b" => gpt_oss_blueprint(name, &gpt_oss),
        "gpt-oss-120b" => gpt_oss_blueprint(name, &Sizes { layers: 36, experts: 128, ..gpt_oss }),
        "qwen2.5-0.5b" => qwen2(
            name,
            &Sizes { layers: 24, hidden: 896, ffn: 4864, heads: 14, vocab: 151_936, context: 32_768, ..TINY },
        ),
        "phi-3-mini" => phi3(
            name,
            &Sizes {
                layers: 32,
                hidden: 3072,
                ffn: 8192,
                heads: 32,
                kv_heads: 32,
                head_dim: 96,
                vocab: 32_064,
                context: 4096,
                window: 2047,
                experts: 0,
            },
        ),
        "tiny-qwen2" => qwen2(name, &TINY),
        "tiny-phi3" => phi3(name, &Sizes { kv_heads: 4, window: 100, ..TINY }),
        "tiny-llama" => llama(name, &TINY),
        "tiny-gpt-oss" => gpt_oss_blueprint(name, &Sizes { ffn: 256, experts: 8, window: 32, ..TINY }),
        "tiny-gpt2" => gpt2(name, &Sizes { kv_heads: 4, ffn: 1024, ..TINY }),
        _ => return None,
    })
}

fn qwen2(name: &str, sizes: &Sizes) -> Blueprint {
    let mut b = Blueprint::new("qwen2", name, 15, Vocabulary::qwen2(sizes.vocab));
    b.sizes(sizes);
    b.own_key("rope.freq_base", Meta::F32(1_000_000.0));
    b.own_key("attention.layer_norm_rms_epsilon", Meta::F32(1e-6));
    // Tied: the embedding is the head and takes the head's type.
    b.embedding(q4_k_m(Role::Output, 0, sizes.layers, sizes.hidden), sizes);
    b.norm("output_norm.weight", sizes.hidden);
    let (q, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    for layer in 0..sizes.layers {
        let blk = |part: &str| format!("blk.{layer}.{part}");
        dense_norms(&mut b, layer, sizes.hidden);
        separate_qkv(&mut b, layer, sizes);
        b.bias(blk("attn_q.bias"), &[q], 0.1);
        b.bias(blk("attn_k.bias"), &[kv], 0.1);
        b.bias(blk("attn_v.bias"), &[kv], 0.1);
        gated_ffn(&mut b, layer, sizes);
    }
    b
}

fn llama(name: &str, sizes: &Sizes) -> Blueprint {
    let mut b = Blueprint::new("llama", name, 15, Vocabulary::llama3(sizes.vocab));
    b.sizes(sizes);
    b.own_key("rope.dimension_count", Meta::U32(sizes.head_dim as u32));
    b.own_key("rope.freq_base", Meta::F32(500_000.0));
    b.own_key("attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
    b.embedding(q4_k_m(Role::Embedding, 0, sizes.layers, sizes.hidden), sizes);
    b.matrix("output.weight", q4_k_m(Role::Output, 0, sizes.layers, sizes.hidden), sizes.vocab, sizes.hidden);
    b.push("rope_freqs.weight", DType::F32, vec![sizes.head_dim as u64 / 2], Fill::RopeFreqs);
    b.norm("output_norm.weight", sizes.hidden);
    for layer in 0..sizes.layers {
        dense_norms(&mut b, layer, sizes.hidden);
        separate_qkv(&mut b, layer, sizes);
        gated_ffn(&mut b, layer, sizes);
    }
    b
}

fn phi3(name: &str, sizes: &Sizes) -> Blueprint {
    let mut b = Blueprint::new("phi3", name, 15, Vocabulary::phi3(sizes.vocab));
    b.sizes(sizes);
    b.own_key("rope.dimension_count", Meta::U32(sizes.head_dim as u32));
    b.own_key("rope.freq_base", Meta::F32(10_000.0));
    b.own_key("rope.scaling.original_context_length", Meta::U32(sizes.context as u32));
    b.own_key("attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
    b.own_key("attention.sliding_window", Meta::U32(sizes.window as u32));
    b.embedding(q4_k_m(Role::Embedding, 0, sizes.layers, sizes.hidden), sizes);
    b.matrix("output.weight", q4_k_m(Role::Output, 0, sizes.layers, sizes.hidden), sizes.vocab, sizes.hidden);
    b.norm("output_norm.weight", sizes.hidden);
    let fused = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim;
    for layer in 0..sizes.layers {
        let blk = |part: &str| format!("blk.{layer}.{part}");
        let dtype = |role, cols| q4_k_m(role, layer, sizes.layers, cols);
        dense_norms(&mut b, layer, sizes.hidden);
        b.matrix(blk("attn_qkv.weight"), dtype(Role::FusedQkv, sizes.hidden), fused, sizes.hidden);
        let q = sizes.heads * sizes.head_dim;
        b.matrix(blk("attn_output.weight"), dtype(Role::Other, q), sizes.hidden, q);
        b.matrix(blk("ffn_up.weight"), dtype(Role::Other, sizes.hidden), 2 * sizes.ffn, sizes.hidden);
        b.matrix(blk("ffn_down.weight"), dtype(Role::FfnDown, sizes.ffn), sizes.hidden, sizes.ffn);
    }
    b
}

fn gpt_oss_blueprint(name: &str, sizes: &Sizes) -> Blueprint {
    let mut b = Blueprint::new("gpt-oss", name, 38, Vocabulary::gpt_oss(sizes.vocab));
    b.sizes(sizes);
    for (key, value) in [
        ("expert_count", sizes.experts),
        ("expert_used_count", 4),
        ("attention.key_length", sizes.head_dim),
        ("attention.value_length", sizes.head_dim),
        ("attention.sliding_window", sizes.window),
        ("expert_feed_forward_length", sizes.ffn),
        ("rope.scaling.original_context_length", 4096),
    ] {
        b.own_key(key, Meta::U32(value as u32));
    }
    b.own_key("rope.freq_base", Meta::F32(150_000.0));
    b.own_key("attention.layer_norm_rms_epsilon", Meta::F32(1e-5));
    b.own_key("rope.scaling.type", Meta::Text("yarn".into()));
    b.own_key("rope.scaling.factor", Meta::F32(32.0));
    b.embedding(DType::Q8_0, sizes);
    b.matrix("output.weight", DType::Q8_0, sizes.vocab, sizes.hidden);
    b.norm("output_norm.weight", sizes.hidden);
    for layer in 0..sizes.layers {
        gpt_oss_layer(&mut b, layer, sizes);
    }
    b
}

fn gpt_oss_layer(b: &mut Blueprint, layer: usize, sizes: &Sizes) {
    let blk = |part: &str| format!("blk.{layer}.{part}");
    let (hidden, ffn, experts) = (sizes.hidden, sizes.ffn, sizes.experts);
    let (q, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    b.norm(blk("attn_norm.weight"), hidden);
    b.norm(blk("post_attention_norm.weight"), hidden);
    for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
        b.matrix(blk(&format!("{part}.weight")), DType::Q8_0, rows, hidden);
        b.bias(blk(&format!("{part}.bias")), &[rows], 0.1);
    }
    b.matrix(blk("attn_output.weight"), DType::Q8_0, hidden, q);
    b.bias(blk("attn_output.bias"), &[hidden], 0.02);
    b.bias(blk("attn_sinks.weight"), &[sizes.heads], 1.0);
    b.matrix(blk("ffn_gate_inp.weight"), DType::F32, experts, hidden);
    b.bias(blk("ffn_gate_inp.bias"), &[experts], 0.02);
    for part in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"] {
        let (rows, cols) = if part == "ffn_down_exps" { (hidden, ffn) } else { (ffn, hidden) };
        b.experts(blk(&format!("{part}.weight")), DType::MXFP4, experts, (rows, cols));
        b.bias(blk(&format!("{part}.bias")), &[rows, experts], 0.02);
    }
}

fn gpt2(name: &str, sizes: &Sizes) -> Blueprint {
    let mut b = Blueprint::new("gpt2", name, 15, Vocabulary::gpt2(sizes.vocab));
    b.sizes(sizes);
    b.own_key("attention.layer_norm_epsilon", Meta::F32(1e-5));
    b.embedding(q4_k_m(Role::Output, 0, sizes.layers, sizes.hidden), sizes);
    let positions = vec![sizes.hidden as u64, sizes.context as u64];
    b.push("position_embd.weight", DType::F32, positions, Fill::Centred(0.1));
    layer_norm(&mut b, "output_norm", sizes.hidden);
    for layer in 0..sizes.layers {
        let blk = |part: &str| format!("blk.{layer}.{part}");
        layer_norm(&mut b, &blk("attn_norm"), sizes.hidden);
        layer_norm(&mut b, &blk("ffn_norm"), sizes.hidden);
        for (part, role, rows, cols) in [
            ("attn_qkv", Role::FusedQkv, 3 * sizes.hidden, sizes.hidden),
            ("attn_output", Role::Other, sizes.hidden, sizes.hidden),
            ("ffn_up", Role::Other, sizes.ffn, sizes.hidden),
            ("ffn_down", Role::FfnDown, sizes.hidden, sizes.ffn),
        ] {
            let dtype = q4_k_m(role, layer, sizes.layers, cols);
            b.matrix(blk(&format!("{part}.weight")), dtype, rows, cols);
            b.bias(blk(&format!("{part}.bias")), &[rows], 0.02);
        }
    }
    b
}

fn dense_norms(b: &mut Blueprint, layer: usize, hidden: usize) {
    b.norm(format!("blk.{layer}.attn_norm.weight"), hidden);
    b.norm(format!("blk.{layer}.ffn_norm.weight"), hidden);
}

fn layer_norm(b: &mut Blueprint, name: &str, n: usize) {
    b.norm(format!("{name}.weight"), n);
    b.bias(format!("{name}.bias"), &[n], 0.02);
}

fn separate_qkv(b: &mut Blueprint, layer: usize, sizes: &Sizes) {
    let (q, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    for (part, role, rows, cols) in [
        ("attn_q", Role::Other, q, sizes.hidden),
        ("attn_k", Role::Other, kv, sizes.hidden),
        ("attn_v", Role::AttentionV, kv, sizes.hidden),
        ("attn_output", Role::Other, sizes.hidden, q),
    ] {
        b.matrix(format!("blk.{layer}.{part}.weight"), q4_k_m(role, layer, sizes.layers, cols), rows, cols);
    }
}

fn gated_ffn(b: &mut Blueprint, layer: usize, sizes: &Sizes) {
    for (part, role, rows, cols) in [
        ("ffn_gate", Role::Other, sizes.ffn, sizes.hidden),
        ("ffn_up", Role::Other, sizes.ffn, sizes.hidden),
        ("ffn_down", Role::FfnDown, sizes.hidden, sizes.ffn),
    ] {
        b.matrix(format!("blk.{layer}.{part}.weight"), q4_k_m(role, layer, sizes.layers, cols), rows, cols);
    }
}
