//! How a weight's bytes get to the device: ragged chunks → page-locked staging → asynchronous copy → repack kernel.
//!
//! Two staging buffers take turns, so that the host fills one while the other travels. A repack is given whole rows of
//! one expert only, beginning at a multiple of the layout's row granule; chunk borders may lie anywhere.

use worker_orcd_core::{BackendError, WeightSpec};

use crate::driver::{Device, PinnedMemory, Stream};
use crate::kernel_set::KernelSet;
use crate::launch::DevicePtr;
use crate::lower::DeviceWeight;
use crate::memory::{Arena, Purpose};

/// Size of one staging buffer: large enough for full copy speed.
pub(crate) const STAGING_BYTES: usize = 16 << 20;

/// From this size on, filling a staging buffer is spread over several threads: one alone is slower than the bus.
const PARALLEL_BYTES: usize = 4 << 20;

/// Most threads that fill a staging buffer.
const COPY_THREADS: usize = 8;

/// Bytes and where they go; as many on both sides.
type Segment<'a> = (&'a [u8], &'a mut [u8]);

/// A run of rows that is repacked at once. Rows count through all experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first_row: usize,
    rows: usize,
}

/// Cuts a weight into pieces of at most `capacity` rows that stay inside one expert and, but for an expert's last, are
/// multiples of `granule` rows. Empty when not even one granule fits.
fn pieces(spec: &WeightSpec, granule: usize, capacity: usize) -> Vec<Piece> {
    let step = if capacity >= spec.rows { spec.rows } else { capacity - capacity % granule.max(1) };
    if step == 0 {
        return vec![];
    }
    let expert = |expert: usize| {
        (0..spec.rows)
            .step_by(step)
            .map(move |row| Piece { first_row: expert * spec.rows + row, rows: step.min(spec.rows - row) })
    };
    (0..spec.experts).flat_map(expert).collect()
}

/// Groups consecutive pieces so that each group's bytes fill a staging buffer: many small experts travel together.
fn batches(pieces: &[Piece], capacity: usize) -> Vec<&[Piece]> {
    let mut groups = vec![];
    let mut start = 0;
    let mut rows = 0;
    for (index, piece) in pieces.iter().enumerate() {
        if rows + piece.rows > capacity && index > start {
            groups.extend(pieces.get(start..index));
            (start, rows) = (index, 0);
        }
        rows += piece.rows;
    }
    groups.extend(pieces.get(start..).filter(|last| !last.is_empty()));
    groups
}

/// Reads exact amounts from chunks of any size.
struct ChunkReader<'c, 'b> {
    chunks: &'c mut dyn Iterator<Item = &'b [u8]>,
    rest: &'b [u8],
}

impl<'c, 'b> ChunkReader<'c, 'b> {
    fn new(chunks: &'c mut dyn Iterator<Item = &'b [u8]>) -> Self {
        Self { chunks, rest: &[] }
    }

    /// Fills `target` and returns how many bytes there were.
    fn read(&mut self, target: &mut [u8]) -> usize {
        let length = target.len();
        let mut open = target;
        let mut segments = vec![];
        while !open.is_empty() {
            if self.rest.is_empty() {
                match self.chunks.next() {
                    Some(chunk) => self.rest = chunk,
                    None => break,
                }
                continue;
            }
            let (now, later) = self.rest.split_at(self.rest.len().min(open.len()));
            let (to, beyond) = open.split_at_mut(now.len());
            segments.push((now, to));
            (self.rest, open) = (later, beyond);
        }
        let filled = length - open.len();
        copy(segments, filled);
        filled
    }

    /// Bytes that are still to come.
    fn remaining(&mut self) -> usize {
        let rest = std::mem::take(&mut self.rest).len();
        rest + self.chunks.map(<[u8]>::len).sum::<usize>()
    }
}

/// Copies segments of `bytes` bytes in all.
fn copy(segments: Vec<Segment<'_>>, bytes: usize) {
    let fill =
        |segments: Vec<Segment<'_>>| segments.into_iter().for_each(|(from, to)| to.copy_from_slice(from));
    if bytes < PARALLEL_BYTES {
        return fill(segments);
    }
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(COPY_THREADS));
    std::thread::scope(|scope| {
        for share in shares(segments, bytes.div_ceil(threads)) {
            scope.spawn(move || fill(share));
        }
    });
}

