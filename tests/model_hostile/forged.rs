//! A valid model file taken apart, to be changed and put together again.

use std::path::Path;
use std::sync::OnceLock;

use worker_orcd::commands::forge::forge;
use worker_orcd::gguf::{EncodeValue, Gguf, GgufWriter, Value, ValueKind, ValueType};
use worker_orcd_core::DType;

/// The presets every architecture is tested with.
pub(crate) const PRESETS: [&str; 5] = ["tiny-qwen2", "tiny-phi3", "tiny-llama", "tiny-gpt-oss", "tiny-gpt2"];

/// A metadata value as the file stores it.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    kind: ValueKind,
    bytes: Vec<u8>,
}

impl Field {
    pub(crate) fn new(value: &(impl EncodeValue + ?Sized)) -> Self {
        let mut bytes = vec![];
        value.encode(&mut bytes);
        Self { kind: value.kind(), bytes }
    }

    fn of(value: Value<'_>) -> Self {
        match value {
            Value::U32(number) => Self::new(&number),
            Value::I32(number) => Self::new(&number),
            Value::F32(number) => Self::new(&number),
            Value::Bool(flag) => Self::new(&flag),
            Value::Str(text) => Self::new(text),
            Value::Array(array) => match array.element() {
                ValueType::Str => Self::new(texts(array.iter()).as_slice()),
                ValueType::F32 => Self::new(floats(array.iter()).as_slice()),
                _ => Self::new(integers(array.iter()).as_slice()),
            },
            other => panic!("forged files hold no {}", other.kind()),
        }
    }
}

impl EncodeValue for Field {
    fn kind(&self) -> ValueKind {
        self.kind
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }
}

fn texts<'a>(values: impl Iterator<Item = Value<'a>>) -> Vec<String> {
    values
        .filter_map(|value| if let Value::Str(text) = value { Some(text.to_owned()) } else { None })
        .collect()
}

fn floats<'a>(values: impl Iterator<Item = Value<'a>>) -> Vec<f32> {
    values.filter_map(|value| if let Value::F32(number) = value { Some(number) } else { None }).collect()
}

fn integers<'a>(values: impl Iterator<Item = Value<'a>>) -> Vec<i32> {
    values.filter_map(|value| value.as_integer()).map(|number| number as i32).collect()
}

/// One tensor with its data.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) dtype: DType,
    pub(crate) data: Vec<u8>,
}

/// A model file in parts.
#[derive(Clone, Debug)]
pub(crate) struct Forged {
    pub(crate) keys: Vec<(String, Field)>,
    pub(crate) tensors: Vec<Tensor>,
}

impl Forged {
    /// The parts of a preset's file.
    pub(crate) fn preset(name: &str) -> Self {
        static ALL: OnceLock<Vec<Forged>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            PRESETS.map(|name| Self::read(name, &folder.path().join("model.gguf"))).to_vec()
        });
        all[PRESETS.iter().position(|preset| *preset == name).unwrap()].clone()
    }

    fn read(preset: &str, path: &Path) -> Self {
        forge(preset, 1, path).unwrap();
        let gguf = Gguf::open(path).unwrap();
        let keys = gguf.metadata().map(|(key, value)| (key.to_owned(), Field::of(value))).collect();
        let tensor = |info: &worker_orcd::gguf::TensorInfo| Tensor {
            name: info.name().to_owned(),
            dims: info.dims[..info.rank()].to_vec(),
            dtype: info.dtype,
            data: gguf.tensor_bytes(info).to_vec(),
        };
        Self { keys, tensors: gguf.tensors().iter().map(tensor).collect() }
    }

    /// Sets a key, or adds it. A key that begins with a dot gets the architecture's prefix.
    pub(crate) fn set(&mut self, key: &str, value: &(impl EncodeValue + ?Sized)) {
        let (key, field) = (self.full(key), Field::new(value));
        match self.keys.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = field,
            None => self.keys.push((key, field)),
        }
    }

    /// Takes a key away.
    pub(crate) fn unset(&mut self, key: &str) {
        let key = self.full(key);
        let before = self.keys.len();
        self.keys.retain(|(name, _)| *name != key);
        assert!(self.keys.len() < before, "no key {key}");
    }

    fn full(&self, key: &str) -> String {
        let prefix =
            || self.keys.iter().map(|(name, _)| name).find_map(|name| name.strip_suffix(".block_count"));
        if key.starts_with('.') { format!("{}{key}", prefix().unwrap()) } else { key.to_owned() }
    }

    /// The tensor of this name.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// Gives a tensor another shape and type, and zeros for data.
    pub(crate) fn reshape(&mut self, name: &str, dims: &[u64], dtype: DType) {
        let tensor = self.tensor(name);
        tensor.dims = dims.to_vec();
        tensor.dtype = dtype;
        tensor.data = zeros(dims, dtype);
    }

    /// Adds a tensor of zeros.
    pub(crate) fn add(&mut self, name: &str, dims: &[u64], dtype: DType) {
        let tensor = Tensor { name: name.into(), dims: dims.to_vec(), dtype, data: zeros(dims, dtype) };
        self.tensors.push(tensor);
    }

    /// Takes tensors away.
    pub(crate) fn remove(&mut self, matches: impl Fn(&str) -> bool) {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| !matches(&tensor.name));
        assert!(self.tensors.len() < before, "nothing removed");
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::to("bad.gguf");
        for (key, field) in &self.keys {
            writer.key(key, field).unwrap();
        }
        for tensor in &self.tensors {
            writer.tensor(&tensor.name, &tensor.dims, tensor.dtype).unwrap();
        }
        let mut out = writer.begin(vec![]).unwrap();
        for tensor in &self.tensors {
            out.write(&tensor.name, &tensor.data).unwrap();
        }
        out.finish().unwrap()
    }
}

fn zeros(dims: &[u64], dtype: DType) -> Vec<u8> {
    let rows: u64 = dims[1..].iter().product();
    vec![0; dtype.row_bytes(dims[0] as usize).unwrap() * rows as usize]
}
