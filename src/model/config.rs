//! A model's hyper-parameters, under the names Hugging Face gives them, read from GGUF metadata and checked.

use worker_orcd_core::RopeStyle;

use super::ModelError;
use crate::gguf::Gguf;

/// The architectures we run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Phi-3 and Phi-3.5.
    Phi3,
    /// Llama 2 and 3, and what shares their files.
    Llama,
    /// gpt-oss; also the legacy files that say `gptoss`.
    GptOss,
    /// GPT-2.
    Gpt2,
}

impl Architecture {
    /// Every one, with the name files use.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Qwen2, "qwen2"),
        (Self::Phi3, "phi3"),
        (Self::Llama, "llama"),
        (Self::GptOss, "gpt-oss"),
        (Self::GptOss, "gptoss"),
        (Self::Gpt2, "gpt2"),
    ];

    /// The usual name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(architecture, _)| *architecture == self).map_or("", |(_, name)| name)
    }

    fn from_file(gguf: &Gguf) -> Result<(Self, &'static str), ModelError> {
        let found = gguf.architecture()?;
        Self::ALL.into_iter().find(|(_, name)| *name == found).ok_or_else(|| ModelError::Architecture {
            found: found.chars().take(64).collect(),
            supported: Self::ALL.map(|(_, name)| name).join(", "),
        })
    }
}

/// How rotary angles are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every angle divided by the factor.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// YaRN: a ramp between kept and divided frequencies, and an attention factor.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Context the model was first trained on.
        original_context: f64,
        /// Rotations below which a frequency is divided, usually 1.
        beta_slow: f64,
        /// Rotations above which it is kept, usually 32.
        beta_fast: f64,
        /// Multiplied into the attention factor, usually 1.
        attention_factor: f64,
    },
    /// Phi-3's two sets of divisors, chosen by the served context; the divisors are tensors.
    LongRope {
        /// Context up to which the short set holds.
        original_context: usize,
        /// Multiplies cosines and sines.
        attention_factor: f64,
    },
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Rotated elements per head.
    pub rotary_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
    /// Pairing.
    pub style: RopeStyle,
}

/// Mixture-of-experts sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeConfig {
    /// Experts per layer.
    pub num_experts: usize,
    /// Experts per token.
    pub num_experts_per_token: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
}

/// Everything the recorders need to know.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which adapter.
    pub architecture: Architecture,
    /// Free text from the file, or its architecture's name.
    pub name: String,
    /// Transformer layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense feed-forward block.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub context_length: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// Absent for learned positions.
    pub rope: Option<RopeConfig>,
    /// Multiplies q·k.
    pub attention_scale: f32,
    /// Visible positions on sliding-window layers.
    pub sliding_window: Option<usize>,
    /// Which layers slide, one flag per layer.
    pub sliding_layers: Vec<bool>,
    /// Present for mixtures of experts.
    pub moe: Option<MoeConfig>,
}

/// Choices that exist for comparison with other engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parity {
    /// Round the YaRN ramp's ends to whole dimensions, as llama.cpp does.
    pub yarn_truncate: bool,
    /// Ignore Phi-3's sliding window, as llama.cpp does.
    pub ignore_phi3_window: bool,
}

/// Reads keys under the architecture's prefix and checks their ranges.
struct Keys<'g> {
    gguf: &'g Gguf,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn range_error(&self, name: &str, found: impl std::fmt::Display, rule: impl Into<String>) -> ModelError {
        ModelError::Key { key: self.key(name), found: format!("{found}"), rule: rule.into() }
    }

    fn optional(&self, name: &str, low: u64, high: u64) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.gguf.get_u64(&self.key(name))? else { return Ok(None) };
        if value < low || value > high {
            return Err(self.range_error(name, value, format!("must be {low} to {high}")));
        }
        Ok(Some(value as usize))
    }

    fn required(&self, name: &str, low: u64, high: u64) -> Result<usize, ModelError> {
        self.optional(name, low, high)?
            .ok_or_else(|| self.range_error(name, "nothing", format!("must be {low} to {high}")))
    }

    fn float(
        &self,
        name: &str,
        default: f64,
        valid: impl Fn(f64) -> bool,
        rule: &str,
    ) -> Result<f64, ModelError> {
        let value = self.gguf.get_f32(&self.key(name))?.map_or(default, f64::from);
        if value.is_finite() && valid(value) { Ok(value) } else { Err(self.range_error(name, value, rule)) }
    }
}

const MAX_WIDTH: u64 = 65_536;
const MAX_CONTEXT: u64 = 1 << 24;

