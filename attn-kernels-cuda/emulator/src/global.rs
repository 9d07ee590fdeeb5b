//! Global memory: allocations with what was written, and by which block.

use crate::finding::{Checked, Fault, FindingKind};

/// Addresses start here, far from the windows of the other spaces.
const FIRST: u64 = 0x7000_0000_0000;
/// Alignment of allocations.
const ALIGN: u64 = 256;
/// What lies between two allocations and belongs to none.
const GAP: u64 = 1 << 16;

/// Bytes that share a mark: those of the narrowest elements that several blocks write side by side.
const GRAIN: usize = 2;

/// Who touched [`GRAIN`] bytes during a launch.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    launch: u32,
    /// Block and one; 0 is none.
    writer: u32,
    /// Block and one; [`MANY`] is more than one.
    reader: u32,
    /// Which of the bytes were written and read.
    written: u8,
    read: u8,
    /// Whether the write was atomic.
    atomic: bool,
}

const MANY: u32 = u32::MAX;

#[derive(Debug)]
struct Allocation {
    base: u64,
    bytes: usize,
    data: Vec<u8>,
    /// 1 for each byte that was written.
    written: Vec<u8>,
    marks: Vec<Mark>,
    freed: bool,
    /// A variable of a module, which lives as long as that.
    of_module: bool,
}

/// How an access takes part in races between blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strength {
    Plain,
    Atomic,
}

/// Global memory.
#[derive(Debug)]
pub(crate) struct Global {
    allocations: Vec<Allocation>,
    next: u64,
    in_use: usize,
    limit: usize,
    /// Allocation that was found last.
    recent: usize,
    launch: u32,
    /// The running block and one.
    block: u32,
    /// Blocks whose writes the running block may see.
    seen: Vec<bool>,
}

