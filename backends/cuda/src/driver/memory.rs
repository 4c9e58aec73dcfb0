//! Device memory and page-locked host memory.

use std::ffi::c_void;
use std::ops::Range;

use cudarc::driver::sys;

use super::error::check;
use super::{DriverError, Event, Stream};
use crate::launch::DevicePtr;

/// One plain device allocation, freed on drop.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    address: DevicePtr,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates `bytes` (at least 1) of plain device memory.
    pub(crate) fn allocate(bytes: usize) -> Result<Self, DriverError> {
        let mut address = 0;
        // SAFETY: a context is current; the pointer is to a live integer.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes.max(1)) })?;
        Ok(Self { address: DevicePtr(address), bytes })
    }

    /// Where it begins.
    pub(crate) const fn address(&self) -> DevicePtr {
        self.address
    }

    /// Its size.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated once in `allocate`; cuMemFree waits for work that uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.address.0) };
    }
}

/// Where the driver says an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Residency {
    /// `CU_MEMORYTYPE_DEVICE`.
    pub(crate) is_device: bool,
    /// Managed memory, which may migrate.
    pub(crate) is_managed: bool,
    /// Device it belongs to.
    pub(crate) ordinal: i32,
}

impl Residency {
    /// Asks the driver.
    pub(crate) fn of(address: DevicePtr) -> Result<Self, DriverError> {
        use sys::CUpointer_attribute as Attribute;
        let kind = attribute(address, Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE)?;
        let managed = attribute(address, Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED)?;
        let ordinal = attribute(address, Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)?;
        let is_device = kind == sys::CUmemorytype::CU_MEMORYTYPE_DEVICE as u64;
        Ok(Self { is_device, is_managed: managed != 0, ordinal: ordinal as i32 })
    }
}

fn attribute(address: DevicePtr, attribute: sys::CUpointer_attribute) -> Result<u64, DriverError> {
    // Every attribute asked for here is at most 8 bytes, little-endian.
    let mut value = 0_u64;
    // SAFETY: the driver writes at most 8 bytes; it accepts any address and reports unknown ones as an error.
    let code = unsafe { sys::cuPointerGetAttribute((&raw mut value).cast::<c_void>(), attribute, address.0) };
    check("cuPointerGetAttribute", code)?;
    Ok(value)
}

/// Page-locked host memory that copies to and from the device overlap with.
///
/// Each copy is followed by an event; the bytes cannot be seen, changed or freed before it has passed.
#[derive(Debug)]
pub(crate) struct PinnedMemory {
    pointer: *mut u8,
    bytes: usize,
    done: Event,
}

// SAFETY: the memory is owned and reached through `&self`/`&mut self` only.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// Allocates `bytes` (at least 1), zeroed.
    pub(crate) fn allocate(bytes: usize) -> Result<Self, DriverError> {
        let done = Event::create(false)?;
        let mut pointer = std::ptr::null_mut();
        // SAFETY: a context is current; the pointer is to a live pointer.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut pointer, bytes.max(1), 0) })?;
        let pointer = pointer.cast::<u8>();
        // SAFETY: freshly allocated, `bytes.max(1)` long.
        unsafe { pointer.write_bytes(0, bytes.max(1)) };
        Ok(Self { pointer, bytes, done })
    }

    /// Its size.
    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    /// The address as a number: what an injected residency violation shows to the check.
    pub(crate) fn address(&self) -> DevicePtr {
        DevicePtr(self.pointer as u64)
    }

    /// The bytes, after the last copy is done.
    pub(crate) fn bytes(&self) -> Result<&[u8], DriverError> {
        self.done.wait()?;
        // SAFETY: `len` bytes were allocated and initialised, and no copy is under way.
        Ok(unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) })
    }

    /// The bytes for writing, after the last copy is done.
    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8], DriverError> {
        self.done.wait()?;
        // SAFETY: as in `bytes`, and borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) })
    }

    /// Starts a copy of `range` to the device. The range is cut to the buffer.
    pub(crate) fn copy_to_device(
        &mut self,
        stream: &Stream,
        range: Range<usize>,
        to: DevicePtr,
    ) -> Result<(), DriverError> {
        let (start, bytes) = self.cut(range);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `start` is inside the allocation.
        let from = unsafe { self.pointer.add(start) };
        // SAFETY: the source is inside the allocation and stays untouched until the event below has passed; the target
        // is an arena's, with room for it.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to.0, from.cast::<c_void>(), bytes, stream.handle()) };
        check("cuMemcpyHtoDAsync", code)?;
        self.done.record(stream)
    }

    /// Starts a copy from the device into `range`, cut to the buffer.
    pub(crate) fn copy_from_device(
        &mut self,
        stream: &Stream,
        from: DevicePtr,
        range: Range<usize>,
    ) -> Result<(), DriverError> {
        let (start, bytes) = self.cut(range);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `start` is inside the allocation.
        let to = unsafe { self.pointer.add(start) };
        // SAFETY: the target is inside the allocation and stays untouched until the event below has passed; the source
        // is an arena's, with as many bytes.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from.0, bytes, stream.handle()) };
        check("cuMemcpyDtoHAsync", code)?;
        self.done.record(stream)
    }

    fn cut(&self, range: Range<usize>) -> (usize, usize) {
        let start = range.start.min(self.bytes);
        (start, range.end.min(self.bytes).saturating_sub(start))
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        let _ = self.done.wait();
        // SAFETY: allocated once in `allocate`; no copy is under way.
        let _ = unsafe { sys::cuMemFreeHost(self.pointer.cast::<c_void>()) };
    }
}