impl ModelConfig {
    /// Reads and checks the hyper-parameters.
    ///
    /// # Errors
    /// An unknown architecture, or a key that is missing or out of range.
    pub fn from_gguf(gguf: &Gguf, parity: Parity) -> Result<Self, ModelError> {
        let (architecture, prefix) = Architecture::from_file(gguf)?;
        let keys = Keys { gguf, prefix };
        let num_layers = keys.required("block_count", 1, 512)?;
        let hidden_size = keys.required("embedding_length", 1, MAX_WIDTH)?;
        let num_heads = keys.required("attention.head_count", 1, 4096)?;
        let num_kv_heads = keys.optional("attention.head_count_kv", 1, 4096)?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            let rule = format!("must divide head_count {num_heads}");
            return Err(keys.range_error("attention.head_count_kv", num_kv_heads, rule));
        }
        let head_dim = head_dim(&keys, hidden_size, num_heads)?;
        let moe = moe(&keys, architecture)?;
        let (sliding_window, sliding_layers) = window(&keys, architecture, num_layers, parity)?;
        let scale = keys.float(
            "attention.scale",
            1.0 / (head_dim as f64).sqrt(),
            |scale| scale > 0.0,
            "must be positive",
        )?;
        Ok(Self {
            architecture,
            name: gguf.get_str("general.name")?.unwrap_or(architecture.name()).chars().take(256).collect(),
            num_layers,
            hidden_size,
            intermediate_size: intermediate_size(&keys, moe)?,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size: vocab_size(gguf)?,
            context_length: keys.required("context_length", 1, MAX_CONTEXT)?,
            norm_eps: norm_eps(&keys, architecture)?,
            rope: rope(&keys, architecture, head_dim)?,
            attention_scale: scale as f32,
            sliding_window,
            sliding_layers,
            moe,
        })
    }

    /// The window of one layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.sliding_layers.get(layer).copied().unwrap_or(false))
    }
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, num_heads: usize) -> Result<usize, ModelError> {
    let head_dim = match keys.optional("attention.key_length", 1, 512)? {
        Some(length) => length,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            return Err(keys.range_error("attention.head_count", num_heads, "must divide embedding_length"));
        }
    };
    if !head_dim.is_multiple_of(2) || head_dim > 512 {
        return Err(keys.range_error("attention.key_length", head_dim, "must be even and at most 512"));
    }
    let value_length = keys.optional("attention.value_length", 1, 512)?.unwrap_or(head_dim);
    if value_length != head_dim {
        return Err(keys.range_error("attention.value_length", value_length, format!("must be {head_dim}")));
    }
    Ok(head_dim)
}

fn vocab_size(gguf: &Gguf) -> Result<usize, ModelError> {
    let name = "token_embd.weight";
    let tensor = gguf.tensor(name).ok_or_else(|| ModelError::MissingTensor { name: name.into() })?;
    let rows = tensor.dims[1] as usize;
    if let Some(tokens) = gguf.get_str_array("tokenizer.ggml.tokens")?
        && tokens.len() != rows
    {
        return Err(ModelError::Key {
            key: "tokenizer.ggml.tokens".into(),
            found: format!("{} tokens", tokens.len()),
            rule: format!("must match the {rows} rows of {name}"),
        });
    }
    Ok(rows)
}

fn norm_eps(keys: &Keys<'_>, architecture: Architecture) -> Result<f32, ModelError> {
    let name = match architecture {
        Architecture::Gpt2 => "attention.layer_norm_epsilon",
        _ => "attention.layer_norm_rms_epsilon",
    };
    // No default: a wrong epsilon is a wrong model.
    let eps = keys.float(name, f64::NAN, |eps| eps > 0.0 && eps <= 1e-2, "must be in (0, 0.01]")?;
    Ok(eps as f32)
}

fn intermediate_size(keys: &Keys<'_>, moe: Option<MoeConfig>) -> Result<usize, ModelError> {
    match (keys.optional("feed_forward_length", 1, 1 << 20)?, moe) {
        (Some(size), _) => Ok(size),
        (None, Some(moe)) => Ok(moe.intermediate_size),
        (None, None) => keys.required("feed_forward_length", 1, 1 << 20),
    }
}

fn moe(keys: &Keys<'_>, architecture: Architecture) -> Result<Option<MoeConfig>, ModelError> {
    if architecture != Architecture::GptOss {
        return match keys.optional("expert_count", 0, 4096)? {
            None | Some(0) => Ok(None),
            Some(count) => {
                Err(keys.range_error("expert_count", count, "must be absent: only gpt-oss has experts"))
            }
        };
    }
    let num_experts = keys.required("expert_count", 1, 4096)?;
    let num_experts_per_token = keys.required("expert_used_count", 1, num_experts as u64)?;
    // Legacy files carry the expert width as the dense one.
    let intermediate_size = match keys.optional("expert_feed_forward_length", 1, 1 << 20)? {
        Some(size) => size,
        None => keys.required("feed_forward_length", 1, 1 << 20)?,
    };
    Ok(Some(MoeConfig { num_experts, num_experts_per_token, intermediate_size }))
}

