//! Shared memory of a block, with what is known of each byte: whether it was written, is in flight or part of a barrier object, and who
//! wrote and read it when.

use crate::{
    clocks::{Clocks, Who},
    finding::{Checked, Fault, FindingKind},
    lanes::{LANES, lanes_of},
};

/// A byte that was written.
const WRITTEN: u8 = 1;
/// A byte that a copy under way will write.
const IN_FLIGHT: u8 = 2;
/// A byte of a barrier object.
const BARRIER: u8 = 4;

/// No instruction.
const UNREAD: u32 = u32::MAX;

/// Bytes that tensor cores and the copy engine read at once.
pub(crate) const CHUNK: usize = 16;

/// Who accesses shared memory, and where in the program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) warp: usize,
    pub(crate) lane: usize,
    pub(crate) pc: u32,
}

impl Access {
    fn thread(&self) -> Who {
        (self.warp * LANES + self.lane) as Who
    }
}

/// The last write to a cell.
#[derive(Debug, Clone, Copy, Default)]
struct Write {
    /// Who and one; 0 is nobody.
    who: Who,
    epoch: u32,
    pc: u32,
    /// Which bytes of the cell.
    bytes: u16,
    /// Whether it was atomic.
    atomic: bool,
}

/// The last read of a cell by a warp or a warpgroup.
#[derive(Debug, Clone, Copy, Default)]
struct Read {
    epoch: u32,
    /// Lanes of the warp; not looked at for warpgroups.
    lanes: u32,
}

/// Shared memory of one block.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    data: Vec<u8>,
    state: Vec<u8>,
    /// Bytes of a cell: the unit in which accesses are remembered.
    cell: usize,
    writes: Vec<Write>,
    /// For each cell and each warp, then each warpgroup.
    reads: Vec<Read>,
    /// The instruction that read a cell last; [`UNREAD`] if none did since it was written.
    read_at: Vec<u32>,
    warps: usize,
    slots: usize,
    /// Products under way that read each chunk.
    reading: Vec<u16>,
}

impl Shared {
    /// Empties it for a block of `warps` warps that has `bytes`, accessed in units of `cell`.
    pub(crate) fn reset(&mut self, bytes: usize, cell: usize, warps: usize) {
        fn clear<T: Clone>(vector: &mut Vec<T>, length: usize, value: T) {
            vector.clear();
            vector.resize(length, value);
        }
        self.cell = cell;
        self.warps = warps;
        self.slots = warps + warps.div_ceil(4);
        let cells = bytes.div_ceil(cell);
        clear(&mut self.data, bytes, 0xcd);
        clear(&mut self.state, bytes, 0);
        clear(&mut self.writes, cells, Write::default());
        clear(&mut self.reads, cells * self.slots, Read::default());
        clear(&mut self.read_at, cells, UNREAD);
        clear(&mut self.reading, bytes.div_ceil(CHUNK), 0);
    }

    /// Checks an address.
    pub(crate) fn check(&self, address: u64, bytes: usize, align: usize) -> Checked<usize> {
        if address.saturating_add(bytes as u64) > self.data.len() as u64 {
            return Err(Fault::new(
                FindingKind::OutOfBounds,
                format!(
                    "{bytes} bytes at byte {address} of shared memory, which has {} bytes",
                    self.data.len()
                ),
            ));
        }
        if !address.is_multiple_of(align as u64) {
            return Err(Fault::new(
                FindingKind::Misaligned,
                format!("byte {address} of shared memory for {align} bytes"),
            ));
        }
        Ok(address as usize)
    }

    /// That no byte is in flight or part of a barrier object.
    fn is_plain(&self, at: usize, bytes: usize, what: &str) -> Checked<()> {
        for (offset, state) in self.state[at..at + bytes].iter().enumerate() {
            if state & IN_FLIGHT != 0 {
                return Err(Fault::new(
                    FindingKind::InFlight,
                    format!(
                        "{what} byte {} of shared memory, which a copy that was not waited for writes",
                        at + offset
                    ),
                ));
            }
            if state & BARRIER != 0 {
                return Err(Fault::new(
                    FindingKind::Barrier,
                    format!(
                        "{what} byte {} of shared memory, which belongs to a barrier object",
                        at + offset
                    ),
                ));
            }
        }
        Ok(())
    }

