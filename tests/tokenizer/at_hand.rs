//! The vocabularies that tests run on, each loaded once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use worker_orcd::text::{SpecialIds, Tokenizer};

use crate::gguf_vocab::VocabFile;
use crate::sentence::SentenceVocab;

/// The project's own demo model.
pub(crate) const HAIKU_JSON: &str = "models/haiku-moe/tokenizer.json";
/// The project's own demo model.
pub(crate) const HAIKU_GGUF: &str = "models/haiku-moe/haiku-moe-mxfp4.gguf";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the shared test data; `None`, said aloud, where the data is absent.
pub(crate) fn shared_file(path: &str) -> Option<PathBuf> {
    let folder = root().join("../shared/data");
    if !folder.is_dir() {
        println!("SKIPPED: {path}: there is no ../shared/data");
        return None;
    }
    Some(folder.join(path))
}

/// The tokenizer of a file inside the repository.
pub(crate) fn bundled(path: &str) -> Arc<Tokenizer> {
    load(&root().join(path))
}

/// The tokenizer of a `.gguf` or `.json` file.
pub(crate) fn load(path: &Path) -> Arc<Tokenizer> {
    static LOADED: Mutex<BTreeMap<PathBuf, Arc<Tokenizer>>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = loaded.entry(path.to_owned()).or_insert_with(|| {
        let built = if path.extension().is_some_and(|extension| extension == "json") {
            Tokenizer::from_json(&std::fs::read(path).unwrap(), &SpecialIds::default())
        } else {
            Tokenizer::from_gguf(&VocabFile::read(path).source())
        };
        Arc::new(built.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    });
    Arc::clone(entry)
}

/// The files of every published vocabulary at hand: the bundled ones always, the shared ones where they exist.
pub(crate) fn files() -> Vec<PathBuf> {
    let bundled = [HAIKU_JSON, HAIKU_GGUF].map(|path| root().join(path));
    let shared = [
        "tokenizers/gpt-oss/tokenizer.json",
        "tokenizers/qwen2.5/tokenizer.json",
        "tokenizers/phi-3/tokenizer.json",
        "vocab/vocab-gpt-oss-20b.rebuilt.gguf",
        "vocab/vocab-qwen2.5-0.5b-instruct.rebuilt.gguf",
        "vocab/ggml-vocab-phi-3.gguf",
        "vocab/ggml-vocab-llama-spm.gguf",
        "vocab/ggml-vocab-gpt-2.gguf",
    ];
    bundled.into_iter().chain(shared.into_iter().filter_map(shared_file)).collect()
}

/// Every tokenizer at hand with its name, of both backends and both forms.
pub(crate) fn all() -> Vec<(String, Arc<Tokenizer>)> {
    let files = files().into_iter().map(|path| (path.display().to_string(), load(&path)));
    let made = ("bundled words, spm".to_owned(), SentenceVocab::from_bundled().tokenizer());
    files.chain([made]).collect()
}
