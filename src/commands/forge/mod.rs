//! `forge`: writes a GGUF file with a published model's exact shapes, types and metadata, and seeded random weights.
//!
//! Full-size measurements need full-size files, and weights cannot be had everywhere. Scales are chosen so that
//! activations stay of order one through any number of layers. The same seed gives the same bytes on every machine.

mod blueprint;
mod presets;
mod vocabulary;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use worker_orcd_core::{DType, quant, rng::Rng};

use self::blueprint::{Blueprint, Fill, Meta, TensorPlan};
use self::vocabulary::Vocabulary;
use super::CommandError;
use crate::gguf::{GgufError, GgufWriter, TensorWriter};

/// Flags of `forge`.
#[derive(Args, Debug)]
pub struct ForgeArgs {
    /// Which model: gpt-oss-20b, gpt-oss-120b, qwen2.5-0.5b, phi-3-mini, or tiny-ARCHITECTURE
    #[arg(long, env = "WORKER_ORCD_PRESET", value_parser = presets::NAMES)]
    preset: String,
    /// Seed of the weights
    #[arg(long, env = "WORKER_ORCD_SEED", default_value_t = 1)]
    seed: u64,
    /// File to write
    #[arg(long, env = "WORKER_ORCD_OUT", value_name = "FILE")]
    out: PathBuf,
    /// Leave the weights out: a file of the right length, but a hole, for commands that look at shapes alone
    #[arg(long, env = "WORKER_ORCD_OUTLINE")]
    outline: bool,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The file cannot be written.
pub fn run(args: &ForgeArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let start = Instant::now();
    let bytes = if args.outline {
        outline(&args.preset, &args.out)?
    } else {
        forge(&args.preset, args.seed, &args.out)?
    };
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes as f64 / seconds / 1e6;
    if args.json {
        let line = serde_json::json!({
            "preset": args.preset, "seed": args.seed, "file": args.out, "data_bytes": bytes,
            "seconds": seconds, "megabytes_per_second": rate,
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}: {bytes} bytes of weights in {seconds:.2} s ({rate:.0} MB/s)", args.out.display())?;
    }
    Ok(())
}

/// Writes a preset's file and returns its bytes of tensor data.
///
/// # Errors
/// An unknown preset, or the file cannot be written.
pub fn forge(preset: &str, seed: u64, path: &Path) -> Result<u64, CommandError> {
    let (blueprint, writer) = header(preset, path)?;
    let mut tensors = writer.create()?;
    let bytes = write_tensors(&mut tensors, &blueprint, seed)?;
    tensors.finish()?;
    Ok(bytes)
}

/// Writes a preset's metadata and makes the file as long as it would be: tensor data reads as zeros and takes no room.
/// Returns the bytes of the hole.
///
/// # Errors
/// As for [`forge`].
pub fn outline(preset: &str, path: &Path) -> Result<u64, CommandError> {
    let (_, writer) = header(preset, path)?;
    let bytes = writer.data_length();
    let mut header = vec![];
    writer.begin(&mut header)?;
    let mut file = File::create(path)?;
    file.write_all(&header)?;
    file.set_len(header.len() as u64 + bytes)?;
    Ok(bytes)
}

/// What a preset's file begins with.
fn header(preset: &str, path: &Path) -> Result<(Blueprint, GgufWriter), CommandError> {
    let unknown =
        || CommandError::Usage(format!("no preset {preset}; there are {}", presets::NAMES.join(", ")));
    let blueprint = presets::blueprint(preset).ok_or_else(unknown)?;
    let mut writer = GgufWriter::to(path);
    writer.key("general.architecture", blueprint.architecture)?;
    for (key, value) in &blueprint.keys {
        match value {
            Meta::U32(value) => writer.key(key, value)?,
            Meta::F32(value) => writer.key(key, value)?,
            Meta::Text(value) => writer.key(key, value.as_str())?,
        };
    }
    write_vocabulary(&mut writer, &blueprint.vocabulary)?;
    for tensor in &blueprint.tensors {
        writer.tensor(&tensor.name, &tensor.dims, tensor.dtype)?;
    }
    Ok((blueprint, writer))
}

fn write_vocabulary(writer: &mut GgufWriter, vocabulary: &Vocabulary) -> Result<(), GgufError> {
    writer.key("tokenizer.ggml.model", vocabulary.model)?;
    writer.key("tokenizer.ggml.pre", vocabulary.pre)?;
    writer.key("tokenizer.ggml.tokens", vocabulary.tokens.as_slice())?;
    writer.key("tokenizer.ggml.token_type", vocabulary.types.as_slice())?;
    if !vocabulary.merges.is_empty() {
        writer.key("tokenizer.ggml.merges", vocabulary.merges.as_slice())?;
    }
    if !vocabulary.scores.is_empty() {
        writer.key("tokenizer.ggml.scores", vocabulary.scores.as_slice())?;
    }
    if let Some(bos) = vocabulary.bos {
        writer.key("tokenizer.ggml.bos_token_id", &bos)?;
    }
    writer.key("tokenizer.ggml.eos_token_id", &vocabulary.eos)?;
    writer.key("tokenizer.ggml.padding_token_id", &vocabulary.padding)?;
    writer.key("tokenizer.ggml.add_bos_token", &vocabulary.add_bos)?;
    if !vocabulary.chat_template.is_empty() {
        writer.key("tokenizer.chat_template", vocabulary.chat_template)?;
    }
    Ok(())
}

/// Rows are drawn in pieces of about this size; each piece has its own generator, so that any number of threads
/// writes the same file.
const PIECE_BYTES: usize = 4 << 20;

struct Piece<'b> {
    tensor: &'b TensorPlan,
    rows: usize,
    seed: u64,
}

fn write_tensors<W: Write>(
    out: &mut TensorWriter<W>,
    blueprint: &Blueprint,
    seed: u64,
) -> Result<u64, CommandError> {
    let pieces = pieces(blueprint, seed);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    let mut total = 0;
    let mut ready: Vec<Vec<u8>> = vec![];
    let mut previous: &[Piece<'_>] = &[];
    // One batch is written while the next is drawn.
    for batch in pieces.chunks(threads).chain(std::iter::once(&[][..])) {
        let drawn = std::thread::scope(|scope| {
            let handles: Vec<_> = batch.iter().map(|piece| scope.spawn(|| draw(piece))).collect();
            for (piece, bytes) in previous.iter().zip(&ready) {
                out.write(&piece.tensor.name, bytes)?;
                total += bytes.len() as u64;
            }
            let joined = handles.into_iter().map(|handle| handle.join().unwrap_or_default());
            Ok::<_, CommandError>(joined.collect())
        })?;
        (ready, previous) = (drawn, batch);
    }
    Ok(total)
}

fn pieces(blueprint: &Blueprint, seed: u64) -> Vec<Piece<'_>> {
    let mut pieces = vec![];
    for tensor in &blueprint.tensors {
        let cols = tensor.dims.first().map_or(0, |cols| *cols as usize);
        let total = tensor.dims.iter().skip(1).product::<u64>() as usize;
        let row_bytes = tensor.dtype.row_bytes(cols).unwrap_or(1).max(1);
        let per_piece = (PIECE_BYTES / row_bytes).max(1);
        for first in (0..total).step_by(per_piece) {
            let seed = mix(seed, pieces.len() as u64);
            pieces.push(Piece { tensor, rows: per_piece.min(total - first), seed });
        }
    }
    pieces
}

fn mix(seed: u64, index: u64) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index).wrapping_mul(0xd134_2543_de82_ef95)
}

