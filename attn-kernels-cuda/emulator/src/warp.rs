//! A warp: its registers, and which of its lanes are where.

use crate::{
    finding::{Checked, Fault, FindingKind},
    lanes::{L, LANES, Q, blend},
    program::{FALSE, Pred, Program, Reg, Row, Source, Special},
};

/// Lanes at one instruction.
#[derive(Debug, Clone, Copy)]
struct Group {
    pc: u32,
    mask: u32,
    /// Waits for other lanes of the warp.
    parked: bool,
    /// Lets other lanes of the warp go first in this turn.
    resting: bool,
}

/// A copy to shared memory that was not waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PendingCopy {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    /// The group it was committed to.
    pub(crate) group: u32,
    pub(crate) to: u32,
    pub(crate) pc: u32,
    pub(crate) value: u128,
}

/// A warp.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    /// Lanes that are threads of the block.
    pub(crate) lanes: u32,
    pub(crate) exited: u32,
    /// The running lanes and their instruction.
    pub(crate) mask: u32,
    pub(crate) pc: u32,
    groups: Vec<Group>,
    l: Vec<L>,
    q: Vec<Q>,
    p: Vec<u32>,
    /// Lanes of each row that hold a value.
    defined: Vec<u32>,
    wide_defined: Vec<u32>,
    pred_defined: Vec<u32>,
    pub(crate) carry: u32,
    pub(crate) copies: Vec<PendingCopy>,
    /// Groups of copies that each lane has committed.
    pub(crate) committed: [u32; LANES],
}

/// What special registers say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) block: [u32; 3],
    pub(crate) grid: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) dynamic_start: u32,
    pub(crate) dynamic_shared: u32,
    pub(crate) total_shared: u32,
}

impl Warp {
    /// A warp of a kernel, not begun.
    pub(crate) fn new(program: &Program, index: u32) -> Self {
        Self {
            index,
            lanes: 0,
            exited: 0,
            mask: 0,
            pc: 0,
            groups: Vec::new(),
            // Whatever a register holds before it is written must not look like an answer.
            l: vec![[0xcdcd_cdcd; LANES]; program.rows],
            q: vec![[0xcdcd_cdcd_cdcd_cdcd; LANES]; program.wide_rows],
            p: vec![0; program.preds],
            defined: vec![0; program.rows],
            wide_defined: vec![0; program.wide_rows],
            pred_defined: vec![0; program.preds],
            carry: 0,
            copies: Vec::new(),
            committed: [0; LANES],
        }
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, program: &Program, at: &Position) {
        let threads = at.threads.iter().product::<u32>();
        let count = threads - 32 * self.index;
        self.lanes = if count >= 32 {
            u32::MAX
        } else {
            (1 << count) - 1
        };
        self.exited = 0;
        self.mask = self.lanes;
        self.pc = 0;
        self.groups.clear();
        self.carry = 0;
        self.copies.clear();
        self.committed = [0; LANES];
        self.defined.fill(0);
        self.wide_defined.fill(0);
        self.pred_defined.fill(0);
        self.pred_defined[FALSE as usize] = u32::MAX;
        self.p[FALSE as usize] = 0;
        for &(row, source) in &program.constants {
            self.l[row as usize] = core::array::from_fn(|lane| self.value(source, at, lane) as u32);
            self.defined[row as usize] = u32::MAX;
        }
        for &(row, source) in &program.wide_constants {
            self.q[row as usize] = core::array::from_fn(|lane| self.value(source, at, lane));
            self.wide_defined[row as usize] = u32::MAX;
        }
    }

    fn value(&self, source: Source, at: &Position, lane: usize) -> u64 {
        let special = match source {
            Source::Value(value) => return value,
            Source::DynamicShared => return u64::from(at.dynamic_start),
            Source::Special(special) => special,
        };
        let thread = 32 * self.index + lane as u32;
        let [x, y, _] = at.threads;
        let below = (1u64 << lane) - 1;
        u64::from(match special {
            Special::Tid(0) => thread % x,
            Special::Tid(1) => thread / x % y,
            Special::Tid(_) => thread / (x * y),
            Special::Ntid(axis) => at.threads[usize::from(axis)],
            Special::Ctaid(axis) => at.block[usize::from(axis)],
            Special::Nctaid(axis) => at.grid[usize::from(axis)],
            Special::Lane => lane as u32,
            Special::Warp => self.index,
            Special::Warps => at.threads.iter().product::<u32>().div_ceil(32),
            Special::LaneMaskEq => 1 << lane,
            Special::LaneMaskLt => below as u32,
            Special::LaneMaskLe => below as u32 | 1 << lane,
            Special::LaneMaskGt => !(below as u32 | 1 << lane),
            Special::LaneMaskGe => !(below as u32),
            Special::DynamicShared => at.dynamic_shared,
            Special::TotalShared => at.total_shared,
        })
    }

