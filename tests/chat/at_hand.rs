//! What the tests have at hand: shared data, and vocabularies with the way their models are prompted.

use std::path::PathBuf;
use std::sync::Arc;

use worker_orcd::gguf::Gguf;
use worker_orcd::text::Tokenizer;
use worker_orcd::text::chat::ChatFormat;

/// A file of the shared test data, or `None`, said loudly.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(path);
    if !full.exists() {
        println!("SKIPPED: {path} is not in ../shared/data");
        return None;
    }
    Some(full)
}

/// A vocabulary with the way its model is prompted.
pub(crate) struct Model {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) format: ChatFormat,
}

impl Model {
    /// The bundled model: harmony's markers in a small vocabulary.
    pub(crate) fn own() -> Self {
        Self::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/haiku-moe/haiku-moe-mxfp4.gguf"))
    }

    pub(crate) fn gpt_oss() -> Option<Self> {
        shared("vocab/vocab-gpt-oss-20b.rebuilt.gguf").map(Self::open)
    }

    fn open(path: PathBuf) -> Self {
        let gguf = Gguf::open(path).unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&gguf, None).unwrap());
        let format = ChatFormat::load(&gguf, &tokenizer, None).unwrap();
        Self { tokenizer, format }
    }
}