impl Global {
    /// Memory of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            allocations: Vec::new(),
            next: FIRST,
            in_use: 0,
            limit,
            recent: 0,
            launch: 0,
            block: 0,
            seen: Vec::new(),
        }
    }

    /// Allocations that are alive.
    pub(crate) fn alive(&self) -> usize {
        self.allocations
            .iter()
            .filter(|one| !one.freed && !one.of_module)
            .count()
    }

    /// Bytes in them.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use
    }

    /// New memory; `None` if there is no more.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Option<u64> {
        if bytes > self.limit.saturating_sub(self.in_use) {
            return None;
        }
        let base = self.next;
        self.next = (base + bytes as u64 + GAP).next_multiple_of(ALIGN);
        self.in_use += bytes;
        self.allocations.push(Allocation {
            base,
            bytes,
            // Whatever lies in new memory must not look like an answer.
            data: vec![0xcd; bytes],
            written: vec![0; bytes],
            marks: Vec::new(),
            freed: false,
            of_module: false,
        });
        Some(base)
    }

    /// Memory of a module's variable: `bytes` and then zeros.
    pub(crate) fn allocate_module(&mut self, size: usize, bytes: &[u8]) -> Option<u64> {
        let address = self.allocate(size)?;
        let one = self.allocations.last_mut()?;
        one.data.fill(0);
        one.data[..bytes.len().min(size)].copy_from_slice(&bytes[..bytes.len().min(size)]);
        one.written.fill(1);
        one.of_module = true;
        Some(address)
    }

    /// Gives memory back; false if `address` starts no living allocation.
    pub(crate) fn free(&mut self, address: u64) -> bool {
        let Ok(index) = self
            .allocations
            .binary_search_by_key(&address, |one| one.base)
        else {
            return false;
        };
        let found = &mut self.allocations[index];
        if found.freed || found.of_module {
            return false;
        }
        found.freed = true;
        found.data = Vec::new();
        found.written = Vec::new();
        found.marks = Vec::new();
        self.in_use -= found.bytes;
        true
    }

    /// Begins a launch of `blocks` blocks.
    pub(crate) fn begin_launch(&mut self, blocks: usize) {
        self.launch += 1;
        self.seen.clear();
        self.seen.resize(blocks + 1, false);
    }

    /// Begins a block of the launch.
    pub(crate) fn begin_block(&mut self, block: u32) {
        self.block = block + 1;
        self.seen.fill(false);
    }

    /// The allocation and offset of an access.
    fn find(&mut self, address: u64, bytes: usize) -> Checked<(usize, usize)> {
        if let Some(one) = self.allocations.get(self.recent)
            && address >= one.base
            && address - one.base + bytes as u64 <= one.bytes as u64
            && !one.freed
        {
            return Ok((self.recent, (address - one.base) as usize));
        }
        let after = self.allocations.partition_point(|one| one.base <= address);
        let Some(index) = after.checked_sub(1) else {
            return Err(Fault::new(
                FindingKind::Wild,
                format!("address {address:#x} is in no allocation"),
            ));
        };
        let one = &self.allocations[index];
        let offset = address - one.base;
        if offset >= one.bytes as u64 + GAP {
            return Err(Fault::new(
                FindingKind::Wild,
                format!("address {address:#x} is in no allocation"),
            ));
        }
        if one.freed {
            return Err(Fault::new(
                FindingKind::UseAfterFree,
                format!(
                    "{bytes} bytes at byte {offset} of allocation {index} ({} bytes), which was given back",
                    one.bytes
                ),
            ));
        }
        if offset + bytes as u64 > one.bytes as u64 {
            if let Some(next) = self.allocations.get(after)
                && next.base - address < GAP / 2
            {
                return Err(Fault::new(
                    FindingKind::OutOfBounds,
                    format!(
                        "{bytes} bytes, {} before allocation {after} ({} bytes)",
                        next.base - address,
                        next.bytes
                    ),
                ));
            }
            return Err(Fault::new(
                FindingKind::OutOfBounds,
                format!(
                    "{bytes} bytes at byte {offset} of allocation {index}, which has {} bytes",
                    one.bytes
                ),
            ));
        }
        self.recent = index;
        Ok((index, offset as usize))
    }

    fn aligned(address: u64, bytes: usize) -> Checked<()> {
        if address.is_multiple_of(bytes as u64) {
            Ok(())
        } else {
            Err(Fault::new(
                FindingKind::Misaligned,
                format!("address {address:#x} for {bytes} bytes"),
            ))
        }
    }

    /// Reads up to 16 bytes as a kernel does; `align` is what the address must be a multiple of.
    pub(crate) fn load(
        &mut self,
        address: u64,
        bytes: usize,
        align: usize,
        strength: Strength,
    ) -> Checked<u128> {
        Self::aligned(address, align)?;
        let (index, at) = self.find(address, bytes)?;
        let one = &self.allocations[index];
        if let Some(missing) = one.written[at..at + bytes].iter().position(|&w| w == 0) {
            return Err(Fault::new(
                FindingKind::Unwritten,
                format!(
                    "byte {} of allocation {index} ({} bytes)",
                    at + missing,
                    one.bytes
                ),
            ));
        }
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&one.data[at..at + bytes]);
        self.mark(index, at, bytes, false, strength)?;
        Ok(u128::from_le_bytes(value))
    }

    /// Writes up to 16 bytes as a kernel does.
    pub(crate) fn store(
        &mut self,
        address: u64,
        bytes: usize,
        value: u128,
        strength: Strength,
    ) -> Checked<()> {
        Self::aligned(address, bytes)?;
        let (index, at) = self.find(address, bytes)?;
        let one = &mut self.allocations[index];
        one.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        one.written[at..at + bytes].fill(1);
        self.mark(index, at, bytes, true, strength)
    }

    /// Reads and writes at once, as an atomic operation, by a function of the old value.
    pub(crate) fn update(
        &mut self,
        address: u64,
        bytes: usize,
        f: impl FnOnce(u64) -> u64,
    ) -> Checked<u64> {
        let old = self.load(address, bytes, bytes, Strength::Atomic)? as u64;
        self.store(address, bytes, u128::from(f(old)), Strength::Atomic)?;
        Ok(old)
    }

    /// Notes an access and looks for one of another block that conflicts with it.
    fn mark(
        &mut self,
        index: usize,
        at: usize,
        bytes: usize,
        writes: bool,
        strength: Strength,
    ) -> Checked<()> {
        let (launch, block) = (self.launch, self.block);
        let one = &mut self.allocations[index];
        if one.marks.is_empty() {
            one.marks = vec![Mark::default(); one.bytes.div_ceil(GRAIN)];
        }
        let atomic = strength == Strength::Atomic;
        let mut conflict = None;
        for grain in at / GRAIN..(at + bytes).div_ceil(GRAIN) {
            let start = grain * GRAIN;
            let first = at.max(start) - start;
            let last = (at + bytes).min(start + GRAIN) - start;
            let mask = ((1u8 << last) - 1) & !((1u8 << first) - 1);
            let mark = &mut one.marks[grain];
            if mark.launch != launch {
                *mark = Mark {
                    launch,
                    ..Mark::default()
                };
            }
            let other = |who: u32| who != 0 && who != block;
            if other(mark.writer)
                && mark.written & mask != 0
                && !(atomic && mark.atomic)
                && !self.seen[mark.writer as usize - 1]
            {
                conflict = Some((grain, Some(mark.writer - 1), "wrote"));
            }
            if writes
                && other(mark.reader)
                && mark.read & mask != 0
                && (mark.reader == MANY || !self.seen[mark.reader as usize - 1])
            {
                let who = (mark.reader != MANY).then(|| mark.reader - 1);
                conflict = Some((grain, who, "read"));
            }
            if writes {
                if mark.writer == block {
                    mark.written |= mask;
                    mark.atomic &= atomic;
                } else {
                    mark.written = mask;
                    mark.atomic = atomic;
                }
                mark.writer = block;
            } else if !atomic {
                mark.reader = if mark.reader == 0 || mark.reader == block {
                    block
                } else {
                    MANY
                };
                mark.read |= mask;
            }
        }
        match conflict {
            None => Ok(()),
            Some((grain, who, what)) => Err(Fault::new(
                FindingKind::GlobalRace,
                format!(
                    "{} bytes {}.. of allocation {index}, which {} of this launch {what}",
                    if writes { "writes" } else { "reads" },
                    GRAIN * grain,
                    who.map_or_else(
                        || "other blocks".to_owned(),
                        |who| format!("block number {who}")
                    )
                ),
            )),
        }
    }

    /// The running block may see what `block` did.
    pub(crate) fn acquire(&mut self, block: u32) {
        if let Some(seen) = self.seen.get_mut(block as usize) {
            *seen = true;
        }
    }

    /// Blocks that the running block may see.
    pub(crate) fn seen(&self) -> impl Iterator<Item = u32> {
        self.seen
            .iter()
            .enumerate()
            .filter(|(_, seen)| **seen)
            .map(|(block, _)| block as u32)
    }

    /// Copies from the host.
    pub(crate) fn upload(&mut self, to: u64, from: &[u8]) -> Checked<()> {
        if from.is_empty() {
            return Ok(());
        }
        let (index, at) = self.find(to, from.len())?;
        let one = &mut self.allocations[index];
        one.data[at..at + from.len()].copy_from_slice(from);
        one.written[at..at + from.len()].fill(1);
        Ok(())
    }

    /// Copies to the host; bytes that nothing wrote are a finding.
    pub(crate) fn download(&mut self, from: u64, to: &mut [u8]) -> Checked<()> {
        if to.is_empty() {
            return Ok(());
        }
        let (index, at) = self.find(from, to.len())?;
        let one = &self.allocations[index];
        if let Some(missing) = one.written[at..at + to.len()].iter().position(|&w| w == 0) {
            return Err(Fault::new(
                FindingKind::Unwritten,
                format!(
                    "the host reads byte {} of allocation {index} ({} bytes)",
                    at + missing,
                    one.bytes
                ),
            ));
        }
        to.copy_from_slice(&one.data[at..at + to.len()]);
        Ok(())
    }

    /// Copies within, with what is known of each byte.
    pub(crate) fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Checked<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, start) = self.find(from, bytes)?;
        let data = self.allocations[source].data[start..start + bytes].to_vec();
        let written = self.allocations[source].written[start..start + bytes].to_vec();
        let (index, at) = self.find(to, bytes)?;
        let one = &mut self.allocations[index];
        one.data[at..at + bytes].copy_from_slice(&data);
        one.written[at..at + bytes].copy_from_slice(&written);
        Ok(())
    }

    /// Fills with a byte.
    pub(crate) fn fill(&mut self, to: u64, byte: u8, bytes: usize) -> Checked<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (index, at) = self.find(to, bytes)?;
        let one = &mut self.allocations[index];
        one.data[at..at + bytes].fill(byte);
        one.written[at..at + bytes].fill(1);
        Ok(())
    }

    /// The first byte of a range that nothing wrote.
    pub(crate) fn unwritten(&mut self, address: u64, bytes: usize) -> Checked<Option<usize>> {
        if bytes == 0 {
            return Ok(None);
        }
        let (index, at) = self.find(address, bytes)?;
        Ok(self.allocations[index].written[at..at + bytes]
            .iter()
            .position(|&w| w == 0))
    }
}
