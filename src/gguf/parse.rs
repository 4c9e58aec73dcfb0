//! Reads one file's header: fixed fields, metadata index, tensor descriptions.
//!
//! The rules come first and memory second: counts are checked against the bytes left before anything is reserved for
//! them, and the index keeps offsets into the file, so that parsing never takes more than a small multiple of the
//! header's own size.

use worker_orcd_core::DType;

use super::cursor::{Cursor, Fault};
use super::error::{Place, Rule, Subject};
use super::tensor::{MAX_NAME_BYTES, MAX_RANK, TensorInfo, checked_name, data_bytes, padded_dims};
use super::value::{Array, Value, ValueType};

/// Alignment of tensor data where the file names none.
pub(super) const DEFAULT_ALIGNMENT: u32 = 32;
/// The key that names another.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Longest key, in bytes.
const MAX_KEY_BYTES: u64 = u16::MAX as u64;

const HEADER_BYTES: usize = 24;
/// Key length, one byte of key, value type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Name length, one byte of name, rank, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
const MAX_ENTRIES: u64 = 65_536;
const MAX_TENSORS: u64 = 65_536;
const MAX_STRING_BYTES: u64 = 16 << 20;
const MAX_ELEMENT_BYTES: u64 = 64 << 10;
const MAX_ELEMENTS: u64 = 1 << 24;
const MAX_METADATA_BYTES: u64 = 512 << 20;
const ALIGNMENTS: std::ops::RangeInclusive<u32> = 8..=65_536;

/// Where one metadata entry lies in its file.
#[derive(Debug)]
struct Entry {
    key_start: usize,
    value_start: usize,
    value_end: usize,
    /// Elements, of an array.
    count: u32,
    key_length: u16,
    kind: ValueType,
    element: ValueType,
}

/// The metadata of one file: offsets in file order, and the order of the sorted keys.
#[derive(Debug)]
pub(super) struct Index {
    entries: Vec<Entry>,
    by_key: Vec<u32>,
}

impl Entry {
    fn key<'a>(&self, bytes: &'a [u8]) -> &'a str {
        let end = self.key_start + usize::from(self.key_length);
        // Proven visible ASCII when the file was opened.
        bytes.get(self.key_start..end).and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default()
    }

    fn value<'a>(&self, bytes: &'a [u8]) -> Option<Value<'a>> {
        let value = bytes.get(self.value_start..self.value_end)?;
        match self.kind {
            ValueType::Array => Some(Value::Array(Array::over(self.element, self.count as usize, value))),
            scalar => Value::decode(scalar, value),
        }
    }
}

impl Index {
    /// The value of `key` in the file of these `bytes`, and its offset.
    pub(super) fn find<'a>(&self, bytes: &'a [u8], key: &str) -> Option<(Value<'a>, u64)> {
        let entry = |at: &u32| self.entries.get(*at as usize);
        let at = self
            .by_key
            .binary_search_by(|at| entry(at).map_or("", |entry| entry.key(bytes)).cmp(key))
            .ok()?;
        let entry = entry(self.by_key.get(at)?)?;
        Some((entry.value(bytes)?, entry.value_start as u64))
    }

    /// All keys and values in file order.
    pub(super) fn iter<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.entries.iter().filter_map(move |entry| Some((entry.key(bytes), entry.value(bytes)?)))
    }
}

/// What the header of one file says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) alignment: u32,
    pub(super) index: Index,
}

/// Parses the header in `bytes`, the whole of part `part`, appends its tensors to `tensors` and places their data.
pub(super) fn parse(bytes: &[u8], part: u32, tensors: &mut Vec<TensorInfo>) -> Result<Header, Fault> {
    let first = tensors.len();
    let (header, end) = read_header(bytes, part, tensors)?;
    if let Some(added @ [_, ..]) = tensors.get_mut(first..) {
        place_data(bytes, end as u64, u64::from(header.alignment), added)?;
    }
    Ok(header)
}

/// Parses a header and returns where it ends. The tensors' offsets are as the file has them, their data unchecked.
pub(super) fn read_header(
    bytes: &[u8],
    part: u32,
    tensors: &mut Vec<TensorInfo>,
) -> Result<(Header, usize), Fault> {
    let header = |rule| Fault { place: Place { subject: Subject::Header, offset: Some(0) }, rule };
    let mut cursor = Cursor::start(bytes);
    // The magic first: a file that is something else altogether should hear that, however short.
    if bytes.len() >= 4 {
        let found = cursor.magic().map_err(header)?;
        if found != *b"GGUF" {
            return Err(header(Rule::Magic { found }));
        }
    }
    if bytes.len() < HEADER_BYTES {
        return Err(header(Rule::TooShort { length: bytes.len() as u64 }));
    }
    let (version, tensor_count, entry_count) = fixed_fields(&mut cursor)?;
    let index = read_index(bytes, &mut cursor, entry_count)?;
    let alignment = alignment(bytes, &index)?;
    tensors.reserve_exact(tensor_count as usize);
    for at in 0..tensor_count {
        tensors.push(read_tensor(&mut cursor, at, part)?);
    }
    Ok((Header { version, alignment, index }, cursor.position()))
}

