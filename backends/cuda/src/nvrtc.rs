//! NVRTC, the run-time compiler, loaded from wherever it is: nothing of CUDA is needed to build this crate.
//!
//! Looked for, in this order: the file or folder in `WORKER_ORCD_NVRTC`; the loader's own path; `/usr/local/cuda`;
//! Python's site-packages, where the `nvidia-cuda-nvrtc` wheel puts it. The library is used through nine C functions
//! whose signatures have not changed since CUDA 11.
#![allow(unsafe_code, reason = "foreign functions of a library loaded at run time")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;

/// Environment variable that names the library, or the folder it is in.
pub const NVRTC_VARIABLE: &str = "WORKER_ORCD_NVRTC";

/// Oldest version that knows every architecture we compile for.
const MINIMUM_VERSION: (i32, i32) = (12, 8);

/// File names, newest first.
const LIBRARY_NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

/// Prints the folders of installed NVRTC wheels.
const PYTHON_FOLDERS: &str = "import glob, os, sys
for path in sys.path:
    for name in ('cu13/lib', 'cuda_nvrtc/lib', 'cu13/bin', 'cuda_nvrtc/bin'):
        for found in glob.glob(os.path.join(path, 'nvidia', name)):
            print(found)";

type Handle = *mut c_void;
type CreateProgram = unsafe extern "C" fn(
    *mut Handle,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// What can go wrong with the compiler.
#[derive(Debug, thiserror::Error)]
pub enum NvrtcError {
    /// It is nowhere.
    #[error(
        "the run-time compiler NVRTC was not found (tried {tried}); install CUDA 13 or \
         `pip install nvidia-cuda-nvrtc`, or point {NVRTC_VARIABLE} at libnvrtc"
    )]
    Missing {
        /// Where it was looked for.
        tried: String,
    },
    /// It is there but cannot be used.
    #[error("NVRTC {found} is too old, {}.{} or newer is needed", MINIMUM_VERSION.0, MINIMUM_VERSION.1)]
    TooOld {
        /// Its version.
        found: String,
    },
    /// A file is not NVRTC, or lacks a function.
    #[error("{path}: {reason}")]
    Library {
        /// Which.
        path: String,
        /// What the loader said.
        reason: String,
    },
    /// A kernel does not compile.
    #[error("{name} for {arch}: {log}")]
    Compile {
        /// Unit.
        name: String,
        /// Architecture.
        arch: String,
        /// The compiler's messages.
        log: String,
    },
}

/// The loaded library.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    version: (i32, i32),
    path: String,
    create: CreateProgram,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the functions above alive; last, so that they are dropped last.
    _library: Library,
    _builtins: Option<Library>,
}

/// The one library of this process: looking for it costs a Python interpreter at worst.
static LOADED: OnceLock<Nvrtc> = OnceLock::new();

