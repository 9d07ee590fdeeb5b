//! A file's bytes, read whole or mapped into memory.

use super::error::{Error, Problem, Result};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use std::path::Path;

/// The bytes of a file, for [`Tree::read`](super::Tree::read). Dereferences to them.
///
/// ```no_run
/// use attn_layers::io::{File, Tree};
/// let file = File::open("model.msgpack")?;
/// let tree = Tree::read(&file)?;
/// # Ok::<(), attn_layers::io::Error>(())
/// ```
pub struct File(Bytes);

enum Bytes {
    Whole(Vec<u8>),
    #[cfg(feature = "mmap")]
    Mapped(memmap2::Mmap),
}

impl File {
    /// Reads the whole file into memory.
    ///
    /// # Errors
    ///
    /// [`Problem::System`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        std::fs::read(path)
            .map(|bytes| Self(Bytes::Whole(bytes)))
            .map_err(system)
    }

    /// Maps the file into memory: only the pages that are looked at are read, and processes share them.
    ///
    /// # Safety
    ///
    /// No process may change or shorten the file while this value lives: its bytes are borrowed as constant, and a read of
    /// a page that is gone ends the process. Where that cannot be promised, [`File::open`] reads a copy.
    ///
    /// # Errors
    ///
    /// [`Problem::System`].
    #[cfg(feature = "mmap")]
    #[expect(
        unsafe_code,
        reason = "only the caller knows that nobody changes the file"
    )]
    pub unsafe fn map(path: impl AsRef<Path>) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(system)?;
        // SAFETY: the caller promises that the file stays as it is.
        let map = unsafe { memmap2::Mmap::map(&file) };
        map.map(|map| Self(Bytes::Mapped(map))).map_err(system)
    }
}

fn system(error: std::io::Error) -> Error {
    Error::new(0, Problem::System(error.kind()))
}

impl Deref for File {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Whole(bytes) => bytes,
            #[cfg(feature = "mmap")]
            Bytes::Mapped(map) => map,
        }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File of {} bytes", self.len())
    }
}
