//! Opens test models on backends: small files made by other engines' tools, our own golden files, the demo model.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use worker_orcd::config::BackendChoice;
use worker_orcd::device;
use worker_orcd::engine::direct::{DirectOptions, DirectRun};
use worker_orcd::gguf::Gguf;
use worker_orcd::model::{Model, ModelOptions};
use worker_orcd_core::{Backend, BackendError, KvElement};
use worker_orcd_wgpu::{AdapterChoice, WgpuBackend, WgpuOptions};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The test data made elsewhere, when it lies beside the checkout.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let path = root().join("../shared/data");
    if path.is_dir() {
        Some(path)
    } else {
        eprintln!(
            "SKIPPED: ../shared/data is not here, so models made by other engines' tools are not compared"
        );
        None
    }
}

/// A model file and what it holds.
pub(crate) struct TestModel {
    pub(crate) gguf: Gguf,
    pub(crate) model: Model,
}

impl TestModel {
    pub(crate) fn open(path: &Path, options: ModelOptions) -> Self {
        let gguf = Gguf::open(path).unwrap_or_else(|error| panic!("{error}"));
        let model = Model::new(&gguf, options).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { gguf, model }
    }

    /// Uploads the weights to a backend.
    pub(crate) fn load(&self, mut backend: Box<dyn Backend>) -> Box<dyn Backend> {
        self.model.upload(&self.gguf, backend.as_mut(), 1 << 20, &mut |_| {}).unwrap();
        backend
    }

    /// A run of one sequence.
    pub(crate) fn direct(&self, backend: Box<dyn Backend>, options: &DirectOptions) -> DirectRun {
        DirectRun::new(self.load(backend), &self.model, options).unwrap()
    }
}

/// Options for a run of at most `context` positions in steps of `chunk` with all their rows.
pub(crate) fn direct_options(context: usize, chunk: usize, element: KvElement) -> DirectOptions {
    DirectOptions { context, chunk, rows: chunk, element, tapped: false }
}

/// The adapter every test of this process shares, so that each shader is compiled once.
static ADAPTER: Mutex<Option<WgpuBackend>> = Mutex::new(None);

fn open(choice: BackendChoice) -> Result<Box<dyn Backend>, BackendError> {
    if choice != BackendChoice::Wgpu {
        return device::open(choice, 0);
    }
    let mut shared = ADAPTER.lock().unwrap();
    if let Some(backend) = &*shared {
        return Ok(Box::new(backend.sibling()));
    }
    let backend = WgpuBackend::open(&AdapterChoice::Preferred, &WgpuOptions::default())?;
    let sibling = backend.sibling();
    *shared = Some(backend);
    Ok(Box::new(sibling))
}

/// A device, or `None` with a loud line where the operator said that there is none.
pub(crate) fn open_device(choice: BackendChoice) -> Option<Box<dyn Backend>> {
    match open(choice) {
        Ok(backend) => Some(backend),
        Err(error) if std::env::var_os("WORKER_ORCD_ALLOW_NO_GPU").is_some() => {
            eprintln!("SKIPPED: no {} device: {error}", choice.name());
            None
        }
        Err(error) => panic!("{error} (WORKER_ORCD_ALLOW_NO_GPU=1 skips the tests that need one)"),
    }
}

/// The backends every machine of ours tests on: the interpreter, and wgpu on whatever adapter there is; CUDA too when
/// `WORKER_ORCD_TEST_CUDA` asks for it.
pub(crate) fn backends() -> Vec<BackendChoice> {
    let mut choices = vec![BackendChoice::Reference, BackendChoice::Wgpu];
    if std::env::var_os("WORKER_ORCD_TEST_CUDA").is_some() {
        choices.push(BackendChoice::Cuda);
    }
    choices
}

/// Normalised mean squared error; NaN never passes.
pub(crate) fn nmse(expected: &[f32], found: &[f32]) -> f64 {
    worker_orcd::commands::compare::nmse(expected, found)
}

/// The lowest id among the largest logits.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}
