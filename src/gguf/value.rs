//! Metadata values: a borrowed view into the file, decoded when looked at.
//!
//! Vocabularies hold hundreds of thousands of strings. Nothing is copied out of the mapping: an array is a slice of
//! the file plus its element type and count, and its strings are walked in place.

use std::fmt;

use super::error::Rule;

/// The value types of the format, with the ids it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "named after the Rust types they hold")]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::Str,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The id the file stores.
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of one value; `None` for strings and arrays, whose length is in the file.
    pub const fn width(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Str | Self::Array => None,
        }
    }

    /// The name errors and `inspect` print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::Str => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The full type of a value: `u32`, `array of string`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// One value.
    Scalar(ValueType),
    /// Many values of one type.
    Array(ValueType),
}

impl fmt::Display for ValueKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scalar(kind) => write!(f, "{kind}"),
            Self::Array(element) => write!(f, "array of {element}"),
        }
    }
}

/// One metadata value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "named after the Rust types they hold")]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Str(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl<'a> Value<'a> {
    /// Decodes a scalar that starts `bytes`; for a string, `bytes` are its characters. `None` when there are too few
    /// bytes, the string is not UTF-8, or the type is an array.
    pub(super) fn decode(kind: ValueType, bytes: &'a [u8]) -> Option<Self> {
        Some(match kind {
            ValueType::U8 => Self::U8(u8::from_le_bytes(lead(bytes)?)),
            ValueType::I8 => Self::I8(i8::from_le_bytes(lead(bytes)?)),
            ValueType::U16 => Self::U16(u16::from_le_bytes(lead(bytes)?)),
            ValueType::I16 => Self::I16(i16::from_le_bytes(lead(bytes)?)),
            ValueType::U32 => Self::U32(u32::from_le_bytes(lead(bytes)?)),
            ValueType::I32 => Self::I32(i32::from_le_bytes(lead(bytes)?)),
            ValueType::F32 => Self::F32(f32::from_le_bytes(lead(bytes)?)),
            ValueType::Bool => Self::Bool(u8::from_le_bytes(lead(bytes)?) != 0),
            ValueType::Str => Self::Str(std::str::from_utf8(bytes).ok()?),
            ValueType::Array => return None,
            ValueType::U64 => Self::U64(u64::from_le_bytes(lead(bytes)?)),
            ValueType::I64 => Self::I64(i64::from_le_bytes(lead(bytes)?)),
            ValueType::F64 => Self::F64(f64::from_le_bytes(lead(bytes)?)),
        })
    }

    /// The type, for errors and listings.
    pub fn kind(&self) -> ValueKind {
        ValueKind::Scalar(match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::Str(_) => ValueType::Str,
            Self::Array(array) => return ValueKind::Array(array.element),
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        })
    }

    /// The value of an integer of any width; `None` for every other type.
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(value) => value.into(),
            Self::I8(value) => value.into(),
            Self::U16(value) => value.into(),
            Self::I16(value) => value.into(),
            Self::U32(value) => value.into(),
            Self::I32(value) => value.into(),
            Self::U64(value) => value.into(),
            Self::I64(value) => value.into(),
            Self::F32(_) | Self::F64(_) | Self::Bool(_) | Self::Str(_) | Self::Array(_) => return None,
        })
    }

    /// An integer of any width as `T`.
    ///
    /// # Errors
    /// [`Rule::WrongType`] when it is no integer, [`Rule::DoesNotFit`] when `T`, called `target`, cannot hold it.
    pub(super) fn to_integer<T: TryFrom<i128>>(self, target: &'static str) -> Result<T, Rule> {
        let value = self.as_integer().ok_or_else(|| self.wrong_type("an integer"))?;
        T::try_from(value).map_err(|_| Rule::DoesNotFit { value: value.to_string(), target })
    }

    /// A finite float of either width as f32.
    ///
    /// # Errors
    /// [`Rule::WrongType`] when it is no float, [`Rule::NotFinite`] when it is not finite as f32.
    pub(super) fn to_f32(self) -> Result<f32, Rule> {
        let value = match self {
            Self::F32(value) => value,
            Self::F64(value) => value as f32,
            _ => return Err(self.wrong_type("a float")),
        };
        if value.is_finite() { Ok(value) } else { Err(Rule::NotFinite) }
    }

    /// The complaint that this is not `expected`.
    pub(super) fn wrong_type(&self, expected: &'static str) -> Rule {
        Rule::WrongType { expected, found: self.kind() }
    }
}

fn lead<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// An array value: a slice of the file.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    element: ValueType,
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    pub(super) fn over(element: ValueType, count: usize, bytes: &'a [u8]) -> Self {
        Self { element, count, bytes }
    }

    /// Type of the elements; never [`ValueType::Array`].
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The elements in order. The file was proven sound when it was opened; should somebody have changed it in place
    /// since, the walk ends at the first broken element.
    pub fn iter(&self) -> Elements<'a> {
        Elements { element: self.element, left: self.count, bytes: self.bytes }
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.element, self.count)
    }
}

impl<'a> IntoIterator for &Array<'a> {
    type Item = Value<'a>;
    type IntoIter = Elements<'a>;

    fn into_iter(self) -> Elements<'a> {
        self.iter()
    }
}

/// Walks an [`Array`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    element: ValueType,
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Option<Value<'a>> {
        let width = if let Some(width) = self.element.width() {
            width
        } else {
            let length = u64::from_le_bytes(lead(self.bytes)?);
            self.bytes = self.bytes.get(8..)?;
            usize::try_from(length).ok()?
        };
        let (value, rest) = self.bytes.split_at_checked(width)?;
        self.bytes = rest;
        Value::decode(self.element, value)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let value = self.step();
        if value.is_none() {
            self.left = 0;
        }
        value
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Elements<'_> {}
