//! `pull`: downloads a model from a hub into the cache that the field's tools share, and prints where it lies.

mod cache;
mod choice;
mod download;
mod error;
mod hub;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::CommandError;
use cache::{Cache, Repository};
use download::{Blob, fetch};
pub use error::PullError;
use hub::{Hub, RepositoryId};

/// The hub that is asked when nothing names another.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Flags of `pull`. Their variables are those of the field's tools.
#[derive(Args, Debug)]
pub struct PullArgs {
    /// Repository, `owner/name`
    #[arg(value_name = "REPO")]
    repository: String,
    /// File in it, or a part of its name such as Q4_K_M; not needed where only one .gguf can be meant
    #[arg(value_name = "FILE")]
    file: Option<String>,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    revision: String,
    /// Base address of the hub
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = DEFAULT_ENDPOINT)]
    endpoint: String,
    /// Cache folder; hub/ below HF_HOME, else below ~/.cache/huggingface, when omitted
    #[arg(long, env = "HF_HUB_CACHE", value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Token for repositories that ask for one; the one saved below HF_HOME when omitted
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Ask no hub: the file must be in the cache
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    offline: bool,
    /// Print one JSON object on stdout
    #[arg(long, env = "WORKER_ORCD_JSON")]
    json: bool,
}

/// Runs the command. The path of the file, the first one of a split model, goes to `out`.
///
/// # Errors
/// The hub refuses, the connection fails for good, a checksum does not match, or the disk is full.
pub fn run(args: &PullArgs, out: &mut dyn Write) -> Result<(), CommandError> {
    let id = RepositoryId::parse(&args.repository)?;
    let repository = Cache::locate(args.cache_dir.as_deref())?.repository(&id, &args.revision)?;
    let (commit, paths) = if args.offline {
        offline(args, &repository)?
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(online(args, &id, &repository))?
    };
    let first = paths.first().ok_or_else(|| PullError::NoSuchFile { wanted: args.file.clone() })?;
    if args.json {
        let line = json!({
            "path": first, "files": paths, "repository": id.to_string(), "revision": args.revision,
            "commit": commit,
        });
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{}", first.display())?;
    }
    Ok(())
}

fn offline(args: &PullArgs, repository: &Repository) -> Result<(String, Vec<PathBuf>), PullError> {
    let listing = repository.listing()?;
    let chosen = choice::choose(&listing.files, args.file.as_deref())?;
    let paths = chosen.iter().map(|file| repository.snapshot(&listing.commit, file)).collect();
    Ok((listing.commit, paths))
}

async fn online(
    args: &PullArgs,
    id: &RepositoryId,
    repository: &Repository,
) -> Result<(String, Vec<PathBuf>), PullError> {
    // A variable that is set to nothing is not set.
    let token = args.token.clone().filter(|token| !token.is_empty()).or_else(cache::saved_token);
    let endpoint = if args.endpoint.is_empty() { DEFAULT_ENDPOINT } else { &args.endpoint };
    let hub = Hub::at(endpoint, token)?;
    let listing = hub.listing(id, &args.revision).await?;
    let chosen = choice::choose(&listing.files, args.file.as_deref())?;
    let mut paths = Vec::with_capacity(chosen.len());
    for file in &chosen {
        let resolved = hub.resolve(id, &listing.commit, file).await?;
        let blob = Blob { path: repository.blob(&resolved.etag), resolved: &resolved };
        if !blob.is_here() {
            let bar = bar(resolved.bytes, file);
            fetch(&hub, &blob, &bar).await?;
            bar.finish_and_clear();
        }
        paths.push(repository.link(&listing.commit, file, &resolved.etag)?);
    }
    repository.write_ref(&listing.commit)?;
    Ok((listing.commit, paths))
}

/// A bar on a terminal, and silence elsewhere.
fn bar(bytes: u64, file: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
    let template = "{msg} {bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(file.to_owned());
    bar
}
