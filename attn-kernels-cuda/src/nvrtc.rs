//! NVIDIA's run-time compiler, through `cudarc`: what compiles this crate's kernels, here and where no machine code of them comes
//! with the crate.

use crate::driver::DriverError;
use crate::error::CudaError;
use core::ffi::{CStr, c_char};
use core::ptr;
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// Sources: one to compile, and the files that it may include.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its file name.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// Names and texts of headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What the compiler made.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// PTX text.
    pub ptx: String,
    /// Machine code.
    pub cubin: Vec<u8>,
    /// What the compiler and the assembler said: registers, shared memory, spills.
    pub log: String,
}

/// The compiler's version, as `(13, 0)`.
///
/// # Errors
///
/// [`CudaError::NoDriver`] if its library is not on this machine.
pub fn version() -> Result<(i32, i32), CudaError> {
    is_there()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the function writes two numbers.
    #[expect(unsafe_code, reason = "a function of C")]
    let asked = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    asked
        .result()
        .map_err(|error| refused(&error, String::new()))?;
    Ok((major, minor))
}

/// Compiles for an architecture: `sm_80`, or `compute_80` for PTX alone.
///
/// # Errors
///
/// [`CudaError::NoDriver`] if the library is not on this machine; [`CudaError::Driver`] with the compiler's words.
pub fn compile(
    source: &Source<'_>,
    architecture: &str,
    with_lines: bool,
) -> Result<Compiled, CudaError> {
    is_there()?;
    let program = Program::new(source)?;
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        "-default-device".to_owned(),
        "--ptxas-options=-v".to_owned(),
    ];
    if with_lines {
        options.push("-lineinfo".to_owned());
    }
    // SAFETY: the program is alive.
    #[expect(unsafe_code, reason = "a function of C")]
    let compiled = unsafe { result::compile_program(program.0, &options) };
    let log = program.log();
    compiled.map_err(|error| refused(&error, log.clone()))?;
    let ptx = program.bytes(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)?;
    let ptx = String::from_utf8_lossy(&ptx);
    Ok(Compiled {
        ptx: ptx.trim_end_matches('\0').to_owned(),
        cubin: program.bytes(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN)?,
        log,
    })
}

fn is_there() -> Result<(), CudaError> {
    // SAFETY: opens the compiler's library, whose initialisers are those of any program that uses it, and closes it.
    #[expect(unsafe_code, reason = "loading a library runs its code")]
    let is_there = unsafe { sys::is_culib_present() };
    match is_there {
        true => Ok(()),
        false => Err(CudaError::NoDriver {
            looked_for: "libnvrtc.so",
            next: "Install NVIDIA's run-time compiler (the package nvidia-cuda-nvrtc), or add its folder to the loader's search path",
        }),
    }
}

fn refused(error: &result::NvrtcError, log: String) -> CudaError {
    CudaError::Driver(DriverError {
        operation: "compiling kernels",
        code: error.0 as i32,
        message: log,
    })
}

/// A program of the compiler's, destroyed at the end.
struct Program(sys::nvrtcProgram);

type SizeOf = unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult;
type BytesOf = unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult;

impl Program {
    fn new(source: &Source<'_>) -> Result<Self, CudaError> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| {
                CudaError::Driver(DriverError {
                    operation: "compiling kernels",
                    code: sys::nvrtcResult::NVRTC_ERROR_INVALID_INPUT as i32,
                    message: "a source with a zero byte".to_owned(),
                })
            })
        };
        let (name, code) = (text(source.name)?, text(source.text)?);
        let headers = source.headers.iter();
        let names: Vec<CString> = headers
            .clone()
            .map(|(name, _)| text(name))
            .collect::<Result<_, _>>()?;
        let texts: Vec<CString> = headers
            .map(|(_, code)| text(code))
            .collect::<Result<_, _>>()?;
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).collect()
        };
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut program = ptr::null_mut();
        // SAFETY: every pointer is to a string that outlives the call, which copies them; the counts are those of the arrays.
        #[expect(unsafe_code, reason = "a function of C")]
        let made = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                code.as_ptr(),
                name.as_ptr(),
                names.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        made.result()
            .map_err(|error| refused(&error, String::new()))?;
        Ok(Self(program))
    }

    fn log(&self) -> String {
        // SAFETY: the program is alive.
        #[expect(unsafe_code, reason = "a function of C")]
        let log = unsafe { result::get_program_log(self.0) };
        let log: Vec<u8> = log
            .unwrap_or_default()
            .into_iter()
            .map(|c| c as u8)
            .collect();
        let text = CStr::from_bytes_until_nul(&log);
        text.map_or_else(|_| String::new(), |log| log.to_string_lossy().into_owned())
    }

    fn bytes(&self, size: SizeOf, fill: BytesOf) -> Result<Vec<u8>, CudaError> {
        let mut length = 0;
        // SAFETY: the program is alive, and the function writes one number.
        #[expect(unsafe_code, reason = "a function of C")]
        let asked = unsafe { size(self.0, &raw mut length) };
        asked
            .result()
            .map_err(|error| refused(&error, String::new()))?;
        if length == 0 {
            // There is no machine code for an architecture such as compute_80.
            return Ok(Vec::new());
        }
        let mut bytes = vec![0u8; length];
        // SAFETY: the function writes as many bytes as the one before said.
        #[expect(unsafe_code, reason = "a function of C")]
        let filled = unsafe { fill(self.0, bytes.as_mut_ptr().cast()) };
        filled
            .result()
            .map_err(|error| refused(&error, String::new()))?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is destroyed once. There is nobody to tell of a failure.
        #[expect(unsafe_code, reason = "a function of C")]
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}
