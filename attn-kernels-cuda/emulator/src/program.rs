//! A kernel as it is executed: every name resolved to a row of a register file.
//!
//! A warp has three files: rows of 32-bit lanes (for every type up to 32 bits), rows of 64-bit lanes, and predicates, one bit a
//! lane. Constants and special registers are rows too, filled before the first instruction, so an operand is always a row.

use crate::{
    alu::Conversion,
    lanes::{L, Q},
};
use alloc::sync::Arc;

/// A row of the 32-bit file, of the 64-bit file, or a predicate.
pub(crate) type Row = u32;

/// The row that takes what is thrown away.
pub(crate) const SINK: Row = 0;
/// The predicate that is false.
pub(crate) const FALSE: Row = 0;
/// The predicate that takes what is thrown away.
pub(crate) const PRED_SINK: Row = 1;

/// A register of either file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reg {
    L(Row),
    Q(Row),
}

/// A predicate as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pred {
    pub(crate) row: Row,
    pub(crate) negated: bool,
}

/// How two predicates become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    pub(crate) fn apply(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

/// What a row holds before the first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Value(u64),
    Special(Special),
    /// Where dynamic shared memory starts.
    DynamicShared,
}

/// Special registers that do not change while a thread runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Lane,
    Warp,
    Warps,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicShared,
    TotalShared,
}

/// The state space of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    Generic,
    Global,
    Shared,
    Local,
    /// The kernel's parameters.
    Param,
}

/// An address: a register and an offset, or the offset alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) window: Window,
    pub(crate) base: Option<Reg>,
    pub(crate) offset: i64,
}

/// How a load fills a register that is wider than what it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extend {
    Zero,
    Sign,
    /// A signed byte in a register of 16 bits.
    Sign16,
}

/// How strongly an access is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// May be torn apart and reordered: two of them that conflict are a race.
    Weak,
    /// `volatile`, `relaxed`: no race by itself.
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

impl Order {
    pub(crate) fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcquireRelease)
    }
}

/// What an atomic operation makes of the old value and its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
}

/// Which lane a shuffle reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// The elements of a matrix product's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    BF16,
    TF32,
}

/// The shape of a warp's matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MmaShape {
    pub(crate) k: u8,
    pub(crate) element: Element,
    /// Whether sums are f16, two to a register.
    pub(crate) half_sums: bool,
}

