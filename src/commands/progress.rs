//! Uploading with progress: a bar on a terminal, log events at every quarter.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use worker_orcd_core::Backend;

use super::CommandError;
use super::args::OpenModel;

/// Uploads every weight of a model.
///
/// # Errors
/// Bad weights, or the device has no room.
pub(super) fn upload(
    open: &OpenModel,
    backend: &mut dyn Backend,
    chunk_bytes: usize,
) -> Result<(), CommandError> {
    let total: u64 = open.model.specs().iter().map(|spec| spec.bytes().unwrap_or(0) as u64).sum();
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}") {
        bar.set_style(style);
    }
    let mut next_quarter = 0;
    let mut report = |done: u64| {
        bar.set_position(done);
        while next_quarter <= 4 && done * 4 >= total * next_quarter {
            let percent = next_quarter * 25;
            tracing::info!(event = "model_load_progress", percent, bytes = done, total_bytes = total);
            next_quarter += 1;
        }
    };
    report(0);
    open.model.upload(&open.gguf, backend, chunk_bytes, &mut report)?;
    bar.finish_and_clear();
    Ok(())
}
