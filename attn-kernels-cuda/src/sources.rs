//! The kernels' sources, for devices that no code in the crate runs on: compiled at first use, and kept on disk.

use crate::driver::DeviceInfo;
use crate::error::CudaError;
use crate::images::Module;
use crate::nvrtc::{self, Source};
use std::path::{Path, PathBuf};

macro_rules! texts {
    ($($name:literal),+ $(,)?) => {
        &[$(($name, include_str!(concat!("../kernels/", $name)))),+]
    };
}

const HEADERS: &[(&str, &str)] = texts![
    "attend_backward_hopper.cuh",
    "attend_hopper.cuh",
    "copy.cuh",
    "dropout.cuh",
    "exponent.cuh",
    "gemm.cuh",
    "gemm_few.cuh",
    "gemm_mma.cuh",
    "gemm_simt.cuh",
    "hopper.cuh",
    "mma.cuh",
    "params.cuh",
    "scalar.cuh",
    "sight.cuh",
    "sum.cuh",
    "tile.cuh",
    "twofold.cuh",
    "visible.cuh",
];

const MODULES: &[(&str, &str)] = texts![
    "attend.cu",
    "attend_backward.cu",
    "attend_backward_hopper.cu",
    "attend_backward_mma.cu",
    "attend_hopper.cu",
    "attend_mma.cu",
    "decode.cu",
    "dense.cu",
    "norm.cu",
];

/// The variable that names another folder for compiled code; empty: none is kept.
const FOLDER: &str = "ATTN_CUDA_CACHE";

/// Machine code of a module for a device, from the disk or the compiler.
///
/// # Errors
///
/// [`CudaError::NoDriver`] if the compiler is not on this machine; [`CudaError::Driver`] with its words.
pub(crate) fn compiled(module: Module, device: &DeviceInfo) -> Result<Vec<u8>, CudaError> {
    let file = format!("{}.cu", module.name());
    let text = MODULES.iter().find(|(name, _)| *name == file);
    let source = Source {
        name: &file,
        text: text.map_or("", |(_, text)| text),
        headers: HEADERS,
    };
    let (major, minor) = device.capability;
    let exact = if module.is_exact() { "a" } else { "" };
    let architecture = format!("sm_{major}{minor}{exact}");
    let kept =
        folder().map(|folder| folder.join(format!("{}.{architecture}.cubin", module.name())));
    if let Some(code) = kept.as_deref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(code);
    }
    let code = nvrtc::compile(&source, &architecture, false)?.cubin;
    if let Some(path) = &kept {
        // Without a cache the next process compiles again, which is no failure.
        let _ = keep(path, &code);
    }
    Ok(code)
}

/// Where compiled code of these very sources is kept.
fn folder() -> Option<PathBuf> {
    let root = match std::env::var_os(FOLDER) {
        Some(folder) if folder.is_empty() => return None,
        Some(folder) => PathBuf::from(folder),
        None => std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?
            .join("attn-kernels-cuda"),
    };
    Some(root.join(format!("{:016x}", digest())))
}

/// FNV-1a over all texts: other sources have another folder.
fn digest() -> u64 {
    let bytes = HEADERS
        .iter()
        .chain(MODULES)
        .flat_map(|(name, text)| name.bytes().chain(text.bytes()));
    bytes.fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes a file that no other process sees half written.
fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&part, code)?;
    std::fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_listed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        found.sort();
        let mut listed: Vec<&str> = HEADERS
            .iter()
            .chain(MODULES)
            .map(|(name, _)| *name)
            .collect();
        listed.sort_unstable();
        assert_eq!(found, listed);
    }

    #[test]
    fn every_module_has_a_source() {
        for module in Module::ALL {
            let file = format!("{}.cu", module.name());
            assert!(MODULES.iter().any(|(name, _)| *name == file), "{file}");
        }
    }
}