    /// Lanes that have not exited.
    pub(crate) fn live(&self) -> u32 {
        self.lanes & !self.exited
    }

    #[inline(always)]
    pub(crate) fn l(&self, row: Row) -> &L {
        &self.l[row as usize]
    }

    #[inline(always)]
    pub(crate) fn q(&self, row: Row) -> &Q {
        &self.q[row as usize]
    }

    #[inline(always)]
    pub(crate) fn defined(&self, row: Row) -> u32 {
        self.defined[row as usize]
    }

    #[inline(always)]
    pub(crate) fn wide_defined(&self, row: Row) -> u32 {
        self.wide_defined[row as usize]
    }

    #[inline(always)]
    pub(crate) fn pred_defined(&self, row: Row) -> u32 {
        self.pred_defined[row as usize]
    }

    /// Lanes of a register that hold a value.
    pub(crate) fn reg_defined(&self, reg: Reg) -> u32 {
        match reg {
            Reg::L(row) => self.defined(row),
            Reg::Q(row) => self.wide_defined(row),
        }
    }

    /// A lane of a register.
    #[inline(always)]
    pub(crate) fn get(&self, reg: Reg, lane: usize) -> u64 {
        match reg {
            Reg::L(row) => u64::from(self.l[row as usize][lane]),
            Reg::Q(row) => self.q[row as usize][lane],
        }
    }

    /// Writes one lane of a register.
    #[inline(always)]
    pub(crate) fn put(&mut self, reg: Reg, lane: usize, value: u64) {
        match reg {
            Reg::L(row) => {
                self.l[row as usize][lane] = value as u32;
                self.defined[row as usize] |= 1 << lane;
            }
            Reg::Q(row) => {
                self.q[row as usize][lane] = value;
                self.wide_defined[row as usize] |= 1 << lane;
            }
        }
    }

    /// Writes the lanes of `mask`, of which those of `defined` hold values.
    #[inline(always)]
    pub(crate) fn set_l(&mut self, row: Row, value: &L, mask: u32, defined: u32) {
        blend(&mut self.l[row as usize], value, mask);
        let known = &mut self.defined[row as usize];
        *known = (*known & !mask) | (defined & mask);
    }

    /// The same of 64 bits.
    #[inline(always)]
    pub(crate) fn set_q(&mut self, row: Row, value: &Q, mask: u32, defined: u32) {
        blend(&mut self.q[row as usize], value, mask);
        let known = &mut self.wide_defined[row as usize];
        *known = (*known & !mask) | (defined & mask);
    }

    /// The same of a predicate.
    #[inline(always)]
    pub(crate) fn set_p(&mut self, row: Row, value: u32, mask: u32, defined: u32) {
        let to = &mut self.p[row as usize];
        *to = (*to & !mask) | (value & mask);
        let known = &mut self.pred_defined[row as usize];
        *known = (*known & !mask) | (defined & mask);
    }

    /// Lanes in which a predicate holds.
    #[inline(always)]
    pub(crate) fn p(&self, pred: Pred) -> u32 {
        let bits = self.p[pred.row as usize];
        if pred.negated { !bits } else { bits }
    }

    /// That every lane of `mask` holds a value, in `defined`.
    #[inline(always)]
    pub(crate) fn need(mask: u32, defined: u32, what: &str) -> Checked<()> {
        let missing = mask & !defined;
        if missing == 0 {
            return Ok(());
        }
        Err(Fault::new(FindingKind::Undefined, what).by(missing.trailing_zeros() as usize))
    }

