//! GGUF model files: container, typed metadata, memory map, writer.
//!
//! Knows files and nothing else: which keys a model needs and which shapes its tensors have is for `model` to say.
//! Everything about the container itself (versions 2 and 3, little-endian) is proven by [`Gguf::open`] before it
//! returns, so that no later access can leave the file. Files are hostile until then: parsing never panics, and its
//! memory is bounded by a small multiple of the file's own length.

mod cursor;
mod error;
mod map;
mod parse;
mod part;
mod rows;
mod split;
mod tensor;
mod value;
mod write;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use error::{GgufError, Place, Rule, Subject};
pub use rows::{RowFault, validate_finite, validate_rows};
pub use split::split_file_name;
pub use tensor::TensorInfo;
pub use value::{Array, Elements, Value, ValueKind, ValueType};
pub use write::{EncodeValue, GgufWriter, TensorWriter};

use map::Bytes;
use part::Part;

/// An open model file, or several when the model is split.
#[derive(Debug)]
pub struct Gguf {
    /// Holds the metadata.
    first: Part,
    rest: Vec<Part>,
    tensors: Vec<TensorInfo>,
    /// Indices into `tensors`, sorted by name.
    by_name: Vec<u32>,
}

impl Gguf {
    /// Opens and checks the model at `path`, a regular file or a symbolic link to one. When its name says that it is
    /// part 1 of several (`-00001-of-00003.gguf`), the others are opened beside it.
    ///
    /// # Errors
    /// The system's own, or the first rule the file breaks.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let mut tensors = Vec::new();
        let first = Part::open(path.to_owned(), 0, &mut tensors)?;
        let rest = split::open_rest(path, &first, &mut tensors)?;
        Self::assemble(first, rest, tensors)
    }

    /// Reads a model that is in memory already, such as one embedded in the executable. Errors call it `name`.
    ///
    /// # Errors
    /// The first rule the bytes break.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, GgufError> {
        let mut tensors = Vec::new();
        let first = Part::parse(PathBuf::from(name), Bytes::Memory(bytes.into()), 0, &mut tensors)?;
        split::require_whole(&first)?;
        Self::assemble(first, Vec::new(), tensors)
    }

    fn assemble(first: Part, rest: Vec<Part>, tensors: Vec<TensorInfo>) -> Result<Self, GgufError> {
        let by_name = tensor::order_by_name(&tensors).map_err(|double| {
            let part = rest.get(double.part().wrapping_sub(1)).unwrap_or(&first);
            part.invalid(Subject::tensor(double.name()), Rule::DuplicateTensor)
        })?;
        Ok(Self { first, rest, tensors, by_name })
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// The file opened; of a split model, part 1.
    pub fn path(&self) -> &Path {
        &self.first.path
    }

    /// All files of the model, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts().map(|part| part.path.as_path())
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.first.header.version
    }

    /// Alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u32 {
        self.first.header.alignment
    }

    /// Length of all files together, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.parts().map(|part| part.bytes.len() as u64).sum()
    }

    /// Bytes of all tensors together, without padding.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Checks that no file was modified, lengthened or shortened since it was opened. A loader calls it when it has
    /// read the last byte: what it read before then may be torn.
    ///
    /// # Errors
    /// [`Rule::Changed`], or the system's own.
    pub fn check_unchanged(&self) -> Result<(), GgufError> {
        for part in self.parts() {
            let io_error = |source| GgufError::Io { file: part.path.clone(), source };
            if !part.bytes.unchanged().map_err(io_error)? {
                return Err(part.invalid(Subject::File, Rule::Changed));
            }
        }
        Ok(())
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let info = |at: &u32| self.tensors.get(*at as usize);
        let at = self.by_name.binary_search_by(|at| info(at).map(TensorInfo::name).cmp(&Some(name))).ok()?;
        info(self.by_name.get(at)?)
    }

    /// The data of a tensor of this model: whole rows, [`TensorInfo::bytes`] long. (Empty for a tensor of another
    /// model that does not lie within this one.)
    pub fn tensor_bytes(&self, tensor: &TensorInfo) -> &[u8] {
        self.place_of(tensor).and_then(|(part, range)| part.bytes.get(range)).unwrap_or_default()
    }

    /// Hints that the data of `tensor` will be read soon, so that the system starts reading it now.
    pub fn prefetch(&self, tensor: &TensorInfo) {
        if let Some((part, range)) = self.place_of(tensor) {
            part.bytes.prefetch(range);
        }
    }

    fn place_of(&self, tensor: &TensorInfo) -> Option<(&Part, Range<usize>)> {
        let part = self.parts().nth(tensor.part())?;
        let start = usize::try_from(tensor.offset).ok()?;
        let end = start.checked_add(usize::try_from(tensor.bytes).ok()?)?;
        Some((part, start..end))
    }

    /// All metadata, in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.first.header.index.iter(&self.first.bytes)
    }

    /// The value of `key`, whatever its type.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        self.first.header.index.find(&self.first.bytes, key).map(|(value, _)| value)
    }

    /// The complaint that the value of `key` breaks a rule of its reader's, or is missing. It names file and key.
    pub fn key_error(&self, key: &str, rule: Rule) -> GgufError {
        let offset = self.first.header.index.find(&self.first.bytes, key).map(|(_, offset)| offset);
        let place = Place { subject: Subject::key(key), offset };
        GgufError::Invalid { file: self.first.path.clone(), place, rule }
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// When it is missing, or not a string.
    pub fn architecture(&self) -> Result<&str, GgufError> {
        const KEY: &str = "general.architecture";
        self.get_str(KEY)?.ok_or_else(|| self.key_error(KEY, Rule::MissingKey))
    }

    /// `general.file_type`: the id of the mixture of storage formats its maker chose. Informative only.
    ///
    /// # Errors
    /// When it is not an integer that fits.
    pub fn file_type(&self) -> Result<Option<u32>, GgufError> {
        self.get_u32("general.file_type")
    }
}