/// What a decoded instruction does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Nothing that can be seen from outside: hints.
    Nothing,
    L1 {
        f: fn(&L) -> L,
        d: Row,
        a: Row,
    },
    L2 {
        f: fn(&L, &L) -> L,
        d: Row,
        a: Row,
        b: Row,
    },
    L3 {
        f: fn(&L, &L, &L) -> L,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    L4 {
        f: fn(&L, &L, &L, &L) -> L,
        d: Row,
        s: [Row; 4],
    },
    Q1 {
        f: fn(&Q) -> Q,
        d: Row,
        a: Row,
    },
    Q2 {
        f: fn(&Q, &Q) -> Q,
        d: Row,
        a: Row,
        b: Row,
    },
    Q3 {
        f: fn(&Q, &Q, &Q) -> Q,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    /// 64 bits by 32.
    Shift {
        f: fn(&Q, &L) -> Q,
        d: Row,
        a: Row,
        b: Row,
    },
    Extract {
        f: fn(&Q, &L, &L) -> Q,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Insert {
        f: fn(&Q, &Q, &L, &L) -> Q,
        d: Row,
        s: [Row; 4],
    },
    Widen1 {
        f: fn(&L) -> Q,
        d: Row,
        a: Row,
    },
    Widen2 {
        f: fn(&L, &L) -> Q,
        d: Row,
        a: Row,
        b: Row,
    },
    Widen3 {
        f: fn(&L, &L, &Q) -> Q,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Narrow {
        f: fn(&Q) -> L,
        d: Row,
        a: Row,
    },
    CompareL {
        f: fn(&L, &L) -> u32,
        d: Row,
        complement: Row,
        a: Row,
        b: Row,
        with: Option<(Logic, Pred)>,
    },
    CompareQ {
        f: fn(&Q, &Q) -> u32,
        d: Row,
        complement: Row,
        a: Row,
        b: Row,
        with: Option<(Logic, Pred)>,
    },
    SelectL {
        d: Row,
        a: Row,
        b: Row,
        p: Pred,
    },
    SelectQ {
        d: Row,
        a: Row,
        b: Row,
        p: Pred,
    },
    /// The result of a comparison as a number: all ones, or 1.0.
    SetL {
        f: fn(&L, &L) -> u32,
        d: Row,
        a: Row,
        b: Row,
        one: u32,
    },
    Logic {
        logic: Logic,
        d: Row,
        a: Pred,
        b: Pred,
    },
    /// `add.cc`, `addc`, `sub.cc`, `subc` on 32 bits.
    CarryL {
        subtract: bool,
        take: bool,
        give: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    /// The same on 64 bits.
    CarryQ {
        subtract: bool,
        take: bool,
        give: bool,
        d: Row,
        a: Row,
        b: Row,
    },
    /// `mad.cc` and `madc`: a product's low or high half, added with carry.
    MadCarry {
        f: fn(&L, &L) -> L,
        take: bool,
        give: bool,
        d: Row,
        a: Row,
        b: Row,
        c: Row,
    },
    Clock {
        d: Reg,
    },
    ActiveMask {
        d: Row,
    },
    IsSpace {
        window: Window,
        d: Row,
        a: Reg,
    },
    /// `cvt` without a function of its own.
    ConvertNumber {
        conversion: Conversion,
        d: Reg,
        a: Reg,
    },
    /// Two numbers into the halves of a register, `a` into the upper.
    ConvertPair {
        conversion: Conversion,
        d: Row,
        a: Row,
        b: Row,
    },
    /// An address of a space as a generic one, or back.
    ConvertAddress {
        window: Window,
        to_generic: bool,
        d: Reg,
        a: Reg,
    },

    Load {
        at: Address,
        size: u8,
        extend: Extend,
        to: Box<[Reg]>,
        order: Order,
    },
    Store {
        at: Address,
        size: u8,
        from: Box<[Reg]>,
        order: Order,
    },
    Atomic {
        at: Address,
        kind: Atomic,
        ty: crate::types::Ty,
        /// Values of a vector operation, else one.
        d: Option<Box<[Reg]>>,
        b: Box<[Reg]>,
        c: Option<Reg>,
        order: Order,
    },
    Fence {
        /// For more than the block.
        wide: bool,
    },

    Branch {
        target: u32,
    },
    BranchIndexed {
        index: Row,
        targets: Box<[u32]>,
    },
    Exit,
    Trap,

    Barrier {
        id: Row,
        threads: Option<Row>,
        waits: bool,
        aligned: bool,
        /// `bar.red`: what is voted on, and where the result goes.
        reduce: Option<(Reduce, Pred, Reduced)>,
    },
    SyncWarp {
        mask: Row,
    },
    Shuffle {
        kind: Shuffle,
        d: Row,
        p: Row,
        a: Row,
        b: Row,
        c: Row,
        mask: Row,
    },
    Vote {
        kind: Vote,
        d: Row,
        a: Pred,
        mask: Row,
    },
    Match {
        all: bool,
        d: Row,
        p: Row,
        a: Reg,
        mask: Row,
    },
    Reduce {
        f: fn(u32, u32) -> u32,
        d: Row,
        a: Row,
        mask: Row,
    },
    Elect {
        d: Row,
        p: Row,
        mask: Row,
    },

    LoadMatrix {
        at: Address,
        transposed: bool,
        to: Box<[Row]>,
    },
    StoreMatrix {
        at: Address,
        transposed: bool,
        from: Box<[Row]>,
    },
    Mma {
        shape: MmaShape,
        d: Box<[Row]>,
        a: Box<[Row]>,
        b: Box<[Row]>,
        c: Box<[Row]>,
    },

    BarrierInit {
        at: Address,
        count: Row,
    },
    BarrierEnd {
        at: Address,
    },
    BarrierArrive {
        at: Address,
        arrivals: Arrival,
        count: Option<Row>,
        bytes: Option<Row>,
        state: Option<Reg>,
    },
    BarrierTest {
        at: Address,
        d: Row,
        phase: Reg,
        is_parity: bool,
    },
    /// Makes writes visible to the copy engine and the tensor cores.
    FenceProxy,
    /// Makes barrier objects that were initialised visible to the copy engine.
    FenceBarriers,
    CopyBox {
        to: Address,
        map: Reg,
        coordinates: Box<[Row]>,
        barrier: Address,
    },
    GroupFence,
    GroupIssue(Arc<GroupProduct>),
    GroupCommit,
    GroupWait {
        /// Groups that may stay in flight.
        keep: u32,
    },

    CopyAsync {
        to: Address,
        from: Address,
        size: u8,
        /// How many bytes are read; the rest is zero.
        source: Option<Row>,
        ignore: Option<Pred>,
    },
    CopyCommit,
    CopyWait {
        /// Groups that may stay in flight.
        keep: u32,
        /// Also copies that no group holds.
        all: bool,
    },
}

/// What a thread does to a barrier object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    Arrive,
    /// Arrives, now and in no later phase.
    Drop,
    /// Only announces bytes.
    Expect,
}

/// The left factor of a warpgroup's product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GroupFactor {
    /// In shared memory: a descriptor, and whether rows lie across the inner index.
    Shared {
        row: Row,
        across: bool,
    },
    Registers([Row; 4]),
}

/// A product of a warpgroup: 64 rows, `n` columns, 16 elements of the inner index.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupProduct {
    pub(crate) n: u16,
    pub(crate) element: Element,
    pub(crate) d: Box<[Row]>,
    pub(crate) a: GroupFactor,
    /// The descriptor of the right factor.
    pub(crate) b: Row,
    pub(crate) b_across: bool,
    /// Whether the sums are kept, or start at zero.
    pub(crate) adds: Pred,
    pub(crate) scale_a: f32,
    pub(crate) scale_b: f32,
}

/// What `bar.red` computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduce {
    Count,
    And,
    Or,
}

