//! Shared memory of a block, with what is known of each byte.

use crate::finding::{Checked, Fault, FindingKind};

/// A byte that was written.
const WRITTEN: u8 = 1;
/// A byte that a copy under way will write.
const IN_FLIGHT: u8 = 2;

/// Shared memory of one block.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    data: Vec<u8>,
    state: Vec<u8>,
}

impl Shared {
    /// Empties it for a block that has `bytes`.
    pub(crate) fn reset(&mut self, bytes: usize) {
        self.data.clear();
        self.data.resize(bytes, 0xcd);
        self.state.clear();
        self.state.resize(bytes, 0);
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.data.len()
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
        if address % align as u64 != 0 {
            return Err(Fault::new(
                FindingKind::Misaligned,
                format!("byte {address} of shared memory for {align} bytes"),
            ));
        }
        Ok(address as usize)
    }

    fn not_in_flight(&self, at: usize, bytes: usize, what: &str) -> Checked<()> {
        if let Some(found) = self.state[at..at + bytes]
            .iter()
            .position(|state| state & IN_FLIGHT != 0)
        {
            return Err(Fault::new(
                FindingKind::InFlight,
                format!(
                    "{what} byte {} of shared memory, which a copy that was not waited for writes",
                    at + found
                ),
            ));
        }
        Ok(())
    }

    /// Reads up to 16 bytes.
    pub(crate) fn load(&self, address: u64, bytes: usize, align: usize) -> Checked<u128> {
        let at = self.check(address, bytes, align)?;
        if self.state[at..at + bytes]
            .iter()
            .any(|state| state & (WRITTEN | IN_FLIGHT) != WRITTEN)
        {
            self.not_in_flight(at, bytes, "reads")?;
            let missing = self.state[at..at + bytes]
                .iter()
                .position(|state| state & WRITTEN == 0)
                .unwrap_or(0);
            return Err(Fault::new(
                FindingKind::Unwritten,
                format!("byte {} of shared memory", at + missing),
            ));
        }
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&self.data[at..at + bytes]);
        Ok(u128::from_le_bytes(value))
    }

    /// Writes up to 16 bytes.
    pub(crate) fn store(&mut self, address: u64, bytes: usize, value: u128) -> Checked<()> {
        let at = self.check(address, bytes, bytes)?;
        self.not_in_flight(at, bytes, "writes")?;
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.state[at..at + bytes].fill(WRITTEN);
        Ok(())
    }

    /// A copy that will write these bytes begins.
    pub(crate) fn begin_copy(&mut self, address: u64, bytes: usize, align: usize) -> Checked<()> {
        let at = self.check(address, bytes, align)?;
        self.not_in_flight(at, bytes, "copies to")?;
        for state in &mut self.state[at..at + bytes] {
            *state |= IN_FLIGHT;
        }
        Ok(())
    }

    /// The copy has come in.
    pub(crate) fn end_copy(&mut self, address: u64, bytes: usize, value: u128) {
        let at = address as usize;
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.state[at..at + bytes].fill(WRITTEN);
    }
}

/// How many times banks must be asked again for the accesses of a warp: 32 banks of 4 bytes, a word for all lanes that want it.
/// Wider accesses go by parts of the warp.
pub(crate) fn conflicts(addresses: &[u32], bytes: usize) -> u64 {
    let part = match bytes {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    let mut extra = 0;
    for lanes in addresses.chunks(part) {
        let mut words = [[0u32; 32]; 32];
        let mut counts = [0usize; 32];
        for &address in lanes {
            for word in address / 4..(address + bytes as u32).div_ceil(4) {
                let bank = word as usize % 32;
                let known = &words[bank][..counts[bank]];
                if !known.contains(&word) && counts[bank] < 32 {
                    words[bank][counts[bank]] = word;
                    counts[bank] += 1;
                }
            }
        }
        extra += counts
            .iter()
            .max()
            .map_or(0, |&most| most.saturating_sub(1)) as u64;
    }
    extra
}