fn draw(piece: &Piece<'_>) -> Vec<u8> {
    let mut rng = Rng::seeded(piece.seed);
    let cols = piece.tensor.dims.first().map_or(0, |cols| *cols as usize);
    let mut bytes = Vec::with_capacity(piece.rows * piece.tensor.dtype.row_bytes(cols).unwrap_or(0));
    for _ in 0..piece.rows {
        match piece.tensor.fill {
            Fill::Centred(std) => quant::random_row(piece.tensor.dtype, cols, std, &mut rng, &mut bytes),
            Fill::AroundOne => {
                bytes.extend((0..cols).flat_map(|_| (1.0 + 0.1 * rng.normal()).to_le_bytes()));
            }
            Fill::RopeFreqs => bytes.extend(rope_freqs(cols).into_iter().flat_map(f32::to_le_bytes)),
        }
    }
    debug_assert!(piece.tensor.fill != Fill::AroundOne || piece.tensor.dtype == DType::F32);
    bytes
}

/// Llama 3's divisors for base 500,000, factor 8, original context 8,192.
fn rope_freqs(pairs: usize) -> Vec<f32> {
    let divisor = |pair: usize| {
        let frequency = 500_000_f64.powf(-(pair as f64) / pairs as f64);
        let (context, wavelength) = (8192.0, 2.0 * std::f64::consts::PI / frequency);
        if wavelength < context / 4.0 {
            1.0
        } else if wavelength > context {
            8.0
        } else {
            let smooth = (context / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / 8.0 + smooth)
        }
    };
    (0..pairs).map(|pair| divisor(pair) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::model::{Model, ModelOptions};

    #[test]
    fn presets_have_the_published_files_data_bytes_and_types() {
        let bytes = |preset: &str| -> u64 {
            let plan = |t: &TensorPlan| {
                let row = t.dtype.row_bytes(t.dims[0] as usize).unwrap() as u64;
                row * t.dims[1..].iter().product::<u64>()
            };
            presets::blueprint(preset).unwrap().tensors.iter().map(plan).sum()
        };
        assert_eq!(bytes("gpt-oss-20b"), 12_096_558_336);
        assert_eq!(bytes("gpt-oss-120b"), 63_374_323_968);
        assert_eq!(bytes("qwen2.5-0.5b"), 391_859_712);
        assert_eq!(bytes("phi-3-mini"), 2_392_493_568);
        let count = |preset: &str, dtype: DType| {
            presets::blueprint(preset).unwrap().tensors.iter().filter(|t| t.dtype == dtype).count()
        };
        assert_eq!(
            [DType::Q5_0, DType::Q8_0, DType::Q6_K, DType::Q4_K].map(|t| count("qwen2.5-0.5b", t)),
            [132, 13, 12, 12]
        );
        assert_eq!(
            [DType::F32, DType::Q4_K, DType::Q5_K, DType::Q6_K].map(|t| count("phi-3-mini", t)),
            [65, 81, 32, 17]
        );
        assert_eq!([DType::F32, DType::Q8_0, DType::MXFP4].map(|t| count("gpt-oss-20b", t)), [289, 98, 72]);
    }

    #[test]
    fn tiny_presets_are_models_and_the_seed_decides_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for preset in presets::NAMES.iter().filter(|name| name.starts_with("tiny-")) {
            let path = |name: &str| folder.path().join(name);
            for (name, seed) in [("a", 7), ("b", 7), ("c", 8)] {
                forge(preset, seed, &path(name)).unwrap();
            }
            let [a, b, c] = ["a", "b", "c"].map(|name| std::fs::read(path(name)).unwrap());
            assert!(a == b && a != c, "{preset}: the seed must decide every byte");
            let gguf = Gguf::open(path("a")).unwrap();
            let model = Model::new(&gguf, ModelOptions::default()).unwrap();
            assert_eq!(model.config().num_layers, 4, "{preset}");
        }
    }
}
