//! What a forged file holds: metadata, a vocabulary, and a list of tensors with how to fill each.

use worker_orcd_core::DType;

use super::vocabulary::Vocabulary;

/// A metadata value.
#[derive(Clone, Debug)]
pub(super) enum Meta {
    U32(u32),
    F32(f32),
    Text(String),
}

/// How a tensor's elements are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    /// Mean 0 with this standard deviation.
    Centred(f32),
    /// Norm weights: 1 plus a little.
    AroundOne,
    /// Llama 3's frequency divisors.
    RopeFreqs,
}

/// One tensor to write.
#[derive(Clone, Debug)]
pub(super) struct TensorPlan {
    pub(super) name: String,
    pub(super) dims: Vec<u64>,
    pub(super) dtype: DType,
    pub(super) fill: Fill,
}

/// A whole file.
#[derive(Clone, Debug)]
pub(super) struct Blueprint {
    pub(super) architecture: &'static str,
    pub(super) keys: Vec<(String, Meta)>,
    pub(super) vocabulary: Vocabulary,
    pub(super) tensors: Vec<TensorPlan>,
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) ffn: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
    pub(super) window: usize,
    pub(super) experts: usize,
}

impl Blueprint {
    pub(super) fn new(
        architecture: &'static str,
        name: &str,
        file_type: u32,
        vocabulary: Vocabulary,
    ) -> Self {
        let mut blueprint = Self { architecture, keys: vec![], vocabulary, tensors: vec![] };
        blueprint.key("general.name", Meta::Text(name.to_owned()));
        blueprint.key("general.file_type", Meta::U32(file_type));
        blueprint.key("general.quantization_version", Meta::U32(2));
        blueprint
    }

    pub(super) fn key(&mut self, key: &str, value: Meta) {
        self.keys.push((key.to_owned(), value));
    }

    /// A key under the architecture's prefix.
    pub(super) fn own_key(&mut self, key: &str, value: Meta) {
        self.keys.push((format!("{}.{key}", self.architecture), value));
    }

    pub(super) fn sizes(&mut self, sizes: &Sizes) {
        for (key, value) in [
            ("block_count", sizes.layers),
            ("context_length", sizes.context),
            ("embedding_length", sizes.hidden),
            ("feed_forward_length", sizes.ffn),
            ("attention.head_count", sizes.heads),
            ("attention.head_count_kv", sizes.kv_heads),
        ] {
            self.own_key(key, Meta::U32(value as u32));
        }
    }

    /// A matrix `[rows, cols]` whose products keep the scale of their input.
    pub(super) fn matrix(&mut self, name: impl Into<String>, dtype: DType, rows: usize, cols: usize) {
        let fill = Fill::Centred((cols as f32).sqrt().recip());
        self.push(name, dtype, vec![cols as u64, rows as u64], fill);
    }

    /// A stack of expert matrices.
    pub(super) fn experts(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        experts: usize,
        (rows, cols): (usize, usize),
    ) {
        let fill = Fill::Centred((cols as f32).sqrt().recip());
        self.push(name, dtype, vec![cols as u64, rows as u64, experts as u64], fill);
    }

    /// The embedding: unit scale, as the first norm expects.
    pub(super) fn embedding(&mut self, dtype: DType, sizes: &Sizes) {
        let dims = vec![sizes.hidden as u64, sizes.vocab as u64];
        self.push("token_embd.weight", dtype, dims, Fill::Centred(1.0));
    }

    pub(super) fn norm(&mut self, name: impl Into<String>, n: usize) {
        self.push(name, DType::F32, vec![n as u64], Fill::AroundOne);
    }

    pub(super) fn bias(&mut self, name: impl Into<String>, dims: &[usize], std: f32) {
        let dims = dims.iter().map(|dim| *dim as u64).collect();
        self.push(name, DType::F32, dims, Fill::Centred(std));
    }

    pub(super) fn push(&mut self, name: impl Into<String>, dtype: DType, dims: Vec<u64>, fill: Fill) {
        self.tensors.push(TensorPlan { name: name.into(), dims, dtype, fill });
    }
}

/// Which tensor a mixture rule decides about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Output,
    Embedding,
    AttentionV,
    FusedQkv,
    FfnDown,
    Other,
}

/// The type Q4_K_M gives a matrix of width `cols` in layer `index` of `layers`.
pub(super) fn q4_k_m(role: Role, index: usize, layers: usize, cols: usize) -> DType {
    let eighth = layers / 8;
    let more = index < eighth || index >= 7 * layers / 8 || (index - eighth) % 3 == 2;
    let wanted = match role {
        Role::Output => DType::Q6_K,
        Role::AttentionV | Role::FfnDown if more => DType::Q6_K,
        Role::FusedQkv => DType::Q5_K,
        Role::AttentionV | Role::FfnDown | Role::Embedding | Role::Other => DType::Q4_K,
    };
    if cols.is_multiple_of(256) {
        return wanted;
    }
    if !cols.is_multiple_of(32) {
        return DType::F16;
    }
    match wanted {
        DType::Q6_K => DType::Q8_0,
        DType::Q5_K => DType::Q5_1,
        _ => DType::Q5_0,
    }
}