fn window(
    keys: &Keys<'_>,
    architecture: Architecture,
    num_layers: usize,
    parity: Parity,
) -> Result<(Option<usize>, Vec<bool>), ModelError> {
    let name = "attention.sliding_window";
    let window = keys.optional(name, 0, u64::from(u32::MAX))?.filter(|window| *window > 0);
    match architecture {
        Architecture::GptOss => {
            let window = window.ok_or_else(|| keys.range_error(name, "none", "must be at least 1"))?;
            Ok((Some(window), sliding_pattern(keys, num_layers)?))
        }
        Architecture::Phi3 if !parity.ignore_phi3_window => Ok((window, vec![window.is_some(); num_layers])),
        _ => Ok((None, vec![false; num_layers])),
    }
}

/// One flag per layer: from the file if it has them, else even layers slide.
fn sliding_pattern(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    let name = "attention.sliding_window_pattern";
    let key = keys.key(name);
    match keys.gguf.value(&key).map(|value| value.kind()) {
        None => Ok((0..num_layers).map(|layer| layer % 2 == 0).collect()),
        Some(crate::gguf::ValueKind::Array(_)) => {
            let flags: Vec<bool> = keys.gguf.get_bool_array(&key)?.map(Iterator::collect).unwrap_or_default();
            if flags.len() == num_layers {
                Ok(flags)
            } else {
                Err(keys.range_error(
                    name,
                    format!("{} flags", flags.len()),
                    format!("must be {num_layers} flags"),
                ))
            }
        }
        Some(_) => {
            let period = keys.required(name, 1, 512)?;
            // The last layer of each period attends fully.
            Ok((0..num_layers).map(|layer| layer % period < period - 1).collect())
        }
    }
}

fn rope(
    keys: &Keys<'_>,
    architecture: Architecture,
    head_dim: usize,
) -> Result<Option<RopeConfig>, ModelError> {
    let style = match architecture {
        Architecture::Gpt2 => return Ok(None),
        Architecture::Llama => RopeStyle::Interleaved,
        Architecture::Qwen2 | Architecture::Phi3 | Architecture::GptOss => RopeStyle::HalfSplit,
    };
    let rotary_dim = keys.optional("rope.dimension_count", 2, head_dim as u64)?.unwrap_or(head_dim);
    if !rotary_dim.is_multiple_of(2) {
        return Err(keys.range_error("rope.dimension_count", rotary_dim, "must be even"));
    }
    let theta = keys.float("rope.freq_base", 10_000.0, |base| base > 1.0, "must be above 1")?;
    let scaling = rope_scaling(keys, architecture)?;
    Ok(Some(RopeConfig { rotary_dim, theta, scaling, style }))
}

fn rope_scaling(keys: &Keys<'_>, architecture: Architecture) -> Result<RopeScaling, ModelError> {
    let at_least_one = |factor: f64| factor >= 1.0;
    let original = keys.optional("rope.scaling.original_context_length", 1, MAX_CONTEXT)?;
    let long_factors = ["rope_factors_long.weight", "rope_factors_short.weight"]
        .map(|name| keys.gguf.tensor(name).is_some());
    if architecture == Architecture::Phi3 && long_factors != [false, false] {
        if long_factors != [true, true] {
            let name = "rope_factors_long.weight and rope_factors_short.weight (both or neither)";
            return Err(ModelError::MissingTensor { name: name.into() });
        }
        let original_context = match original {
            Some(original) => original,
            None => keys.required("context_length", 1, MAX_CONTEXT)?,
        };
        let attention_factor =
            keys.float("rope.scaling.attn_factor", 1.0, |factor| factor > 0.0, "must be positive")?;
        return Ok(RopeScaling::LongRope { original_context, attention_factor });
    }
    let key = keys.key("rope.scaling.type");
    let legacy_yarn = architecture == Architecture::GptOss;
    let kind = keys.gguf.get_str(&key)?.unwrap_or(if legacy_yarn { "yarn" } else { "linear" });
    let factor = match keys.gguf.value(&keys.key("rope.scaling.factor")) {
        Some(_) => keys.float("rope.scaling.factor", 1.0, at_least_one, "must be at least 1")?,
        None => keys.float("rope.scale_linear", 1.0, at_least_one, "must be at least 1")?,
    };
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => yarn(keys, factor, original),
        other => Err(keys.range_error("rope.scaling.type", other, "must be none, linear or yarn")),
    }
}

fn yarn(keys: &Keys<'_>, factor: f64, original: Option<usize>) -> Result<RopeScaling, ModelError> {
    let positive = |value: f64| value > 0.0;
    let original_context = match original {
        Some(original) => original,
        None => keys.required("context_length", 1, MAX_CONTEXT)?,
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context: original_context as f64,
        beta_fast: keys.float("rope.scaling.yarn_beta_fast", 32.0, positive, "must be positive")?,
        beta_slow: keys.float("rope.scaling.yarn_beta_slow", 1.0, positive, "must be positive")?,
        attention_factor: keys.float("rope.scaling.yarn_attn_factor", 1.0, positive, "must be positive")?,
    })
}
