//! Device memory by purpose: arenas that hand out aligned ranges of plain allocations, and the checks on them.
//!
//! Nothing else allocates on the device. Every byte is in an arena, so the report is the sum of the arenas, and the
//! residency check asks the driver about each allocation's first and last byte. In debug builds a guard follows every
//! range, and the check also looks whether a kernel wrote into one.

use worker_orcd_core::BackendError;

use crate::driver::{Device, DeviceMemory, DriverError, PinnedMemory, Residency, Stream};
use crate::launch::DevicePtr;

/// Alignment of every range: the strictest any kernel asks for.
const ALIGNMENT: usize = 256;

/// Bytes of guard after every range.
const GUARD_BYTES: usize = if cfg!(debug_assertions) { 256 } else { 0 };

/// What guards are filled with.
const GUARD_PATTERN: u32 = 0xA5C3_3C5A;

/// What memory is for; the name is `OutOfMemory`'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Repacked weights.
    Weights,
    /// Keys and values.
    KvCache,
    /// Values of the running step.
    Activations,
    /// Inputs, scratch, staging.
    Workspace,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvCache => "kv_cache",
            Self::Activations => "activations",
            Self::Workspace => "workspace",
        }
    }
}

/// Book-keeping of one allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    base: DevicePtr,
    bytes: usize,
    used: usize,
}

impl Segment {
    /// Takes `bytes` from the end of what is used.
    fn take(&mut self, bytes: usize) -> Option<DevicePtr> {
        let end = self.used.checked_add(bytes)?;
        if end > self.bytes {
            return None;
        }
        let place = self.base.offset(self.used);
        self.used = end;
        Some(place)
    }
}

/// Bytes a range takes, with its guard and alignment.
fn padded(bytes: usize) -> Option<usize> {
    bytes.checked_add(GUARD_BYTES)?.checked_next_multiple_of(ALIGNMENT)
}

/// Bytes that ranges of these sizes take together; `None` when the sum overflows.
pub(crate) fn padded_sum(mut ranges: impl Iterator<Item = usize>) -> Option<usize> {
    ranges.try_fold(0_usize, |sum, bytes| sum.checked_add(padded(bytes)?))
}

/// Ranges of one purpose.
#[derive(Debug)]
pub(crate) struct Arena {
    purpose: Purpose,
    memory: Vec<DeviceMemory>,
    segments: Vec<Segment>,
    guards: Vec<DevicePtr>,
}

impl Arena {
    /// An empty arena.
    pub(crate) const fn new(purpose: Purpose) -> Self {
        Self { purpose, memory: vec![], segments: vec![], guards: vec![] }
    }

    /// Allocates room for ranges of these sizes at once, so that placing them takes nothing more.
    ///
    /// # Errors
    /// No room.
    pub(crate) fn reserve(
        &mut self,
        device: &Device,
        ranges: impl Iterator<Item = usize>,
    ) -> Result<(), BackendError> {
        let bytes = padded_sum(ranges).ok_or_else(|| self.out_of_memory(device, usize::MAX))?;
        if bytes > 0 { self.grow(device, bytes) } else { Ok(()) }
    }

    /// A range of `bytes`, in what was reserved or in an allocation of its own.
    ///
    /// # Errors
    /// No room.
    pub(crate) fn place(
        &mut self,
        device: &Device,
        stream: &Stream,
        bytes: usize,
    ) -> Result<DevicePtr, BackendError> {
        let whole = padded(bytes).ok_or_else(|| self.out_of_memory(device, bytes))?;
        let place = if let Some(place) = self.take(whole) {
            place
        } else {
            self.grow(device, whole)?;
            self.take(whole).ok_or_else(|| self.out_of_memory(device, whole))?
        };
        if GUARD_BYTES > 0 {
            // The last aligned guard of the range, so that the pattern starts on a word.
            let guard = place.offset(whole - GUARD_BYTES);
            stream.fill(guard, GUARD_PATTERN, GUARD_BYTES).map_err(|error| error.at(self.purpose.name()))?;
            self.guards.push(guard);
        }
        Ok(place)
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> u64 {
        self.memory.iter().map(|memory| memory.bytes() as u64).sum()
    }

    /// The ranges as allocations: address and size.
    pub(crate) fn allocations(&self) -> impl Iterator<Item = Allocation> {
        self.memory.iter().map(|memory| Allocation {
            purpose: self.purpose,
            address: memory.address(),
            bytes: memory.bytes(),
        })
    }

    fn take(&mut self, whole: usize) -> Option<DevicePtr> {
        self.segments.iter_mut().find_map(|segment| segment.take(whole))
    }

    fn grow(&mut self, device: &Device, bytes: usize) -> Result<(), BackendError> {
        let memory = DeviceMemory::allocate(bytes.max(ALIGNMENT)).map_err(|error| {
            if error.is_out_of_memory() {
                self.out_of_memory(device, bytes)
            } else {
                error.at(self.purpose.name())
            }
        })?;
        self.segments.push(Segment { base: memory.address(), bytes: memory.bytes(), used: 0 });
        self.memory.push(memory);
        Ok(())
    }

    fn out_of_memory(&self, device: &Device, requested: usize) -> BackendError {
        BackendError::OutOfMemory {
            purpose: self.purpose.name(),
            requested_bytes: requested as u64,
            available_bytes: device.memory().map_or(0, |(free, _)| free),
        }
    }

    /// Looks at every guard.
    ///
    /// # Errors
    /// [`BackendError::Residency`] when one was written to.
    pub(crate) fn check_guards(&self, stream: &Stream) -> Result<(), BackendError> {
        let at = |error: DriverError| error.at("guard words");
        if self.guards.is_empty() {
            return Ok(());
        }
        let mut pinned = PinnedMemory::allocate(self.guards.len() * GUARD_BYTES).map_err(at)?;
        for (index, &guard) in self.guards.iter().enumerate() {
            let start = index * GUARD_BYTES;
            pinned.copy_from_device(stream, guard, start..start + GUARD_BYTES).map_err(at)?;
        }
        let bytes = pinned.bytes().map_err(at)?;
        match bytes.chunks_exact(4).position(|word| word != GUARD_PATTERN.to_le_bytes()) {
            None => Ok(()),
            Some(word) => {
                let index = word * 4 / GUARD_BYTES.max(1);
                let reason = format!("a kernel wrote past {} range {index}", self.purpose.name());
                Err(BackendError::Residency { reason })
            }
        }
    }
}

/// One allocation, as the residency check sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// What for.
    pub(crate) purpose: Purpose,
    /// First byte.
    pub(crate) address: DevicePtr,
    /// Size.
    pub(crate) bytes: usize,
}