    /// That bytes may be read.
    fn is_readable(&self, at: usize, bytes: usize) -> Checked<()> {
        if word(&self.state[at..at + bytes]) == word(&[WRITTEN; 16][..bytes]) {
            return Ok(());
        }
        self.is_plain(at, bytes, "reads")?;
        let missing = self.state[at..at + bytes]
            .iter()
            .position(|state| state & WRITTEN == 0)
            .unwrap_or(0);
        Err(Fault::new(
            FindingKind::Unwritten,
            format!("byte {} of shared memory", at + missing),
        ))
    }

    /// That bytes may be overwritten: nothing asynchronous uses them.
    fn is_writable(&self, at: usize, bytes: usize, what: &str) -> Checked<()> {
        if word(&self.state[at..at + bytes]) & word(&[IN_FLIGHT | BARRIER; 16]) != 0 {
            self.is_plain(at, bytes, what)?;
        }
        if let Some(chunk) = self.reading[at / CHUNK..(at + bytes).div_ceil(CHUNK)]
            .iter()
            .position(|&count| count > 0)
        {
            return Err(Fault::new(
                FindingKind::InFlight,
                format!(
                    "{what} byte {} of shared memory, which a product that was not waited for reads",
                    at.max((at / CHUNK + chunk) * CHUNK)
                ),
            ));
        }
        Ok(())
    }

    /// The bytes of cell `cell` that an access touches.
    #[inline(always)]
    fn bytes_of(&self, cell: usize, at: usize, bytes: usize) -> u16 {
        let start = cell * self.cell;
        let first = at.max(start) - start;
        let last = (at + bytes).min(start + self.cell) - start;
        (((1u32 << last) - 1) & !((1u32 << first) - 1)) as u16
    }

    fn cells(&self, at: usize, bytes: usize) -> core::ops::Range<usize> {
        at / self.cell..(at + bytes).div_ceil(self.cell)
    }

    /// Notes that a thread reads, after looking for a write that nothing orders before.
    fn note_read(&mut self, at: usize, bytes: usize, by: &Access, clocks: &Clocks) -> Checked<()> {
        let epoch = clocks.epoch(by.warp);
        for cell in self.cells(at, bytes) {
            let write = &self.writes[cell];
            if write.who != 0
                && write.who - 1 != by.thread()
                && write.bytes & self.bytes_of(cell, at, bytes) != 0
                && !clocks.knows(by.warp, write.who - 1, write.epoch)
            {
                return Err(self.race(cell, "reads", "wrote", write.who - 1, write.pc));
            }
            // A single byte of a larger cell is not noted: its neighbour may well be written by another thread.
            if bytes > 1 || self.cell == 1 {
                let read = &mut self.reads[cell * self.slots + by.warp];
                if read.epoch != epoch {
                    *read = Read { epoch, lanes: 0 };
                }
                read.lanes |= 1 << by.lane;
                self.read_at[cell] = by.pc;
            }
        }
        Ok(())
    }

    /// Looks for accesses that nothing orders before a write of `by`.
    fn check_write(
        &self,
        at: usize,
        bytes: usize,
        same: bool,
        atomic: bool,
        by: &Access,
        clocks: &Clocks,
    ) -> Checked<()> {
        for cell in self.cells(at, bytes) {
            let write = &self.writes[cell];
            // Two threads that write the same value do no harm.
            if !same
                && write.who != 0
                && write.who - 1 != by.thread()
                && write.bytes & self.bytes_of(cell, at, bytes) != 0
                && !(atomic && write.atomic)
                && !clocks.knows(by.warp, write.who - 1, write.epoch)
            {
                return Err(self.race(cell, "writes", "wrote", write.who - 1, write.pc));
            }
            if self.read_at[cell] == UNREAD || (bytes == 1 && self.cell != 1) {
                continue;
            }
            let reads = &self.reads[cell * self.slots..(cell + 1) * self.slots];
            for (slot, read) in reads.iter().enumerate() {
                if read.epoch == 0 {
                    continue;
                }
                let unordered = if slot >= self.warps {
                    let agent = clocks.tensor_agent(slot - self.warps);
                    (!clocks.knows(by.warp, agent, read.epoch)).then_some(agent)
                } else {
                    let own = if slot == by.warp { 1 << by.lane } else { 0 };
                    lanes_of(read.lanes & !own)
                        .map(|lane| (slot * LANES + lane) as Who)
                        .find(|&who| !clocks.knows(by.warp, who, read.epoch))
                };
                if let Some(who) = unordered {
                    return Err(self.race(cell, "writes", "read", who, self.read_at[cell]));
                }
            }
        }
        Ok(())
    }

