//! Reads just enough of a GGUF file to build a tokenizer from it: the metadata, without tensors and without checks.

use std::collections::HashMap;
use std::path::Path;

use worker_orcd::text::{SpecialIds, VocabSource};

/// A metadata value; scalars of every width are one number.
enum Value {
    Number(f64),
    Bytes(Vec<u8>),
    Strings(Vec<Vec<u8>>),
    Numbers(Vec<f64>),
}

/// The metadata of one file.
pub(crate) struct VocabFile {
    values: HashMap<String, Value>,
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> Vec<u8> {
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head.to_vec()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> Vec<u8> {
        let len = self.u64() as usize;
        self.take(len)
    }

    fn number(&mut self, kind: u32) -> f64 {
        match kind {
            0 | 7 => f64::from(self.take(1)[0]),
            1 => f64::from(self.take(1)[0] as i8),
            2 => f64::from(u16::from_le_bytes(self.take(2).try_into().unwrap())),
            3 => f64::from(i16::from_le_bytes(self.take(2).try_into().unwrap())),
            4 => f64::from(self.u32()),
            5 => f64::from(self.u32() as i32),
            6 => f64::from(f32::from_bits(self.u32())),
            10 => self.u64() as f64,
            11 => self.u64() as i64 as f64,
            12 => f64::from_bits(self.u64()),
            other => panic!("value type {other}"),
        }
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            8 => Value::Bytes(self.string()),
            9 => {
                let (element, count) = (self.u32(), self.u64());
                if element == 8 {
                    Value::Strings((0..count).map(|_| self.string()).collect())
                } else {
                    Value::Numbers((0..count).map(|_| self.number(element)).collect())
                }
            }
            _ => Value::Number(self.number(kind)),
        }
    }
}

impl VocabFile {
    /// Reads the file at `path`.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut cursor = Cursor(&bytes);
        cursor.take(16);
        let count = cursor.u64();
        let mut values = HashMap::new();
        for _ in 0..count {
            let key = String::from_utf8(cursor.string()).unwrap();
            let kind = cursor.u32();
            values.insert(key, cursor.value(kind));
        }
        Self { values }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Bytes(bytes) => Some(std::str::from_utf8(bytes).unwrap()),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        match self.values.get(&format!("tokenizer.ggml.{key}"))? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn numbers(&self, key: &str) -> Option<&[f64]> {
        match self.values.get(key)? {
            Value::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    fn strings(&self, key: &str) -> Option<&[Vec<u8>]> {
        match self.values.get(key)? {
            Value::Strings(strings) => Some(strings),
            _ => None,
        }
    }

    /// The special ids of the file.
    pub(crate) fn ids(&self) -> SpecialIds {
        let id = |name: &str| self.number(&format!("{name}_token_id")).map(|id| id as u32);
        let flag = |name: &str| self.number(name).map(|flag| flag != 0.0);
        SpecialIds {
            bos: id("bos"),
            eos: id("eos"),
            eot: id("eot"),
            eom: id("eom"),
            unknown: id("unknown"),
            padding: id("padding"),
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
        }
    }

    /// The tokenizer metadata.
    pub(crate) fn source(&self) -> VocabSource<'_> {
        let tokens = self.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let merges = self.strings("tokenizer.ggml.merges");
        VocabSource {
            model: self.text("tokenizer.ggml.model").unwrap_or_default(),
            pre: self.text("tokenizer.ggml.pre"),
            tokens: tokens.iter().map(Vec::as_slice).collect(),
            token_types: self
                .numbers("tokenizer.ggml.token_type")
                .map(|types| types.iter().map(|&t| t as i32).collect()),
            scores: self
                .numbers("tokenizer.ggml.scores")
                .map(|scores| scores.iter().map(|&s| s as f32).collect()),
            merges: merges.map(|merges| merges.iter().map(|m| std::str::from_utf8(m).unwrap()).collect()),
            ids: self.ids(),
            add_space_prefix: self.number("add_space_prefix").map(|flag| flag != 0.0),
            name: self.text("general.name"),
            architecture: self.text("general.architecture"),
        }
    }
}
