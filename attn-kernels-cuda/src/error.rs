//! What can go wrong, beside wrong arguments.

use crate::driver::DriverError;
use core::fmt;

/// Why CUDA cannot compute.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a box would cost an allocation on the path of wrong arguments"
)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not on this machine.
    NoDriver {
        /// The library's file name.
        looked_for: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// The driver knows no device of this number.
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver is too old for this crate's code.
    OldDriver {
        /// The CUDA version of the driver, as 12040.
        got: u32,
        /// The CUDA version needed.
        wanted: u32,
    },
    /// No code of this crate runs on the device.
    NoCode {
        /// The device's compute capability.
        capability: (u32, u32),
        /// What to do.
        next: &'static str,
    },
    /// A size beyond what a launch can name.
    Grid {
        /// Blocks asked for.
        got: u64,
        /// Blocks that a launch can have.
        limit: u64,
    },
    /// The device has no memory for that much.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The driver refused.
    Driver(DriverError),
    /// Wrong arguments, as on every backend.
    Core(attn_core::Error),
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver { looked_for, next } => write!(
                f,
                "the CUDA driver is not on this machine; looked for `{looked_for}`. {next}"
            ),
            Self::NoDevice { ordinal, count } => write!(
                f,
                "there is no CUDA device {ordinal}: the driver knows {count}. Ask for a smaller number, or use the CPU backend"
            ),
            Self::OldDriver { got, wanted } => write!(
                f,
                "the driver speaks CUDA {}, version {} is needed. Install a newer driver",
                Version(*got),
                Version(*wanted)
            ),
            Self::NoCode { capability, next } => write!(
                f,
                "no code of this crate runs on compute capability {}.{}. {next}",
                capability.0, capability.1
            ),
            Self::Grid { got, limit } => write!(
                f,
                "the call needs {got} blocks, a launch has at most {limit}. Cut the batch into several calls"
            ),
            Self::OutOfMemory { bytes } => write!(
                f,
                "the device has no {bytes} bytes of memory left. Free other buffers, or compute in smaller parts"
            ),
            Self::Driver(error) => error.fmt(f),
            Self::Core(error) => error.fmt(f),
        }
    }
}

/// A CUDA version as the driver counts it: 13000 is 13.0.
struct Version(u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

impl core::error::Error for CudaError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            // `Core` and `Driver` print their inner error as their own, so they name that error's source, not the error again.
            Self::Core(error) => error.source(),
            Self::Driver(error) => error.source(),
            _ => None,
        }
    }
}

impl From<attn_core::Error> for CudaError {
    fn from(error: attn_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<DriverError> for CudaError {
    fn from(error: DriverError) -> Self {
        Self::Driver(error)
    }
}

impl From<CudaError> for attn_core::Error {
    /// Wrong arguments stay what they are; of everything else the operation and the driver's number are kept.
    fn from(error: CudaError) -> Self {
        let device = |operation, code, next| Self::Device {
            backend: crate::NAME,
            operation,
            code,
            next,
        };
        match error {
            CudaError::Core(error) => error,
            CudaError::Driver(error) => device(
                error.operation,
                error.code,
                "`Cuda::last_error` has the driver's words",
            ),
            CudaError::OutOfMemory { .. } => device(
                "allocation",
                DriverError::OUT_OF_MEMORY,
                "Free other buffers, or compute in smaller parts",
            ),
            CudaError::Grid { .. } => device("launch", 1, "Cut the batch into several calls"),
            CudaError::NoCode { .. } => device("loading code", 209, "Use the CPU backend"),
            CudaError::NoDriver { .. }
            | CudaError::NoDevice { .. }
            | CudaError::OldDriver { .. } => device("opening a device", 100, "Use the CPU backend"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_what_was_sought_and_what_to_do() {
        let no_driver = CudaError::NoDriver {
            looked_for: "libcuda.so.1",
            next: "Install it.",
        };
        assert_eq!(
            no_driver.to_string(),
            "the CUDA driver is not on this machine; looked for `libcuda.so.1`. Install it."
        );
        let old = CudaError::OldDriver {
            got: 12040,
            wanted: 13000,
        };
        assert_eq!(
            old.to_string(),
            "the driver speaks CUDA 12.4, version 13.0 is needed. Install a newer driver"
        );
    }

    #[test]
    fn core_errors_keep_their_words() {
        let inner = attn_core::Error::NoHeads;
        assert_eq!(CudaError::from(inner).to_string(), inner.to_string());
        assert_eq!(attn_core::Error::from(CudaError::Core(inner)), inner);
    }
}