/// Asks `probe` (the driver) where the first and last byte of every allocation are.
///
/// # Errors
/// [`BackendError::Residency`] naming the first that is not plain memory of device `ordinal`.
pub(crate) fn check_residency(
    allocations: impl Iterator<Item = Allocation>,
    ordinal: usize,
    probe: impl Fn(DevicePtr) -> Result<Residency, DriverError>,
) -> Result<(), BackendError> {
    for Allocation { purpose, address, bytes } in allocations {
        for place in [address, address.offset(bytes.saturating_sub(1))] {
            let violated = |what: String| BackendError::Residency {
                reason: format!("{} at {:#x}: {what}", purpose.name(), place.0),
            };
            let found = probe(place).map_err(|error| {
                if error.is_sticky() { error.at("residency") } else { violated(error.to_string()) }
            })?;
            if !found.is_device {
                return Err(violated("host memory".to_owned()));
            }
            if found.is_managed {
                return Err(violated("managed memory, which may leave the device".to_owned()));
            }
            if found.ordinal != ordinal as i32 {
                return Err(violated(format!("memory of device {}, not {ordinal}", found.ordinal)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hand_out_ranges_that_follow_each_other_until_full() {
        let mut segment = Segment { base: DevicePtr(0x1000), bytes: 1024, used: 0 };
        assert_eq!(segment.take(512), Some(DevicePtr(0x1000)));
        assert_eq!(segment.take(256), Some(DevicePtr(0x1200)));
        assert_eq!(segment.take(257), None);
        assert_eq!(segment.take(256), Some(DevicePtr(0x1300)));
        assert_eq!(segment.take(1), None);
        assert_eq!(segment.take(usize::MAX), None);
    }

    #[test]
    fn ranges_are_padded_to_alignment_with_room_for_the_guard() {
        for bytes in [0, 1, 255, 256, 257, 100_000] {
            let whole = padded(bytes).unwrap();
            assert_eq!(whole % ALIGNMENT, 0);
            assert!(whole - GUARD_BYTES >= bytes);
        }
        assert_eq!(padded(usize::MAX), None);
        assert_eq!(padded_sum([1, 257].into_iter()), Some(padded(1).unwrap() + padded(257).unwrap()));
        assert_eq!(padded_sum([1, usize::MAX].into_iter()), None);
    }

    const RESIDENT: Residency = Residency { is_device: true, is_managed: false, ordinal: 2 };

    fn check(probe: impl Fn(DevicePtr) -> Result<Residency, DriverError>) -> Result<(), BackendError> {
        let allocation = |purpose, address| Allocation { purpose, address: DevicePtr(address), bytes: 16 };
        let all = [allocation(Purpose::Weights, 0x100), allocation(Purpose::KvCache, 0x200)];
        check_residency(all.into_iter(), 2, probe)
    }

    #[test]
    fn residency_holds_when_every_byte_asked_for_is_on_the_device() {
        assert!(check(|_| Ok(RESIDENT)).is_ok());
    }

    #[test]
    fn residency_names_the_allocation_and_what_is_wrong_with_it() {
        let wrong: [(&str, Residency); 3] = [
            ("host", Residency { is_device: false, ..RESIDENT }),
            ("managed", Residency { is_managed: true, ..RESIDENT }),
            ("device 0", Residency { ordinal: 0, ..RESIDENT }),
        ];
        for (word, residency) in wrong {
            // The last byte of the second allocation.
            let error = check(|place| Ok(if place.0 == 0x20F { residency } else { RESIDENT })).unwrap_err();
            let BackendError::Residency { reason } = error else { panic!("{error}") };
            assert!(reason.contains(word) && reason.contains("kv_cache at 0x20f"), "{reason}");
        }
    }

    #[test]
    fn an_address_the_driver_does_not_know_violates_residency_and_a_lost_device_is_told_apart() {
        let refused = |code| DriverError { call: "cuPointerGetAttribute", code, text: "words".to_owned() };
        assert!(matches!(check(|_| Err(refused(1))), Err(BackendError::Residency { .. })));
        assert!(matches!(check(|_| Err(refused(700))), Err(BackendError::DeviceLost { .. })));
    }
}