/// Where the result of `bar.red` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduced {
    Number(Row),
    Pred(Row),
}

/// An instruction with what is needed to name it.
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    pub(crate) guard: Option<Pred>,
    /// Line of the PTX.
    pub(crate) line: u32,
    /// Index of its source position; 0 is unknown.
    pub(crate) place: u32,
    /// Index of its opcode in [`Program::opcodes`].
    pub(crate) opcode: u32,
}

/// A position in the source, as `.loc` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: u32,
    /// The position at which the function that holds it was inlined.
    pub(crate) inlined_at: Option<u32>,
}

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) code: Vec<Instruction>,
    pub(crate) opcodes: Vec<String>,
    pub(crate) places: Vec<Place>,
    pub(crate) rows: usize,
    pub(crate) wide_rows: usize,
    pub(crate) preds: usize,
    pub(crate) constants: Vec<(Row, Source)>,
    pub(crate) wide_constants: Vec<(Row, Source)>,
    /// Bytes and alignment of each parameter.
    pub(crate) params: Vec<(usize, usize)>,
    /// Shared memory whose size the program says; dynamic memory follows.
    pub(crate) static_shared: usize,
    pub(crate) dynamic_shared_align: usize,
    /// Local memory of a thread.
    pub(crate) local: usize,
    pub(crate) max_threads: Option<u32>,
}

/// The largest unit in which accesses to shared memory are remembered.
const LARGEST_CELL: usize = 16;
/// The smallest: two bytes, of which the halves are told apart for writes.
const SMALLEST_CELL: usize = 2;

impl Program {
    /// The unit in which accesses to shared memory are to be remembered: that of the narrowest access.
    pub(crate) fn shared_cell(&self) -> usize {
        let shared = |at: &Address| matches!(at.window, Window::Shared | Window::Generic);
        self.code
            .iter()
            .filter_map(|instruction| match &instruction.op {
                Op::Load { at, size, to, .. } if shared(at) => Some(usize::from(*size) * to.len()),
                Op::Store { at, size, from, .. } if shared(at) => {
                    Some(usize::from(*size) * from.len())
                }
                Op::Atomic { at, ty, .. } if shared(at) => Some(ty.size()),
                Op::CopyAsync { size, .. } => Some(usize::from(*size)),
                _ => None,
            })
            .fold(LARGEST_CELL, usize::min)
            .max(SMALLEST_CELL)
    }

    /// Where an instruction is, for a reader: PTX line and source lines.
    pub(crate) fn place_of(&self, pc: usize) -> String {
        let Some(instruction) = self.code.get(pc) else {
            return "at the end".to_owned();
        };
        let mut text = format!(
            "{} (PTX line {})",
            self.opcodes[instruction.opcode as usize], instruction.line
        );
        let mut next = Some(instruction.place);
        let mut lead = " at ";
        while let Some(place) = next.and_then(|index| self.places.get(index as usize)) {
            if place.line != 0 {
                text.push_str(lead);
                text.push_str(&format!("{}:{}", place.file, place.line));
                lead = ", inlined at ";
            }
            next = place.inlined_at;
        }
        text
    }
}
