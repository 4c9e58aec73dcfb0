//! Reads the packed fields of a header one after the other, never past the end of the file.

use super::error::{Place, Rule, Subject};

/// A rule broken at a place; the caller adds the file.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) place: Place,
    pub(super) rule: Rule,
}

/// Position in the bytes of one file.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    field: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn start(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0, field: 0 }
    }

    /// Offset of the next unread byte.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Bytes not yet read.
    pub(super) fn remaining(&self) -> u64 {
        self.bytes.len().saturating_sub(self.position) as u64
    }

    /// `rule` is broken by the field read last.
    pub(super) fn fault(&self, subject: Subject, rule: Rule) -> Fault {
        Fault { place: Place { subject, offset: Some(self.field as u64) }, rule }
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], Rule> {
        self.field = self.position;
        let too_long = Rule::EndOfFile { needed: count, remaining: self.remaining() };
        let end = usize::try_from(count).ok().and_then(|count| self.position.checked_add(count));
        let Some((end, bytes)) = end.and_then(|end| Some((end, self.bytes.get(self.position..end)?))) else {
            return Err(too_long);
        };
        self.position = end;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Rule> {
        let remaining = self.remaining();
        self.take(N as u64)?.first_chunk().copied().ok_or(Rule::EndOfFile { needed: N as u64, remaining })
    }

    pub(super) fn magic(&mut self) -> Result<[u8; 4], Rule> {
        self.fixed()
    }

    pub(super) fn u32(&mut self) -> Result<u32, Rule> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Rule> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    /// A string of at most `limit` bytes; `field` names it in the complaint.
    pub(super) fn string(&mut self, field: &'static str, limit: u64) -> Result<&'a [u8], Rule> {
        let length = self.u64()?;
        let remaining = self.remaining();
        if length > remaining {
            return Err(Rule::CountBeyondFile { field, count: length, remaining });
        }
        if length > limit {
            return Err(Rule::AboveLimit { field, count: length, limit });
        }
        self.take(length)
    }
}
