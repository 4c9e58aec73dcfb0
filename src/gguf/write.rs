//! Writes GGUF version 3, data alignment 32: header first, then tensor data as it comes.
//!
//! Nothing but the header is held, so a file of any size can be made in a few megabytes of memory. What is written
//! obeys the rules the reader checks.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use worker_orcd_core::DType;

use super::cursor::Fault;
use super::error::{GgufError, Place, Rule, Subject};
use super::parse::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, read_header};
use super::split;
use super::tensor::{checked_name, data_bytes, order_by_name, padded_dims};
use super::value::{ValueKind, ValueType};

/// A value the writer can store. Sealed by use: the reader knows no others.
pub trait EncodeValue {
    /// Its type.
    fn kind(&self) -> ValueKind;
    /// Appends it as the file stores it, without its type.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! encode_numbers {
    ($($type:ty => $kind:ident),*) => {$(
        impl EncodeValue for $type {
            fn kind(&self) -> ValueKind {
                ValueKind::Scalar(ValueType::$kind)
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }

        impl EncodeValue for [$type] {
            fn kind(&self) -> ValueKind {
                ValueKind::Array(ValueType::$kind)
            }

            fn encode(&self, out: &mut Vec<u8>) {
                encode_array(ValueType::$kind, self, out);
            }
        }
    )*};
}

encode_numbers!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64);

impl EncodeValue for bool {
    fn kind(&self) -> ValueKind {
        ValueKind::Scalar(ValueType::Bool)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl EncodeValue for [bool] {
    fn kind(&self) -> ValueKind {
        ValueKind::Array(ValueType::Bool)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_array(ValueType::Bool, self, out);
    }
}

impl EncodeValue for str {
    fn kind(&self) -> ValueKind {
        ValueKind::Scalar(ValueType::Str)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u64).to_le_bytes());
        out.extend_from_slice(self.as_bytes());
    }
}

impl EncodeValue for [&str] {
    fn kind(&self) -> ValueKind {
        ValueKind::Array(ValueType::Str)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_array(ValueType::Str, self.iter().copied(), out);
    }
}

impl EncodeValue for [String] {
    fn kind(&self) -> ValueKind {
        ValueKind::Array(ValueType::Str)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_array(ValueType::Str, self.iter().map(String::as_str), out);
    }
}

fn encode_array<'a, V: EncodeValue + ?Sized + 'a>(
    element: ValueType,
    values: impl IntoIterator<Item = &'a V, IntoIter: ExactSizeIterator>,
    out: &mut Vec<u8>,
) {
    let values = values.into_iter();
    out.extend_from_slice(&element.id().to_le_bytes());
    out.extend_from_slice(&(values.len() as u64).to_le_bytes());
    for value in values {
        value.encode(out);
    }
}

/// A tensor promised by the header.
#[derive(Debug)]
struct Promise {
    name: String,
    bytes: u64,
}

/// Collects the header of a file. [`GgufWriter::begin`] writes it and hands over to a [`TensorWriter`].
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    keys: u64,
    metadata: Vec<u8>,
    tensors: Vec<Promise>,
    tensor_entries: Vec<u8>,
    data_length: u64,
}

const VERSION: u32 = 3;
const ALIGNMENT: u64 = DEFAULT_ALIGNMENT as u64;

