//! Whether the driver's library is on this machine.
//!
//! Looks for the file where the system's loader would, and opens nothing: loading a library runs its code, which this
//! version has no use for. Departure from the loader: its cache (`/etc/ld.so.cache`) is not read, the folders that
//! drivers are installed to are listed instead.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// File name of the driver's library.
pub(crate) const LIBRARY: &str = if cfg!(windows) {
    "nvcuda.dll"
} else {
    "libcuda.so.1"
};

/// The variable that adds folders to the loader's.
const SEARCH_VARIABLE: &str = if cfg!(windows) {
    "PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// Where distributions, containers and WSL put the driver.
const FOLDERS: &[&str] = if cfg!(windows) {
    &[r"C:\Windows\System32"]
} else {
    &[
        "/lib/x86_64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu",
        "/lib/aarch64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
        "/usr/local/lib",
        "/usr/local/nvidia/lib64",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ]
};

/// Path of the driver's library, or `None`.
pub(crate) fn find() -> Option<PathBuf> {
    let added = std::env::var_os(SEARCH_VARIABLE).unwrap_or_default();
    let usual = FOLDERS.iter().map(PathBuf::from);
    find_in(folders_of(&added).chain(usual))
}

/// The folders of a search variable. An empty entry would mean the working directory to the loader; a driver is never
/// meant by that, so it is left out.
fn folders_of(variable: &OsStr) -> impl Iterator<Item = PathBuf> {
    std::env::split_paths(variable).filter(|folder| !folder.as_os_str().is_empty())
}

fn find_in(mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| library_in(&folder))
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(LIBRARY)).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for one test, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("attn-cuda-{}-{test}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_library_in_the_last_folder_is_found() {
        let (empty, full) = (Folder::new("empty"), Folder::new("full"));
        std::fs::write(full.0.join(LIBRARY), []).unwrap();
        let found = find_in([empty.0.clone(), full.0.clone()].into_iter());
        assert_eq!(found, Some(full.0.join(LIBRARY)));
    }

    #[test]
    fn a_folder_of_that_name_is_no_library() {
        let folder = Folder::new("directory");
        std::fs::create_dir(folder.0.join(LIBRARY)).unwrap();
        assert_eq!(find_in([folder.0.clone()].into_iter()), None);
    }

    #[test]
    fn empty_entries_of_the_variable_are_left_out() {
        let joined = std::env::join_paths(["", "/opt/driver", ""]).unwrap();
        let folders: Vec<_> = folders_of(&joined).collect();
        assert_eq!(folders, [PathBuf::from("/opt/driver")]);
    }
}
