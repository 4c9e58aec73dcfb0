//! How fast the device copies, measured on buffers made for the call.

use std::time::Instant;

use wgpu::BufferUsages as Use;
use worker_orcd_core::{BackendError, Bandwidth};

use crate::gpu::{Gpu, Purpose};

/// Each way; beyond every cache that a GPU has.
const COPY_BYTES: u64 = 128 << 20;
/// From the host at a time.
const UPLOAD_BYTES: u64 = 16 << 20;
/// Submissions of which the fastest counts.
const REPEATS: usize = 5;
/// A submission should take so long that submitting is little of it.
const SUBMISSION_SECONDS: f64 = 4e-3;
/// Most copies of a submission.
const MOST_COPIES: f64 = 32.0;

/// Copies between two buffers, and from one the host can write. Where there is no room for them nothing is known.
pub(crate) fn measure(gpu: &Gpu) -> Result<Bandwidth, BackendError> {
    let bytes = COPY_BYTES.min(gpu.limits.max_buffer_size) / 4 * 4;
    let buffer = |bytes, usage| match gpu.buffer(Purpose::Workspace, "bandwidth", bytes, usage) {
        Ok(buffer) => Ok(Some(buffer)),
        Err(BackendError::OutOfMemory { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let Some(to) = buffer(bytes, Use::COPY_DST)? else { return Ok(Bandwidth::default()) };
    let copy = match buffer(bytes, Use::COPY_SRC)? {
        Some(from) => Some(2.0 * bytes_per_second(gpu, &from, &to)?),
        None => None,
    };
    let upload = match buffer(UPLOAD_BYTES.min(bytes), Use::MAP_WRITE | Use::COPY_SRC)? {
        Some(from) => {
            from.unmap();
            Some(bytes_per_second(gpu, &from, &to)?)
        }
        None => None,
    };
    Ok(Bandwidth { copy_bytes_per_second: copy, upload_bytes_per_second: upload })
}

/// Bytes of `from` that arrive in `to` each second.
fn bytes_per_second(gpu: &Gpu, from: &wgpu::Buffer, to: &wgpu::Buffer) -> Result<f64, BackendError> {
    let bytes = from.size().min(to.size());
    let seconds = |copies: usize| -> Result<f64, BackendError> {
        let mut encoder = gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for _ in 0..copies {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        gpu.queue.submit([commands]);
        gpu.wait_idle("bandwidth")?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first pays for memory that is touched for the first time.
    seconds(1)?;
    let copies = (SUBMISSION_SECONDS / seconds(1)?.max(1e-9)).ceil().clamp(1.0, MOST_COPIES) as usize;
    let mut fastest = f64::INFINITY;
    for _ in 0..REPEATS {
        fastest = fastest.min(seconds(copies)?);
    }
    Ok(bytes as f64 * copies as f64 / fastest.max(1e-9))
}