    /// Goes to the next instruction.
    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        self.pc += 1;
        if !self.groups.is_empty() {
            self.choose_again();
        }
    }

    /// Sends the lanes of `taken` to `target`; the others go on.
    pub(crate) fn branch(&mut self, taken: u32, target: u32) {
        let stay = self.mask & !taken;
        if taken == 0 {
            self.advance();
        } else if stay == 0 {
            self.pc = target;
            if !self.groups.is_empty() {
                self.choose_again();
            }
        } else {
            self.groups.push(Group {
                pc: target,
                mask: taken,
                parked: false,
                resting: false,
            });
            self.mask = stay;
            self.pc += 1;
            self.choose_again();
        }
    }

    /// Lets the lanes outside of `mask` skip the instruction, so that those of `mask` stand at it alone.
    pub(crate) fn split(&mut self, mask: u32) {
        let skip = self.mask & !mask;
        if skip != 0 {
            self.groups.push(Group {
                pc: self.pc + 1,
                mask: skip,
                parked: false,
                resting: false,
            });
            self.mask = mask;
        }
    }

    /// Sends some of the running lanes to `target`; the others stay where they are.
    pub(crate) fn leave(&mut self, mask: u32, target: u32) {
        self.groups.push(Group {
            pc: target,
            mask,
            parked: false,
            resting: false,
        });
        self.mask &= !mask;
        self.choose_again();
    }

    /// Lets some of the running lanes come to the same instruction later.
    pub(crate) fn hold(&mut self, mask: u32) {
        self.groups.push(Group {
            pc: self.pc,
            mask,
            parked: false,
            resting: false,
        });
        self.mask &= !mask;
    }

    /// Ends the lanes of `mask`; false if none is left.
    pub(crate) fn exit(&mut self, mask: u32) -> Checked<bool> {
        self.exited |= mask;
        self.mask &= !mask;
        // Who waited for these lanes may look again.
        for group in &mut self.groups {
            group.parked = false;
        }
        if self.mask != 0 {
            self.advance();
            return Ok(true);
        }
        if self.groups.is_empty() {
            return Ok(false);
        }
        self.choose()?;
        Ok(true)
    }

    /// Lets the running lanes wait for others of the warp.
    pub(crate) fn park(&mut self) -> Checked<()> {
        self.groups.push(Group {
            pc: self.pc,
            mask: self.mask,
            parked: true,
            resting: false,
        });
        self.mask = 0;
        self.choose()
    }

    /// The running lanes wait for something: other lanes of the warp may go first. False if there are none that could.
    pub(crate) fn rest(&mut self) -> bool {
        if !self
            .groups
            .iter()
            .any(|group| !group.parked && !group.resting && group.pc != self.pc)
        {
            return false;
        }
        self.groups.push(Group {
            pc: self.pc,
            mask: self.mask,
            parked: false,
            resting: true,
        });
        // One that does not rest was just seen.
        let _ = self.choose();
        true
    }

    /// A new turn: all lanes that do not wait for each other may run.
    pub(crate) fn wake(&mut self) {
        if self.groups.iter().any(|group| group.resting) {
            for group in &mut self.groups {
                group.resting = false;
            }
            if self.mask != 0 {
                self.choose_again();
            }
        }
    }

    fn choose_again(&mut self) {
        self.groups.push(Group {
            pc: self.pc,
            mask: self.mask,
            parked: false,
            resting: false,
        });
        // The running group is not parked, so one is found.
        let _ = self.choose();
    }

    /// Runs the lanes at the lowest instruction of those that do not wait, with all that stand there.
    fn choose(&mut self) -> Checked<()> {
        let lowest = |groups: &[Group], rested: bool| {
            groups
                .iter()
                .filter(|group| !group.parked && (rested || !group.resting))
                .map(|group| group.pc)
                .min()
        };
        // Those that rest come again when nobody else can run.
        let found = lowest(&self.groups, false).or_else(|| lowest(&self.groups, true));
        let Some(pc) = found else {
            let mut text = String::new();
            for group in &self.groups {
                text.push_str(&format!(
                    "{}lanes {:#010x} wait at instruction {}",
                    if text.is_empty() { "" } else { ", " },
                    group.mask,
                    group.pc
                ));
            }
            return Err(Fault::new(
                FindingKind::Divergence,
                format!(
                    "{text}, each for the others; lanes {:#010x} have exited",
                    self.exited
                ),
            ));
        };
        self.pc = pc;
        self.mask = 0;
        let mut mask = 0;
        self.groups.retain(|group| {
            if group.pc == pc {
                mask |= group.mask;
            }
            group.pc != pc
        });
        self.mask = mask;
        Ok(())
    }
}
