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
    AttendHopper,
    AttendBackwardHopper,
    Decode,
    Dense,
    Norm,
}

impl Module {
    pub(crate) const ALL: [Self; 9] = [
        Self::Attend,
        Self::AttendBackward,
        Self::AttendMma,
        Self::AttendBackwardMma,
        Self::AttendHopper,
        Self::AttendBackwardHopper,
        Self::Decode,
        Self::Dense,
        Self::Norm,
    ];

    /// The name of its source, without the ending.
    #[cfg(feature = "driver")]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Attend => "attend",
            Self::AttendBackward => "attend_backward",
            Self::AttendMma => "attend_mma",
            Self::AttendBackwardMma => "attend_backward_mma",
            Self::AttendHopper => "attend_hopper",
            Self::AttendBackwardHopper => "attend_backward_hopper",
            Self::Decode => "decode",
            Self::Dense => "dense",
            Self::Norm => "norm",
        }
    }

    /// Whether it uses the instructions of one architecture, as sm_90a.
    #[cfg(any(feature = "driver", test))]
    pub(crate) const fn is_exact(self) -> bool {
        matches!(self, Self::AttendHopper | Self::AttendBackwardHopper)
    }
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

/// A generated file, if the crate was built with the feature that it belongs to.
macro_rules! generated {
    ($feature:literal, $file:expr) => {
        if cfg!(feature = $feature) {
            Some(include_bytes!(concat!("../generated/", $file)) as &[u8])
        } else {
            None
        }
    };
}

/// Code that any device from sm_80 on can run, and that of sm_90 compiled for it.
macro_rules! from_80 {
    ($module:literal) => {
        const {
            &[
                Code {
                    capability: 80,
                    exact: false,
                    cubin: generated!("sm80", concat!($module, ".80.cubin.z")),
                    ptx: generated!("ptx", concat!($module, ".80.ptx.z")),
                },
                Code {
                    capability: 90,
                    exact: false,
                    cubin: generated!("sm90", concat!($module, ".90.cubin.z")),
                    ptx: None,
                },
            ]
        }
    };
}

/// Code for sm_90a alone.
macro_rules! for_90a {
    ($module:literal) => {
        const {
            &[Code {
                capability: 90,
                exact: true,
                cubin: generated!("sm90", concat!($module, ".90a.cubin.z")),
                ptx: generated!("ptx", concat!($module, ".90a.ptx.z")),
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
        Module::AttendHopper => for_90a!("attend_hopper"),
        Module::AttendBackwardHopper => for_90a!("attend_backward_hopper"),
        Module::Decode => from_80!("decode"),
        Module::Dense => from_80!("dense"),
        Module::Norm => from_80!("norm"),
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
        next: "Compute capability 8.0 and later is supported, each by a feature of the crate; use the CPU backend",
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
    if let Some(ptx) = text.and_then(|code| code.ptx) {
        let text = String::from_utf8(unpack(ptx, missing.clone())?);
        return text.map(Loaded::Ptx).map_err(|_| missing);
    }
    compiled(module, device, missing)
}

/// Code made on this machine, for devices that take machine code.
#[cfg(feature = "driver")]
fn compiled(module: Module, device: &DeviceInfo, missing: CudaError) -> Result<Loaded, CudaError> {
    match device.wants_ptx || device.capability < (8, 0) {
        true => Err(missing),
        false => crate::sources::compiled(module, device).map(Loaded::Cubin),
    }
}

#[cfg(not(feature = "driver"))]
fn compiled(
    _module: Module,
    _device: &DeviceInfo,
    missing: CudaError,
) -> Result<Loaded, CudaError> {
    Err(missing)
}

fn unpack(packed: &[u8], broken: CudaError) -> Result<Vec<u8>, CudaError> {
    miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, LIMIT).map_err(|_| broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(major: u32, minor: u32, wants_ptx: bool) -> DeviceInfo {
        DeviceInfo {
            name: "a device".to_owned(),
            capability: (major, minor),
            multiprocessors: 1,
            shared_per_block: 1 << 16,
            driver_version: 13000,
            wants_ptx,
        }
    }

    #[test]
    #[cfg(all(feature = "ptx", feature = "sm80", feature = "sm90"))]
    fn devices_get_code_that_they_run() {
        for module in Module::ALL.into_iter().filter(|module| !module.is_exact()) {
            for (major, minor) in [(8, 0), (8, 7), (8, 9), (9, 0)] {
                let loaded = for_device(module, &device(major, minor, false)).unwrap();
                assert!(
                    matches!(loaded, Loaded::Cubin(code) if code.starts_with(b"\x7fELF")),
                    "{module:?} {major}.{minor}"
                );
            }
            // A newer device compiles PTX, and so does what executes it.
            for device in [
                device(10, 0, false),
                device(12, 0, false),
                device(8, 0, true),
            ] {
                let loaded = for_device(module, &device).unwrap();
                assert!(
                    matches!(loaded, Loaded::Ptx(text) if text.contains(".target sm_80")),
                    "{module:?} {:?}",
                    device.capability
                );
            }
        }
    }

    #[test]
    #[cfg(all(feature = "ptx", feature = "sm90"))]
    fn code_for_one_architecture_runs_on_no_other() {
        let module = Module::AttendHopper;
        assert!(for_device(module, &device(9, 0, false)).is_ok());
        assert!(matches!(
            for_device(module, &device(10, 0, true)),
            Err(CudaError::NoCode {
                capability: (10, 0),
                ..
            })
        ));
    }

    #[test]
    fn old_devices_are_refused_by_their_number() {
        let error = for_device(Module::Norm, &device(7, 5, false))
            .err()
            .unwrap();
        assert!(error.to_string().contains("7.5"), "{error}");
    }

    #[test]
    fn all_modules_together_are_small_enough_to_carry() {
        let bytes: usize = Module::ALL
            .into_iter()
            .flat_map(codes)
            .flat_map(|code| [code.cubin, code.ptx])
            .flatten()
            .map(<[u8]>::len)
            .sum();
        assert!(bytes < 8 << 20, "{bytes} bytes");
    }
}