/// Typed metadata. An absent key is `None`; a value of another type, or one that does not fit, is an error that names
/// file, key, and the types expected and found. Integers of every width are accepted, and floats of both.
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
impl Gguf {
    /// An integer as u32.
    pub fn get_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.first.integer(key, "u32")
    }

    /// An integer as u64.
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.first.integer(key, "u64")
    }

    /// An integer as i32.
    pub fn get_i32(&self, key: &str) -> Result<Option<i32>, GgufError> {
        self.first.integer(key, "i32")
    }

    /// A finite float.
    pub fn get_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.first.read(key, Value::to_f32)
    }

    /// A truth value.
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.first.read(key, |value| match value {
            Value::Bool(truth) => Ok(truth),
            other => Err(other.wrong_type("a bool")),
        })
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.first.string(key)
    }

    /// The strings of an array, in place.
    pub fn get_str_array<'a>(
        &'a self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = &'a str> + Clone + use<'a>>, GgufError> {
        let array =
            self.first.array(key, "an array of strings", |array| array.element() == ValueType::Str)?;
        Ok(array.map(|array| {
            array.iter().map(|value| match value {
                Value::Str(text) => text,
                _ => "",
            })
        }))
    }

    /// The floats of an array. They need not be finite.
    pub fn get_f32_array<'a>(
        &'a self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = f32> + Clone + use<'a>>, GgufError> {
        let float = |array: &Array<'_>| matches!(array.element(), ValueType::F32 | ValueType::F64);
        let array = self.first.array(key, "an array of floats", float)?;
        Ok(array.map(|array| {
            array.iter().map(|value| match value {
                Value::F32(value) => value,
                Value::F64(value) => value as f32,
                _ => f32::NAN,
            })
        }))
    }

    /// The integers of an array, all of which fit an i32.
    pub fn get_i32_array<'a>(
        &'a self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = i32> + Clone + use<'a>>, GgufError> {
        let integer = |array: &Array<'_>| {
            !matches!(array.element(), ValueType::F32 | ValueType::F64 | ValueType::Bool | ValueType::Str)
        };
        let array = self.first.array(key, "an array of integers", integer)?;
        if let Some(value) = array.and_then(|array| {
            array.iter().filter_map(|value| value.as_integer()).find(|&value| i32::try_from(value).is_err())
        }) {
            return Err(self.key_error(key, Rule::DoesNotFit { value: value.to_string(), target: "i32" }));
        }
        let to_i32 = |value: Value<'_>| value.as_integer().and_then(|value| i32::try_from(value).ok());
        Ok(array.map(|array| array.iter().map(move |value| to_i32(value).unwrap_or_default())))
    }

    /// The truth values of an array.
    pub fn get_bool_array<'a>(
        &'a self,
        key: &str,
    ) -> Result<Option<impl ExactSizeIterator<Item = bool> + Clone + use<'a>>, GgufError> {
        let array = self.first.array(key, "an array of bools", |array| array.element() == ValueType::Bool)?;
        Ok(array.map(|array| array.iter().map(|value| value == Value::Bool(true))))
    }
}
