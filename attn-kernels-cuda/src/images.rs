//! The code that comes with the crate: for each module of kernels its PTX and its machine code, compressed.

use crate::driver::DeviceInfo;
use crate::error::CudaError;

/// A source file of kernels, and what is compiled from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(usize)]
pub(crate) enum Module {
    Attend,
    AttendBackward,
    AttendMma,
    AttendBackwardMma,
    AttendBackwardHopper,
    AttendHopper,
    Decode,
    Dense,
    Norm,
}

impl Module {
    pub(crate) const COUNT: usize = 9;
}

/// Code for an architecture.
struct Code {
    /// `80` for sm_80, `90` for sm_90 and sm_90a.
    capability: u32,
    /// Whether it runs on this capability alone, as sm_90a does.
    exact: bool,
    /// Machine code, that any device of the same major number and at least this minor number runs.
    cubin: Option<&'static [u8]>,
    /// PTX, that a driver can compile for any device of at least this capability.
    ptx: Option<&'static [u8]>,
}

macro_rules! generated {
    ($file:expr) => {
        Some(include_bytes!(concat!("../generated/", $file)) as &[u8])
    };
}

/// Code that any device from sm_80 on can run.
macro_rules! from_80 {
    ($module:literal) => {
        const {
            &[Code {
                capability: 80,
                exact: false,
                cubin: None,
                ptx: generated!(concat!($module, ".80.ptx.z")),
            }]
        }
    };
}

/// Code for sm_90a alone.
macro_rules! from_90a {
    ($module:literal) => {
        const {
            &[Code {
                capability: 90,
                exact: true,
                cubin: None,
                ptx: generated!(concat!($module, ".90a.ptx.z")),
            }]
        }
    };
}

const fn codes(module: Module) -> &'static [Code] {
    match module {
        Module::Attend => from_80!("attend"),
        Module::AttendBackward => from_80!("attend_backward"),
        Module::AttendMma => from_80!("attend_mma"),
        Module::AttendBackwardMma => from_80!("attend_backward_mma"),
        Module::Decode => from_80!("decode"),
        Module::Dense => from_80!("dense"),
        Module::Norm => from_80!("norm"),
        Module::AttendHopper => from_90a!("attend_hopper"),
        Module::AttendBackwardHopper => from_90a!("attend_backward_hopper"),
    }
}

/// What a device loads.
pub(crate) enum Loaded {
    Ptx(String),
    Cubin(Vec<u8>),
}

/// The most PTX or machine code that one module may unpack to.
const LIMIT: usize = 64 << 20;

/// The code of a module for a device.
pub(crate) fn for_device(module: Module, device: &DeviceInfo) -> Result<Loaded, CudaError> {
    let (major, minor) = device.capability;
    let capability = major * 10 + minor;
    let runs = |code: &&Code| match code.exact {
        true => code.capability == capability,
        false => code.capability <= capability,
    };
    let missing = CudaError::NoCode {
        capability: device.capability,
        next: "Compute capability 8.0 and later is supported; use the CPU backend",
    };
    let codes = codes(module);
    let newest =
        |codes: &mut dyn Iterator<Item = &'static Code>| codes.max_by_key(|code| code.capability);
    let machine =
        newest(&mut codes.iter().filter(runs).filter(|code| {
            code.cubin.is_some() && code.capability / 10 == major && !device.wants_ptx
        }));
    if let Some(cubin) = machine.and_then(|code| code.cubin) {
        return Ok(Loaded::Cubin(unpack(cubin, missing)?));
    }
    let text = newest(&mut codes.iter().filter(runs).filter(|code| code.ptx.is_some()));
    match text.and_then(|code| code.ptx) {
        Some(ptx) => {
            let text = unpack(ptx, missing.clone())?;
            String::from_utf8(text)
                .map(Loaded::Ptx)
                .map_err(|_| missing)
        }
        None => Err(missing),
    }
}

fn unpack(packed: &[u8], broken: CudaError) -> Result<Vec<u8>, CudaError> {
    miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, LIMIT).map_err(|_| broken)
}
