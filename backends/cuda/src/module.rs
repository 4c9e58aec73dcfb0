//! Compiling kernels: NVRTC behind a disk cache, several units at a time.
//!
//! A cubin's file name is a hash of everything that decides its contents: source, headers, options, architecture and
//! compiler version. So a cache never needs clearing, an upgrade never reads a stale file, and several processes may
//! fill it at once (files appear by rename).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::arch::Arch;
use crate::embedded;
use crate::kernels::{self, HEADERS, Unit};
use crate::nvrtc::{Nvrtc, NvrtcError};

/// Environment variable that names the cache's folder.
pub const CACHE_VARIABLE: &str = "WORKER_ORCD_CACHE_DIR";

/// What a compilation of the whole table did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildReport {
    /// Units compiled.
    pub compiled: usize,
    /// Units found in the cache.
    pub cached: usize,
    /// Folder of the cache; `None` when there is none to write to.
    pub folder: Option<PathBuf>,
}

/// Fills the cache for `arches` ahead of time.
///
/// # Errors
/// No compiler, or a kernel that does not compile.
pub fn build(arches: &[Arch]) -> Result<BuildReport, NvrtcError> {
    let compiler = Compiler::open();
    let mut report = BuildReport { folder: compiler.folder.clone(), ..BuildReport::default() };
    for &arch in arches {
        let units = units_of(arch);
        for unit in &units {
            report.cached += usize::from(compiler.is_ready(unit, arch)?);
        }
        compiler.cubins(&units, arch)?;
        report.compiled += units.len();
    }
    report.compiled -= report.cached;
    Ok(report)
}

/// Every unit that exists on an architecture.
pub(crate) fn units_of(arch: Arch) -> Vec<Unit> {
    kernels::units().into_iter().filter(|unit| unit.supports(arch)).collect()
}

/// What an embedded unit is called: its name, its architecture, and a hash of all that decides its code but the
/// compiler.
pub(crate) fn embedded_name(unit: &Unit, arch: Arch) -> String {
    format!("{}-{arch}-{}", unit.name, cache_key(unit, arch, "embedded"))
}

/// What kernels come from: the binary itself, the disk cache, or NVRTC.
#[derive(Debug)]
pub(crate) struct Compiler {
    folder: Option<PathBuf>,
}

impl Compiler {
    /// Finds the cache's folder. Without a folder to write to, every start compiles. NVRTC is loaded when it is needed.
    pub(crate) fn open() -> Self {
        Self { folder: cache_folder() }
    }

    /// Where kernels of an architecture come from, for logs.
    ///
    /// # Errors
    /// They are not in the binary, and there is no NVRTC.
    pub(crate) fn describe(arch: Arch) -> Result<String, NvrtcError> {
        if embedded::covers(&arch.to_string()) {
            return Ok("kernels in the binary".to_owned());
        }
        let nvrtc = Nvrtc::load()?;
        Ok(format!("NVRTC {} ({})", nvrtc.version(), nvrtc.path()))
    }

    /// Machine code of every unit, in order. Units not in the cache are compiled on as many threads as there are cores.
    pub(crate) fn cubins(&self, units: &[Unit], arch: Arch) -> Result<Vec<Vec<u8>>, NvrtcError> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::with_capacity(units.len()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(units.len());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((index, unit)) = take(&next, units) {
                        let cubin = self.cubin(unit, arch);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push((index, cubin));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, cubin)| cubin).collect()
    }

    /// Compiles what the cache lacks. Without a cache there is nothing to do: units are compiled when they are used.
    pub(crate) fn fill_cache(&self, units: &[Unit], arch: Arch) -> Result<(), NvrtcError> {
        if self.folder.is_none() {
            return Ok(());
        }
        let mut missing = vec![];
        for unit in units {
            if !self.is_ready(unit, arch)? {
                missing.push(unit.clone());
            }
        }
        self.cubins(&missing, arch).map(drop)
    }

    /// Whether a unit's machine code is in the binary or in the cache.
    fn is_ready(&self, unit: &Unit, arch: Arch) -> Result<bool, NvrtcError> {
        if embedded::find(&embedded_name(unit, arch)).is_some() {
            return Ok(true);
        }
        Ok(self.cache_file(unit, arch)?.is_some_and(|file| file.exists()))
    }

    fn cubin(&self, unit: &Unit, arch: Arch) -> Result<Vec<u8>, NvrtcError> {
        if let Some(code) = embedded::find(&embedded_name(unit, arch)) {
            return Ok(code.to_vec());
        }
        let file = self.cache_file(unit, arch)?;
        if let Some(cubin) = file.as_deref().and_then(read_cached) {
            return Ok(cubin);
        }
        let (cubin, _) = Self::compile(unit, arch, &[])?;
        if let Some(file) = file {
            // A cache that cannot be written costs time at the next start, nothing else.
            let _ = write_cached(&file, &cubin);
        }
        Ok(cubin)
    }

    /// Compiles without the cache: machine code and log. `more` options are appended.
    pub(crate) fn compile(unit: &Unit, arch: Arch, more: &[&str]) -> Result<(Vec<u8>, String), NvrtcError> {
        let mut options = options(unit, arch);
        options.extend(more.iter().map(ToString::to_string));
        Nvrtc::load()?.compile((&unit.name, unit.file), &arch.to_string(), unit.source, HEADERS, &options)
    }

    fn cache_file(&self, unit: &Unit, arch: Arch) -> Result<Option<PathBuf>, NvrtcError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let key = cache_key(unit, arch, &Nvrtc::load()?.version());
        Ok(Some(folder.join(format!("{}-{arch}-{key}.cubin", unit.name))))
    }
}

