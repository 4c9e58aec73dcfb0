//! One file from the hub to the disk: goes on where an earlier try ended, tries again when the connection is cut, and
//! gives the file its name only once every byte is checked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use sha2::{Digest, Sha256};

use super::cache::make_parent;
use super::error::PullError;
use super::hub::{Hub, Resolved};

/// Tries in a row that may bring nothing.
const MAX_FAILURES: u32 = 6;
/// Pause before the second try; it doubles from one to the next.
const PAUSE: Duration = Duration::from_millis(250);
/// Bytes hashed at a time.
const HASHED: usize = 1 << 20;

/// A file's bytes and their place.
#[derive(Debug)]
pub(super) struct Blob<'a> {
    /// Where they go.
    pub(super) path: PathBuf,
    /// What they are.
    pub(super) resolved: &'a Resolved,
}

impl Blob<'_> {
    /// Whether they are there already. What has this name was checked before it got it.
    pub(super) fn is_here(&self) -> bool {
        self.path.metadata().is_ok_and(|there| there.len() == self.resolved.bytes)
    }

    /// Where they are until they are complete.
    fn partial(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".incomplete");
        name.into()
    }

    fn full_disk(&self, path: &Path, source: io::Error) -> PullError {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                PullError::DiskFull { path: path.to_owned(), bytes: self.resolved.bytes }
            }
            _ => PullError::Io { path: path.to_owned(), source },
        }
    }
}

/// Downloads what is missing, checks it, and gives it its name.
///
/// # Errors
/// The connection fails again and again, the bytes are others than promised, or the disk is full.
pub(super) async fn fetch(hub: &Hub, blob: &Blob<'_>, bar: &ProgressBar) -> Result<(), PullError> {
    make_parent(&blob.path)?;
    let partial = blob.partial();
    let mut failures = 0;
    while let Err(error) = go_on(hub, blob, &partial, bar, &mut failures).await {
        failures += 1;
        if !error.is_passing() || failures >= MAX_FAILURES {
            return Err(error);
        }
        tokio::time::sleep(PAUSE * 2_u32.pow(failures)).await;
    }
    if let Some(expected) = blob.resolved.sha256() {
        bar.set_message("checking");
        let got = sha256(&partial).map_err(PullError::io(&partial))?;
        if !got.eq_ignore_ascii_case(expected) {
            // Nothing could be made of it by going on.
            let _ = std::fs::remove_file(&partial);
            return Err(PullError::Checksum { file: partial, expected: expected.to_owned(), got });
        }
    }
    std::fs::rename(&partial, &blob.path).map_err(PullError::io(&blob.path))
}

/// One try. A byte that came means that the next failure is the first.
async fn go_on(
    hub: &Hub,
    blob: &Blob<'_>,
    partial: &Path,
    bar: &ProgressBar,
    failures: &mut u32,
) -> Result<(), PullError> {
    let expected = blob.resolved.bytes;
    let mut file =
        OpenOptions::new().create(true).append(true).open(partial).map_err(PullError::io(partial))?;
    let mut got = file.metadata().map_err(PullError::io(partial))?.len();
    if got > expected {
        file.set_len(0).map_err(PullError::io(partial))?;
        got = 0;
    }
    bar.set_position(got);
    if got == expected {
        return Ok(());
    }
    let url = blob.resolved.url.to_string();
    let mut response = hub.bytes(blob.resolved, got).await?;
    let begins = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let begins = begins.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    let goes_on = response.status() == StatusCode::PARTIAL_CONTENT && begins == Some(got);
    if got > 0 && !goes_on {
        file.set_len(0).map_err(PullError::io(partial))?;
        got = 0;
        // All of it from the beginning is as good; another part, or none, is not.
        if response.status() != StatusCode::OK {
            return Err(PullError::Cut { url, got, expected });
        }
    }
    loop {
        let cut =
            |source: reqwest::Error| PullError::Connection { url: url.clone(), source: source.without_url() };
        let Some(bytes) = response.chunk().await.map_err(cut)? else { break };
        got += bytes.len() as u64;
        if got > expected {
            let reason = format!("expected {expected} bytes, got more");
            return Err(PullError::Answer { url, reason });
        }
        file.write_all(&bytes).map_err(|source| blob.full_disk(partial, source))?;
        bar.set_position(got);
        *failures = 0;
    }
    if got < expected {
        return Err(PullError::Cut { url, got, expected });
    }
    file.sync_all().map_err(|source| blob.full_disk(partial, source))
}

/// Of a whole file, in hex.
fn sha256(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; HASHED];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
    }
    Ok(hash.finalize().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")))
}