    fn race(&self, cell: usize, what: &str, other: &str, who: Who, pc: u32) -> Box<Fault> {
        let name = if (who as usize) < self.warps * LANES {
            format!("thread {who} {other}")
        } else {
            format!("an asynchronous operation {other}")
        };
        let mut fault = Fault::new(
            FindingKind::SharedRace,
            format!(
                "{what} bytes {}.. of shared memory, which {name}, and nothing orders the two",
                cell * self.cell
            ),
        );
        fault.other = Some(pc);
        fault
    }

    fn note_write(&mut self, at: usize, bytes: usize, who: Who, epoch: u32, pc: u32, atomic: bool) {
        for cell in self.cells(at, bytes) {
            let mask = self.bytes_of(cell, at, bytes);
            let write = &mut self.writes[cell];
            let joins = write.who == who + 1 && write.epoch == epoch;
            *write = Write {
                who: who + 1,
                epoch,
                pc,
                bytes: if joins { write.bytes | mask } else { mask },
                atomic: atomic && (!joins || write.atomic),
            };
            if self.read_at[cell] != UNREAD && mask.count_ones() as usize == self.cell {
                self.read_at[cell] = UNREAD;
                self.reads[cell * self.slots..(cell + 1) * self.slots].fill(Read::default());
            }
        }
    }

    fn value(&self, at: usize, bytes: usize) -> u128 {
        word(&self.data[at..at + bytes])
    }

    fn put(&mut self, at: usize, bytes: usize, value: u128) {
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.state[at..at + bytes].fill(WRITTEN);
    }

    /// Reads up to 16 bytes as a thread.
    pub(crate) fn load(
        &mut self,
        address: u64,
        bytes: usize,
        by: &Access,
        clocks: &Clocks,
    ) -> Checked<u128> {
        let at = self.check(address, bytes, bytes)?;
        self.is_readable(at, bytes)?;
        self.note_read(at, bytes, by, clocks)?;
        Ok(self.value(at, bytes))
    }

    /// Writes up to 16 bytes as a thread.
    pub(crate) fn store(
        &mut self,
        address: u64,
        bytes: usize,
        value: u128,
        by: &Access,
        clocks: &Clocks,
    ) -> Checked<()> {
        let at = self.check(address, bytes, bytes)?;
        self.is_writable(at, bytes, "writes")?;
        let written = word(&[WRITTEN; 16][..bytes]);
        let same = word(&self.state[at..at + bytes]) & written == written
            && self.value(at, bytes) == value;
        self.check_write(at, bytes, same, false, by, clocks)?;
        self.note_write(at, bytes, by.thread(), clocks.epoch(by.warp), by.pc, false);
        self.put(at, bytes, value);
        Ok(())
    }

    /// Reads and writes at once, as an atomic operation of a thread, by a function of the old value.
    pub(crate) fn update(
        &mut self,
        address: u64,
        bytes: usize,
        by: &Access,
        clocks: &Clocks,
        f: impl FnOnce(u64) -> u64,
    ) -> Checked<u64> {
        let at = self.check(address, bytes, bytes)?;
        self.is_readable(at, bytes)?;
        self.is_writable(at, bytes, "writes")?;
        self.check_write(at, bytes, false, true, by, clocks)?;
        self.note_write(at, bytes, by.thread(), clocks.epoch(by.warp), by.pc, true);
        let old = self.value(at, bytes) as u64;
        self.put(at, bytes, u128::from(f(old)));
        Ok(old)
    }

    /// A copy that will write these bytes begins.
    pub(crate) fn begin_copy(
        &mut self,
        address: u64,
        bytes: usize,
        align: usize,
        by: &Access,
        clocks: &Clocks,
    ) -> Checked<()> {
        let at = self.check(address, bytes, align)?;
        self.is_writable(at, bytes, "copies to")?;
        self.check_write(at, bytes, false, false, by, clocks)?;
        for state in &mut self.state[at..at + bytes] {
            *state |= IN_FLIGHT;
        }
        Ok(())
    }

