//! Flags that most commands share, and the opening of what they name.

use std::sync::Arc;

use clap::Args;
use worker_orcd_core::{Backend, KvElement};

use super::CommandError;
use crate::config::BackendChoice;
pub use crate::config::ModelArgs;
use crate::device;
use crate::gguf::Gguf;
use crate::model::{Model, ModelOptions, Parity};
use crate::text::{SpecialParsing, Tokenizer};

/// Which device.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceArgs {
    /// Where the model runs; there is no fallback from one to another
    #[arg(long, env = "WORKER_ORCD_BACKEND", value_enum, default_value_t = BackendChoice::Cuda)]
    pub backend: BackendChoice,
    /// Index of the GPU, as `devices` lists them
    #[arg(long, env = "WORKER_ORCD_GPU_DEVICE", default_value_t = 0)]
    pub gpu_device: usize,
    /// Storage format of the key/value cache; f32 exists on the reference interpreter only
    #[arg(long, env = "WORKER_ORCD_KV", value_enum, default_value_t = KvChoice::F16)]
    pub kv: KvChoice,
}

/// Storage format of the key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KvChoice {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl From<KvChoice> for KvElement {
    fn from(choice: KvChoice) -> Self {
        match choice {
            KvChoice::F16 => Self::F16,
            KvChoice::F32 => Self::F32,
        }
    }
}

/// A model file, understood.
#[derive(Debug)]
pub struct OpenModel {
    /// The file.
    pub gguf: Gguf,
    /// What it holds.
    pub model: Model,
}

impl ModelArgs {
    /// Choices that change the model itself.
    pub const fn options(&self) -> ModelOptions {
        let parity =
            Parity { yarn_truncate: self.yarn_truncate, ignore_phi3_window: self.ignore_phi3_window };
        ModelOptions { context: self.context, parity, allow_unknown_tensors: self.allow_unknown_tensors }
    }

    /// Opens and understands the file.
    ///
    /// # Errors
    /// The file is not a model we can run.
    pub fn open(&self) -> Result<OpenModel, CommandError> {
        let gguf = Gguf::open(&self.model)?;
        let model = Model::new(&gguf, self.options())?;
        Ok(OpenModel { gguf, model })
    }

    /// Loads the model's tokenizer.
    ///
    /// # Errors
    /// It has none that is usable.
    pub fn tokenizer(&self, gguf: &Gguf) -> Result<Arc<Tokenizer>, CommandError> {
        Ok(Arc::new(Tokenizer::load(gguf, self.tokenizer.as_deref())?))
    }
}

impl DeviceArgs {
    /// Opens the device and uploads the weights, with a progress bar on a terminal.
    ///
    /// # Errors
    /// The device is not there, or has no room.
    pub fn load(&self, open: &OpenModel, chunk_bytes: usize) -> Result<Box<dyn Backend>, CommandError> {
        let mut backend = device::open(self.backend, self.gpu_device)?;
        super::progress::upload(open, backend.as_mut(), chunk_bytes)?;
        Ok(backend)
    }
}

/// What to run: text, or token ids.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct PromptArgs {
    /// Text of the prompt
    #[arg(long, env = "WORKER_ORCD_PROMPT")]
    pub prompt: Option<String>,
    /// Token ids of the prompt, separated by commas
    #[arg(long, env = "WORKER_ORCD_TOKEN_IDS", value_delimiter = ',')]
    pub token_ids: Option<Vec<u32>>,
}

impl PromptArgs {
    /// The prompt as ids; text is encoded with a BOS if the model adds one, special tokens in it are plain text.
    ///
    /// # Errors
    /// Text without a tokenizer, an empty prompt, or an id outside the vocabulary.
    pub fn ids(&self, args: &ModelArgs, open: &OpenModel) -> Result<Vec<u32>, CommandError> {
        let ids = match (&self.token_ids, &self.prompt) {
            (Some(ids), _) => ids.clone(),
            (None, Some(text)) => args.tokenizer(&open.gguf)?.encode_prompt(text, SpecialParsing::Plain),
            (None, None) => vec![],
        };
        let vocab = open.model.config().vocab_size;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return Err(CommandError::Usage(format!(
                "token id {id} is not below the vocabulary size {vocab}"
            )));
        }
        if ids.is_empty() {
            return Err(CommandError::Usage("the prompt has no tokens".into()));
        }
        Ok(ids)
    }
}
