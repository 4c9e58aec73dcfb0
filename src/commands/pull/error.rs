//! Why a file is not there after `pull`.

use std::io;
use std::path::{Path, PathBuf};

use crate::commands::causes;

/// Why a file could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// A name that is none.
    #[error("{what}: expected {expected}, got {got:?}")]
    Name {
        /// What it should name.
        what: &'static str,
        /// The rule.
        expected: &'static str,
        /// As it came.
        got: String,
    },
    /// The hub refuses.
    #[error("{url}: HTTP {status}: {}", reason(*status))]
    Refused {
        /// What was asked.
        url: String,
        /// The answer's status.
        status: u16,
    },
    /// The connection failed, again and again.
    #[error("{url}: {source}{}", causes(source))]
    Connection {
        /// What was asked.
        url: String,
        /// What the client says.
        source: reqwest::Error,
    },
    /// The connection ended too early, again and again.
    #[error(
        "{url}: the connection ended after {got} of {expected} bytes; run the same command to go on from there"
    )]
    Cut {
        /// What was asked.
        url: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes of the file.
        expected: u64,
    },
    /// The hub's answer makes no sense.
    #[error("{url}: {reason}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// What was downloaded is something else.
    #[error("{file}: expected SHA-256 {expected}, got {got}; the download is removed")]
    Checksum {
        /// The file of the download.
        file: PathBuf,
        /// As the hub says.
        expected: String,
        /// Of the bytes on disk.
        got: String,
    },
    /// No file of the repository is meant.
    #[error("the repository has no {}", wanted.as_ref().map_or_else(|| ".gguf file".to_owned(), |name| format!("file {name:?}, and no .gguf file with this in its name")))]
    NoSuchFile {
        /// What was asked for.
        wanted: Option<String>,
    },
    /// Several files may be meant.
    #[error("several files may be meant; name one of them:\n{0}")]
    Several(String),
    /// There is no place for a cache.
    #[error("no cache folder: name one with --cache-dir, or set HF_HOME or HOME")]
    NoCache,
    /// Nothing was pulled yet.
    #[error("{0}: not in the cache, and the hub is not asked offline")]
    NotCached(PathBuf),
    /// The disk is full.
    #[error(
        "{path}: no space left on the disk; the file needs {bytes} bytes. What is there is kept: run the same command to go on from there"
    )]
    DiskFull {
        /// The file of the download.
        path: PathBuf,
        /// Of the whole file.
        bytes: u64,
    },
    /// The system.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl PullError {
    /// An error of the system at a file or folder.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Whether trying again may help.
    pub const fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Cut { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }
}

const fn reason(status: u16) -> &'static str {
    match status {
        401 => "expected a valid token in HF_TOKEN; a repository that does not exist is answered so too",
        403 => "the token has no access to this repository",
        404 => "no such repository, revision or file",
        429 => "too many requests",
        500.. => "the hub has a fault",
        _ => "not what a hub answers",
    }
}
