//! What can be missing.

use core::fmt;

/// Why CUDA cannot compute.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a box would cost `Copy` and an allocation on the error path"
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
    /// The driver is there, and this version of the crate has nothing to run on it.
    NoKernels {
        /// The device asked for.
        ordinal: usize,
        /// What to do.
        next: &'static str,
    },
    /// Wrong arguments, as on every backend.
    Core(attn_core::Error),
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver { looked_for, next } => {
                write!(
                    f,
                    "the CUDA driver is not on this machine; looked for `{looked_for}`. {next}"
                )
            }
            Self::NoKernels { ordinal, next } => {
                write!(
                    f,
                    "this version has no CUDA kernels to run on device {ordinal}. {next}"
                )
            }
            Self::Core(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for CudaError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            // `Core` prints its inner error as its own, so it names that error's source, not the error again.
            Self::Core(error) => error.source(),
            Self::NoDriver { .. } | Self::NoKernels { .. } => None,
        }
    }
}

impl From<attn_core::Error> for CudaError {
    fn from(error: attn_core::Error) -> Self {
        Self::Core(error)
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
        let no_kernels = CudaError::NoKernels {
            ordinal: 3,
            next: "Use the CPU.",
        };
        assert_eq!(
            no_kernels.to_string(),
            "this version has no CUDA kernels to run on device 3. Use the CPU."
        );
    }

    #[test]
    fn core_errors_keep_their_words() {
        let inner = attn_core::Error::NoHeads;
        assert_eq!(CudaError::from(inner).to_string(), inner.to_string());
    }
}