impl Nvrtc {
    /// Finds and loads the library, once per process.
    pub(crate) fn load() -> Result<&'static Self, NvrtcError> {
        if let Some(nvrtc) = LOADED.get() {
            return Ok(nvrtc);
        }
        let mut tried = vec![];
        for candidate in candidates() {
            match Self::open(&candidate) {
                Ok(nvrtc) => return Ok(LOADED.get_or_init(|| nvrtc)),
                Err(NvrtcError::Library { path, reason }) => tried.push(format!("{path}: {reason}")),
                Err(error) => return Err(error),
            }
        }
        Err(NvrtcError::Missing { tried: tried.join("; ") })
    }

    /// `13.0`.
    pub(crate) fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Where it was found.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn open(path: &Path) -> Result<Self, NvrtcError> {
        let error = |reason: String| NvrtcError::Library { path: path.display().to_string(), reason };
        let builtins = open_builtins(path);
        // SAFETY: loading runs the library's initialisers; the file is NVIDIA's compiler by name, chosen by the user
        // or found on the system's own library path.
        let library = unsafe { Library::new(path) }.map_err(|source| error(source.to_string()))?;
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
            symbol(&library, c"nvrtcVersion").map_err(error)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers; the signature is nvrtc.h's.
        unsafe { version(&raw mut major, &raw mut minor) };
        if (major, minor) < MINIMUM_VERSION {
            return Err(NvrtcError::TooOld { found: format!("{major}.{minor}") });
        }
        Ok(Self {
            version: (major, minor),
            path: path.display().to_string(),
            create: symbol(&library, c"nvrtcCreateProgram").map_err(error)?,
            compile: symbol(&library, c"nvrtcCompileProgram").map_err(error)?,
            cubin_size: symbol(&library, c"nvrtcGetCUBINSize").map_err(error)?,
            cubin: symbol(&library, c"nvrtcGetCUBIN").map_err(error)?,
            log_size: symbol(&library, c"nvrtcGetProgramLogSize").map_err(error)?,
            log: symbol(&library, c"nvrtcGetProgramLog").map_err(error)?,
            destroy: symbol(&library, c"nvrtcDestroyProgram").map_err(error)?,
            error_string: symbol(&library, c"nvrtcGetErrorString").map_err(error)?,
            _library: library,
            _builtins: builtins,
        })
    }

    /// Compiles one source with `headers` (name, text) to machine code; also returns what the
    /// compiler said: warnings and, with `--ptxas-options=-v`, registers and spills. Its messages say `file`, ours
    /// `name`. Thread-safe, as NVRTC is.
    pub(crate) fn compile(
        &self,
        (name, file): (&str, &str),
        arch: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<(Vec<u8>, String), NvrtcError> {
        let error = |log: String| NvrtcError::Compile { name: name.to_owned(), arch: arch.to_owned(), log };
        let program = Program::new(self, file, source, headers).map_err(error)?;
        let options = c_strings(options.iter().map(String::as_str)).map_err(error)?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the handle is live, `pointers` holds as many strings as told, which outlive the call.
        let code = unsafe { (self.compile)(program.handle, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.log();
        if code != 0 {
            return Err(error(format!("{}\n{log}", self.describe(code))));
        }
        Ok((program.cubin().map_err(error)?, log))
    }

    fn describe(&self, code: c_int) -> String {
        // SAFETY: takes any code and returns a static string.
        let text = unsafe { (self.error_string)(code) };
        if text.is_null() {
            return format!("error {code}");
        }
        // SAFETY: not null, NUL-terminated and static, as nvrtc.h says.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// One source being compiled.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(nvrtc: &'a Nvrtc, name: &str, source: &str, headers: &[(&str, &str)]) -> Result<Self, String> {
        let texts = c_strings([name, source].into_iter())?;
        let header_names = c_strings(headers.iter().map(|(name, _)| *name))?;
        let header_texts = c_strings(headers.iter().map(|(_, text)| *text))?;
        let names: Vec<*const c_char> = header_names.iter().map(|name| name.as_ptr()).collect();
        let bodies: Vec<*const c_char> = header_texts.iter().map(|text| text.as_ptr()).collect();
        let [name, source] = texts.as_slice() else { return Err("a string was lost".to_owned()) };
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: every string is NUL-terminated and outlives the call (NVRTC copies them); the counts match.
        let code = unsafe {
            (nvrtc.create)(
                &raw mut handle,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        if code == 0 { Ok(Self { nvrtc, handle }) } else { Err(nvrtc.describe(code)) }
    }

    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the handle is live, the pointer is to a live integer.
        unsafe { (self.nvrtc.log_size)(self.handle, &raw mut bytes) };
        let mut text = vec![0_u8; bytes];
        if bytes > 0 {
            // SAFETY: the buffer has the size NVRTC asked for.
            unsafe { (self.nvrtc.log)(self.handle, text.as_mut_ptr().cast()) };
        }
        text.retain(|&byte| byte != 0);
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the handle is live, the pointer is to a live integer.
        let code = unsafe { (self.nvrtc.cubin_size)(self.handle, &raw mut bytes) };
        if code != 0 || bytes == 0 {
            return Err(format!("no machine code: {}", self.nvrtc.describe(code)));
        }
        let mut cubin = vec![0_u8; bytes];
        // SAFETY: the buffer has the size NVRTC asked for.
        let code = unsafe { (self.nvrtc.cubin)(self.handle, cubin.as_mut_ptr().cast()) };
        if code == 0 { Ok(cubin) } else { Err(self.nvrtc.describe(code)) }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from nvrtcCreateProgram and is destroyed once.
        unsafe { (self.nvrtc.destroy)(&raw mut self.handle) };
    }
}

/// Loads the library of built-in functions that lies beside NVRTC. NVRTC asks for it by its bare name, which the loader
/// resolves to a library already loaded; in a wheel it would not find it otherwise.
fn open_builtins(nvrtc: &Path) -> Option<Library> {
    let folder = nvrtc.parent().filter(|folder| folder.is_absolute())?;
    let is_builtins = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so.") || name.starts_with("nvrtc-builtins64_")
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_builtins)
        .collect();
    found.sort();
    // SAFETY: as for NVRTC itself, whose folder it is in.
    unsafe { Library::new(found.last()?) }.ok()
}

/// Copies a function pointer out of the library.
fn symbol<F: Copy>(library: &Library, name: &CStr) -> Result<F, String> {
    // SAFETY: every caller names the function and gives its type as in nvrtc.h; the library outlives the copy, since
    // both live in `Nvrtc`.
    let found = unsafe { library.get::<F>(name.to_bytes_with_nul()) };
    found.map(|function| *function).map_err(|source| source.to_string())
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, String> {
    texts.map(|text| CString::new(text).map_err(|_| "a NUL byte inside a source".to_owned())).collect()
}

/// Every place the library may be, in order. Python is asked only when nothing before it is there.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let told = std::env::var_os(NVRTC_VARIABLE).map(PathBuf::from);
    let told = told.into_iter().flat_map(|path| if path.is_dir() { in_folder(&path) } else { vec![path] });
    let system = LIBRARY_NAMES.iter().map(PathBuf::from);
    let toolkit = in_folder(Path::new("/usr/local/cuda/lib64")).into_iter();
    told.chain(system).chain(toolkit).chain(std::iter::once_with(python_folders).flatten())
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    LIBRARY_NAMES.iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect()
}

fn python_folders() -> Vec<PathBuf> {
    let Ok(output) = Command::new("python3").args(["-c", PYTHON_FOLDERS]).output() else { return vec![] };
    String::from_utf8_lossy(&output.stdout).lines().flat_map(|folder| in_folder(Path::new(folder))).collect()
}
