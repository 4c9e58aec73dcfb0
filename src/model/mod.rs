//! Models: hyper-parameters, the weight table, and the recorded forward pass. Knows no device and no sequence.
//!
//! A [`Model`] is a GGUF file understood: [`ModelConfig`] read and checked, every weight found with the right shape, the
//! transformer assembled by its architecture's file (`qwen2`, `phi3`, `llama`, `gpt_oss`, `gpt2`). [`Model::upload`]
//! hands the weights to a backend, [`Model::record`] records programs over them.

mod config;
mod content;
mod gpt2;
mod gpt_oss;
mod kind;
mod layers;
mod llama;
mod parts;
mod phi3;
mod qwen2;
mod rope;
mod weights;

use std::path::PathBuf;

use worker_orcd_core::{
    Backend, BackendError, KvElement, KvGroup, KvLayer, Program, ProgramBuilder, StepShape, WeightSpec,
};

pub use config::{Architecture, ModelConfig, MoeConfig, Parity, RopeConfig, RopeScaling};
pub use kind::quant_kind;
pub use layers::{Attention, ExpertProjection, FeedForward, Layer, Norm, Projection, Rotary, Transformer};
pub use weights::{WeightEntry, WeightSource};

use crate::gguf::{Gguf, GgufError};

/// Why a file is not a model we can run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The container.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Not one of ours.
    #[error("architecture {found:?} is not supported; supported: {supported}")]
    Architecture {
        /// What the file says.
        found: String,
        /// What we run.
        supported: String,
    },
    /// A hyper-parameter out of range.
    #[error("key {key}: found {found}, {rule}")]
    Key {
        /// Full key.
        key: String,
        /// Its value.
        found: String,
        /// What it must be.
        rule: String,
    },
    /// A tensor the architecture needs.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of the wrong shape.
    #[error("tensor {name}: expected shape [{expected}], found [{found}]")]
    TensorShape {
        /// Its name.
        name: String,
        /// Dims, contiguous first.
        expected: String,
        /// Dims, contiguous first.
        found: String,
    },
    /// A vector that is quantised.
    #[error("tensor {name}: type {found} where F32, F16 or BF16 is needed")]
    TensorType {
        /// Its name.
        name: String,
        /// Its type.
        found: &'static str,
    },
    /// Tensors the architecture has no use for: running without them would be running another model.
    #[error("{count} tensors have no place in this architecture, the first is {first}")]
    UnknownTensors {
        /// How many.
        count: usize,
        /// The first.
        first: String,
    },
    /// A quantised tensor holds scales that are not finite.
    #[error("tensor {name}: {reason}")]
    Content {
        /// Its name.
        name: String,
        /// What is wrong where.
        reason: String,
    },
    /// The served context is out of range.
    #[error("context of {requested} positions; this model has {limit}")]
    Context {
        /// Asked for.
        requested: usize,
        /// Trained for.
        limit: usize,
    },
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// One of the above about what a file holds, with the file.
    #[error("{}: {source}", file.display())]
    InFile {
        /// The file; of a split model, part 1.
        file: PathBuf,
        /// What is wrong with it.
        source: Box<ModelError>,
    },
}

impl ModelError {
    /// Names the file, unless the error does already or is not about what the file holds.
    fn in_file(self, gguf: &Gguf) -> Self {
        match self {
            Self::Gguf(_) | Self::Context { .. } | Self::Backend(_) | Self::InFile { .. } => self,
            other => Self::InFile { file: gguf.path().to_owned(), source: Box::new(other) },
        }
    }
}

/// Choices of whoever starts the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Positions to serve; default: the trained context, at most [`DEFAULT_CONTEXT`].
    pub context: Option<usize>,
    /// For comparison with other engines.
    pub parity: Parity,
    /// Ignore tensors the architecture has no use for.
    pub allow_unknown_tensors: bool,
}

/// Most positions served unless asked for more.
pub const DEFAULT_CONTEXT: usize = 16_384;

/// What a recorded step hands back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepHead {
    /// Logits of the output rows, `[R, vocab]`.
    Logits,
    /// Sampled ids of the output rows, `[R, 1]`.
    Sample {
        /// Width of the penalty lists; 0 = none.
        max_penalty_tokens: usize,
    },
}

/// Layers that keep the same positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroupSpec {
    /// Layers in the group.
    pub layers: usize,
    /// Key/value heads per layer.
    pub num_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Positions a query sees, its own included; `None` = all before it.
    pub window: Option<usize>,
}

impl KvGroupSpec {
    /// Bytes of one block of `block_size` positions in every layer of the group, keys and values together.
    pub const fn block_bytes(&self, block_size: usize, element: KvElement) -> usize {
        2 * self.layers * self.num_kv_heads * self.head_dim * block_size * element.bytes()
    }

    /// The group's place in the cache layout.
    pub const fn layout(&self, num_blocks: usize, max_blocks_per_sequence: usize) -> KvGroup {
        KvGroup {
            layers: self.layers,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            num_blocks,
            max_blocks_per_sequence,
        }
    }
}

/// What the engine needs of a loaded model.
pub trait Recorder: Send {
    /// Rows of the logits.
    fn vocab_size(&self) -> usize;
    /// Positions a sequence may have.
    fn context_length(&self) -> usize;
    /// The cache's groups, in `KvLayer::group` order.
    fn kv_groups(&self) -> Vec<KvGroupSpec>;
    /// Records a step.
    ///
    /// # Errors
    /// A shape that does not fit.
    fn record(&self, shape: StepShape, head: StepHead) -> Result<Program, BackendError>;
}