impl GgufWriter {
    /// A file without metadata or tensors. `path` is what errors call it, and where [`GgufWriter::create`] puts it.
    pub fn to(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            keys: 0,
            metadata: Vec::new(),
            tensors: Vec::new(),
            tensor_entries: Vec::new(),
            data_length: 0,
        }
    }

    fn invalid(&self, subject: Subject, rule: Rule) -> GgufError {
        GgufError::Invalid { file: self.path.clone(), place: Place::of(subject), rule }
    }

    /// Adds a metadata entry. [`GgufWriter::begin`] checks it.
    ///
    /// # Errors
    /// The key `general.alignment`: it is always 32.
    pub fn key(&mut self, key: &str, value: &(impl EncodeValue + ?Sized)) -> Result<&mut Self, GgufError> {
        if key == ALIGNMENT_KEY {
            return Err(self.invalid(Subject::key(key), Rule::FixedAlignment));
        }
        key.encode(&mut self.metadata);
        let id = match value.kind() {
            ValueKind::Scalar(kind) => kind.id(),
            ValueKind::Array(_) => ValueType::Array.id(),
        };
        self.metadata.extend_from_slice(&id.to_le_bytes());
        value.encode(&mut self.metadata);
        self.keys += 1;
        Ok(self)
    }

    /// Adds the keys of part `index` (from 0) of a model split into `count` files with `tensors` tensors in all. Name
    /// the files with [`super::split_file_name`].
    ///
    /// # Errors
    /// As [`GgufWriter::key`].
    pub fn split(&mut self, index: u16, count: u16, tensors: i32) -> Result<&mut Self, GgufError> {
        self.key(split::NUMBER_KEY, &index)?.key(split::COUNT_KEY, &count)?.key(split::TENSORS_KEY, &tensors)
    }

    /// Promises a tensor; data is written in the order of the promises. `dims` has 1 to 4 axes, the contiguous one
    /// first.
    ///
    /// # Errors
    /// When name or shape break the format's rules.
    pub fn tensor(&mut self, name: &str, dims: &[u64], dtype: DType) -> Result<&mut Self, GgufError> {
        let bytes = checked_name(name.as_bytes())
            .and_then(|_| padded_dims(dims))
            .and_then(|dims| data_bytes(dims, dtype))
            .map_err(|rule| self.invalid(Subject::tensor(name), rule))?;
        let end = self.data_length.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        let end = end.ok_or_else(|| self.invalid(Subject::tensor(name), Rule::SizeOverflow))?;
        let out = &mut self.tensor_entries;
        name.encode(out);
        (dims.len() as u32).encode(out);
        for dim in dims {
            dim.encode(out);
        }
        dtype.gguf_id().encode(out);
        self.data_length.encode(out);
        self.data_length = end;
        self.tensors.push(Promise { name: name.to_owned(), bytes });
        Ok(self)
    }

    /// Bytes of tensor data promised so far, padding included.
    pub fn data_length(&self) -> u64 {
        self.data_length
    }

    /// Creates the file, replacing one of that name, and writes the header.
    ///
    /// # Errors
    /// As [`GgufWriter::begin`].
    pub fn create(self) -> Result<TensorWriter<BufWriter<File>>, GgufError> {
        let file =
            File::create(&self.path).map_err(|source| GgufError::Io { file: self.path.clone(), source })?;
        self.begin(BufWriter::with_capacity(1 << 20, file))
    }

    /// Writes the header to `out`.
    ///
    /// # Errors
    /// The first rule of the format that keys, values or tensors break, or the system's own.
    pub fn begin<W: Write>(self, out: W) -> Result<TensorWriter<W>, GgufError> {
        let mut header = b"GGUF".to_vec();
        VERSION.encode(&mut header);
        (self.tensors.len() as u64).encode(&mut header);
        self.keys.encode(&mut header);
        header.extend_from_slice(&self.metadata);
        header.extend_from_slice(&self.tensor_entries);
        // The reader's own eyes: a file it would refuse is not begun.
        let mut read_back = Vec::new();
        if let Err(Fault { place, rule }) = read_header(&header, 0, &mut read_back) {
            return Err(GgufError::Invalid { file: self.path, place, rule });
        }
        if let Err(double) = order_by_name(&read_back) {
            return Err(self.invalid(Subject::tensor(double.name()), Rule::DuplicateTensor));
        }
        let mut writer = TensorWriter { path: self.path, out, tensors: self.tensors, at: 0, written: 0 };
        writer.put(&header)?;
        if !writer.tensors.is_empty() {
            writer.pad(header.len() as u64)?;
        }
        Ok(writer)
    }
}

