//! How fast this machine copies memory, with one thread, as the interpreter runs.

use std::hint::black_box;
use std::time::Instant;

use crate::backend::Bandwidth;

/// More than a core's share of any cache.
const COPY_BYTES: usize = 64 << 20;
/// Copies of which the fastest counts; one more before them brings the pages in.
const REPEATS: usize = 5;

/// Copies a buffer again and again. Host and device are one, so the same copies are uploads; of those only what arrives
/// counts.
pub(super) fn measure() -> Bandwidth {
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![0_u8; COPY_BYTES];
    let mut fastest = f64::INFINITY;
    for repeat in 0..=REPEATS {
        let start = Instant::now();
        black_box(&mut to).copy_from_slice(black_box(&from));
        if repeat > 0 {
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
    }
    let per_second = COPY_BYTES as f64 / fastest.max(1e-9);
    Bandwidth { copy_bytes_per_second: Some(2.0 * per_second), upload_bytes_per_second: Some(per_second) }
}
