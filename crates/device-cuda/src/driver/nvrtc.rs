//! NVIDIA's run-time compiler, loaded from where it is found: beside the system's libraries, in a toolkit, or in the Python package
//! `nvidia-cuda-nvrtc`. It needs no GPU. Seven functions of it are used; their signatures are from its manual.

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

use libloading::Library;

use crate::error::CudaError;

/// An environment variable that names the library.
const VARIABLE: &str = "BITNET_NVRTC";

type Program = *mut std::ffi::c_void;
type Status = c_int;

/// The loaded compiler.
pub(crate) struct Compiler {
    library: Library,
}

impl Compiler {
    /// Loads the compiler from `named`, or from the first place that has it.
    pub(crate) fn find(named: Option<&Path>) -> Result<Self, CudaError> {
        let places = match named.map(Path::to_path_buf).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from)) {
            Some(named) => vec![named],
            None => places(),
        };
        for place in &places {
            load_builtins(place);
            // SAFETY: loading NVIDIA's compiler runs its initialisers, which it is made for.
            if let Ok(library) = unsafe { Library::new(place) } {
                return Ok(Self { library });
            }
        }
        Err(CudaError::NoCompiler { variable: VARIABLE, n_places: places.len() })
    }

    /// Version, major and minor.
    pub(crate) fn version(&self) -> Result<(u32, u32), CudaError> {
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        let version = self.function::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>(b"nvrtcVersion\0")?;
        // SAFETY: both pointers are live integers.
        check("nvrtcVersion", unsafe { version(&raw mut major, &raw mut minor) })?;
        Ok((major as u32, minor as u32))
    }

    /// Compiles `source` to machine code for `architecture`, such as `sm_90`.
    pub(crate) fn compile(&self, name: &str, source: &str, architecture: &str) -> Result<Vec<u8>, CudaError> {
        let text =
            |text: &str| CString::new(text).map_err(|_| CudaError::Compile { name: name.into(), log: "a zero byte in the source".into() });
        let (source, file) = (text(source)?, text(name)?);
        let create = self.function::<unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status>(b"nvrtcCreateProgram\0")?;
        let mut program = null_mut();
        let (no_headers, no_names) = (std::ptr::null(), std::ptr::null());
        // SAFETY: the texts end with zero, live over the call and are copied; no headers are given.
        check("nvrtcCreateProgram", unsafe { create(&raw mut program, source.as_ptr(), file.as_ptr(), 0, no_headers, no_names) })?;
        let code = self.compile_program(program, name, architecture);
        let destroy = self.function::<unsafe extern "C" fn(*mut Program) -> Status>(b"nvrtcDestroyProgram\0")?;
        // SAFETY: created above, destroyed once.
        check("nvrtcDestroyProgram", unsafe { destroy(&raw mut program) })?;
        code
    }

    fn compile_program(&self, program: Program, name: &str, architecture: &str) -> Result<Vec<u8>, CudaError> {
        // No fused multiply-add where the source does not say so: decision 0006.
        let options = [format!("--gpu-architecture={architecture}"), "-fmad=false".into(), "-std=c++17".into()];
        let options = options.map(|option| CString::new(option).expect("options have no zero byte"));
        let pointers = options.each_ref().map(|option| option.as_ptr());
        let compile = self.function::<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status>(b"nvrtcCompileProgram\0")?;
        // SAFETY: the program lives; the options end with zero and live over the call.
        if unsafe { compile(program, pointers.len() as c_int, pointers.as_ptr()) } != 0 {
            let log = self.bytes(program, (b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0"))?;
            let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_string();
            return Err(CudaError::Compile { name: name.into(), log });
        }
        self.bytes(program, (b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0"))
    }

    /// What a pair of functions gives: how many bytes, then the bytes.
    fn bytes(&self, program: Program, (size_name, bytes_name): (&[u8], &[u8])) -> Result<Vec<u8>, CudaError> {
        let size = self.function::<unsafe extern "C" fn(Program, *mut usize) -> Status>(size_name)?;
        let get = self.function::<unsafe extern "C" fn(Program, *mut c_char) -> Status>(bytes_name)?;
        let mut n_bytes = 0;
        // SAFETY: the program lives, the pointer is a live integer.
        check("nvrtc size", unsafe { size(program, &raw mut n_bytes) })?;
        let mut bytes = vec![0u8; n_bytes];
        // SAFETY: the buffer is as long as the compiler just said.
        check("nvrtc bytes", unsafe { get(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn function<F: Copy>(&self, name: &[u8]) -> Result<F, CudaError> {
        // SAFETY: each caller names the signature of the compiler's manual; the library lives as long as self, and so does the call.
        let symbol = unsafe { self.library.get::<F>(name) };
        symbol.map(|symbol| *symbol).map_err(|error| CudaError::Driver { call: "nvrtc", reason: error.to_string() })
    }
}

fn check(call: &'static str, status: Status) -> Result<(), CudaError> {
    if status == 0 { Ok(()) } else { Err(CudaError::Driver { call, reason: format!("status {status}") }) }
}

/// The compiler opens its second library by name; loaded first by path, it is found also where the system does not look.
fn load_builtins(compiler: &Path) {
    let Some(folder) = compiler.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return };
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let is_builtins = |name: &str| name.starts_with("libnvrtc-builtins.so") || name.starts_with("nvrtc-builtins64_");
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_builtins)) {
        // SAFETY: loading NVIDIA's library runs its initialisers, which it is made for.
        if let Ok(library) = unsafe { Library::new(entry.path()) } {
            // It must stay for the compiler, which may outlive everything here.
            std::mem::forget(library);
        }
    }
}

/// Where the compiler may be, the newest first.
fn places() -> Vec<PathBuf> {
    let names: &[&str] =
        if cfg!(windows) { &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"] } else { &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"] };
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let toolkits = toolkits.chain([PathBuf::from("/usr/local/cuda")]).flat_map(|root| [root.join("lib64"), root.join("bin")]);
    let python = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter().flat_map(|root| python_folders(&root.join("lib")));
    let folders: Vec<PathBuf> = std::iter::once(PathBuf::new()).chain(toolkits).chain(python).collect();
    folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name))).collect()
}

/// Where NVIDIA's packages lie in a Python environment's `lib`.
fn python_folders(lib: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let site = versions.map(|version| version.path().join("site-packages/nvidia"));
    site.flat_map(|nvidia| [nvidia.join("cu13/lib"), nvidia.join("cuda_nvrtc/lib")]).collect()
}