/// Version, number of tensors, number of metadata entries.
fn fixed_fields(cursor: &mut Cursor<'_>) -> Result<(u32, u64, u64), Fault> {
    let version = cursor.u32().map_err(|rule| cursor.fault(Subject::Header, rule))?;
    // Big-endian files have no flag; their 3 reads as 3 << 24.
    if version != 0 && version as u16 == 0 {
        return Err(cursor.fault(Subject::Header, Rule::BigEndian));
    }
    if !(2..=3).contains(&version) {
        return Err(cursor.fault(Subject::Header, Rule::Version { found: version }));
    }
    let mut count = |field, least_bytes, limit, reserved| {
        let count = cursor.u64().map_err(|rule| cursor.fault(Subject::Header, rule))?;
        let remaining = cursor.remaining();
        if count.checked_mul(least_bytes).is_none_or(|bytes| bytes > remaining.saturating_sub(reserved)) {
            return Err(cursor.fault(Subject::Header, Rule::CountBeyondFile { field, count, remaining }));
        }
        if count > limit {
            return Err(cursor.fault(Subject::Header, Rule::AboveLimit { field, count, limit }));
        }
        Ok(count)
    };
    let tensors = count("number of tensors", MIN_TENSOR_BYTES, MAX_TENSORS, 0)?;
    let entries =
        count("number of metadata entries", MIN_ENTRY_BYTES, MAX_ENTRIES, tensors * MIN_TENSOR_BYTES)?;
    Ok((version, tensors, entries))
}

fn read_index(bytes: &[u8], cursor: &mut Cursor<'_>, count: u64) -> Result<Index, Fault> {
    let mut entries = Vec::with_capacity(count as usize);
    for at in 0..count {
        let key = read_key(cursor).map_err(|rule| cursor.fault(Subject::KeyIndex(at), rule))?;
        let key_start = cursor.position() - key.len();
        let fault = |cursor: &Cursor<'_>, rule| cursor.fault(Subject::key(key), rule);
        within_limit(cursor).map_err(|rule| fault(cursor, rule))?;
        let (kind, element, elements) = read_type(cursor).map_err(|rule| fault(cursor, rule))?;
        let value_start = read_value(cursor, kind, element, elements).map_err(|rule| fault(cursor, rule))?;
        let value_end = cursor.position();
        let key_length = key.len() as u16;
        let count = elements as u32;
        entries.push(Entry { key_start, value_start, value_end, count, key_length, kind, element });
    }
    let mut by_key: Vec<u32> = (0..count as u32).collect();
    let key_of = |at: u32| entries.get(at as usize).map_or("", |entry| entry.key(bytes));
    by_key.sort_unstable_by(|&a, &b| key_of(a).cmp(key_of(b)).then(a.cmp(&b)));
    for pair in by_key.windows(2) {
        if let &[first, second] = pair
            && key_of(first) == key_of(second)
        {
            let offset = entries.get(second as usize).map(|entry| entry.key_start as u64);
            let place = Place { subject: Subject::key(key_of(second)), offset };
            return Err(Fault { place, rule: Rule::DuplicateKey });
        }
    }
    Ok(Index { entries, by_key })
}

fn read_key<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, Rule> {
    checked_key(cursor.string("key length", MAX_KEY_BYTES)?)
}

/// Checks the bytes of a key.
fn checked_key(bytes: &[u8]) -> Result<&str, Rule> {
    if bytes.is_empty() {
        return Err(Rule::Empty { field: "key" });
    }
    if let Some(&byte) = bytes.iter().find(|byte| !byte.is_ascii_graphic()) {
        return Err(Rule::KeyByte { byte });
    }
    std::str::from_utf8(bytes).map_err(|_| Rule::Utf8)
}

/// Value type, element type (of a scalar: its own) and number of elements (of a scalar: 1).
fn read_type(cursor: &mut Cursor<'_>) -> Result<(ValueType, ValueType, u64), Rule> {
    let id = cursor.u32()?;
    let kind = ValueType::from_id(id).ok_or(Rule::ValueType { id })?;
    if kind != ValueType::Array {
        return Ok((kind, kind, 1));
    }
    let id = cursor.u32()?;
    let element = ValueType::from_id(id).ok_or(Rule::ElementType { id })?;
    if element == ValueType::Array {
        return Err(Rule::NestedArray);
    }
    let count = cursor.u64()?;
    let remaining = cursor.remaining();
    // A string is at least its length.
    let least = element.width().unwrap_or(8) as u64;
    if count.checked_mul(least).is_none_or(|bytes| bytes > remaining) {
        return Err(Rule::CountBeyondFile { field: "array length", count, remaining });
    }
    if count > MAX_ELEMENTS {
        return Err(Rule::AboveLimit { field: "array length", count, limit: MAX_ELEMENTS });
    }
    Ok((kind, element, count))
}

