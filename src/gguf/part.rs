//! One file of a model, with its metadata: the whole model as a rule, a part of it when split.

use std::path::PathBuf;

use super::cursor::Fault;
use super::error::{GgufError, Place, Rule, Subject};
use super::map::Bytes;
use super::parse::{self, Header};
use super::tensor::TensorInfo;
use super::value::{Array, Value};

#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) bytes: Bytes,
    pub(super) header: Header,
}

impl Part {
    /// Maps and parses the file at `path` and appends its tensors as those of part `index` (from 0).
    pub(super) fn open(path: PathBuf, index: u32, tensors: &mut Vec<TensorInfo>) -> Result<Self, GgufError> {
        let bytes = Bytes::map(&path)?;
        Self::parse(path, bytes, index, tensors)
    }

    /// Parses `bytes`; `path` is what errors call them.
    pub(super) fn parse(
        path: PathBuf,
        bytes: Bytes,
        index: u32,
        tensors: &mut Vec<TensorInfo>,
    ) -> Result<Self, GgufError> {
        match parse::parse(&bytes, index, tensors) {
            Ok(header) => Ok(Self { path, bytes, header }),
            Err(Fault { place, rule }) => Err(GgufError::Invalid { file: path, place, rule }),
        }
    }

    /// The complaint that `subject` of this file breaks `rule`.
    pub(super) fn invalid(&self, subject: Subject, rule: Rule) -> GgufError {
        GgufError::Invalid { file: self.path.clone(), place: Place::of(subject), rule }
    }

    /// The value of `key` as `take` understands it; `None` when the key is absent.
    pub(super) fn read<'a, T>(
        &'a self,
        key: &str,
        take: impl FnOnce(Value<'a>) -> Result<T, Rule>,
    ) -> Result<Option<T>, GgufError> {
        let Some((value, offset)) = self.header.index.find(&self.bytes, key) else {
            return Ok(None);
        };
        take(value).map(Some).map_err(|rule| {
            let place = Place { subject: Subject::key(key), offset: Some(offset) };
            GgufError::Invalid { file: self.path.clone(), place, rule }
        })
    }

    /// The integer at `key`, of any width, as `T`, which errors call `target`.
    pub(super) fn integer<T: TryFrom<i128>>(
        &self,
        key: &str,
        target: &'static str,
    ) -> Result<Option<T>, GgufError> {
        self.read(key, |value| value.to_integer(target))
    }

    /// The string at `key`.
    pub(super) fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.read(key, |value| match value {
            Value::Str(text) => Ok(text),
            other => Err(other.wrong_type("a string")),
        })
    }

    /// The array at `key`, when `fits` accepts it; `expected` describes such an array.
    pub(super) fn array(
        &self,
        key: &str,
        expected: &'static str,
        fits: impl FnOnce(&Array<'_>) -> bool,
    ) -> Result<Option<Array<'_>>, GgufError> {
        self.read(key, |value| match value {
            Value::Array(array) if fits(&array) => Ok(array),
            other => Err(other.wrong_type(expected)),
        })
    }
}
