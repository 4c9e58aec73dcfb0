//! Checks every quantised block's scales before the first byte goes to a device: one that is not finite would surface
//! as NaN logits long after. On several threads, which also brings the file's pages in ahead of the upload.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{ModelError, WeightEntry, WeightSource};
use crate::gguf::{Gguf, TensorInfo, validate_rows};

/// Bytes a thread takes at a time.
const PIECE_BYTES: usize = 16 << 20;
/// More threads than this wait for memory, not for each other.
const MAX_THREADS: usize = 8;

struct Piece<'g> {
    info: &'g TensorInfo,
    bytes: Range<usize>,
}

/// Checks the content of every quantised weight.
///
/// # Errors
/// The first bad scale in the weights' order, with its tensor.
pub(super) fn check(gguf: &Gguf, weights: &[WeightEntry]) -> Result<(), ModelError> {
    let pieces: Vec<Piece<'_>> = weights.iter().flat_map(|entry| pieces(gguf, entry)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let next = AtomicUsize::new(0);
    let first_fault: Mutex<Option<(usize, ModelError)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(pieces.len()) {
            scope.spawn(|| {
                while let Some((index, piece)) = take(&next, &pieces) {
                    let Err(error) = check_piece(gguf, piece) else { continue };
                    let mut fault = first_fault.lock().unwrap_or_else(PoisonError::into_inner);
                    if fault.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
                        *fault = Some((index, error));
                    }
                }
            });
        }
    });
    match first_fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error.in_file(gguf)),
        None => Ok(()),
    }
}

fn take<'p, 'g>(next: &AtomicUsize, pieces: &'p [Piece<'g>]) -> Option<(usize, &'p Piece<'g>)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, pieces.get(index)?))
}

/// A weight's bytes in pieces of whole rows; none for formats without scales.
fn pieces<'g>(gguf: &'g Gguf, entry: &WeightEntry) -> Vec<Piece<'g>> {
    let WeightSource::Stored { tensor, ranges } = &entry.source else { return vec![] };
    let Some(info) = gguf.tensors().get(*tensor).filter(|_| entry.is_quantised()) else { return vec![] };
    let row_bytes = (info.row_bytes() as usize).max(1);
    let step = (PIECE_BYTES / row_bytes).max(1) * row_bytes;
    let split = |range: &Range<usize>| {
        let end = range.end;
        range.clone().step_by(step).map(move |start| start..(start + step).min(end)).collect::<Vec<_>>()
    };
    ranges.iter().flat_map(split).map(|bytes| Piece { info, bytes }).collect()
}

fn check_piece(gguf: &Gguf, piece: &Piece<'_>) -> Result<(), ModelError> {
    let bytes = gguf.tensor_bytes(piece.info).get(piece.bytes.clone()).unwrap_or_default();
    validate_rows(piece.info.dtype, bytes).map_err(|fault| ModelError::Content {
        name: piece.info.name().to_owned(),
        reason: fault.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::forge::forge;
    use crate::model::{Model, ModelOptions};

    #[test]
    fn a_scale_that_is_not_finite_is_found_wherever_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        forge("tiny-gpt-oss", 1, &path).unwrap();
        let open = || Gguf::open(&path).unwrap();
        let checked = |gguf: &Gguf| check(gguf, &Model::new(gguf, ModelOptions::default()).unwrap().weights);
        checked(&open()).unwrap();
        let name = "blk.2.ffn_down_exps.weight";
        let (offset, bytes) = {
            let gguf = open();
            let tensor = gguf.tensor(name).unwrap();
            (tensor.offset() as usize, tensor.bytes as usize)
        };
        let good = std::fs::read(&path).unwrap();
        for at in [offset, offset + bytes - 17] {
            let mut bad = good.clone();
            bad[at] = 0xff;
            std::fs::write(&path, bad).unwrap();
            let error = checked(&open()).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