/// A model file, understood.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    context: usize,
    weights: Vec<WeightEntry>,
    specs: Vec<WeightSpec>,
    kv_groups: Vec<KvGroupSpec>,
    transformer: Transformer,
    quant_kind: String,
}

impl Model {
    /// Understands a file: reads the configuration, finds every weight, assembles the transformer.
    ///
    /// # Errors
    /// Whatever keeps the file from being a model we can run.
    pub fn new(gguf: &Gguf, options: ModelOptions) -> Result<Self, ModelError> {
        Self::understand(gguf, options).map_err(|error| error.in_file(gguf))
    }

    fn understand(gguf: &Gguf, options: ModelOptions) -> Result<Self, ModelError> {
        let config = ModelConfig::from_gguf(gguf, options.parity)?;
        let context = options.context.unwrap_or(config.context_length.min(DEFAULT_CONTEXT));
        if context == 0 || context > config.context_length {
            return Err(ModelError::Context { requested: context, limit: config.context_length });
        }
        let (kv_groups, kv_layers) = kv_groups(&config);
        let mut declarer = weights::Declarer::new(gguf);
        let mut parts = parts::Parts::new(&config, &mut declarer, &kv_layers, context, options.parity)?;
        let transformer = match config.architecture {
            Architecture::Qwen2 => qwen2::declare(&mut parts)?,
            Architecture::Phi3 => phi3::declare(&mut parts)?,
            Architecture::Llama => llama::declare(&mut parts)?,
            Architecture::GptOss => gpt_oss::declare(&mut parts)?,
            Architecture::Gpt2 => gpt2::declare(&mut parts)?,
        };
        let (weights, unused) = declarer.finish();
        if let (Some(first), false) = (unused.first(), options.allow_unknown_tensors) {
            return Err(ModelError::UnknownTensors { count: unused.len(), first: first.clone() });
        }
        let specs = weights.iter().map(|entry| entry.spec.clone()).collect();
        let quant_kind = quant_kind(gguf)?;
        Ok(Self { config, context, weights, specs, kv_groups, transformer, quant_kind })
    }

    /// Hyper-parameters.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the file really holds: `MXFP4`, `Q4_K_M`, `Q8_0`, …
    pub fn quant_kind(&self) -> &str {
        &self.quant_kind
    }

    /// Every weight, in upload order.
    pub fn weights(&self) -> &[WeightEntry] {
        &self.weights
    }

    /// Shapes of every weight, in upload order.
    pub fn specs(&self) -> &[WeightSpec] {
        &self.specs
    }

    /// Hands every weight to the backend, after checking every quantised scale. `progress` hears the bytes done so far.
    ///
    /// # Errors
    /// Scales that are not finite, or whatever the backend says.
    pub fn upload(
        &self,
        gguf: &Gguf,
        backend: &mut dyn Backend,
        chunk_bytes: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), ModelError> {
        content::check(gguf, &self.weights)?;
        backend.reserve_weights(&self.specs)?;
        let mut done = 0;
        for (index, entry) in self.weights.iter().enumerate() {
            let id = entry.with_chunks(gguf, chunk_bytes, |chunks| backend.upload(&entry.spec, chunks))?;
            if id.0 as usize != index {
                let reason = format!("backend numbered it {}, expected {index}", id.0);
                return Err(BackendError::Weight { label: entry.spec.label.clone(), reason }.into());
            }
            done += entry.spec.bytes().unwrap_or(0) as u64;
            progress(done);
        }
        Ok(gguf.check_unchanged()?)
    }
}

impl Recorder for Model {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context
    }

    fn kv_groups(&self) -> Vec<KvGroupSpec> {
        self.kv_groups.clone()
    }

    fn record(&self, shape: StepShape, head: StepHead) -> Result<Program, BackendError> {
        let name = format!("{}[{}x{}]", self.config.architecture.name(), shape.tokens, shape.rows);
        let mut builder = ProgramBuilder::new(name, shape, &self.specs);
        let logits = self.transformer.record_logits(&mut builder)?;
        let output = match head {
            StepHead::Logits => logits,
            StepHead::Sample { max_penalty_tokens } => {
                builder.sample("sample", logits, max_penalty_tokens)?
            }
        };
        builder.output(output);
        Ok(builder.finish())
    }
}

/// Full-attention layers form one group, sliding-window layers another.
fn kv_groups(config: &ModelConfig) -> (Vec<KvGroupSpec>, Vec<KvLayer>) {
    let mut groups: Vec<KvGroupSpec> = vec![];
    let mut layers = Vec::with_capacity(config.num_layers);
    for layer in 0..config.num_layers {
        let window = config.window(layer);
        let group = groups.iter().position(|group| group.window == window).unwrap_or_else(|| {
            let (num_kv_heads, head_dim) = (config.num_kv_heads, config.head_dim);
            groups.push(KvGroupSpec { layers: 0, num_kv_heads, head_dim, window });
            groups.len() - 1
        });
        layers.push(KvLayer { group, index: groups[group].layers });
        groups[group].layers += 1;
    }
    (groups, layers)
}
