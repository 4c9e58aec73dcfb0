//! The cache that the field's tools share: a folder a repository, with blobs named by their hash, snapshots of links to
//! them, and refs that say which commit a branch was at.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::error::PullError;
use super::hub::{Listing, RepositoryFile, RepositoryId};

/// Folder of the field's tools below the user's cache.
const HOME_FOLDER: &str = "huggingface";

/// The folder of all repositories.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
}

/// One repository at one revision.
#[derive(Debug)]
pub(super) struct Repository {
    folder: PathBuf,
    revision: String,
}

impl Cache {
    /// The named folder, else the one that `HF_HOME`, `XDG_CACHE_HOME` or `HOME` stands for.
    ///
    /// # Errors
    /// None of them is set.
    pub(super) fn locate(named: Option<&Path>) -> Result<Self, PullError> {
        let named = named.filter(|folder| !folder.as_os_str().is_empty());
        let root = named.map(Path::to_owned).or_else(|| home().map(|home| home.join("hub")));
        Ok(Self { root: root.ok_or(PullError::NoCache)? })
    }

    /// The place of a repository.
    ///
    /// # Errors
    /// The revision is no name of a branch, tag or commit.
    pub(super) fn repository(&self, id: &RepositoryId, revision: &str) -> Result<Repository, PullError> {
        if !is_relative(revision) {
            let (what, expected) = ("--revision", "a branch, tag or commit");
            return Err(PullError::Name { what, expected, got: revision.to_owned() });
        }
        let folder = self.root.join(format!("models--{}", id.to_string().replace('/', "--")));
        Ok(Repository { folder, revision: revision.to_owned() })
    }
}

/// The folder of the field's tools.
fn home() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    variable("HF_HOME").or_else(|| cache().map(|cache| cache.join(HOME_FOLDER)))
}

/// The token that the field's tools have saved.
pub(super) fn saved_token() -> Option<String> {
    let path =
        std::env::var_os("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
    let token = fs::read_to_string(path).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}

/// Whether a name leads to a place below where it begins, on every system.
pub(super) fn is_relative(name: &str) -> bool {
    let parts = Path::new(name).components();
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && !name.split('/').any(|part| matches!(part, "" | "." | ".."))
        && parts.into_iter().all(|part| matches!(part, Component::Normal(_)))
}

impl Repository {
    /// Where the bytes of this hash lie.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where a file of a commit lies.
    pub(super) fn snapshot(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(file)
    }

    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(&self.revision)
    }

    /// Makes a file of a commit be the blob of this hash.
    ///
    /// # Errors
    /// The system.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, PullError> {
        let link = self.snapshot(commit, file);
        make_parent(&link)?;
        let up = "../".repeat(file.split('/').count() + 1);
        let target = format!("{up}blobs/{etag}");
        if fs::read_link(&link).is_ok_and(|there| there == Path::new(&target)) {
            return Ok(link);
        }
        // Made beside its place and renamed: whoever looks finds the old one or the new one.
        let fresh = link.with_extension(format!("{}.link", std::process::id()));
        // One that a dead process left.
        let _ = fs::remove_file(&fresh);
        self.point(&fresh, &target, etag).map_err(PullError::io(&fresh))?;
        fs::rename(&fresh, &link).map_err(PullError::io(&link))?;
        Ok(link)
    }

    #[cfg(unix)]
    #[allow(clippy::unused_self, reason = "systems without links need it")]
    fn point(&self, link: &Path, target: &str, _: &str) -> std::io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    #[cfg(not(unix))]
    fn point(&self, link: &Path, _: &str, etag: &str) -> std::io::Result<()> {
        fs::hard_link(self.blob(etag), link)
    }

    /// Notes which commit the revision was at.
    ///
    /// # Errors
    /// The system.
    pub(super) fn write_ref(&self, commit: &str) -> Result<(), PullError> {
        if self.revision == commit {
            return Ok(());
        }
        let path = self.reference();
        make_parent(&path)?;
        fs::write(&path, commit).map_err(PullError::io(&path))
    }

    /// What the cache holds of the revision.
    ///
    /// # Errors
    /// Nothing.
    pub(super) fn listing(&self) -> Result<Listing, PullError> {
        let noted = fs::read_to_string(self.reference()).map(|commit| commit.trim().to_owned());
        let commit = noted.unwrap_or_else(|_| self.revision.clone());
        let folder = self.folder.join("snapshots").join(&commit);
        let mut files = vec![];
        if is_relative(&commit) {
            collect(&folder, "", &mut files);
        }
        if files.is_empty() {
            return Err(PullError::NotCached(folder));
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing { commit, files })
    }
}

/// Every file below a folder whose blob is there.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<RepositoryFile>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        match fs::metadata(entry.path()) {
            Ok(there) if there.is_dir() => collect(&entry.path(), &format!("{name}/"), files),
            Ok(there) => files.push(RepositoryFile { name, bytes: Some(there.len()) }),
            Err(_) => {}
        }
    }
}

/// Makes the folder that a file will lie in.
///
/// # Errors
/// The system.
pub(super) fn make_parent(path: &Path) -> Result<(), PullError> {
    path.parent().map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(PullError::io(parent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_elsewhere() {
        for good in ["main", "refs/pr/1", "a.gguf", "sub/b-00001-of-00002.gguf", "v1.0", "..a"] {
            assert!(is_relative(good), "{good}");
        }
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "c:\\x", "a\\..\\b", "x\0"] {
            assert!(!is_relative(bad), "{bad:?}");
        }
    }

    #[test]
    fn the_layout_is_the_one_that_other_tools_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::locate(Some(folder.path())).unwrap();
        let id = RepositoryId::parse("org/name").unwrap();
        let repository = cache.repository(&id, "main").unwrap();
        let blob = repository.blob("abc");
        make_parent(&blob).unwrap();
        fs::write(&blob, "bytes").unwrap();
        assert!(repository.listing().is_err(), "a blob alone is no file");
        let commit = "0123456789012345678901234567890123456789";
        let file = repository.link(commit, "sub/m.gguf", "abc").unwrap();
        assert_eq!(repository.link(commit, "sub/m.gguf", "abc").unwrap(), file, "again");
        repository.write_ref(commit).unwrap();
        let root = folder.path().join("models--org--name");
        assert_eq!(file, root.join("snapshots").join(commit).join("sub/m.gguf"));
        assert_eq!(fs::read(&file).unwrap(), b"bytes");
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), commit);
        #[cfg(unix)]
        assert_eq!(fs::read_link(&file).unwrap(), Path::new("../../../blobs/abc"));
        let listing = repository.listing().unwrap();
        assert_eq!((listing.commit.as_str(), listing.files[0].name.as_str()), (commit, "sub/m.gguf"));
        assert!(cache.repository(&id, "../main").is_err());
    }
}
