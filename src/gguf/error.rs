//! What can be wrong with a GGUF file, and where.
//!
//! A file from the internet is hostile until proven otherwise, and its owner needs to know which byte to blame: every
//! error names the file, the place inside it and the rule it breaks.

use std::fmt;
use std::io;
use std::path::PathBuf;

use worker_orcd_core::DType;

use super::value::ValueKind;

/// Why a GGUF file was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system said no.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The file breaks a rule of the format, or a value is not what the reader asked for.
    #[error("{}: {place}: {rule}", file.display())]
    Invalid {
        /// The file; of a split model, the part at fault.
        file: PathBuf,
        /// Where in the file.
        place: Place,
        /// The rule broken.
        rule: Rule,
    },
}

/// A place in a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What the bytes belong to.
    pub subject: Subject,
    /// Byte offset from the start of the file, where one can be named.
    pub offset: Option<u64>,
}

impl Place {
    /// A place without a byte offset.
    pub(super) fn of(subject: Subject) -> Self {
        Self { subject, offset: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.subject)?;
        match self.offset {
            Some(offset) => write!(f, " at byte {offset}"),
            None => Ok(()),
        }
    }
}

/// What the bytes at a place belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The file itself.
    File,
    /// The fixed fields at its start.
    Header,
    /// The n-th metadata entry (from 0), whose key could not be read.
    KeyIndex(u64),
    /// The metadata entry of this key.
    Key(String),
    /// The n-th tensor description (from 0), whose name could not be read.
    TensorIndex(u64),
    /// The tensor of this name.
    Tensor(String),
}

/// How much of a name from the file an error repeats.
const MAX_QUOTED_CHARS: usize = 96;

fn clipped(name: &str) -> String {
    name.chars().take(MAX_QUOTED_CHARS).collect()
}

impl Subject {
    /// The entry of `key`; a long key is cut.
    pub(super) fn key(key: &str) -> Self {
        Self::Key(clipped(key))
    }

    /// The tensor called `name`; a long name is cut.
    pub(super) fn tensor(name: &str) -> Self {
        Self::Tensor(clipped(name))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Header => f.write_str("header"),
            Self::KeyIndex(index) => write!(f, "metadata entry {index}"),
            Self::Key(key) => write!(f, "key {key:?}"),
            Self::TensorIndex(index) => write!(f, "tensor entry {index}"),
            Self::Tensor(name) => write!(f, "tensor {name:?}"),
        }
    }
}

