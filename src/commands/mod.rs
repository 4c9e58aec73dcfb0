//! The subcommands, one file each.

pub mod args;
pub mod compare;
pub mod forge;
pub mod logits;
pub mod perplexity;
mod progress;

use std::io;

use worker_orcd_core::BackendError;

use crate::engine::{EngineError, StartError};
use crate::gguf::GgufError;
use crate::model::ModelError;
use crate::text::LoadTokenizerError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Flags that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] LoadTokenizerError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The engine's settings or start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A sequence failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Two backends part.
    #[error("backends differ first at {label}: NMSE {nmse:.3e}{margin}")]
    Differs {
        /// The first value that is out of tolerance.
        label: String,
        /// By how much.
        nmse: f64,
        /// The router's margin, when experts differ.
        margin: String,
    },
}
