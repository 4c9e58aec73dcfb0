//! `tokenize`: JSON lines of text in, JSON lines of ids and their decoded text out.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::CommandError;
use crate::gguf::Gguf;
use crate::text::{DecodeOptions, SpecialParsing, Tokenizer};

/// Flags of `tokenize`.
#[derive(Args, Debug)]
pub struct TokenizeArgs {
    #[command(flatten)]
    source: TokenizerSource,
    /// Special-token text means the token
    #[arg(long, env = "WORKER_ORCD_SPECIAL")]
    special: bool,
    /// Read {"text": …} lines and write {"ids": […], "text": …} lines; the only mode there is
    #[arg(long, env = "WORKER_ORCD_JSON_LINES")]
    json_lines: bool,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct TokenizerSource {
    /// GGUF file whose vocabulary to use
    #[arg(long, env = "WORKER_ORCD_MODEL", value_name = "FILE")]
    model: Option<PathBuf>,
    /// Hugging Face tokenizer.json to use
    #[arg(long, env = "WORKER_ORCD_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// Runs the command.
///
/// # Errors
/// The vocabulary, or a line that is no JSON object with a text.
pub fn run(args: &TokenizeArgs, input: &mut dyn BufRead, out: &mut dyn Write) -> Result<(), CommandError> {
    if !args.json_lines {
        return Err(CommandError::Usage("tokenize reads and writes JSON lines: add --json-lines".into()));
    }
    let tokenizer = match (&args.source.model, &args.source.tokenizer) {
        (Some(model), _) => Tokenizer::load(&Gguf::open(model)?, None)?,
        (None, Some(json)) => Tokenizer::load_json(json)?,
        (None, None) => return Err(CommandError::Usage("--model or --tokenizer is needed".into())),
    };
    let special = if args.special { SpecialParsing::Parse } else { SpecialParsing::Plain };
    let options = DecodeOptions { show_special: args.special, ..DecodeOptions::default() };
    for (number, line) in input.lines().enumerate() {
        let line = line?;
        let parsed: Line = serde_json::from_str(&line)
            .map_err(|error| CommandError::Usage(format!("line {}: {error}", number + 1)))?;
        let ids = tokenizer.encode(&parsed.text, special);
        let text = tokenizer.decode_with(&ids, &options);
        writeln!(out, "{}", json!({ "ids": ids, "text": text }))?;
    }
    Ok(())
}
