//! What is wrong with a file, and where.

use core::fmt;

/// The result of reading or writing a file.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// It ends before what it promises.
    Truncated {
        /// Bytes that are left.
        got: usize,
        /// Bytes that are needed.
        wanted: u64,
    },
    /// Bytes after its end.
    Trailing {
        /// How many.
        count: usize,
    },
    /// Neither format.
    UnknownFormat,
    /// A byte that cannot stand here.
    Unexpected {
        /// What was wanted.
        wanted: &'static str,
    },
    /// Nested more deeply than any model.
    TooDeep {
        /// The deepest allowed.
        limit: usize,
    },
    /// Two entries of one name.
    Duplicate,
    /// A name that is not UTF-8, one with an escape, or one that the format keeps for itself.
    Name,
    /// An element type that attention does not know.
    DType,
    /// A shape with more than 16 axes, or whose size does not fit the machine.
    Shape,
    /// An array whose bytes do not fit its shape.
    Length {
        /// Bytes it has.
        got: usize,
        /// Bytes its shape needs.
        wanted: usize,
    },
    /// Arrays that overlap or leave a gap.
    Overlap,
    /// A chunked array whose parts do not fit.
    Chunks,
    /// There is no entry of that path.
    NoEntry,
    /// Several entries end in that path.
    Ambiguous {
        /// How many.
        count: usize,
    },
    /// No memory for it.
    Memory,
    /// The system did not give the file.
    #[cfg(feature = "std")]
    System(std::io::ErrorKind),
}

/// A file that cannot be read, and the byte where that shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// Byte in the file, 0 where it concerns the file as a whole.
    pub offset: usize,
    /// What is wrong.
    pub problem: Problem,
}

impl Error {
    pub(crate) const fn new(offset: usize, problem: Problem) -> Self {
        Self { offset, problem }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.offset;
        match self.problem {
            Problem::Truncated { got, wanted } => {
                write!(f, "at byte {offset}: {wanted} bytes are needed and {got} are left. Was the file copied whole?")
            }
            Problem::Trailing { count } => {
                write!(f, "at byte {offset}: {count} bytes follow the end. Is this one file or several?")
            }
            Problem::UnknownFormat => {
                f.write_str("this is neither Flax msgpack nor safetensors. Save it by flax.serialization.to_bytes or safetensors")
            }
            Problem::Unexpected { wanted } => write!(f, "at byte {offset}: {wanted} is wanted here. The file is damaged"),
            Problem::TooDeep { limit } => {
                write!(f, "at byte {offset}: nested more than {limit} deep. No model is; the file is damaged")
            }
            Problem::Duplicate => write!(f, "at byte {offset}: a name stands twice. Which one is meant cannot be known; save it anew"),
            Problem::Name => write!(f, "at byte {offset}: a name is not plain UTF-8 text, or is reserved. Rename it and save anew"),
            Problem::DType => write!(f, "at byte {offset}: an element type that is not supported. Cast it before saving"),
            Problem::Shape => write!(f, "at byte {offset}: a shape with over 16 axes or too large for this machine"),
            Problem::Length { got, wanted } => {
                write!(f, "at byte {offset}: an array has {got} bytes; its shape needs {wanted}. The file is damaged")
            }
            Problem::Overlap => write!(f, "at byte {offset}: arrays overlap or leave a gap. The file is damaged"),
            Problem::Chunks => write!(f, "at byte {offset}: the chunks of an array do not fit its shape. The file is damaged"),
            Problem::NoEntry => f.write_str("there is no entry of that path. List the file's tree to see what there is"),
            Problem::Ambiguous { count } => write!(f, "{count} entries end in that path. Give more of it"),
            Problem::Memory => write!(f, "at byte {offset}: there is no memory for this array"),
            #[cfg(feature = "std")]
            Problem::System(kind) => write!(f, "the file could not be read: {kind}. Check its path and rights"),
        }
    }
}

impl core::error::Error for Error {}
