//! The configuration file: TOML whose keys are the long names of the server's flags.
//!
//! A value of the file stands where neither the command line nor the environment gives one. It is handed to the parser
//! of the command line as the flag it stands for, so that one set of rules holds for all three.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command};
use toml::{Table, Value};

/// The subcommand whose flags a file may give.
const SERVE: &str = "serve";
/// Flags that mean nothing inside a file.
const NOT_IN_A_FILE: [&str; 3] = ["config", "help", "version"];
/// Most letters by which a misspelt key may differ from the one that is suggested.
const MISSPELT: usize = 4;

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no TOML.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The place and the rule.
        source: Box<toml::de::Error>,
    },
    /// No flag has this name.
    #[error("{path}: unknown key {key:?}{}", nearest.as_ref().map(|name| format!(", did you mean {name:?}?")).unwrap_or_default())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// As written.
        key: String,
        /// The flag whose name is most like it.
        nearest: Option<String>,
    },
    /// The flag does not take this value.
    #[error("{path}: {key}: {reason}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The flag's name.
        key: String,
        /// The rule and the value.
        reason: String,
    },
}

/// The command line with what its `--config` file adds to it. A line of another subcommand, or one that the parser will
/// refuse anyway, comes back as it is.
///
/// # Errors
///
/// The file is not there, is no TOML, or says something that no flag would accept.
pub fn layered(command: &Command, mut line: Vec<OsString>) -> Result<Vec<OsString>, ConfigFileError> {
    let lenient = command.clone().mut_subcommand(SERVE, |serve| serve.mut_args(|flag| flag.required(false)));
    let Ok(matches) = lenient.clone().try_get_matches_from(&line) else { return Ok(line) };
    let Some(given) = matches.subcommand_matches(SERVE) else { return Ok(line) };
    let Some(path) = given.get_one::<PathBuf>("config") else { return Ok(line) };
    let program = line.first().cloned().unwrap_or_default();
    for (key, value) in &table(path)? {
        let flags = flags(&lenient, path, key, value)?;
        let alone = [program.clone(), SERVE.into()].into_iter().chain(flags.iter().cloned());
        if let Err(error) = lenient.clone().try_get_matches_from(alone) {
            return Err(refused(path, key, said(&error)));
        }
        if !is_given(given, &key.replace('-', "_")) {
            line.extend(flags);
        }
    }
    Ok(line)
}

fn table(path: &Path) -> Result<Table, ConfigFileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigFileError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|source| ConfigFileError::Syntax { path: path.to_owned(), source: Box::new(source) })
}

fn refused(path: &Path, key: &str, reason: impl Into<String>) -> ConfigFileError {
    ConfigFileError::Value { path: path.to_owned(), key: key.to_owned(), reason: reason.into() }
}

