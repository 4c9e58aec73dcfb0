//! The subcommands, one file each.

pub mod forge;

use std::io;

use crate::gguf::GgufError;
use crate::model::ModelError;

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
}