fn take<'u>(next: &AtomicUsize, units: &'u [Unit]) -> Option<(usize, &'u Unit)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, units.get(index)?))
}

/// The options a unit is compiled with: defines, and the size of every kernel's arguments for its assertion.
fn options(unit: &Unit, arch: Arch) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
    options.extend(unit.options.iter().map(ToString::to_string));
    options.extend(unit.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    let sizes =
        unit.kernels.iter().map(|kernel| format!("-DARGS_BYTES_{}={}", kernel.name, kernel.args_bytes));
    options.extend(sizes);
    options
}

/// Hash of everything that decides a cubin's contents.
fn cache_key(unit: &Unit, arch: Arch, compiler: &str) -> String {
    let mut hash = Sha256::new();
    let mut field = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    field(compiler);
    field(&unit.name);
    field(unit.source);
    for (name, text) in HEADERS {
        field(name);
        field(text);
    }
    for option in options(unit, arch) {
        field(&option);
    }
    hex(&hash.finalize(), 12)
}

/// The first `bytes` of a hash in hexadecimal digits.
pub(crate) fn hex(hash: &[u8], bytes: usize) -> String {
    hash.iter().take(bytes).fold(String::new(), |digits, byte| format!("{digits}{byte:02x}"))
}

/// `WORKER_ORCD_CACHE_DIR`, else the user's cache folder as the XDG rules have it.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set(CACHE_VARIABLE)
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("worker-orcd")))
        .or_else(|| Some(set("HOME")?.join(".cache").join("worker-orcd")))?;
    let folder = folder.join("kernels");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder)
}

/// A cubin is an ELF file; anything else in its place is ignored.
fn read_cached(file: &Path) -> Option<Vec<u8>> {
    std::fs::read(file).ok().filter(|bytes| bytes.starts_with(b"\x7fELF"))
}

fn write_cached(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    let draft = file.with_extension(format!("{}.draft", std::process::id()));
    std::fs::write(&draft, cubin)?;
    std::fs::rename(&draft, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(source: &'static str) -> Unit {
        Unit::new("probe", "probe.cu", source, vec![])
    }

    #[test]
    fn the_cache_key_depends_on_everything_that_decides_the_code() {
        let key = |unit: &Unit, arch, compiler| cache_key(unit, Arch::of(arch), compiler);
        let base = key(&unit("a"), 90, "13.0");
        assert_eq!(base, key(&unit("a"), 90, "13.0"));
        assert_eq!(base.len(), 24);
        let defined = unit("a").define("ROWS", 4);
        let optioned = unit("a").option("--fmad=false");
        let mut sized = unit("a");
        sized.kernels.push(kernels::Kernel::of::<u64>("probe", 32));
        let others = [
            key(&unit("b"), 90, "13.0"),
            key(&unit("a"), 80, "13.0"),
            key(&unit("a"), 90, "13.1"),
            key(&defined, 90, "13.0"),
            key(&optioned, 90, "13.0"),
            key(&sized, 90, "13.0"),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_cache_returns_what_was_written_and_ignores_what_is_no_cubin() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probe.cubin");
        assert_eq!(read_cached(&file), None);
        write_cached(&file, b"\x7fELF code").unwrap();
        assert_eq!(read_cached(&file).as_deref(), Some(&b"\x7fELF code"[..]));
        std::fs::write(&file, b"half a fi").unwrap();
        assert_eq!(read_cached(&file), None);
        let leftovers = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(leftovers, 1, "the draft was renamed");
    }
}
