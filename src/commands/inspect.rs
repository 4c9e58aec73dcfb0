//! `inspect`: what is in a GGUF file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value as Json, json};

use super::CommandError;
use crate::gguf::{Gguf, Value, ValueKind};
use crate::model::quant_kind;

/// Flags of `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// GGUF file, or the first file of a split model
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// List every tensor
    #[arg(long, env = "WORKER_ORCD_TENSORS")]
    tensors: bool,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Longest text shown of a value.
const SHOWN_CHARS: usize = 120;

/// Runs the command.
///
/// # Errors
/// The file is no GGUF.
pub fn run(args: &InspectArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let gguf = Gguf::open(&args.file)?;
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let entry = types.entry(tensor.dtype.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.bytes);
    }
    if args.json {
        let metadata: Map<String, Json> =
            gguf.metadata().map(|(key, value)| (key.to_owned(), shown(&value))).collect();
        let tensors: Vec<Json> = gguf
            .tensors()
            .iter()
            .map(|t| json!({ "name": t.name(), "dims": t.dims[..t.rank()], "type": t.dtype.name(), "bytes": t.bytes }))
            .collect();
        let line = json!({
            "files": gguf.paths().collect::<Vec<_>>(), "version": gguf.version(), "metadata": metadata,
            "quant_kind": quant_kind(&gguf)?, "tensor_count": tensors.len(), "data_bytes": gguf.data_bytes(),
            "types": types.iter().map(|(name, (count, bytes))| (*name, json!({ "tensors": count, "bytes": bytes })))
                .collect::<BTreeMap<_, _>>(),
            "tensors": tensors,
        });
        writeln!(out, "{line}")?;
        return Ok(());
    }
    writeln!(out, "{}: GGUF version {}", gguf.path().display(), gguf.version())?;
    for (key, value) in gguf.metadata() {
        writeln!(out, "  {key} = {}", shown(&value))?;
    }
    writeln!(out, "{} tensors, {} bytes, {}", gguf.tensors().len(), gguf.data_bytes(), quant_kind(&gguf)?)?;
    for (name, (count, bytes)) in types {
        writeln!(out, "  {name:<6} {count:>5} tensors {bytes:>16} bytes")?;
    }
    if args.tensors {
        for tensor in gguf.tensors() {
            writeln!(
                out,
                "  {:<40} {:<6} {:?}",
                tensor.name(),
                tensor.dtype.name(),
                &tensor.dims[..tensor.rank()]
            )?;
        }
    }
    Ok(())
}

/// A value as JSON; long strings and arrays are cut, with what was left out said.
fn shown(value: &Value<'_>) -> Json {
    if let Some(integer) = value.as_integer() {
        return match (i64::try_from(integer), u64::try_from(integer)) {
            (Ok(integer), _) => json!(integer),
            (_, Ok(integer)) => json!(integer),
            _ => json!(integer.to_string()),
        };
    }
    match value {
        Value::Str(text) if text.chars().count() > SHOWN_CHARS => {
            let head: String = text.chars().take(SHOWN_CHARS).collect();
            json!(format!("{head}… ({} characters)", text.chars().count()))
        }
        Value::Str(text) => json!(text),
        Value::F32(number) => json!(number),
        Value::F64(number) => json!(number),
        Value::Bool(truth) => json!(truth),
        Value::Array(array) if array.len() > 8 => {
            json!(format!("{} × {:?}", array.len(), array.element()))
        }
        Value::Array(array) => Json::Array(array.iter().map(|value| shown(&value)).collect()),
        other => match other.kind() {
            ValueKind::Scalar(kind) | ValueKind::Array(kind) => json!(format!("{kind:?}")),
        },
    }
}