/// Whether the command line or the environment has a value for this flag.
fn is_given(given: &ArgMatches, id: &str) -> bool {
    matches!(given.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// The entry as it would be typed.
fn flags(command: &Command, path: &Path, key: &str, value: &Value) -> Result<Vec<OsString>, ConfigFileError> {
    let known = || {
        let serve = command.find_subcommand(SERVE).into_iter();
        let flags = serve.flat_map(Command::get_arguments);
        flags.filter_map(|flag| Some((flag.get_long()?, flag))).filter(|(n, _)| !NOT_IN_A_FILE.contains(n))
    };
    let Some((name, flag)) = known().find(|(name, _)| *name == key) else {
        let distances = known().map(|(name, _)| (distance(name, key), name));
        let nearest = distances.min().filter(|(distance, _)| *distance <= MISSPELT);
        let nearest = nearest.map(|(_, name)| name.to_owned());
        return Err(ConfigFileError::UnknownKey { path: path.to_owned(), key: key.to_owned(), nearest });
    };
    if matches!(flag.get_action(), ArgAction::SetTrue) {
        return match value {
            Value::Boolean(true) => Ok(vec![format!("--{name}").into()]),
            Value::Boolean(false) => Ok(vec![]),
            _ => Err(refused(path, key, format!("expected true or false, got {value}"))),
        };
    }
    let values = match value {
        Value::Array(values) if matches!(flag.get_action(), ArgAction::Append) => values.as_slice(),
        value => std::slice::from_ref(value),
    };
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{name}={text}").into()),
        Value::Integer(_) | Value::Float(_) => Ok(format!("--{name}={value}").into()),
        _ => Err(refused(path, key, format!("expected a string or a number, got {value}"))),
    };
    values.iter().map(scalar).collect()
}

/// What the parser of the command line says, in one line.
fn said(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
}

/// Levenshtein's distance: letters to insert, delete or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WorkerConfig;
    use clap::{FromArgMatches, Parser};

    #[derive(Debug, Parser)]
    enum Line {
        Serve(Box<WorkerConfig>),
        Other,
    }

    /// The command with the environment set aside, but for what is given as the variable of `--max-queue`.
    fn command() -> Command {
        use clap::CommandFactory;
        Line::command().mut_subcommand(SERVE, |serve| serve.mut_args(|flag| flag.env(None::<&str>)))
    }

    fn parsed(file: &str, flags: &[&str]) -> Result<WorkerConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.toml");
        std::fs::write(&path, file).unwrap();
        let line = ["worker-orcd", "serve", "--config", path.to_str().unwrap()];
        let line = line.iter().chain(flags).map(OsString::from).collect();
        let line = layered(&command(), line).map_err(|error| error.to_string())?;
        let matches = command().try_get_matches_from(line).map_err(|error| error.to_string())?;
        match Line::from_arg_matches(&matches).unwrap() {
            Line::Serve(config) => Ok(*config),
            Line::Other => panic!("another command"),
        }
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = "model = \"a.gguf\"\nport = 9000\nmax-batch = 4\nyarn-truncate = true\n\
            ignore-phi3-window = false\nserved-model-name = [\"a\", \"org/b\"]\nbackend = \"wgpu\"\n";
        let config = parsed(file, &["--port", "9001"]).unwrap();
        assert_eq!(config.port, 9001, "the flag");
        assert_eq!(config.max_batch, 4, "the file");
        assert_eq!(config.max_queue, 64, "the default");
        assert_eq!(config.model.model, Path::new("a.gguf"), "also what is required");
        assert!(config.model.yarn_truncate && !config.model.ignore_phi3_window);
        assert_eq!(config.served_model_name, ["a", "org/b"]);
        assert_eq!(config.backend.name(), "wgpu");
        let named = parsed(file, &["--served-model-name", "c"]).unwrap();
        assert_eq!(named.served_model_name, ["c"], "values are not mixed");
    }

    #[test]
    fn every_flag_has_a_key() {
        let command = command();
        let serve = command.find_subcommand(SERVE).unwrap();
        for flag in serve.get_arguments().filter_map(clap::Arg::get_long) {
            let entry = flags(&command, Path::new("f"), flag, &Value::Boolean(true));
            let unknown = matches!(entry, Err(ConfigFileError::UnknownKey { .. }));
            assert_eq!(unknown, NOT_IN_A_FILE.contains(&flag), "{flag}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (file, reason) in [
            ("max-bach = 4", "worker.toml: unknown key \"max-bach\", did you mean \"max-batch\"?"),
            ("max_queue = 4", "unknown key \"max_queue\", did you mean \"max-queue\"?"),
            ("colour-of-the-sky = 1", "unknown key \"colour-of-the-sky\""),
            ("config = \"other.toml\"", "unknown key \"config\""),
            ("port = \"high\"", "worker.toml: port: invalid value 'high' for '--port <PORT>'"),
            ("port = 70000", "port: invalid value '70000'"),
            ("backend = \"cpu\"", "[possible values: cuda, wgpu, reference]"),
            ("yarn-truncate = 1", "yarn-truncate: expected true or false, got 1"),
            ("port = [1]", "port: expected a string or a number"),
            ("[server]\nport = 1", "unknown key \"server\""),
            ("port = ", "worker.toml: TOML parse error at line 1"),
        ] {
            let error = parsed(file, &["--model", "m"]).unwrap_err();
            assert!(error.contains(reason), "{file}: {error}");
        }
        assert!(!parsed("colour-of-the-sky = 1", &[]).unwrap_err().contains("did you mean"));
        let line = ["w", "serve", "--config", "/nowhere/worker.toml"].map(OsString::from).to_vec();
        assert!(layered(&command(), line).unwrap_err().to_string().starts_with("/nowhere/worker.toml: "));
        let line = ["w", "other"].map(OsString::from).to_vec();
        assert_eq!(layered(&command(), line.clone()).unwrap(), line);
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("port", "port", 0), ("host", "port", 2)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
        }
    }
}