    /// The copy has come in; `who` wrote it.
    pub(crate) fn end_copy(
        &mut self,
        address: u64,
        bytes: usize,
        value: u128,
        who: Who,
        epoch: u32,
        pc: u32,
    ) {
        let at = address as usize;
        self.note_write(at, bytes, who, epoch, pc, false);
        self.put(at, bytes, value);
    }

    /// Makes eight bytes a barrier object, or ordinary bytes again.
    pub(crate) fn set_barrier(&mut self, at: usize, is_barrier: bool) {
        self.state[at..at + 8].fill(if is_barrier { BARRIER } else { 0 });
    }

    /// A chunk that a product will read: it must be there, known to the warp and fenced, and stays as it is until the product is
    /// waited for.
    pub(crate) fn begin_product(
        &mut self,
        address: u32,
        warp: usize,
        clocks: &Clocks,
    ) -> Checked<()> {
        let at = self.check(u64::from(address), CHUNK, CHUNK)?;
        self.is_readable(at, CHUNK)?;
        self.check_visible(at, CHUNK, warp, clocks)?;
        self.reading[at / CHUNK] += 1;
        Ok(())
    }

    /// That an asynchronous operation of a warp sees what was written.
    fn check_visible(&self, at: usize, bytes: usize, warp: usize, clocks: &Clocks) -> Checked<()> {
        for cell in self.cells(at, bytes) {
            let write = &self.writes[cell];
            if write.who == 0 {
                continue;
            }
            if !clocks.knows(warp, write.who - 1, write.epoch) {
                return Err(self.race(
                    cell,
                    "starts an operation that reads",
                    "wrote",
                    write.who - 1,
                    write.pc,
                ));
            }
            if !clocks.knows_fenced(warp, write.who - 1, write.epoch) {
                let mut fault = Fault::new(
                    FindingKind::Proxy,
                    format!(
                        "starts an operation that reads bytes {}.. of shared memory, which thread {} wrote, without `fence.proxy.async` between",
                        cell * self.cell,
                        write.who - 1
                    ),
                );
                fault.other = Some(write.pc);
                return Err(fault);
            }
        }
        Ok(())
    }

    /// The product reads the chunk now, as warpgroup `group` in its epoch.
    pub(crate) fn end_product(&mut self, address: u32, group: usize, epoch: u32, pc: u32) -> u128 {
        let at = address as usize;
        self.reading[at / CHUNK] -= 1;
        for cell in self.cells(at, CHUNK) {
            self.reads[cell * self.slots + self.warps + group] = Read {
                epoch,
                lanes: u32::MAX,
            };
            self.read_at[cell] = pc;
        }
        self.value(at, CHUNK)
    }
}

/// Up to sixteen bytes as a number.
#[inline(always)]
fn word(bytes: &[u8]) -> u128 {
    match *bytes {
        [a] => u128::from(a),
        [a, b] => u128::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u128::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u128::from(u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => {
            let mut value = [0; 16];
            value[..bytes.len()].copy_from_slice(bytes);
            u128::from_le_bytes(value)
        }
    }
}

/// Banks of shared memory, each four bytes wide.
const BANKS: usize = 32;

/// How many times banks must be asked again for the accesses of a warp: a word is there for all lanes that want it. Wider accesses go by
/// parts of the warp.
pub(crate) fn conflicts(addresses: &[u32], bytes: usize) -> u64 {
    let part = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    addresses
        .chunks(part)
        .map(|lanes| extra_passes(lanes, bytes))
        .sum()
}

fn extra_passes(lanes: &[u32], bytes: usize) -> u64 {
    let words = |address: u32| address / 4..(address + bytes as u32).div_ceil(4);
    // Most accesses want at most one word of each bank.
    let mut first = [u32::MAX; BANKS];
    let clash = lanes
        .iter()
        .flat_map(|&address| words(address))
        .any(|word| {
            let known = &mut first[word as usize % BANKS];
            let clash = *known != u32::MAX && *known != word;
            *known = word;
            clash
        });
    if !clash {
        return 0;
    }
    let mut all: Vec<u32> = lanes.iter().flat_map(|&address| words(address)).collect();
    all.sort_unstable();
    all.dedup();
    let mut counts = [0u64; BANKS];
    for word in all {
        counts[word as usize % BANKS] += 1;
    }
    counts
        .iter()
        .max()
        .map_or(0, |&most| most.saturating_sub(1))
}
