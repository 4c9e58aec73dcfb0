//! How fast the device copies, timed with events over memory taken for the call.

use worker_orcd_core::{BackendError, Bandwidth};

use crate::driver::{Device, DriverError, Event, PinnedMemory, Stream};
use crate::launch::DevicePtr;
use crate::memory::{Arena, Purpose};
use crate::upload::STAGING_BYTES;

/// Each way: ten times the largest level-2 cache.
const COPY_BYTES: usize = 512 << 20;
/// Where there is less room than this, caches would be measured.
const LEAST_BYTES: usize = 128 << 20;
/// Uploads that are timed together.
const UPLOADS: usize = 16;
/// Measurements of which the fastest counts.
const REPEATS: usize = 6;

/// Copies inside the device's memory, and from page-locked memory in the pieces that weights travel in. The memory is
/// given back before this returns; what there is no room for is not known.
pub(crate) fn measure(device: &Device, stream: &Stream) -> Result<Bandwidth, BackendError> {
    let mut arena = Arena::new(Purpose::Workspace);
    let copy = match two_ranges(&mut arena, device, stream)? {
        Some((from, to, bytes)) => {
            let seconds = fastest(stream, || stream.copy(from, to, bytes))?;
            Some(2.0 * bytes as f64 / seconds)
        }
        None => None,
    };
    let upload = match place(&mut arena, device, stream, STAGING_BYTES)? {
        Some(to) => Some(uploads(stream, to)?),
        None => None,
    };
    stream.synchronize().map_err(at)?;
    Ok(Bandwidth { copy_bytes_per_second: copy, upload_bytes_per_second: upload })
}

fn at(error: DriverError) -> BackendError {
    error.at("bandwidth")
}

/// Two ranges of one size, the largest that there is room for.
fn two_ranges(
    arena: &mut Arena,
    device: &Device,
    stream: &Stream,
) -> Result<Option<(DevicePtr, DevicePtr, usize)>, BackendError> {
    let mut bytes = COPY_BYTES;
    while bytes >= LEAST_BYTES {
        // One range that both halves lie in, so that a second that does not fit leaves no first behind.
        if let Some(both) = place(arena, device, stream, 2 * bytes)? {
            stream.fill(both, 0, 2 * bytes).map_err(at)?;
            return Ok(Some((both, both.offset(bytes), bytes)));
        }
        bytes /= 2;
    }
    Ok(None)
}

/// A range, if there is room for it.
fn place(
    arena: &mut Arena,
    device: &Device,
    stream: &Stream,
    bytes: usize,
) -> Result<Option<DevicePtr>, BackendError> {
    match arena.place(device, stream, bytes) {
        Ok(place) => Ok(Some(place)),
        Err(BackendError::OutOfMemory { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes per second of uploads that follow each other.
fn uploads(stream: &Stream, to: DevicePtr) -> Result<f64, BackendError> {
    let mut host = PinnedMemory::allocate(STAGING_BYTES).map_err(at)?;
    let seconds =
        fastest(stream, || (0..UPLOADS).try_for_each(|_| host.copy_to_device(stream, 0..STAGING_BYTES, to)))?;
    Ok((UPLOADS * STAGING_BYTES) as f64 / seconds)
}

/// Seconds that the fastest of several takes on the device, after one that is not timed.
fn fastest(stream: &Stream, mut work: impl FnMut() -> Result<(), DriverError>) -> Result<f64, BackendError> {
    let (before, after) = (Event::create(true).map_err(at)?, Event::create(true).map_err(at)?);
    work().map_err(at)?;
    let mut microseconds = f64::INFINITY;
    for _ in 0..REPEATS {
        before.record(stream).map_err(at)?;
        work().map_err(at)?;
        after.record(stream).map_err(at)?;
        after.wait().map_err(at)?;
        microseconds = microseconds.min(after.microseconds_since(&before).map_err(at)?);
    }
    // The clock's step is half a microsecond; nothing measured here is as short.
    Ok(microseconds.max(0.5) / 1e6)
}