/// Cuts segments so that each share has `share` bytes, the last one what is left.
fn shares(segments: Vec<Segment<'_>>, share: usize) -> Vec<Vec<Segment<'_>>> {
    let mut all = vec![];
    let (mut own, mut room) = (vec![], share);
    for (mut from, mut to) in segments {
        while !from.is_empty() {
            let taken = room.min(from.len());
            let ((now, later), (into, beyond)) = (from.split_at(taken), to.split_at_mut(taken));
            own.push((now, into));
            (from, to) = (later, beyond);
            room -= taken;
            if room == 0 {
                all.push(std::mem::take(&mut own));
                room = share;
            }
        }
    }
    all.push(own);
    all
}

/// Staging memory, kept from the first upload until programs are compiled.
#[derive(Debug)]
pub(crate) struct Staging {
    host: [PinnedMemory; 2],
    device: Arena,
    address: DevicePtr,
    turn: usize,
}

impl Staging {
    /// Allocates both sides.
    ///
    /// # Errors
    /// No room.
    pub(crate) fn allocate(device: &Device, stream: &Stream) -> Result<Self, BackendError> {
        let pinned = || PinnedMemory::allocate(STAGING_BYTES).map_err(|error| error.at("staging"));
        let mut arena = Arena::new(Purpose::Workspace);
        let address = arena.place(device, stream, STAGING_BYTES)?;
        Ok(Self { host: [pinned()?, pinned()?], device: arena, address, turn: 0 })
    }

    /// The device side, for the memory report.
    pub(crate) const fn arena(&self) -> &Arena {
        &self.device
    }

    /// Brings a weight to its place. Returns when the last byte is queued; the stream's order does the rest.
    ///
    /// # Errors
    /// The chunks hold more or fewer bytes than the weight, a row does not fit the staging buffer, or a device error.
    pub(crate) fn upload(
        &mut self,
        weight: &DeviceWeight,
        chunks: &mut dyn Iterator<Item = &[u8]>,
        stream: &Stream,
        kernels: &mut KernelSet,
    ) -> Result<(), BackendError> {
        let spec = &weight.spec;
        let broken = |reason: String| BackendError::Weight { label: spec.label.clone(), reason };
        let row_bytes = spec.row_bytes().filter(|&bytes| bytes > 0);
        let row_bytes = row_bytes.ok_or_else(|| broken("rows are not whole quant blocks".to_owned()))?;
        let expected = spec.bytes().ok_or_else(|| broken("size overflows".to_owned()))?;
        let capacity = STAGING_BYTES / row_bytes;
        let pieces = pieces(spec, weight.layout.row_granule(), capacity);
        if pieces.is_empty() && expected > 0 {
            return Err(broken(format!(
                "a row of {row_bytes} bytes does not fit {STAGING_BYTES} of staging"
            )));
        }
        let mut reader = ChunkReader::new(chunks);
        let mut received = 0;
        for batch in batches(&pieces, capacity) {
            let bytes = batch.iter().map(|piece| piece.rows).sum::<usize>() * row_bytes;
            self.turn = 1 - self.turn;
            let [first, second] = &mut self.host;
            let host = if self.turn == 0 { first } else { second };
            let open = host.bytes_mut().map_err(|error| error.at(&spec.label))?;
            let filled = open.get_mut(..bytes).map_or(0, |open| reader.read(open));
            received += filled;
            if filled < bytes {
                return Err(broken(format!("{received} bytes, the shape needs {expected}")));
            }
            host.copy_to_device(stream, 0..bytes, self.address).map_err(|error| error.at(&spec.label))?;
            self.repack(weight, batch, row_bytes, stream, kernels)?;
        }
        match reader.remaining() {
            0 => Ok(()),
            more => Err(broken(format!("{} bytes, the shape needs {expected}", received + more))),
        }
    }

    /// Moves staged rows to their places.
    fn repack(
        &self,
        weight: &DeviceWeight,
        batch: &[Piece],
        row_bytes: usize,
        stream: &Stream,
        kernels: &mut KernelSet,
    ) -> Result<(), BackendError> {
        let mut source = self.address;
        for &Piece { first_row, rows } in batch {
            let launch = weight.layout.repack(&weight.spec, source, weight.address, first_row, rows);
            if let Some(launch) = launch {
                kernels.run(&launch, stream)?;
            } else {
                let to = weight.address.offset(first_row * row_bytes);
                stream.copy(source, to, rows * row_bytes).map_err(|error| error.at(&weight.spec.label))?;
            }
            source = source.offset(rows * row_bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use worker_orcd_core::DType;

    use super::*;

    #[test]
    fn pieces_cover_every_row_once_inside_its_expert_on_granule_borders() {
        for (experts, rows, granule, capacity) in
            [(1, 100, 16, 33), (3, 50, 16, 40), (4, 7, 16, 100), (2, 64, 1, 64), (1, 1, 8, 8)]
        {
            let spec = WeightSpec::experts("w", DType::Q8_0, experts, rows, 32);
            let pieces = pieces(&spec, granule, capacity);
            let mut next = 0;
            for Piece { first_row, rows: taken } in pieces {
                assert_eq!(first_row, next);
                assert_eq!(first_row % rows % granule, 0, "starts on a granule");
                assert!(taken > 0 && taken <= capacity);
                assert_eq!(first_row / rows, (first_row + taken - 1) / rows, "stays inside one expert");
                next += taken;
            }
            assert_eq!(next, experts * rows);
        }
    }

    #[test]
    fn pieces_are_none_when_a_granule_does_not_fit() {
        let spec = WeightSpec::matrix("w", DType::Q8_0, 100, 32);
        assert_eq!(pieces(&spec, 16, 15), []);
        assert_eq!(pieces(&spec, 1, 0), []);
    }

    #[test]
    fn batches_fill_the_buffer_with_whole_pieces() {
        let spec = WeightSpec::experts("w", DType::Q8_0, 5, 30, 32);
        let pieces = pieces(&spec, 16, 70);
        let batches = batches(&pieces, 70);
        let rows: Vec<usize> =
            batches.iter().map(|batch| batch.iter().map(|piece| piece.rows).sum()).collect();
        assert_eq!(rows, [60, 60, 30]);
        assert!(super::batches(&[], 10).is_empty());
    }

    #[test]
    fn ragged_chunks_are_carried_over_every_border() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for chunk in [1, 7, 64, 333, 999, 1000] {
            let mut chunks = bytes.chunks(chunk);
            let mut reader = ChunkReader::new(&mut chunks);
            let mut seen = vec![];
            for take in [0, 1, 300, 13, 600] {
                let mut target = vec![0; take];
                assert_eq!(reader.read(&mut target), take);
                seen.extend(target);
            }
            assert_eq!(seen, bytes[..914]);
            assert_eq!(reader.remaining(), 86);
        }
    }

    #[test]
    fn a_reader_says_when_bytes_are_missing() {
        let mut chunks = [&[1, 2, 3][..], &[], &[4]].into_iter();
        let mut reader = ChunkReader::new(&mut chunks);
        let mut target = [0; 6];
        assert_eq!(reader.read(&mut target), 4);
        assert_eq!(target, [1, 2, 3, 4, 0, 0]);
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn large_copies_are_whole_whatever_chunks_they_come_in() {
        for length in [PARALLEL_BYTES, PARALLEL_BYTES + 1, 2 * PARALLEL_BYTES - 3] {
            let from: Vec<u8> = (0..length).map(|index| (index * 31 % 251) as u8).collect();
            for chunk in [length, 1 << 20, (1 << 20) - 7] {
                let mut to = vec![0; length];
                assert_eq!(ChunkReader::new(&mut from.chunks(chunk)).read(&mut to), length);
                assert!(from == to, "{length} bytes in chunks of {chunk}");
            }
        }
    }
}