/// Takes the data of the promised tensors, in their order, in pieces of any size.
#[derive(Debug)]
pub struct TensorWriter<W> {
    path: PathBuf,
    out: W,
    tensors: Vec<Promise>,
    /// Index of the tensor being written.
    at: usize,
    /// Bytes of it written.
    written: u64,
}

impl<W: Write> TensorWriter<W> {
    fn io_error(&self, source: io::Error) -> GgufError {
        GgufError::Io { file: self.path.clone(), source }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), GgufError> {
        self.out.write_all(bytes).map_err(|source| self.io_error(source))
    }

    /// Fills up to the next multiple of the alignment after `length` bytes.
    fn pad(&mut self, length: u64) -> Result<(), GgufError> {
        let padding = [0; ALIGNMENT as usize];
        let missing = (length.next_multiple_of(ALIGNMENT) - length) as usize;
        self.put(padding.get(..missing).unwrap_or_default())
    }

    fn invalid(&self, name: &str, rule: Rule) -> GgufError {
        GgufError::Invalid { file: self.path.clone(), place: Place::of(Subject::tensor(name)), rule }
    }

    /// Name of the tensor whose data comes next, and how many bytes of it are still to come.
    pub fn next_tensor(&self) -> Option<(&str, u64)> {
        self.tensors.get(self.at).map(|tensor| (tensor.name.as_str(), tensor.bytes - self.written))
    }

