//! Finds a model's tokenizer: a `tokenizer.json` that was named or lies beside the model, else the vocabulary inside
//! the model file.

use std::path::Path;

use super::{SpecialIds, Tokenizer, TokenizerError, VocabSource};
use crate::gguf::{Gguf, GgufError};

/// Why a model has no usable tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum LoadTokenizerError {
    /// The model file's metadata.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The named file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The vocabulary.
    #[error("{path}: {source}")]
    Vocabulary {
        /// The file it came from.
        path: String,
        /// Rule broken.
        source: TokenizerError,
    },
}

impl Tokenizer {
    /// Loads the tokenizer of a model: from `file` if given, else from `tokenizer.json` beside the model, else from the
    /// model's own metadata.
    ///
    /// # Errors
    /// The chosen source is unreadable or breaks a rule; there is no falling back to the next.
    pub fn load(gguf: &Gguf, file: Option<&Path>) -> Result<Self, LoadTokenizerError> {
        let beside = gguf.path().with_file_name("tokenizer.json");
        let chosen = file.or_else(|| Some(beside.as_path()).filter(|path| path.is_file()));
        let Some(path) = chosen else {
            let name = gguf.path().display().to_string();
            let source = vocab_source(gguf)?;
            return Self::from_gguf(&source)
                .map_err(|source| LoadTokenizerError::Vocabulary { path: name, source });
        };
        let name = path.display().to_string();
        let json =
            std::fs::read(path).map_err(|source| LoadTokenizerError::Read { path: name.clone(), source })?;
        let ids = special_ids(gguf)?;
        Self::from_json(&json, &ids).map_err(|source| LoadTokenizerError::Vocabulary { path: name, source })
    }

    /// Loads a `tokenizer.json` on its own; special ids are what the file itself tells.
    ///
    /// # Errors
    /// The file is unreadable or breaks a rule.
    pub fn load_json(path: &Path) -> Result<Self, LoadTokenizerError> {
        let name = path.display().to_string();
        let json =
            std::fs::read(path).map_err(|source| LoadTokenizerError::Read { path: name.clone(), source })?;
        Self::from_json(&json, &SpecialIds::default())
            .map_err(|source| LoadTokenizerError::Vocabulary { path: name, source })
    }
}

/// The `tokenizer.ggml.*` metadata of a model file.
///
/// # Errors
/// A key of the wrong type.
pub fn vocab_source(gguf: &Gguf) -> Result<VocabSource<'_>, GgufError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let architecture = gguf.get_str("general.architecture")?;
    // Legacy gpt-oss files name a wrong pre-tokenizer.
    let pre = if architecture == Some("gptoss") { Some("gpt-4o") } else { gguf.get_str(&key("pre"))? };
    Ok(VocabSource {
        model: gguf.get_str(&key("model"))?.unwrap_or_default(),
        pre,
        tokens: gguf.get_str_array(&key("tokens"))?.map_or(vec![], |t| t.map(str::as_bytes).collect()),
        token_types: gguf.get_i32_array(&key("token_type"))?.map(Iterator::collect),
        scores: gguf.get_f32_array(&key("scores"))?.map(Iterator::collect),
        merges: gguf.get_str_array(&key("merges"))?.map(Iterator::collect),
        ids: special_ids(gguf)?,
        add_space_prefix: gguf.get_bool(&key("add_space_prefix"))?,
        name: gguf.get_str("general.name")?,
        architecture,
    })
}

fn special_ids(gguf: &Gguf) -> Result<SpecialIds, GgufError> {
    let id = |name: &str| gguf.get_u32(&format!("tokenizer.ggml.{name}_token_id"));
    let flag = |name: &str| gguf.get_bool(&format!("tokenizer.ggml.{name}"));
    // Legacy gpt-oss files list several; the stop set comes from the vocabulary, the metadata's own is `<|return|>`.
    let listed = match gguf.get_i32_array("tokenizer.ggml.eos_token_ids")? {
        Some(ids) => ids.filter_map(|id| u32::try_from(id).ok()).find(|id| *id == 200_002),
        None => None,
    };
    Ok(SpecialIds {
        bos: id("bos")?,
        eos: id("eos")?.or(listed),
        eot: id("eot")?,
        eom: id("eom")?,
        unknown: id("unknown")?,
        padding: id("padding")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
    })
}
