//! What is asked of a hub: the files of a repository, what one of them is, and its bytes from some place on.

use std::fmt;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;

use super::cache::is_relative;
use super::error::PullError;
use crate::server::tls::install_crypto;

/// Time to connect.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// Time without a byte after which a connection is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Redirects within the hub that are followed.
const MAX_REDIRECTS: usize = 5;

/// A repository's name: `owner/name`, or a name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepositoryId(String);

impl RepositoryId {
    /// Reads a name.
    ///
    /// # Errors
    /// It has another form.
    pub(super) fn parse(name: &str) -> Result<Self, PullError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let part = |part: &str| !part.is_empty() && part.bytes().all(allowed) && !part.starts_with('.');
        let parts = name.split('/').count();
        if parts > 2 || !name.split('/').all(part) || name.contains("--") || name.contains("..") {
            let expected = "owner/name of letters, digits, '-', '_' and '.'";
            return Err(PullError::Name { what: "repository", expected, got: name.to_owned() });
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepositoryFile {
    /// Its path in the repository.
    pub(super) name: String,
    /// Its size, where it is said.
    pub(super) bytes: Option<u64>,
}

/// The files of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    /// The commit's id.
    pub(super) commit: String,
    /// Its files.
    pub(super) files: Vec<RepositoryFile>,
}

/// What a file is.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// Where its bytes are.
    pub(super) url: Url,
    /// The name of its bytes.
    pub(super) etag: String,
    /// How many there are.
    pub(super) bytes: u64,
}

impl Resolved {
    /// The SHA-256 of the bytes in hex, where their name is that: it is for every large file.
    pub(super) fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(&self.etag)
    }
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

/// A hub.
#[derive(Debug)]
pub(super) struct Hub {
    endpoint: Url,
    /// Stops at redirects, which say what a file is.
    asking: Client,
    /// Follows them; the token stays with the hub.
    fetching: Client,
}

impl Hub {
    /// The hub at this address.
    ///
    /// # Errors
    /// The address is none, or the token holds what no header may.
    pub(super) fn at(endpoint: &str, token: Option<String>) -> Result<Self, PullError> {
        install_crypto();
        let bad = |what, expected| PullError::Name { what, expected, got: endpoint.to_owned() };
        let rule = "an http:// or https:// address";
        let url = Url::parse(endpoint.trim_end_matches('/')).map_err(|_| bad("--endpoint", rule))?;
        if url.cannot_be_a_base() || !matches!(url.scheme(), "http" | "https") {
            return Err(bad("--endpoint", rule));
        }
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let hidden =
                |_| PullError::Name { what: "--token", expected: "visible ASCII", got: "…".into() };
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(hidden)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let client = |policy| {
            Client::builder()
                .user_agent(concat!("worker-orcd/", env!("CARGO_PKG_VERSION")))
                .default_headers(headers.clone())
                .connect_timeout(CONNECT_TIME)
                .read_timeout(SILENCE)
                .redirect(policy)
                .build()
                .map_err(|source| PullError::Connection { url: endpoint.to_owned(), source })
        };
        Ok(Self { asking: client(Policy::none())?, fetching: client(Policy::limited(10))?, endpoint: url })
    }

