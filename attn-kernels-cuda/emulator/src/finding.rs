//! What the emulator finds wrong with a kernel.

use core::fmt;

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// An address beyond what is allocated.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// An address in no allocation.
    Wild,
    /// An address in an allocation that was given back.
    UseAfterFree,
    /// Bytes that nothing wrote.
    Unwritten,
    /// A register that nothing wrote, where its value matters.
    Undefined,
    /// Two accesses to shared memory that nothing orders.
    SharedRace,
    /// Two accesses to global memory by different blocks that nothing orders.
    GlobalRace,
    /// Bytes that an asynchronous copy or product still uses.
    InFlight,
    /// A barrier or collective that not all its threads reach.
    Divergence,
    /// Threads that wait for what never comes.
    Deadlock,
    /// A barrier object in a state that it must not have.
    Barrier,
    /// Ordinary writes that the copy engine or the tensor cores may not see yet.
    Proxy,
    /// `trap`.
    Trap,
    /// A launch that the kernel or the device does not allow.
    Launch,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfBounds => "access out of bounds",
            Self::Misaligned => "misaligned access",
            Self::Wild => "wild address",
            Self::UseAfterFree => "use after free",
            Self::Unwritten => "read of bytes that nothing wrote",
            Self::Undefined => "use of a register that nothing wrote",
            Self::SharedRace => "race in shared memory",
            Self::GlobalRace => "race between blocks",
            Self::InFlight => "access to bytes in flight",
            Self::Divergence => "part of the threads",
            Self::Deadlock => "deadlock",
            Self::Barrier => "misuse of a barrier",
            Self::Proxy => "missing proxy fence",
            Self::Trap => "trap",
            Self::Launch => "launch",
        })
    }
}

/// Something wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// What exactly.
    pub message: String,
    /// The kernel.
    pub kernel: String,
    /// The block.
    pub block: [u32; 3],
    /// The thread in its block, if it is one.
    pub thread: Option<u32>,
    /// Opcode, PTX line and source lines.
    pub place: String,
    /// The line of PTX.
    pub text: String,
    /// Where the access is that it conflicts with.
    pub other: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        let [x, y, z] = self.block;
        write!(f, "\n  in `{}`, block ({x}, {y}, {z})", self.kernel)?;
        if let Some(thread) = self.thread {
            write!(
                f,
                ", thread {thread} (warp {}, lane {})",
                thread / 32,
                thread % 32
            )?;
        }
        if !self.place.is_empty() {
            write!(f, "\n  by {}", self.place)?;
        }
        if !self.text.is_empty() {
            write!(f, "\n  {}", self.text)?;
        }
        if let Some(other) = &self.other {
            write!(f, "\n  in conflict with {other}")?;
        }
        Ok(())
    }
}

/// A finding before it is known where it was made.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: FindingKind,
    pub(crate) message: String,
    pub(crate) lane: Option<usize>,
    /// The instruction that it conflicts with.
    pub(crate) other: Option<u32>,
}

impl Fault {
    pub(crate) fn new(kind: FindingKind, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            kind,
            message: message.into(),
            lane: None,
            other: None,
        })
    }

    /// The same, made by `lane`.
    pub(crate) fn by(mut self: Box<Self>, lane: usize) -> Box<Self> {
        self.lane = Some(lane);
        self
    }
}

/// What can fail with a fault.
pub(crate) type Checked<T> = Result<T, Box<Fault>>;
