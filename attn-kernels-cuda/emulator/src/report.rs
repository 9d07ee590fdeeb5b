//! What a kernel did, counted.

use crate::{block::Counts, program::Program};
use alloc::collections::BTreeMap;
use core::fmt;

/// Counters of one kernel over all its launches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Blocks that ran.
    pub blocks: u64,
    /// Instructions of warps.
    pub warp_instructions: u64,
    /// Instructions of threads.
    pub thread_instructions: u64,
    /// Instructions of warps by opcode.
    pub opcodes: BTreeMap<String, u64>,
    /// Extra passes over the banks of shared memory.
    pub conflicts: u64,
    /// The same by place: opcode, PTX line and source line.
    pub conflicts_at: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn add(&mut self, program: &Program, counts: &Counts, blocks: u64) {
        self.blocks += blocks;
        for (pc, instruction) in program.code.iter().enumerate() {
            let warps = counts.warps[pc];
            if warps == 0 {
                continue;
            }
            self.warp_instructions += warps;
            self.thread_instructions += counts.threads[pc];
            *self
                .opcodes
                .entry(program.opcodes[instruction.opcode as usize].clone())
                .or_default() += warps;
            if counts.conflicts[pc] > 0 {
                self.conflicts += counts.conflicts[pc];
                *self.conflicts_at.entry(program.place_of(pc)).or_default() += counts.conflicts[pc];
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} blocks, {} instructions of warps, {} of threads, {} bank conflicts",
            self.blocks, self.warp_instructions, self.thread_instructions, self.conflicts
        )?;
        let mut opcodes: Vec<_> = self.opcodes.iter().collect();
        opcodes.sort_by_key(|(_, count)| core::cmp::Reverse(**count));
        for (opcode, count) in opcodes {
            writeln!(f, "{count:>12} {opcode}")?;
        }
        for (place, count) in &self.conflicts_at {
            writeln!(f, "{count:>12} bank conflicts of {place}")?;
        }
        Ok(())
    }
}