/// Bounds the time a header may take: without it, one of many gigabytes would be read to its end.
fn within_limit(cursor: &Cursor<'_>) -> Result<(), Rule> {
    let count = cursor.position() as u64;
    if count > MAX_METADATA_BYTES {
        return Err(Rule::AboveLimit { field: "size of the metadata", count, limit: MAX_METADATA_BYTES });
    }
    Ok(())
}

/// Walks over a value and returns where its bytes start (for a string, its characters).
fn read_value(
    cursor: &mut Cursor<'_>,
    kind: ValueType,
    element: ValueType,
    count: u64,
) -> Result<usize, Rule> {
    match (kind, element.width()) {
        (_, Some(width)) => {
            let start = cursor.position();
            let bytes = cursor.take(count * width as u64)?;
            match bytes.iter().find(|&&byte| element == ValueType::Bool && byte > 1) {
                Some(&found) => Err(Rule::Bool { found }),
                None => Ok(start),
            }
        }
        (ValueType::Array, None) => {
            let start = cursor.position();
            for index in 0..count {
                within_limit(cursor)?;
                let string = cursor.string("string length", MAX_ELEMENT_BYTES)?;
                std::str::from_utf8(string).map_err(|_| Rule::ElementUtf8 { index })?;
            }
            Ok(start)
        }
        (_, None) => {
            let string = cursor.string("string length", MAX_STRING_BYTES)?;
            std::str::from_utf8(string).map_err(|_| Rule::Utf8)?;
            Ok(cursor.position() - string.len())
        }
    }
}

fn alignment(bytes: &[u8], index: &Index) -> Result<u32, Fault> {
    let Some((value, offset)) = index.find(bytes, ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let rule = match value {
        Value::U32(found) if found.is_power_of_two() && ALIGNMENTS.contains(&found) => return Ok(found),
        Value::U32(found) => Rule::Alignment { found },
        other => Rule::AlignmentType { found: other.kind() },
    };
    Err(Fault { place: Place { subject: Subject::key(ALIGNMENT_KEY), offset: Some(offset) }, rule })
}

fn read_tensor(cursor: &mut Cursor<'_>, at: u64, part: u32) -> Result<TensorInfo, Fault> {
    let name = cursor
        .string("tensor name length", MAX_NAME_BYTES)
        .and_then(checked_name)
        .map_err(|rule| cursor.fault(Subject::TensorIndex(at), rule))?;
    let fault = |cursor: &Cursor<'_>, rule| cursor.fault(Subject::tensor(name), rule);
    let rank = cursor.u32().map_err(|rule| fault(cursor, rule))?;
    if !(1..=MAX_RANK).contains(&u64::from(rank)) {
        return Err(fault(cursor, Rule::Rank { found: u64::from(rank) }));
    }
    let mut dims = [1; MAX_RANK as usize];
    let dims = dims.get_mut(..rank as usize).unwrap_or_default();
    for dim in dims.iter_mut() {
        *dim = cursor.u64().map_err(|rule| fault(cursor, rule))?;
    }
    let dims = padded_dims(dims).map_err(|rule| fault(cursor, rule))?;
    let id = cursor.u32().map_err(|rule| fault(cursor, rule))?;
    let dtype = DType::from_gguf_id(id).ok_or_else(|| fault(cursor, Rule::TensorType { id }))?;
    let bytes = data_bytes(dims, dtype).map_err(|rule| fault(cursor, rule))?;
    let offset = cursor.u64().map_err(|rule| fault(cursor, rule))?;
    Ok(TensorInfo { name: name.into(), dims, rank: rank as u8, dtype, part, offset, bytes })
}

/// Turns offsets from the start of the data into offsets from the start of the file, and proves that no tensor leaves
/// the file or touches another.
fn place_data(
    bytes: &[u8],
    header_end: u64,
    alignment: u64,
    tensors: &mut [TensorInfo],
) -> Result<(), Fault> {
    let length = bytes.len() as u64;
    let fault = |tensor: &TensorInfo, rule| Fault { place: Place::of(Subject::tensor(tensor.name())), rule };
    let data_start = header_end.next_multiple_of(alignment);
    for tensor in tensors.iter_mut() {
        let (offset, bytes) = (tensor.offset, tensor.bytes);
        if !offset.is_multiple_of(alignment) {
            return Err(fault(tensor, Rule::Misaligned { offset, alignment }));
        }
        let start = data_start.checked_add(offset);
        match start.and_then(|start| Some((start, start.checked_add(bytes)?))) {
            Some((start, end)) if end <= length => tensor.offset = start,
            _ => return Err(fault(tensor, Rule::BeyondFile { offset, bytes, length })),
        }
    }
    let tensors = &*tensors;
    let mut by_offset: Vec<u32> = (0..tensors.len() as u32).collect();
    by_offset.sort_unstable_by_key(|&at| tensors.get(at as usize).map(|tensor| tensor.offset));
    for pair in by_offset.windows(2) {
        if let &[first, second] = pair
            && let (Some(first), Some(second)) = (tensors.get(first as usize), tensors.get(second as usize))
            && first.offset + first.bytes > second.offset
        {
            return Err(fault(second, Rule::Overlap { other: first.name.to_string() }));
        }
    }
    Ok(())
}