    /// The files of a repository at a branch, tag or commit.
    ///
    /// # Errors
    /// The hub refuses, or answers something else.
    pub(super) async fn listing(&self, id: &RepositoryId, revision: &str) -> Result<Listing, PullError> {
        let mut url = self.below(&["api", "models"], &id.0)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(["revision", revision]);
        }
        url.set_query(Some("blobs=true"));
        let response = self.ask(&self.fetching, Method::GET, url.clone(), None).await?;
        let response = accepted(response)?;
        let broken = |source: reqwest::Error| PullError::Answer {
            url: url.to_string(),
            reason: format!("expected a list of files: {source}"),
        };
        let info: Info = response.json().await.map_err(broken)?;
        let commit = checked_name(&url, "commit", info.sha)?;
        let named = |file: Sibling| RepositoryFile { name: file.rfilename, bytes: file.size };
        // A name that leads out of the repository is nobody's file.
        let files = info.siblings.into_iter().map(named).filter(|file| is_relative(&file.name)).collect();
        Ok(Listing { commit, files })
    }

    /// What a file of a commit is.
    ///
    /// # Errors
    /// The hub refuses, or does not say.
    pub(super) async fn resolve(
        &self,
        id: &RepositoryId,
        commit: &str,
        file: &str,
    ) -> Result<Resolved, PullError> {
        let mut url = self.below(&[], &id.0)?;
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(["resolve", commit]).extend(file.split('/'));
        }
        let (mut asked, mut redirects) = (url.clone(), 0);
        let response = loop {
            let response = self.ask(&self.asking, Method::HEAD, asked.clone(), None).await?;
            let headers = response.headers();
            let location = headers.get(LOCATION).and_then(|location| location.to_str().ok());
            // A repository that moved says so by an address without a host; what it says itself comes after that.
            let moved = location.filter(|to| to.starts_with('/') && headers.get("x-linked-etag").is_none());
            let Some(next) = moved.and_then(|to| asked.join(to).ok()) else { break response };
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                let reason = "too many redirects".to_owned();
                return Err(PullError::Answer { url: url.to_string(), reason });
            }
            asked = next;
        };
        if !response.status().is_redirection() {
            accepted_ref(&response)?;
        }
        let text = |names: [&str; 2]| {
            let values = names.iter().filter_map(|name| response.headers().get(*name)?.to_str().ok());
            values.map(str::to_owned).next()
        };
        let missing =
            |what: &str| PullError::Answer { url: url.to_string(), reason: format!("expected {what}") };
        let etag = text(["x-linked-etag", ETAG.as_str()]).ok_or_else(|| missing("an ETag"))?;
        let etag = checked_name(&url, "ETag", etag.trim_start_matches("W/").trim_matches('"').to_owned())?;
        let bytes = text(["x-linked-size", CONTENT_LENGTH.as_str()]).and_then(|bytes| bytes.parse().ok());
        Ok(Resolved { url: asked, etag, bytes: bytes.ok_or_else(|| missing("a size"))? })
    }

    /// The bytes of a file from `from` on; all of them if the server wishes so: see the status.
    ///
    /// # Errors
    /// The hub refuses.
    pub(super) async fn bytes(&self, file: &Resolved, from: u64) -> Result<Response, PullError> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let response = self.ask(&self.fetching, Method::GET, file.url.clone(), range).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE { Ok(response) } else { accepted(response) }
    }

    /// An address below the endpoint.
    fn below(&self, folders: &[&str], name: &str) -> Result<Url, PullError> {
        let mut url = self.endpoint.clone();
        let reason = || "expected an address that paths can follow".to_owned();
        let error = || PullError::Answer { url: self.endpoint.to_string(), reason: reason() };
        url.path_segments_mut().map_err(|()| error())?.pop_if_empty().extend(folders).extend(name.split('/'));
        Ok(url)
    }

    async fn ask(
        &self,
        client: &Client,
        method: Method,
        url: Url,
        range: Option<String>,
    ) -> Result<Response, PullError> {
        let mut request = client.request(method, url.clone());
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let failed = |source: reqwest::Error| PullError::Connection {
            url: url.to_string(),
            source: source.without_url(),
        };
        request.send().await.map_err(failed)
    }
}

fn accepted(response: Response) -> Result<Response, PullError> {
    accepted_ref(&response)?;
    Ok(response)
}

fn accepted_ref(response: &Response) -> Result<(), PullError> {
    if response.status().is_success() {
        return Ok(());
    }
    // Without its query, which may hold a signature.
    let mut url = response.url().clone();
    url.set_query(None);
    Err(PullError::Refused { url: url.to_string(), status: response.status().as_u16() })
}

/// A name that becomes one of a file here: it must not lead elsewhere.
fn checked_name(url: &Url, what: &str, name: String) -> Result<String, PullError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if (1..=128).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(name);
    }
    let reason = format!("{what}: expected 1 to 128 letters and digits, got {name:?}");
    Err(PullError::Answer { url: url.to_string(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_two_names() {
        for good in ["org/name", "Org-1/Name_2.5-GGUF", "gpt2"] {
            assert_eq!(RepositoryId::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "/", "a/", "/b", "a/b/c", "a/..", "../b", "a/.b", "a b/c", "a--b/c", "a/b?c", "a/é"]
        {
            assert!(RepositoryId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        for bad in ["", "hub", "ftp://hub", "mailto:x"] {
            assert!(Hub::at(bad, None).is_err(), "{bad:?}");
        }
        let error = Hub::at("http://hub", Some("se\ncret".into())).unwrap_err().to_string();
        assert!(!error.contains("cret"), "{error}");
        let hub = Hub::at("http://hub/below/", None).unwrap();
        assert_eq!(hub.below(&["api", "models"], "o/n").unwrap().as_str(), "http://hub/below/api/models/o/n");
    }
}