/// The rules of the container. The text of each is what users see after the place.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant is its documentation")]
pub enum Rule {
    #[error("must be a regular file, found {found}")]
    NotRegular { found: &'static str },
    #[error("{length} bytes are too few for a GGUF header of 24")]
    TooShort { length: u64 },
    #[error("magic must be \"GGUF\", found {found:02x?}")]
    Magic { found: [u8; 4] },
    #[error("big-endian files are not supported; convert it to little-endian")]
    BigEndian,
    #[error("version must be 2 or 3, found {found}")]
    Version { found: u32 },
    #[error("file ends here: {needed} bytes needed, {remaining} left")]
    EndOfFile { needed: u64, remaining: u64 },
    #[error("{field} {count} needs more bytes than the {remaining} left")]
    CountBeyondFile { field: &'static str, count: u64, remaining: u64 },
    #[error("{field} {count} is above the limit of {limit}")]
    AboveLimit { field: &'static str, count: u64, limit: u64 },
    #[error("{field} must not be empty")]
    Empty { field: &'static str },
    #[error("key may hold visible ASCII characters only, found byte {byte:#04x}")]
    KeyByte { byte: u8 },
    #[error("duplicate key")]
    DuplicateKey,
    #[error("value type {id} is unknown")]
    ValueType { id: u32 },
    #[error("array element type {id} is unknown")]
    ElementType { id: u32 },
    #[error("nested arrays are not supported")]
    NestedArray,
    #[error("bool must be 0 or 1, found {found}")]
    Bool { found: u8 },
    #[error("string is not valid UTF-8")]
    Utf8,
    #[error("string {index} of the array is not valid UTF-8")]
    ElementUtf8 { index: u64 },
    #[error("alignment must be of type u32, found {found}")]
    AlignmentType { found: ValueKind },
    #[error("alignment must be a power of two from 8 to 65536, found {found}")]
    Alignment { found: u32 },
    #[error("tensor name may not hold control characters")]
    NameCharacter,
    #[error("duplicate tensor name")]
    DuplicateTensor,
    #[error("number of dimensions must be 1 to 4, found {found}")]
    Rank { found: u64 },
    #[error("dimension {axis} must be at least 1")]
    ZeroDimension { axis: usize },
    #[error("dimension {axis} is {found}, above 2^63 - 1")]
    HugeDimension { axis: usize, found: u64 },
    #[error("number of elements overflows")]
    ElementOverflow,
    #[error("tensor type {id}{} is not supported", known_type(*id))]
    TensorType { id: u32 },
    #[error("rows of {row} elements are not whole quant blocks of {} ({dtype})", dtype.block_elements())]
    PartialBlock { row: u64, dtype: DType },
    #[error("size in bytes overflows")]
    SizeOverflow,
    #[error("data offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { offset: u64, alignment: u64 },
    #[error("data of {bytes} bytes at offset {offset} reaches beyond the end of the file ({length} bytes)")]
    BeyondFile { offset: u64, bytes: u64, length: u64 },
    #[error("data overlaps that of tensor {other:?}")]
    Overlap { other: String },
    #[error("is missing")]
    MissingKey,
    #[error("must be {expected}, found {found}")]
    WrongType { expected: &'static str, found: ValueKind },
    #[error("{value} does not fit {target}")]
    DoesNotFit { value: String, target: &'static str },
    #[error("must be finite")]
    NotFinite,
    #[error("is part {number} of {count}; open part 1, {first:?}")]
    NotFirstPart { number: u32, count: u32, first: String },
    #[error("part {number} of the {count} named {first:?} is missing")]
    MissingPart { number: u32, count: u32, first: String },
    #[error("must be {expected} in this part, found {found}")]
    SplitValue { expected: u64, found: u64 },
    #[error("the model is split into {count} files, but this file is not named like \"{}\"", super::split::split_file_name("name", 1, *count))]
    SplitName { count: u32 },
    #[error("differs from that of part 1: this is part of another model")]
    OtherModel,
    #[error("the file has changed since it was opened")]
    Changed,
    #[error("this writer aligns to 32 bytes always")]
    FixedAlignment,
    #[error("{got} of {expected} bytes of data were written")]
    DataLength { expected: u64, got: u64 },
    #[error("its data was to come next, not that of tensor {found:?}")]
    DataOrder { found: String },
}

/// The name of a tensor type this program cannot read, in brackets after a space, if the id was ever given out.
fn known_type(id: u32) -> &'static str {
    match id {
        4 | 5 | 31..=33 | 36..=38 => " (removed from the format)",
        9 => " (Q8_1)",
        15 => " (Q8_K)",
        16 => " (IQ2_XXS)",
        17 => " (IQ2_XS)",
        18 => " (IQ3_XXS)",
        19 => " (IQ1_S)",
        20 => " (IQ4_NL)",
        21 => " (IQ3_S)",
        22 => " (IQ2_S)",
        23 => " (IQ4_XS)",
        24 => " (I8)",
        25 => " (I16)",
        26 => " (I32)",
        27 => " (I64)",
        28 => " (F64)",
        29 => " (IQ1_M)",
        34 => " (TQ1_0)",
        35 => " (TQ2_0)",
        40 => " (NVFP4)",
        41 => " (Q1_0)",
        42 => " (Q2_0)",
        _ => "",
    }
}
