//! The keys that requests must bring, if the operator named any.
//!
//! Only digests are kept, and every comparison looks at every byte of every key: how long a refusal takes tells nothing
//! of how near a guess was.

use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};

/// Header in which some clients send a key, beside `Authorization: Bearer`.
const KEY_HEADER: &str = "x-api-key";

/// Why a file of keys is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It holds no key: serving everybody, or nobody, is not what its author meant.
    #[error("{path}: expected at least one key, one a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Digests of the keys.
#[derive(Clone)]
pub struct ApiKeys {
    digests: Vec<[u8; 32]>,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").field("keys", &self.digests.len()).finish()
    }
}

impl ApiKeys {
    /// Reads a file: one key a line; empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    ///
    /// The file is unreadable or holds no key.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let digests: Vec<[u8; 32]> = lines.map(digest).collect();
        if digests.is_empty() {
            return Err(KeyFileError::Empty { path: path.to_owned() });
        }
        Ok(Self { digests })
    }

    /// Whether the headers bring one of the keys.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        let key = bearer.or_else(|| headers.get(KEY_HEADER).and_then(|value| value.to_str().ok()));
        let Some(given) = key.map(digest) else { return false };
        self.digests.iter().fold(false, |admitted, key| admitted | same(key, &given))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Compares without stopping at the first difference.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |different, (x, y)| different | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn keys_come_as_bearer_or_in_their_own_header() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# of the team\nsecret-1\n\n  secret-2  \n").unwrap();
        let keys = ApiKeys::load(file.path()).unwrap();
        for (name, value, expected) in [
            ("authorization", "Bearer secret-1", true),
            ("authorization", "bearer secret-2", true),
            ("x-api-key", "secret-2", true),
            ("authorization", "Bearer secret-3", false),
            ("authorization", "Bearer ", false),
            ("authorization", "Basic secret-1", false),
            ("authorization", "secret-1", false),
            ("x-api-key", "# of the team", false),
            ("x-other", "secret-1", false),
        ] {
            assert_eq!(keys.admit(&headers(name, value)), expected, "{name}: {value}");
        }
        assert!(!format!("{keys:?}").contains("secret"));
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# none\n\n").unwrap();
        assert!(matches!(ApiKeys::load(file.path()), Err(KeyFileError::Empty { .. })));
        assert!(matches!(ApiKeys::load(Path::new("/nowhere/keys")), Err(KeyFileError::Read { .. })));
    }
}
