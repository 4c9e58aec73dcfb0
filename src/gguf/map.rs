//! The bytes of a model file: a read-only memory map of a regular file, or bytes already in memory.
//!
//! Weights are many gigabytes; mapping them means the page cache holds them and the process does not.

#![allow(unsafe_code, reason = "mapping a file is unsafe because another process may change it")]

use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::time::SystemTime;

#[cfg(unix)]
use memmap2::Advice;
use memmap2::Mmap;

use super::error::{GgufError, Place, Rule, Subject};

/// Where the bytes live.
#[derive(Debug)]
pub(super) enum Bytes {
    /// A mapped file, with what it looked like when it was mapped.
    Mapped { map: Mmap, file: File, stamp: Stamp },
    /// Memory that belongs to us or to the executable.
    Memory(Cow<'static, [u8]>),
}

/// Length and modification time of an open file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { length: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl Bytes {
    /// Maps the regular file at `path` (or at the end of its symbolic links).
    ///
    /// # Errors
    /// The system's own, or [`Rule::NotRegular`]: a FIFO would block and a device never ends.
    pub(super) fn map(path: &Path) -> Result<Self, GgufError> {
        let io_error = |source| GgufError::Io { file: path.to_owned(), source };
        // Before opening, because opening a FIFO waits for a writer; and again after, because the name may have moved.
        require_regular(path, &fs::metadata(path).map_err(io_error)?)?;
        let file = File::open(path).map_err(io_error)?;
        require_regular(path, &file.metadata().map_err(io_error)?)?;
        let stamp = Stamp::of(&file).map_err(io_error)?;
        if stamp.length == 0 {
            return Ok(Self::Memory(Cow::Borrowed(&[])));
        }
        // SAFETY: the map is read-only and every access goes through its slice, so it stays in bounds. That the file
        // is not shortened or rewritten while mapped is upheld by its owner; nothing in Rust can enforce it.
        // `Bytes::unchanged` lets the loader notice afterwards.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        Ok(Self::Mapped { map, file, stamp })
    }

    /// Whether the file still has the length and modification time it was mapped with.
    ///
    /// # Errors
    /// The system's own.
    pub(super) fn unchanged(&self) -> io::Result<bool> {
        match self {
            Self::Mapped { file, stamp, .. } => Ok(Stamp::of(file)? == *stamp),
            Self::Memory(_) => Ok(true),
        }
    }

    /// Hints that `range` will be read soon. A hint refused changes nothing.
    pub(super) fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped { map, .. } = self
            && range.end <= map.len()
            && range.start < range.end
        {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.end - range.start);
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped { map, .. } => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

fn require_regular(path: &Path, metadata: &fs::Metadata) -> Result<(), GgufError> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a directory" } else { "a device, pipe or socket" };
    let rule = Rule::NotRegular { found };
    Err(GgufError::Invalid { file: path.to_owned(), place: Place::of(Subject::File), rule })
}