    /// Appends data of the tensor `name`, which must be the one that comes next.
    ///
    /// # Errors
    /// Another tensor comes next, more bytes than promised, or the system's own.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), GgufError> {
        let Some(tensor) = self.tensors.get(self.at).filter(|tensor| tensor.name == name) else {
            let next = self.next_tensor().map_or("", |(next, _)| next);
            return Err(self.invalid(next, Rule::DataOrder { found: name.to_owned() }));
        };
        let expected = tensor.bytes;
        let got = self.written + bytes.len() as u64;
        if got > expected {
            return Err(self.invalid(name, Rule::DataLength { expected, got }));
        }
        self.put(bytes)?;
        self.written = got;
        if got == expected {
            self.pad(got)?;
            self.at += 1;
            self.written = 0;
        }
        Ok(())
    }

    /// Flushes and hands the output back.
    ///
    /// # Errors
    /// Data is missing, or the system's own.
    pub fn finish(mut self) -> Result<W, GgufError> {
        if let Some(tensor) = self.tensors.get(self.at) {
            let rule = Rule::DataLength { expected: tensor.bytes, got: self.written };
            return Err(self.invalid(&tensor.name, rule));
        }
        self.out.flush().map_err(|source| self.io_error(source))?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Gguf, Value};
    use super::*;

    fn writer() -> GgufWriter {
        GgufWriter::to("test.gguf")
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut header = writer();
        header.key("a.u8", &7_u8).unwrap().key("a.i64", &-9_i64).unwrap().key("a.f64", &0.5_f64).unwrap();
        header.key("a.yes", &true).unwrap().key("a.text", "snow ☃").unwrap();
        header.key("a.words", ["", "b", "cé"].as_slice()).unwrap();
        header.key("a.floats", [1.0_f32, f32::NEG_INFINITY].as_slice()).unwrap();
        header.key("a.ids", [1_u16, 65_535].as_slice()).unwrap();
        header.key("a.flags", [true, false].as_slice()).unwrap();
        header.tensor("one", &[3], DType::F32).unwrap().tensor("two", &[32, 2], DType::MXFP4).unwrap();
        assert_eq!(header.data_length(), 32 + 64);
        let mut data = header.begin(Vec::new()).unwrap();
        data.write("one", &[1; 5]).unwrap();
        assert_eq!(data.next_tensor(), Some(("one", 7)));
        data.write("one", &[2; 7]).unwrap();
        data.write("two", &[3; 34]).unwrap();
        let bytes = data.finish().unwrap();
        assert_eq!(bytes.len() % 32, 0);

        let file = Gguf::from_bytes("test.gguf", bytes).unwrap();
        assert_eq!(file.version(), 3);
        assert_eq!(file.get_u32("a.u8").unwrap(), Some(7));
        assert_eq!(file.get_i32("a.i64").unwrap(), Some(-9));
        assert_eq!(file.get_f32("a.f64").unwrap(), Some(0.5));
        assert_eq!(file.get_bool("a.yes").unwrap(), Some(true));
        assert_eq!(file.get_str("a.text").unwrap(), Some("snow ☃"));
        let words = file.get_str_array("a.words").unwrap().unwrap();
        assert_eq!(words.len(), 3);
        assert_eq!(words.collect::<Vec<_>>(), ["", "b", "cé"]);
        let floats: Vec<f32> = file.get_f32_array("a.floats").unwrap().unwrap().collect();
        assert_eq!(floats, [1.0, f32::NEG_INFINITY]);
        assert_eq!(file.get_i32_array("a.ids").unwrap().unwrap().collect::<Vec<_>>(), [1, 65_535]);
        assert_eq!(file.get_bool_array("a.flags").unwrap().unwrap().collect::<Vec<_>>(), [true, false]);
        let keys: Vec<&str> = file.metadata().map(|(key, _)| key).collect();
        assert_eq!(keys.first(), Some(&"a.u8"));
        assert_eq!(keys.len(), 9);
        assert_eq!(file.value("a.u8"), Some(Value::U8(7)));
        let names: Vec<&str> = file.tensors().iter().map(super::super::TensorInfo::name).collect();
        assert_eq!(names, ["one", "two"]);
        let two = file.tensor("two").unwrap();
        assert_eq!((two.dims, two.rank(), two.dtype, two.bytes), ([32, 2, 1, 1], 2, DType::MXFP4, 34));
        assert_eq!((two.elements(), two.rows(), two.row_bytes()), (64, 2, 17));
        assert_eq!(file.tensor_bytes(two), [3; 34]);
        assert_eq!(file.data_bytes(), 46);
    }

    #[test]
    fn a_file_without_anything_is_24_bytes() {
        let bytes = writer().begin(Vec::new()).unwrap().finish().unwrap();
        assert_eq!(bytes.len(), 24);
        assert_eq!(Gguf::from_bytes("empty", bytes).unwrap().metadata().count(), 0);
    }

    #[test]
    fn broken_promises_are_refused() {
        let mut header = writer();
        header.tensor("w", &[2], DType::F32).unwrap();
        let mut data = header.begin(Vec::new()).unwrap();
        let text = |error: GgufError| error.to_string();
        assert!(text(data.write("v", &[0; 8]).unwrap_err()).contains("not that of tensor \"v\""));
        assert!(text(data.write("w", &[0; 9]).unwrap_err()).contains("9 of 8 bytes"));
        data.write("w", &[0; 4]).unwrap();
        assert!(text(data.finish().unwrap_err()).contains("4 of 8 bytes"));
    }

    #[test]
    fn bad_headers_are_refused() {
        let refusal = |header: GgufWriter| header.begin(Vec::new()).unwrap_err().to_string();
        for key in ["", "with space", "é"] {
            let mut header = writer();
            header.key(key, &1_u32).unwrap();
            assert!(refusal(header).contains("metadata entry 0"), "{key:?}");
        }
        let mut header = writer();
        header.key("long", ["x".repeat(65_537)].as_slice()).unwrap();
        assert!(refusal(header).contains("key \"long\""));
        let mut header = writer();
        assert!(header.key("general.alignment", &64_u32).is_err());
        assert!(header.tensor("", &[1], DType::F32).is_err());
        assert!(header.tensor("w", &[33], DType::Q4_0).is_err());
        header.key("k", &1_u32).unwrap().key("k", &2_u32).unwrap();
        assert!(refusal(header).contains("duplicate key"));
        let mut header = writer();
        header.tensor("w", &[1], DType::F32).unwrap().tensor("w", &[1], DType::F32).unwrap();
        assert!(refusal(header).contains("duplicate tensor"));
    }
}
